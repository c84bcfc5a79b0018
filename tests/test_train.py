"Train: the same numbers as TRL's own, rewards from the environment, and runs that survive being killed."

import contextlib
import ctypes
import errno
import itertools
import json
import re
import shutil
import signal
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import apart
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from trained import config_for, losses, same, weights
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOTrainer

from toolrl_lit import train as module
from toolrl_lit import warm as warming
from toolrl_lit.collect import OraclePolicy, TransformersPolicy, call_text, collect
from toolrl_lit.engine import callbacks, checkpoints, sampling
from toolrl_lit.engine import trainer as engine_trainer
from toolrl_lit.engine.config import FIRST, PARTS, listing
from toolrl_lit.engine.curves import MAIN_CURVES
from toolrl_lit.engine.demo import demo_environment
from toolrl_lit.engine.generate import own_cache, prefill
from toolrl_lit.engine.packing import check_logits
from toolrl_lit.engine.sandbox import ToolSandbox
from toolrl_lit.engine.shortcuts import exploit_rate
from toolrl_lit.layers import compare
from toolrl_lit.reward import parse_qwen, score_turn
from toolrl_lit.schema import Trajectory, UserError, read_jsonl, write_jsonl
from toolrl_lit.train import (
    StepRewards,
    StepTrainer,
    TrainConfig,
    choose_steps,
    curves,
    demonstrations,
    group_mask,
    informative,
    lora,
    make_config,
    memory_needed,
    merge_into,
    pack_groups,
    situation,
    token_scores,
    train,
    warm_start,
)

few = settings(max_examples=25, deadline=None)

# -- configuration


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(learning_rat=1e-3), "learning_rat: .*there are: .*learning_rate"),
        (dict(group=1), "group: .*greater than or equal to 2, got 1"),
        (dict(kind="f2"), "kind: .*'f1', 'p', 'r' or 'pr', got 'f2'"),
        (dict(temperature=0), "temperature: .*greater than 0"),
        (dict(prompts=6, micro_prompts=4), "^prompts=6 must be a multiple of micro_prompts=4"),
        (dict(prompts=6, mini_batches=4), "^prompts=6 must be a multiple of mini_batches=4"),
        (
            dict(prompts=8, mini_batches=4, micro_prompts=4),
            "^prompts=8 / mini_batches=4 must be a multiple of micro_prompts=4",
        ),
        (dict(group=8, split_group=3), "^group=8 must be a multiple of split_group=3"),
        (dict(split_group=2, micro_prompts=2), "^split_group=2 .*micro_prompts=2"),
        (
            dict(preset="papers"),
            "preset: expected one of laptop, consumer-24gb, paper, got 'papers'",
        ),
        (dict(preset="paper", prompts=500), "^prompts=500 must be a multiple of mini_batches=16"),
        (dict(epochs="many"), "epochs: .*integer"),
        (dict(seed=-1), "seed: .*greater than or equal to 0, got -1"),
        (dict(seed=2**32), "seed: .*less than 4294967296"),
        *(
            (dict([(name, float(value))]), f"{name}: .*finite number, got {value}")
            for name in ("learning_rate", "warm_learning_rate", "kl", "entropy", "temperature")
            for value in ("inf", "nan")
        ),
        (
            dict(algorithm="dapo", oversample=1),
            "^algorithm=dapo: its dynamic sampling .*set oversample=2",
        ),
        (
            dict(preset="paper", algorithm="dapo"),
            "^algorithm=dapo: its dynamic sampling .*set oversample=2",
        ),
        *(
            (
                dict(credit="turn", algorithm=a),
                f"^credit=turn: .*algorithm={re.escape(a)} does otherwise; set algorithm=grpo or dapo",
            )
            for a in ("dr_grpo", "reinforce++", "reinforce++-baseline")
        ),
    ],
)
def test_a_wrong_parameter_is_named_with_what_was_expected(values, said):
    with pytest.raises(UserError, match=said):
        make_config(**values)


def test_every_parameter_is_explained():
    assert all(field.description for field in TrainConfig.model_fields.values())
    papers = TrainConfig.model_fields["algorithm"].description
    assert all(
        n in papers for n in ("2402.03300", "2503.14476", "2503.20783", "2501.03262", "DAPO")
    )


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(lora_rank=0), "learning_rate=0.0007 .*LoRA.*set learning_rate=1e-6"),
        (
            dict(lora_rank=0, learning_rate=1e-6),
            "warm_learning_rate=0.0007 .*set warm_learning_rate=1e-6",
        ),
        (dict(lora_rank=0, learning_rate=1e-6, warm_steps=0), None),
        (dict(lora_rank=1, learning_rate=0.01), None),
        (dict(reasoning=True), "reasoning: max_new_tokens=96 .*thoughts.*set max_new_tokens=1024"),
        (dict(reasoning=True, max_new_tokens=256), None),
        (dict(preset="paper", reasoning=True), None),
        (
            dict(algorithm="dapo", credit="turn"),
            "algorithm=dapo: credit=turn .*dynamic sampling is left out",
        ),
        (dict(algorithm="dapo"), None),
        (
            dict(algorithm="reinforce++"),
            "algorithm=reinforce\\+\\+: oversample=2 leaves out .*set oversample=1",
        ),
        (dict(algorithm="reinforce++", oversample=1), None),
        (dict(algorithm="reinforce++", credit="episode"), None),
        (dict(algorithm="reinforce++-baseline"), None),
        (dict(credit="turn"), None),
        (dict(preset="paper"), None),
        (dict(preset="consumer-24gb"), None),
        (dict(), None),
    ],
)
def test_what_is_seldom_meant_is_warned_of_and_nothing_else_is(values, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_config(**values)
    assert bool(caught) == bool(said) and (not said or re.search(said, str(caught[0].message)))


def test_the_paper_preset_has_the_values_that_the_paper_names():
    paper = make_config("paper")
    named = dict(
        learning_rate=1e-6,
        prompts=512,
        group=16,
        kl=0.001,
        entropy=0.001,
        max_prompt_tokens=16384,
        max_new_tokens=1024,
        epochs=3,
        max_turns=20,
        temperature=1.0,
        kind="f1",
        match="paper",
        algorithm="grpo",
    )
    ours = dict(
        lora_rank=0, oversample=1, warmup=0, warm_steps=0
    )  # nothing that the paper does not do
    assert (
        named | ours
    ).items() <= paper.model_dump().items() and paper.prompts / paper.mini_batches == 32
    thinking = make_config("paper", reasoning=True)
    assert thinking.model_dump() == paper.model_dump() | dict(reasoning=True, max_new_tokens=8192)
    assert make_config("paper", reasoning=True, max_new_tokens=999).max_new_tokens == 999


def test_parts_and_flat_names_make_one_configuration():
    flat = TrainConfig(group=16, max_turns=5, save_updates=1)
    parts = dict(learning=dict(group=16), task={"max_turns": 5}, machine={"save_updates": 1})
    assert flat == TrainConfig(**parts) == make_config(**parts) == TrainConfig(**flat.model_dump())
    assert flat == TrainConfig(task=flat.task, learning=flat.learning, machine=flat.machine)
    assert (flat.learning.group, flat.task.max_turns, flat.machine.save_updates) == (16, 5, 1)
    fields = [name for part in PARTS.values() for name in part.model_fields]
    assert sorted(fields) == sorted(flat.model_dump()) and len(fields) == len(set(fields))
    assert make_config(task=dict(credit="turn")).oversample == 1  # what follows from a part
    assert [name for _, name, _ in listing()][: len(FIRST)] == list(FIRST)
    assert sorted(name for _, name, _ in listing()) == sorted(fields)


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(task=dict(group=8)), "^task.group: there are: model"),
        (dict(group=8, learning=dict(group=16)), "^group: given twice, 8 and 16"),
        (dict(machine=3), "^machine: expected its parameters by name, got 3"),
        (dict(learning=dict(group=1)), "^group: .*greater than or equal to 2"),
    ],
)
def test_a_wrong_part_is_named(values, said):
    with pytest.raises(UserError, match=said):
        make_config(**values)


def test_the_laptop_preset_is_the_defaults():
    assert make_config() == make_config("laptop") == make_config(preset="laptop") == TrainConfig()


# -- demonstrations


def test_labels_cover_exactly_what_the_assistant_says(tiny_folder, environments):
    policy = TransformersPolicy(tiny_folder)
    for env, traj in zip(
        environments, collect(OraclePolicy(environments), environments, temperature=0)
    ):
        (row,) = demonstrations(policy, traj, env)
        assert len(row["input_ids"]) == len(row["labels"])
        assert all(label in (-100, id) for id, label in zip(row["input_ids"], row["labels"]))
        whole = policy.tokenizer.apply_chat_template(
            traj.messages, tools=env.documents(), tokenize=False
        )
        assert policy.tokenizer.decode(row["input_ids"]) == whole.rstrip("\n")
        spans = []
        for id, label in zip(row["input_ids"], row["labels"]):
            if label == -100:
                spans.append([])
            elif spans:
                spans[-1].append(id)
        said = [policy.tokenizer.decode(s) for s in spans if s]
        assert said == [t.text + "<|im_end|>" for t in traj.turns]


def test_a_slip_of_the_oracle_is_shown_but_not_learnt(tiny_folder, environments):
    policy, oracle = TransformersPolicy(tiny_folder), OraclePolicy(environments, slips=1)
    for env, traj in zip(environments, collect(oracle, environments, temperature=0)):
        assert (
            traj.turns[0].calls == oracle.slip[env.id][0]
            and not any(traj.turns[0].solved)
            and traj.n_solved == traj.sub_questions
        )
        (row,) = demonstrations(policy, traj, env)
        assert traj.turns[0].text in policy.tokenizer.decode(row["input_ids"])
        learnt = policy.tokenizer.decode([label for label in row["labels"] if label != -100])
        assert learnt == "".join(t.text + "<|im_end|>" for t in traj.turns[1:])


