"Whole episodes through TRL: the policy's own tokens and no others are learnt, and each by the advantage that one computes by hand."

import json
import re
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from trained import small_config
from transformers.utils import get_json_schema

from toolrl_lit import episode as module
from toolrl_lit.collect import OraclePolicy, TransformersPolicy, call_text, collect
from toolrl_lit.engine.sandbox import shared
from toolrl_lit.episode import (
    ToolEnvironment,
    last_turn_reward,
    tool_method,
    turn_advantages,
    turn_rewards,
    turn_values,
)
from toolrl_lit.reward import score_turn
from toolrl_lit.schema import Environment, Scenario, SubQuestion, Tool, ToolCall, ToolDoc, UserError
from toolrl_lit.train import StepTrainer, make_config, memory_needed, train


def config_for(folder, out, **changes):
    own = dict(
        warm_steps=0,
        credit="episode",
        epochs=1,
        max_turns=3,
        max_episode_tokens=300,
        save_updates=1,
    )
    return small_config(folder, out, **own | changes)


def played(text: str) -> list[str]:
    "The assistant's turns of a decoded completion."
    results = re.compile(
        r"(?:<\|im_end\|>)?\n<\|im_start\|>user\n.*?<\|im_end\|>\n<\|im_start\|>assistant\n", re.S
    )
    turns = results.split(text.removesuffix("<|im_end|>"))
    return (
        turns[:-1] if text.endswith("assistant\n") else turns
    )  # cut after the results of the last turn


def by_hand(texts, env, kind="f1") -> tuple[float, list[float], list[tuple]]:
    "Solve-F1 of an episode and what its last turn was worth, the value of each turn, call by call, and what came before it."
    step, calls, solved, rewards, seen = env.start(), 0, 0, [], [()]
    for text in texts:
        score = score_turn(text, step, kind=kind)
        left = sum(map(len, score.unsolved.values()))
        step = step.model_copy(
            update={
                "unsolved": score.unsolved,
                "solve_rate": 1 - left / len(env.scenario.sub_questions),
            }
        )
        calls, solved = (
            calls + len(score.calls),
            solved + sum(c.solved is not None for c in score.calls),
        )
        rewards.append(score.reward)
        seen.append(
            (*seen[-1], score.content, *((c.name, str(c.arguments), c.result) for c in score.calls))
        )
    values = [sum(rewards[k:]) / len(rewards[k:]) for k in range(len(rewards))]
    last = 0 if score.calls else score.reward
    return 2 * solved / (calls + len(env.scenario.sub_questions)) + last, values, seen[:-1]


def units(values) -> list[float]:
    values = torch.tensor(values, dtype=torch.float64)
    return ((values - values.mean()) / (values.std() + 1e-4)).tolist()


