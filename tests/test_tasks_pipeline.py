"Tasks go through every command that questions go through: the state and the user with them."

import asyncio
import json

import datasets
import pytest
import torch
from conftest import save
from loans import loan_task
from trained import small_config

from toolrl_lit.build import build_environments
from toolrl_lit.collect import CHAT_TEMPLATE, OraclePolicy, TransformersPolicy, call_text, collect
from toolrl_lit.doors.export import step_records, to_ftrl_jsonl, to_hf_dataset, to_verl
from toolrl_lit.doors.serve import ClientSession, mcp_server
from toolrl_lit.engine.assistants import SilentPolicy
from toolrl_lit.engine.talks import Talk, Talks, between
from toolrl_lit.engine.user import LEFT, TELL, PolicyUser, ScriptedUser
from toolrl_lit.episode import trl_environment
from toolrl_lit.evaluate import Evaluation, evaluate, score
from toolrl_lit.reward import score_batch, score_turn
from toolrl_lit.schema import (
    Environment,
    StepRecord,
    ToolCall,
    Trajectory,
    UserError,
    read_jsonl,
    write_jsonl,
)
from toolrl_lit.tasks import TaskGenerator
from toolrl_lit.train import train


@pytest.fixture(scope="module")
def loans():
    return [loan_task(n) for n in range(4)]


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    build_environments(
        TaskGenerator(), 20, seed=3, scenarios=("task",), split="test", out=path, progress=False
    )
    return path


def test_twenty_tasks_by_the_command_line(toolrl, tmp_path, twenty):
    out, again = tmp_path / "tasks.jsonl", tmp_path / "again"
    made = toolrl(
        "build", "--generator", "tasks", "-n", 20, "--seed", 3, "--split", "test", "-o", out
    )
    assert made.code == 0 and "20 environments" in made.out
    assert out.read_bytes() == twenty.read_bytes()
    build_environments(
        TaskGenerator(), 20, 3, ("task",), again, split="test", progress=False, workers=2
    )
    assert b"".join(p.read_bytes() for p in sorted(again.glob("*.jsonl"))) == out.read_bytes()
    envs = read_jsonl(out, Environment)
    assert len({e.question for e in envs}) == 20 and all(e.task for e in envs)
    assert [e.model_dump_json() for e in envs] == [
        Environment.model_validate_json(e.model_dump_json()).model_dump_json() for e in envs
    ]
    for words, said in (
        (["-p", "hops=[2,3]"], "takes no parameters"),
        (["-m", "some-model"], "needs --generator llm"),
    ):
        wrong = toolrl("build", "--generator", "tasks", "-n", 2, "-o", tmp_path / "a.jsonl", *words)
        assert wrong.code == 2 and said in wrong.err


def test_the_oracle_gets_everything_and_doing_nothing_nothing(toolrl, tmp_path, twenty):
    out = tmp_path / "oracle.json"
    done = toolrl("evaluate", "-e", twenty, "-m", "oracle", "-o", out)
    assert done.code == 0, done.err
    rows = Evaluation.load(out).rows
    assert len(rows) == 20 and all(r.answered and r.solve_f1 == 1.0 == r.solve_r for r in rows)
    assert {r.kind for r in rows} == {"task"}
    envs = read_jsonl(twenty, Environment)
    nothing = evaluate(SilentPolicy(), envs).rows
    assert not any(r.answered or r.solve_f1 for r in nothing)


def test_audit_examines_tasks_and_finds_what_is_spoiled(toolrl, tmp_path, twenty):
    fine = toolrl("audit", twenty, "-o", tmp_path / "fine.html")
    assert fine.code == 0, fine.out
    assert "examination of stage 5 failed: 0 of 20" in fine.out and "task: 20 of 20" in fine.out
    # facts that the user tells later are not said
    assert "wording against a rule: 0 of 20" in fine.out
    envs = read_jsonl(twenty, Environment)
    spoiled = next(e for e in envs if e.task.says)
    told = spoiled.task.model_copy(
        update={"policy": f"{spoiled.task.policy} {spoiled.task.says[-1]}"}
    )
    path = write_jsonl(tmp_path / "spoiled.jsonl", [spoiled.model_copy(update={"task": told})])
    done = toolrl("audit", path, "-o", tmp_path / "spoiled.html")
    assert done.code == 1 and "what has to be found is given away" in done.out