def spans(row: dict, policy) -> list[str]:
    "What the labels of an example cover, piece by piece."
    found = itertools.groupby(
        zip(row["input_ids"], row["labels"]), key=lambda pair: pair[1] != -100
    )
    return [policy.tokenizer.decode([id for id, _ in pairs]) for learnt, pairs in found if learnt]


@pytest.mark.parametrize("reasoning", [False, True])
def test_labels_cover_what_is_said_and_no_thought_where_the_template_rewrites_history(
    thinking_folder, environments, reasoning
):
    policy = TransformersPolicy(thinking_folder, reasoning=reasoning)
    several = 0
    for env, traj in zip(
        environments, collect(OraclePolicy(environments), environments, temperature=0)
    ):
        rows = demonstrations(policy, traj, env)
        assert [s for row in rows for s in spans(row, policy)] == [
            t.text + "<|im_end|>" for t in traj.turns
        ]
        at = [i for i, m in enumerate(traj.messages) if m["role"] == "assistant"]
        for i, row in zip(
            at, rows, strict=True
        ):  # each is what the policy reads when it has thought of nothing
            assert all(
                label in (-100, id)
                for id, label in zip(row["input_ids"], row["labels"], strict=True)
            )
            asked = policy.text(traj.messages[:i], env.documents()).removesuffix(
                "<think>\n\n</think>\n\n"
            )
            assert policy.tokenizer.decode(row["input_ids"]).startswith(
                asked + "<think>\n\n</think>\n\n"
            )
        several += len(rows) > 1
    assert several


def test_a_template_that_asks_otherwise_than_it_shows_is_refused(tiny_folder, environments):
    policy = TransformersPolicy(tiny_folder)
    policy.tokenizer.chat_template += "{% if add_generation_prompt %}Now:{% endif %}"
    (traj,) = collect(OraclePolicy(environments), environments[:1], temperature=0)
    with pytest.raises(UserError, match="warm_steps: .*chat template"):
        demonstrations(policy, traj, environments[0])


# -- the layout of groups