@pytest.mark.parametrize("credit, kind", [("episode", "f1"), ("turn", "f1"), ("turn", "p")])
def test_every_token_of_the_policy_has_the_advantage_computed_by_hand(
    tiny_folder, environments, tmp_path, monkeypatch, credit, kind
):
    config = config_for(tiny_folder, tmp_path, credit=credit, kind=kind, updates=3)
    policy, batches, plain = TransformersPolicy(tiny_folder), {}, StepTrainer._compute_loss

    def watched(self, model, inputs):
        batches.setdefault(self.state.global_step, []).append(inputs)
        return plain(self, model, inputs)

    monkeypatch.setattr(StepTrainer, "_compute_loss", watched)
    train(config, environments)
    several = moved = differ = 0
    said_by_batch = {step: [] for step in batches}
    for step, inputs in (
        (step, i) for step, parts in batches.items() for i in parts
    ):  # a group each
        episodes = []
        for row in range(4):
            real = inputs["completion_mask"][row].bool()
            ids, said = inputs["completion_ids"][row][real], inputs["tool_mask"][row][real].bool()
            prompt = policy.tokenizer.decode(
                inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
            )
            (env,) = [e for e in environments if f"user\n{e.question}<|im_end|>" in prompt]
            assert prompt == policy.text(env.start().messages, env.documents())
            texts = played(policy.tokenizer.decode(ids))
            assert "".join(t.replace("<|im_end|>", "") for t in texts) == policy.tokenizer.decode(
                ids[said]
            ).replace("<|im_end|>", "")
            episodes.append((texts, env, said, by_hand(texts, env, kind)))
            several += len(texts) > 1
            said_by_batch[step] += [score_turn(t, env.start()).case for t in texts]
        whole = units([outcome for *_, (outcome, _, _) in episodes])
        for row, (texts, env, said, (_, _, seen)) in enumerate(episodes):
            starts = said & ~torch.cat([torch.tensor([False]), said[:-1]])
            assert int(starts.sum()) == len(texts)
            place, wanted = starts.cumsum(0) - 1, []
            for k in range(len(texts)):
                there = [
                    i
                    for i, (t, _, _, (_, _, s)) in enumerate(episodes)
                    if len(t) > k and s[k] == seen[k]
                ]
                own = (
                    units([episodes[i][3][1][k] for i in there])[there.index(row)]
                    if len(there) > 1
                    else 0
                )
                wanted.append(own if credit == "turn" else whole[row])
            got = inputs["advantages"][row]
            got = (
                got[: len(said)][said].double()
                if got.dim()
                else got.double().expand(int(said.sum()))
            )
            assert torch.allclose(
                got, torch.tensor(wanted, dtype=torch.float64)[place[said]], atol=2e-3
            )
            moved |= any(wanted)
            differ |= len(set(wanted)) > 1
    assert several and moved and differ == (credit == "turn"), "the test shows nothing"
    log = [r for r in json.loads((tmp_path / "rl" / "log.json").read_text()) if "reward" in r]
    assert len(log) == 3 and all(
        0 <= r["solve_precision"] <= 1
        and 0 <= r["solve_recall"] <= 1
        and r["mean_reward"] == r["reward"]
        for r in log
    )
    for row, cases in zip(log, said_by_batch.values(), strict=True):
        for case in ("malformed", "empty"):
            assert row[f"{case}_share"] == pytest.approx(cases.count(case) / len(cases))
        assert row["tokens_per_second"] > 0 and 0.1 < row["memory_gb"] < 100
    assert any(row["empty_share"] for row in log)


def test_malformed_and_empty_turns_of_episodes_are_counted(
    tiny_folder, environments, tmp_path, monkeypatch
):
    said = iter(
        [
            "<tool_call>\n{broken\n</tool_call>",
            "",
            "An answer.",
            '<tool_call>\n{"name": "none", "arguments": {}}\n</tool_call>',
            "<tool_call>",
            *["Another."] * 100,
        ]
    )  # the fourth goes on, and so the fifth is its next turn
    policy = TransformersPolicy(tiny_folder)
    written, begun = [], []

    def generate(model, prompts, **rest):
        time.sleep(1.1)
        begun.append(1)
        written.extend(policy.ids(next(said) + "<|im_end|>") for _ in prompts)
        return written[-len(prompts) :]

    monkeypatch.setattr("toolrl_lit.engine.sampling.generate_tokens", generate)
    train(config_for(tiny_folder, tmp_path, prompts=1, updates=1), environments)
    row = next(r for r in json.loads((tmp_path / "rl" / "log.json").read_text()) if "reward" in r)
    assert row["malformed_share"] == pytest.approx(2 / 5) and row["empty_share"] == pytest.approx(
        1 / 5
    )
    assert 0 < row["tokens_per_second"] < sum(map(len, written)) / len(begun)


