"Backend unsloth against plain on one tape of rollouts: what both compute, and the weights after two updates."

import json

import pretended
import pytest
import spawned
import tape
import torch

CASES = {
    "step": dict(seed=3),
    "step, all weights": dict(lora_rank=0, learning_rate=1e-4, kl=0.0),
    "episode, checkpoints": dict(
        credit="episode", gradient_checkpointing=True, kl=0.1, environments=4
    ),
    # the last one, since it is for good
    "turn, TRL rewritten": dict(credit="turn", seed=1, environments=4),
}


@pytest.fixture(scope="module", params=CASES)
def runs(request, unsloth, plain, padded_folder, environments, tmp_path_factory):
    "What Unsloth computes, and what plain transformers and PEFT compute of the same turns."
    if request.param.endswith("rewritten"):
        pretended.rewrite_trl()
    out = tmp_path_factory.mktemp("runs")
    how = CASES[request.param]
    few = environments[:4]
    config = tape.config_for(padded_folder, out / "unsloth", **how)
    fast, taped = tape.by_unsloth(config, few, padded_folder)
    config = tape.config_for(padded_folder, out / "plain", **how)
    return config, fast, plain(tape.by_plain, config, few, padded_folder, taped)


def furthest(a: dict, b: dict) -> float:
    "Return the largest difference of two dictionaries of tensors with the same names."
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_both_compute_the_same_to_the_weights_after_two_updates(runs):
    config, fast, slow = runs
    for a, b in zip(fast["advantages"], slow["advantages"], strict=True):
        assert torch.equal(a, b)
    assert max(a.abs().max() for a in fast["advantages"]) > 0.5  # there is something to learn from
    for (ids, a), (same, b) in zip(fast["logps"], slow["logps"], strict=True):
        assert torch.equal(ids, same) and torch.allclose(a, b, atol=3e-5) and b.min() < -1
    losses = [[r["loss"] for r in run["log"] if "loss" in r] for run in (fast, slow)]
    assert losses[0] == pytest.approx(losses[1], abs=5e-6) and len(losses[0]) == 2
    for a, b in zip(fast["gradients"], slow["gradients"], strict=True):
        assert furthest(a, b) < 1e-5
    assert max(float(g.abs().max()) for found in slow["gradients"] for g in found.values()) > 0.01
    assert furthest(fast["weights"], slow["weights"]) < config.learning_rate / 50


def test_what_was_sampled_is_as_likely_as_the_trainer_finds_it_and_the_ratio_is_logged(runs):
    _, fast, _ = runs
    log = [r for r in fast["log"] if "loss" in r]
    assert all(r["sampling/sampling_logp_difference/max"] < 1e-4 for r in log)
    ratios = [r[k] for r in log for k in r if "importance_sampling_ratio" in k]
    assert len(ratios) == 6 and ratios == pytest.approx([1.0] * 6, abs=1e-4)


def test_logits_are_held_a_chunk_at_a_time_where_unsloth_gives_states(runs):
    config, fast, _ = runs
    assert fast["chunked"] == bool(config.lora_rank) or pretended.GPU


def test_unsloths_own_checkpointing_is_the_one_that_runs(runs):
    config, fast, slow = runs
    if config.gradient_checkpointing:
        assert "unsloth_checkpoint" in str(fast["checkpoints"])
        assert "unsloth" not in str(slow["checkpoints"]) and len(slow["checkpoints"]) == 2
    else:
        assert fast["checkpoints"] == slow["checkpoints"] == {None}


# -- in a process of its own


@pytest.mark.parametrize("credit, rewritten", [("step", True), ("episode", False)])
def test_a_whole_training_in_a_process_of_its_own_ends_with_the_weights_of_a_plain_one(
    credit, rewritten, plain, padded_folder, environments, tmp_path
):
    few, how = environments[:4], dict(credit=credit, seed=3)
    config = tape.config_for(padded_folder, tmp_path / "unsloth", **how)
    fast = plain(spawned.trained, config, few, rewritten)
    config = tape.config_for(padded_folder, tmp_path / "plain", **how)
    slow = plain(tape.by_plain, config, few, padded_folder, fast["tape"])
    assert not fast["imported"]  # there, in the process that called `train`
    adapters = {tape.named(n): p for n, p in fast["adapters"].items()}
    assert furthest(adapters, slow["weights"]) < config.learning_rate / 50
    # the model that `train` returns is the start policy with these adapters merged
    assert fast["before"].keys() == fast["after"].keys()
    changed = {
        n for n, p in fast["before"].items() if not torch.equal(p.bfloat16(), fast["after"][n])
    }
    layers = {n.removesuffix(".lora_A.weight") for n in adapters if "lora_A" in n}
    assert changed == {f"{n}.weight" for n in layers} and len(changed) == 14
    for n in layers:
        change = 2 * adapters[f"{n}.lora_B.weight"] @ adapters[f"{n}.lora_A.weight"]
        merged = fast["before"][f"{n}.weight"].bfloat16() + change
        assert torch.allclose(fast["after"][f"{n}.weight"].float(), merged, rtol=0.01, atol=1e-4)
    updates = [r for r in json.loads(fast["log"]) if "loss" in r]
    assert len(updates) == 2 and updates[0]["loss"] != updates[1]["loss"]
    assert updates[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