@st.composite
def batches(draw):
    "Rows as TRL lays them out: groups of left-padded prompts and right-padded completions, some of them empty."
    groups, copies, C = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    prompts = draw(
        st.lists(
            st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=groups, max_size=groups
        )
    )
    rows = st.lists(st.integers(1, 60), min_size=0, max_size=C)
    completions = draw(st.lists(rows, min_size=groups * copies, max_size=groups * copies))
    P = max(map(len, prompts)) + draw(st.integers(0, 2))
    pad = lambda p, c: [0] * (P - len(p)) + p + c + [0] * (C - len(c))
    one = lambda x: [1] * len(x)
    pairs = [(prompts[i // copies], c) for i, c in enumerate(completions)]
    return (
        torch.tensor([pad(p, c) for p, c in pairs]),
        torch.tensor([pad(one(p), one(c)) for p, c in pairs]),
        C,
        copies,
        pairs,
    )


@few
@given(batches())
def test_packed_rows_hold_each_prompt_once_and_every_completion(batch):
    ids, seen, C, copies, pairs = batch
    tokens, block, positions, source = pack_groups(ids, seen, C, copies)
    for g in range(len(tokens)):
        mine = pairs[g * copies : (g + 1) * copies]
        assert tokens[g][block[g] == 0].tolist() == mine[0][0]
        for k, (_, completion) in enumerate(mine):
            assert tokens[g][block[g] == k + 1].tolist() == completion
            start = len(mine[0][0])
            assert positions[g][block[g] == k + 1].tolist() == list(
                range(start, start + len(completion))
            )
    flat, owner = tokens.flatten(), block.flatten()
    for row, (prompt, completion) in enumerate(pairs):
        assert (source[row] >= 0).tolist() == [k < len(completion) for k in range(C)]
        before = [prompt[-1]] + completion[:-1]  # each token is predicted from the one before it
        places = source[row][: len(completion)]
        assert flat[places].tolist() == before[: len(completion)]
        assert (
            owner[places].tolist()
            == ([0] + [row % copies + 1] * len(completion))[: len(completion)]
        )


@few
@given(batches())
def test_a_token_sees_its_own_past_and_nothing_else(batch):
    tokens, block, positions, _ = pack_groups(*batch[:4])
    mask = group_mask(block)
    for g in range(len(tokens)):
        for i, b in enumerate(block[g].tolist()):
            seen = mask[g, 0, i].nonzero().flatten()
            if b < 0:
                assert i in seen  # padding sees something, or its softmax were undefined
            else:
                assert sorted(positions[g][seen].tolist()) == list(range(positions[g, i] + 1))
            assert set(block[g][seen].tolist()) <= ({0, b} if b >= 0 else {-1, 0})


@pytest.fixture(scope="module")
def llama(small_llama):
    return small_llama()


@settings(max_examples=8, deadline=None)
@given(batches(), st.sampled_from([0.7, 1.0]), st.booleans(), st.integers(1, 2))
def test_log_probabilities_and_gradients_are_those_of_trl(llama, batch, temperature, bonus, parts):
    ids, seen, C, copies, pairs = batch
    if not any(c for _, c in pairs):
        return
    self = SimpleNamespace(
        whole_rows=False,
        num_generations=copies,
        temperature=temperature,
        _entropy_bonus_enabled=bonus,
        model_kwarg_keys={"logits_to_keep"},
        accelerator=SimpleNamespace(unwrap_model=lambda m: m, autocast=contextlib.nullcontext),
    )
    self._group_logps = StepTrainer._group_logps.__get__(self)
    results, real = [], seen[:, -C:]
    for compute in (StepTrainer._get_per_token_logps_and_entropies, GRPOTrainer._full_logits_logps):
        llama.zero_grad()
        logps, entropy, _ = compute(
            self, llama, ids, seen, C, batch_size=copies * parts, compute_entropy=True
        )
        assert logps.shape == entropy.shape == real.shape
        weights = (
            torch.arange(1, real.numel() + 1).reshape(real.shape) / real.numel()
        )  # every token its own weight
        ((logps + (entropy if bonus else 0)) * real * weights).sum().backward()
        results.append(
            [logps * real, entropy * real] + [p.grad.clone() for p in llama.parameters()]
        )
    for ours, theirs in zip(*results):
        assert torch.allclose(ours, theirs, atol=2e-4, rtol=1e-3)


def test_rows_that_are_no_whole_groups_are_an_error(llama):
    self = SimpleNamespace(num_generations=2)
    ids = torch.tensor([[1, 2, 3], [4, 2, 3]])
    with pytest.raises(RuntimeError, match="whole groups"):
        StepTrainer._group_logps(self, llama, ids, torch.ones_like(ids), 1, False)


@pytest.mark.parametrize(
    "kind, config, more",
    [
        ("Granite", "GraniteConfig", dict(logits_scaling=8.0)),
        ("Cohere", "CohereConfig", dict(logit_scale=0.0625)),
        ("Gemma2", "Gemma2Config", dict(final_logit_softcapping=3.0, head_dim=8)),
    ],
)
def test_a_models_own_scale_of_logits_is_kept(kind, config, more):
    import transformers

    torch.manual_seed(0)
    shape = dict(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, config)(**shape | more)
    )
    self = SimpleNamespace(
        whole_rows=False,
        num_generations=2,
        temperature=0.7,
        _entropy_bonus_enabled=True,
        model_kwarg_keys={"logits_to_keep"},
        accelerator=SimpleNamespace(unwrap_model=lambda m: m, autocast=contextlib.nullcontext),
    )
    self._group_logps = StepTrainer._group_logps.__get__(self)
    ids = torch.randint(3, 61, (2, 7))
    ids[1, :4] = ids[0, :4]
    ours, theirs = (
        compute(self, model, ids, torch.ones_like(ids), 3, compute_entropy=True)
        for compute in (
            StepTrainer._get_per_token_logps_and_entropies,
            GRPOTrainer._full_logits_logps,
        )
    )
    for a, b in zip(ours[:2], theirs[:2]):
        assert torch.allclose(a, b, atol=1e-4)
    check_logits(model.eval())
    model.config.final_logit_softcapping, plain = None, model.lm_head.forward
    model.lm_head.forward = lambda states: plain(states) ** 3
    model.get_output_embeddings = lambda: SimpleNamespace(forward=plain)
    with pytest.raises(UserError, match="makes its logits in a way"):
        check_logits(model)


def test_scores_in_chunks_are_those_of_one_piece():
    torch.manual_seed(0)
    head, hidden, targets = (
        torch.nn.Linear(8, 30),
        torch.randn(23, 8, requires_grad=True),
        torch.randint(0, 30, (23,)),
    )
    logp = (head(hidden) / 0.7).log_softmax(-1)
    wanted = logp[range(23), targets], -(logp.exp() * logp).sum(-1)
    (full,) = torch.autograd.grad(sum(wanted).sum(), hidden)
    for chunk in (1, 5, 512):
        scores = token_scores(hidden, head, targets, 0.7, entropy_grad=True, chunk=chunk)
        for ours, theirs in zip(scores, wanted):
            assert torch.allclose(ours, theirs, atol=1e-5)
        assert torch.allclose(torch.autograd.grad(sum(scores).sum(), hidden)[0], full, atol=1e-5)


def test_merging_writes_the_adapted_weights(tiny_folder):
    policy = TransformersPolicy(tiny_folder)
    tuned = lora(TransformersPolicy(tiny_folder).model, 4)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    merge_into(policy.model, tuned)
    changed = {k for k, v in policy.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if "proj" in k}
    merged = tuned.merge_and_unload().state_dict()
    assert all(
        torch.allclose(v.float(), merged[k].float(), atol=1e-2)
        for k, v in policy.model.state_dict().items()
    )


def test_what_samples_and_what_is_evaluated_is_what_was_trained_in_16_bits(
    tiny_folder, environments, tmp_path, computes, monkeypatch, capsys
):
    "A change so small that weights of 16 bits would lose it reaches the sampling policy and the adapter's folder."
    computes(torch.bfloat16)
    seen = []
    plain = module.refresh

    def refreshed(policy, tuned):
        plain(policy, tuned)
        ids = torch.arange(5, 30)[None]
        with torch.no_grad():
            seen.append((policy.model(ids).logits, tuned.get_base_model()(ids).logits))
        assert policy.model.lm_head.weight is tuned.get_base_model().lm_head.weight

    monkeypatch.setattr(module, "refresh", refreshed)
    config = config_for(tiny_folder, tmp_path, learning_rate=3e-4, epochs=1, updates=3)
    folder = train(config, environments)
    assert all(torch.equal(ours, theirs) for ours, theirs in seen)
    assert not torch.equal(seen[0][0], seen[-1][0]), "the test shows nothing"
    ids = torch.arange(5, 30)[None]
    start, merged, apart_ = (
        TransformersPolicy(f) for f in (tiny_folder, folder, folder.with_name("adapter"))
    )
    with torch.no_grad():
        a, b, c = (p.model(ids).logits for p in (start, merged, apart_))
    assert not torch.equal(c, a) and not torch.equal(c, b)
    assert apart_.fingerprint != merged.fingerprint
    said = re.search(
        r"which hold (\d+)% of what was learnt; .*adapter holds all", capsys.readouterr().out
    )
    assert said and int(said[1]) < 98
    adapters = load_file(folder.with_name("adapter") / "adapter_model.safetensors")
    assert {v.dtype for v in adapters.values()} == {torch.float32}


# -- step records and rewards


@pytest.mark.parametrize("repeat", [False, True])
def test_steps_are_as_many_as_an_epoch_needs_and_short_enough(
    tiny_folder, environments, tmp_path, repeat
):
    policy = TransformersPolicy(tiny_folder)
    shown = collect(OraclePolicy(environments, slips=0.6), environments, temperature=0)
    records = [(s, t) for e, t in zip(environments, shown) for s in t.step_records(e)]
    kind = {(s.environment, s.turn): situation(s, t) for s, t in records}
    assert set(kind.values()) == {"first", "next", "retry", "answer"}
    for s, t in records:
        before = t.turns[s.turn - 1] if s.turn else None
        assert kind[s.environment, s.turn] == (
            "first"
            if not before
            else "answer"
            if not s.open()
            else "next"
            if any(before.solved)
            else "retry"
        )
    lengths = {(s.environment, s.turn): len(policy.render(s.messages, s.tools)) for s, _ in records}
    longest = sorted(lengths.values())[len(lengths) // 2]
    config = config_for(
        tiny_folder,
        tmp_path,
        updates=20,
        oversample=1,
        max_prompt_tokens=longest,
        repeat_records=repeat,
    )
    steps, dropped = choose_steps(config, policy, environments, shown, epoch=0)
    assert len(steps) == 40
    assert dropped == Counter(kind[k] for k, n in lengths.items() if n > longest)
    assert all(len(policy.render(s.messages, s.tools)) <= longest for _, s in steps)
    assert all(k == kind[s.environment, s.turn] for k, s in steps)
    times = Counter((s.environment, s.turn) for _, s in steps)
    assert len(times) == len(lengths) - dropped.total()
    shares = Counter(k for k, _ in steps)
    if repeat:
        assert max(shares.values()) - min(shares.values()) <= 1  # no kind drowns in the others
        for name in shares:
            mine = [n for record, n in times.items() if kind[record] == name]
            assert max(mine) - min(mine) <= 1  # nor a record in its kind
    else:
        assert max(times.values()) - min(times.values()) <= 1
    assert steps != choose_steps(config, policy, environments, shown, epoch=1)[0]
    with pytest.raises(UserError, match="max_prompt_tokens=16"):
        choose_steps(
            config.model_copy(update=dict(max_prompt_tokens=16)),
            policy,
            environments,
            shown,
            epoch=0,
        )


def test_no_record_comes_twice_while_another_has_not_come_and_kinds_are_spread(
    tiny_folder, environments, tmp_path
):
    policy = TransformersPolicy(tiny_folder)
    shown = collect(OraclePolicy(environments, slips=0.6), environments, temperature=0)
    config = config_for(tiny_folder, tmp_path, updates=6, prompts=2, oversample=2)
    steps, _ = choose_steps(config, policy, environments, shown, epoch=0)
    assert len(steps) == len({(s.environment, s.turn) for _, s in steps}) == 24
    kinds = [k for k, _ in steps]
    for kind in set(kinds):
        early, late = kinds[:12].count(kind), kinds[12:].count(kind)
        assert abs(early - late) <= 1  # not all answers in the first updates


def test_places_that_are_left_go_to_first_turns_of_other_environments(
    tiny_folder, environments, tmp_path
):
    policy = TransformersPolicy(tiny_folder)
    shown = collect(OraclePolicy(environments[:2]), environments[:2], temperature=0)
    known = sum(len(t.turns) for t in shown)
    others = len(environments) - 2
    config = config_for(tiny_folder, tmp_path, updates=known + others, prompts=1, oversample=1)
    steps, _ = choose_steps(config, policy, environments, shown, epoch=0)
    assert len(steps) == len({(s.environment, s.turn) for _, s in steps}) == known + others
    assert {s.environment for k, s in steps if k == "first"} == {e.id for e in environments}
    few = config.model_copy(update=dict(updates=known))
    steps, _ = choose_steps(few, policy, environments, shown, epoch=0)
    assert {s.environment for _, s in steps} == {e.id for e in environments[:2]}


@pytest.mark.parametrize("share, expected", [(0, [1.0] * 4), (0.5, [0, 0, 1.0, 1.0]), (1, [0] * 4)])
def test_a_share_of_the_trajectories_is_greedy(
    share, expected, tiny_folder, environments, tmp_path, monkeypatch
):
    def collected(policy, where, temperature, out, **rest):
        assert ("greedy" in out.name) == (temperature == 0)
        return [(e.id, temperature) for e in where]

    monkeypatch.setattr(module, "collect", collected)
    config = config_for(tiny_folder, tmp_path, environments=4, greedy_share=share)
    sandbox = SimpleNamespace(sandbox=None)
    rollouts = module.StepRollouts(config, tmp_path, None, None, environments, sandbox)
    alone = SimpleNamespace(main_process_first=contextlib.nullcontext)
    rollouts.trainer = SimpleNamespace(accelerator=alone)
    found = rollouts.collected(0)
    assert [t for _, t in found] == expected and len({e for e, _ in found}) == 4


def test_neighbouring_seeds_share_no_environments(tiny_folder, environments, tmp_path, monkeypatch):
    chosen = {}

    def collected(policy, where, seed, **rest):
        chosen.setdefault(collected.of, []).append(([e.id for e in where], seed))
        return []

    monkeypatch.setattr(module, "collect", collected)
    for collected.of in (0, 1):
        config = config_for(tiny_folder, tmp_path, seed=collected.of, environments=3)
        rollouts = module.StepRollouts(
            config, tmp_path, None, None, environments, SimpleNamespace(sandbox=None)
        )
        rollouts.trainer = SimpleNamespace(
            accelerator=SimpleNamespace(main_process_first=contextlib.nullcontext)
        )
        for epoch in range(4):
            rollouts.collected(epoch)
    for (where, seed), (others, another) in zip(chosen[0][1:], chosen[1]):
        assert where != others and seed != another  # epoch e + 1 of seed 0, epoch e of seed 1


def test_the_first_update_moves_the_weights(tiny_folder, environments, tmp_path, monkeypatch):
    changed, plain = [], module.refresh

    def refreshed(policy, tuned):
        plain(policy, tuned)
        changed.append(max(p.abs().max() for n, p in tuned.named_parameters() if "lora_B" in n))

    monkeypatch.setattr(module, "refresh", refreshed)
    train(config_for(tiny_folder, tmp_path, epochs=1, updates=4, warmup=0.5), environments)
    assert (
        changed[:2] == [0, 0] and changed[2] > 0
    )  # of the epoch, of the first batch and the second
    shares = [engine_trainer.rate_share(k, 2, 8) for k in range(8)]
    assert shares[:3] == [1 / 3, 2 / 3, 1] and shares[3:] == sorted(shares[3:], reverse=True)
    assert min(shares) > 0 and engine_trainer.rate_share(0, 0, 4) == 1


def test_naming_an_epochs_prompts_does_not_copy_the_model(tiny_folder):
    from datasets.utils._dill import (
        dumps,
    )  # what `datasets` makes of a transform, to tell it from others

    prompts = module.SlotPrompts(StepRewards(make_config(), TransformersPolicy(tiny_folder)))
    assert len(dumps(prompts)) < 1000


@given(st.integers(1, 4), st.data())
def test_the_groups_with_most_at_stake_are_kept_whole(group, data):
    groups = data.draw(
        st.lists(
            st.lists(st.sampled_from([-0.5, -0.3, 0.0, 0.5, 1.0]), min_size=group, max_size=group),
            min_size=1,
            max_size=8,
        )
    )
    wanted = data.draw(st.integers(1, len(groups)))
    kept = informative([r for g in groups for r in g], group, wanted)
    chosen = sorted({k // group for k in kept})
    assert kept == [g * group + k for g in chosen for k in range(group)] and len(chosen) == wanted
    at_stake = [min(0.5, max(g) - min(g)) for g in groups]  # beyond half a point all are equal
    assert sorted(at_stake)[-wanted:] == sorted(at_stake[g] for g in chosen)


def test_shuffled_rewards_are_the_same_rewards_in_another_order(
    tiny_folder, environments, tmp_path
):
    policy, steps = TransformersPolicy(tiny_folder), [e.start() for e in environments]
    oracle = OraclePolicy(environments).generate([(s.messages, s.tools) for s in steps])
    texts = [t if i % 2 else "" for i, t in enumerate(oracle)]
    ids = [policy.tokenizer(t + "<|im_end|>", add_special_tokens=False).input_ids for t in texts]
    ask = dict(prompts=None, completions=None, completion_ids=ids, slot=list(range(len(steps))))

    def rewards(step=0, **changes):
        function = StepRewards(config_for(tiny_folder, tmp_path, **changes), policy)
        function.steps = steps
        return function(**ask, trainer_state=SimpleNamespace(global_step=step))

    plain, shuffled = rewards(), rewards(shuffle_rewards=True)
    assert plain == [score_turn(t, s).reward for t, s in zip(texts, steps)] and len(set(plain)) > 1
    assert sorted(shuffled) == sorted(plain) and shuffled != plain
    assert shuffled == rewards(shuffle_rewards=True) != rewards(step=1, shuffle_rewards=True)


def test_what_is_logged_is_of_all_turns_that_were_sampled_and_not_of_those_that_were_kept(
    tiny_folder, environments, tmp_path, monkeypatch
):
    scored, plain = [], StepRewards.score

    def score(self, completion_ids, slot):
        scores = plain(self, completion_ids, slot)
        scored.append([(s, self.steps[i].open()) for s, i in zip(scores, slot)])
        return scores

    monkeypatch.setattr(StepRewards, "score", score)
    train(config_for(tiny_folder, tmp_path, oversample=3, epochs=1, seed=1), environments)
    log = [r for r in json.loads((tmp_path / "rl" / "log.json").read_text()) if "reward" in r]
    for row, turns, kept in zip(log, scored[::2], scored[1::2], strict=True):
        assert (len(turns), len(kept)) == (24, 8)
        scores, calls = [s for s, _ in turns], [c for s, _ in turns for c in s.calls]
        solved = sum(c.solved is not None for c in calls)
        told = dict(
            mean_reward=sum(s.reward for s in scores) / 24,
            solve_precision=solved / len(calls),
            solve_recall=solved / sum(n for _, n in turns),
            malformed_share=sum(s.case == "malformed" for s in scores) / 24,
            empty_share=sum(s.case == "empty" for s in scores) / 24,
            exploit_share=exploit_rate(scores),
        )
        assert {k: row[k] for k in told} == pytest.approx(told)
        assert row["reward"] == pytest.approx(sum(s.reward for s, _ in kept) / 8, abs=1e-6)
        shown, bar = [], callbacks.ProgressBar("train")
        bar.training_bar = SimpleNamespace(set_postfix=shown.append)
        bar.on_log(None, None, None, logs=row)
        assert shown[0]["mean_reward"] == f"{row['mean_reward']:.3g}" and "reward" not in shown[0]
    assert any(abs(row["reward"] - row["mean_reward"]) > 0.05 for row in log), (
        "the kept ones are like the others; the test shows nothing"
    )


@pytest.mark.parametrize("most", [None, 0.02])
def test_an_update_that_leaps_is_seen_warned_of_and_pulled_back_if_asked(
    tiny_folder, environments, tmp_path, capsys, most
):
    config = config_for(
        tiny_folder,
        tmp_path,
        epochs=1,
        updates=3,
        learning_rate=1.0,
        max_update_kl=most,
        seed=1,
    )
    train(config, environments)
    log = [r for r in json.loads((tmp_path / "rl" / "log.json").read_text()) if "reward" in r]
    moves, shares = [r["update_kl"] for r in log], [r["update_share"] for r in log]
    assert len(log) == 3 and all(r["grad_norm"] >= 0 for r in log)
    said = "collapse watch" in capsys.readouterr().out
    if most:
        assert max(moves) <= most and min(shares) < 1 and not said
        assert set(shares) <= {1, 0.5, 0.25, 0.125, 0}
    else:
        assert max(moves) > 0.1 and set(shares) == {1} and said


def test_an_update_that_is_undone_leaves_the_weights_as_they_were(
    tiny_folder, environments, tmp_path
):
    config = config_for(
        tiny_folder, tmp_path, epochs=1, updates=2, learning_rate=50.0, max_update_kl=1e-9
    )
    folder = train(config, environments)
    start, end = (load_file(f / "model.safetensors") for f in (tiny_folder, folder))
    assert all(torch.equal(v.bfloat16(), end[k]) for k, v in start.items() if k in end)


def test_the_kl_of_an_update_is_the_one_computed_by_hand(tiny_folder, environments, tmp_path):
    kept = []

    class Hand(callbacks.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            inputs, before = trainer.seen
            said, now = inputs["completion_mask"], trainer.logps_of(inputs).detach()
            ratio = (now - before)[said.bool()].exp()
            kept.append(float((ratio - 1 - ratio.log()).mean()))

    config = config_for(tiny_folder, tmp_path, epochs=1, updates=2)
    policy = TransformersPolicy(tiny_folder)
    tuned = lora(TransformersPolicy(tiny_folder).model, 4)
    trainer = module.step_trainer(config, tmp_path, policy, tuned, environments)
    trainer.add_callback(Hand())
    trainer.train()
    log = [r["update_kl"] for r in trainer.state.log_history if "update_kl" in r]
    assert log == pytest.approx(kept, abs=1e-6) and max(log) > 0


# -- one update, by hand


@pytest.mark.parametrize(
    "algorithm, rank, dtype, off",
    [
        *(
            (algorithm, 4, torch.float32, 2e-5)
            for algorithm in ("grpo", "dapo", "dr_grpo", "reinforce++", "reinforce++-baseline")
        ),
        ("grpo", 0, torch.float32, 2e-5),
        ("grpo", 4, torch.bfloat16, 0.02),
        ("grpo", 0, torch.bfloat16, 0.02),
    ],
)
def test_advantages_and_loss_are_those_computed_by_hand(
    tiny_folder, environments, tmp_path, monkeypatch, computes, algorithm, rank, dtype, off
):
    computes(dtype)
    config = config_for(
        tiny_folder,
        tmp_path,
        epochs=1,
        updates=3,
        prompts=4,
        micro_prompts=2,
        algorithm=algorithm,
        kl=0.05,
        entropy=0.01,
        lora_rank=rank,
        learning_rate=0.02 if rank else 0.002,
    )
    start = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    seen, theirs = [], StepTrainer._compute_loss

    def watched(self, model, inputs):
        loss, coefficient = theirs(self, model, inputs), self.beta
        self.beta = 0
        with torch.no_grad():
            term = float(loss - theirs(self, model, inputs))  # of KL alone
        self.beta = coefficient
        seen.append(
            (
                self.state.global_step,
                inputs,
                float(loss.detach()),
                term,
                *by_hand(self, model, inputs),
            )
        )
        return loss

    @torch.no_grad()
    def by_hand(self, model, inputs):
        "The loss of the paper (section 3.3) from full rows: no shared prompts, no chunks, no code of TRL."
        mask, C = inputs["completion_mask"].float(), inputs["completion_ids"].shape[1]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)

        def logp(model=model):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = model(ids, attention_mask=attention).logits
            return (logits[:, -C - 1 : -1].float() / config.temperature).log_softmax(-1)

        full = logp()
        with model.disable_adapter() if rank else contextlib.nullcontext():
            reference = logp() if rank else logp(start)
        chosen = inputs["completion_ids"][..., None]
        ratio = (reference.gather(-1, chosen) - full.gather(-1, chosen))[..., 0]
        kl, entropy = ratio.exp() - ratio - 1, -(full.exp() * full).sum(-1)
        all_tokens = sum(
            b["completion_mask"].sum() for b in self._buffered_inputs
        )  # of the whole update

        def mean(x):
            "Of a value of each token, as the algorithm has it, over 2 micro-batches."
            return {
                "grpo": (x.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2,
                "dr_grpo": x.sum() / (len(x) * config.max_new_tokens) / 2,
            }.get(algorithm, x.sum() / all_tokens)

        term = mean(config.kl * kl * mask)
        return float(term), float(
            mean(-inputs["advantages"][:, None] * mask)
            + term
            - config.entropy * (entropy * mask).sum() / mask.sum() / 2
        )

    scored, plain = [], StepRewards.__call__

    def rewards(self, prompts, completions, completion_ids, slot, **rest):
        values = plain(self, prompts, completions, completion_ids, slot, **rest)
        step = [self.steps[i] for i in slot]
        scored.append(
            [
                (self.policy.render(s.messages, s.tools), list(c), v)
                for s, c, v in zip(step, completion_ids, values)
            ]
        )
        return values

    monkeypatch.setattr(StepTrainer, "_compute_loss", watched)
    monkeypatch.setattr(StepRewards, "__call__", rewards)
    train(config, environments)
    assert [s for s, *_ in seen] == [0, 0, 1, 1, 2, 2] and len(scored) == 3
    moved = apart = False
    for update in range(3):
        rows = scored[update]
        assert len(rows) == 16
        groups = [[v for _, _, v in rows[g : g + 4]] for g in range(0, 16, 4)]
        values = torch.tensor([v for _, _, v in rows])
        centred = torch.tensor([v - sum(group) / 4 for group in groups for v in group])
        apart |= abs(values.std() - centred.std()) > 0.01
        wanted = []
        for g, group in enumerate(groups):
            assert (
                len({tuple(p) for p, _, _ in rows[4 * g : 4 * g + 4]}) == 1
            )  # a group shares its prompt
            mean = values.mean() if algorithm == "reinforce++" else sum(group) / 4
            spread = {
                "dr_grpo": torch.tensor(1 - 1e-4),
                "reinforce++": values.std(),
                "reinforce++-baseline": centred.std(),
            }.get(algorithm, torch.tensor(group).std())
            wanted += [
                (tuple(p), tuple(c), round(float((v - mean) / (spread + 1e-4)), 3))
                for p, c, v in rows[4 * g : 4 * g + 4]
            ]
        got = []
        for _, inputs, loss, term, kl, mine in [s for s in seen if s[0] == update]:
            assert loss == pytest.approx(mine, abs=off) and term == pytest.approx(
                kl, rel=5 * off, abs=1e-5
            )
            for i in range(len(inputs["advantages"])):
                real = lambda name: tuple(
                    inputs[f"{name}_ids"][i][inputs[f"{name}_mask"][i].bool()].tolist()
                )
                got.append(
                    (real("prompt"), real("completion"), round(float(inputs["advantages"][i]), 3))
                )
        assert Counter(got) == Counter(wanted)
        moved |= any(a for *_, a in got)
    assert moved and apart, "all groups were alike; the test shows nothing"
    log = [r for r in json.loads((tmp_path / "rl" / "log.json").read_text()) if "reward" in r]
    assert max(term for *_, term, _, _ in seen) > 5e-4  # of KL, or it were not tested
    for update, row in enumerate(log):
        assert row["reward"] == pytest.approx(sum(v for *_, v in scored[update]) / 16, abs=1e-4)
        assert row["loss"] == pytest.approx(sum(l for s, _, l, *_ in seen if s == update), abs=1e-3)


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "reinforce++"])
def test_mini_batches_are_weighted_by_clipped_ratios_to_the_policy_that_sampled(
    tiny_folder, environments, tmp_path, monkeypatch, computes, algorithm
):
    computes(torch.float32)
    config = config_for(
        tiny_folder,
        tmp_path,
        epochs=1,
        updates=2,
        prompts=4,
        mini_batches=4,
        seed=1,
        algorithm=algorithm,
        kl=0,
        entropy=0,
        learning_rate=0.1,
        warmup=0,
    )
    seen, prompts, sampled, theirs = [], [], [], StepTrainer._compute_loss
    high = 0.28 if algorithm == "dapo" else 0.2

    @torch.no_grad()
    def logp(model, inputs):
        "Of the completions, from full rows: no shared prompts, no chunks, no code of TRL."
        C = inputs["completion_ids"].shape[1]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        logits = model(
            ids, attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        ).logits
        return (
            (logits[:, -C - 1 : -1].float() / config.temperature)
            .log_softmax(-1)
            .gather(-1, inputs["completion_ids"][..., None])[..., 0]
        )

    def watched(self, model, inputs):
        batches = self._buffered_inputs
        k = next(i for i, b in enumerate(batches) if b is inputs)
        if k == 0:
            sampled[:] = [logp(model, b) for b in batches]  # before the first update on this batch
        old, new, mask, A = (
            sampled[k],
            logp(model, inputs),
            inputs["completion_mask"].float(),
            inputs["advantages"][:, None],
        )
        ratio = (new - old).exp()
        per_token = -torch.min(ratio * A, ratio.clamp(0.8, 1 + high) * A) * mask
        tokens = (
            sum(b["completion_mask"].sum() for b in batches) / 4
        )  # of a mini-batch, in the mean
        wanted = (
            (per_token.sum(1) / mask.sum(1).clamp(min=1)).mean()
            if algorithm == "grpo"
            else per_token.sum() / tokens
        )
        loss = theirs(self, model, inputs)
        clipped = ((ratio * A > ratio.clamp(0.8, 1 + high) * A) & (mask > 0)).any()
        seen.append(
            (
                self.state.global_step,
                k,
                float(loss.detach()),
                float(wanted),
                bool(clipped),
                float(((inputs["old_per_token_logps"] - old) * mask).abs().max()),
                float(((new - old) * mask).abs().max()),
            )
        )
        prompts.append(inputs["prompt_ids"].unique(dim=0).tolist())
        return loss

    monkeypatch.setattr(StepTrainer, "_compute_loss", watched)
    train(config, environments)
    assert [(s, k) for s, k, *_ in seen] == [
        (i, i % 4) for i in range(8)
    ]  # eight updates on two batches
    for step, k, loss, wanted, _, off, moved in seen:
        assert loss == pytest.approx(wanted, abs=2e-5) and off < 1e-4
        assert (moved == 0) if k == 0 else (moved > 0.2)  # or the old ones could be the new ones
    assert any(clipped for *_, clipped, _, _ in seen), "nothing was clipped; the test shows nothing"
    assert all(len(p) == 1 for p in prompts)  # whole groups
    assert [p[0] for p in prompts] != sorted(p[0] for p in prompts[:4]) + sorted(
        p[0] for p in prompts[4:]
    )  # by chance
    log = [r for r in json.loads((tmp_path / "rl" / "log.json").read_text()) if "loss" in r]
    assert [r["step"] for r in log if "reward" in r] == [1, 5] and len(
        log
    ) == 8  # rewards are those of a batch


@pytest.fixture(scope="module")
def one_update(tiny_folder, environments, tmp_path_factory):
    "Logs of one update on four groups of four turns."

    def run(**changes):
        out = tmp_path_factory.mktemp("one")
        train(
            config_for(tiny_folder, out, epochs=1, updates=1, prompts=4, entropy=0, **changes),
            environments,
        )
        return next(r for r in json.loads((out / "rl" / "log.json").read_text()) if "reward" in r)

    return run, run()


@pytest.mark.parametrize(
    "change", [dict(gradient_checkpointing=True), dict(split_group=2), dict(split_group=4)]
)
def test_what_saves_memory_changes_nothing_else(one_update, change):
    run, plain = one_update
    changed = run(**change)
    assert (
        changed["reward"] == plain["reward"]
        and changed["completions/mean_length"] == plain["completions/mean_length"]
    )
    assert plain["grad_norm"] > 0.01  # or there were nothing to compare
    for name in ("loss", "grad_norm"):
        assert changed[name] == pytest.approx(plain[name], rel=0.03, abs=1e-4)


# -- memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [4, 0])
def test_memory_is_what_a_real_run_holds(
    tiny_folder, environments, tmp_path, monkeypatch, computes, rank, dtype
):
    computes(dtype)
    config = config_for(
        tiny_folder, tmp_path, epochs=1, updates=1, lora_rank=rank, learning_rate=0.002
    )
    held, rows, trainers = [], [], []
    forward, made, tiny = (
        StepTrainer._group_logps,
        module.step_trainer,
        LlamaForCausalLM.from_pretrained(tiny_folder).config,
    )

    def kept(self, model, ids, seen, C, entropy):
        "As `StepTrainer._group_logps`, noting the bytes that autograd holds and the tokens of the row."
        if not torch.is_grad_enabled():
            return forward(self, model, ids, seen, C, entropy)
        own, stores = (
            {
                t.untyped_storage().data_ptr()
                for t in itertools.chain(model.parameters(), model.buffers())
            },
            {},
        )

        def keep(t):
            if t.untyped_storage().data_ptr() not in own:
                stores[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            result = forward(self, model, ids, seen, C, entropy)
        held.append(sum(n for n, _ in stores.values()))
        rows.append(pack_groups(ids, seen, C, config.group)[0].shape[1])
        return result

    def remembered(*args):
        trainers.append(made(*args))
        return trainers[0]

    monkeypatch.setattr(StepTrainer, "_group_logps", kept)
    monkeypatch.setattr(module, "step_trainer", remembered)
    train(config, environments)
    for real, tokens in zip(held, rows, strict=True):
        told = (
            memory_needed(
                config.model_copy(
                    update=dict(max_prompt_tokens=tokens - 4 * config.max_new_tokens)
                ),
                tiny,
            )["activations"]
            * 1e9
        )
        assert told == pytest.approx(real, rel=0.1) and real > 1e6
    model, optimizer = trainers[0].model, trainers[0].optimizer.optimizer
    trained = [p for p in model.parameters() if p.requires_grad]
    states = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if v.dim())
    gradients, told = sum(p.nbytes for p in trained), memory_needed(config, tiny)
    assert gradients + states + (gradients if rank else 0) == pytest.approx(
        told["gradients and optimizer"] * 1e9
    )
    assert sum(p.nbytes for p in model.parameters()) - (gradients if rank else 0) == pytest.approx(
        told["weights"] * 1e9
    )
    if not rank:
        assert sum(p.nbytes for p in trainers[0].ref_model.parameters()) == pytest.approx(
            told["reference"] * 1e9
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_keys_and_values_are_as_large_as_told(tiny_folder, environments, tmp_path, computes, dtype):
    computes(dtype)
    config = config_for(
        tiny_folder,
        tmp_path,
        prompts=1,
        oversample=1,
        group=5,
        environments=1,
        max_prompt_tokens=40,
        rollout_rows=9,
    )
    policy = TransformersPolicy(tiny_folder)
    prompts = prefill(policy.model, [[5] * 40], [5], policy.memory, 0)[0]
    own = own_cache(prompts, policy.model, config.max_new_tokens)
    held = sum(x.nbytes for x in prompts.keys + prompts.values) + sum(
        l.keys.nbytes + l.values.nbytes for l in own.layers
    )
    assert memory_needed(config, policy.model.config)["rollouts"] * 1e9 == held


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim") or torch.cuda.is_available(),
    reason="only glibc gives memory back, and only a CPU's is meant",
)
def test_memory_between_tensors_that_are_needed_goes_back_to_the_system():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=8,
            num_attention_heads=2,
        )
    )
    ids, resident = torch.ones(1, 4, dtype=torch.long), psutil.Process().memory_info
    pieces = [torch.ones(2**14) for _ in range(4000)]  # of 64 KB, so from the heap
    del pieces[::2]
    full = resident().rss
    model(ids)
    assert full - resident().rss < 20e6  # nothing gives it back by itself
    with checkpoints.tidy(lora(model, 2)):
        model(ids)
    assert full - resident().rss > 100e6
    full = resident().rss
    del pieces[::2]
    model(ids)
    assert full - resident().rss < 20e6  # the hooks are gone


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            dict(group=40_000, max_new_tokens=90),
            "lower micro_prompts=1.*split_group=1.*gradient_checkpointing",
        ),
        (
            dict(group=8, rollout_rows=10**8, prompts=10**7, oversample=10),
            "lower rollout_rows=100000000",
        ),
        (dict(collect_rows=10**8, environments=10**8), "lower collect_rows=100000000"),
        (dict(lora_rank=10**9), "smaller model"),
        (
            dict(max_prompt_tokens=4090, max_new_tokens=7),
            "max_prompt_tokens=4090.*max_new_tokens=7.*4096 positions",
        ),
    ],
)
def test_a_run_that_cannot_fit_is_refused_before_it_starts(
    tiny_folder, environments, tmp_path, changes, said
):
    with pytest.raises(UserError, match=said):
        train(config_for(tiny_folder, tmp_path, **changes), environments)


