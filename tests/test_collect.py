"Collect: rollouts that can be resumed, and generation that says what transformers says, only sooner."

import errno
import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

import apart
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from toolrl_lit import collect as module
from toolrl_lit.collect import OraclePolicy, TransformersPolicy, call_text, collect, wrong_calls
from toolrl_lit.doors.export import plain_messages, step_records
from toolrl_lit.engine import generate as generation
from toolrl_lit.engine.attention import Prompts
from toolrl_lit.engine.conversations import plain_history
from toolrl_lit.engine.demo import demo_environment
from toolrl_lit.engine.generate import PrefixMemory, generate_tokens, prefill
from toolrl_lit.engine.models import (
    fast_dtype,
    find_model,
    load_model,
    packaged_model,
    packaged_warm_model,
    save_model,
)
from toolrl_lit.engine.resume import under_way
from toolrl_lit.evaluate import evaluate
from toolrl_lit.reward import parse_qwen
from toolrl_lit.schema import (
    Environment,
    Scenario,
    SubQuestion,
    Tool,
    ToolDoc,
    Trajectory,
    UserError,
    read_jsonl,
    write_text,
)


@pytest.fixture(scope="module")
def llama(small_llama):
    model = small_llama()
    model.set_attn_implementation("grouped")
    return model


@pytest.fixture()
def policy(tiny_folder):
    return TransformersPolicy(tiny_folder)


def generate(model, prompts, **changes):
    return generate_tokens(
        model, prompts, **dict(max_new_tokens=7, temperature=0, seed=0, stop={0}, pad=0) | changes
    )


prompt_lists = st.lists(
    st.lists(st.integers(1, 60), min_size=1, max_size=9), min_size=1, max_size=6
)
few = settings(max_examples=12, deadline=None)

# -- generation


@few
@given(prompt_lists)
def test_greedy_rows_are_those_of_generate(llama, prompts):
    for p, row in zip(prompts, generate(llama, prompts)):
        ids = torch.tensor([p])
        theirs = llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=7,
            do_sample=False,
            eos_token_id=0,
            pad_token_id=0,
        )
        assert theirs[0, len(p) :].tolist() == row


@few
@given(prompt_lists, st.integers(1, 5), st.integers(0, 9))
def test_a_sampled_row_does_not_depend_on_its_batch(llama, prompts, batch, seed):
    prompts = prompts + prompts[:1]  # a prompt asked for twice is sampled twice
    together = generate(llama, prompts, temperature=1.0, seed=seed)
    assert generate(llama, prompts, temperature=1.0, seed=seed, batch=batch) == together


def test_copies_of_a_prompt_differ_and_a_seed_repeats_itself(llama):
    rows = generate(llama, [[5, 6, 7]] * 8, temperature=1.0)
    assert len({tuple(r) for r in rows}) > 1 and rows == generate(
        llama, [[5, 6, 7]] * 8, temperature=1.0
    )
    assert rows != generate(llama, [[5, 6, 7]] * 8, temperature=1.0, seed=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_tokens_have_the_model_s_probabilities_at_every_temperature(llama, temperature):
    n = 6000
    draws = torch.tensor(
        generate(
            llama, [[5, 6, 7]] * n, temperature=temperature, max_new_tokens=2, stop=set(), batch=n
        )
    )
    with torch.no_grad():
        logits = llama(torch.tensor([[5, 6, 7]])).logits[0, -1]
    share = lambda t: (logits / t).softmax(-1)
    away = lambda t: (
        (torch.bincount(draws[:, 0], minlength=61) / n - share(t)).abs().sum().item() / 2
    )
    assert away(temperature) < 0.06 and all(
        away(t) > 0.1 for t in (0.5, 1.0, 2.0) if t != temperature
    )
    second = draws[
        draws[:, 0] == draws[:, 0].mode().values, 1
    ]  # of one first token: what follows has probabilities of its own
    with torch.no_grad():
        then = (
            llama(torch.tensor([[5, 6, 7, draws[:, 0].mode().values]])).logits[0, -1] / temperature
        ).softmax(-1)
    assert (torch.bincount(second, minlength=61) / len(second) - then).abs().sum().item() / 2 < 0.15


def test_processes_that_share_the_work_draw_other_numbers(llama):
    whole = generate(llama, [[5, 6, 7]] * 8, temperature=1.0)
    assert whole == generate(llama, [[5, 6, 7]] * 3, temperature=1.0) + generate(
        llama, [[5, 6, 7]] * 5, temperature=1.0, first=3
    )


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 0.5, 1.0])
def test_weights_that_are_no_numbers_are_told(small_llama, broken, temperature):
    model = small_llama(seed=3, num_hidden_layers=1)
    prompts = [[1, 2, 3], [4], [5, 6, 7]]  # the last makes of an infinite weight a positive logit
    weights = [
        p
        for name, p in model.named_parameters()
        if name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    ]
    for p in weights:
        before = p.detach().clone()
        with torch.no_grad():
            p.flatten()[3] = broken
        with pytest.raises(UserError, match="logits are not finite"):
            generate(model, prompts, temperature=temperature)
        with torch.no_grad():
            p.copy_(before)
    generate(model, prompts, temperature=temperature)
    assert generation._sample(
        torch.tensor([[0.0, -torch.inf, 1.0]]), temperature, torch.tensor([0.99])
    ).tolist() == [2]  # a token that is ruled out


def test_a_row_ends_with_the_stop_token_or_is_full(llama):
    rows = generate(
        llama,
        [[i] for i in range(1, 40)],
        temperature=2.0,
        stop={0, 3, 9, 20, 30},
        max_new_tokens=9,
    )
    for row in rows:
        assert not {0, 3, 9, 20, 30} & set(row[:-1])
        assert row[-1] in {0, 3, 9, 20, 30} or len(row) == 9
    assert len({len(r) for r in rows}) > 2


