"""Others' benchmarks: their records are read, their prompts shown, and their scores are those of their own rules.

Small records written here are used everywhere. What needs the published data looks for them in ../shared/bench, or where
TOOLRL_BENCH_DATA says, and is skipped where they are absent."""

import ast
import gzip
import http.server
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pandas
import pytest

from toolrl_lit.bench import (
    bfcl,
    common,
    general,
    rotbench,
    scores,
    suites,
    taubench,
    toolhop,
    users,
)
from toolrl_lit.bench.common import Cache, Item, Rollout, play
from toolrl_lit.bench.scores import FAILURES, BenchScores, Row, Wanted, failure
from toolrl_lit.collect import call_text
from toolrl_lit.doors.cli_report import report
from toolrl_lit.doors.endpoint import EndpointPolicy
from toolrl_lit.schema import ToolCall, UserError

DATA = Path(
    os.environ.get("TOOLRL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "bench")
)


def published(name):
    return pytest.mark.skipif(
        not (DATA / name).exists(),
        reason=f"the published data of {name} are not at hand: TOOLRL_BENCH_DATA names no folder that holds them",
    )


class Says:
    "A policy that says the same to everybody, and counts how often it is asked."

    parser = "qwen"

    def __init__(self, *texts):
        self.texts, self.fingerprint, self.asked = texts, repr(texts), 0

    def generate(self, prompts, *, temperature, max_new_tokens, seed):
        self.asked += len(prompts)
        turns = [sum(m["role"] == "assistant" for m in messages) for messages, _ in prompts]
        return [self.texts[min(t, len(self.texts) - 1)] for t in turns]


def asking(text, id="1"):
    return Item(bench="demo", id=id, messages=[{"role": "user", "content": text}])


# Playing -------------------------------------------------------------------------------------------------------------


def test_what_was_played_is_not_asked_again_and_other_settings_are(tmp_path):
    policy, items = Says("yes"), [asking(q, q) for q in "abc"]
    out = tmp_path / "kept.jsonl"
    first = play(policy, items[:2], out=out)
    assert play(policy, items, out=out)[:2] == first and policy.asked == 3
    assert [r.item for r in play(policy, items[::-1], out=out)] == ["c", "b", "a"]
    assert policy.asked == 3
    play(policy, items, out=out, max_new_tokens=7)
    play(policy, items, out=out, settings={"user": "another"})
    assert policy.asked == 9
    changed = items[0].model_copy(update=dict(golden="another answer"))
    play(policy, [changed], out=out)
    assert policy.asked == 10
    again = Says("no")  # other weights
    assert [r.turns for r in play(again, items, out=out)] == [["no"]] * 3 and again.asked == 3


def test_samples_are_rollouts_of_their_own_and_order_is_kept(tmp_path):
    rollouts = play(Says("yes"), [asking("a", "a"), asking("b", "b")], samples=2, batch=3)
    assert [(r.item, r.sample) for r in rollouts] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_a_file_that_ends_in_half_a_line_goes_on(tmp_path):
    out, policy = tmp_path / "kept.jsonl", Says("yes")
    play(policy, [asking("a", "a")], out=out)
    with out.open("a") as f:
        f.write('{"key": "half')
    play(policy, [asking("a", "a"), asking("b", "b")], out=out)
    assert policy.asked == 2 and len(Cache(out).kept) == 2


def test_a_refused_prompt_is_set_apart_and_asked_again(tmp_path):
    class Refuses(Says):
        why = "the endpoint refuses a request"

        def generate(self, prompts, **how):
            if any(m[0]["content"] == "bad" for m, _ in prompts):
                raise UserError(self.why)
            return super().generate(prompts, **how)

    items, out = [asking(q, q) for q in ("good", "bad", "fair")], tmp_path / "kept.jsonl"
    policy = Refuses("yes")
    stops = [r.stop for r in play(policy, items, out=out)]
    assert stops == ["answer", "refused", "answer"] and len(Cache(out).kept) == 2
    policy.why = "the endpoint fails: Request timed out."
    assert [r.stop for r in play(policy, items[1:], out=tmp_path / "b")] == ["timed_out", "answer"]
    assert [r.stop for r in play(Says("yes"), items, out=out)] == ["answer"] * 3


def test_an_endpoint_that_is_gone_ends_the_work(tmp_path):
    class Gone(Says):
        def generate(self, prompts, **how):
            raise UserError("the endpoint fails: Connection error.")

    with pytest.raises(UserError, match="Connection error"):
        play(Gone("yes"), [asking(q, q) for q in "abcdef"])


def test_a_prompt_that_is_too_long_and_a_malformed_call_are_told():
    class Long(Says):
        def generate(self, prompts, **how):
            return [None for _ in prompts]

    (rollout,) = play(Long("yes"), [asking("a")])
    assert rollout.stop == "too_long" and rollout.turns == []
    (rollout,) = play(Says("<tool_call>\n{oops\n</tool_call>"), [asking("a")])
    assert rollout.malformed == 1


def test_whatever_a_policy_writes_can_be_kept(tmp_path):
    half, deep = '"\\ud800"', "[" * 300 + "]" * 300
    texts = [
        f'<tool_call>\n{{"name": "f", "arguments": {{"a": {value}}}}}\n</tool_call>'
        for value in (half, deep)
    ]
    for i, text in enumerate(
        [*texts, "half \ud800", '<tool_call>\n{"name": 1, "arguments": "[1]"}\n</tool_call>']
    ):
        out, policy = tmp_path / f"{i}.jsonl", Says(text)
        first = play(policy, [asking("a")], bfcl.Single, out=out)
        assert play(policy, [asking("a")], bfcl.Single, out=out) == first and policy.asked == 1


def test_a_file_that_is_missing_or_broken_gives_one_sentence(tmp_path):
    with pytest.raises(
        UserError, match="clean.json: there is no such file; get it from https://.*RoTBench"
    ):
        rotbench.load(tmp_path, ["clean"])
    (tmp_path / "clean.json").write_text("[{")
    with pytest.raises(
        UserError, match="clean.json: expected a JSON list, or one JSON object a line"
    ):
        rotbench.load(tmp_path, ["clean"])
    (tmp_path / "clean.json").write_text('[{"conversations": []}]')
    with pytest.raises(
        UserError, match="rotbench, clean, record 1: expected system, user and golden"
    ):
        rotbench.load(tmp_path, ["clean"])


# Failures and scores -------------------------------------------------------------------------------------------------


def call(name, **arguments):
    return ToolCall(name=name, arguments=arguments)


@pytest.mark.parametrize(
    "why, calls, how",
    [
        ("invented tool", [call("nope", a=1)], {}),
        ("wrong tool", [call("g", a=1)], {}),
        ("wrong parameter name", [call("f", z=1)], {}),
        ("wrong parameter name", [call("f", a=1, z=1)], {}),
        ("wrong value", [call("f", a=1)], {}),
        ("wrong value", [call("f", a=1, b=2)], {}),
        ("redundant", [call("f", a=1), call("f", a=1)], {}),
        ("redundant", [call("f", a=1), call("g", a=1)], {}),
        ("malformed", [], {"malformed": True}),
        ("gave up", [], {}),
        ("too long", [], {"stop": "too_long"}),
        ("too long", [call("f", a=1)], {"stop": "max_turns"}),
        ("refused", [], {"stop": "refused"}),
    ],
)
def test_a_wrong_output_has_one_kind_of_failure(why, calls, how):
    wanted = [Wanted("f", frozenset("a"), frozenset("b"))]
    assert failure(calls, wanted, ["f", "g"], **how) == why
    assert why in (*FAILURES, *common.LOST)


def test_a_call_where_none_was_wanted_is_redundant():
    assert failure([call("f", a=1)], [], ["f"]) == "redundant"


def of(hits, model="m", bench="rotbench", **more):
    rows = [
        Row(
            item=str(i),
            metrics={"TS": 1.0, "PI": 1.0, "CF": float(h)},
            failure="" if h else "wrong value",
        )
        for i, h in enumerate(hits)
    ]
    return BenchScores(bench=bench, model=model, rows=rows, **more)


def test_scores_count_items_once_and_those_not_heard_apart(tmp_path):
    got = of([1, 0, 1, 1])
    got.rows.append(
        got.rows[1].model_copy(update=dict(sample=1, metrics={"TS": 1.0, "PI": 1.0, "CF": 1.0}))
    )
    got.rows.append(Row(item="9", failure="refused"))
    table = got.summary().set_index("metric")
    assert table.loc["CF", "n"] == 4 and table.loc["CF", "mean"] == pytest.approx(3.5 / 4)
    assert got.lost() == {"refused": 1, "timed_out": 0}
    assert BenchScores.load(got.save(tmp_path / "s.json")) == got
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(UserError, match="s.json: expected scores of `toolrl bench`"):
        BenchScores.load(tmp_path / "s.json")


def test_differences_are_paired_and_refuse_what_cannot_be_compared():
    before, after = of([0, 1] * 20), of([1, 1] * 20, "n")
    row = scores.differences(before, after).set_index("metric").loc["CF"]
    assert row["difference"] == 0.5 and 0.3 < row["low"] < 0.5 < row["high"] < 0.7
    assert len(scores.differing(before, after)) == 20
    moved = scores.outcomes(before, after).value_counts()
    assert moved.to_dict() == {("right", "right"): 20, ("wrong value", "right"): 20}
    everywhere = scores.all_differences([before, of([0, 1], bench="bfcl"), after])
    assert list(everywhere.index) == ["n against m"] * 3 and set(everywhere["bench"]) == {
        "rotbench"
    }
    assert scores.all_differences([before]).empty
    with pytest.raises(UserError, match="cannot be compared"):
        scores.differences(before, of([1], rule="official"))
    other = of([1])
    other.rows[0].item = "elsewhere"
    with pytest.raises(UserError, match="no item in common"):
        scores.differences(before, other)


def elsewhere(scored):
    "The same scores on other items."
    moved = scored.model_copy(deep=True)
    for row in moved.rows:
        row.item = f"other-{row.item}"
    return moved


def test_a_page_of_policies_that_were_asked_different_parts_says_so(tmp_path):
    before, other, after = of([0, 1]), elsewhere(of([1, 1], "n")), of([1, 1], "o")
    assert scores.in_common(before, other) == [] and scores.in_common(before, after) == ["0", "1"]
    assert scores.all_differences([before, other]).empty
    assert set(scores.all_differences([before, other, after]).index) == {"o against m"}
    files = [s.save(tmp_path / f"{s.model}.scores.json") for s in (before, other, after)]
    report(files[:2], None, tmp_path / "two.html")
    page = (tmp_path / "two.html").read_text()
    assert "n against m</strong>: no item was asked of both" in page
    assert "Differences, paired" not in page
    report(files, None, tmp_path / "three.html")
    page = (tmp_path / "three.html").read_text()
    assert "Differences, paired" in page and page.count("no item was asked of both") == 1


def test_two_parts_of_one_model_are_two_rows_two_bars_and_two_columns():
    first = of([1, 0], settings={"groups": "clean"})
    second = elsewhere(of([1, 1], settings={"groups": "heavy"}))
    names = [s.model for same in scores.by_bench([first, second]) for s in same]
    assert names == ["m (clean)", "m (heavy)"]
    assert [s.model for same in scores.by_bench([first, first]) for s in same] == [
        "policy 1",
        "policy 2",
    ]
    sections = dict(scores.bench_sections([first, second]))
    assert list(sections["Beside the paper's table 2"][1]["version"]) == [
        "m (clean) (authors rule)",
        "m (heavy) (authors rule)",
    ]
    bars = {y for bar in sections["What failed"][0].data for y in bar.y}
    assert len(bars) == 2 and sections["Settings"][0].shape[1] == 2


def test_differences_stand_for_each_group_and_for_all():
    before, after = of([0, 1, 0, 0]), of([1, 1, 0, 0], "n")
    for row in before.rows + after.rows:
        row.group = "first" if int(row.item) < 2 else "second"
    table = scores.differences(before, after).query("metric == 'CF'").set_index("group")
    assert list(table.index) == ["first", "second", "all"] and list(table["n"]) == [2, 2, 4]
    assert list(table["difference"]) == [0.5, 0, 0.25]


def test_our_rows_stand_under_the_paper_s_and_what_was_not_run_is_empty():
    table2 = Path(__file__).parents[1] / "papers" / "table2.csv"
    table = scores.beside_table2([of([1, 0, 1, 0], whole=840)], table2)
    mine = table.iloc[-1]
    assert (
        len(table) == 28 and mine["family"] == "run here" and mine["version"] == "m (authors rule)"
    )
    assert mine["rotbench_cf"].startswith("50.00 [") and mine["rotbench_cf"].endswith(
        "n = 4 of 840"
    )
    assert mine["toolhop_ac"] == mine["taubench_pass1"] == mine["solve_f1"] == mine["avg"] == ""


def test_shares_of_failures_sum_to_one():
    shares = scores.failure_shares(of([1, 0, 1, 0]))
    assert shares["right"] == shares["wrong value"] == 0.5 and sum(shares.values()) == 1
    assert len(scores.failures_figure([of([1, 0])]).data) == 2


# RoTBench ------------------------------------------------------------------------------------------------------------

TOOLS = [
    {"name": name, "description": name, "parameters": {"type": "object", "properties": {}}}
    for name in ("get_time", "tell", "ask_to_user", "finish")
]
GOLDEN = [
    'Thought:\nAction: get_time\nAction Input: {"city": "Lima", "zone": "None"}',
    'Thought:\nAction: tell\nAction Input: {"time": "noon"}',
    'Thought:\nAction: finish\nAction Input: {"answer": "x"}',
]
SYSTEM = f"You have access to:\n{json.dumps(TOOLS)}\n\nLet's Begin!"
UPSTREAM = {
    "conversations": [
        {"from": "system", "value": SYSTEM},
        {"from": "user", "value": "What time is it?"},
        {"from": "assistant", "value": GOLDEN},
    ]
}
FTRL = {
    "messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "What time is it?"},
    ],
    "answer": GOLDEN,
    "data_source": "RoTBench-clean",
}


