"""Environments by a language model, against a real HTTP server that plays one and misbehaves on purpose (llm_server): what is accepted
is right, nothing is lost, doubled or paid twice, and nothing goes beyond the budget."""

import csv
import email.utils
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llm_server
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_server import CONTENT, FREE, TRANSPORT, ModelServer
from pydantic import BaseModel

from toolrl_lit.build import audit, build_environments
from toolrl_lit.deploy import check
from toolrl_lit.doors import author as llm
from toolrl_lit.doors import author_endpoint
from toolrl_lit.doors.author import (
    Endpoint,
    LLMGenerator,
    Question,
    Sketch,
    Toolset,
    Unanswered,
    ask_decompose,
    bind,
    code_problems,
    judged,
    llm_config,
    propose,
    read_questions,
)
from toolrl_lit.integrate import TWINS, overlapping
from toolrl_lit.scenario import Difficulty
from toolrl_lit.schema import (
    SCENARIOS,
    STRATEGIES,
    Environment,
    Scenario,
    SubQuestion,
    UserError,
    read_jsonl,
    read_manifest,
)


class Say(BaseModel):
    word: str


HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture()
def serve():
    "Servers that end with the test."
    started = []

    def start(*args, **more):
        started.append(ModelServer(*args, **more))
        return started[-1]

    yield start
    for s in started:
        s.held.set()
        s.close()


@pytest.fixture()
def setup(serve, tmp_path):
    "A server and a generator on it."

    def start(server=None, cache="answers", asked=None, key="any", config={}, **more):
        server = server or serve(**more)
        values = (
            dict(
                model="played",
                base_url=server.url,
                cache=str(tmp_path / cache),
                price_in=1,
                price_out=4,
            )
            | config
        )
        return server, LLMGenerator(
            Endpoint(llm_config(**values), key),
            asked or [Question(question=q) for q in server.questions],
        )

    return start


def build(generator, n=None, **more):
    return build_environments(
        generator, n or len(generator.questions), seed=0, progress=False, **more
    )


def dropped(counts):
    return {k: v for k, v in counts.items() if k.startswith("dropped")}


def covers(ledger, server):
    return all(
        a >= b for a, b in zip(ledger.total(), server.bill)
    )  # nothing is billed that is not booked


def first(mood, *stages):
    "Misbehave the first time, in these stages or all."
    return lambda stage, question, n, length: (
        mood if n == 0 and length == 2 and (not stages or stage in stages) else None
    )


# -- what comes through


def test_on_a_bad_day_what_is_accepted_is_right_and_nothing_is_lost_or_doubled(setup, tmp_path):
    canary = tmp_path / "canary"
    server, generator = setup(
        mood=0.4, seed=1, slow=2, canary=str(canary), config=dict(timeout=1.5, repairs=3)
    )
    server.retry_after = lambda: "0.1"
    built = build(generator, out=tmp_path / "e.jsonl")
    assert len(server.moods) >= 10 and {*CONTENT} <= {*server.moods}, (
        "the day was not bad enough"
    )  # by chance; each has a test of its own
    assert all(server.right(e) and check(e) == [] for e in built) and not canary.exists()
    assert (
        built.counts["attempts"] == 12 == len(built) + sum(dropped(built.counts).values())
        and len(built) >= 8
    )
    places = [int(e.id.rsplit("-", 1)[1]) for e in built]
    assert places == sorted(set(places)) and [e.question for e in built] == [
        server.questions[p] for p in places
    ]
    assert not [f for f in audit(built) if f.failed]
    assert (
        read_jsonl(tmp_path / "e.jsonl", Environment) == list(built)
        and not (tmp_path / "e.jsonl.part").exists()
    )
    before = server.requests
    again = setup(server, config=dict(repairs=3))[1]
    assert list(build(again)) == list(built) and server.requests == before
    assert (
        again.endpoint.ledger == generator.endpoint.ledger
        and again.endpoint.ledger.total().requests == len(list((tmp_path / "answers").glob("*/*")))
    )
    assert (
        covers(generator.endpoint.ledger, server)
        and again.endpoint.ledger["lost"].requests >= sum(server.lost.values()) > 0
    )


def test_a_good_model_is_asked_once_for_each_stage_and_all_strategies_are_applied(setup):
    server, generator = setup()
    built = build(generator, rates=dict.fromkeys(STRATEGIES, 1.0))
    assert len(built) == 12 and all(map(server.right, built)) and max(server.paid.values()) == 1
    assert not any(k.startswith("repairs") for k in built.counts)
    assert Counter(e.kind for e in built) == dict.fromkeys(SCENARIOS, 3)
    assert {s for e in built for s in e.strategies} == set(STRATEGIES) and all(
        any(t.distractor for t in e.tools) for e in built
    )
    c = built.counts
    assert (
        c["stage 3, documents after merging"]
        < c["stage 2, documents"]
        < c["stage 4, documents after scaling"]
    )
    assert (
        c.get("stage 3, pairs that overlap after merging", 0)
        < c["stage 3, pairs that overlap before merging"]
    )


