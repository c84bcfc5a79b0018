"Backends: what is refused and said, what memory they are told to need, and who samples. What needs a GPU runs where there is one."

import http.server
import importlib.util
import json
import sys
import threading
import types
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from gpu import check
from safetensors.torch import load_file
from trained import small_config
from transformers import AutoConfig
from trl.generation import vllm_client, vllm_generation

from toolrl_lit import train as module
from toolrl_lit.collect import TransformersPolicy, generate_tokens, load_model
from toolrl_lit.engine.memory import check_fits, free_memory
from toolrl_lit.engine.models import fast_dtype
from toolrl_lit.engine.trainer import grpo_arguments, trainer_arguments
from toolrl_lit.engine.unsloth import corrected
from toolrl_lit.engine.vllm import ServerSampling, check_server
from toolrl_lit.schema import UserError
from toolrl_lit.train import (
    PRESETS,
    choose_backend,
    lora,
    make_config,
    memory_needed,
    merge_adapter,
    merge_into,
    train,
)

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
unsloth_here = torch.cuda.is_available() and importlib.util.find_spec("unsloth") is not None
vllm_here = importlib.util.find_spec("vllm") is not None


def config_for(folder, out, **changes):
    own = dict(epochs=1, environments=4, max_turns=2, warm_steps=0)
    return small_config(folder, out, **own | changes)


