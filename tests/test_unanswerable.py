"Questions that cannot be answered: what is missing is really missing, only the right refusal pays, and nothing is lost on the way out."

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolrl_lit.build import build_environments
from toolrl_lit.collect import OraclePolicy
from toolrl_lit.deploy import check_many
from toolrl_lit.doors.export import to_verl
from toolrl_lit.engine.domains import SPLITS
from toolrl_lit.engine.gaps import GAPS, gap_at
from toolrl_lit.engine.operations import Writer, parameters, title
from toolrl_lit.engine.refusals import refusal
from toolrl_lit.engine.rendering import deployed
from toolrl_lit.engine.rules import rule_scores
from toolrl_lit.engine.sandbox import shared
from toolrl_lit.evaluate import evaluate, paired_difference
from toolrl_lit.reward import MATCHERS, reward_table, score_turn
from toolrl_lit.scale import RATES
from toolrl_lit.scenario import Difficulty, KnowledgeGenerator
from toolrl_lit.schema import Environment, Scenario, UserError, from_ftrl, to_ftrl
from toolrl_lit.worlds import (
    WORLDS,
    WorldGenerator,
    decompose_world,
    document_world,
    extend_world,
    withhold,
)

some = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
SAID = {  # ways of refusing, each of one kind
    "tool": (
        "None of my tools tells the birthday.",
        "I'm sorry, but I don't have any suitable tool for that.",
        "No available function gives number plates.",
        "The tools I was given cannot look that up.",
        "I can’t answer this with the tools at hand.",
    ),
    "parameter": (
        "Which visitor do you mean?",
        "Could you please tell me the name of the visitor?",
        "Please specify the stay first.",
        "I need to know whom this is about.",
    ),
    "record": (
        "There is no visitor called Halunox Baretove.",
        "No such guest exists.",
        "I looked, and Halunox Baretove is not in our records.",
        "The stay ST-69213 does not exist.",
        "I could not find a visitor with that name.",
    ),
}
ASKED = "What is the birthday of Halunox Baretove, who booked ST-69213?"


@pytest.fixture(scope="module")
def envs():
    "Environments of which three in four lack something."
    how = dict(split="test", progress=False, **WORLDS)
    return list(build_environments(WorldGenerator(0.75), 40, 5, **how))


def lacking(seed, missing, split="train", kind="multi-hop"):
    "Return the first question of a seed that lacks this, with its plan."
    rng = random.Random(seed)
    for _ in range(60):
        design, _ = decompose_world("w", kind, split, Difficulty(), rng, missing)
        if design:
            return design
    raise AssertionError("no question could be made")


def test_each_kind_of_refusal_is_told_from_the_others():
    for kind, texts in SAID.items():
        assert {text: refusal(text, ASKED) for text in texts} == dict.fromkeys(texts, kind)


@some
@given(st.sampled_from(GAPS), st.sampled_from(GAPS), st.data())
def test_two_kinds_at_once_are_none(one, other, data):
    both = f"{data.draw(st.sampled_from(SAID[one]))} {data.draw(st.sampled_from(SAID[other]))}"
    assert refusal(both, ASKED) == (one if one == other else "")


@some
@given(
    st.sampled_from(GAPS),
    st.data(),
    st.one_of(
        st.integers(0, 10**6).map(str),
        st.dates().map(str),
        st.from_regex(r"[A-Z]-[0-9]{4}", fullmatch=True),
        st.from_regex(r"Xy[a-z]{3,8} [A-Z][a-z]{3,8}", fullmatch=True),
    ),
    st.sampled_from(("It is {}. {}", "{1} Or it is {0}.", "My guess is {0}, but {1}")),
)
def test_a_refusal_beside_an_answer_is_none(kind, data, guess, form):
    text = data.draw(st.sampled_from(SAID[kind]))
    assert refusal(form.format(guess, text), ASKED) == ""
    assert refusal(f"<think>{guess}</think> {text}", ASKED) == kind


@pytest.mark.parametrize(
    "said", ["", "It is 5.", "<think>no such guest", "I do not know.", "Sorry."]
)
def test_what_says_nothing_of_the_three_is_no_refusal(said):
    assert refusal(said, ASKED) == ""


@pytest.mark.parametrize("split", SPLITS)
def test_a_tool_that_is_missing_cannot_be_replaced(split):
    "No call of any tool that is left shows the column in question."
    for seed in range(6):
        design = lacking(seed, "tool", split)
        world, query = design.world, design.branches[0][-1]
        writer = Writer(split, random.Random(seed))
        draft = withhold(extend_world(document_world(design, writer), writer, 12))
        own = [op for op in draft.tools if op.table == query.table]
        for op in own:
            tool, params = deployed(op, world.domain, world.tables), parameters(op, world.domain)
            column = title(world.domain.tables[op.table])
            for row in world.tables[op.table].values():
                said = {}
                for p in params:
                    if p.required or p.does in ("limit", "nested"):
                        own_value = {"key": row["id"], "query": row.get(column), "limit": 20}
                        own_value |= {"nested": True, "is": row.get(p.column)}
                        choices = p.schema_.get("enum", [None])
                        said[p.name] = own_value.get(p.does, choices[0])
                result = shared().call(tool.name, said, tool.code)
                assert result.ok, (said, result.text)
                shown = json.loads(result.text)
                for item in shown.get("items", shown.get("matches", [shown])):
                    assert query.target not in item and item.get("column") != query.target