@few
@given(prompt_lists, st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 8))
def test_what_is_remembered_does_not_change_what_is_said(llama, prompts, more, cut):
    memory = PrefixMemory(llama)
    first = generate(llama, prompts, memory=memory)
    asked = [
        (p + row)[: len(p) + cut] + more for p, row in zip(prompts, first)
    ]  # goes on, or turns off midway
    assert generate(llama, asked, memory=memory) == generate(llama, asked)


def test_the_memory_finds_the_longest_common_beginning(llama):
    memory = PrefixMemory(llama)
    generate(llama, [[1, 2, 3, 4], [1, 2, 9, 9], [7]], memory=memory, max_new_tokens=1)
    assert [
        memory.find(p)[0] for p in ([1, 2, 3, 4, 5], [1, 2, 3, 8], [1, 2, 9], [7, 7], [8], [])
    ] == [4, 3, 3, 1, 0, 0]


def test_the_memory_forgets_when_weights_change(llama):
    model = LlamaForCausalLM(llama.config).eval()
    model.set_attn_implementation("grouped")
    memory = PrefixMemory(model)
    generate(model, [[1, 2, 3, 4]], memory=memory)
    assert memory.find([1, 2, 3, 4])[0] == 4
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight.mul_(1.5)
    assert memory.find([1, 2, 3, 4]) == (0, None)
    assert generate(model, [[1, 2, 3, 4, 5]], memory=memory) == generate(model, [[1, 2, 3, 4, 5]])


def test_all_layers_keep_one_mask_and_attend_as_if_each_had_its_own(llama):
    ids, mask = torch.arange(1, 21)[None], torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
    kept = {}

    def keep(t):
        return kept.setdefault((t.untyped_storage()._cdata, t.shape), t)

    def run():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = llama(ids, attention_mask=mask).logits.logsumexp(-1).sum()
        return torch.autograd.grad(loss, list(llama.parameters()))

    ours = run()
    assert (
        sum(shape[-2:] == (3 * 20, 20) for _, shape in kept) == 1
    )  # three query heads for each key head
    llama.set_attn_implementation("sdpa")
    try:
        theirs = run()
    finally:
        llama.set_attn_implementation("grouped")
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, theirs))
    before = llama(ids, attention_mask=mask).logits[0, -1]
    mask[0, 0, -1, :10] = False  # a mask that was used, changed in place
    assert torch.equal(
        llama(ids, attention_mask=mask).logits[0, -1],
        llama(ids, attention_mask=mask.clone()).logits[0, -1],
    )
    assert not torch.allclose(before, llama(ids, attention_mask=mask).logits[0, -1])


# -- the loop


def told(trajectories, json=False):
    return [t.model_dump_json() if json else t.model_dump() for t in trajectories]


def test_the_oracle_solves_everything_in_as_few_turns_as_there_are_hops(environments):
    for env, traj in zip(
        environments, collect(OraclePolicy(environments), environments, temperature=0)
    ):
        assert (
            traj.n_solved == traj.sub_questions == len(env.scenario.sub_questions)
            and traj.stop == "answer"
        )
        assert (
            len(traj.turns) == len(env.golden_calls()) + 1
            and traj.messages[-1]["content"] == env.answer
        )


def test_the_oracle_does_not_know_other_environments(environments):
    with pytest.raises(UserError, match="no environment that asks"):
        collect(OraclePolicy(environments[:1]), environments[1:2])


def test_the_warm_start_that_comes_with_the_library_calls_tools(environments, tmp_path):
    shown = collect(
        TransformersPolicy("smollm2-warm"),
        [environments[0], demo_environment(".fr"), demo_environment(".pe")],
        temperature=0,
        max_turns=1,
        max_new_tokens=48,
    )
    assert all(t.n_calls for t in shown) and any(t.n_solved for t in shown)
    with pytest.raises(UserError, match="adapter_model.safetensors is missing"):
        packaged_warm_model(tmp_path)


def test_processes_that_want_the_packaged_model_at_once_make_it_once(tmp_path, monkeypatch):
    made = []

    def convert(folder):
        made.append(folder)
        time.sleep(0.5)  # the others come meanwhile
        write_text(folder / "config.json", "{}")

    monkeypatch.setattr("toolrl_lit.engine.models._convert", convert)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: packaged_model(tmp_path), range(4)))
    assert folders == made * 4 and (made[0] / "config.json").exists()


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be made"):
        packaged_model(tmp_path / "file")


class Chance:
    """Acts by chance, which hangs on all that `generate` is given: right calls, wrong calls, calls with numbers that JSON does not have, answers, nothing,
    and conversations that are too long. Like a model it remembers the last wave, which here shows in what it says. `asked` is what it was asked."""

    parser, fails_at = "qwen", None

    def __init__(self, environments):
        self.known, self.asked, self.memory = {e.question: e for e in environments}, [], []

    def forget(self):
        self.memory = []

    def generate(self, prompts, *, temperature, max_new_tokens, seed):
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append((prompts, seed))
        said = [
            self.say(
                random.Random(f"{seed} {i} {messages} {len(messages) > 2 and self.memory}"),
                messages,
            )
            for i, (messages, _) in enumerate(prompts)
        ]
        self.memory = [len(messages) for messages, _ in prompts]
        return said

    def say(self, chance, messages):
        env = self.known[next(m["content"] for m in messages if m["role"] == "user")]
        golden = chance.choice(env.golden_calls())
        odd = golden[0].model_copy(
            update=dict(arguments=golden[0].arguments | {"odd": float("nan")})
        )
        return chance.choice(
            [call_text(golden)] * 4
            + [
                call_text(wrong_calls(env, chance)),
                call_text([odd]),
                call_text([odd]),
                "So it is.",
                "",
                None,
            ]
        )