@pytest.mark.parametrize(
    "part, changes",
    [
        ("activations", dict(split_group=2)),
        ("activations", dict(gradient_checkpointing=True)),
        ("rollouts", dict(rollout_rows=1)),
        ("conversations", dict(collect_rows=1)),
        ("gradients and optimizer", dict(lora_rank=2)),
    ],
)
def test_each_advice_lowers_its_part_and_the_peak_does_not_rise(
    tiny_folder, tmp_path, part, changes
):
    tiny = LlamaForCausalLM.from_pretrained(tiny_folder).config
    before, after = (
        memory_needed(config_for(tiny_folder, tmp_path, **c), tiny) for c in ({}, changes)
    )
    assert after[part] < before[part] and after["peak"] <= before["peak"]


# -- 16 or 32 bits


@pytest.mark.parametrize("rank", [4, 0])
def test_what_was_trained_in_32_bits_is_saved_in_16(
    tiny_folder, environments, tmp_path, computes, rank
):
    computes(torch.float32)
    config = config_for(
        tiny_folder,
        tmp_path,
        epochs=1,
        lora_rank=rank,
        warm_steps=4,
        learning_rate=0.02 if rank else 0.002,
        warm_learning_rate=0.002,
    )
    for folder in (warm_start(config, environments), train(config, environments)):
        before, after = (
            load_file(tiny_folder / "model.safetensors"),
            load_file(folder / "model.safetensors"),
        )
        assert {w.dtype for w in after.values()} == {torch.bfloat16} and any(
            (before[k] != after[k]).any() for k in after
        )
        adapter = folder.with_name("adapter")
        if not rank:
            assert not adapter.exists()
        else:
            assert {w.dtype for w in load_file(adapter / "adapter_model.safetensors").values()} == {
                torch.float32
            }
            merged = load_file(
                module.merge_adapter(tiny_folder, adapter, adapter.with_name("merged"))
                / "model.safetensors"
            )
            assert merged.keys() == after.keys() and all(
                torch.allclose(merged[k].float(), w.float(), rtol=1e-2, atol=1e-5)
                for k, w in after.items()
            )
            moved = compare(tiny_folder, adapter)
            assert set(moved[moved.relative > 0].name) == {k for k in after if "proj" in k}


