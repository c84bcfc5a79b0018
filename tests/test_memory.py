"""The estimate of memory against an account by hand: Qwen3-4B and Qwen3-8B at full size, without data. The account counts from shapes alone what
a forward pass in bf16 writes down for the backward pass, line by line of the model's code."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config

from toolrl_lit.engine.memory import kept_bytes, memory_needed, skeleton
from toolrl_lit.train import make_config

SHAPES = {
    "4B": dict(hidden_size=2560, intermediate_size=9728, tie_word_embeddings=True),
    "8B": dict(hidden_size=4096, intermediate_size=12288, tie_word_embeddings=False),
}
WEIGHTS = {"4B": 4_022_468_096, "8B": 8_190_735_360}  # as their model cards count them


def settings_of(size: str) -> Qwen3Config:
    return Qwen3Config(
        **SHAPES[size],
        vocab_size=151936,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
    )


def sizes_of(settings: Qwen3Config):
    "Return the sizes by the letters of the account."
    return SimpleNamespace(
        H=settings.hidden_size,
        I=settings.intermediate_size,
        V=settings.vocab_size,
        N=settings.num_hidden_layers,
        heads=settings.num_attention_heads,
        Q=settings.num_attention_heads * settings.head_dim,
        K=settings.num_key_value_heads * settings.head_dim,
        key_heads=settings.num_key_value_heads,
        ends=1 if settings.tie_word_embeddings else 2,
        d=settings.head_dim,
    )


def linear(s) -> list[tuple[int, int]]:
    "Return what goes in and comes out of each linear layer of a layer."
    attention = [(s.H, s.Q), (s.H, s.K), (s.H, s.K), (s.Q, s.H)]
    return attention + [(s.H, s.I), (s.H, s.I), (s.I, s.H)]


def weights(s) -> int:
    norms = 2 * s.H + 2 * s.d
    return s.ends * s.V * s.H + s.N * (sum(a * b for a, b in linear(s)) + norms) + s.H


def adapters(s, rank: int) -> int:
    return s.N * sum(rank * (a + b) for a, b in linear(s))


def kept_in_a_layer(s, L: int, rank: int) -> int:
    "Bytes that the backward pass through a layer with adapters needs of a row of L tokens."
    norms = (
        2 * (4 * s.H + 4) + 4 * (s.Q + s.K) + 4 * (s.heads + s.key_heads)
    )  # fp32 input, and 1/rms
    into_adapters = 2 * sum(
        a + rank for a, _ in linear(s)
    )  # each casts its input; and between A and B
    attention = 4 * 2 * s.Q + 4 * s.heads  # query, keys and values for all heads, result; logsumexp
    mlp = 3 * 2 * s.I  # gate, silu(gate), up
    cast = 2 * sum(rank * (a + b) for a, b in linear(s))  # adapters in bf16
    mask = 2 * L * L  # what is added to the scores, in bf16
    return L * (norms + into_adapters + attention + mlp) + cast + mask


def account(size: str, config) -> dict[str, float]:
    "Return GB by part, for the preset's checkpointed update and for sampling, on a GPU."
    s, rank = sizes_of(settings_of(size)), config.lora_rank
    L = config.max_prompt_tokens + config.group // config.split_group * config.completion_tokens
    token = 2 * 2 * s.N * s.K
    prompts = -(-config.rollout_rows // config.group)
    parts = {
        "weights": 2 * weights(s),
        "copy for rollouts": 4 * adapters(s, rank),  # it shares the weights
        "gradients and optimizer": (4 + 4 + 8) * adapters(s, rank),
        # each layer's input, one layer computed again, and the boolean mask
        "activations": s.N * 2 * L * s.H + kept_in_a_layer(s, L, rank) + L * L,
        # of 512 tokens, in the backward pass: log-probabilities, the gradient that comes, and the one that goes
        "logits": 512 * s.V * (4 + 4 + 4),
        "rollouts": token
        * (prompts * config.max_prompt_tokens + config.rollout_rows * config.completion_tokens),
    }
    return {name: n / 1e9 for name, n in parts.items()}


@pytest.mark.parametrize("size", SHAPES)
def test_the_models_have_their_sizes_and_adapters_their_targets(size):
    settings, s = settings_of(size), sizes_of(settings_of(size))
    plain = skeleton(settings, 32, gpu=True, dtype=torch.bfloat16)
    found = {n: p.numel() for n, p in plain.named_parameters()}
    trained = {n for n, p in plain.named_parameters() if p.requires_grad}
    assert sum(n for name, n in found.items() if name not in trained) == weights(s) == WEIGHTS[size]
    assert sum(found[n] for n in trained) == adapters(s, 32)
    targets = {n.split(".lora_")[0].rsplit(".", 1)[1] for n in trained}
    assert targets == {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}
    assert len(trained) == 2 * 7 * 36 and all(p.is_meta for p in plain.parameters())


@pytest.mark.parametrize("size", SHAPES)
def test_a_layer_keeps_what_the_account_says_to_the_byte(size):
    one, two = (
        kept_bytes(skeleton(settings_of(size), 32, True, torch.bfloat16, layers), 1000)
        for layers in (1, 2)
    )
    assert two - one == kept_in_a_layer(sizes_of(settings_of(size)), 1000, 32)


@pytest.mark.parametrize("size", SHAPES)
def test_the_estimate_is_the_account(size):
    config = make_config("consumer-24gb", backend="plain")
    need, by_hand = memory_needed(config, settings_of(size), gpu=True), account(size, config)
    for name in ("weights", "copy for rollouts", "gradients and optimizer", "rollouts"):
        assert need[name] == pytest.approx(by_hand[name], rel=1e-3), name
    assert need["activations"] == pytest.approx(by_hand["activations"], rel=0.02)
    assert by_hand["logits"] <= need["logits"] <= 2 * by_hand["logits"]  # an upper bound


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("load_in", ["16bit", "4bit"])
def test_unsloth_keeps_the_prompt_of_each_turn_twice_at_its_first_step(size, load_in):
    config = make_config("consumer-24gb", backend="unsloth", load_in=load_in)
    need, s = memory_needed(config, settings_of(size), gpu=True), sizes_of(settings_of(size))
    token = 2 * 2 * s.N * s.K
    read, copied = config.max_prompt_tokens, config.max_prompt_tokens + 512 + 1
    by_hand = config.collect_rows * (read + copied) * token / 1e9
    assert need["rollouts"] == need["conversations"] == pytest.approx(by_hand, rel=1e-3)
    ends = s.ends * s.V * s.H
    four = 2 * ends + (weights(s) - ends) * (0.5 + 4 / 64)  # 4 bits, and an fp32 scale for 64
    whole = 2 * weights(s)
    assert need["weights"] == pytest.approx((four if load_in == "4bit" else whole) / 1e9, rel=1e-3)
    assert need["copy for rollouts"] == 0
    assert (
        need["logits"]
        == memory_needed(
            make_config("consumer-24gb", backend="plain"), settings_of(size), gpu=True
        )["logits"]
    )