# -- which one


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(backend="fast"), "backend: .*'auto', 'plain' or 'unsloth'"),
        (dict(load_in="8bit"), "load_in: .*'16bit' or '4bit'"),
        (dict(load_in="4bit"), "load_in=4bit: only Unsloth .*set backend=unsloth"),
        (dict(load_in="4bit", backend="plain"), "load_in=4bit: only Unsloth .*set backend=unsloth"),
        (
            dict(load_in="4bit", backend="unsloth", lora_rank=0),
            "load_in=4bit: .*set lora_rank=16, or load_in=16bit",
        ),
        (dict(vllm_server="http://x:1", backend="unsloth"), "vllm_server: .*backend=plain"),
        (dict(vllm_server="x:8000"), "vllm_server: .*https"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(values, said):
    with pytest.raises(UserError, match=said):
        make_config(**values)


@no_gpu
def test_auto_says_what_it_took_and_why_and_plain_says_nothing(capsys):
    assert choose_backend(make_config()) == "plain"
    assert (
        capsys.readouterr().out
        == "backend: plain transformers and PEFT, not Unsloth: there is no GPU\n"
    )
    assert (
        choose_backend(make_config(backend="plain"))
        == choose_backend(make_config(), says=False)
        == "plain"
        and capsys.readouterr().out == ""
    )


@no_gpu
def test_only_the_main_process_says_it(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert choose_backend(make_config()) == "plain" and capsys.readouterr().out == ""


@no_gpu
def test_unsloth_without_a_gpu_is_one_sentence_before_anything_is_loaded(
    tiny_folder, environments, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "load_model", lambda *a: pytest.fail("must not load a model"))
    with pytest.raises(UserError, match="^backend=unsloth: there is no GPU; .*backend=plain$"):
        train(config_for(tiny_folder, tmp_path, backend="unsloth"), environments)


@pytest.mark.skipif(
    not torch.cuda.is_available() or unsloth_here, reason="needs a GPU and no Unsloth"
)
def test_unsloth_that_is_not_installed_is_named():
    assert choose_backend(make_config()) == "plain"
    with pytest.raises(UserError, match=r"not installed; pip install 'toolrl_lit\[unsloth\]'"):
        choose_backend(make_config(backend="unsloth"))


@pytest.mark.parametrize("backend", ["auto", "plain", "unsloth"])
def test_where_unsloth_was_imported_before_nothing_is_trained(monkeypatch, backend):
    monkeypatch.setitem(
        sys.modules, "unsloth", types.ModuleType("unsloth")
    )  # what matters is that it is there
    with pytest.raises(UserError, match="Unsloth has been imported in this process"):
        choose_backend(make_config(backend=backend))


@pytest.mark.parametrize("four", [True, False])
def test_four_bits_without_bitsandbytes_are_refused_before_a_model_is_loaded(monkeypatch, four):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (8, 0))
    missing = "bitsandbytes" if four else "nothing"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    config = make_config(backend="unsloth", load_in="4bit")
    if not four:
        assert choose_backend(config) == "unsloth"
        return
    with pytest.raises(UserError, match="bitsandbytes, .* is not installed; pip install bitsandb"):
        choose_backend(config)


def test_on_a_card_before_ampere_the_plain_backend_computes_in_32_bits_and_unsloth_is_refused(
    tiny_folder, environments, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "load_model", lambda *a: pytest.fail("must not load a model"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "Tesla T4")
    config, shape = make_config(), AutoConfig.from_pretrained(tiny_folder)
    needs, found = {}, {}
    for capability in ((7, 5), (8, 9)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a, c=capability: c)
        needs[capability] = memory_needed(config, shape)["weights"]
        found[capability] = fast_dtype(), trainer_arguments(config, tmp_path)["bf16"]
    assert found == {(7, 5): (torch.float32, False), (8, 9): (torch.bfloat16, True)}
    assert needs[7, 5] == 2 * needs[8, 9] > 0
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (7, 5))
    assert choose_backend(config) == "plain"
    said = "Tesla T4 has no bfloat16, so models compute in 32 bits"
    assert capsys.readouterr().out.endswith(f"not Unsloth: {said}\n")
    with pytest.raises(UserError, match=f"^backend=unsloth: {said}; .*Ampere.*backend=plain$"):
        train(config_for(tiny_folder, tmp_path, backend="unsloth"), environments)


# -- memory


def test_what_torch_keeps_on_a_gpu_without_using_it_counts_as_free(monkeypatch):
    gigabytes = dict(mem_get_info=(4e9, 24e9), memory_reserved=18e9, memory_allocated=2e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in gigabytes.items():
        monkeypatch.setattr(torch.cuda, name, lambda *a, value=value: value)
    assert free_memory() == 20e9


@pytest.mark.parametrize("credit, longest", [("step", 120), ("episode", 220), ("turn", 220)])
def test_positions_have_to_suffice_for_a_turn_that_begins_where_an_episode_may_end(credit, longest):
    from transformers import LlamaConfig

    lengths = dict(max_prompt_tokens=100, max_new_tokens=20, max_episode_tokens=100)
    config = make_config(credit=credit, **lengths)
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    check_fits(config, LlamaConfig(**shape, max_position_embeddings=longest))
    with pytest.raises(UserError, match=f"max_new_tokens=20 are more than the {longest - 1} posit"):
        check_fits(config, LlamaConfig(**shape, max_position_embeddings=longest - 1))


@pytest.fixture(scope="module")
def qwen8():
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    )


def test_four_bits_and_no_copy_are_told(qwen8):
    need = lambda **c: memory_needed(make_config("consumer-24gb", **c), qwen8, gpu=True)
    plain, whole, four = (
        need(backend="plain"),
        need(backend="unsloth"),
        need(backend="unsloth", load_in="4bit"),
    )
    embeddings = 2 * 151936 * 4096
    linear = 36 * (4096 * (2 * 32 + 2 * 8) * 128 + 3 * 4096 * 12288)
    expected = pytest.approx(2 * (embeddings + linear) / 1e9, rel=1e-3)
    assert plain["weights"] == whole["weights"] == expected
    # adapters in fp32 beside the same weights; to train them takes four times as much
    assert 4 * plain["copy for rollouts"] == pytest.approx(plain["gradients and optimizer"])
    assert four["weights"] == pytest.approx((2 * embeddings + 0.5625 * linear) / 1e9, rel=1e-3)
    assert (
        whole["copy for rollouts"] == four["copy for rollouts"] == 0
        and four["peak"] < 24 < plain["peak"] < whole["peak"]
    )
    assert (
        plain["gradients and optimizer"] == four["gradients and optimizer"]
        and whole["activations"] > plain["activations"]
    )


def test_a_server_that_samples_takes_copy_and_rollouts_off_this_machine(qwen8):
    here, there = (
        memory_needed(make_config("consumer-24gb", vllm_server=url), qwen8, gpu=True)
        for url in (None, "http://x:1")
    )
    assert (
        there["copy for rollouts"]
        == there["rollouts"]
        == there["conversations"]
        == 0
        < here["rollouts"]
        and there["weights"] == here["weights"]
    )


def test_auto_is_estimated_as_plain_and_presets_are(qwen8):
    assert all("backend" not in p and "load_in" not in p for p in PRESETS.values())
    assert memory_needed(make_config(), qwen8) == memory_needed(make_config(backend="plain"), qwen8)


# -- what Unsloth's training is made of, on plain models


def test_whole_rows_give_the_log_probabilities_of_groups(tiny_folder, environments, tmp_path):
    config = config_for(tiny_folder, tmp_path)
    policy = TransformersPolicy(tiny_folder)
    trainer = module.step_trainer(
        config, tmp_path / "rl", policy, lora(load_model(tiny_folder)[0], 4), environments, None
    )
    ids, seen = torch.randint(2, 90, (8, 30)), torch.ones(8, 30, dtype=torch.long)
    ids[:, :24] = ids[::4, :24].repeat_interleave(4, 0)
    seen[4:, :5] = 0  # the second prompt is shorter, and so is a turn
    seen[2, 27:] = 0
    told = []
    for trainer.whole_rows in (False, True):
        logps, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, seen, 6, compute_entropy=True
        )
        told.append(torch.stack([logps, entropy]).float() * seen[:, -6:])
    assert torch.allclose(*told, atol=0.1) and told[0].abs().max() > 1  # bf16