# -- whole runs


@pytest.fixture(scope="module")
def run(tiny_folder, environments, tmp_path_factory):
    "An unbroken run of 2 epochs of 2 updates."
    out = tmp_path_factory.mktemp("unbroken")
    train(config_for(tiny_folder, out), environments)
    return out / "rl"


def same_trajectories(a, b):
    "Two runs collected the same trajectories, each once, and no other file of them."
    files = sorted(p.name for p in a.glob("trajectories-*.jsonl"))
    return files == sorted(p.name for p in b.glob("trajectories-*.jsonl")) == [
        "trajectories-0.jsonl",
        "trajectories-1.jsonl",
    ] and all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


def test_a_run_trains_and_keeps_what_it_did(run, tiny_folder, environments):
    before, after = load_file(tiny_folder / "model.safetensors"), weights(run)
    assert before.keys() == after.keys()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {
        k for k in after if "proj" in k
    }
    assert [s for s, *_ in losses(run)] == [1, 2, 3, 4]
    for epoch in range(2):
        known = read_jsonl(run / f"trajectories-{epoch}.jsonl", Trajectory)
        assert len({t.environment for t in known}) == len(known) == 4
    row = next(r for r in json.loads((run / "log.json").read_text()) if "reward" in r)
    assert {
        "kl",
        "entropy",
        "mean_reward",
        "solve_precision",
        "solve_recall",
        "malformed_share",
        "empty_share",
    } <= row.keys()
    drawn = curves({"a": run / "log.json"})
    assert len(drawn.data) == len(MAIN_CURVES) and all(
        len(d.y) == 4 and all(y == y for y in d.y) for d in drawn.data
    )  # no panel is empty
    assert {
        "malformed_share",
        "empty_share",
        "tokens_per_second",
        "memory_gb",
    } <= module.CURVES.keys()
    axes = [a for a in drawn.layout if a.startswith("xaxis")]
    assert (
        len(axes) == len(MAIN_CURVES) and sum(bool(drawn.layout[a].title.text) for a in axes) == 3
    )  # no blank panel; each column is labelled