def test_many_are_under_way_at_once_and_the_queue_moves_up_as_rollouts_end(environments):
    policy = Chance(environments)
    trajs = collect(policy, environments, samples=3, max_turns=4, batch=5)
    assert [(t.environment, t.sample) for t in trajs] == [
        (e.id, k) for e in environments for k in range(3)
    ]
    assert {t.stop for t in trajs} == {"answer", "empty", "max_turns", "too_long"}
    assert all((t.stop == "max_turns") <= (len(t.turns) == 4) and len(t.turns) <= 4 for t in trajs)
    left, sizes = (
        [len(t.turns) + (t.stop == "too_long") for t in trajs],
        [len(prompts) for prompts, _ in policy.asked],
    )
    places = []
    for size in sizes:  # what a queue with five places does, by the turns that each rollout took
        while left and len(places) < 5:
            places.append(left.pop(0))
        assert size == len(places)
        places = [n - 1 for n in places if n > 1]
    assert not left and not places


def test_neighbouring_seeds_share_no_random_numbers(environments):
    asked = []
    for seed in range(8):
        policy = Chance(environments)
        collect(policy, environments, samples=4, batch=3, seed=seed)
        asked += [s for _, s in policy.asked]
    assert len(set(asked)) == len(asked) > 100 and all(0 <= s < 2**63 for s in asked)


@pytest.mark.parametrize("at", range(0, 26, 2))
def test_an_interrupted_collection_goes_on_as_if_it_had_not_been(environments, tmp_path, at):
    options, out = dict(samples=4, max_turns=5, seed=3, batch=4), tmp_path / "t.jsonl"
    whole, broken, later = (Chance(environments) for _ in range(3))
    collect(whole, environments, out=tmp_path / "whole.jsonl", **options)
    assert told(collect(Chance(environments), environments, **options), json=True) == told(
        read_jsonl(tmp_path / "whole.jsonl", Trajectory), json=True
    )
    assert any(
        re.search(r'"odd": ?NaN', t.model_dump_json())
        for t in read_jsonl(tmp_path / "whole.jsonl", Trajectory)
    )
    assert len(whole.asked) > 16
    at = at * len(whole.asked) // 26  # from the first call to the last
    broken.fails_at = at
    with pytest.raises(KeyboardInterrupt):
        collect(broken, environments, out=out, **options)
    assert not out.exists() and (at < 10 or (tmp_path / "t.unfinished.jsonl").exists())
    collect(later, environments, out=out, **options)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["t.jsonl", "t.settings.json", "whole.jsonl", "whole.settings.json"]
    assert (
        str(later.asked) == str(whole.asked[-len(later.asked) :])
        and len(later.asked) + at < len(whole.asked) + 10
    )


def test_a_model_that_is_interrupted_forgets_no_more_than_one_that_is_not(
    policy, tiny_folder, environments, tmp_path, monkeypatch
):
    options, asked, fails_at = (
        dict(samples=2, max_turns=3, max_new_tokens=8, seed=3, batch=3),
        [],
        0,
    )
    plain = TransformersPolicy.generate

    def watched(self, prompts, **how):
        asked.append((prompts, how, [ids for ids, _ in self.memory.entries]))
        if len(asked) == fails_at:
            raise KeyboardInterrupt
        return plain(self, prompts, **how)

    monkeypatch.setattr(TransformersPolicy, "generate", watched)
    policy.generate(
        [(environments[0].start().messages, environments[0].documents())], max_new_tokens=2
    )  # is not remembered, either
    asked.clear()
    whole, all_asked = collect(policy, environments[:4], **options), list(asked)
    fails_at, asked[:] = len(all_asked) - 1, []
    with pytest.raises(KeyboardInterrupt):
        collect(
            TransformersPolicy(tiny_folder), environments[:4], out=tmp_path / "t.jsonl", **options
        )
    assert told(read_jsonl(tmp_path / "t.unfinished.jsonl", Trajectory)[:1]) == told(whole[:1])
    fails_at, asked[:] = 0, []
    assert (
        told(collect(policy, environments[:4], out=tmp_path / "t.jsonl", **options))
        == told(whole)
        == told(read_jsonl(tmp_path / "t.jsonl", Trajectory))
    )
    assert (
        0 < len(asked) < len(all_asked)
        and asked == all_asked[-len(asked) :]
        and sum(t.n_solved for t in whole) > 0
    )


@pytest.mark.parametrize("batch, kept", [(4, True), (20, True), (32, False), (100, False)])
def test_a_snapshot_is_taken_when_as_many_as_a_batch_have_ended(
    environments, tmp_path, monkeypatch, batch, kept
):
    files, plain = [], module.write_jsonl
    monkeypatch.setattr(
        module,
        "write_jsonl",
        lambda path, trajs: plain(
            path,
            files.append(
                (
                    path.name,
                    len(under_way([(e, k) for e in environments for k in range(4)], trajs, 5)),
                    len(trajs),
                )
            )
            or trajs,
        ),
    )
    collect(
        Chance(environments),
        environments,
        samples=4,
        max_turns=5,
        seed=3,
        batch=batch,
        out=tmp_path / "t.jsonl",
    )
    *snapshots, last = files
    assert last == ("t.jsonl", 0, 32) and {name for name, *_ in snapshots} == (
        {"t.unfinished.jsonl"} if kept else set()
    )
    ended = [0] + [begun - active for _, active, begun in snapshots]
    assert (
        all(batch <= b - a < 2 * batch for a, b in zip(ended, ended[1:]))
        and 32 - ended[-1] < 2 * batch
    )


