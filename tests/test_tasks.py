"Tasks over worlds that change: what they are worth, who can play them, and who cannot cheat."

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_lit.engine.assistants import CHEATS, SilentPolicy, TaskOracle
from toolrl_lit.engine.sandbox import shared
from toolrl_lit.engine.user import STOP, Fact, PolicyUser, Request, Script, ScriptedUser
from toolrl_lit.engine.writes import Change, Runs, changes, forbids, run_many, without
from toolrl_lit.schema import ToolCall, UserError
from toolrl_lit.tasks import (
    Standing,
    TaskGenerator,
    check_tasks,
    make_task,
    play,
    play_many,
    score_end,
    score_writes,
)

SPLITS = ("train", "validation", "test")
N = 12


@pytest.fixture(scope="module")
def tasks():
    return [t for split in SPLITS for t in TaskGenerator().make(range(N), split)]


def after(task, *sequences):
    "Return the databases after sequences of calls."
    [ran] = run_many([Runs(task.codes(), task.tables, [list(s) for s in sequences])])
    return [r.tables for r in ran]


def reaches(task, tables):
    found = changes(task.tables, tables)
    return not without(task.goal, found) and not without(found, task.goal)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 40), split=st.sampled_from(SPLITS))
def test_golden_actions_reach_the_goal_and_no_fewer(seed, split):
    task = make_task(seed, split)
    golden = task.golden()
    assert 1 <= len(golden) <= 8
    writes = [i for i, c in enumerate(golden) if c.name in task.writing]
    assert len(writes) == len(task.goal)
    short = [golden[:i] + golden[i + 1 :] for i in writes]
    full, nothing, *rest = after(task, golden, [], *short)
    assert reaches(task, full)
    assert reaches(task, nothing) == (not writes)
    assert not any(reaches(task, tables) for tables in rest)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 40), order=st.randoms(use_true_random=False))
def test_requests_commute(seed, order):
    task = make_task(seed)
    steps = [[*s.lookups, *([s.write] if s.goal else [])] for s in task.steps]
    order.shuffle(steps)
    assert reaches(task, *after(task, [c for s in steps for c in s]))


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1 << 40), beside=st.sampled_from((0.0, 0.3, 1.0)))
def test_the_user_answers_all_that_the_oracle_asks(seed, beside):
    task = make_task(seed, "test")
    played = play(TaskOracle([task]), task, users=ScriptedUser(beside), max_turns=80)
    assert played.trajectory.stop == "answer" and played.passed and played.score == 1.0


def test_no_cheat_beats_the_oracle(tasks):
    oracle = play_many(TaskOracle(tasks), tasks)
    assert all(p.passed and p.score == 1.0 for p in oracle)
    cheats = {name: play_many(cheat(tasks), tasks) for name, cheat in CHEATS.items()}
    cheats["nothing"] = play_many(SilentPolicy(), tasks)
    for name, played in cheats.items():
        better = [p.task.id for p, o in zip(played, oracle) if p.reward > o.reward + 1e-9]
        assert not better, (name, better)
    assert not any(p.reward or p.passed for p in cheats["nothing"])
    assert sum(p.score for p in cheats["cancels everything"]) < 0
    breaking = [p for p in cheats["breaks rules"] if any(not s.goal for s in p.task.steps)]
    assert breaking and not any(p.passed for p in breaking)


def test_tasks_are_the_same_for_the_same_seed_whatever_is_made_beside_them(tasks):
    alone = TaskGenerator().make([5, 3], "train")
    assert [t.model_dump_json() for t in alone] == [tasks[i].model_dump_json() for i in (5, 3)]


def test_splits_share_no_tool_name_and_no_sentence(tasks):
    by = {s: [t for t in tasks if t.split == s] for s in SPLITS}
    names = {s: {x.name for t in some for x in t.tools} for s, some in by.items()}
    lines = {s: {r.opening for t in some for r in t.script.requests} for s, some in by.items()}
    for a, b in (SPLITS[:2], SPLITS[1:], (SPLITS[0], SPLITS[2])):
        assert not names[a] & names[b] and not lines[a] & lines[b]


def test_a_session_gives_what_the_batch_gives(tasks):
    for task in tasks[:4]:
        calls = task.golden() + [s.write for s in task.steps] + [ToolCall(name="no_such_tool")]
        [[ran]] = run_many([Runs(task.codes(), task.tables, [calls])])
        codes = task.codes()
        with shared().session(task.tables) as session:
            texts = [session.call(c.name, c.arguments, codes.get(c.name)).text for c in calls]
            assert texts == [r.text for r in ran.results]
            assert session.state() == ran.tables


def test_a_group_starts_from_one_state_and_leaves_it(tasks):
    task = next(t for t in tasks if t.goal)
    before = json.dumps(task.tables)
    played = play_many(TaskOracle([task]), [task], samples=3)
    assert [p.trajectory.sample for p in played] == [0, 1, 2]
    assert all(p.passed for p in played) and json.dumps(task.tables) == before


def test_errors_name_the_value_and_leave_the_database(tasks):
    task = next(t for t in tasks if any(s.goal and s.goal.row for s in t.steps))
    step = next(s for s in task.steps if s.goal and s.goal.row)
    key = next(iter(step.write.arguments))
    wrong = [ToolCall(name=step.write.name, arguments=step.write.arguments | {key: "XX-1"})]
    wrong += [
        ToolCall(name=step.write.name, arguments=step.write.arguments | {k: ["odd"]})
        for k in step.write.arguments
    ]
    [[ran]] = run_many([Runs(task.codes(), task.tables, [wrong])])
    assert "'XX-1'" in ran.results[0].text and all("['odd']" in r.text for r in ran.results[1:])
    assert not any(r.ok for r in ran.results) and ran.tables == task.tables