def test_show_tells_what_the_user_wants_and_says(toolrl, tmp_path, twenty):
    env = read_jsonl(twenty, Environment)[0]
    shown = toolrl("show", twenty, "--index", 0).out
    for heading in ("Policy", "What the user wants", "What has to be different", "Golden actions"):
        assert heading in shown
    played = tmp_path / "played.jsonl"
    collect(OraclePolicy([env]), [env], temperature=0, out=played)
    told = toolrl("show", played, "-e", twenty).out
    assert "The user: " in told and "What is different" in told and "the user was done" in told


def test_the_packaged_model_plays_tasks(loans, tmp_path):
    policy = TransformersPolicy("smollm2-warm", batch=4)
    how = dict(max_turns=3, max_new_tokens=24, temperature=0)
    played = collect(policy, loans[:2], out=tmp_path / "played.jsonl", **how)
    assert read_jsonl(tmp_path / "played.jsonl", Trajectory) == played
    for t, env in zip(played, loans):
        assert t.kind == "task" and t.messages[0]["content"] == env.task.policy
        assert [turn.standing is not None for turn in t.turns] == [True] * len(t.turns)


def test_a_rollout_goes_on_from_any_turn_without_its_calls(loans, tmp_path):
    env = loans[0]
    [whole] = collect(OraclePolicy([env]), [env], temperature=0)
    steps = list(whole.step_records(env))
    assert [s.turn for s in steps] == list(range(len(whole.turns)))
    assert steps[-1].standing == whole.turns[-2].standing and steps[-1].standing.best == 1
    for step in steps:
        kept = StepRecord.model_validate_json(step.model_dump_json(exclude_defaults=True))
        assert kept == step
        [rest] = collect(OraclePolicy([env]), [kept], temperature=0)
        assert rest.messages == whole.messages
        assert [t.reward for t in rest.turns] == [t.reward for t in whole.turns[step.turn :]]


def test_an_interrupted_collection_of_tasks_goes_on_to_the_same(loans, tmp_path):
    class Dying(OraclePolicy):
        left = 5

        def generate(self, prompts, **how):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().generate(prompts, **how)

    whole = collect(OraclePolicy(loans), loans, temperature=0, batch=1)
    out, dying = tmp_path / "out.jsonl", Dying(loans)
    dying.fingerprint = "oracle"
    with pytest.raises(KeyboardInterrupt):
        collect(dying, loans, temperature=0, batch=1, out=out)
    dying.left = 1000
    assert collect(dying, loans, temperature=0, batch=1, out=out) == whole
    with pytest.raises(UserError, match="users"):
        collect(dying, loans, temperature=0, batch=1, out=out, users=PolicyUser(dying))


def test_questions_and_tasks_go_together(environments, loans):
    both = [environments[0], loans[0], environments[1], loans[1]]
    played = collect(OraclePolicy(both), both, temperature=0)
    assert [t.kind == "task" for t in played] == [False, True, False, True]
    assert all(score(t).answered and score(t).solve_f1 == 1 for t in played)
    turns = [(t.turns[0].text, e) for t, e in zip(played, both)]
    alone = [score_batch([turn])[0] for turn in turns]
    assert [s.reward for s in score_batch(turns)] == [s.reward for s in alone]
    with pytest.raises(UserError, match="rewarded by 'f1' alone"):
        score_turn("Hello?", loans[0], kind="p")


# -- export


def golden_steps(env):
    "The oracle's turns, each with the step record where it was written."
    [played] = collect(OraclePolicy([env]), [env], temperature=0)
    return played, step_records([played], [env])


