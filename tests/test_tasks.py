"Tasks over worlds that change: what they are worth, who can play them, and who cannot cheat."

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_lit.collect import OraclePolicy, collect
from toolrl_lit.engine.assistants import CHEATS, SilentPolicy, TaskOracle
from toolrl_lit.engine.goals import Change, Fact, Request, Script, Standing, differing
from toolrl_lit.engine.sandbox import ToolSandbox, shared
from toolrl_lit.engine.soundness import check_tasks
from toolrl_lit.engine.user import STOP, PolicyUser, ScriptedUser
from toolrl_lit.engine.writes import Runs, changes, forbids, reached, run_many, without
from toolrl_lit.evaluate import score
from toolrl_lit.schema import ToolCall, UserError
from toolrl_lit.tasks import TaskGenerator, make_task, score_end, score_writes

SPLITS = ("train", "validation", "test")
N = 12


@pytest.fixture(scope="module")
def tasks():
    return [t for split in SPLITS for t in TaskGenerator().make(range(N), split)]


def after(env, *sequences):
    "Return the databases after sequences of calls."
    [ran] = run_many([Runs(env.codes(), env.task.tables, [list(s) for s in sequences])])
    return [r.tables for r in ran]


def play(policy, environments, **how):
    "Return greedy conversations about tasks."
    return collect(policy, environments, **{"temperature": 0, "max_turns": 40, **how})


def passed(trajectory):
    return score(trajectory).answered


def earned(trajectory):
    return sum(t.reward for t in trajectory.turns)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 40), split=st.sampled_from(SPLITS))
def test_golden_actions_reach_the_goal_and_no_fewer(seed, split):
    env = make_task(seed, split)
    task, golden = env.task, env.task.golden()
    assert 1 <= len(golden) <= 8
    writes = [i for i, c in enumerate(golden) if c.name in task.writing]
    assert len(writes) == len(task.goal)
    short = [golden[:i] + golden[i + 1 :] for i in writes]
    full, nothing, *rest = after(env, golden, [], *short)
    assert reached(task, full)
    assert reached(task, nothing) == (not writes)
    assert not any(reached(task, tables) for tables in rest)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 40), order=st.randoms(use_true_random=False))
def test_requests_commute(seed, order):
    env = make_task(seed)
    steps = [s.golden() for s in env.task.steps]
    order.shuffle(steps)
    assert reached(env.task, *after(env, [c for s in steps for c in s]))


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1 << 40), beside=st.sampled_from((0.0, 0.3, 1.0)))
def test_the_user_answers_all_that_the_oracle_asks(seed, beside):
    env = make_task(seed, "test")
    [played] = play(OraclePolicy([env]), [env], users=ScriptedUser(beside), max_turns=80)
    assert played.stop == "answer" and passed(played)
    assert earned(played) == len(env.task.goal) + 1


def test_no_cheat_beats_the_oracle(tasks):
    oracle = play(TaskOracle(tasks), tasks)
    assert all(earned(t) == len(e.task.goal) + 1 and passed(t) for t, e in zip(oracle, tasks))
    assert all(score(t).solve_f1 == 1 for t in oracle)
    cheats = {name: play(cheat(tasks), tasks) for name, cheat in CHEATS.items()}
    cheats["nothing"] = play(SilentPolicy(), tasks)
    for name, played in cheats.items():
        better = [p.environment for p, o in zip(played, oracle) if earned(p) > earned(o) + 1e-9]
        assert not better, (name, better)
    assert not any(earned(p) or passed(p) or score(p).solve_f1 for p in cheats["nothing"])
    assert sum(map(earned, cheats["cancels everything"])) < 0
    forbidden = [any(not s.goal for s in e.task.steps) for e in tasks]
    breaking = [p for p, some in zip(cheats["breaks rules"], forbidden) if some]
    assert breaking and not any(map(passed, breaking))


def test_tasks_are_the_same_for_the_same_seed_whatever_is_made_beside_them(tasks):
    alone = TaskGenerator().make([5, 3], "train")
    assert [t.model_dump_json() for t in alone] == [tasks[i].model_dump_json() for i in (5, 3)]


def test_splits_share_no_tool_name_and_no_sentence(tasks):
    by = {s: [t for t in tasks if t.split == s] for s in SPLITS}
    names = {s: {x.name for t in some for x in t.tools} for s, some in by.items()}
    lines = {s: {r.opening for t in some for r in t.task.script.requests} for s, some in by.items()}
    for a, b in (SPLITS[:2], SPLITS[1:], (SPLITS[0], SPLITS[2])):
        assert not names[a] & names[b] and not lines[a] & lines[b]


def test_monty_knows_all_that_tools_of_tasks_say(tasks):
    "Where it does not, CPython runs the calls, each message in a process of its own: ten times slower."
    codes = {(name, code) for t in tasks for name, code in t.codes().items()}
    with ToolSandbox(workers=2, engine="monty") as box:
        said = box.call_many([(name, {}, code) for name, code in codes])
    assert len(codes) > 100 and not [r.text for r in said if "monty" in r.text.lower()]


