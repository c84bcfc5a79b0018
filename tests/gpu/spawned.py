"A whole training by Unsloth as `train` runs it: in a process of its own, from one that has not imported Unsloth."

import sys
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import load_file

from toolrl_lit import train as module


def by_unsloth(*args):
    "What runs in the fresh process."
    import pretended

    pretended.pretend()
    import unsloth  # noqa: F401

    pretended.settle()
    with pretended.fast():
        begin(*args)


begin = module.by_unsloth


def trained(config, environments) -> tuple[bool, dict, dict]:
    "Train; return whether Unsloth is in this process afterwards, and the weights before and after."
    chosen = patch.object(module, "choose_backend", lambda *a, **k: "unsloth")
    with chosen, patch.object(module, "by_unsloth", by_unsloth):
        folder = module.train(config, environments)
    before, after = (load_file(Path(f) / "model.safetensors") for f in (config.model, folder))
    return "unsloth" in sys.modules, before, after