class Overstated(module.EnginePolicy):
    "Tells of each token that it was far less likely than it is, as no engine should."

    def tokens(self, prompts, **how):
        rows = super().tokens(prompts, **how)
        self.logprobs = [[-100.0] * len(row) for row in rows]
        return rows


@pytest.mark.parametrize("credit", ["step", "episode"])
def test_another_engines_turns_are_weighed_by_their_ratio_and_at_most_twice(
    tiny_folder, environments, tmp_path, credit
):
    config = config_for(tiny_folder, tmp_path, credit=credit, updates=1, oversample=1)
    base, tokenizer = load_model(tiny_folder)
    policy = Overstated(load_model(tiny_folder)[0], tokenizer, max_prompt_tokens=2000)
    trainer = module.rollout_trainer(config, tmp_path, policy, lora(base, 4), environments)
    corrected(trainer)
    batches, score = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: (
        batches.append(score(rows)) or batches[-1]
    )
    trainer.train()
    log = trainer.state.log_history[0]
    ratios = [log[f"sampling/importance_sampling_ratio/{what}"] for what in ("min", "mean", "max")]
    assert ratios == [2.0, 2.0, 2.0]
    assert 80 < log["sampling/sampling_logp_difference/mean"] < 100
    said = batches[0]["completion_mask"] * batches[0].get("tool_mask", 1)
    assert torch.equal(batches[0]["importance_sampling_ratio"], 1.0 + said)  # of calls' results: 1


def test_what_16_bits_lose_of_all_weights_is_measured_from_the_start_of_training(tiny_folder):
    copy, tuned = (load_model(tiny_folder, torch.float32)[0] for _ in range(2))
    copy.bfloat16().float()  # a start that 16 bits hold, as published ones are
    with torch.no_grad():
        for before, after in zip(copy.parameters(), tuned.parameters()):
            after.copy_(2 * before)
    assert merge_into(deepcopy(copy).bfloat16(), tuned, begins=True) == 1
    with torch.no_grad():
        for before, after in zip(copy.parameters(), tuned.parameters()):
            after.copy_(before * (1 + 2**-10))  # less than half of the last digit
    other = deepcopy(copy).bfloat16()
    assert merge_into(other, tuned, begins=True) == 0
    assert merge_into(other, tuned) is None, "its weights are no longer those of the start"


def test_a_merged_adapter_is_the_model_that_was_trained(tiny_folder, tmp_path):
    tuned, (copy, _) = lora(load_model(tiny_folder)[0], 4), load_model(tiny_folder)
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    merge_into(copy, tuned)
    merged = load_file(
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "model") / "model.safetensors"
    )
    start = load_file(Path(tiny_folder) / "model.safetensors")
    assert (
        merged.keys() == start.keys()
        and sum(not torch.equal(merged[k], start[k]) for k in start) == 14
    )
    for name, p in copy.named_parameters():
        assert torch.allclose(p.float(), merged[name].float(), rtol=0.01, atol=1e-4)
    assert TransformersPolicy(tmp_path / "model").stop == TransformersPolicy(tiny_folder).stop