# -- the endpoint misbehaves


@pytest.mark.parametrize("mood", TRANSPORT)
def test_a_request_that_fails_is_repeated(setup, mood):
    server, generator = setup(questions=1, always=first(mood), slow=3, config=dict(timeout=2))
    with generator.endpoint.open():
        s = ask_decompose(generator.endpoint, generator.questions[0], "s", "train", 4, Counter())
    assert s.answer == server.known[s.question].answer and [m for _, m, _, _ in server.log] == [
        mood,
        None,
    ]
    if mood == "429":
        assert server.log[1][2] - server.log[0][2] >= 1, "earlier than Retry-After allows"
    assert covers(generator.endpoint.ledger, server) and sum(server.lost.values()) == (
        mood not in FREE
    )


@pytest.mark.parametrize("mood", TRANSPORT)
def test_no_more_attempts_are_made_than_allowed_and_the_lost_ones_are_booked_at_their_worst(
    setup, tmp_path, mood
):
    patience = 1 if mood == "slow" else 3
    limits = dict(retries=1, timeout=patience, max_tokens=300)
    server, generator = setup(questions=1, always=lambda *_: mood, slow=1.5, config=limits)
    ask = lambda e: ask_decompose(e, generator.questions[0], "s", "train", 4, Counter())
    with generator.endpoint.open(), pytest.raises(Unanswered, match="fails.*after 1 retries"):
        ask(generator.endpoint)
    assert len(server.log) == server.requests == 2
    ledger, lost = generator.endpoint.ledger, 0 if mood in FREE else 2
    assert ledger.total() == ledger.get("lost", llm.Spent()) and (
        lost == 0 or covers(ledger, server)
    )
    assert ledger.total()[::2] == (lost, lost * 300) and (
        f"0 answers and {lost} lost attempts" in str(ledger)
    ) == bool(lost)
    again = setup(server, config=limits)[1].endpoint
    with again.open():
        assert again.ledger == ledger, "a new start does not know of them"


def test_what_was_never_sent_is_not_booked(setup, tmp_path):
    _, generator = setup(questions=1, config=dict(base_url="http://127.0.0.1:9/v1", retries=1))
    with generator.endpoint.open(), pytest.raises(Unanswered, match="fails"):
        generator.endpoint.ask("say", HELLO, Say)
    assert not generator.endpoint.ledger and not list((tmp_path / "answers").glob("*/*"))


def test_pauses_get_longer(setup):
    server, generator = setup(
        questions=1, always=lambda stage, question, n, length: "no completion" if n < 3 else None
    )
    with generator.endpoint.open():
        ask_decompose(generator.endpoint, generator.questions[0], "s", "train", 4, Counter())
    came = [at for _, _, at, _ in server.log]
    assert all(b - a >= least for a, b, least in zip(came, came[1:], (0.375, 0.75, 1.5)))


def test_a_date_to_come_back_at_is_kept_and_nonsense_is_none(setup):
    server, generator = setup(questions=1, always=first("429"))
    server.retry_after = lambda: email.utils.formatdate(time.time() + 3, usegmt=True)
    with generator.endpoint.open():
        ask_decompose(generator.endpoint, generator.questions[0], "s", "train", 4, Counter())
    assert 1.9 <= server.log[1][2] - server.log[0][2] < 5
    assert [llm.retry_after(v) for v in ("", "soon", "Wed, 99 Nov 2026", "-5")] == [
        0,
        0,
        0,
        -5,
    ] and not llm.retry_after("nan") > 0


def test_who_waits_to_ask_again_gives_up_when_all_is_stopped(setup):
    server, generator = setup(questions=1, always=lambda *_: "429")
    server.retry_after = lambda: "100"
    with ThreadPoolExecutor(1) as pool:
        with generator.endpoint.open():
            job = pool.submit(
                ask_decompose,
                generator.endpoint,
                generator.questions[0],
                "s",
                "train",
                4,
                Counter(),
            )
            while not server.log:
                time.sleep(0.02)
            time.sleep(0.2)
        with pytest.raises(Unanswered, match="not open"):
            job.result(timeout=10)


@pytest.mark.parametrize(
    "refusal",
    [
        (400, "response_format is not supported"),
        (400, "json_schema: unknown"),
        (422, "extra fields not permitted"),
    ],
)
def test_an_endpoint_that_knows_no_structured_output_is_asked_without(setup, refusal):
    server, generator = setup(questions=8, unstructured=refusal)
    assert len(build(generator)) == 8 and max(server.paid.values()) == 1