def test_a_question_that_lacks_its_parameter_names_no_row():
    for seed in range(30):
        design = lacking(seed, "parameter", "validation")
        named = design.branches[0][0].where[0].value
        assert str(named).casefold() not in design.scenario.question.casefold()
        assert not design.scenario.sub_questions


def test_a_record_that_is_missing_is_nowhere(envs):
    found = [e for e in envs if e.scenario.missing == "record"]
    assert found
    for env in found:
        (step,) = env.scenario.sub_questions
        (value,) = step.arguments.values()
        assert value in env.question and all(value not in code for code in env.codes().values())
        result = shared().call(step.tool, step.arguments, env.codes()[step.tool])
        assert not result.ok and step.answer in result.text


def test_the_examination_passes_them_and_notices_a_record_that_is_there(envs):
    assert check_many(envs) == [[]] * len(envs)
    env = next(e for e in envs if e.scenario.missing == "record")
    step = env.scenario.sub_questions[0]
    there = step.model_copy(update=dict(answer="no such thing"))
    scenario = env.scenario.model_copy(update=dict(sub_questions=[there]))
    (problems,) = check_many([env.model_copy(update=dict(scenario=scenario))])
    assert problems and problems[0].startswith("golden call fails")


def test_the_share_is_kept_and_none_by_default():
    gaps = [gap_at(f"train-0-{n:06}", 0.25) for n in range(2000)]
    assert 0.2 < sum(map(bool, gaps)) / 2000 < 0.3
    assert set(gaps) == {"", *GAPS}
    assert not any(gap_at(f"w{n}", 0) for n in range(100))
    assert set(WorldGenerator().identity()) == {"worlds"}
    assert WorldGenerator(0.5).identity()["unanswerable"] == 0.5
    for share in (-0.1, 1.5):
        with pytest.raises(UserError, match="share from 0 to 1"):
            WorldGenerator(share)


def test_questions_that_have_an_answer_stay_as_they_were():
    "A share of gaps changes the places that have one, and no other."
    rng = "7 train 0 0"
    how = ("single-hop", "train", WORLDS["difficulty"], RATES)
    place = next(f"w{n}" for n in range(99) if not gap_at(f"w{n}", 0.5))
    one, _ = WorldGenerator().attempt(place, *how, random.Random(rng))
    two, _ = WorldGenerator(0.5).attempt(place, *how, random.Random(rng))
    assert one == two


@pytest.mark.parametrize("match", MATCHERS)
def test_the_oracle_earns_the_maximum(envs, match):
    rows = evaluate(OraclePolicy(envs), envs, match=match).rows
    assert all(r.solve_f1 == 1 and r.answered for r in rows)
    assert [r.refused for r in rows] == [e.scenario.missing for e in envs]