LIVE = """
from toolrl_lit.schema import Environment, read_jsonl
from toolrl_lit.train import make_config, train
train(make_config(**{told}), read_jsonl({file!r}, Environment), live=True);
"""


def test_live_curves_grow_in_a_notebook_with_no_network(tiny_folder, environments, tmp_path):
    import nbclient
    import nbformat

    file = write_jsonl(tmp_path / "train.jsonl", environments)
    told = config_for(tiny_folder, tmp_path / "out", updates=3, epochs=1).model_dump()
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(LIVE.format(told=told, file=str(file)))]
    )
    seen = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, index):
            data = message["content"].get("data", {})
            if message["msg_type"] in ("display_data", "update_display_data"):
                seen.append((message["msg_type"], data["text/html"]))
            return super().process_message(message, cell, index)

    Client(
        book,
        timeout=300,
        resources={"metadata": {"path": str(Path(module.__file__).parent.parent)}},
    ).execute()
    script, first, *later = seen
    assert script[1].startswith("<script>") and len(script[1]) > 1e6 and first[0] == "display_data"
    assert [kind for kind, _ in later] == ["update_display_data"] * 2
    points = [
        json.JSONDecoder().raw_decode(html, html.index('[{"'))[0][0]["x"]
        for _, html in [first, *later]
    ]
    assert points == [[1], [1, 2], [1, 2, 3]]
    assert not any("cdn" in html or "<script src" in html for _, html in [first, *later])
    kept = [o.data["text/html"] for o in book.cells[0].outputs if o.output_type == "display_data"]
    assert kept == [script[1], later[-1][1]]  # what is saved is the last state, with what draws it


def test_curves_of_several_seeds_are_their_mean_and_its_interval():
    seeds = [[{"step": i, "reward": 9, "mean_reward": r * i} for i in (1, 2, 3)] for r in (1, 2, 6)]
    mean, band = curves({"a": seeds}, keys=["mean_reward"]).data
    assert list(mean.x) == [1, 2, 3] and list(mean.y) == pytest.approx([3, 6, 9])
    half = 4.302653 * 7**0.5 / 3**0.5  # Student's t, 2 degrees of freedom
    assert list(band.y) == pytest.approx(
        [3 + half, 6 + 2 * half, 9 + 3 * half, 9 - 3 * half, 6 - 2 * half, 3 - half], rel=1e-5
    )
    assert (
        len(curves({"a": seeds[0], "b": seeds[1]}, keys=["mean_reward"]).data) == 2
    )  # one seed has no interval


def test_a_log_without_the_mean_over_all_turns_is_drawn_by_the_mean_that_it_has():
    drawn = curves(
        {"old": [{"step": 1, "reward": 0.2}, {"step": 2, "loss": 0.1}, {"step": 3, "reward": 0.4}]}
    ).data
    assert (
        len(drawn) == len(MAIN_CURVES)
        and list(drawn[0].x) == [1, 3]
        and list(drawn[0].y) == [0.2, 0.4]
    )


def test_the_trained_policy_can_be_used(run, environments):
    trajs = collect(
        TransformersPolicy(run / "model"),
        environments[:2],
        temperature=0,
        max_turns=2,
        max_new_tokens=6,
    )
    assert len(trajs) == 2 and all(t.turns for t in trajs)


def test_a_finished_run_is_returned_at_once(run, tiny_folder, environments, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda *a: pytest.fail("must not load a model"))
    assert train(config_for(tiny_folder, run.parent), environments) == run / "model"


def stop_at(monkeypatch, where: str, count: int, module=module):
    "Raise KeyboardInterrupt at the given call of a function."
    calls, plain = iter(range(1, 1000)), getattr(module, where)

    def stops(*args, **kwargs):
        if next(calls) == count:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, where, stops)


@pytest.mark.parametrize(
    "place, where, count",
    [
        (sampling, "generate_tokens", 2),  # in epoch 1, with one update done
        (module, "collect", 2),  # between the epochs
        (module, "score_batch", 8),  # in the last update, whose turns have been sampled
        (checkpoints, "merge_into", 1),  # after the last update
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(
    run, tiny_folder, environments, tmp_path, monkeypatch, place, where, count
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, where, count, place)
        train(config_for(tiny_folder, tmp_path), environments)
    assert not (tmp_path / "rl" / "model").exists()
    train(config_for(tiny_folder, tmp_path), environments)
    assert same_trajectories(run, tmp_path / "rl")
    assert losses(tmp_path / "rl") == losses(run)
    assert same(run, tmp_path / "rl")


def test_killed_workers_of_the_sandbox_change_nothing(
    run, tiny_folder, environments, tmp_path, monkeypatch
):
    plain, killed, before = StepRewards.score, [], psutil.Process().children()
    with ToolSandbox(workers=2) as box:

        def score(self, *args):
            for worker in set(psutil.Process().children()).difference(before):
                worker.kill()
                killed.append(worker)
            return plain(self, *args)

        monkeypatch.setattr(StepRewards, "score", score)
        train(config_for(tiny_folder, tmp_path), environments, sandbox=box)
    assert (
        len(killed) >= 4 and losses(tmp_path / "rl") == losses(run) and same(run, tmp_path / "rl")
    )


def test_a_sandbox_that_starts_no_more_ends_the_run_which_goes_on_later(
    run, tiny_folder, environments, tmp_path, monkeypatch
):
    calls, plain = iter(range(1, 100)), StepRewards.score

    def score(self, *args):
        if next(calls) < 6:
            return plain(self, *args)
        raise UserError(
            "a sandbox worker does not start although others did: is the memory or the number of processes used up?"
        )

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="a sandbox worker does not start"),
    ):
        patch.setattr(StepRewards, "score", score)
        train(config_for(tiny_folder, tmp_path), environments)
    assert (
        list((tmp_path / "rl").glob("checkpoint-*")) and not (tmp_path / "rl" / "model").exists()
    )  # no reward stood in for the failed ones
    train(config_for(tiny_folder, tmp_path), environments)
    assert losses(tmp_path / "rl") == losses(run) and same(run, tmp_path / "rl")