@pytest.mark.parametrize(
    "usage",
    [
        False,
        None,
        {},
        "none",
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": "many"},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    ],
)
def test_where_the_endpoint_does_not_count_tokens_we_do(setup, usage):
    server, generator = setup(questions=1, usage=usage)
    with generator.endpoint.open():
        ask_decompose(generator.endpoint, generator.questions[0], "s", "train", 4, Counter())
        spent = generator.endpoint.ledger.total()
    assert spent.prompt_tokens > 500 and spent.completion_tokens > 20


def test_no_more_requests_are_under_way_than_allowed(setup):
    server, generator = setup(config=dict(concurrency=3))
    server.hold_after = 0  # nobody is answered until three are waiting
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(build, generator)
        while server.busy < 3:
            assert not built.done()
            time.sleep(0.02)
        server.hold_after = None
        server.held.set()
        assert len(built.result()) == 12 and server.most_busy == 3


def test_the_same_request_at_the_same_time_is_made_once(setup):
    server, generator = setup(questions=1)
    with generator.endpoint.open(), ThreadPoolExecutor(8) as pool:
        assert (
            len(set(pool.map(lambda _: generator.endpoint.ask("say", HELLO, Say), range(20)))) == 1
        )
    assert server.requests == 1 and generator.endpoint.ledger.from_cache == 19


def test_a_request_that_is_refused_drops_its_question_only(setup):
    bad = lambda stage, question, n, length: (
        "400" if question == server.questions[1] and stage == "document" else None
    )
    server, generator = setup(questions=4, always=bad)
    built = build(generator)
    assert len(built) == 3 and dropped(built.counts) == {
        "dropped in stage 2: refused by the endpoint": 1
    }


def test_a_wrong_key_stops_at_once(setup, tmp_path):
    server, generator = setup(key="wrong", config=dict(concurrency=1))
    with pytest.raises(UserError, match="refuses us.*who are you.*0 of 12"):
        build(generator, out=tmp_path / "e.jsonl")
    assert server.requests == 1 and not (tmp_path / "e.jsonl").exists()


@pytest.mark.parametrize(
    "choices",
    [
        None,
        [],
        {},
        "x",
        [None],
        ["x"],
        [{"message": None}],
        [{"message": "x"}],
        [{"message": {"content": 5}}],
        [{"message": {"content": ["x"]}}],
    ],
)
def test_what_is_no_completion_ends_in_one_sentence(setup, monkeypatch, choices):
    real = llm_server.completion
    monkeypatch.setattr(llm_server, "completion", lambda *args: real(*args) | {"choices": choices})
    server, generator = setup(questions=1, config=dict(retries=0))
    with pytest.raises(UserError, match="fails: what it sends is no chat completion"):
        build(generator)


def test_an_answer_without_words_or_with_half_a_character_is_an_answer(setup, monkeypatch):
    server, generator = setup(questions=1)
    real = llm_server.completion
    for said, text in ((None, ""), ("\ud83d", "?")):
        monkeypatch.setattr(
            llm_server,
            "completion",
            lambda *args: (
                real(*args) | {"choices": [{"message": {"role": "assistant", "content": said}}]}
            ),
        )
        with generator.endpoint.open():
            assert (
                generator.endpoint.ask("say", [*HELLO, {"role": "user", "content": text}], Say)
                == text
            )
    assert server.requests == 2 and generator.endpoint.ledger.total().requests == 2


def test_an_endpoint_that_goes_down_leaves_what_is_finished_and_the_same_build_goes_on(
    setup, tmp_path, monkeypatch
):
    monkeypatch.setattr(author_endpoint, "PATIENCE", 3)
    down = lambda stage, question, n, length: "500" if len(server.paid) >= 25 else None
    server, generator = setup(always=down, config=dict(retries=0, concurrency=2))
    with pytest.raises(
        UserError,
        match="requests in a row failed.*of 12 environments are finished, see .*e.so-far.jsonl",
    ):
        build(generator, out=tmp_path / "e.jsonl")
    finished = read_jsonl(tmp_path / "e.so-far.jsonl", Environment)
    assert (
        finished and all(map(server.right, finished)) and server.moods["500"] <= 5
    )  # one before the last answer arrives, and one beside the third
    server.always = None
    built = build(generator, out=tmp_path / "e.jsonl")
    assert (
        len(built) == 12
        and max(server.paid.values()) == 1
        and [p.name for p in tmp_path.glob("e.*")] == ["e.jsonl"]
    )
    assert [e for e in built if e.id in {f.id for f in finished}] == finished


# -- the model misbehaves


@pytest.mark.parametrize(
    "stage, mood",
    [
        ("decompose", "wrong"),
        ("decompose", "hostile"),
        ("document", "wrong"),
        ("integrate", "hostile"),
        ("extend_toolset", "cut answer"),
        ("deploy", "wrong"),
        ("deploy", "hostile"),
        ("deploy", "wrong schema"),
    ],
)
def test_a_wrong_answer_is_shown_to_the_model_and_repaired_or_dropped(setup, tmp_path, stage, mood):
    server, generator = setup(
        questions=4, always=first(mood, stage), canary=str(tmp_path / "canary")
    )
    built, number = (
        build(generator),
        {"decompose": 1, "document": 2, "integrate": 3, "deploy": 5}.get(stage, 4),
    )
    assert (
        len(built) == 4
        and all(map(server.right, built))
        and built.counts[f"repairs in stage {number}"] == server.moods[mood] > 0
    )
    repairs = [json.loads(p) for s, m, _, p in server.log if s == stage and len(json.loads(p)) > 2]
    assert len(repairs) == server.moods[mood] and all(
        "cannot be used:\n\n- " in r[-1]["content"] for r in repairs
    )
    server.always = lambda s, question, n, length: (
        mood if s == stage and question == server.questions[2] else None
    )
    hopeless = build(setup(server, "other")[1])
    asked = [m for s, m, _, p in server.log if s == stage and m == mood][-3:]
    assert len(hopeless) == 3 and len(asked) == 3 and [*dropped(hopeless.counts).values()] == [1]
    assert (
        next(iter(dropped(hopeless.counts))).startswith(f"dropped in stage {number}: ")
        and not (tmp_path / "canary").exists()
    )


def test_hostile_or_wrong_code_is_never_accepted_and_never_runs_here(setup, tmp_path):
    server, generator = setup(questions=4)
    env = build(generator)[0]
    sketch = Sketch(scenario=env.scenario, tools=[t.doc for t in env.tools])
    program = lambda change: llm.Program(
        codes=[llm.Code(tool=t.name, code=change(t)) for t in env.tools]
    )
    assert code_problems(sketch, program(lambda t: t.code), None)[1] == []
    attacks = [
        json.loads(line)["code"]
        for line in (Path(__file__).parent / "data/escapes.jsonl").read_text().splitlines()
    ]
    for code in [
        *attacks,
        "",
        "\0",
        "(" * 3000,
        f"open({str(tmp_path / 'x')!r}, 'w')",
        "import random\ndef f(): pass",
        "from datetime import datetime\ndef {name}(): return datetime.now()",
        "class C: pass",
    ]:
        assert code_problems(
            sketch, program(lambda t: code.replace("def attack", f"def {t.name}")), None
        )[1]
    assert not (tmp_path / "x").exists()


def test_tools_that_are_the_same_in_all_but_words_must_be_merged(setup):
    server, generator = setup(questions=12)
    real = server.changed
    server.changed = lambda stage, s, draft, facts: (
        draft if stage == "integrate" else real(stage, s, draft, facts)
    )
    built = build(generator, rates={})
    twins = [
        q
        for q, s in server.known.items()
        if overlapping(real("document", s, None, {}).documents(), least=TWINS)
    ]
    assert 0 < len(twins) < 12 and [e.question for e in built] == [
        q for q in server.questions if q not in twins
    ]
    assert dropped(built.counts) == {"dropped in stage 3: tools that do the same": len(twins)}
    told = [
        json.loads(p)[-1]["content"]
        for stage, _, _, p in server.log
        if stage == "integrate" and len(json.loads(p)) > 2
    ]
    assert told and all("merge them into one" in t for t in told)


def test_code_without_types_checks_or_neighbours_is_not_accepted(setup):
    server, generator = setup(questions=8)
    for env in build(generator, rates={}):
        sketch, tool = (
            Sketch(scenario=env.scenario, tools=[t.doc for t in env.tools]),
            env.scenario.sub_questions[0].tool,
        )

        def problems(change):
            return code_problems(
                sketch,
                llm.Program(
                    codes=[
                        llm.Code(tool=t.name, code=change(t.code) if t.name == tool else t.code)
                        for t in env.tools
                    ]
                ),
                None,
            )[1]

        assert problems(lambda code: code) == []
        assert problems(lambda code: code.replace(") -> str:", "):", 1)) == [
            f"no types: {tool}: annotate every parameter and the result"
        ]
        assert problems(lambda code: re.sub(r"\((\w+): \w+", r"(\1", code, count=1))[0].startswith(
            f"no types: {tool}"
        )
        answers = [q.answer for q in env.scenario.sub_questions if q.tool == tool]
        keep = lambda m: m[0] if m[2] in answers else ""
        alone = problems(lambda code: re.sub(r'^ +"([^"]*)": "(.*)",\n', keep, code, flags=re.M))
        assert alone == [
            f"only the golden key: {tool}: its table must hold other subjects, and it must answer for them as well"
        ] * len(answers)
        given = next(iter(next(q.arguments for q in env.scenario.sub_questions if q.tool == tool)))
        lenient = problems(
            lambda code: re.sub(
                r'^(    ".*")$',
                rf"\1\n    if {given} == {{}}: return 'whatever it is'",
                code,
                count=1,
                flags=re.M,
            )
        )
        assert lenient == [
            f"wrong type accepted: {tool}({ {given: {}} }) must raise ValueError"
        ] * len(answers)


@pytest.mark.parametrize(
    "final, said",
    [
        ("42", "does not follow"),
        ("no", "final answer not specific"),
        ("the", "does not follow"),
        ("Limassol", "does not follow"),
        ("Atlantis", "does not follow"),
        ("Lima", None),
        ("Peru, Lima", None),
        ("Peru", None),
    ],
)
def test_a_final_answer_is_specific_and_follows_from_the_steps(final, said):
    sub = SubQuestion(
        id="q1",
        question="What is the capital of Peru in the north?",
        answer="Lima",
        entities=["Peru"],
    )
    found = llm.scenario_problems(
        Scenario(id="s", kind="single-hop", question="Where?", answer=final, sub_questions=[sub]),
        Question(question="Where?"),
        4,
    )
    assert not found if said is None else any(said in p for p in found)


@pytest.mark.parametrize(
    "final, right",
    [("300.5", True), ("99.5", True), ("199.5", False), ("30,050", False), ("300.5 people", False)],
)
def test_a_final_answer_may_be_a_sum_or_a_difference(final, right):
    subs = [
        SubQuestion(id=f"q{i}", question=f"How many people has {name}?", answer=n, entities=[name])
        for i, (name, n) in enumerate([("Oz", "200"), ("Ix", "100.5")])
    ]
    s = Scenario(
        id="s", kind="parallel single-hop", question="How many?", answer=final, sub_questions=subs
    )
    assert right != any(
        "does not follow" in p for p in llm.scenario_problems(s, Question(question="How many?"), 4)
    )


def test_a_known_answer_and_scenario_are_held_against_the_models(setup):
    server, _ = setup(questions=4)
    asked = [
        Question(question=q, answer=server.known[q].answer, kind=server.known[q].kind)
        for q in server.questions
    ]
    asked[1].answer, asked[2].kind = "Atlantis", "parallel single-hop"
    built = build(setup(server, asked=asked)[1])
    assert [e.question for e in built] == [server.questions[0], server.questions[3]]
    assert dropped(built.counts) == {
        "dropped in stage 1: other final answer": 1,
        "dropped in stage 1: other scenario": 1,
    }


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", "string", "object", "array", "x", "Peru", "class"]),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "required",
                    "enum",
                    "items",
                    "$ref",
                    "pattern",
                    "x",
                    "description",
                ]
            ),
            x,
            max_size=4,
        )
    ),
    max_leaves=12,
)
PLAIN = st.fixed_dictionaries(
    {
        "type": st.just("object"),
        "properties": st.dictionaries(st.sampled_from(["x", "y"]), JSON, max_size=2),
    },
    optional={"required": JSON},
)


