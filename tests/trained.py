"Small trainings that several test files make, and what is compared of them."

import json

import torch
from safetensors.torch import load_file

from toolrl_lit.train import TrainConfig, make_config


def config_for(folder, out, **changes) -> TrainConfig:
    return make_config(
        **dict(
            model=str(folder),
            out=str(out),
            epochs=2,
            updates=2,
            prompts=2,
            group=4,
            micro_prompts=1,
            environments=4,
            max_turns=2,
            max_new_tokens=6,
            max_prompt_tokens=2000,
            lora_rank=4,
            learning_rate=0.02,
            save_updates=1,
            warm_steps=2,
            warm_batch=2,
        )
        | changes
    )


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