def test_calls_of_no_tool_and_odd_calls_read_the_words_of_evaluation(
    tiny_folder, environments, tmp_path, monkeypatch
):
    said = [
        '<tool_call>\n{"name": "none", "arguments": {"q": 1}}\n</tool_call>',
        '<tool_call>\n{"name": 7, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "reset", "arguments": {}}\n</tool_call>',
    ]
    env, policy, read = environments[0], TransformersPolicy(tiny_folder), []

    def generate(model, prompts, **rest):
        read.extend(policy.decode(p) for p in prompts)
        return [policy.ids("\n".join(said) + "<|im_end|>") for _ in prompts]

    config = config_for(
        tiny_folder, tmp_path, prompts=1, updates=1, group=2, max_episode_tokens=2000
    )
    monkeypatch.setattr(
        "toolrl_lit.engine.sampling.turns_after",
        lambda policy, ids, *a, **k: (generate(None, ids), None),
    )
    train(config, [env])
    (traj,) = collect(Scripted(["\n".join(said)] * 3), [env], temperature=0, max_turns=3)
    results = traj.turns[0].results
    assert len(set(results)) == 3 and traj.n_calls == 9
    for result in results:
        assert any(f"<tool_response>\n{result}\n</tool_response>" in prompt for prompt in read)
    log = json.loads((tmp_path / "rl" / "log.json").read_text())
    assert next(r for r in log if "reward" in r)["solve_precision"] == 0


@pytest.mark.parametrize("said, worth", [("{answer}", 1), ("I am done.", 0.5), ("", -0.5)])
def test_the_last_turn_of_an_episode_is_paid_as_the_table_says(said, worth):
    here = ToolEnvironment(TOY)
    here.capital(q="France"), here.capital(q="Spain"), here.river(q="Paris")
    text = said.format(answer=TOY.answer)
    end = [{"role": "tool", "name": "river", "content": "Seine"}]
    assert last_turn_reward([end, [*end, {"role": "assistant", "content": text}]], [here] * 2) == [
        0,
        worth,
    ]
    assert (
        score_turn(text, played_out([MENU[5], text]) and TOY).reward
        == last_turn_reward([[{"role": "assistant", "content": text}]], [ToolEnvironment(TOY)])[0]
    )


def test_a_malformed_last_turn_costs():
    said = {"role": "assistant", "content": "<tool_call>{"}
    assert last_turn_reward([[said]], [ToolEnvironment(TOY)]) == [-0.3]


class Scripted:
    "A policy that says given turns, one after another, whatever it reads."

    parser = "qwen"

    def __init__(self, turns):
        self.turns = turns

    def generate(self, prompts, *, temperature, max_new_tokens, seed):
        return [
            self.turns[sum(m["role"] == "assistant" for m in messages)] for messages, _ in prompts
        ]