@settings(max_examples=150, deadline=None)
@given(
    parameters=PLAIN | st.dictionaries(st.sampled_from(["type", "properties", "required"]), JSON),
    arguments=st.dictionaries(st.sampled_from("xy"), JSON),
)
def test_whatever_documents_a_model_writes_they_are_judged_without_an_accident(
    parameters, arguments
):
    sub = SubQuestion(id="q1", question="What is the capital of Peru?", answer="Lima")
    scenario = Scenario(
        id="s", kind="single-hop", question=sub.question, answer="Lima", sub_questions=[sub]
    )
    said = json.dumps(
        dict(
            tools=[dict(name="f", description="", parameters=parameters)],
            calls=[dict(sub_question="q1", tool="f", arguments=arguments)],
        )
    )
    sketch, problems = judged(said, Toolset, lambda t: bind(scenario, t, []))
    assert sketch or problems
    if not problems:
        names = ", ".join(parameters["properties"])
        assert check(sketch.environment({"f": f"def f({names}): return 'Lima'\n"}), None), (
            "what returns the answer to anything must not pass"
        )


# -- what is paid for

SCRIPT = """
import sys, json
from toolrl_lit.build import build_environments
from toolrl_lit.doors.author import Endpoint, LLMGenerator, llm_config, read_questions
url, folder = sys.argv[1:]
generator = LLMGenerator(Endpoint(llm_config(model="played", base_url=url, cache=folder + "/answers"), "any"), read_questions(folder + "/q.jsonl"))
build_environments(generator, 12, seed=0, out=folder + "/e.jsonl", progress=False)
"""