def said(name, given):
    return f"Thought: so\nAction: {name}\nAction Input: {given if isinstance(given, str) else json.dumps(given)}"


def test_both_forms_of_a_record_are_one_item():
    assert rotbench.as_item(UPSTREAM, "clean", 1) == rotbench.as_item(FTRL, "clean", 1)


@pytest.mark.parametrize(
    "text, authors, official",
    [
        (GOLDEN[0], (1, 1, 1), (1, 1, 1)),
        (GOLDEN[1], (1, 1, 1), (1, 1, 1)),
        (said("get_time", {"city": "Cusco", "zone": "None"}), (1, 1, 0), (1, 1, 0)),
        (said("get_time", {"city": "Lima", "zone": "EST"}), (1, 1, 0), (1, 1, 1)),
        (said("get_time", {"city": "None", "zone": "Lima"}), (1, 1, 1), (1, 1, 0)),
        (said("get_time", {"city": "Lima"}), (1, 0, 0), (1, 0, 0)),
        (said("get_time", {"city": ["Lima"], "zone": "None"}), (1, 1, 0), (1, 1, 0)),
        (said("finish", {"answer": "anything"}), (1, 1, 0), (1, 1, 1)),
        (said("nope", {"city": "Lima", "zone": "None"}), (0, 0, 0), (0, 0, 0)),
        (said("get_time", {}), (1, 0, 0), (0, 0, 0)),
        (said("get_time", "[1]"), (0, 0, 0), (0, 0, 0)),
        (said("get_time", "{oops"), (0, 0, 0), (0, 0, 0)),
        ("Action:\nget_time", (0, 0, 0), (0, 0, 0)),
        ("I cannot.", (0, 0, 0), (0, 0, 0)),
        ("", (0, 0, 0), (0, 0, 0)),
    ],
)
def test_the_three_stages_of_rotbench(text, authors, official):
    item = rotbench.as_item(UPSTREAM, "clean", 1)
    assert tuple(rotbench.score(text, item).values()) == authors
    assert tuple(rotbench.score(text, item, "official").values()) == official


