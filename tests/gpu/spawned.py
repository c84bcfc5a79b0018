"A whole training by Unsloth as `train` runs it: in a process of its own, from one that has not imported Unsloth."

import os
import pickle
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from tape import fill, recorded

from toolrl_lit import train as module

REWRITTEN = "TEST_TRL_REWRITTEN"  # a variable of the environment, which a fresh process inherits
begin, make = module.by_unsloth, module.unsloth_trainer


def filled(*args):
    "Make the trainer, with adapters as the plain one has them."
    trainer, policy = make(*args)
    import pretended

    pretended.settle()
    fill(policy.model)
    return trainer, policy


def by_unsloth(config, environments, out, start):
    "What runs in the fresh process: `by_unsloth`, with what it samples kept beside the weights."
    import pretended

    torch.set_num_threads(1)
    pretended.pretend()
    pretended.in_32_bits()
    import unsloth  # noqa: F401

    if os.environ[REWRITTEN] == "1":
        pretended.rewrite_trl()
    pretended.begin()
    unchecked = patch("toolrl_lit.train.check_fits", lambda *a: None)
    with ExitStack() as stack:
        tape = stack.enter_context(recorded())
        for change in (unchecked, patch.object(module, "unsloth_trainer", filled)):
            stack.enter_context(change)
        stack.enter_context(pretended.fast())
        begin(config, environments, out, start)
    (out / "tape.pkl").write_bytes(pickle.dumps(tape))


def trained(config, environments, rewritten: bool) -> dict:
    "Train; return whether Unsloth is here afterwards, the tape, the adapters, and the model before and after."
    os.environ[REWRITTEN] = str(int(rewritten))
    chosen = patch.object(module, "choose_backend", lambda *a, **k: "unsloth")
    with chosen, patch.object(module, "by_unsloth", by_unsloth):
        folder = module.train(config, environments)
    out = folder.parent
    before, after = (load_file(Path(f) / "model.safetensors") for f in (config.model, folder))
    return dict(
        imported="unsloth" in sys.modules,
        tape=pickle.loads((out / "tape.pkl").read_bytes()),
        adapters=load_file(out / "adapter" / "adapter_model.safetensors"),
        before=before,
        after=after,
        log=(out / "log.json").read_text(),
    )