def test_after_kill_9_no_paid_request_is_repeated(setup, tmp_path):
    server, generator = setup()
    (tmp_path / "q.jsonl").write_text(
        "".join(q.model_dump_json() + "\n" for q in generator.questions)
    )
    server.hold_after = 31
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url, str(tmp_path)])
    try:
        while len(list((tmp_path / "answers").glob("??/*.json"))) < 31:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "e.jsonl").exists()
    came = -1
    while server.requests > came or server.busy > sum(server.lost.values()):
        came = server.requests
        time.sleep(0.5)  # what it asked last is held too
    server.hold_after = None
    server.held.set()
    built = build(setup(server)[1], out=tmp_path / "e.jsonl")
    assert len(built) == 12 and max(server.paid.values()) == 1
    again = setup(server)[1].endpoint
    with again.open():
        assert (
            covers(again.ledger, server)
            and again.ledger["lost"].requests >= sum(server.lost.values()) > 0
        ), "what was under way may be billed"
    assert list(built) == list(build(setup(server, "fresh")[1])), (
        "the interruption can be seen in the result"
    )


@pytest.mark.parametrize(
    "limit, mood",
    [
        (dict(budget=0.03), 0),
        (dict(budget_tokens=20_000), 0),
        (dict(budget=0.12), 0.5),
        (dict(budget_tokens=80_000), 0.5),
    ],
)
def test_the_budget_is_kept_and_a_larger_one_goes_on(setup, tmp_path, limit, mood):
    server, generator = setup(
        mood=mood,
        moods=TRANSPORT,
        slow=2,
        config=dict(concurrency=4, max_tokens=2000, timeout=1.5 if mood else 60) | limit,
    )
    server.retry_after = lambda: "0.1"
    with pytest.raises(UserError, match="budget is spent.*raise it"):
        build(generator, out=tmp_path / "e.jsonl")
    ledger = generator.endpoint.ledger
    assert 0 < ledger.cost(ledger.total()) <= limit.get("budget", 1) and sum(
        ledger.total()[1:]
    ) <= limit.get("budget_tokens", 10**6)
    assert not (tmp_path / "e.jsonl").exists() and sum(server.paid.values()) >= 12
    assert (
        covers(ledger, server)
        and ledger.total().requests == server.bill[0]
        and bool(server.lost) == bool(mood)
    )
    more = setup(
        server,
        config={k: 20 * v for k, v in limit.items()}
        | dict(max_tokens=2000, timeout=1.5 if mood else 60),
    )[1]
    built = build(more, out=tmp_path / "e.jsonl")
    assert len(built) == 12 and (mood or max(server.paid.values()) == 1)
    assert (
        covers(more.endpoint.ledger, server)
        and more.endpoint.ledger.total().requests == server.bill[0]
    )