def look(name: str, known: dict) -> Tool:
    doc = ToolDoc(
        name=name,
        description="Looks.",
        parameters={"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    )
    return Tool(doc=doc, code=f"def {name}(q):\n    return {known!r}.get(q, 'nothing known')\n")


TOY = Environment(
    tools=[
        look("capital", {"France": "Paris", "Spain": "Madrid"}),
        look("river", {"Paris": "Seine"}),
    ],
    scenario=Scenario(
        id="toy",
        kind="parallel multi-hop",
        question="Rivers?",
        answer="the Seine and Madrid",
        sub_questions=[
            SubQuestion(
                id="q1", question="?", answer="Paris", tool="capital", arguments={"q": "France"}
            ),
            SubQuestion(
                id="q2", question="?", answer="Madrid", tool="capital", arguments={"q": "Spain"}
            ),
            SubQuestion(
                id="q3",
                question="?",
                answer="Seine",
                tool="river",
                arguments={"q": "Paris"},
                depends_on=["q1"],
            ),
        ],
    ),
)
ONE, TWO, THREE, STRAY = (
    call_text([ToolCall(name=n, arguments={"q": q})])
    for n, q in (("capital", "France"), ("capital", "Spain"), ("river", "Paris"), ("river", "x"))
)
MENU = [
    ONE,
    TWO,
    THREE,
    STRAY,
    f"{ONE}\n{TWO}",
    f"I look.\n{ONE}\n{TWO}\n{THREE}",
    f"{THREE}\n{STRAY}",
    '<tool_call>{"name": "gone", "arguments": {}}</tool_call>',
]
LAST = [
    "the Seine and Madrid",
    "I am done.",
    "",
    "<tool_call>{",
    "It is the Seine and Madrid, I think.",
]
episode = st.builds(
    lambda turns, last: [*turns, last],
    st.lists(st.sampled_from(MENU), max_size=4),
    st.sampled_from(LAST),
)


def played_out(texts):
    return collect(Scripted(texts), [TOY], temperature=0)[0]


def test_turns_are_rewarded_as_the_collector_rewards_them(environments):
    trajs = collect(OraclePolicy(environments, slips=0.5), environments, temperature=0)
    assert turn_rewards(
        [([t.text for t in traj.turns], e) for traj, e in zip(trajs, environments)]
    ) == [[t.reward for t in traj.turns] for traj in trajs]
    assert turn_rewards([]) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(episode, min_size=1, max_size=4))
def test_random_turns_are_rewarded_and_told_apart_as_the_collector_does(episodes):
    trajs, rewards = (
        [played_out(texts) for texts in episodes],
        turn_rewards([(texts, TOY) for texts in episodes]),
    )
    assert rewards == [[t.reward for t in traj.turns] for traj in trajs]
    for traj, row in zip(trajs, rewards):
        read = [s.messages for s in traj.step_records(TOY)]
        assert row.histories == [json.dumps(["toy", m]) for m in read[: len(row)]]


def test_saying_that_all_is_done_is_worth_what_the_collector_pays():
    assert (
        turn_rewards([([MENU[5], "I am done."], TOY)])
        == [[2 * 3 / 4, 0.5]]
        == [[t.reward for t in played_out([MENU[5], "I am done."]).turns]]
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(episode, min_size=2, max_size=6), st.sampled_from([1.0, 0.5, 0.0]))
def test_only_turns_with_the_same_history_are_compared_and_a_right_answer_is_never_pushed_down(
    episodes, discount
):
    rewards = turn_rewards([(texts, TOY) for texts in episodes])
    out = turn_advantages(rewards, len(episodes), discount)
    assert [len(a) for a in out] == [len(r) for r in rewards]
    groups = {}
    for texts, row, values, own in zip(
        episodes, rewards, [turn_values(r, discount) for r in rewards], out
    ):
        for k, step in enumerate(played_out(texts).step_records(TOY)):
            if k < len(row):
                groups.setdefault(json.dumps(step.messages), []).append(
                    (values[k], own[k], step.open(), texts[k])
                )
    for there in groups.values():
        values, own = [v for v, *_ in there], [a for _, a, *_ in there]
        assert sum(own) == pytest.approx(0, abs=1e-6)
        if len(there) == 1:
            assert own == [0]
        for (
            value,
            advantage,
            left,
            text,
        ) in there:  # the best is never pushed down, the worst never up
            if value == max(values):
                assert advantage >= 0
            if value == min(values):
                assert advantage <= 0
            if left == 0 and "the Seine and Madrid" in text:
                assert value == 1 == max(values) and advantage >= 0
        assert sorted(zip(values, own)) == sorted(zip(values, own), key=lambda p: (p[1], p[0]))


def test_what_follows_is_counted_and_fewer_turns_are_better():
    _both, all_, answer = MENU[4], MENU[5], LAST[0]

    def first(*episodes):
        return [
            a[0]
            for a in turn_advantages(
                turn_rewards([(list(e), TOY) for e in episodes]), len(episodes)
            )
        ]

    good, stop = first(
        [ONE, TWO, THREE, answer], [ONE, "I stop."]
    )  # one first turn, and two ways to go on
    assert good > 0 > stop
    together, apart = first(
        [all_, answer], [ONE, TWO, THREE, answer]
    )  # a sum of rewards would turn this round
    assert together > 0 > apart
    late = turn_advantages(
        turn_rewards([([all_, answer], TOY), ([STRAY, all_], TOY), ([all_, STRAY, answer], TOY)]), 3
    )
    assert (
        late[1][0] < 0 < late[0][0]
        and late[0][1] > 0 > late[2][1]
        and late[1][1] == late[2][2] == 0
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.data())
def test_groups_are_kept_apart_and_plain_lists_have_first_turns_only(group, data):
    turns = st.lists(st.sampled_from([0.0, 1.0, -0.5, 4 / 3]), min_size=1, max_size=3)
    rewards = data.draw(st.lists(turns, min_size=2 * group, max_size=2 * group))
    out = turn_advantages(rewards, group)
    assert out == turn_advantages(rewards[:group], group) + turn_advantages(rewards[group:], group)
    assert all(a[1:] == [0] * len(a[1:]) for a in out)


@pytest.mark.parametrize(
    "discount, values",
    [
        (1.0, [0.5, 0.25, 0.5]),
        (0.5, [(1 + 0.25 * 0.5) / 1.75, 0.5 * 0.5 / 1.5, 0.5]),
        (0.0, [1.0, 0.0, 0.5]),
    ],
)
def test_the_value_of_a_turn_is_a_weighted_mean(discount, values):
    assert (
        turn_values([1.0, 0.0, 0.5], discount) == pytest.approx(values)
        and turn_values([], discount) == []
    )


@pytest.mark.parametrize("group, discount", [(0, 1.0), (2, 1.5), (2, -0.1)])
def test_an_impossible_group_or_discount_is_refused(group, discount):
    with pytest.raises(UserError, match="at least 1 and a discount between 0 and 1"):
        turn_advantages([[1.0], [0.0]], group, discount)


def test_episodes_are_the_same_twice_and_after_an_interruption(
    tiny_folder, environments, tmp_path, monkeypatch
):
    config = lambda name: config_for(
        tiny_folder, tmp_path / name, credit="turn", prompts=2, mini_batches=2
    )
    weights = lambda name: load_file(tmp_path / name / "rl" / "model" / "model.safetensors")
    train(config("whole"), environments)
    calls, plain = iter(range(1, 100)), module.turn_rewards

    def stops(*args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "turn_rewards", stops)
        train(config("stopped"), environments)
    assert not (tmp_path / "stopped" / "rl" / "model").exists()
    train(config("stopped"), environments)
    before, whole, stopped = (
        load_file(tiny_folder / "model.safetensors"),
        weights("whole"),
        weights("stopped"),
    )
    assert all(torch.equal(whole[k], stopped[k]) for k in whole) and any(
        not torch.equal(whole[k], before[k]) for k in whole
    )


@pytest.mark.parametrize("credit", ["episode", "turn"])
def test_a_sandbox_that_dies_in_an_episode_ends_the_run_and_is_no_reward_of_0(
    tiny_folder, environments, tmp_path, credit
):
    class Dying:
        "A sandbox that stops working after a few batches of calls."

        left = 4

        def call_many(self, calls):
            self.left -= 1
            if self.left < 0:
                raise UserError("no sandbox starts any more")
            return shared().call_many(calls)

    with pytest.raises(UserError, match="no sandbox starts any more"):
        train(config_for(tiny_folder, tmp_path, credit=credit), environments, sandbox=Dying())


def test_an_episode_that_grows_too_long_is_cut_and_learnt_from(tiny_folder, environments, tmp_path):
    train(
        config_for(tiny_folder, tmp_path, credit="turn", max_episode_tokens=20, updates=1),
        environments,
    )
    row = next(r for r in json.loads((tmp_path / "rl" / "log.json").read_text()) if "reward" in r)
    assert row["completions/max_length"] <= 20


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(credit="episode", kind="p"), "credit=episode: .*Solve-F1.*kind=p"),
        (dict(credit="turn", oversample=2), "credit=turn: .*oversample=1"),
        (dict(credit="turn", shuffle_rewards=True), "credit=turn: shuffle_rewards"),
        (
            dict(credit="episode", max_episode_tokens=50),
            "max_episode_tokens=50 must be at least max_new_tokens=96",
        ),
    ],
)
def test_what_does_not_fit_whole_episodes_is_refused_with_the_reason(values, said):
    with pytest.raises(UserError, match=said):
        make_config(**values)


