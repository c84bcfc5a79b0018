"GRPO from nothing: what advantages, ratios and KL must be like, and the loss of TRL's own trainer."

import random
from collections import defaultdict
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import GRPOTrainer

from toolrl_lit.collect import OraclePolicy, call_text, collect
from toolrl_lit.engine.demo import DEMO_TABLES, demo_environment
from toolrl_lit.grpo import (
    batch_advantages,
    clipped_objective,
    group_advantages,
    grpo_loss,
    imitate,
    k3,
    learn,
    pack_turns,
    prompt_text,
    sample_turns,
    tiny_model,
    token_logprobs,
    token_mean,
    turn_mean,
    word_tokenizer,
)
from toolrl_lit.schema import ToolCall

few = settings(max_examples=50, deadline=None)
reward = st.floats(-1, 3, allow_nan=False, width=32)
logprob = st.floats(-8, -0.01, allow_nan=False)


def call(name: str, **arguments) -> str:
    return call_text([ToolCall(name=name, arguments=arguments)])


CALLS = [call(name, **{key: v}) for name, (key, _, table) in DEMO_TABLES.items() for v in table]


@pytest.fixture(scope="module")
def steps():
    "Before the first and before the second call, in four environments."
    environments = [demo_environment(domain) for domain in (".fr", ".pl", ".pe", ".ke")]
    rollouts = collect(OraclePolicy(environments), environments, temperature=0)
    return [s for e, r in zip(environments, rollouts) for s in list(r.step_records(e))[:2]]


@pytest.fixture(scope="module")
def tokenizer(steps):
    plain = word_tokenizer([])
    return word_tokenizer([prompt_text(plain, s) + c for s in steps for c in CALLS])


# -- advantages


@st.composite
def groups(draw):
    "Rewards of a few groups, and the size of a group."
    size, n = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    return torch.tensor(draw(st.lists(reward, min_size=size * n, max_size=size * n))), size


@few
@given(groups())
def test_advantages_of_a_group_sum_to_zero(rows):
    rewards, size = rows
    assert group_advantages(rewards, size).view(-1, size).sum(1).abs().max() < 5e-3
    assert batch_advantages(rewards).sum().abs() < 5e-3


@few
@given(groups(), st.floats(0.5, 100), st.floats(-5, 5))
def test_the_unit_of_rewards_does_not_matter(rows, scale, shift):
    rewards, size = rows
    spread = rewards.view(-1, size).std(1)
    far = (spread > 0.2).repeat_interleave(size)  # where 1e-4 beside the deviation does not show
    there = group_advantages(rewards * scale + shift, size)
    assert torch.allclose(there[far], group_advantages(rewards, size)[far], atol=5e-3)


@few
@given(reward, st.integers(2, 8))
def test_equal_rewards_have_no_advantage(value, size):
    for advantages in (group_advantages, batch_advantages):
        assert advantages(torch.full((size,), value), size).abs().max() < 0.02  # of rounding


@few
@given(groups())
def test_a_better_turn_of_a_group_has_the_higher_advantage(rows):
    rewards, size = rows
    for r, a in zip(rewards.view(-1, size), group_advantages(rewards, size).view(-1, size)):
        assert (a[r.argmax()] >= a).all() and (a[r.argmin()] <= a).all()


# -- ratio, clipping, KL


@few
@given(logprob, logprob)
def test_k3_is_never_negative_and_zero_only_where_policies_agree(a, b):
    ours, theirs = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    value = k3(ours, theirs)
    assert value >= 0 and k3(ours, ours) == 0
    if abs(a - b) > 1e-3:
        assert value > 0


def test_the_mean_of_k3_is_the_divergence():
    torch.manual_seed(0)
    p, q = torch.randn(2, 50).log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    assert torch.isclose((p.exp() * k3(p, q)).sum(), exact, atol=1e-5)