@some
@given(st.integers(0, 5), st.integers(0, 3), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_the_rows_are_those_that_the_chapter_states(p, t, empty, markup, refused, data):
    from toolrl_lit.reward import refusal_table

    q = data.draw(st.integers(0, min(p, t)))
    reward, case = refusal_table(p, q, t, empty, markup, refused)
    if p:
        wanted = 2 * q / (p + 1), "calls"
    elif empty:
        wanted = -0.5, "empty"
    elif markup:
        wanted = -0.3, "malformed"
    elif refused:
        wanted = 1 / (t + 1), "refusal"
    else:
        wanted = 0, "guess"
    assert (reward, case) == wanted
    if case in ("calls", "empty", "malformed"):
        assert reward_table(p, q, t, empty, markup, refused, False) == (reward, case)


def played(turns, env, match):
    "Return the mean reward of turns, up to the first without a call."
    step, rewards = env.start(), []
    for turn in turns:
        score = score_turn(turn, step, match=match)
        rewards.append(score.reward)
        step = step.after([], score.unsolved, of=len(env.scenario.sub_questions))
        if score.case != "calls":
            break
    return sum(rewards) / len(rewards)


def called(env):
    "Return the golden calls as text, one turn for each wave."
    oracle = OraclePolicy([env])
    said, history = [], [{"role": "user", "content": env.question}]
    while "<tool_call>" in (text := oracle.generate([(history, [])])[0]):
        said.append(text)
        history.append({"role": "assistant", "content": text})
    return said


@pytest.mark.parametrize("match", MATCHERS)
def test_no_cheat_beats_honesty(envs, match):
    every = {
        e.id: "".join(
            f'<tool_call>\n{{"name": "{t.name}", "arguments": {{}}}}\n</tool_call>\n'
            for t in e.tools
        )
        for e in envs
    }
    fixed = [texts[0] for texts in SAID.values()]
    fixed += ["It is 42.", " ".join(fixed), f"It is 42. {fixed[2]}", f"{fixed[1]} <tool_call>"]
    fixed += [f"<think>{fixed[0]}</think>", "There is no such record."]
    cheats = {f"always {text!r}": lambda e, text=text: [text] for text in fixed}
    cheats["every tool, then deny"] = lambda e: [every[e.id], "There is no such record."]
    cheats["look up, then guess"] = lambda e: [*called(e), "It is 42."]
    cheats["look up twice"] = lambda e: [*called(e), *called(e), e.answer]
    cheats["look up, then ask"] = lambda e: [*called(e), "Which one do you mean?"]
    honest = {e.id: played([*called(e), e.answer], e, match) for e in envs}
    assert min(honest.values()) >= 1
    for name, cheat in cheats.items():
        returns = {e.id: played(cheat(e), e, match) for e in envs}
        assert all(returns[i] <= honest[i] for i in returns), name
        assert sum(returns.values()) < 0.95 * sum(honest.values()), name


def test_refusing_where_there_is_an_answer_is_the_papers_row(envs):
    "The extension leaves questions with an answer alone."
    env = next(e for e in envs if not e.scenario.missing)
    for said in ("There is no such record.", "Which one do you mean?"):
        score = score_turn(said, env)
        assert (score.reward, score.case) == (0, "other")


class Says:
    "Say one thing to everything."

    parser = "qwen"

    def __init__(self, text):
        self.text = text

    def generate(self, prompts, **_):
        return [self.text] * len(prompts)


def test_evaluation_names_right_and_wrong_refusals(envs, tmp_path):
    oracle = evaluate(OraclePolicy(envs), envs, name="oracle")
    denier = evaluate(Says("There is no such record."), envs, name="denier")
    silent = evaluate(Says("I do not know."), envs, name="silent")
    kinds = [e.scenario.missing for e in envs]
    lacks = [k for k in kinds if k]

    def shares(evaluation):
        table = evaluation.summary().set_index("metric")
        return dict(table["mean"])["refused_rightly"], dict(table["mean"])["refused_wrongly"]

    assert shares(oracle) == (1, 0)
    assert shares(denier) == pytest.approx((lacks.count("record") / len(lacks), 1))
    assert shares(silent) == (0, 0)
    table = oracle.summary().set_index("metric")
    assert table.loc["refused_rightly", "n"] == len(lacks)
    assert table.loc["refused_wrongly", "n"] == len(kinds) - len(lacks)
    assert "Refused rightly" in oracle.overview()
    gain = paired_difference(silent, oracle).set_index("metric")
    assert gain.loc["refused_rightly", "difference"] == 1
    assert gain.loc["refused_wrongly", "difference"] == 0
    again = type(oracle).load(oracle.save(tmp_path / "scores.json"))
    assert again == oracle


def test_without_such_questions_nothing_is_said_of_refusals():
    envs = list(build_environments(KnowledgeGenerator(), 8, 0, progress=False))
    oracle = evaluate(OraclePolicy(envs), envs)
    assert not any("refused" in m for m in oracle.summary()["metric"])
    with pytest.raises(UserError, match="refused_rightly"):
        oracle.summary(metrics=["refused_rightly"])


def test_what_is_missing_survives_the_authors_format_and_verl(envs, tmp_path):
    import pyarrow.parquet as pq

    for env in envs:
        record = to_ftrl(env)
        assert from_ftrl(record, env.id).missing == env.scenario.missing
        for said in (env.answer, "It is 42.", "Which one do you mean?"):
            wanted = score_turn(said, env)
            assert score_turn(said, record) == score_turn(said, env.start()) == wanted
    to_verl(envs, tmp_path / "verl")
    rows = pq.read_table(tmp_path / "verl" / "test.parquet").to_pylist()
    truths = [json.loads(row["reward_model"]["ground_truth"]) for row in rows]
    for env, truth in zip(envs, truths):
        assert score_turn(env.answer, truth).reward == score_turn(env.answer, env).reward


def test_a_question_without_steps_has_to_lack_something():
    how = dict(id="x", kind="single-hop", question="?", answer="no", sub_questions=[])
    with pytest.raises(ValueError, match="expected at least 1"):
        Scenario(**how)
    assert Environment(scenario=Scenario(**how, missing="tool"), tools=[]).golden_calls() == []


def test_slips_and_rules_bear_questions_without_calls(envs):
    assert OraclePolicy(envs, slips=1.0).slip
    assert all(0 <= score <= 1 for score in rule_scores(envs))


def test_the_command_builds_them(tmp_path):
    from typer.testing import CliRunner

    from toolrl_lit.doors.cli import app

    out, run = tmp_path / "w.jsonl", CliRunner().invoke
    args = ["build", "-o", str(out), "-n", "6", "--unanswerable", "1"]
    result = run(app, [*args, "--generator", "worlds"])
    assert result.exit_code == 0, result.output
    assert all(json.loads(line)["scenario"]["missing"] for line in out.read_text().splitlines())
    result = run(app, [*args[:2], str(tmp_path / "k.jsonl"), *args[3:]])
    assert result.exit_code and "worlds" in str(result.exception or result.output)
