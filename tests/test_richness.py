"What an audit says of how much a data set teaches: every measure is passed by worlds, and failed by an environment made to fail it."

import pytest

from toolrl_lit.audit import audit
from toolrl_lit.build import build_environments
from toolrl_lit.engine.demo import demo_environment
from toolrl_lit.engine.domains import WORLDS as TEXTS
from toolrl_lit.engine.domains import texts_version
from toolrl_lit.engine.english import RULES, wording_faults
from toolrl_lit.engine.findings import Finding, audit_table
from toolrl_lit.engine.guessing import accepts, guessable, lone_calls, would_do
from toolrl_lit.engine.measures import ease, repeated_runs, richness, worded
from toolrl_lit.engine.splits import sentence_frames, shared_findings
from toolrl_lit.schema import Environment, Scenario, SubQuestion, Tool, ToolDoc
from toolrl_lit.worlds import WORLDS, WorldGenerator


@pytest.fixture(scope="module")
def worlds():
    return list(build_environments(WorldGenerator(), 60, 3, split="test", progress=False, **WORLDS))


def over(findings):
    return {f.check for f in findings if f.over}


def tool(name, **parameters):
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    doc = ToolDoc(name=name, description="x", parameters=schema)
    return Tool(doc=doc, code=f"def {name}(**all):\n    return 1\n")


def chain(answer, choices=None):
    "Return a chain of two steps with this intermediate answer, which the second tool may list."
    listed = {"type": "string"} | ({"enum": choices} if choices else {})
    first = SubQuestion(id="q1", question="a", answer=answer, tool="one", arguments={"key": "K-1"})
    second = SubQuestion(
        id="q2", question="b", answer="zz9", tool="two", arguments={"of": answer}, depends_on=["q1"]
    )
    tools = [tool("one", key={"type": "string"}), tool("two", of=listed)]
    how = dict(id=answer, kind="multi-hop", question="What?", answer="zz9")
    return Environment(scenario=Scenario(**how, sub_questions=[first, second]), tools=tools)


def test_worlds_are_below_every_bar(worlds):
    assert over(richness(worlds)) == set()
    assert over(shared_findings(worlds[:30], worlds[30:])) <= {"frame shared by the splits"}


def test_general_knowledge_and_listed_choices_can_be_guessed():
    assert guessable(chain("France")) and guessable(demo_environment())
    assert guessable(chain("MB-40213", ["MB-40213", "MB-1"]))
    assert not guessable(chain("MB-40213"))
    assert "intermediate answer that can be guessed" in over(ease([chain("France")]))


def test_a_call_with_one_tool_leaves_no_choice():
    env = demo_environment()
    alone = env.model_copy(update=dict(tools=[t for t in env.tools if not t.distractor]))
    assert len(lone_calls(alone)) == len(alone.scenario.sub_questions) - sum(
        would_do(t, q.arguments) and t.name != q.tool
        for q in alone.scenario.sub_questions
        for t in alone.tools
    )
    single = chain("MB-40213").model_copy(update=dict(tools=[tool("one", key={"type": "integer"})]))
    only = single.scenario.sub_questions[0].model_copy(update=dict(arguments={"key": 3}))
    scenario = single.scenario.model_copy(update=dict(sub_questions=[only]))
    single = single.model_copy(update=dict(scenario=scenario))
    assert "call for which only one tool would do" in over(ease([single]))


def test_a_parameter_accepts_what_its_document_says():
    text = {"type": "string", "description": "id of the member, such as MB-00000"}
    assert accepts(text, "MB-12345") and not accepts(text, "BK-12345")
    assert accepts({"type": "string", "format": "date"}, "2031-05-04")
    assert not accepts({"type": "string", "format": "date"}, "May 4")
    assert accepts({"enum": ["a", "b"]}, "a") and not accepts({"enum": ["a", "b"]}, "c")
    assert accepts({"type": "array", "items": {"enum": ["a"]}}, ["a"])
    assert not accepts({"type": "array", "items": {"enum": ["a"]}}, ["b"])
    assert not accepts({"type": "integer"}, True) and accepts({"type": "boolean"}, True)
    ends = {"type": "object", "properties": {"from": {"type": "integer"}}}
    assert accepts(ends, {"from": 3}) and not accepts(ends, {"to": 3})


def test_saying_the_same_again_is_over_the_bar(worlds):
    again = [
        e.model_copy(update=dict(scenario=e.scenario.model_copy(update=dict(id=f"{e.id}{k}"))))
        for e in worlds[:5]
        for k in range(3)
    ]
    wanted = {"run of four words that came before", "frame that came before"}
    assert wanted <= over(worded(again))
    assert repeated_runs(["one two three four five", "one two three four six"]) == (1, 4)


def test_frames_shared_by_the_splits_are_found(worlds):
    found = shared_findings(worlds[:20], worlds[:20])
    assert "frame shared by the splits" in over(found)
    assert sentence_frames(demo_environment(".pl")) == sentence_frames(demo_environment(".fr"))


BROKEN = {
    "a word twice": "What is the the fine?",
    "a before a vowel": "Give me a old book.",
    "one of many": "Which of them last at least one hours?",
    "most without an article": "Which city of Rwanda has most people?",
    "what for which": "What has the greater area: Chad or Peru?",
    "two colons in a sentence": "And: one thing: the fine.",
    "an order with a question mark": "Hand me the fine of the loan?",
    "a question without its mark": "Shall we look at the loans. Good.",
    "a small letter behind a stop": "I wait. what is the fine?",
    "no stop at the end": "What is the fine",
    "a quotation without its end": 'Complete "the fine.',
}


def test_every_rule_of_wording_has_a_question_that_breaks_it():
    assert set(BROKEN) == {*RULES, "a quotation without its end"}
    for rule, question in BROKEN.items():
        assert wording_faults(question) == [rule]
    fine = "Is there an hour, a unit or a European one? It has the most people at 12:30."
    assert wording_faults(fine) == []
    env = demo_environment()
    scenario = env.scenario.model_copy(update=dict(question=BROKEN["a word twice"]))
    spoilt = env.model_copy(update=dict(scenario=scenario))
    assert "wording against a rule" in over(worded([spoilt]))


def test_a_bar_is_no_defect_and_is_shown():
    high = Finding("guessed", 6, 100, False, [], 5)
    assert high.over and not high.failed
    assert not Finding("guessed", 5, 100, False, [], 5).over and not Finding("x", 5, 9).over
    assert list(audit_table([high])["fine up to"]) == ["5 % (over)"]


def test_the_audit_says_it(worlds):
    checks = [f.check for f in audit(worlds[:20])]
    for check in (
        "intermediate answer that can be guessed",
        "call for which only one tool would do",
        "parameter without a description",
        "run of four words that came before",
        "frame that came before",
        "wording against a rule",
    ):
        assert check in checks


@pytest.mark.parametrize("name", ["domains", "frames", "talk.frames"])
def test_every_text_of_worlds_changes_their_version(name, monkeypatch, tmp_path):
    "A build tells by the version what it was made of."
    from toolrl_lit.engine import domains

    before = texts_version()
    for path in TEXTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(domains, "WORLDS", tmp_path)
    assert texts_version() == before
    changed = tmp_path / f"test.{name}.txt"
    changed.write_text(changed.read_text("utf-8") + "\n", "utf-8")
    assert texts_version() != before
