"""What the tests of Unsloth share. They run in an environment of their own (`make test-unsloth`), on a GPU where there is one, else on pretended.py's."""

import importlib.util
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("unsloth") else ["test_*.py"]
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # or asking for a GPU would hinder the fork below
sys.path.insert(0, str(Path(__file__).parent))


def _begin():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def plain():
    "Runs a function where Unsloth has changed nothing: in a process that is forked before it is imported. All computes in fp32."
    import pretended

    import toolrl_lit.train  # noqa: F401

    pretended.in_32_bits()
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), _begin) as pool:
        pool.submit(os.getpid).result()
        assert "unsloth" not in sys.modules
        yield lambda task, *args: pool.submit(task, *args).result()


@pytest.fixture(scope="session")
def unsloth(plain):
    "Unsloth, imported after TRL as the library does it."
    import pretended

    if not pretended.GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.exit(
            "no GPU here: TRITON_INTERPRET=1 is to be set beforehand, as `make test-unsloth` does"
        )
    pretended.pretend()
    import unsloth

    pretended.settle()
    return unsloth


@pytest.fixture(scope="session")
def qwen_folder(padded_folder, tmp_path_factory):
    "A tiny Qwen3 with the same tokenizer, under a name that Unsloth knows."
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("hub") / "Qwen" / "Qwen3-4B"
    tokenizer = AutoTokenizer.from_pretrained(padded_folder)
    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    ends = dict(eos_token_id=0, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    settings = Qwen3Config(
        vocab_size=len(tokenizer),
        **shape,
        **heads,
        **ends,
        max_position_embeddings=4096,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