def test_a_session_gives_what_the_batch_gives(tasks):
    for env in tasks[:4]:
        task, codes = env.task, env.codes()
        calls = task.golden() + [s.write for s in task.steps] + [ToolCall(name="no_such_tool")]
        [[ran]] = run_many([Runs(codes, task.tables, [calls])])
        with shared().session(task.tables) as session:
            texts = [session.call(c.name, c.arguments, codes.get(c.name)).text for c in calls]
            assert texts == [r.text for r in ran.results]
            assert session.state() == ran.tables


def test_a_group_starts_from_one_state_and_leaves_it(tasks):
    env = next(e for e in tasks if e.task.goal)
    before = json.dumps(env.task.tables)
    played = play(TaskOracle([env]), [env], samples=3)
    assert [p.sample for p in played] == [0, 1, 2]
    assert all(map(passed, played)) and json.dumps(env.task.tables) == before


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 40), split=st.sampled_from(SPLITS))
def test_what_differs_laid_over_the_beginning_is_the_state(seed, split):
    env = make_task(seed, split)
    writes = [s.write for s in env.task.steps]
    tables = env.task.tables
    cancel = env.task.writing[-1]
    more = [
        ToolCall(name=cancel, arguments={required_of(env, cancel)[0]: k})
        for k in list(tables[env.task.table])[:2]
    ]
    for state in after(env, env.task.golden(), writes, more):
        standing = Standing(rows=differing(tables, state))
        assert standing.tables(env.task) == state
        assert [list(rows) for rows in standing.tables(env.task).values()] == [
            list(rows) for rows in state.values()
        ]


def required_of(env, name):
    return next(t for t in env.tools if t.name == name).doc.parameters["required"]


def test_errors_name_the_value_and_leave_the_database(tasks):
    env = next(e for e in tasks if any(s.goal and s.goal.row for s in e.task.steps))
    step = next(s for s in env.task.steps if s.goal and s.goal.row)
    key = next(iter(step.write.arguments))
    wrong = [ToolCall(name=step.write.name, arguments=step.write.arguments | {key: "XX-1"})]
    wrong += [
        ToolCall(name=step.write.name, arguments=step.write.arguments | {k: ["odd"]})
        for k in step.write.arguments
    ]
    [[ran]] = run_many([Runs(env.codes(), env.task.tables, [wrong])])
    assert "'XX-1'" in ran.results[0].text and all("['odd']" in r.text for r in ran.results[1:])
    assert not any(r.ok for r in ran.results) and ran.tables == env.task.tables


def test_guarded_rules_refuse_what_they_forbid_and_others_do_not(tasks):
    refused = [(e, s) for e in tasks for s in e.task.steps if not s.goal]
    assert refused
    for env, step in refused:
        [[ran]] = run_many([Runs(env.codes(), env.task.tables, [[step.write]])])
        guarded = [r.text for r in env.task.rules if r.guarded]
        done = changes(env.task.tables, ran.tables)
        assert len(done) == ran.results[0].ok
        if not done:
            assert any(text in ran.results[0].text for text in guarded)


def test_rewards_of_turns_by_hand():
    made = TaskGenerator().make(range(20))
    env = next(e for e in made if len(e.task.goal) == 1 and e.task.goal[0].row)
    task, start = env.task, Standing()
    goal, rows = task.goal[0], task.tables[task.table]
    [right] = after(env, task.golden())
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
    env = next(e for e in tasks if e.task.goal and e.task.says)
    task, first = env.task, env.task.steps[0]

    def faults(**update):
        return check_tasks([env.model_copy(update={"task": task.model_copy(update=update)})])[0]

    assert check_tasks([env]) == [[]]
    assert "what has to be found is given away" in faults(policy=f"{task.policy} {task.says[-1]}")
    idle = first.model_copy(update={"lookups": first.lookups * 2})
    assert "a look-up is not needed" in faults(steps=[idle, *task.steps[1:]])
    deaf = first.request.model_copy(
        update={"facts": [f.model_copy(update={"words": ["?"]}) for f in first.request.facts]}
    )
    unheard = first.model_copy(update={"request": deaf})
    told = faults(steps=[unheard, *task.steps[1:]])
    assert "the user does not understand a question for a fact" in told
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
    env = tasks[0]
    script = env.task.script

    class Scripted:
        "A policy that reads its instruction, and then says what a scripted user would."

        user = ScriptedUser(0.0)

        def generate(self, prompts, *, temperature, max_new_tokens, seed):
            back = {"assistant": "user", "user": "assistant"}
            found = []
            for messages, tools in prompts:
                assert script.requests[0].opening in messages[0]["content"] and not tools
                seen = [{"role": back[m["role"]], "content": m["content"]} for m in messages[2:]]
                found += self.user.replies([(script, seen)])
            return found

    [played] = play(TaskOracle([env]), [env], users=PolicyUser(Scripted()))
    assert passed(played)


def test_forbids_agrees_with_random_tools(tasks):
    "What a guarded tool refuses, a rule forbids, on every row of the table."
    for env in tasks[::5]:
        task, codes = env.task, env.codes()
        rows = task.tables[task.table]
        cancel = task.writing[-1]
        [key] = required_of(env, cancel)
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

    for played in play(Odd(), tasks[:6], max_turns=5):
        assert earned(played) < 0
        assert {t.case for t in played.turns} <= {"empty", "malformed"}