def test_rotbench_goes_through_a_policy_and_tells_why_it_failed():
    item = rotbench.as_item(UPSTREAM, "clean", 1)
    texts = {
        GOLDEN[0]: "",
        said("nope", {}): "invented tool",
        said("ask_to_user", {"question": "?"}): "wrong tool",
        said("get_time", {"town": "Lima"}): "wrong parameter name",
        said("get_time", {"city": "Cusco", "zone": "None"}): "wrong value",
        said("get_time", "{oops"): "malformed",
        "I cannot.": "gave up",
    }
    for text, why in texts.items():
        (row,) = rotbench.judged([item], rotbench.run(Says(text), [item]))
        assert row.failure == why, text
        assert row.metrics["CF"] == (not why)


def by_the_authors(text, answers):
    "The authors' rule as SCORING.md tells it, written apart from the library."
    ts = pi = cf = 0
    try:
        tool = text.split("Action: ")[1].split("Action Input: ")[0].strip()
        given = json.loads(text.split("Action Input: ")[1].strip())
        assert type(given) is dict
        for answer in answers:
            name = answer.split("Action: ")[1].split("Action Input: ")[0].strip()
            wanted = json.loads(answer.split("Action Input: ")[1].strip())
            if name == tool:
                ts = 1
                if not wanted.keys() ^ given.keys():
                    pi = 1
                    if Counter(wanted.values()) == Counter(given.values()):
                        return 1, 1, 1
    except Exception:
        pass
    return ts, pi, cf


@published("rotbench")
def test_golden_outputs_of_rotbench_are_right_and_spoilt_ones_as_the_rule_says():
    items = rotbench.load(DATA / "rotbench")
    assert Counter(i.group for i in items) == dict(
        clean=105, slight=210, medium=210, heavy=210, union=105
    )
    right = Counter()
    for item in items:
        for rule in rotbench.RULES:
            right[rule] += all(rotbench.score(item.golden[0], item, rule).values())
        name, given = rotbench.taken_apart(item.golden[0])
        spoilt = [
            said(name, {k: "another" for k in given}),
            said(name, {f"{k}_": v for k, v in given.items()}),
            said(name, dict(zip(given, reversed(given.values())))),
            said(item.extra["tools"][-1]["name"], given),
            said(name, {k: [v] for k, v in given.items()}),
            item.golden[-1] + "\nObservation: so",
        ]
        for text in [*item.golden, *spoilt]:
            assert tuple(rotbench.score(text, item).values()) == by_the_authors(text, item.golden)
    # the official script takes a golden call without parameters for one that does not parse
    assert right == {"authors": 840, "official": 782}


# tau-bench -----------------------------------------------------------------------------------------------------------