def test_what_an_interruption_left_is_refused_by_others_and_kept(environments, tmp_path):
    out, there, options = (
        tmp_path / "t.jsonl",
        tmp_path / "t.unfinished.jsonl",
        dict(samples=2, max_turns=5, batch=4),
    )
    broken = Chance(environments)
    broken.fails_at = 9
    with pytest.raises(KeyboardInterrupt):
        collect(broken, environments, out=out, **options)
    before, note = there.read_bytes(), tmp_path / "t.settings.json"
    assert "batch" not in json.loads(note.read_text())
    note.write_text(
        json.dumps(json.loads(note.read_text()) | {"batch": 128})
    )  # as earlier versions wrote it
    with pytest.raises(
        UserError,
        match=f"{there}: holds trajectories of other environments; choose another file or remove it",
    ):
        collect(Chance(environments), environments[1:], out=out, **options)
    with pytest.raises(
        UserError,
        match=f"{there}: holds trajectories of other settings .*seed: 0 there, 1 now.*; choose another file or remove it",
    ):
        collect(Chance(environments), environments, out=out, seed=1, **options)
    assert there.read_bytes() == before and not out.exists()
    begun = told(read_jsonl(there, Trajectory)[:1], json=True)
    whole = collect(
        Chance(environments), environments, out=out, **options | dict(batch=2)
    )  # fewer at a time, as for lack of memory
    assert told(whole[:1], json=True) == begun and len(whole) == 2 * len(environments)
    there.write_bytes(before)  # killed when the file was whole and the snapshot not yet gone
    broken.fails_at = len(broken.asked)
    assert (
        told(collect(broken, environments, out=out, **options), json=True) == told(whole, json=True)
        and not there.exists()
    )


def test_a_finished_file_is_continued_with_more_environments(environments, tmp_path):
    options = dict(samples=2, max_turns=5, batch=3, out=tmp_path / "t.jsonl")
    first = collect(Chance(environments), environments[:3], **options)
    policy = Chance(environments)
    more = collect(policy, environments, **options)
    assert (
        told(more[:6], json=True) == told(first, json=True)
        and len(more) == 16
        and len(policy.asked[0][0]) == 3
    )
    assert told(read_jsonl(options["out"], Trajectory), json=True) == told(more, json=True)


@pytest.mark.parametrize("odd", [dict(max_turns=0), dict(batch=0)])
def test_no_turns_and_no_places_are_refused(environments, odd):
    with pytest.raises(UserError, match=f"{[*odd][0]}: expected at least 1, got 0"):
        collect(OraclePolicy(environments), environments, **odd)


def test_the_progress_bar_moves_as_rollouts_end_and_shows_the_speed(
    policy, environments, monkeypatch
):
    moves, shown = [], []

    class Bar(module.tqdm):
        def __init__(self, **how):
            super().__init__(**how | {"disable": False})

        def update(self, n):
            moves.append(n)
            super().update(n)

        def set_postfix_str(self, text):
            shown.append(text)
            super().set_postfix_str(text)

    monkeypatch.setattr(module, "tqdm", Bar)
    collect(OraclePolicy(environments), environments, samples=2, temperature=0, batch=4)
    assert (
        sum(moves) == pytest.approx(16)
        and sum(n > 0 for n in moves) > 4
        and all(re.fullmatch(r"\d open", x) for x in shown[:-1])
        and shown[-1] == ""
    )
    moves[:], shown[:] = [], []
    collect(policy, environments[:2], max_turns=2, max_new_tokens=8)
    assert (
        sum(moves) == pytest.approx(2)
        and sum(0 < n < 0.5 for n in moves) > 4  # while turns are being written
        and policy.tell is None
        and shown[0] == "2 open"
        and re.fullmatch(r"\d open, \d+ tokens/s", shown[1])
        and re.fullmatch(r"\d+ tokens/s", shown[-1])
        and 0 < policy.generated <= 32
    )


def test_a_finished_file_is_read_and_the_policy_not_asked(environments, tmp_path):
    first = collect(
        OraclePolicy(environments), environments, temperature=0, out=tmp_path / "t.jsonl"
    )
    assert told(
        collect(OraclePolicy([]), environments, temperature=0, out=tmp_path / "t.jsonl")
    ) == told(first)


@pytest.mark.parametrize("other", [lambda e: e[1:], lambda e: e[:2], lambda e: list(reversed(e))])
def test_a_file_of_other_environments_is_refused_and_kept(environments, tmp_path, other):
    out = tmp_path / "t.jsonl"
    collect(OraclePolicy(environments), environments[:4], temperature=0, out=out)
    before = out.read_bytes()
    with pytest.raises(UserError, match=f"{out}.*other environments"):
        collect(OraclePolicy(environments), other(environments[:4]), temperature=0, out=out)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "change", [dict(seed=1), dict(temperature=0.5), dict(max_turns=3), dict(match="strict")]
)
def test_a_file_of_other_settings_is_refused_and_kept(environments, tmp_path, change):
    out, options = tmp_path / "t.jsonl", dict(temperature=0, max_turns=4)
    collect(OraclePolicy(environments), environments[:4], out=out, **options)
    before, (name, now) = out.read_bytes(), *change.items()
    with pytest.raises(UserError, match=f"{out}.*other settings.*{name}: .* there, {now!r} now"):
        collect(OraclePolicy(environments), environments, out=out, **options | change)
    assert out.read_bytes() == before


def test_a_file_of_other_weights_is_refused(policy, tiny_folder, environments, tmp_path):
    ask = dict(out=tmp_path / "t.jsonl", max_turns=1, max_new_tokens=2)
    collect(TransformersPolicy(tiny_folder), environments[:1], **ask)
    collect(TransformersPolicy(tiny_folder), environments[:2], **ask)
    other = TransformersPolicy(tiny_folder)
    with torch.no_grad():
        other.model.model.layers[0].mlp.up_proj.weight.flatten()[0] += 1
    with pytest.raises(UserError, match="other settings.*policy"):
        collect(other, environments[:2], **ask)


def test_a_conversation_that_is_too_long_ends_and_says_so(tiny_folder, environments):
    (traj,) = collect(
        TransformersPolicy(tiny_folder, max_prompt_tokens=20), environments[:1], max_new_tokens=4
    )
    assert traj.stop == "too_long" and traj.turns == [] and traj.n_solved == 0