def test_an_answer_longer_than_allowed_stops_what_has_a_budget(setup):
    for limit, stops in ((dict(budget_tokens=10**6), True), ({}, False)):
        server, generator = setup(
            cache=f"{stops}",
            questions=1,
            usage={"prompt_tokens": 9, "completion_tokens": 2001},
            config=dict(max_tokens=2000) | limit,
        )
        with generator.endpoint.open():
            assert generator.endpoint.ask(
                "say", HELLO, Say
            ) and generator.endpoint.ledger.total() == (1, 9, 2001)
            if stops:
                assert (
                    "9 + 2001 tokens" in generator.endpoint.stopped
                    and "max_tokens" in generator.endpoint.stopped
                )
            else:
                assert generator.endpoint.stopped is None


def test_who_stops_reading_stops_the_asking(setup):
    server, generator = setup(config=dict(concurrency=2))
    stream = generator.environments(12, 0, "train", Difficulty(), {})
    assert next(stream)[0]
    stream.close()
    asked = server.requests
    assert asked < 30 and generator.endpoint.stopped
    with pytest.raises(Unanswered, match="not open"):
        generator.endpoint.ask("say", HELLO, Say)
    with generator.endpoint.open():
        generator.endpoint.ask("say", HELLO, Say)  # the folder is free again
    assert server.requests == asked + 1


def test_a_cache_that_is_in_use_or_broken_is_refused(setup, tmp_path):
    server, generator = setup(questions=1)
    with generator.endpoint.open():
        generator.endpoint.ask("say", HELLO, Say)
        with pytest.raises(UserError, match="another process is working"):
            build(setup(server)[1])
    file = next((tmp_path / "answers").glob("??/*.json"))
    file.write_text(file.read_text()[:50])
    with pytest.raises(UserError, match=f"{file.name}: is no answer"):
        build(setup(server)[1])


# -- what a build is