@few
@given(st.floats(0.1, 3), st.floats(-2, 2).filter(lambda a: abs(a) > 0.01), st.floats(0.05, 0.4))
def test_a_ratio_that_has_gone_far_enough_has_no_gradient(value, advantage, epsilon):
    ratio = torch.tensor(value, requires_grad=True)
    clipped_objective(ratio, torch.tensor(advantage), epsilon).backward()
    gone = value > 1 + epsilon if advantage > 0 else value < 1 - epsilon
    if min(abs(value - 1 - epsilon), abs(value - 1 + epsilon)) > 1e-3:
        assert ratio.grad == pytest.approx(0 if gone else advantage)


def test_short_and_long_turns_weigh_the_same_in_one_mean_and_by_tokens_in_the_other():
    values, said = torch.tensor([[1.0, 9], [3, 5]]), torch.tensor([[1, 0], [1, 1]])
    assert turn_mean(values, said) == (1 + 4) / 2
    assert token_mean(values, said) == (1 + 3 + 5) / 3


# -- the loss


def trl_loss(logprobs, sampled, reference, advantages, said, beta, loss_type, epsilon_high):
    "What TRL's own trainer computes from the same numbers."
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, logprobs * 0, None),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        accelerator=SimpleNamespace(
            gather=lambda x: x.detach(), reduce=lambda x, reduction: x.detach()
        ),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        importance_sampling_level="token",
        off_policy_mask_threshold=None,
        _entropy_bonus_enabled=False,
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=epsilon_high,
        use_vllm=False,
        beta=beta,
        _metrics={"train": defaultdict(list)},
    )
    prompt = torch.ones(len(said), 1, dtype=torch.long)
    inputs = dict(prompt_ids=prompt, prompt_mask=prompt, completion_ids=said, completion_mask=said)
    inputs |= dict(old_per_token_logps=sampled, ref_per_token_logps=reference)
    return GRPOTrainer._compute_loss(trainer, None, inputs | dict(advantages=advantages))


@pytest.mark.parametrize("beta, high", [(0.0, 0.2), (0.04, 0.2), (0.0, 0.28)])
@pytest.mark.parametrize("loss_type, mean", [("grpo", turn_mean), ("bnpo", token_mean)])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_those_of_trl(seed, loss_type, mean, beta, high):
    torch.manual_seed(seed)
    sampled = -3 * torch.rand(8, 6)
    reference = sampled + 0.3 * torch.randn(8, 6)
    said = (torch.arange(6) < torch.randint(1, 7, (8, 1))).long()
    advantages = group_advantages(torch.randn(8), 4)
    results = []
    for compute in (grpo_loss, trl_loss):
        now = (sampled + 0.3 * torch.sin(7 * sampled)).requires_grad_()
        how = dict(mean=mean) if compute is grpo_loss else dict(loss_type=loss_type)
        how |= dict(beta=beta, epsilon_high=high)
        loss = compute(now, sampled, reference, advantages, said, **how)
        loss.backward()
        results.append((loss.detach(), now.grad))
    (ours, our_gradient), (theirs, their_gradient) = results
    assert abs(ours - theirs) < 1e-5 and torch.allclose(our_gradient, their_gradient, atol=1e-6)
    outside = ((now - sampled).exp() - 1).abs() > 0.2
    assert (outside & (said > 0)).any(), "nothing was clipped; the test shows nothing"


def test_log_probabilities_are_those_of_each_turn_alone(tokenizer, steps):
    model = tiny_model(tokenizer)
    prompts, texts = [prompt_text(tokenizer, s) for s in steps[:2]], [CALLS[0], "France"]
    turns = pack_turns(tokenizer, prompts, texts)
    together = token_logprobs(model, turns)
    for row, (prompt, text) in enumerate(zip(prompts, texts)):
        before = tokenizer(prompt).input_ids
        after = tokenizer(text + tokenizer.eos_token).input_ids
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        alone = logits.log_softmax(-1)[range(len(after)), after]
        assert turns.said[row].sum() == len(after)
        assert torch.allclose(together[row, : len(after)], alone, atol=1e-4)