def test_questions_that_are_too_long_are_told(tiny_folder, environments, tmp_path, capsys):
    with pytest.raises(UserError, match="no question has at most max_prompt_tokens=16"):
        train(config_for(tiny_folder, tmp_path, max_prompt_tokens=16), environments)


def test_longer_episodes_need_more_memory(tiny_folder, tmp_path):
    from transformers import AutoConfig

    short, long = (
        memory_needed(
            config_for(tiny_folder, tmp_path, max_episode_tokens=n),
            AutoConfig.from_pretrained(tiny_folder),
            gpu=False,
        )
        for n in (100, 1000)
    )
    assert (
        short["activations"] < long["activations"]
        and short["conversations"] < long["conversations"]
        and short["weights"] == long["weights"]
    )


# -- documents as TRL reads them


def shown(parameters: dict, description="Looks.") -> dict:
    return get_json_schema(
        tool_method(
            ToolDoc(name="look", description=description, parameters=parameters),
            lambda name, arguments: "",
        )
    )["function"]


def told(function: dict, name="q") -> dict:
    "The schema of a parameter that the policy reads: what stands in its description, or what transformers says of it."
    schema = function["parameters"]["properties"][name]
    said, _, written = schema["description"].partition(" JSON Schema: ")
    return (
        json.loads(written) if written else {k: v for k, v in schema.items() if k != "description"}
    )