def test_a_build_of_another_model_prompt_or_question_is_refused_and_tells_no_secret(
    setup, tmp_path
):
    server, generator = setup(
        questions=3, config=dict(settings={"temperature": 0.5, "api_key": "sk-secret"})
    )
    built = build(generator, out=tmp_path / "set", shard=2, format="parquet")
    manifest = read_manifest(tmp_path / "set")
    assert (
        [s.rows for s in manifest.shards] == [2, 1] and len(built) == 3 and server.right(built[2])
    )
    assert (
        manifest.build["generator"] == "LLMGenerator"
        and manifest.build["model"] == "played"
        and manifest.build["settings"]["temperature"] == 0.5
    )
    written = manifest.model_dump_json()
    assert not any(word in written for word in ("sk-secret", server.url, str(tmp_path)))
    own = tmp_path / "prompts"
    shutil.copytree(Path(llm.__file__).parents[1] / "prompts", own)
    before, same = server.requests, dict(settings={"temperature": 0.5, "api_key": "sk-secret"})
    assert list(
        build(
            setup(server, "fresh", config=same | dict(prompts=str(own), budget_tokens=1))[1],
            out=tmp_path / "set",
            shard=2,
            format="parquet",
        )
    ) == list(built)
    (own / "deploy.md").write_text((own / "deploy.md").read_text() + "Be brief.\n")
    for change, asked, name in (
        (dict(model="other"), None, "model: 'played' there, 'other' now"),
        (dict(prompts=str(own)), None, "prompts"),
        (dict(settings={"temperature": 0.5, "api_key": "x"}), None, "settings"),
        (dict(max_tokens=99), None, "max_tokens"),
        (dict(repairs=0), None, "repairs"),
        ({}, generator.questions[::-1], "questions"),
    ):
        with pytest.raises(UserError, match=f"holds another build .{name}"):
            build(
                setup(server, "fresh", asked, config=same | change)[1],
                out=tmp_path / "set",
                shard=2,
                format="parquet",
            )
    assert server.requests == before
    assert str(tmp_path) not in json.dumps(
        setup(server, config=dict(model=f"{tmp_path}/qwen"))[1].identity()
    )


def test_a_stopped_build_is_not_taken_up_by_another_model(setup, tmp_path):
    server, generator = setup(config=dict(concurrency=1, max_tokens=2000, budget_tokens=20_000))
    with pytest.raises(UserError, match="budget is spent.*so-far"):
        build(generator, out=tmp_path / "set")
    spent = server.requests
    with pytest.raises(UserError, match="holds another build .model"):
        build(setup(server, config=dict(model="other"))[1], out=tmp_path / "set")
    assert (
        server.requests == spent
        and len(build(setup(server, config=dict(max_tokens=2000))[1], out=tmp_path / "set")) == 12
    )
    assert max(server.paid.values()) == 1 and sorted(p.name for p in tmp_path.iterdir()) == [
        "answers",
        "set",
    ]


# -- questions


