"Trainings by several processes: the same numbers as one process gives, with whole weights and with weights that are cut up."

import json
from pathlib import Path

import apart
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from trained import config_for, losses, same, weights
from transformers import LlamaConfig

from toolrl_lit.engine import checkpoints
from toolrl_lit.engine import trainer as engine_trainer
from toolrl_lit.schema import UserError, write_jsonl
from toolrl_lit.train import make_config, memory_needed, train, warm_start


def launched(log: Path, task, *args, fsdp: bool = False) -> str:
    "What a task of `apart` prints that `accelerate launch` starts in two processes."
    cut_up = ["--use_fsdp", "--fsdp_version", "2"]
    cut_up += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
    plain = dict(num_processes=2, num_machines=1, mixed_precision="no", dynamo_backend="no")
    how = [*(cut_up if fsdp else ["--multi_gpu"]), "--main_process_port", "0"]
    how += [a for k, v in plain.items() for a in (f"--{k}", str(v))]
    code = apart.run(apart.launch, how, task, *args, log=log, OMP_NUM_THREADS="1")
    assert code == 0, log.read_text()[-5000:]
    return log.read_text()


SHARED = dict(
    warm_steps=0,
    warm_batch=4,
    prompts=4,
    group=4,
    epochs=1,
    environments=4,
    max_new_tokens=24,
    max_prompt_tokens=2000,
    rollout_rows=4,
)
TOGETHER = {
    "warm": dict(warm_steps=3),
    "grpo": dict(algorithm="grpo", oversample=2),
    "reinforce++": dict(algorithm="reinforce++", oversample=1),
}


@pytest.fixture(scope="module")
def together(tmp_path_factory, tiny_folder, environments):
    "A folder of those trainings by two processes, and what each was told."
    folder = tmp_path_factory.mktemp("together")
    file = write_jsonl(folder / "train.jsonl", environments)
    told = {
        name: SHARED | dict(model=str(tiny_folder), out=str(folder / name), updates=1) | values
        for name, values in TOGETHER.items()
    }
    commands = [
        ["-e", str(file), *(a for k, v in values.items() for a in ("-p", f"{k}={v}"))]
        for values in told.values()
    ]
    said = launched(folder / "said.txt", apart.commands, commands)
    assert said.count("the trained policy is in") == len(told)  # one of the processes says it
    return folder, told


@pytest.mark.parametrize("name, stage", [("warm", "warm"), ("grpo", "rl"), ("reinforce++", "rl")])
def test_two_processes_train_as_one_does(together, name, stage, tmp_path, environments):
    folder, told = together
    config = make_config(**told[name] | dict(out=str(tmp_path)))
    (warm_start if stage == "warm" else train)(config, environments)
    one, two = tmp_path / stage, folder / name / stage
    a, b = (
        [r for r in json.loads((out / "log.json").read_text()) if "loss" in r] for out in (one, two)
    )
    steps = list(range(1, 4 if stage == "warm" else 2))
    assert [r["step"] for r in a] == [r["step"] for r in b] == steps
    keys = {"loss", "grad_norm", "num_tokens", "reward", "mean_reward", "kl", "entropy"}
    keys |= {"solve_precision", "solve_recall"}
    for x, y in zip(a, b):
        for key in keys & x.keys():
            assert x[key] == pytest.approx(y[key], rel=2e-2, abs=2e-4), (key, x, y)
    if stage == "rl":
        kept = [(out / "trajectories-0.jsonl").read_bytes() for out in (one, two)]
        assert kept[0] == kept[1]


SHARDED = {
    "warm": dict(warm_steps=3),
    "lora": dict(kl=0.1),
    "all": dict(kl=0.1, lora_rank=0, learning_rate=1e-3, gradient_checkpointing=True),
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tiny_folder, environments):
    "A folder of those trainings, and what each was told."
    folder = tmp_path_factory.mktemp("sharded")
    write_jsonl(folder / "train.jsonl", environments)
    told = {
        name: SHARED
        | dict(model=str(tiny_folder), out=str(folder / name), updates=2, save_updates=1)
        | SHARDED[name.split("-")[0]]
        for name in ("warm", "lora", "lora-interrupted", "all", "all-interrupted")
    }
    rows = folder / "train.jsonl"
    launched(folder / "said.txt", apart.trainings, rows, list(told.values()), fsdp=True)
    return folder, told