def test_a_tokenizer_that_pads_on_the_right_changes_nothing(tokenizer, steps):
    model, other = tiny_model(tokenizer, 0), deepcopy(tokenizer)
    other.padding_side = "right"
    prompts = [prompt_text(tokenizer, s) for s in steps]
    assert len({len(tokenizer(p).input_ids) for p in prompts}) > 1  # so some are padded
    rows = []
    for one in (tokenizer, other):
        torch.manual_seed(0)
        sampled = sample_turns(model, one, steps, 2)
        given = pack_turns(one, prompts, CALLS[: len(prompts)])
        rows.append((sampled.ids, given.ids, given.seen))
    assert all(torch.equal(a, b) for a, b in zip(*rows))


def test_a_sampled_turn_ends_with_its_first_stop_token(tokenizer, steps):
    torch.manual_seed(0)
    model = tiny_model(tokenizer)
    with torch.no_grad():  # ends often, so that turns have many lengths
        model.lm_head.weight[tokenizer.eos_token_id] *= 3
    turns = sample_turns(model, tokenizer, steps[:2], group=8, max_new_tokens=6)
    lengths = set()
    for ids, said, text in zip(turns.ids[:, -turns.said.shape[1] :], turns.said, turns.texts):
        mine = ids[said.bool()].tolist()
        assert tokenizer.eos_token_id not in mine[:-1]
        assert mine[-1] == tokenizer.eos_token_id or len(mine) == turns.said.shape[1]
        assert tokenizer.eos_token not in text
        lengths.add(len(mine))
    assert len(lengths) > 1


# -- learning


@pytest.mark.parametrize("seed", range(3))
def test_one_update_makes_the_rewarded_turn_likelier(tokenizer, steps, seed):
    model = tiny_model(tokenizer, seed)
    texts = [CALLS[0], CALLS[5], CALLS[10]]
    turns = pack_turns(tokenizer, [prompt_text(tokenizer, steps[0])] * 3, texts)
    learner = deepcopy(model)
    before = token_logprobs(model, turns).detach()
    advantages = group_advantages(torch.tensor([1.0, 0, 0]), 3)
    loss = grpo_loss(token_logprobs(learner, turns), before, before, advantages, turns.said)
    assert abs(loss) < 1e-5  # and yet there is a gradient
    loss.backward()
    torch.optim.SGD(learner.parameters(), lr=1e-3).step()
    gain = ((token_logprobs(learner, turns).detach() - before) * turns.said).sum(1)
    assert gain[0] > 0 and gain[0] > gain[1:].max()


def test_a_group_without_spread_has_no_gradient(tokenizer, steps):
    model = tiny_model(tokenizer)
    turns = pack_turns(tokenizer, [prompt_text(tokenizer, steps[0])] * 2, CALLS[:2])
    for rewards, moves in ((torch.ones(2), False), (torch.tensor([1.0, 0]), True)):
        model.zero_grad()
        now = token_logprobs(model, turns)
        known = now.detach()
        grpo_loss(now, known, known, group_advantages(rewards, 2), turns.said).backward()
        assert any(p.grad.abs().max() > 0 for p in model.parameters()) == moves


def test_a_tiny_policy_learns_from_its_rewards_and_not_from_shuffled_ones(tokenizer, steps):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    chance = random.Random(0)
    prompts = [prompt_text(tokenizer, s) for s in steps[:4]]
    right = [CALLS[0], CALLS[4], CALLS[1], CALLS[5]]  # of .fr, France, .pl, Poland
    batches = []
    for _ in range(100):
        at = [chance.randrange(4) for _ in range(16)]
        texts = [right[i] if chance.random() < 0.3 else chance.choice(CALLS) for i in at]
        batches.append(([prompts[i] for i in at], texts))
    start = tiny_model(tokenizer)
    imitate(start, tokenizer, batches)
    means = []
    for shuffled in (False, True):
        history = learn(deepcopy(start), tokenizer, steps[:4], updates=15, shuffle_rewards=shuffled)
        means.append(sum(row["reward"] for row in history[-5:]) / 5)
        assert abs(history[0]["kl"]) < 1e-5 and history[0]["groups_with_spread"] > 0
    torch.set_num_threads(threads)
    assert means[0] > means[1] + 0.2