def test_questions_are_read_from_jsonl_and_csv_alike(tmp_path):
    asked = [
        Question(question='Say "a, b"\nand c?', answer="x y"),
        Question(question="Où?", kind="multi-hop"),
    ]
    (tmp_path / "q.jsonl").write_text("".join(q.model_dump_json() + "\n" for q in asked), "utf-8")
    with open(tmp_path / "q.csv", "w", encoding="utf-8-sig", newline="") as f:
        w = csv.DictWriter(f, ["question", "answer", "kind"])
        w.writeheader()
        w.writerows(q.model_dump() for q in asked)
    assert read_questions(tmp_path / "q.jsonl") == read_questions(tmp_path / "q.csv") == asked


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_of_questions_may_come_from_a_spreadsheet(tmp_path, mark):
    path = tmp_path / "q.csv"
    path.write_text(f"Question {mark} Answer\nWho, then?{mark}Ada\n", "utf-8-sig")
    (question,) = read_questions(path)
    assert (question.question, question.answer) == ("Who, then?", "Ada")
    path.write_text('question\n"Who, then?\nAnd why?\n')
    with pytest.raises(UserError, match="q.csv, line .*unexpected end of data"):
        read_questions(path)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("q.csv", "question,kind\na?,multi-hop\nb?,octopus\n", ["line 3", "kind", "octopus"]),
        ("q.csv", "question\na?,b,c\n", ["line 2", "beyond"]),
        ("q.jsonl", '{"question": "a?"}\n{"qestion": "b?"}\n', ["line 2", "question"]),
        ("q.csv", "question\n", ["no question"]),
        ("q.txt", "a?", [".jsonl or .csv"]),
        ("q.csv", None, ["cannot be read"]),
    ],
)
def test_a_file_of_questions_that_cannot_be_used_is_named(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as e:
        read_questions(tmp_path / name)
    assert all(s in str(e.value) for s in [name, *said])


def test_proposals_are_different_take_scenarios_in_turn_and_are_asked_once(setup):
    server, generator = setup(questions=48)
    asked = propose(generator.endpoint, ["countries"], 40)
    assert len({q.question for q in asked}) == 40 and [q.kind for q in asked] == [*SCENARIOS] * 10
    before = server.requests
    assert (
        propose(setup(server)[1].endpoint, ["countries"], 40) == asked and server.requests == before
    )
    with pytest.raises(UserError, match="48 ideas, not 80"):
        propose(generator.endpoint, ["countries"], 80)


# -- refusals, and the command line


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(), "^model: Field required$"),
        (dict(model="m", budget=1), "price_in"),
        (dict(model="m", concurency=1), "^concurency: .*; there are: .*concurrency"),
        (dict(model="m", retries=-1), "^retries: .*, got -1$"),
        (dict(model="m", timeout="soon"), "^timeout: .*, got 'soon'$"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        llm_config(**values)


def test_what_is_asked_of_the_generator_must_be_there(setup, monkeypatch):
    _, generator = setup(questions=2)
    with pytest.raises(UserError, match="2 questions, not 3"):
        build(generator, 3)
    with pytest.raises(UserError, match="scenarios"):
        build(generator, 2, scenarios=["multi-hop"])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        Endpoint(llm_config(model="m"))
    with pytest.raises(UserError, match="nonsense.decompose.md"):
        build(setup(questions=1, config=dict(prompts="nonsense"))[1])


def test_the_command_builds_from_questions_and_from_topics_and_says_what_it_cost(
    serve, tmp_path, toolrl, monkeypatch
):
    server, out = serve(8), tmp_path / "e.jsonl"
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    (tmp_path / "q.csv").write_text("question\n" + "".join(f'"{q}"\n' for q in server.questions))
    llm_options = ["--generator", "llm", "--model", "played", "--base-url", server.url]
    code, said, _ = toolrl(
        "build",
        *llm_options,
        "--questions",
        tmp_path / "q.csv",
        "-o",
        out,
        "-p",
        "price_in=2",
        "--audit",
    )
    assert (
        code == 0
        and "8 environments in" in said
        and "answers for 0.0" in said
        and "kept: 8" in said
        and "DEFECT" not in said
    )
    assert [e.question for e in read_jsonl(out, Environment)] == server.questions
    code, said, _ = toolrl(
        "build",
        *llm_options,
        "--topic",
        "countries",
        "-n",
        4,
        "-o",
        tmp_path / "t",
        "--shard",
        3,
    )
    assert (
        code == 0
        and len(read_jsonl(tmp_path / "t", Environment)) == 4
        and len(read_manifest(tmp_path / "t").shards) == 2
    )
    code, said, _ = toolrl("parameters", "llm")
    assert code == 0 and "concurrency" in said


def test_the_command_limits_sub_questions(serve, tmp_path, toolrl, monkeypatch):
    server = serve(8)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    (tmp_path / "q.csv").write_text("question\n" + "".join(f'"{q}"\n' for q in server.questions))
    build = [
        "build",
        "--generator",
        "llm",
        "--model",
        "played",
        "--base-url",
        server.url,
        "-p",
        "calls=2",
        "-p",
        "concurrency=2",
    ]
    code, _, error = toolrl(*build, "--questions", tmp_path / "q.csv", "-o", tmp_path / "e.jsonl")
    fit = [q for q in server.questions if len(server.known[q].sub_questions) <= 2]
    assert code == 0 and 0 < len(fit) < 8, error
    assert [e.question for e in read_jsonl(tmp_path / "e.jsonl", Environment)] == fit
    proposed = [*build, "--topic", "countries", "-n", 1]
    toolrl(*proposed, "-o", tmp_path / "t.jsonl")
    toolrl(*proposed, "-o", tmp_path / "u.jsonl", "--seed", 5)
    told = [
        json.loads(json.loads(p)[1]["content"])
        for stage, _, _, p in server.log
        if stage in ("propose", "decompose")
    ]
    assert {f.get("look-ups at most", f.get("sub-questions at most")) for f in told} == {2}
    voices = [f["personas"] for f in told if "personas" in f]
    assert voices[0] != voices[-1]  # another seed, other personas


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "m"], "needs --generator llm"),
        (["--generator", "llm"], "--model"),
        (["--generator", "llm", "-m", "m", "--workers", "2"], "one process keeps the budget"),
        (["--generator", "llm", "-m", "m", "--executor", "ray"], "one process keeps the budget"),
        (["--generator", "gpt"], "'knowledge', 'worlds', 'tasks' or 'llm'"),
        (["--generator", "llm", "-m", "m"], "either --questions or --topic"),
        (["--generator", "llm", "-m", "m", "--topic", "t"], "-n"),
        (["--generator", "llm", "-m", "m", "--topic", "t", "-n", "1"], "OPENAI_API_KEY"),
        (
            ["--generator", "llm", "-m", "m", "--topic", "t", "-n", "1", "-p", "budjet=1"],
            "Did you mean 'budget'",
        ),
    ],
)
def test_the_command_refuses_what_does_not_fit(tmp_path, toolrl, monkeypatch, words, said):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, _, error = toolrl("build", "-o", tmp_path / "e.jsonl", *words)
    assert (
        code == 2
        and error.startswith("error: ")
        and error.count("\n") == 1
        and said in error
        and not list(tmp_path.iterdir())
    )
