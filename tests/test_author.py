"""What a language model is asked as an author, and what becomes of its answers: the examples in the prompts, descriptions, records,
confusable tools, personas, verification, and answers of any name."""

import json

import pytest
from llm_server import ModelServer

from toolrl_lit.build import build_environments
from toolrl_lit.deploy import check
from toolrl_lit.doors import author_prompts as prompts
from toolrl_lit.doors.author import (
    CHANGES,
    PERSONAS,
    Endpoint,
    LLMGenerator,
    Question,
    Sketch,
    bind,
    code_problems,
    confusable,
    evidence,
    example,
    judged,
    kind_of,
    llm_config,
    prompt,
    propose,
)
from toolrl_lit.doors.author_checks import scenario_problems, stage_problems
from toolrl_lit.schema import Scenario, SubQuestion

TOOLSETS = ("document", "integrate", *CHANGES)
FORMS = dict.fromkeys(TOOLSETS, prompts.Toolset) | {
    "decompose": prompts.Decomposition,
    "deploy": prompts.Program,
    "propose": prompts.Proposals,
    "verify": prompts.Verdict,
}


def scenario(question, steps, answer):
    subs = [SubQuestion(**s) for s in steps]
    s = Scenario(id="s", kind="single-hop", question=question, answer=answer, sub_questions=subs)
    return s.model_copy(update=dict(kind=kind_of(s)))


def sketch(given):
    "What an example of stages 2 to 5 is given."
    s = scenario(given["question"], given["sub_questions"], given["sub_questions"][-1]["answer"])
    if not given["tools"]:
        return Sketch(scenario=s, tools=[])
    calls = [{k: c[k] for k in ("sub_question", "tool", "arguments")} for c in given["calls"]]
    made, problems = bind(s, prompts.Toolset(tools=given["tools"], calls=calls), [])
    assert problems == []
    return made


def judge(name, given, answer):
    "What the library says of the answer in an example, as value and problems."
    if name == "decompose":
        s = scenario(given["question"], [x.model_dump() for x in answer.steps], answer.answer)
        asked = Question(question=given["question"])
        return s, scenario_problems(s, asked, given["sub-questions at most"])
    if name == "deploy":
        return code_problems(sketch(given), answer)
    if name in TOOLSETS:
        old = sketch(given)
        new, problems = bind(old.scenario, answer, [])
        return new, problems or stage_problems(name, old, new, given.get("tools to add", 0))
    return answer, []


@pytest.mark.parametrize("name", FORMS)
def test_the_example_of_each_prompt_thinks_first_and_passes_the_checks(name):
    given, said = example(prompt(name))
    assert (
        [*json.loads(said)][0] == [*FORMS[name].model_json_schema()["properties"]][0] == "thoughts"
    )
    assert len(json.loads(said)["thoughts"]) > 40
    value, problems = judged(said, FORMS[name], lambda answer: judge(name, given, answer))
    assert value and problems == []


def test_the_examples_show_descriptions_records_and_confusable_tools():
    given, said = example(prompt("extend_toolset"))
    old = sketch(given)
    new, _ = bind(old.scenario, prompts.Toolset(**json.loads(said)), [])
    assert confusable(old, new) == len(new.tools) - len(old.tools) == 2
    silent = new.model_copy(deep=True)
    del silent.tools[-1].parameters["properties"]["person"]["description"]
    assert stage_problems("extend_toolset", old, silent, 2) == [
        "parameter without a description: school_of_person: person"
    ]
    given, said = example(prompt("deploy"))
    env, _ = code_problems(sketch(given), prompts.Program(**json.loads(said)))
    record = json.loads(evidence(env)["calls"][1]["result"])
    assert record == {"city": "Prague", "year": 1883}, "more than the answer"


def test_thoughts_and_words_around_an_answer_do_not_count():
    said = '<think>{"answer": "Oslo"} or</think>I am sure:\n```json\n{"answer": "Bern"}\n```\nHappy to help.'
    for text in (said, '{"thoughts": "Oslo?", "answer": "Bern"}'):
        verdict, problems = judged(text, prompts.Verdict, lambda v: (v.answer, []))
        assert verdict == "Bern" and problems == []
    assert judged("Bern", prompts.Verdict, lambda v: (v, []))[1]