def test_guarded_rules_refuse_what_they_forbid_and_others_do_not(tasks):
    refused = [(t, s) for t in tasks for s in t.steps if not s.goal]
    assert refused
    for task, step in refused:
        [[ran]] = run_many([Runs(task.codes(), task.tables, [[step.write]])])
        guarded = [r.text for r in task.rules if r.guarded]
        done = changes(task.tables, ran.tables)
        assert len(done) == ran.results[0].ok
        if not done:
            assert any(text in ran.results[0].text for text in guarded)


def test_rewards_of_turns_by_hand():
    task = next(t for t in TaskGenerator().make(range(20)) if len(t.goal) == 1 and t.goal[0].row)
    goal, rows = task.goal[0], task.tables[task.table]
    start = Standing(task.tables)
    [right] = after(task, task.golden())
    assert score_writes(task, start, right, 1)[0] == 1.0
    assert score_writes(task, start, right, 3)[0] == 0.5
    _, there = score_writes(task, start, right, 1)
    reward, back = score_writes(task, there, task.tables, 1)
    assert reward == 0 and score_writes(task, back, right, 1)[0] == 0
    other = next(k for k in rows if k != goal.key)
    harmed = task.tables | {task.table: {k: r for k, r in rows.items() if k != other}}
    reward, hurt = score_writes(task, start, harmed, 1)
    assert reward == -1.0
    assert score_writes(task, hurt, task.tables, 1)[0] == 0
    assert score_end(task, start, task.says) == 0
    assert score_end(task, there, task.says) == 1


def test_a_created_row_is_compared_without_its_id():
    before = {"t": {"A-1": {"id": "A-1", "x": 1}}}
    after = {"t": {"A-1": {"id": "A-1", "x": 1}, "A-9": {"id": "A-9", "x": 2}}}
    assert changes(before, after) == [Change(table="t", key="new", row={"x": 2})]
    twice = [Change(table="t", key="new", row={"x": 2})] * 2
    assert without(twice, changes(before, after)) == twice[:1]


def test_checks_find_what_is_spoiled(tasks):
    task = next(t for t in tasks if t.goal and t.says)
    code = task.says[-1]
    told = task.model_copy(update={"policy": f"{task.policy} {code}"})
    idle = task.steps[0].model_copy(update={"lookups": task.steps[0].lookups * 2})
    assert check_tasks([task]) == [[]]
    assert "what has to be found is given away" in check_tasks([told])[0]
    more = task.model_copy(update={"steps": [idle, *task.steps[1:]]})
    assert "a look-up is not needed" in check_tasks([more])[0]
    with pytest.raises(UserError, match="expected one of train"):
        TaskGenerator().make([1], "dev")


def test_the_user_is_a_function_of_script_and_conversation():
    facts = [
        Fact(noun="id", words=["id"], value="LN-2", first="LN-3", misread=True),
        Fact(noun="due date", words=["date"], value="3 May 2031", first="1 May 2031"),
    ]
    script = Script(requests=[Request(opening="Move it.", facts=facts)], split="test", seed=3)
    user, messages = ScriptedUser(0.0), []
    heard = []
    for line in (
        "The id?",
        "The id, again?",
        "The date?",
        "Shall I go ahead?",
        "Go ahead?",
        "Done.",
    ):
        messages.append({"role": "assistant", "content": line})
        heard += user.replies([(script, messages)])
        assert user.replies([(script, messages)]) == heard[-1:]
    for text, value in zip(heard, ("LN-3", "LN-2", "1 May 2031", "3 May 2031", "Yes")):
        assert value in text
    assert heard[-1] == STOP


def test_a_policy_can_play_the_user(tasks):
    class Scripted:
        "A policy that reads its instruction, and then says what a scripted user would."

        def __init__(self, task):
            self.task, self.user = task, ScriptedUser(0.0)

        def generate(self, prompts, *, temperature, max_new_tokens, seed):
            back = {"assistant": "user", "user": "assistant"}
            found = []
            for messages, tools in prompts:
                assert self.task.script.requests[0].opening in messages[0]["content"] and not tools
                seen = [{"role": back[m["role"]], "content": m["content"]} for m in messages[2:]]
                found += self.user.replies([(self.task.script, seen)])
            return found

    task = tasks[0]
    played = play(TaskOracle([task]), task, users=PolicyUser(Scripted(task)))
    assert played.passed


def test_forbids_agrees_with_random_tools(tasks):
    "What a guarded tool refuses, a rule forbids, on every row of the table."
    for task in tasks[::5]:
        rows, codes = task.tables[task.table], task.codes()
        document = {t.name: t.doc for t in task.tools}
        cancel = next(n for n in task.writing if len(document[n].parameters["properties"]) == 1)
        [key] = document[cancel].parameters["properties"]
        calls = [[ToolCall(name=cancel, arguments={key: k})] for k in rows]
        [ran] = run_many([Runs(codes, task.tables, calls)])
        guarded = [r for r in task.rules if r.guarded]
        for row, r in zip(rows.values(), ran):
            assert r.results[0].ok != any(forbids(x, row, None, rows) for x in guarded)


def test_odd_turns_end_or_cost(tasks):
    class Odd:
        parser = "qwen"

        def generate(self, prompts, **_):
            return [random.Random(len(m)).choice(["<tool_call>{", ""]) for m, _ in prompts]

    for played in play_many(Odd(), tasks[:6], max_turns=5):
        assert played.reward < 0 and {t.case for t in played.trajectory.turns} <= {
            "empty",
            "malformed",
            "answer",
        }