@pytest.mark.parametrize("name, stage", [("warm", "warm"), ("lora", "rl"), ("all", "rl")])
def test_two_processes_that_cut_up_the_weights_train_as_one_does(
    sharded, name, stage, tmp_path, environments
):
    folder, told = sharded
    config = make_config(**told[name] | dict(out=str(tmp_path)))
    (warm_start if stage == "warm" else train)(config, environments)
    a, b = (
        [r for r in json.loads((out / stage / "log.json").read_text()) if "loss" in r]
        for out in (tmp_path, folder / name)
    )
    assert (
        [r["step"] for r in a]
        == [r["step"] for r in b]
        == list(range(1, 4 if stage == "warm" else 3))
    )
    for key in {"loss", "grad_norm", "num_tokens", "reward", "kl", "entropy"} & a[0].keys():
        assert a[0][key] == pytest.approx(b[0][key], rel=2e-2, abs=2e-4), (key, a[0], b[0])


@pytest.mark.parametrize("name, stage", [("warm", "warm"), ("lora", "rl"), ("all", "rl")])
def test_cut_up_weights_are_gathered_into_the_model_on_disk(
    sharded, name, stage, tmp_path, tiny_folder
):
    out, first = sharded[0] / name / stage, load_file(tiny_folder / "model.safetensors")
    (kept,) = out.glob("checkpoint-*/pytorch_model_fsdp_0")
    cut = {
        k: m
        for k, m in FileSystemReader(kept).read_metadata().state_dict_metadata.items()
        if m.size[0] > 1
    }
    assert cut and all(len(m.chunks) == 2 for m in cut.values())  # each process held a half
    dcp_to_torch_save(kept, tmp_path / "whole.pt")
    held, wanted = torch.load(tmp_path / "whole.pt")["model"], dict(first)
    for key, weight in held.items():
        place = key.removeprefix("base_model.model.").replace(".lora_A", "")
        if "lora" not in key:
            wanted[key] = weight
        elif "lora_A" in key:
            wanted[place] = (
                first[place].float() + 2 * held[key.replace("lora_A", "lora_B")] @ weight
            )
    wanted = {k: v.bfloat16() for k, v in wanted.items()}
    assert wanted.keys() == weights(out).keys()
    for k, v in weights(out).items():
        assert (
            torch.equal(v, wanted[k])
            if name == "all"
            else torch.allclose(v.float(), wanted[k].float(), rtol=1e-2, atol=1e-3)
        ), k
    assert {k for k in wanted if not torch.equal(weights(out)[k], first[k])} >= {
        k for k in wanted if "up_proj" in k
    }
    adapters = load_file(out / "adapter" / "adapter_model.safetensors") if name != "all" else {}
    assert adapters.keys() == {k for k in held if "lora" in k} and all(
        torch.equal(v, held[k]) for k, v in adapters.items()
    )


@pytest.mark.parametrize("name", ["lora", "all"])
def test_an_interrupted_run_of_cut_up_weights_goes_on_to_the_same_ones(sharded, name):
    whole, broken = (sharded[0] / n / "rl" for n in (name, f"{name}-interrupted"))
    assert losses(whole) == losses(broken) and len(losses(whole)) == 2 and same(whole, broken)


def test_what_fsdp_cannot_do_is_refused(sharded, tiny_folder, environments, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="was written with FSDP: go on as it was begun"):
        checkpoints.resume(sharded[0] / "lora" / "rl")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    for name, value in dict(ACCELERATE_USE_FSDP="true", LOCAL_RANK="0", FSDP_VERSION="1").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="was written without FSDP: go on as it was begun"):
        checkpoints.resume(tmp_path)
    for start in (train, warm_start):
        with pytest.raises(UserError, match="--use_fsdp --fsdp_version 2"):
            start(config_for(tiny_folder, tmp_path), environments)


def test_cut_up_weights_need_less_memory(tiny_folder):
    model = LlamaConfig(
        vocab_size=600,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    one, four = (
        memory_needed(make_config(lora_rank=0), model, gpu=False, shards=n) for n in (1, 4)
    )
    for cut in ("weights", "gradients and optimizer"):
        assert four[cut] == one[cut] / 4
    assert four["copy for rollouts"] == one["copy for rollouts"] and four["peak"] < one["peak"]


def test_processes_wait_a_day_for_the_one_that_collects(tmp_path):
    assert engine_trainer.grpo_arguments(make_config(), tmp_path).ddp_timeout_delta.days == 1


def test_processes_that_cannot_share_the_work_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="prompts .*expected a multiple of the 3 processes, got 4"):
        engine_trainer.grpo_arguments(make_config(prompts=4), Path("x"))
