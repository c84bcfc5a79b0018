"""One tape of rollouts: Unsloth trains on what it samples itself, and plain transformers and PEFT on the same turns. Both write down what they compute."""

import contextlib
from copy import deepcopy
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import TrainerCallback

from toolrl_lit import train as module
from toolrl_lit.collect import load_model
from toolrl_lit.engine.checkpoints import run
from toolrl_lit.engine.unsloth import corrected
from toolrl_lit.train import make_config, trainable


def worth(score) -> float:
    "Reward what a turn says beside its calls too, so that the turns of a tiny model differ whatever it is asked."
    return score.reward + len(score.content) / 10


def config_for(folder: Path, out: Path, **changes):
    how = dict(epochs=1, updates=2, prompts=2, group=4, environments=2, max_turns=2)
    lengths = dict(max_new_tokens=4, max_prompt_tokens=1000, max_episode_tokens=300)
    learning = dict(lora_rank=4, learning_rate=0.01, warm_steps=0, oversample=1)
    if changes.get("credit", "step") == "step":
        learning["reward"] = "tape:worth"
    return make_config(
        model=str(folder), out=str(out), report_to="none", **how | lengths | learning | changes
    )


def fill(model):
    "Give adapters numbers other than zero, so that both of their factors have gradients; the same for equal names."
    found = sorted((n, p) for n, p in model.named_parameters() if "lora_" in n)
    for number, (name, p) in enumerate(found):
        torch.manual_seed(number)
        with torch.no_grad():
            p.copy_(torch.randn(p.shape) * (0.1 if "lora_A" in name else 0.02))


class Watch(TrainerCallback):
    "Keeps advantages, log-probabilities and gradients of a trainer, in the order in which they are computed."

    def __init__(self, trainer):
        self.advantages, self.logps, self.gradients, self.checkpoints = [], [], [], set()
        self._score, self._logps = (
            trainer._generate_and_score_completions,
            trainer._get_per_token_logps_and_entropies,
        )
        trainer._generate_and_score_completions, trainer._get_per_token_logps_and_entropies = (
            self.score,
            self.log,
        )
        trainer.add_callback(self)

    def score(self, inputs):
        batch = self._score(inputs)
        self.advantages.append(batch["advantages"].cpu())
        return batch

    def log(self, model, ids, seen, keep, *args, **how):
        scores = self._logps(model, ids, seen, keep, *args, **how)
        self.logps.append((ids.cpu(), (scores[0].detach() * seen[:, -keep:]).cpu()))
        if torch.is_grad_enabled():
            self.checkpoints |= {_checkpointing(m) for m in model.modules()}
        return scores

    def on_pre_optimizer_step(self, args, state, control, model=None, **unused):
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        self.gradients.append({named(n): g.detach().clone().cpu() for n, g in found.items()})


def _checkpointing(layer) -> str | None:
    "Return what computes a layer's activations again, if anything does."
    if not getattr(layer, "gradient_checkpointing", False):
        return None
    return str(getattr(layer, "_gradient_checkpointing_func", None))


def named(parameter: str) -> str:
    "Return the name of a parameter without what PEFT puts around it."
    return parameter.removeprefix("base_model.model.").replace(".default", "")


def told(trainer, watch: Watch, tuned) -> dict:
    trained = {named(n): p for n, p in tuned.named_parameters() if p.requires_grad}
    return dict(
        advantages=watch.advantages,
        logps=watch.logps,
        gradients=watch.gradients,
        checkpoints=watch.checkpoints,
        log=trainer.state.log_history,
        weights={n: p.detach().clone().cpu() for n, p in trained.items()},
    )


@contextlib.contextmanager
def recorded():
    "Give the tape of what Unsloth samples from here on: prompts, turns and their log-probabilities, call by call."
    tape, sample = [], module.UnslothPolicy.tokens

    def tokens(self, prompts, **how):
        rows = sample(self, prompts, **how)
        tape.append(deepcopy((prompts, rows, self.logprobs)))  # TRL writes on in the lists
        return rows

    with patch.object(module.UnslothPolicy, "tokens", tokens):
        yield tape


def by_unsloth(config, environments, folder: Path) -> tuple[dict, list]:
    "Train by Unsloth; return what was computed, and the tape."
    import pretended

    # the estimate of memory is for a process that has not imported Unsloth yet
    unchecked = patch.object(module, "check_fits", lambda *a: None)
    with unchecked, pretended.fast(), recorded() as tape:
        pretended.begin()
        trainer, policy = module.unsloth_trainer(config, Path(config.out), environments, folder)
        pretended.settle()
        fill(policy.model)
        watch = Watch(trainer)
        run(trainer, Path(config.out), "Unsloth")
        chunked = not watch._logps.gives_logits
        return told(trainer, watch, policy.model) | dict(chunked=chunked), tape


class Replay(module.EnginePolicy):
    "Says again what is on a tape."

    def tokens(self, prompts, **how):
        asked, rows, self.logprobs = deepcopy(self.tape.pop(0))
        assert asked == prompts, "other prompts than on the tape"
        return rows


def by_plain(config, environments, folder: Path, tape: list) -> dict:
    "Train by transformers and PEFT on the turns of a tape; return what was computed."
    base, tokenizer = load_model(folder)
    policy = module.sampling_policy(Replay, config, load_model(folder)[0], tokenizer)
    policy.tape, tuned = list(tape), trainable(base, config.lora_rank)
    trainer = module.rollout_trainer(config, Path(config.out), policy, tuned, environments)
    corrected(trainer)
    fill(tuned)
    watch = Watch(trainer)
    with contextlib.redirect_stdout(None):
        run(trainer, Path(config.out), "plain")
    assert not policy.tape
    return told(trainer, watch, tuned)