def test_a_run_interrupted_between_mini_batches_goes_on_to_the_same_weights(
    tiny_folder, environments, tmp_path, monkeypatch
):
    config = lambda name: config_for(tiny_folder, tmp_path / name, mini_batches=2)
    train(config("whole"), environments)
    steps, plain = iter(range(1, 100)), StepTrainer._compute_loss

    def stops(*args):
        if next(steps) == 4:
            raise KeyboardInterrupt  # the second of two updates on the second batch
        return plain(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StepTrainer, "_compute_loss", stops)
        train(config("broken"), environments)
    train(config("broken"), environments)
    a, b = tmp_path / "whole" / "rl", tmp_path / "broken" / "rl"
    assert same_trajectories(a, b) and losses(a) == losses(b) and len(losses(a)) == 4 and same(a, b)


def killed(stage: str, config: TrainConfig, environments, tmp_path, where: str, count: int):
    "Begin a training, or a warm start, in a process that is killed at the given call of a function."
    file, log = write_jsonl(tmp_path / "environments.jsonl", environments), tmp_path / "killed.txt"
    code = apart.run(apart.killed, stage, config.model_dump(), file, where, count, log=log)
    assert code == -signal.SIGKILL, log.read_text()[-2000:]


@pytest.mark.parametrize(
    "where, count, written",
    [
        (
            "toolrl_lit.train.score_batch",
            3,
            "checkpoint-1/trainer_state.json",
        ),  # turns of an update have been sampled
        ("torch.save", 7, "checkpoint-2/optimizer.pt"),  # a checkpoint is being written
        (
            "toolrl_lit.collect._rollouts",
            2,
            "checkpoint-2/trainer_state.json",
        ),  # the second epoch is being collected
        ("toolrl_lit.engine.checkpoints.save_model", 1, "log.json"),
    ],
)  # everything has been learnt
def test_a_killed_run_goes_on_to_the_same_weights(
    run, tiny_folder, environments, tmp_path, where, count, written
):
    config = config_for(tiny_folder, tmp_path)
    killed("train", config, environments, tmp_path, where, count)
    assert (tmp_path / "rl" / written).exists() and not (
        tmp_path / "rl" / "model" / "config.json"
    ).exists()
    assert (
        where != "torch.save"
        or not (tmp_path / "rl" / "checkpoint-2" / "trainer_state.json").exists()
    )  # half a checkpoint
    train(config, environments)
    assert (
        same_trajectories(run, tmp_path / "rl")
        and losses(tmp_path / "rl") == losses(run)
        and same(run, tmp_path / "rl")
    )


def test_all_weights_are_trained_in_single_precision_and_a_killed_run_goes_on(
    tiny_folder, environments, tmp_path, monkeypatch
):
    full = dict(lora_rank=0, learning_rate=0.02, epochs=1)
    train(config_for(tiny_folder, tmp_path / "whole", **full), environments)
    before, after, kept = (
        load_file(tiny_folder / "model.safetensors"),
        weights(tmp_path / "whole/rl"),
        load_file(tmp_path / "whole/rl/checkpoint-2/model.safetensors"),
    )
    assert before.keys() == after.keys() == kept.keys()
    for k in before:
        assert (
            kept[k].dtype == torch.float32
            and torch.equal(kept[k].bfloat16(), after[k])
            and after[k].dtype == before[k].dtype
        )
        assert not torch.equal(kept[k], before[k].float())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "generate_tokens", 2, sampling)
        train(config_for(tiny_folder, tmp_path / "broken", **full), environments)
    train(config_for(tiny_folder, tmp_path / "broken", **full), environments)
    assert losses(tmp_path / "whole/rl") == losses(tmp_path / "broken/rl") and same(
        tmp_path / "whole/rl", tmp_path / "broken/rl"
    )


def test_small_steps_are_not_lost_where_all_weights_are_trained(
    tiny_folder, environments, tmp_path
):
    folder = warm_start(
        config_for(tiny_folder, tmp_path, lora_rank=0, warm_learning_rate=1e-6, warm_steps=3),
        environments,
    )
    before, kept = (
        load_file(tiny_folder / "model.safetensors"),
        load_file(tmp_path / "warm/checkpoint-3/model.safetensors"),
    )
    assert all(0 < (kept[k] - v.float()).abs().max() < 1e-5 for k, v in before.items())
    assert load_file(folder / "model.safetensors").keys() == before.keys()


def test_half_a_checkpoint_is_not_taken(run, tmp_path):
    for n, state in ((2, "{}"), (10, "{}"), (11, None), (12, '{"epoch": 1')):
        (tmp_path / f"checkpoint-{n}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{n}" / "trainer_state.json").write_text(state)
    assert (
        checkpoints.resume(tmp_path) == str(tmp_path / "checkpoint-10")
        and checkpoints.resume(tmp_path / "none") is None
    )


def test_warm_start_and_training_render_with_the_same_reasoning(
    thinking_folder, environments, tmp_path, monkeypatch
):
    read, taught, plain, demonstrate = [], [], sampling.generate_tokens, warming.demonstrations

    def watched(model, prompts, **rest):
        read.extend(prompts)
        return plain(model, prompts, **rest)

    def shown(policy, *rest, **more):
        taught.append(policy.reasoning)
        return demonstrate(policy, *rest, **more)

    monkeypatch.setattr(sampling, "generate_tokens", watched)
    monkeypatch.setattr(warming, "demonstrations", shown)
    config = config_for(
        thinking_folder, tmp_path, epochs=1, updates=1, reasoning=True, warm_steps=1
    )
    policy = TransformersPolicy(
        train(config, environments, start=warm_start(config, environments)), reasoning=True
    )
    assert (
        set(taught) == {True}
        and read
        and all(policy.tokenizer.decode(ids).endswith("<|im_start|>assistant\n") for ids in read)
    )


@pytest.mark.parametrize(
    "limit", [16_000, 50_000, 100_000]
)  # too little for adapters, for the states of the optimizer, for the model
def test_a_full_disk_ends_training_with_one_sentence_and_it_goes_on_later(
    tiny_folder, environments, tmp_path, run, limit
):
    file, log = write_jsonl(tmp_path / "train.jsonl", environments), tmp_path / "full.txt"
    told = config_for(tiny_folder, tmp_path / "out").model_dump()
    assert apart.run(apart.on_full_disk, told, file, limit, log=log) == 0, log.read_text()[-2000:]
    assert "start the same command again" in log.read_text()
    train(config_for(tiny_folder, tmp_path / "out"), environments)
    assert same(run, tmp_path / "out" / "rl")


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError("no room"), "ran out of memory: (lower|set)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ran out of memory: (lower|set)"),
        (torch.OutOfMemoryError("CUDA out of memory"), "ran out of memory: (lower|set)"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            ),
            "ran out of memory: (lower|set)",
        ),
        (OSError(28, "No space left on device"), "No space left.*start the same command again"),
    ],
)
def test_lack_of_memory_or_disk_is_one_sentence_wherever_it_happens(
    tiny_folder, environments, tmp_path, monkeypatch, error, said
):
    def fails(*args, **kwargs):
        raise error

    for place in (module, warming):
        monkeypatch.setattr(place, "load_model", fails)
    for start in (train, warm_start):
        with pytest.raises(UserError, match=said):
            start(config_for(tiny_folder, tmp_path), environments)
    monkeypatch.setattr(
        module, "load_model", lambda *a: (_ for _ in ()).throw(RuntimeError("a mistake of ours"))
    )
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        train(config_for(tiny_folder, tmp_path), environments)


@pytest.mark.parametrize(
    "changed",
    [
        dict(split_group=2),
        dict(micro_prompts=2),
        dict(gradient_checkpointing=True),
        dict(rollout_rows=3),
        dict(collect_rows=2),
        dict(save_updates=2, report_to="tensorboard"),
    ],
)
def test_a_run_that_ran_out_of_memory_goes_on_as_it_is_told_to(
    run, tiny_folder, environments, tmp_path, monkeypatch, capsys, changed
):
    plain = StepTrainer._compute_loss

    def full(self, model, inputs):
        if self.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, model, inputs)

    with (
        monkeypatch.context() as patch,
        pytest.raises(
            UserError,
            match="lower micro_prompts, rollout_rows or collect_rows, raise split_group, or set gradient_checkpointing=true, "
            "and start the same command again",
        ),
    ):
        patch.setattr(StepTrainer, "_compute_loss", full)
        train(config_for(tiny_folder, tmp_path), environments)
    assert (tmp_path / "rl" / "checkpoint-2").exists()
    capsys.readouterr()
    train(config_for(tiny_folder, tmp_path, **changed), environments)
    got, wanted = losses(tmp_path / "rl"), losses(run)
    assert got[:2] == wanted[:2] and [s for s, *_ in got] == [
        1,
        2,
        3,
        4,
    ]  # it went on, and did not begin again
    said = capsys.readouterr().out
    for name, new in (("rollout_rows", 3), ("collect_rows", 2)):
        assert (f"{name}: 128 before, {new} from here on" in said) == (name in changed)
    if "save_updates" in changed:
        assert got == wanted and same(run, tmp_path / "rl")
    elif "rollout_rows" not in changed:
        assert got[2][2] == wanted[2][2] and got[2][1] == pytest.approx(
            wanted[2][1], rel=0.03, abs=1e-3
        )
    with pytest.raises(UserError, match="holds another training .*kl"):
        train(config_for(tiny_folder, tmp_path, **changed, kl=0.5), environments)