CODES = {
    "get_order": "def get_order(data, order_id):\n    import json\n    return json.dumps(data['orders'][order_id])\n",
    "cancel_order": "def cancel_order(data, order_id):\n    data['orders'][order_id]['status'] = 'cancelled'\n    return 'done'\n",
    "think": "def think(data, thought):\n    return ''\n",
    "transfer_to_human_agents": "def transfer_to_human_agents(data, summary):\n    return 'Transfer successful'\n",
}
CANCEL = call("cancel_order", order_id="o1")
TASKS = [
    ("You want to cancel the order o1. Your email is a@example.com.", [CANCEL], ["1200"]),
    ("You want to cancel the order o1.", [CANCEL], []),
    ("You want a discount.", [], []),
    ("You want to know what o1 costs.", [], ["1200"]),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "A domain with one order, and four tasks, in the form of the published data."
    folder = tmp_path_factory.mktemp("tau")
    (folder / "shop").mkdir()
    documents = [
        {
            "type": "function",
            "function": {
                "name": n,
                "description": n,
                "parameters": {"type": "object", "properties": {}},
            },
        }
        for n in CODES
    ]
    orders = {"o1": {"price": 1200, "status": "pending"}, "o2": {"price": 1.0, "status": "sent"}}
    for name, value in dict(codes=CODES, tools=documents, orders=orders).items():
        (folder / "shop" / f"{name}.json").write_text(json.dumps(value))
    (folder / "shop" / "wiki.md").write_text("Cancel what may be cancelled.")
    records = [
        {
            "instruction": instruction,
            "actions": [
                {
                    "id": "0",
                    "type": "function",
                    "function": {"name": a.name, "arguments": json.dumps(a.arguments)},
                }
                for a in actions
            ],
            "outputs": outputs,
            "data_source": "tau-bench/shop",
        }
        for instruction, actions, outputs in TASKS
    ]
    (folder / "tau-bench.jsonl").write_text("\n".join(map(json.dumps, records)))
    domains = taubench.load_domains(folder, ["shop"])
    return domains, taubench.load(folder, domains)


def tau(shop, policy, rule, which, **how):
    domains, items = shop
    items = [items[i] for i in which]
    golden = taubench.Golden(domains)
    rollouts = taubench.run(policy, items, domains, rule=rule, **how)
    return rollouts, taubench.judged(items, rollouts, golden, rule)


CANCELS, BYE = call_text([CANCEL]), "It was 1,200. Goodbye."


def test_outputs_count_beside_calls_for_the_authors_and_without_for_the_official_rule(shop):
    def right(policy, rule):
        return [int(r.metrics["Pass^1"]) for r in tau(shop, policy, rule, [0, 1])[1]]

    after, beside = Says(CANCELS, BYE), Says(f"It was 1,200.\n{CANCELS}", "Goodbye.")
    assert right(after, "official") == right(beside, "authors") == [1, 1]
    assert right(after, "authors") == right(beside, "official") == [0, 1]


def test_a_transfer_ends_the_dialogue_by_the_official_rule_alone(shop):
    policy = Says(call_text([call("transfer_to_human_agents", summary="?")]), CANCELS, "Bye.")
    (official,), (row,) = tau(shop, policy, "official", [1])
    assert official.stop == "done" and len(official.turns) == 1 and row.metrics == {"Pass^1": 0}
    (authors,), (row,) = tau(shop, policy, "authors", [1])
    assert len(authors.turns) > 2 and row.metrics == {"Pass^1": 1}


def test_a_dialogue_of_thirty_turns_is_cut_and_lost(shop):
    rollouts, rows = tau(shop, Says(CANCELS), "official", [1])
    assert rollouts[0].stop == "max_turns" and len(rollouts[0].turns) == 30
    assert rows[0].metrics == {"Pass^1": 0} and rows[0].failure == "too long"


def test_of_several_calls_the_first_is_made_and_a_rollout_has_a_database_of_its_own(shop):
    read = call("get_order", order_id="o1")
    rollouts, rows = tau(shop, Says(call_text([read, CANCEL]), "Bye."), "official", [1, 2])
    assert [m["content"] for m in rollouts[0].messages if m["role"] == "tool"] == [
        '{"price": 1200, "status": "pending"}'
    ]
    assert [r.metrics["Pass^1"] for r in rows] == [0, 1] and rows[0].failure == "gave up"
    rollouts, _ = tau(shop, Says(CANCELS, call_text([read]), "Bye."), "official", [1])
    assert "cancelled" in rollouts[0].messages[4]["content"]
    rollouts, _ = tau(shop, Says(call_text([read]), "Bye."), "official", [1])
    assert "pending" in rollouts[0].messages[2]["content"]


def test_an_unknown_tool_and_wrong_arguments_are_answered_with_an_error(shop):
    wrong = Says(call_text([call("nope")]), call_text([call("get_order", id=1)]), "Bye.")
    rollouts, rows = tau(shop, wrong, "authors", [1])
    results = [m["content"] for m in rollouts[0].messages if m["role"] == "tool"]
    assert results[0] == "an error occured when call nope: 'nope'"
    assert "unexpected keyword argument" in results[1]
    assert rows[0].failure == "invented tool"
    rollouts, _ = tau(shop, wrong, "official", [1])
    results = [m["content"] for m in rollouts[0].messages if m["role"] == "tool"]
    assert results[0] == "Unknown action nope"
    assert results[1].startswith("Error: get_order() got an unexpected keyword argument")


def test_types_matter_and_the_order_of_keys_does_not(shop):
    (domain,) = shop[0].values()
    edit = "def edit(data, value):\n    data['orders']['o2'] = {'status': 'sent', 'price': value}\n    return ''\n"
    with domain.session() as session:
        same = taubench.run_calls(session, {"edit": edit}, [call("edit", value=1.0)])[-1]
        other = taubench.run_calls(session, {"edit": edit}, [call("edit", value=1)])[-1]
    assert same == domain.start != other


def test_doing_nothing_and_golden_replay(shop):
    domains, items = shop
    golden = taubench.Golden(domains)
    assert taubench.nothing(items, golden) == 1 / 4
    for rule in ("authors", "official"):
        replayed = [taubench.replay(i, domains, rule) for i in items]
        assert [taubench.score(r, i, golden, rule) for r, i in zip(replayed, items)] == [1] * 4


def test_pass_k_is_the_chance_that_all_of_k_tries_succeed(shop):
    class Sometimes(Says):
        def generate(self, prompts, **how):
            self.asked += len(prompts)
            return [CANCELS if self.asked == 1 else "Bye." for _ in prompts]

    rollouts, rows = tau(shop, Sometimes("x"), "official", [1], samples=3, batch=1, temperature=1.0)
    assert [r.sample for r in rollouts] == [0, 1, 2]
    assert [r.metrics["Pass^1"] for r in rows] == [1, 0, 0]
    assert {r.metrics["Pass^2"] for r in rows} == {r.metrics["Pass^3"] for r in rows} == {0}
    assert [taubench.pass_k(2, 3, k) for k in (1, 2, 3)] == [2 / 3, 1 / 3, 0]
    assert taubench.pass_k(3, 3, 3) == 1


def test_a_broken_task_is_named(tmp_path, shop):
    (tmp_path / "tau-bench.jsonl").write_text(
        json.dumps({"data_source": "tau-bench/shop", "actions": []})
    )
    with pytest.raises(
        UserError, match="taubench, record 1: expected instruction, actions, outputs"
    ):
        taubench.load(tmp_path, shop[0])


def replayed(part):
    domains = taubench.load_domains(DATA / "tau-bench")
    items, golden = taubench.load(DATA / "tau-bench", domains), taubench.Golden(domains)
    items = items[part] if isinstance(part, slice) else items
    for rule in ("authors", "official"):
        missed = [
            i.id
            for i in items
            if not taubench.score(taubench.replay(i, domains, rule), i, golden, rule)
        ]
        assert not missed, (rule, missed)
    return items, golden


@published("tau-bench")
def test_golden_replay_of_some_published_tasks():
    items, _ = replayed(slice(46, 54))
    assert Counter(i.group for i in items) == {"airline": 4, "retail": 4}


@pytest.mark.slow
@published("tau-bench")
def test_golden_replay_of_all_published_tasks_and_doing_nothing():
    items, golden = replayed(None)
    counts = Counter(i.group for i in items)
    assert counts == {"airline": 50, "retail": 115}
    # what the official reward gives an agent that says nothing and calls nothing
    idle = {
        g: taubench.nothing([i for i in items if i.group == g], golden) * n
        for g, n in counts.items()
    }
    assert idle == pytest.approx({"airline": 19, "retail": 7})


# Users ---------------------------------------------------------------------------------------------------------------


def test_the_scripted_user_tells_what_is_asked_for_once_and_invents_nothing():
    instruction = "Your name is Ana and your zip code is 12345. You want to return the lamp. You are in a hurry."
    talk = users.ScriptedUser().talk(instruction)
    assert talk.reply(users.GREETING) == "I want to return the lamp."
    assert talk.reply("Please tell me your zip code?") == "My name is Ana and my zip code is 12345."
    assert talk.reply("I will return the lamp. Do you confirm?") == "Yes, please go ahead."
    assert talk.reply("It is done.") == "I am in a hurry."
    assert talk.reply("What is your zip code?") == "My name is Ana and my zip code is 12345."
    assert talk.reply("Which colour has the roof?") == "I do not remember that."
    assert talk.reply("Goodbye.") == users.STOP
    again = users.ScriptedUser().talk(instruction)
    assert again.reply(users.GREETING) == "I want to return the lamp."


def test_a_policy_can_be_the_user():
    class Model(Says):
        name = "model"

    talk = users.PolicyUser(Model("I want tea.", users.STOP)).talk("You want tea.")
    assert [talk.reply(users.GREETING), talk.reply("Done.")] == ["I want tea.", users.STOP]
    assert (
        "You want tea." in talk.messages[0]["content"]
        and talk.messages[1]["content"] == users.GREETING
    )


# BFCL ----------------------------------------------------------------------------------------------------------------

try:
    PACKAGE = bfcl.find_package()
except UserError:
    PACKAGE = None
packaged = pytest.mark.skipif(
    PACKAGE is None,
    reason="the package bfcl-eval is not here: `make test` puts it beside the environment",
)


@pytest.fixture(scope="module")
def package():
    with bfcl.Package() as package:
        yield package


def first_right(values, java=False):
    "One of the values that a golden answer allows; for Java and JavaScript as source."
    value = next((v for v in values if v != ""), "")
    if isinstance(value, dict):
        return {k: first_right(v) for k, v in value.items() if first_right(v) != ""}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [{k: first_right(v) for k, v in part.items()} for part in value]
    return value


def golden_pairs(item):
    "The golden calls of an item, as pairs; by turn and step in a dialogue. None for what cannot be written as JSON."
    if item.extra:
        turns = []
        for turn in item.golden:
            calls = [ast.parse(source, mode="eval").body for source in turn]
            if any(c.args for c in calls):
                return None
            named = [
                [c.func.id, {k.arg: ast.literal_eval(k.value) for k in c.keywords}] for c in calls
            ]
            turns.append([[call] for call in named])
        return turns
    if item.golden is None:
        return []
    pairs = []
    for wanted in item.golden:
        ((name, values),) = wanted.items()
        given = {k: first_right(v) for k, v in values.items() if v[0] != ""}
        pairs.append([name.replace(".", "_"), given])
    return pairs


def another(value):
    "A value that is not right."
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return value[1:] if value else [1]
    return {"another": 1} if isinstance(value, dict) else f"{value} or another"


def spoilt_pairs(calls, chance):
    "Ways to spoil a list of calls, and some that are right in spite of it."
    (name, given), *rest = calls
    yield [[name, {k: another(v) for k, v in given.items()}], *rest]
    yield [[name, {f"{k}_": v for k, v in given.items()}], *rest]
    yield [["another_" + name, given], *rest]
    yield [[name, {k: str(v) for k, v in given.items()}], *rest]
    yield [[name, {k: v.upper() if isinstance(v, str) else v for k, v in given.items()}], *rest]
    yield [[name, dict(list(given.items())[1:])], *rest]
    yield [*calls, calls[0]]
    yield chance.sample(calls, len(calls))
    yield calls[1:]


def spoilt_turns(turns, chance):
    "Ways to spoil a dialogue, and some that are right in spite of it."
    busy = chance.choice([i for i, turn in enumerate(turns) if turn])
    changed = [
        *turns[busy][:-1],
        [[turns[busy][-1][0][0], {k: another(v) for k, v in turns[busy][-1][0][1].items()}]],
    ]
    for turn in (
        [],
        turns[busy][:-1],
        changed,
        [*turns[busy], turns[busy][-1]],
        [[c for s in turns[busy] for c in s]],
    ):
        yield [*turns[:busy], turn, *turns[busy + 1 :]]
    yield turns[:-1]
    yield [*turns[:busy], [*turns[busy], [["no_tool", {}]]], *turns[busy + 1 :]]


def bfcl_cases(package, most):
    "Outputs of every category, right and wrong: [category, id, output], and the items."
    chance, items, cases = random.Random(0), bfcl.load(package, most=most), []
    for item in items:
        golden = golden_pairs(item)
        if golden is None:
            continue
        outputs = [golden, []]
        if item.extra:
            outputs = [golden, *spoilt_turns(golden, chance)]
        elif golden:
            outputs += spoilt_pairs(golden, chance)
        else:
            outputs.append([[item.tools[0]["function"]["name"], {}]])
        cases += [[item.group, item.id, output] for output in outputs]
    return items, cases


def ours(package, items, cases):
    rollouts = [
        Rollout(key="", item=id, stop="answer", facts={"said": output}) for _, id, output in cases
    ]
    return [bool(r.metrics["right"]) for r in bfcl.judged(items, rollouts, package)]


@packaged
@pytest.mark.parametrize("most", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_every_verdict_is_that_of_the_package_s_own_evaluation(package, most):
    items, cases = bfcl_cases(package, most)
    got = ours(package, items, cases)
    program = [sys.executable, str(Path(__file__).with_name("bfcl_official.py")), str(PACKAGE)]
    lines = "\n".join(map(json.dumps, cases))
    said = subprocess.run(program, input=lines, capture_output=True, text=True, timeout=500)
    assert said.returncode == 0, said.stderr[-2000:]
    official = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(official) == len(cases) >= 400
    differ = [(c, o) for c, g, o in zip(cases, got, official) if g != o]
    assert not differ, differ[:3]
    both = {(c[0], g) for c, g in zip(cases, got)}
    assert both == {(group, right) for group in bfcl.GROUPS for right in (True, False)}


@packaged
def test_an_item_of_bfcl_goes_through_a_policy(package):
    (item,) = bfcl.load(package, ["simple_python"], 1)
    ((name, given),) = golden_pairs(item)
    texts = {
        call_text([call(name, **given)]): "",
        call_text([call(name, **{k: another(v) for k, v in given.items()})]): "wrong value",
        call_text([call(name, **given)] * 2): "redundant",
        call_text([call("nope", **given)]): "invented tool",
        "<tool_call>\n{oops\n</tool_call>": "malformed",
        '<tool_call>\n{"name": "x", "arguments": "[1]"}\n</tool_call>': "invented tool",
        "I cannot.": "gave up",
    }
    for text, why in texts.items():
        (row,) = bfcl.judged([item], bfcl.run(Says(text), [item], package), package)
        assert (row.failure, row.metrics["right"]) == (why, float(not why)), text


@packaged
def test_a_dialogue_gets_its_results_its_later_tools_and_is_cut_after_twenty_steps(package):
    (item,) = bfcl.load(package, ["multi_turn_miss_func"], 1)
    ls, seen = call_text([call("ls", a=True)]), []

    class Sees(Says):
        def generate(self, prompts, **how):
            seen.append([t["function"]["name"] for t in prompts[0][1]])
            return super().generate(prompts, **how)

    turns = len(item.extra["turns"])
    policy = Sees(ls, *["That is all."] * turns)
    (rollout,) = bfcl.run(policy, [item], package)
    assert rollout.stop == "done" and len(rollout.facts["said"]) == turns
    assert "current_directory_content" in rollout.messages[1]["content"]
    (when,) = item.extra["later"]
    added = {t["function"]["name"] for t in item.extra["later"][when]}
    assert not added & set(seen[0]) and added <= set(seen[-1])
    assert {"role": "user", "content": bfcl.ADDED} in rollout.messages
    (rollout,) = bfcl.run(Says(ls), [item], package)
    assert rollout.stop == "max_turns" and len(rollout.turns) == 21
    (row,) = bfcl.judged([item], [rollout], package)
    assert row.metrics == {"right": 0} and row.failure == "too long"


@packaged
def test_a_call_that_takes_too_long_is_an_answer_and_no_text_of_a_model_is_run(package, tmp_path):
    (item,) = [
        i
        for i in bfcl.load(package, ["multi_turn_base"])
        if any(t["function"]["name"] == "power" for t in i.tools)
    ][:1]
    endless = call_text([call("power", base=9, exponent=10**10)])
    with bfcl.Package() as impatient:
        impatient.ask("load", item.group, 1)
        impatient.timeout = 3  # it has loaded
        (rollout,) = bfcl.run(Says(endless, "Done."), [item], impatient)
        assert "Error during execution: bfcl: no answer within" in rollout.messages[1]["content"]
        (row,) = bfcl.judged([item], [rollout], impatient)
        assert row.metrics == {"right": 0}
    mark = tmp_path / "mark"
    evil = [
        call("open", file=str(mark), mode="w"),
        ToolCall(name="pwd", arguments={f"a=open({str(mark)!r},'w'),b": 1}),
    ]
    (rollout,) = bfcl.run(Says(call_text(evil), "Done."), [item], package)
    assert not mark.exists() and all("no_such_tool" in m["content"] for m in rollout.messages[1:3])


def test_without_the_package_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLRL_BFCL", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(UserError, match="pip install --no-deps --target FOLDER bfcl-eval"):
        bfcl.find_package()


# ToolHop -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hops(environments):
    "An environment of two hops as a record of ToolHop's form, with its golden turns."
    env = next(e for e in environments if e.kind == "multi-hop")
    record = {
        "question": env.question,
        "answer": env.answer,
        "tools": {t.name: t.doc.model_dump() for t in env.tools},
        "functions": {t.name: t.code for t in env.tools},
    }
    return record, [call_text(calls) for calls in env.golden_calls()]


def reached(item, *texts):
    (rollout,) = toolhop.run(Says(*texts), [item])
    (row,) = toolhop.judged([item], [rollout])
    return int(row.metrics["AC"]), row.failure


def test_the_answer_counts_in_the_last_message_or_in_the_result_before_it(hops):
    record, turns = hops
    item, answer = toolhop.as_item(record, 1), record["answer"]
    assert reached(item, *turns, f"<answer>{answer}</answer>") == (1, "")
    assert reached(item, *turns, "I have it.") == (1, "")
    assert reached(item, *turns, "") == (0, "gave up")
    assert reached(item, *turns) == (0, "too long")
    assert reached(item, "I do not know.") == (0, "gave up")
    assert reached(item, turns[0], "I do not know.") == (0, "wrong value")
    assert reached(item, call_text([call("nope")]), "I do not know.") == (0, "invented tool")
    assert reached(item, f"It is {answer.upper()}!") == (1, "")


def test_toolhop_has_three_prompts_and_two_forms(hops, tmp_path):
    record, turns = hops
    free, must, direct = (
        toolhop.as_item(record, 1, mode) for mode in ("free", "mandatory", "direct")
    )
    assert "must call the tool at every step" in must.messages[0]["content"]
    assert free.messages[0]["content"].splitlines()[2].startswith("If the final nswer is a name")
    assert direct.tools == [] and "tools" not in direct.messages[0]["content"]
    assert reached(direct, f"{turns[0]}") == (0, "invented tool")
    listed = record | {"functions": list(record["functions"].values())}
    assert toolhop.as_item(listed, 1) == free
    (tmp_path / "ToolHop.json").write_text(json.dumps([listed, record]))
    assert [i.id for i in toolhop.load(tmp_path)] == ["free-1", "free-2"]
    (tmp_path / "ToolHop.jsonl").write_text(json.dumps(record) + "\n")
    assert toolhop.load(tmp_path, ["direct", "free"]) == [direct, free]
    with pytest.raises(
        UserError, match="toolhop, record 3: expected question, answer, tools by name"
    ):
        toolhop.as_item({"question": "?"}, 3)
    with pytest.raises(
        UserError, match="ToolHop.json: there is no such file; get it from the data set"
    ):
        toolhop.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="expected modes among direct, mandatory, free, got 'fast'"):
        toolhop.load(tmp_path, ["fast"])


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture()
def data(tmp_path, shop, hops):
    "A folder of small data, in the form of the published ones."
    folder = tmp_path / "data"
    for level in rotbench.LEVELS:
        (folder / "rotbench").mkdir(parents=True, exist_ok=True)
        (folder / "rotbench" / f"{level}.json").write_text(json.dumps([UPSTREAM, FTRL]))
    (folder / "toolhop").mkdir()
    (folder / "toolhop" / "ToolHop.json").write_text(json.dumps([hops[0]]))
    return folder


def test_models_are_measured_kept_and_put_beside_the_paper_s_table(
    toolrl, data, tmp_path, tiny_folder
):
    out = tmp_path / "out"
    how = ("-m", tiny_folder, "-d", data, "-o", out, "--max-new-tokens", 8)
    code, said, err = toolrl("bench", "rotbench", "toolhop", *how)
    assert code == 0, err
    assert "rotbench" in said and "by the authors rule" in said and "next: open" in said
    kept = sorted(p for p in out.iterdir() if p.name.endswith(".rollouts.jsonl"))
    before = [p.read_bytes() for p in kept]
    assert [len(b.splitlines()) for b in before] == [10, 1]
    scores = [BenchScores.load(p) for p in sorted(out.glob("*.scores.json"))]
    assert [(s.bench, s.rule, len(s.rows), s.whole) for s in scores] == [
        ("rotbench", "authors", 10, 840),
        ("toolhop", "authors", 1, 995),
    ]
    assert "run here" in (out / "report.html").read_text()
    code, said, _ = toolrl("bench", "rotbench", *how, "--rule", "official")
    assert code == 0 and "by the official rule" in said
    assert [p.read_bytes() for p in kept] == before  # another rule asks nobody again
    page = (out / "report.html").read_text()
    assert "rotbench, by the official rule" in page and "toolhop, by the authors rule" in page


def test_a_report_puts_scores_of_benchmarks_beside_the_paper_s(toolrl, tmp_path):
    files = [tmp_path / f"{name}.scores.json" for name in ("a", "b", "c")]
    of([1, 0, 0, 0]).save(files[0])
    of([1, 1, 1, 0], "n").save(files[1])
    of([1, 0], "n", bench="bfcl", rule="official").save(files[2])
    code, said, err = toolrl("report", *files, "-o", tmp_path / "r.html")
    assert code == 0 and said.startswith(f"written: {tmp_path / 'r.html'}"), err
    page = (tmp_path / "r.html").read_text()
    for words in ("25.00 [", "75.00 [", "n against m", "Items in which they differ: 2"):
        assert words in page, words
    assert "Qwen2.5-7B" in page and "bfcl, by the official rule" in page
    code, _, err = toolrl("report", *files, "-e", files[0])
    assert code == 2 and "benchmarks bring their own items" in err
    files[0].write_text('{"bench": 1}')
    assert "a.scores.json: expected scores of `toolrl bench`" in toolrl("report", *files)[2]


def test_list_says_what_each_benchmark_needs(toolrl, data):
    code, said, _ = toolrl("bench", "--list", "-d", data)
    assert code == 0
    for name in suites.SUITES:
        assert f"{name}: " in said
        assert all(source in said for *_, source in suites.needs(name, data))
    assert "mmlu/*/test-*.parquet (missing): the data set cais/mmlu" in said
    assert f"{data / 'rotbench'} (there)" in said and f"{data / 'tau-bench'} (missing)" in said


@pytest.mark.parametrize(
    "words, why",
    [
        ([], "expected names of benchmarks and --model"),
        (["rotbench"], "expected names of benchmarks and --model"),
        (
            ["mmlu", "-m", "smollm2"],
            "expected one of rotbench, taubench, bfcl, toolhop, general, got 'mmlu'",
        ),
        (
            ["rotbench", "-m", "oracle"],
            "the oracle knows the answers of our own environments alone",
        ),
        (["rotbench", "-m", "smollm2", "--group", "cleen"], "--group cleen: expected one of clean"),
        (["rotbench", "bfcl", "-m", "smollm2", "--group", "clean"], "expected one benchmark"),
        (["taubench", "-m", "smollm2", "--user", "gpt"], "expected 'scripted', or --user-url"),
        (
            ["taubench", "-m", "smollm2", "-d", "nowhere"],
            "there is no such folder; get it from https",
        ),
        (["rotbench", "-m", "./nowhere"], "no model here"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_sentence(toolrl, tmp_path, words, why):
    code, _, err = toolrl("bench", *words, *(["-o", tmp_path / "out"] if words else []))
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and why in err, err


def test_every_benchmark_is_measured_through_one_function(shop, tmp_path, monkeypatch):
    domains, items = shop
    monkeypatch.setattr(taubench, "load_domains", lambda folder, groups: domains)
    monkeypatch.setattr(taubench, "load", lambda folder, domains, most: items)
    got = suites.measure(
        "taubench", Says(CANCELS, BYE), tmp_path, rule="official", samples=2, temperature=1.0
    )
    assert got.baseline == {"Pass^1": 0.25} and got.settings["user"] == "scripted"
    table = got.summary().set_index("metric")
    assert list(table.index) == ["Pass^1", "Pass^2"] and table.loc["Pass^1", "nothing"] == 0.25
    assert table.loc["Pass^1", "mean"] == table.loc["Pass^2", "mean"] == 0.5


# General ability -----------------------------------------------------------------------------------------------------


class Solves(Says):
    "Answers what three small files ask."

    def generate(self, prompts, **how):
        self.asked += len(prompts)
        return [self.turn(messages[-1]["content"]) for messages, _ in prompts]

    def turn(self, asked):
        if "eggs" in asked:
            return "He has 3. No: 5.\nQ: What next? 9"
        known = {
            "def add": "    return a + b\n\nprint(1)",
            "anatomy.\n\nWhere": "B\nbecause",
            "Halve": "It is $\\frac32$.",
            "function to double": "def twice(n):\n    return n + n\n[DONE] def twice(n): return 0",
            "as a loop": "import os\nos.system('touch spoilt')\ndef twice(n):\n    while n: pass\n[DONE]",
        }
        last = asked.rsplit("You are an expert", 1)[-1]
        return next((text for words, text in known.items() if words in last), "The answer is True.")


def general_data(folder):
    for part in ("gsm8k", "bbh", "humaneval", "mmlu/anatomy", "math/number_theory", "mbpp/full"):
        (folder / part).mkdir(parents=True)
    problems = [
        {"question": f"Ana has {n} eggs and gets 3 more. How many?", "answer": f"#### {n + 3}"}
        for n in (2, 3)
    ]
    (folder / "gsm8k" / "test.jsonl").write_text("\n".join(map(json.dumps, problems)))
    examples = [
        {"input": "not ( True ) is", "target": "False"},
        {"input": "True is", "target": "True"},
    ]
    for task in ("boolean_expressions", "web_of_lies"):
        (folder / "bbh" / f"{task}.json").write_text(json.dumps({"examples": examples}))
    tests = ["assert f(2, 3) == 5", "assert f(2, 3) == 6", "while True: pass"]
    programs = [
        {
            "task_id": str(i),
            "prompt": "def add(a, b):\n",
            "entry_point": "add",
            "test": f"def check(f):\n    {t}\n",
        }
        for i, t in enumerate(tests[:2])
    ]
    with gzip.open(folder / "humaneval" / "HumanEval.jsonl.gz", "wt") as f:
        f.write("\n".join(map(json.dumps, programs)))
    in_parquet(
        folder / "mmlu/anatomy",
        {"question": "Where is the femur?", "subject": "anatomy", "choices": BONES, "answer": 1},
        {"question": "Where is the ulna?", "subject": "anatomy", "choices": BONES, "answer": 0},
    )
    about = {"level": "Level 1", "type": "Number Theory"}
    in_parquet(
        folder / "math/number_theory",
        {"problem": "Halve $3$.", "solution": "It is $\\boxed{\\frac{3}{2}}$."} | about,
        {"problem": "Halve $8$.", "solution": "It is $\\boxed{4}$."} | about,
    )
    about = {"code": "", "test_setup_code": "", "challenge_test_list": []}
    in_parquet(
        folder / "mbpp/full",
        *(
            {"task_id": i, "text": text, "test_list": [f"assert twice({i}) == {2 * i}"] * 3} | about
            for i, text in ((11, "Write a function to double."), (12, "Write twice as a loop."))
        ),
    )
    return folder


BONES = ["Arm", "Leg", "Head", "Hand"]


def in_parquet(folder, *records):
    pandas.DataFrame(records).to_parquet(folder / "test-00000-of-00001.parquet")


def test_programs_run_in_the_sandbox_alone(tmp_path):
    mark = tmp_path / "mark"
    assert general.passes("x = 1 + 1\nassert x == 2")
    assert not general.passes("assert 1 == 2") and not general.passes("def f(:")
    assert not general.passes(f"open({str(mark)!r}, 'w').write('x')") and not mark.exists()
    assert (
        general.pass_at_1(
            ["assert f() == 1"], [["def f():\n    return 1", "def f():\n    return 2"]]
        )
        == 0.5
    )


def test_a_text_ends_at_the_first_mark():
    assert general.cut("a. Q: b </s>", ["</s>", "Q:"]) == "a. " and general.cut("a", []) == "a"


def test_general_ability_is_scored_by_lm_eval_and_kept(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not here: the extra `general` brings it")
    folder, policy, out = general_data(tmp_path / "data"), Solves("x"), tmp_path / "kept.jsonl"
    got = suites.measure("general", policy, folder, out=out)
    assert {r.item: r.metrics["right"] for r in got.rows} == {
        "gsm8k-0": 1,
        "gsm8k-1": 0,
        "bbh_boolean_expressions-0": 0,
        "bbh_boolean_expressions-1": 1,
        "bbh_web_of_lies-0": 0,
        "bbh_web_of_lies-1": 0,
        "humaneval-0": 1,
        "humaneval-1": 0,
        "mmlu_anatomy-0": 1,
        "mmlu_anatomy-1": 0,
        "math_number_theory-0": 1,
        "math_number_theory-1": 0,
        "mbpp-0": 1,
        "mbpp-1": 0,
    }
    assert set(got.summary()["group"]) == {*general.GROUPS, "all"} and got.whole == 27536
    assert not Path("spoilt").exists()
    asked = policy.asked
    assert suites.measure("general", policy, folder, out=out) == got and policy.asked == asked
    few = suites.measure("general", policy, folder, groups=["bbh"], most=2)
    assert [r.item for r in few.rows] == ["bbh_boolean_expressions-0", "bbh_web_of_lies-0"]
    with pytest.raises(UserError, match="test.jsonl: there is no such file; get it from https"):
        suites.measure("general", policy, tmp_path / "nowhere")
    (folder / "humaneval" / "HumanEval.jsonl.gz").unlink()
    assert "humaneval" not in {r.group for r in suites.measure("general", policy, folder).rows}
    (folder / "mmlu/anatomy").rename(folder / "mmlu/anatomi")
    with pytest.raises(UserError, match="anatomi/test-00000-of-00001.parquet: lm-eval has no task"):
        suites.measure("general", policy, folder, groups=["mmlu"])


@pytest.mark.parametrize("group", ["mmlu", "math", "mbpp"])
def test_what_cannot_be_had_here_says_where_to_get_it(tmp_path, group):
    with pytest.raises(UserError, match=f"{group}/.*parquet: there is no such file; get it from"):
        general.files_of(tmp_path, group)


@published("gsm8k")
def test_golden_programs_and_answers_of_the_published_data_are_right():
    pytest.importorskip("lm_eval", reason="lm-eval is not here: the extra `general` brings it")
    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz", "rt") as f:
        programs = [json.loads(line) for line in f][:8]
    known = {p["prompt"]: p["canonical_solution"] for p in programs}
    for line in (DATA / "gsm8k" / "test.jsonl").read_text().splitlines()[:8]:
        problem = json.loads(line)
        known[problem["question"]] = problem["answer"]

    class Golden(Says):
        def turn(self, asked):
            return next(answer for question, answer in known.items() if question in asked)

        def generate(self, prompts, **how):
            return [self.turn(messages[-1]["content"]) for messages, _ in prompts]

    rows = general.run(Golden("x"), DATA, ["gsm8k", "humaneval"], most=8)
    assert len(rows) == 16 and all(r.metrics["right"] == 1 for r in rows)


# Endpoints -----------------------------------------------------------------------------------------------------------


class Endpoint(http.server.BaseHTTPRequestHandler):
    "Plays the agent, whose calls come as data, the user, and a model that is refused or slow, by the name of the model."

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model, messages = asked["model"], asked["messages"]
        if model == "shy" and "bad" in str(messages):
            return self.send(400, {"error": {"message": "content policy"}})
        turns = sum(m["role"] == "assistant" for m in messages)
        message = {"role": "assistant", "content": "It was 1,200. Goodbye."}
        if model == "user":
            message["content"] = users.STOP if turns else "Cancel o1, please."
        elif model == "agent" and not turns:
            function = {"name": CANCEL.name, "arguments": json.dumps(CANCEL.arguments)}
            calls = [{"id": "1", "type": "function", "function": function}]
            message |= {"content": None, "tool_calls": calls}
        about = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        self.send(200, about | {"choices": [choice]})

    def send(self, code, body):
        body = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ.setdefault("OPENAI_API_KEY", "none")
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_an_endpoint_can_be_the_agent_and_another_the_user(shop, url):
    user = users.PolicyUser(EndpointPolicy("user", url))
    (rollout,), (row,) = tau(shop, EndpointPolicy("agent", url), "official", [0], user=user)
    assert [m["role"] for m in rollout.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert rollout.messages[0]["content"] == "Cancel o1, please." and rollout.calls == [CANCEL]
    assert row.metrics == {"Pass^1": 1}


def test_a_prompt_that_an_endpoint_refuses_is_counted_apart(url, tmp_path):
    items = [asking(q, q) for q in ("good", "bad", "fair")]
    rollouts = play(EndpointPolicy("shy", url, retries=0), items, out=tmp_path / "kept.jsonl")
    assert [r.stop for r in rollouts] == ["answer", "refused", "answer"]
    row = scores.row_of(items[1], rollouts[1], {"right": 0.0}, "refused")
    assert row.metrics == {} and row.failure == "refused"