def test_a_golden_rollout_is_replayed_through_verl(loans, tmp_path):
    played, steps = golden_steps(loans[0])
    to_verl(steps, tmp_path)
    table = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"))
    scope = {}
    exec((tmp_path / "reward.py").read_text(), scope)
    assert len(table) == len(played.turns)
    for row, turn in zip(table, played.turns):
        truth = row["reward_model"]["ground_truth"]
        scored = scope["compute_score"]("toolrl_lit", turn.text, truth)
        assert scored["score"] == turn.reward and scored["calls"] == len(turn.calls)
        assert row["prompt"][0]["content"].startswith(loans[0].task.policy)


def test_a_golden_rollout_is_replayed_through_hugging_face(loans, tmp_path):
    played, steps = golden_steps(loans[1])
    to_hf_dataset(steps).save_to_disk(tmp_path / "hf")
    again = [
        StepRecord.model_validate_json(row["record"])
        for row in datasets.load_from_disk(str(tmp_path / "hf"))
    ]
    assert again == steps
    assert [score_turn(t.text, s).reward for s, t in zip(again, played.turns)] == [
        t.reward for t in played.turns
    ]


def test_the_authors_format_refuses_tasks(toolrl, twenty, tmp_path):
    done = toolrl("export", "ftrl", "-e", twenty, "-o", tmp_path / "records.jsonl")
    assert done.code == 2 and "has no place for a database and a user" in done.err
    with pytest.raises(UserError, match="no place"):
        to_ftrl_jsonl(read_jsonl(twenty, Environment), tmp_path / "records.jsonl")


def test_a_golden_rollout_is_replayed_through_trl(loans):
    env = loans[2]
    factories, rows = trl_environment([env])
    here = factories[env.id]()
    assert [m["role"] for m in rows[0]["prompt"]] == ["system", "user"]
    assert "LN-3" in here.tell_user(message="What is its id?")
    assert "error" in here.get_loan(loan="LN-3")
    assert "LN-2" in here.tell_user(message="Could you look at the id again?")
    assert "B22" in here.get_loan(loan="LN-2") and "back" in here.return_loan(loan="LN-2")
    assert here.get_reward() == 0.5
    assert here.tell_user(message="It is done. Shelf B22.") == LEFT
    assert here.get_reward() == 1.0 and here.return_loan(loan="LN-1") == LEFT
    here.reset()
    assert here.get_reward() == 0 and "out" in here.get_loan(loan="LN-2")


# -- serve


def test_each_client_of_a_task_has_a_state_of_its_own(loans):
    mcp = pytest.importorskip("mcp")
    env = loans[3]
    here, other = ClientSession(env), ClientSession(env)

    async def play():
        async with mcp.Client(mcp_server(env, lambda ctx: here)) as client:
            tools = [t.name for t in (await client.list_tools()).tools]
            asked = (await client.get_prompt("question")).messages[0].content.text
            texts = []
            for name, arguments in (
                (TELL.name, {"message": "The id?"}),
                (TELL.name, {"message": "Please look at the id again?"}),
                ("get_loan", {"loan": "LN-2"}),
                ("return_loan", {"loan": "LN-2"}),
                (TELL.name, {"message": "It is done: shelf B23."}),
                ("get_loan", {"loan": "LN-1"}),
            ):
                result = await client.call_tool(name, arguments)
                texts.append((result.content[0].text, result.is_error))
        return tools, asked, texts

    tools, asked, texts = asyncio.run(play())
    assert tools == ["get_loan", "return_loan", TELL.name]
    assert env.task.policy in asked and env.task.opening in asked
    assert "LN-3" in texts[0][0] and "LN-2" in texts[1][0] and '"back"' in texts[3][0]
    assert texts[4] == (LEFT, False) and texts[5][1] and LEFT in texts[5][0]
    made = score(here.trajectory)
    assert made.answered and made.solve_f1 == 1.0
    assert other.step.standing.rows == {} and other.call("get_loan", {"loan": "LN-2"}).ok
    steps = list(here.trajectory.step_records(env))
    assert steps[-1].standing.best == 1
    with pytest.raises(UserError, match="brings its own database"):
        ClientSession(env, data={})