SCHEMAS = [
    {"type": "string"},
    {"type": "array", "items": True},
    {"type": "array", "items": [{"type": "string"}]},
    {"type": "array", "items": False},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
    {"oneOf": [{"const": 1}, {"const": "a"}]},
    {"allOf": [{"type": "string"}, {"maxLength": 3}]},
    {"type": ["string", "null"]},
    {"const": "x"},
    {"enum": ["a", None]},
    {"enum": [1, True, 1.5]},
    {"enum": []},
    {"enum": [[1], {"a": 2}]},
    {"enum": ["a", "a"]},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "string", "default": "x"},
    {"type": "integer", "minimum": 3},
    {"not": {"type": "null"}},
    {"type": "string", "pattern": "Returns: (Args: x)"},
    {"type": "string", "examples": [{"$ref": "nowhere"}]},
    {"type": "array", "items": {"enum": ["a"]}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=map(str, range(len(SCHEMAS))))
@pytest.mark.parametrize("required", [True, False])
def test_all_that_a_schema_says_reaches_the_policy(schema, required):
    function = shown(
        {
            "type": "object",
            "properties": {"q": schema | {"description": "What."}},
            "required": ["q"] * required,
        }
    )
    assert (
        function["parameters"]["properties"]["q"]["description"].startswith("What.")
        and function["parameters"].get("required", []) == ["q"] * required
    )
    assert told(function) == schema or (
        schema.get("enum") and told(function) == {"type": "string"} | schema
    )


@pytest.mark.parametrize("schema, means", [(True, {}), (False, {"not": {}}), ({}, {})])
def test_schemas_that_are_no_objects_are_shown_as_what_they_mean(schema, means):
    assert told(shown({"type": "object", "properties": {"q": schema}})) == means


DEFINED = {
    "Place": {"properties": {"town": {"$ref": "#/$defs/Name"}, "near": {"$ref": "#/$defs/Place"}}},
    "Name": {"type": "string", "minLength": 3},
    "Other": {},
}


@pytest.mark.parametrize(
    "schema, needs",
    [
        ({"$ref": "#/$defs/Place"}, {"Place", "Name"}),
        ({"type": "array", "items": {"$ref": "#/$defs/Name"}}, {"Name"}),
        ({"properties": {"default": {"$ref": "#/$defs/Name"}}}, {"Name"}),
        ({"$ref": "#/$defs/Place/properties/town"}, {"Place", "Name"}),
    ],
)
def test_what_a_schema_refers_to_is_shown_with_it(schema, needs):
    got = told(shown({"type": "object", "properties": {"q": schema}, "$defs": DEFINED}))
    assert got == schema | {"$defs": {k: DEFINED[k] for k in DEFINED if k in needs}}
    older = json.loads(
        json.dumps({"properties": {"q": schema}, "$defs": DEFINED}).replace("$defs", "definitions")
    )
    assert set(told(shown(older))["definitions"]) == needs