def test_trajectories_that_end_at_other_lengths_are_not_mixed(tiny_folder, environments, tmp_path):
    ask = dict(out=tmp_path / "t.jsonl", max_turns=1, max_new_tokens=2)
    collect(TransformersPolicy(tiny_folder), environments[:1], **ask)
    assert "max_prompt_tokens" not in (tmp_path / "t.settings.json").read_text(), (
        "files of earlier versions stay valid"
    )
    with pytest.raises(UserError, match="other settings.*max_prompt_tokens: None there, 20 now"):
        collect(TransformersPolicy(tiny_folder, max_prompt_tokens=20), environments[:2], **ask)


@pytest.mark.parametrize("name", ["batch", "max_prompt_tokens"])
def test_a_policy_that_could_decode_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"{name}: expected at least 1, got 0"):
        TransformersPolicy("no/such/model", **{name: 0})


def test_a_policy_remembers_nothing_on_a_gpu(policy, tiny_folder, environments, monkeypatch):
    model, tokenizer = load_model(tiny_folder)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "device", property(lambda self: torch.device("cuda")))
        gpu = TransformersPolicy(model, tokenizer)
    assert policy.memory is not None and gpu.memory is None
    ask = dict(temperature=1, max_turns=3, max_new_tokens=6, seed=2)
    assert [len(t.turns) for t in collect(gpu, environments, **ask)] == [
        len(t.turns) for t in collect(policy, environments, **ask)
    ]
    assert gpu.memory is None


def test_a_step_record_is_continued(environments):
    env = environments[2]
    (full,) = collect(OraclePolicy([env]), [env], temperature=0)
    later = list(full.step_records(env))[1]
    (rest,) = collect(OraclePolicy([env]), [later], temperature=0)
    assert rest.messages == full.messages and rest.sub_questions == later.open() == rest.n_solved


def test_a_call_and_its_rendering_are_read_back(policy, environments):
    env = environments[1]
    (full,) = collect(OraclePolicy([env]), [env], temperature=0)
    text = policy.tokenizer.decode(policy.render(full.messages, env.documents()))
    assert call_text(env.golden_calls()[0]) in text and text.endswith("<|im_start|>assistant\n")
    assert all(r in text for t in full.turns for r in t.results)


@few
@given(prompt_lists, st.integers(1, 5), st.integers(1, 4))
def test_no_more_rows_than_asked_for_are_decoded_together(llama, prompts, copies, batch):
    prompts, sizes, plain = prompts * copies, [], generation._decode

    def watched(model, part, *rest, **more):
        sizes.append(sum(len(numbers) for _, numbers in part))
        return plain(model, part, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_decode", watched)
        rows = generate(llama, prompts, temperature=1, batch=batch)
    assert max(sizes) <= batch and sum(sizes) == len(prompts)
    assert rows == generate(llama, prompts, temperature=1, batch=1000)


# -- environments and turns that are not as usual


def place(name, *, parameters, distractor=False, answer="Tiber"):
    return Tool(
        doc=ToolDoc(name=name, description="Finds.", parameters=parameters),
        code=f"def {name}(*a, **k): return {answer!r}",
        distractor=distractor,
    )


def small(tools, arguments, id="e1", question="Which river?", answer="Tiber"):
    sub = SubQuestion(
        id="q1", question=question, answer=answer, tool=tools[0].name, arguments=arguments
    )
    return Environment(
        scenario=Scenario(
            id=id, kind="single-hop", question=question, answer=answer, sub_questions=[sub]
        ),
        tools=tools,
    )


CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
NOTHING = [
    {"type": "object", "properties": {}},
    {"type": "object"},
    {},
    {"type": "object", "properties": {}, "required": []},
]


class Says:
    "A policy that says given turns one after another."

    parser = "qwen"

    def __init__(self, *turns):
        self.turns = turns

    def generate(self, prompts, *, temperature, max_new_tokens, seed):
        return [
            self.turns[sum(m["role"] == "assistant" for m in messages) % len(self.turns)]
            for messages, _ in prompts
        ]


@pytest.mark.parametrize("bare", NOTHING)
def test_slips_work_where_a_tool_takes_no_arguments(bare):
    for tools, arguments, slipped in (
        ([place("clock", parameters=bare), place("other", parameters=CITY)], {}, {}),
        ([place("river", parameters=CITY), place("clock", parameters=bare)], {"city": "Rome"}, {}),
        (
            [
                place("river", parameters=CITY),
                place("other", parameters=CITY | {"required": ["city"]}),
            ],
            {"city": "Rome"},
            {"city": "Rome"},
        ),
    ):
        env = small(tools, arguments)
        (traj,) = collect(OraclePolicy([env], slips=1), [env], temperature=0)
        assert (
            traj.turns[0].calls[0].name == tools[1].name
            and traj.turns[0].calls[0].arguments == slipped
            and traj.n_solved == 1
        )


def test_environments_that_share_an_id_are_refused():
    one, two = (
        small([place("river", parameters=CITY)], {}),
        small([place("sea", parameters=CITY)], {}, question="Which sea?"),
    )
    trajs = collect(OraclePolicy([one]), [one], temperature=0)
    for use in (
        lambda: collect(OraclePolicy([one, two]), [one, two]),
        lambda: evaluate(OraclePolicy([one, two]), [one, two]),
        lambda: step_records(trajs, [one, two]),
    ):
        with pytest.raises(UserError, match="expected every id once, 'e1' appears 2 times"):
            use()
    assert len(collect(OraclePolicy([one]), [one.start(), one.start()], temperature=0)) == 2, (
        "step records of one environment may be many"
    )


def test_a_finished_collection_with_odd_text_is_read_back(tmp_path):
    env = small([place("river", parameters=CITY)], {"city": "Rome"})
    for n, said in enumerate(
        [
            "It is the Tiber \ud83d",
            "\udc00",
            call_text([]) + "\ud83d<tool_call>{",
            '<tool_call>{"name": "river", "arguments": {"city": "\\ud83d"}}</tool_call>',
        ]
    ):
        path = tmp_path / f"{n}.jsonl"
        made = collect(Says(said, "Tiber \ud83d"), [env], temperature=0, out=path)
        assert read_jsonl(path, Trajectory) == made and "?" in made[0].turns[-1].text


@pytest.mark.parametrize("depth", [97, 150, 195, 250, 900, 5000])
def test_deep_arguments_end_no_collection_and_their_file_is_read(tmp_path, depth):
    env = small([place("river", parameters=CITY)], {"city": "Rome"})
    turn = (
        '<tool_call>{"name": "river", "arguments": {"city": '
        + "[" * depth
        + "]" * depth
        + "}}</tool_call>"
    )
    made = collect(Says(turn, "Tiber"), [env], temperature=0, out=tmp_path / "t.jsonl")
    assert read_jsonl(tmp_path / "t.jsonl", Trajectory) == made
    assert [t.case for t in made[0].turns] == (
        ["calls", "answer"] if depth < 1000 else ["malformed"]
    )  # Python reads no deeper, nor did the authors
    assert collect(Says(turn, "Tiber"), [env], temperature=0, out=tmp_path / "t.jsonl") == made


# -- templates


@pytest.mark.parametrize(
    "template, said",
    [
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "leaves the tools out .such as ",
        ),
        ("{{ raise_exception('no system here') }}", "fails: TemplateError: no system here"),
        ("{{ messages[0].content + 1 }}", "fails: TypeError"),
        ("{% for m in messages %}", "fails: TemplateSyntaxError"),
        ("{{ messages[99].content.x }}", "fails: UndefinedError"),
        ("{{ messages[0].content }} {{ tools | length }} tools", "leaves the tools out"),
        ("{% for i in range(99) %}{{ messages[0].content }}{% endfor %}", "leaves the tools out"),
    ],
)
def test_a_template_that_cannot_show_the_tools_is_refused(
    tiny_folder, environments, template, said
):
    model, tokenizer = load_model(tiny_folder)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"chat template of this model {said}"):
        collect(TransformersPolicy(model, tokenizer), environments[:1], max_new_tokens=2)