# -- training


@pytest.fixture(scope="module")
def tiny(loans, tmp_path_factory):
    "A tiny model whose likely turns are those of the smallest task."
    said = [
        call_text([ToolCall(name=name, arguments={"loan": key})])
        for name in ("get_loan", "return_loan")
        for key in ("LN-1", "LN-2")
    ]
    said += ["What is the id?", "It is done. Shelf B20."]
    return save(loans, tmp_path_factory.mktemp("tiny") / "model", CHAT_TEMPLATE, said)


def config_for(folder, out, **changes):
    own = dict(
        epochs=1,
        micro_prompts=1,
        oversample=1,
        environments=4,
        max_turns=3,
        max_episode_tokens=400,
        save_updates=2,
        warm_steps=0,
    )
    return small_config(folder, out, **own | changes)


@pytest.mark.parametrize("credit", ["step", "episode", "turn"])
def test_two_updates_on_tasks_change_the_weights(tiny, loans, tmp_path, credit):
    folder = train(config_for(tiny, tmp_path, credit=credit), loans)
    before, after = (TransformersPolicy(f).model for f in (tiny, folder))
    pairs = zip(before.parameters(), after.parameters())
    assert any(not torch.equal(a, b) for a, b in pairs)
    [state] = (tmp_path / "rl").glob("checkpoint-2/trainer_state.json")
    logs = json.loads(state.read_text())["log_history"]
    updates = [x for x in logs if "mean_reward" in x or "rewards/conversation/mean" in x]
    assert len(updates) == 2 and all(x["reward_std"] >= 0 for x in updates)
    assert all(0 <= x["solve_recall"] <= 1 for x in updates)
    collect(TransformersPolicy(folder), loans[:1], max_turns=2, max_new_tokens=6)


def test_conversations_are_played_as_collect_plays_them(tiny, loans):
    policy = TransformersPolicy(tiny)
    [whole] = collect(OraclePolicy(loans), loans[:1], temperature=0, users=ScriptedUser(0.0))
    config = config_for(tiny, "x", credit="episode", max_turns=20, max_episode_tokens=2000)
    talks = Talks(config, policy, None, {}, score_batch)
    talk = Talk.of(loans[0], policy)
    end = policy.tokenizer.eos_token_id
    for turn in whole.turns:
        [scored] = score_batch([(turn.text, talk.step)], users=ScriptedUser(0.0))
        talks.take(talk, [*policy.ids(turn.text), end], None, turn.text, scored)
    assert talk.trajectory.messages == whole.messages and not talk.open and talk.earned() == 1.0
    shown = policy.tokenizer.decode(talk.prompt + talk.ids)
    assert shown == policy.text(whole.messages, loans[0].documents(), asks=False).rstrip("\n")
    wrote = policy.tokenizer.decode([i for i, m in zip(talk.ids, talk.mask) if m])
    assert wrote == "".join(t.text + "<|im_end|>" for t in whole.turns)


def test_a_turn_that_was_cut_is_ended_before_the_answer(tiny):
    policy = TransformersPolicy(tiny)
    said = [{"role": "user", "content": "Yes."}]
    whole, cut = between(policy, said), between(policy, said, ended=False)
    assert cut == [policy.tokenizer.eos_token_id, *whole]
    assert policy.tokenizer.decode(cut).startswith("<|im_end|>\n<|im_start|>user\nYes.")


def test_questions_among_tasks_are_refused_where_episodes_are_played(
    tiny, loans, environments, tmp_path
):
    config = config_for(tiny, tmp_path, credit="episode")
    with pytest.raises(UserError, match="train on one kind at a time, or set credit=step"):
        train(config, [*loans, environments[0]])