@pytest.mark.skipif(not unsloth_here, reason="needs a GPU and Unsloth")
@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(load_in="4bit"),
        dict(gradient_checkpointing=True, split_group=2),
        dict(credit="turn", oversample=1),
        dict(lora_rank=0, learning_rate=1e-3),
    ],
)
def test_unsloth_trains_and_leaves_this_process_plain(
    padded_folder, environments, tmp_path, changes
):
    folder = train(config_for(padded_folder, tmp_path, backend="unsloth", **changes), environments)
    start, tuned = (
        load_file(Path(padded_folder) / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    assert "unsloth" not in sys.modules and start.keys() == tuned.keys()
    assert any(not torch.equal(start[k], tuned[k]) for k in start) and TransformersPolicy(
        folder
    ).generate([([{"role": "user", "content": "?"}], [])])


# -- a vLLM server


def test_the_address_goes_to_trl_in_its_own_words(tmp_path):
    sent = grpo_arguments(make_config(vllm_server="http://gpu:8000", report_to="none"), tmp_path)
    assert (sent.use_vllm, sent.vllm_mode, sent.vllm_server_base_url) == (
        True,
        "server",
        "http://gpu:8000",
    )
    assert sent.vllm_importance_sampling_correction
    assert (sent.vllm_importance_sampling_mode, sent.vllm_importance_sampling_clip_max) == (
        "token_truncate",
        2.0,
    )
    assert not grpo_arguments(make_config(), tmp_path).use_vllm


def test_one_gpu_is_too_few_for_a_server_beside_the_training(server, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for gpus in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        with pytest.raises(
            UserError, match="vllm_server: .*so two are needed, .* there is (n?one)"
        ):
            check_server(server.url)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # the other one is the server's
    check_server(server.url)


def test_weights_are_sent_merged_and_stay_as_they_were_to_the_bit(tiny_folder):
    tuned, received = lora(load_model(tiny_folder)[0].bfloat16(), 4), {}
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    before = {n: p.detach().clone() for n, p in tuned.named_parameters()}
    engine = vllm_generation.VLLMGeneration.__new__(vllm_generation.VLLMGeneration)
    engine.model, engine.mode, engine._weight_metadata = tuned, "server", None
    engine._dist = types.SimpleNamespace(is_fsdp=False, gather_params=lambda p: nullcontext())
    engine.accelerator = types.SimpleNamespace(is_main_process=True)
    engine.vllm_client = types.SimpleNamespace(
        update_named_params=lambda told, sent: received.update((n, w.clone()) for n, w in sent),
        reset_prefix_cache=lambda: None,
    )
    state = types.SimpleNamespace(global_step=0)
    policy = ServerSampling()
    policy.attach(types.SimpleNamespace(vllm_generation=engine, model=tuned, state=state))
    for state.global_step in range(24):
        policy.trainer._last_loaded_step = -1
        policy.refresh()
    assert all(torch.equal(p, before[n]) for n, p in tuned.named_parameters())
    copy, _ = load_model(tiny_folder)
    copy.bfloat16()
    start = {n: p.detach().clone() for n, p in copy.named_parameters()}
    merge_into(copy, tuned)
    assert received.keys() == start.keys() == {n for n, _, _ in engine._weight_metadata}
    for name, p in copy.named_parameters():
        assert torch.equal(received[name], p)
    assert sum(not torch.equal(received[n], start[n]) for n in start) == 14


def test_no_prompts_are_no_turns_and_nobody_is_asked():
    policy = ServerSampling()
    assert policy.tokens([], temperature=1.0, max_new_tokens=4, seed=0) == policy.logprobs == []


def test_no_server_is_said_before_a_model_is_loaded(
    tiny_folder, environments, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "load_model", lambda *a: pytest.fail("must not load a model"))
    with pytest.raises(
        UserError, match="vllm_server: nobody answers at http://127.0.0.1:9 .*start `vllm serve`"
    ):
        train(config_for(tiny_folder, tmp_path, vllm_server="http://127.0.0.1:9"), environments)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="vllm_server: 2 processes"):
        check_server("http://127.0.0.1:9")


class Engine(http.server.BaseHTTPRequestHandler):
    "The endpoints of `vllm serve` that TRL samples by, over a real model, which sits here as `model`."

    def log_message(self, *args):
        pass

    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({"data": [{"id": "tiny"}]} if self.path == "/v1/models" else {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        self.answer(self.complete(asked) if self.path == "/v1/completions" else {})

    def complete(self, asked):
        self.server.asked.append(asked)
        prompts = [p for p in asked["prompt"] for _ in range(asked["n"])]
        rows = generate_tokens(
            self.server.model,
            prompts,
            max_new_tokens=asked["max_tokens"],
            temperature=asked["temperature"],
            seed=len(self.server.asked),
            stop={0},
            pad=0,
        )
        return {
            "choices": [
                dict(
                    prompt_token_ids=p,
                    token_ids=row,
                    logprobs=self.logprobs(p, row, asked["temperature"]),
                )
                for p, row in zip(prompts, rows)
            ]
        }

    @torch.no_grad()
    def logprobs(self, prompt, row, temperature):
        logits = (
            self.server.model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].float()
            / temperature
        )
        told = logits.log_softmax(-1).gather(1, torch.tensor(row)[:, None])[:, 0].tolist()
        names = [f"token_id:{t}" for t in row]
        return dict(
            tokens=names, token_logprobs=told, top_logprobs=[{n: x} for n, x in zip(names, told)]
        )


@pytest.fixture
def server(tiny_folder):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine) as served:
        served.model, served.asked, served.synced = load_model(tiny_folder)[0], [], 0
        served.url = f"http://127.0.0.1:{served.server_port}"
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


@pytest.mark.skipif(vllm_here or torch.cuda.is_available(), reason="says what is missing")
def test_a_server_without_the_package_here_is_said(server):
    with pytest.raises(UserError, match="vllm_server: .*package vllm; pip install 'vllm>="):
        check_server(server.url)


@pytest.mark.skipif(vllm_here, reason="the real thing would want a GPU")
@pytest.mark.parametrize("credit", ["step", "turn"])
def test_turns_and_their_log_probabilities_come_from_the_server_with_the_weights_of_the_moment(
    server, tiny_folder, environments, tmp_path, monkeypatch, credit
):
    """TRL's own client and generation over HTTP. In place of NCCL, which needs GPUs, weights are written into the server's model directly, so that
    what is left out is that transport and vLLM itself."""

    def receive(client, metadata, weights):
        server.synced += 1
        with torch.no_grad():
            for name, p in weights:
                server.model.get_parameter(name).copy_(p)

    for place in (vllm_client, vllm_generation):
        monkeypatch.setattr(place, "is_vllm_available", lambda *a, **k: True)
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda *a, **k: None)
    monkeypatch.setattr(vllm_client.VLLMClient, "update_named_params", receive)
    monkeypatch.setattr(module, "check_server", lambda url: None)
    config = config_for(
        tiny_folder,
        tmp_path,
        vllm_server=server.url,
        credit=credit,
        oversample=2 if credit == "step" else 1,
    )
    folder = train(config, environments)
    log = [r for r in json.loads((tmp_path / "rl" / "log.json").read_text()) if "reward" in r]
    assert len(log) == server.synced == 2 and len({r["loss"] for r in log}) == 2
    ratios = [r[k] for r in log for k in r if k.startswith("sampling/importance_sampling_ratio")]
    assert ratios and all(
        0.9 < x < 1.1 for x in ratios
    )  # the server samples from the policy that is trained
    assert {a["max_tokens"] for a in server.asked} == {6} and {
        a["temperature"] for a in server.asked
    } == {1.0}
    assert any(a["n"] % 4 == 0 for a in server.asked)  # a group is asked for at once
    # nothing is left for the model's own generation_config to fill in
    plain = dict(repetition_penalty=1.0, top_p=1.0, top_k=0, min_p=0.0)
    assert all(a[name] == value for a in server.asked for name, value in plain.items())
    start, tuned = (
        load_file(Path(tiny_folder) / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    assert sum(not torch.equal(start[k], tuned[k]) for k in start) == 14


# -- the benchmark

BENCH = Path(__file__).parents[1] / "runs" / "bench" / "backend.ipynb"


def measure(out, **parameters):
    import papermill

    papermill.execute_notebook(
        str(BENCH),
        None,
        parameters=dict(out=str(out)) | parameters,
        progress_bar=False,
        kernel_name="python3",
    )


@no_gpu
def test_the_benchmark_of_backends_says_that_it_needs_a_gpu(tmp_path):
    with pytest.raises(
        Exception, match="UserError: bench_backend: there is no GPU on this machine"
    ):
        measure(tmp_path)


@no_gpu
def test_the_check_of_a_gpu_says_in_a_line_that_there_is_none(capsys, tmp_path):
    check.main(["--out", str(tmp_path)])
    assert capsys.readouterr().out == check.NO_GPU + "\n" and not list(tmp_path.iterdir())


def test_the_check_compares_plain_with_trl_itself_anywhere_and_goes_on_where_it_was(
    tmp_path, capsys
):
    file = check.check(tmp_path, tmp_path / "work", minutes=0, tiny=True)
    assert "**Not done yet:** models: tiny" in file.with_suffix(".md").read_text()
    assert (
        check.check(tmp_path, tmp_path / "work", tiny=True) == file
        and "models: tiny: done, " in capsys.readouterr().out
    )
    before = json.loads(file.read_text())
    trl, plain = before["stages"]["models: tiny"]["result"]
    for row in (trl, plain):
        assert (
            row["rollout tokens/s"] > 0 < row["update tokens/s"] and 5 < row["loss"] < 8
        )  # ln 600 is 6.4
    assert (
        trl["largest difference of a log-probability"] < 0.05
        and trl["updates, times as fast as trl"] == 1
    )
    said = file.with_suffix(".md").read_text()
    assert said.startswith(f"# {before['facts']['device']}\n") and "Not done yet" not in said
    assert "| tiny | plain | " in said and "Bars" not in said  # they are for GPUs
    check.check(tmp_path, tmp_path / "work", tiny=True)
    assert json.loads(file.read_text()) == before
    assert "models: tiny: done before" in capsys.readouterr().out


def test_a_bar_is_met_by_speed_or_by_memory_and_the_estimate_has_one_of_its_own():
    def row(backend, speed, memory, estimate=None):
        names = ("update tokens/s", "update GB", "estimated update GB")
        return dict(size="4b", backend=backend) | dict(zip(names, (speed, memory, estimate)))

    rows = [row("trl", 100, 20), row("plain", 140, 9, 10), row("unsloth", 149, 11, 14)]
    said = "\n".join(check.bars({"models: 4b": dict(result=rows)}))
    assert "met: 4b, plain: updates 1.40 times as fast as TRL's, in 0.45 of its memory" in said
    assert "MISSED: 4b, unsloth: updates 1.49 times" in said
    assert "met: 4b, plain: -10 % off" in said and "MISSED: 4b, unsloth: -21 % off" in said


def test_a_stage_that_fails_does_not_hinder_the_others_and_is_tried_again(tmp_path, monkeypatch):
    def fails(folder):
        raise RuntimeError("first line\nno kernel for this card")

    work = {"one": fails, "two": lambda folder: dict(passed=3, skipped=1, failed=["test_x"])}
    monkeypatch.setattr(check, "stages", lambda tiny: work)
    file = check.check(tmp_path, tmp_path / "work", tiny=True)
    said = file.with_suffix(".md").read_text()
    assert "**one failed**: no kernel for this card" in said
    assert "**two**: 3 passed, 1 skipped, 1 failed test_x" in said
    work["one"] = lambda folder: dict(passed=1, skipped=0, failed=[])
    check.check(tmp_path, tmp_path / "work", tiny=True)
    assert "**one**: 1 passed" in file.with_suffix(".md").read_text()
    # what other software has measured is not gone on with
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | dict(facts=told["facts"] | dict(trl="0.1"))))
    work["one"] = lambda folder: dict(passed=7, skipped=0, failed=[])
    check.check(tmp_path, tmp_path / "work", tiny=True)
    assert "**one**: 7 passed" in file.with_suffix(".md").read_text()


def test_the_benchmark_of_backends_refuses_one_it_does_not_know(tmp_path):
    with pytest.raises(
        Exception, match=r"UserError: backends: expected some of trl.*got \['Plain'\]"
    ):
        measure(tmp_path, backends=["Plain"])