@pytest.mark.parametrize(
    "ref",
    [
        "#/$defs/Nothing",
        "#",
        "#/properties/q",
        "http://example.org/schema",
        "#anchor",
        "other.json",
    ],
)
def test_a_reference_that_cannot_be_shown_is_refused(ref):
    with pytest.raises(
        UserError, match=f"tool 'look', parameter 'q': the reference '{ref.replace('$', '.')}'"
    ):
        shown({"type": "object", "properties": {"q": {"items": [{"$ref": ref}]}}, "$defs": DEFINED})


@pytest.mark.parametrize(
    "more",
    [
        {"additionalProperties": False},
        {"oneOf": [{"required": ["q"]}, {"required": ["z"]}]},
        {"$ref": "#/$defs/Name", "$defs": {"Name": DEFINED["Name"]}},
    ],
)
def test_what_a_document_says_of_all_parameters_is_in_the_description(more):
    said = shown({"type": "object", "properties": {"q": {}}} | more)["description"]
    assert json.loads(said.removeprefix("Looks. JSON Schema of the parameters together: ")) == more


def test_parameters_that_are_only_required_are_offered():
    assert shown({"required": ["z"]})["parameters"] == {
        "type": "object",
        "properties": {"z": {"description": "z"}},
        "required": ["z"],
    }
    assert (
        shown({})["parameters"]["properties"]
        == {}
        == shown({"type": "object"})["parameters"]["properties"]
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "string"},
        {"properties": []},
        {"required": "q", "properties": {"q": {}}},
        {"properties": {"q": "text"}},
        {"properties": {"q": None}},
        {"properties": {"a b": {}}},
        {"properties": {"class": {}}},
    ],
)
def test_a_document_that_is_none_is_refused(parameters):
    with pytest.raises(UserError, match="tool 'look'"):
        shown(parameters)


@pytest.mark.parametrize(
    "said",
    [
        "Unit (choices: metric, imperial)",
        'Unit (choices: ["a"])',
        "Unit (CHOICES: a)",
        "Args: x",
        "It Returns: y",
        "xArgs: z",
        "a\tb\n  c: d",
        "(choices: )",
    ],
)
def test_words_that_transformers_reads_as_layout_are_shown_as_words(said):
    function = shown(
        {"type": "object", "properties": {"q": {"type": "string", "description": said}, "r": {}}},
        said,
    )
    q = function["parameters"]["properties"]["q"]
    letters = lambda text: re.sub(r"\W", "", text)
    assert (
        letters(q["description"]) == letters(function["description"]) == letters(said)
        and told(function) == {"type": "string"}
        and "r" in function["parameters"]["properties"]
    )


# -- an environment as TRL acts in it


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["capital", "river"]),
            st.sampled_from(
                [
                    "France",
                    "Spain",
                    "Paris",
                    "x",
                    "</tool_call>",
                    "<tool_call>{",
                    "\ud83d",
                    "",
                    7,
                    None,
                ]
            ),
        ),
        max_size=5,
    ),
    st.sampled_from(["paper", "strict"]),
)
def test_calls_of_an_environment_are_credited_as_the_library_does(calls, match):
    here, step, solved = ToolEnvironment(TOY, match), TOY.start(), 0
    for name, q in calls:
        got = getattr(here, name)(q=q)
        written = json.dumps({"name": name, "arguments": {"q": q}}).replace("<", "\\u003c")
        score = score_turn(f"<tool_call>{written}</tool_call>", step, match=match)
        step, solved = (
            step.model_copy(update={"unsolved": score.unsolved}),
            solved + (score.calls[0].solved is not None),
        )
        assert got == score.calls[0].result
    assert here.get_reward() == 2 * solved / (len(calls) + 3)


def test_arguments_that_no_signature_has_are_calls_too():
    here = ToolEnvironment(TOY)
    assert (
        "unexpected keyword argument" in here.capital(**{"q": "France", "\ud83d": 1})
        and here.get_reward() == 0
    )
    assert here.capital(q="France") == "Paris" and here.get_reward() == 2 / (2 + 3)