def test_another_training_is_not_taken_for_this_one(run, tiny_folder, environments):
    for changed, where in (
        (dict(algorithm="reinforce++"), environments),
        (dict(), environments[:-1]),
    ):
        with pytest.raises(
            UserError,
            match="holds another training .*(algorithm: 'grpo' there|environments_sha256)",
        ):
            train(config_for(tiny_folder, run.parent, **changed), where)
    with pytest.raises(UserError, match="at least one"):
        train(config_for(tiny_folder, run.parent), [])


@pytest.mark.parametrize("state", ["finished", "half done"])
def test_a_training_from_another_start_policy_is_not_taken_for_this_one(
    tiny_folder, environments, tmp_path, monkeypatch, state
):
    start = tmp_path / "start"
    shutil.copytree(tiny_folder, start)

    def other():
        "The start policy with one weight changed, in the same place."
        held = load_file(start / "model.safetensors")
        held["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
        save_file(held, start / "model.safetensors", metadata={"format": "pt"})

    for training, name in (
        (
            lambda: train(config_for(tiny_folder, tmp_path, epochs=1), environments, start=start),
            "rl",
        ),
        (lambda: warm_start(config_for(start, tmp_path, warm_steps=2), environments), "warm"),
    ):
        with monkeypatch.context() as patch:
            if state == "half done":
                for place in (module, warming):
                    patch.setattr(
                        place, "finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
                    )
            with (
                pytest.raises(KeyboardInterrupt)
                if state == "half done"
                else contextlib.nullcontext()
            ):
                training()
        assert (tmp_path / name / "model").exists() == (state == "finished")
        kept = (start / "model.safetensors").read_bytes()
        other()
        with pytest.raises(UserError, match=f"{name}: holds another training .*start_files_sha256"):
            training()
        (start / "model.safetensors").write_bytes(kept)
        assert training() == tmp_path / name / "model"


def test_a_model_of_the_hub_is_known_by_its_commit(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_folder, tmp_path / "models--some--model" / "snapshots" / commit)
        (tmp_path / "models--some--model" / "refs").mkdir(exist_ok=True)
        (tmp_path / "models--some--model" / "refs" / "main").write_text(commit)
        assert checkpoints.digest_of("some/model") == f"some/model@{commit}"


def test_the_warm_start_learns_and_resumes(tiny_folder, environments, tmp_path):
    config = config_for(
        tiny_folder, tmp_path, warm_steps=12, warm_batch=4, warm_learning_rate=0.005
    )
    folder = warm_start(config, environments)
    log = [
        r["loss"] for r in json.loads((tmp_path / "warm" / "log.json").read_text()) if "loss" in r
    ]
    assert folder == tmp_path / "warm" / "model" and len(log) == 12 and sum(log[6:]) < sum(log[:6])
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert (
        warm_start(config, environments) == folder
        and (folder / "model.safetensors").stat().st_mtime_ns == stamp
    )


WARM = dict(warm_steps=12, warm_batch=4, warm_learning_rate=0.005)


@pytest.fixture(scope="module")
def warm(tiny_folder, environments, tmp_path_factory):
    "An unbroken warm start of 12 updates, with checkpoints after 5 and 10."
    return warm_start(
        config_for(tiny_folder, tmp_path_factory.mktemp("warm"), **WARM), environments
    ).parent


@pytest.mark.parametrize(
    "where, count, written",
    [
        (
            "torch.nn.utils.clip_grad_norm_",
            8,
            "checkpoint-5/trainer_state.json",
        ),  # in the eighth update
        ("torch.save", 7, "checkpoint-10/optimizer.pt"),  # a checkpoint is being written
        ("toolrl_lit.engine.checkpoints.save_model", 1, "log.json"),
    ],
)  # everything has been learnt
def test_a_killed_warm_start_goes_on_to_the_same_weights(
    warm, tiny_folder, environments, tmp_path, where, count, written
):
    config = config_for(tiny_folder, tmp_path, **WARM)
    killed("warm_start", config, environments, tmp_path, where, count)
    assert (tmp_path / "warm" / written).exists() and not (
        tmp_path / "warm" / "model" / "config.json"
    ).exists()
    assert (
        where == "toolrl_lit.engine.checkpoints.save_model"
        or not (tmp_path / "warm" / "checkpoint-10" / "trainer_state.json").exists()
    )
    assert warm_start(config, environments) == tmp_path / "warm" / "model"
    learnt = lambda folder: [
        (r["step"], r["loss"]) for r in json.loads((folder / "log.json").read_text()) if "loss" in r
    ]
    assert (
        learnt(tmp_path / "warm") == learnt(warm)
        and len(learnt(warm)) == 12
        and same(tmp_path / "warm", warm)
    )


# -- what is seen while it runs, and what stops it


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(
    tmp_path, tiny_folder, environments, monkeypatch
):
    config = make_config(
        model=str(tiny_folder),
        out=str(tmp_path),
        warm_steps=0,
        prompts=2,
        group=2,
        oversample=1,
        updates=2,
        epochs=2,
        environments=4,
        max_new_tokens=16,
        max_prompt_tokens=2000,
        save_updates=1,
    )
    compute = StepTrainer._compute_loss

    def spoilt(self, model, inputs):
        loss = compute(self, model, inputs)
        return loss * float("nan") if self.state.global_step == 2 else loss

    monkeypatch.setattr(StepTrainer, "_compute_loss", spoilt)
    with pytest.raises(UserError, match="update 3: .* is nan.*lower learning_rate.*merge_adapter"):
        train(config, environments)
    (kept,) = (tmp_path / "rl").glob("checkpoint-*")
    assert kept.name == "checkpoint-2" and all(
        torch.isfinite(v).all() for v in load_file(kept / "adapter_model.safetensors").values()
    )
    assert not (tmp_path / "rl" / "model").exists()
    held = load_file(
        module.merge_adapter(tiny_folder, kept, tmp_path / "merged") / "model.safetensors"
    )  # as the sentence says
    assert any(
        not torch.equal(v, load_file(tiny_folder / "model.safetensors")[k]) for k, v in held.items()
    )
    assert TransformersPolicy(tmp_path / "merged").generate(
        [([{"role": "user", "content": "?"}], [])], max_new_tokens=2
    )


SMALL = dict(
    warm_steps=0,
    prompts=2,
    group=2,
    oversample=1,
    updates=2,
    epochs=1,
    environments=4,
    max_new_tokens=16,
    max_prompt_tokens=2000,
)


def test_a_tracker_gets_the_curves(tmp_path, tiny_folder, environments):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(
        model=str(tiny_folder),
        out=str(tmp_path),
        report_to="tensorboard",
        **SMALL,
    )
    train(config, environments)
    events = EventAccumulator(str(tmp_path / "rl" / "tensorboard")).Reload()
    seen = {
        "reward",
        "mean_reward",
        "solve_precision",
        "solve_recall",
        "kl",
        "entropy",
        "malformed_share",
        "empty_share",
        "tokens_per_second",
        "memory_gb",
    }
    assert {f"train/{name}" for name in seen} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/reward")) == 2


def test_trackio_gets_the_curves_of_a_run_in_the_project_of_the_library(
    tmp_path, tiny_folder, environments
):
    write_jsonl(tmp_path / "train.jsonl", environments[:4])
    values = dict(
        model=tiny_folder,
        out=tmp_path / "first",
        report_to="trackio",
        **SMALL,
    )
    params = [str(x) for k, v in values.items() for x in ("-p", f"{k}={v}")]
    log, kept = tmp_path / "said.txt", tmp_path / "kept.json"
    where = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    rows = str(tmp_path / "train.jsonl")
    code = apart.run(apart.command, "train", "-e", rows, *params, log=log, **where)
    assert code == 0, log.read_text()[-2000:]
    assert apart.run(apart.tracked, kept, log=log, **where) == 0, log.read_text()[-2000:]
    logs = [
        r
        for r in json.loads(kept.read_text())["toolrl_lit"]["first/rl"]
        if "train/reward" in r  # others are TRL's own timings
    ]
    assert {
        "train/solve_precision",
        "train/kl",
        "train/malformed_share",
        "train/memory_gb",
    } <= logs[0].keys()
    assert [r["train/reward"] for r in logs] == [
        reward for _, _, reward in losses(tmp_path / "first" / "rl")
    ]


def test_a_tracker_that_is_not_installed_is_named(tmp_path, tiny_folder, environments, monkeypatch):
    monkeypatch.setattr(callbacks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"report_to: trackio is not installed; pip install 'toolrl_lit\[trackio\]'"
    ):
        train(
            make_config(model=str(tiny_folder), out=str(tmp_path), report_to="trackio"),
            environments,
        )


def test_a_rule_of_ones_own_rewards_turns(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "def thrifty(score):\n    return score.reward - 0.25 * len(score.calls)\n"
    )
    monkeypatch.chdir(tmp_path)
    env = demo_environment()
    step = env.start()
    right = call_text(env.golden_calls()[0])
    policy = SimpleNamespace(decode=lambda text: text, parser=parse_qwen)
    paper = StepRewards(make_config(), policy)
    own = StepRewards(make_config(reward="my_rules:thrifty"), policy)
    paper.steps = own.steps = [step]
    (before,), (after,) = paper.score([right], [0]), own.score([right], [0])
    assert after.reward == before.reward - 0.25
    assert own([None], [None], [right], [0]) == [after.reward]


@pytest.mark.parametrize(
    "rule, said",
    [
        ("thrifty", "reward"),
        ("no_such_module:thrifty", "cannot be imported"),
        ("json:no_such_function", "no function 'no_such_function'"),
    ],
)
def test_a_rule_that_is_not_there_is_refused_before_anything_is_loaded(rule, said):
    with pytest.raises(UserError, match=said):
        make_config(reward=rule)
    with pytest.raises(UserError, match="credit=step"):
        make_config(credit="episode", reward="json:dumps")