def test_a_template_is_not_taken_at_the_word_of_a_question_and_may_insist_on_tools(tiny_folder):
    model, tokenizer = load_model(tiny_folder)
    named = small([place("river", parameters=CITY)], {}, question="Is a river a river?")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="leaves the tools out .such as 'river'"):
        collect(TransformersPolicy(model, tokenizer), [named], max_new_tokens=2)
    tokenizer.chat_template = "{% for t in tools[:tools | length] %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert collect(TransformersPolicy(model, tokenizer), [named], max_turns=1, max_new_tokens=2)


def test_without_a_template_there_is_no_policy_and_without_tools_none_is_missed(tiny_folder):
    model, tokenizer = load_model(tiny_folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert (
        TransformersPolicy(model, tokenizer).text([{"role": "user", "content": "Hm."}], []) == "Hm."
    )
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        TransformersPolicy(model, tokenizer)


def test_the_packaged_template_and_policy_show_foreign_histories_as_our_own(policy, environments):
    env = environments[1]
    ours = collect(OraclePolicy([env]), [env], temperature=0)[0].messages
    calls = lambda m, spell: [
        {
            "id": "a",
            "type": "function",
            "function": {
                "name": c["function"]["name"],
                "arguments": spell(c["function"]["arguments"]),
            },
        }
        for c in m.get("tool_calls", [])
    ]
    for spell in (json.dumps, lambda a: json.dumps(json.dumps(a))):
        foreign = [
            m
            | {"content": [{"type": "text", "text": m["content"]}] if m["content"] else None}
            | ({"tool_calls": calls(m, spell)} if m.get("tool_calls") else {})
            for m in ours
        ]
        assert policy.text(foreign, env.documents()) == policy.text(ours, env.documents())
        if spell is json.dumps:
            assert policy.tokenizer.apply_chat_template(
                foreign, tools=env.documents(), tokenize=False, add_generation_prompt=True
            ) == policy.text(ours, env.documents())
        exported = [
            plain_messages(env.start().model_copy(update={"messages": messages}))
            for messages in (foreign, ours)
        ]
        assert exported[0] == exported[1] and call_text(env.golden_calls()[0]) in str(
            exported[0][2]["content"]
        )
    with pytest.raises(UserError, match="with a name"):
        plain_messages(
            env.start().model_copy(
                update={
                    "messages": [
                        {
                            "role": "assistant",
                            "content": "",
                            "tool_calls": [{"function": {"name": "f", "arguments": "no JSON"}}],
                        }
                    ]
                }
            )
        )
    assert all(a is b for a, b in zip(plain_history(ours), ours))
    for nothing in (None, "", "null"):
        said = [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "clock", "arguments": nothing}}],
            },
        ]
        assert '{"name": "clock", "arguments": {}}' in policy.text(said, [])
    with pytest.raises(UserError, match="message 1: expected role"):
        policy.text([{"role": "user", "content": 3}], [])


# -- positions


def test_a_prompt_beyond_the_model_s_positions_ends_and_is_said_once(tiny_folder, environments):
    model, tokenizer = load_model(tiny_folder)
    starts = [
        len(TransformersPolicy(model, tokenizer).render(e.start().messages, e.documents()))
        for e in environments[:3]
    ]
    model.config.max_position_embeddings = sorted(starts)[1] + 4
    with pytest.warns(
        UserWarning,
        match=f"has {sorted(starts)[1] + 4} positions, fewer than max_prompt_tokens=4096",
    ) as told_:
        short = TransformersPolicy(model, tokenizer)
        trajs = collect(short, environments[:3], max_turns=1, max_new_tokens=4)
    assert (
        len(told_) == 1
        and [t.stop == "too_long" for t in trajs] == [n > sorted(starts)[1] for n in starts]
        and {t.stop for t in trajs} != {"too_long"}
    )
    with pytest.warns(UserWarning, match="positions") as told_:
        quiet = TransformersPolicy(model, tokenizer, max_prompt_tokens=sorted(starts)[1])
        trajs = [collect(quiet, environments[:3], max_turns=1, max_new_tokens=5) for _ in range(2)][
            0
        ]
    assert len(told_) == 1 and [t.stop == "too_long" for t in trajs] == [
        n >= sorted(starts)[1] for n in starts
    ]
    with pytest.raises(
        UserError, match="positions .its max_position_embeddings.*lower max_prompt_tokens"
    ):
        generate(model, [[5] * max(starts)], max_new_tokens=4)