class Told(Endpoint):
    "An endpoint that answers each prompt with its example, in which texts are exchanged."

    def __init__(self, folder, exchanged={}, **more):
        config = dict(model="told", base_url="http://127.0.0.1:9/v1", cache=str(folder / "answers"))
        super().__init__(llm_config(**config | more), "any")
        self.exchanged, self.asked = exchanged, []

    def ask(self, stage, messages, form):
        self.asked.append((stage, messages[-1]["content"]))
        text = example(prompt("document" if stage == "integrate" else stage))[1]
        for old, new in self.exchanged.items():
            text = text.replace(old, new)
        return text


def built(endpoint, question):
    generator = LLMGenerator(endpoint, [Question(question=question)])
    return build_environments(generator, 1, 0, rates={}, progress=False)


QUESTION = example(prompt("decompose"))[0]["question"]


@pytest.mark.parametrize(
    "exchanged",
    [
        {},
        {"Franz Kafka": "Zoë d'Ård", "Prague": "Côte d'Ivoire"},
        {"The Trial": "Der »Prozeß« & Co", "Prague": "東京"},
        {"Prague": "6", '"answer_type": "name"': '"answer_type": ""'},
    ],
)
def test_one_environment_with_any_names_and_small_counts_passes_all_stages(tmp_path, exchanged):
    question = f'My aunt asks: "{QUESTION}"'
    for old, new in exchanged.items():
        question = question.replace(old, new)
    result = built(Told(tmp_path, exchanged), question)
    assert len(result) == 1, result.counts
    env = result[0]
    assert env.question == question and env.answer == exchanged.get("Prague", "Prague")
    assert check(env) == [] and result.counts["verification, answers that agree"] == 1


def test_a_small_count_that_stands_elsewhere_by_chance_is_still_refused(tmp_path):
    result = built(Told(tmp_path, {"Prague": "7"}), QUESTION)
    assert len(result) == 0, "1847 and 1775 hold a 7, which the paper's rule would reward"
    assert [k for k in result.counts if k.startswith("dropped in stage 5: solved by")]


def test_the_second_request_sees_results_but_not_the_first_answer(tmp_path):
    endpoint = Told(tmp_path)
    [env] = built(endpoint, QUESTION)
    stage, told = endpoint.asked[-1]
    assert stage == "verify" and [*json.loads(told)] == ["question", "calls"]
    assert {*json.loads(told)["calls"][0]} == {"tool", "does", "arguments", "result"}
    assert all(q.question not in told for q in env.scenario.sub_questions)
    assert sum(stage == "verify" for stage, _ in endpoint.asked) == 1
    without = Told(tmp_path, verify=False)
    assert len(built(without, QUESTION)) == 1
    assert [s for s, _ in without.asked] == [s for s, _ in endpoint.asked][:-1]


def test_what_a_second_request_answers_otherwise_is_dropped_and_counted(tmp_path):
    server = ModelServer(questions=4)
    server.always = lambda stage, question, n, length: (
        "wrong" if stage == "verify" and question in server.questions[:2] else None
    )
    values = dict(model="played", base_url=server.url, cache=str(tmp_path / "answers"))
    endpoint = Endpoint(llm_config(**values), "any")
    generator = LLMGenerator(endpoint, [Question(question=q) for q in server.questions])
    result = build_environments(generator, 4, 0, progress=False)
    server.close()
    assert [e.question for e in result] == server.questions[2:]
    assert result.counts["dropped in verification: other final answer"] == 2
    assert result.counts["verification, answers that agree"] == 2
    assert endpoint.ledger["verify"].requests == 4, "a disagreement is not sent back"
    other = LLMGenerator(Endpoint(llm_config(**values | dict(verify=False)), "any"), [])
    assert other.identity()["verify"] != generator.identity()["verify"]


def test_proposals_are_asked_for_in_voices_that_a_seed_draws(tmp_path):
    server, drawn = ModelServer(questions=8), []
    for seed in (0, 0, 1):
        values = dict(model="played", base_url=server.url, cache=str(tmp_path / f"{len(drawn)}"))
        propose(Endpoint(llm_config(**values), "any"), ["countries"], 8, seed=seed)
        asked = [
            json.loads(json.loads(p)[1]["content"]) for s, _, _, p in server.log if s == "propose"
        ]
        drawn.append({f["scenario"]: f["personas"] for f in asked[-4:]})
        assert all(len({*f["personas"]}) == f["questions wanted"] for f in asked)
    server.close()
    assert drawn[0] == drawn[1] != drawn[2]
    assert {p for d in drawn for ps in d.values() for p in ps} <= {*PERSONAS}
    assert "implicit" in prompt("propose")
