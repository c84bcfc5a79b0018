"Small trainings that several test files make, and what is compared of them."

import json

import torch
from safetensors.torch import load_file

from toolrl_lit.train import TrainConfig, make_config

# what the smallest trainings have in common
SMALL = dict(
    updates=2,
    prompts=2,
    group=4,
    max_new_tokens=6,
    max_prompt_tokens=2000,
    lora_rank=4,
    learning_rate=0.02,
)


def small_config(folder, out, **settings) -> TrainConfig:
    "Return the settings of a small training from a model in a folder."
    return make_config(**dict(model=str(folder), out=str(out)) | SMALL | settings)


def config_for(folder, out, **changes) -> TrainConfig:
    own = dict(
        epochs=2,
        micro_prompts=1,
        environments=4,
        max_turns=2,
        save_updates=1,
        warm_steps=2,
        warm_batch=2,
    )
    return small_config(folder, out, **own | changes)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(a, b):
    return weights(a).keys() == weights(b).keys() and all(
        torch.equal(v, weights(b)[k]) for k, v in weights(a).items()
    )


def losses(folder):
    return [
        (r["step"], r["loss"], r["reward"])
        for r in json.loads((folder / "log.json").read_text())
        if "reward" in r
    ]