def test_a_prompt_of_just_the_length_that_is_allowed_is_read(tiny_folder, environments):
    env = environments[0]
    n = len(TransformersPolicy(tiny_folder).render(env.start().messages, env.documents()))
    stops = [
        collect(
            TransformersPolicy(tiny_folder, max_prompt_tokens=k),
            [env],
            max_turns=1,
            max_new_tokens=2,
        )[0].stop
        for k in (n - 1, n)
    ]
    assert stops[0] == "too_long" != stops[1]


def test_a_turn_ends_with_either_token_that_may_end_it(tiny_folder):
    model, tokenizer = load_model(tiny_folder)
    assert TransformersPolicy(model, tokenizer).stop == {tokenizer.eos_token_id}
    other = tokenizer.convert_tokens_to_ids("<|im_start|>")
    for ends in (other, [other], [other, tokenizer.eos_token_id]):
        model.generation_config.eos_token_id = ends
        both = TransformersPolicy(model, tokenizer)
        assert both.stop == {other, tokenizer.eos_token_id}
        assert both.decode([60, other]) == both.decode([60]) == both.decode(
            [60, tokenizer.eos_token_id]
        ) and both.decode([other, 60]) != both.decode([60])
    model.generation_config.eos_token_id = None
    assert TransformersPolicy(model, tokenizer).stop == {tokenizer.eos_token_id}


# -- reasoning


def test_thoughts_are_kept_as_written_and_shown_as_the_template_has_it(
    thinking_folder, environments
):
    thinking, silent = (TransformersPolicy(thinking_folder, reasoning=r) for r in (True, False))
    thoughtful = 0
    for env, traj in zip(
        environments, collect(thinking, environments, max_turns=3, max_new_tokens=4, seed=3)
    ):
        said = [m for m in traj.messages[traj.start :] if m["role"] == "assistant"]
        assert [m["content"] for m in said] == [parse_qwen(t.text).content for t in traj.turns]
        if not any("<think>" in m["content"] and m.get("tool_calls") for m in said):
            continue
        thoughtful += 1
        shown = thinking.text(traj.messages, env.documents())
        assert "Which tool?" in shown and shown.endswith("<|im_start|>assistant\n")
        assert silent.text(traj.messages, env.documents()) == shown + "<think>\n\n</think>\n\n"
        assert "Which tool?" not in thinking.text(
            traj.messages + [{"role": "user", "content": "Sure?"}], env.documents()
        )
    assert thoughtful


def test_a_template_that_cannot_reason_is_refused(tiny_folder, thinking_folder):
    with pytest.raises(UserError, match="reasoning: .*enable_thinking"):
        TransformersPolicy(tiny_folder, reasoning=True)
    model, tokenizer = load_model(thinking_folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A: <think>\n{% endif %}"
    assert (
        TransformersPolicy(model, tokenizer, reasoning=True).text(
            [{"role": "user", "content": "?"}], []
        )
        == "?A: <think>\n"
    )


@pytest.mark.parametrize("before", [False, True])
def test_trajectories_with_and_without_reasoning_are_not_mixed(
    thinking_folder, environments, tmp_path, before
):
    ask = dict(out=tmp_path / "t.jsonl", max_turns=1, max_new_tokens=2)
    collect(TransformersPolicy(thinking_folder, reasoning=before), environments[:1], **ask)
    with pytest.raises(UserError, match="other settings.*reasoning"):
        collect(TransformersPolicy(thinking_folder, reasoning=not before), environments[:2], **ask)


# -- prompts that rows share


@pytest.mark.parametrize("copies", [[3], [1, 4, 2], [2, 2, 2]])
def test_a_shared_prompt_is_looked_at_as_one_s_own(copies):
    torch.manual_seed(0)
    heads, groups, d, length, room, said = 2, 3, 8, 7, 5, 2
    owner = [o for o, n in enumerate(copies) for _ in range(n)]
    seen = torch.tensor([[0] * o + [1] * (length - o) for o in range(len(copies))])
    keys, values = (torch.randn(len(copies), heads, length, d) for _ in range(2))
    query, (key, value) = (
        torch.randn(len(owner), heads, groups, d),
        torch.randn(2, len(owner), heads, room, d),
    )
    prompts = Prompts([keys], [values], seen, owner)
    prompts.said = said

    def whole(owner, rows):
        "As if each row had a cache of its own."
        k, v = (
            torch.cat([far[owner], near[rows][:, :, :said]], 2)
            for far, near in ((keys, key), (values, value))
        )
        mask = torch.cat([seen[owner].bool(), torch.ones(len(rows), said, dtype=torch.bool)], 1)[
            :, None, None
        ]
        return torch.nn.functional.scaled_dot_product_attention(
            query[rows], k, v, attn_mask=mask, scale=0.5
        )

    left = list(range(len(owner)))
    while left:
        told = prompts.attend(0, query[left], key[left], value[left], 0.5)
        assert torch.allclose(told, whole([owner[i] for i in left], left), atol=1e-5)
        place = prompts.owner
        gone = random.Random(len(left)).randrange(len(left))  # rows end one by one
        del left[gone]
        if left:
            prompts.belong(place[:gone] + place[gone + 1 :])
    assert len(prompts.seen) <= 2  # and prompts with them


def test_rows_of_a_prompt_keep_it_once(llama):
    prompts, _ = prefill(llama, [[5] * 30, [6] * 20], [8, 3], PrefixMemory(llama), 0)
    assert prompts.keys[0].shape[0] == 2 and prompts.copies == 8 and len(prompts.owner) == 11


def test_a_model_with_a_short_sight_is_refused_where_it_could_not_see_all():
    sees = lambda **more: MistralForCausalLM(
        MistralConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            **more,
        )
    ).eval()
    with pytest.raises(UserError, match="sees 16 tokens back .*up to 17"):
        generate(sees(sliding_window=16), [[5] * 10], temperature=0)
    for model, prompt in (
        (sees(sliding_window=16), [5] * 9),
        (sees(sliding_window=None), [5] * 10),
    ):
        theirs = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=7,
            do_sample=False,
            eos_token_id=0,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert generate(model, [prompt], temperature=0) == [theirs]


def test_an_attention_that_is_not_known_is_refused():
    small = dict(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    soft = Gemma2ForCausalLM(
        Gemma2Config(
            **small, query_pre_attn_scalar=8, sliding_window=64, layer_types=["full_attention"] * 2
        )
    ).eval()
    with pytest.raises(UserError, match="has softcap, .*--base-url"):
        generate(soft, [[5] * 9])
    with pytest.raises(UserError, match="layers of linear_attention, .*--base-url"):
        generation._check_attention(
            LlamaConfig(**small, layer_types=["full_attention", "linear_attention"]), 9
        )


# -- models on disk


@pytest.mark.parametrize(
    "cpu, wanted",
    [
        (dict(architecture="x86_64", amx_bf16=False, avx512_bf16=False), torch.float32),
        (dict(architecture="x86_64", amx_bf16=True, avx512_bf16=False), torch.bfloat16),
        (dict(architecture="x86_64", amx_bf16=False, avx512_bf16=True), torch.bfloat16),
    ],
)
def test_a_model_is_loaded_in_what_the_cpu_is_fast_at(tiny_folder, monkeypatch, cpu, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert (
        load_model(tiny_folder)[0].dtype == fast_dtype() == wanted
        and load_model(tiny_folder, torch.float16)[0].dtype == torch.float16
    )


@pytest.mark.parametrize("path", ["no/such/model", "empty folder"])
def test_a_model_that_is_not_there_is_named(tmp_path, path):
    where = tmp_path / path
    if path == "empty folder":
        where.mkdir()
    for load in (load_model, find_model):
        with pytest.raises(UserError, match=str(where)):
            load(str(where))
        with pytest.raises(UserError, match=str(where)):
            load(where)


def test_a_model_is_found_without_its_weights_and_its_tokenizer_can_pad(tiny_folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny_folder / name).read_text())
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    told.pop("pad_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    where, config, tokenizer = find_model(tmp_path)
    assert (
        where == tmp_path
        and config.hidden_size == 32
        and tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    )
    with pytest.raises(UserError, match="no model could be loaded: expected 'smollm2'"):
        load_model(tmp_path)


def test_a_model_is_saved_and_loaded(policy, tmp_path):
    folder = save_model(policy.model, policy.tokenizer, tmp_path / "a" / "model")
    again, tokenizer = load_model(folder)
    assert all(torch.equal(p, again.state_dict()[k]) for k, p in policy.model.state_dict().items())
    assert tokenizer.chat_template == policy.tokenizer.chat_template and [
        p.name for p in folder.parent.iterdir()
    ] == ["model"]


def test_a_policy_is_known_again_in_32_bits_and_by_its_last_bit(tiny_folder):
    half, single = (
        TransformersPolicy(*load_model(tiny_folder, dtype))
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.fingerprint == single.fingerprint
    other, tokenizer = load_model(tiny_folder, torch.float32)
    weight = other.model.layers[1].mlp.up_proj.weight.data
    weight[0, 0] = torch.nextafter(
        weight[0, 0], torch.tensor(9.0)
    )  # far less than 16 bits can tell
    assert TransformersPolicy(other, tokenizer).fingerprint != single.fingerprint


def test_a_full_disk_leaves_the_model_that_was_there(policy, tmp_path, monkeypatch):
    folder = save_model(policy.model, policy.tokenizer, tmp_path / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def half(where, **kwargs):
        (where / "model.safetensors").write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(policy.model, "save_pretrained", half)
    with pytest.raises(UserError, match="No space left.*start the same command again"):
        save_model(policy.model, policy.tokenizer, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before and list(
        tmp_path.iterdir()
    ) == [folder]


def test_a_loaded_model_needs_its_tokenizer(llama):
    with pytest.raises(UserError, match="needs its tokenizer"):
        TransformersPolicy(llama)


def test_as_soon_as_a_batch_has_ended_it_is_kept(environments, tmp_path):
    class Stops:
        "A policy that writes one wave, and fails at the next."

        parser, waves = "qwen", 0

        def generate(self, prompts, **_):
            self.waves += 1
            if self.waves == 2:
                raise KeyboardInterrupt
            return ["I do not know."] * len(prompts)

    with pytest.raises(KeyboardInterrupt):
        collect(Stops(), environments[:4], batch=2, out=tmp_path / "t.jsonl")
    assert [t.environment for t in read_jsonl(tmp_path / "t.unfinished.jsonl", Trajectory)] == [
        e.id for e in environments[:2]
    ]


OLD_NAMES = (
    "Prompt ELSEWHERE CHAT_TEMPLATE WARM_ADAPTER PACKAGED Policy call_text wrong_calls OraclePolicy collect Prompts "
    "grouped_attention grouped_mask grouped PrefixMemory generate_tokens packaged_model packaged_warm_model save_model "
    "unpacked find_model fast_dtype load_model plain_history TransformersPolicy wire_messages EndpointPolicy"
).split()


def test_names_that_moved_are_found_where_they_were():
    assert [name for name in OLD_NAMES if not hasattr(module, name)] == []
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        module.nonsense


def test_a_chapter_opens_no_door_before_it_is_asked(tmp_path):
    "In a fork of a process that has imported nothing but the chapters, up to the one on training."
    log = tmp_path / "said.txt"
    assert apart.run(apart.doors, log=log) == 0, log.read_text()[-2000:]
