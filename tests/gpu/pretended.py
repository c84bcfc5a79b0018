"""Unsloth's code for GPUs on a CPU. Its own switch UNSLOTH_ALLOW_CPU lets it load without a device, and TRITON_INTERPRET lets Triton run kernels
in Python. What is left to pretend is here: a current device, what it has, and streams. Where there is a GPU, nothing is pretended."""

import contextlib
import os
import sys
import tempfile
import types
from unittest.mock import patch

import torch

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SWITCHES = dict(
    UNSLOTH_ALLOW_CPU="1",
    UNSLOTH_COMPILE_DISABLE="1",  # torch.compile would want a C++ compiler and minutes
    UNSLOTH_DISABLE_PINNED_MEMORY="1",
)
NOW = types.SimpleNamespace(cuda_stream=0)
for name in ("synchronize", "wait_stream", "wait_event", "record_event"):
    setattr(NOW, name, lambda *a: None)
CARD = dict(
    name="pretended GPU",
    total_memory=24 * 2**30,
    major=9,
    minor=0,
    multi_processor_count=8,
    warp_size=32,
    gcnArchName="",
    L2_cache_size=50 * 2**20,
    shared_memory_per_block_optin=232448,
    is_integrated=False,
)
NUMBERS = dict(
    current_device=0,
    get_device_properties=types.SimpleNamespace(**CARD),
    get_device_capability=(9, 0),
    current_stream=NOW,
    default_stream=NOW,
    is_current_stream_capturing=False,
    mem_get_info=(20 * 2**30, 24 * 2**30),
    memory_reserved=0,
    memory_allocated=0,
    max_memory_reserved=0,
    max_memory_allocated=0,
    reset_peak_memory_stats=None,
    synchronize=None,
    empty_cache=None,
    set_device=None,
)


def pretend():
    "Before Unsloth is imported: let torch.cuda answer, while `is_available` stays False."
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp()  # or it is the folder one works in
    if GPU:
        return
    os.environ.update(SWITCHES)
    for name, value in NUMBERS.items():
        setattr(torch.cuda, name, lambda *a, value=value, **k: value)
    torch.cuda.device = _Device


def in_32_bits():
    "Let the library compute in fp32, whatever this machine is fast at: differences are then those of the code."
    for name, module in list(sys.modules.items()):
        if name.startswith("toolrl_lit.") and "fast_dtype" in vars(module):
            module.fast_dtype = lambda: torch.float32


class _Device(contextlib.nullcontext):
    def __init__(self, number=0):
        super().__init__()
        self.idx = 0


class _IsDevice(type):
    def __instancecheck__(cls, x):
        return isinstance(x, torch.device)


class _AnyDevice(metaclass=_IsDevice):
    "torch.device, for which 0 and cuda:0 are the CPU."

    def __new__(cls, where, *rest):
        if isinstance(where, int) or str(where).startswith("cuda"):
            return torch.device("cpu", 0)
        return torch.device(where, *rest)


class _Torch:
    "The module torch for a module that makes tensors on device 0 by its number."

    device = _AnyDevice

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def empty(*shape, device=None, **how):
        return torch.empty(*shape, device="cpu" if isinstance(device, int) else device, **how)


def _cast(x, dtype):
    import triton.language as tl

    return tl.cast(x, dtype)


def _rope_table(self, device):
    "Make the table of sines and cosines, on the CPU."
    size = self.current_rope_size
    with self._rope_build_mode():
        self._set_cos_sin_cache(
            seq_len=self._rope_cache_rows(),
            device=torch.device("cpu", 0),
            dtype=self._rope_cache_dtype,
        )
    self.current_rope_size = size
    self._rope_cache_versions[device] = self._rope_cache_version
    self._mark_rope_build(device)


def begin():
    "Before a model is loaded: as in a process that has loaded none."
    os.environ.pop("UNSLOTH_ENABLE_FULL_FINETUNING", None)
    settle()


def settle():
    "After a model was loaded, which undoes some of it: one device, which is the CPU."
    if GPU:
        return
    from unsloth.kernels import cross_entropy_loss
    from unsloth.models import llama

    cross_entropy_loss.triton_cast = _cast  # an alias that the interpreter overlooks
    llama.torch, llama.DEVICE_COUNT = _Torch(), 1
    llama._LazyDeviceScratch.__getitem__ = lambda self, index: self._make(torch.device("cpu"))
    llama._PerDeviceRopeCache._build_rope_cache = _rope_table


def _rms(norm, x, *rest, **how):
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * norm.weight


def _rope(q, k, cos, sin, positions=None):
    at = slice(q.shape[2]) if positions is None else positions.view(-1, q.shape[2]).long()
    cos, sin = (t[at].reshape(-1, 1, q.shape[2], q.shape[3]) for t in (cos, sin))
    half = q.shape[-1] // 2
    return tuple(x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin for x in (q, k))


@contextlib.contextmanager
def fast(kernels=False):
    """Let torch do what the interpreter takes half a second a row for, norms and rotations, which test_kernels.py compares; and adapters be fused in
    fp32 too, which otherwise keep PEFT's own forward pass."""
    from unsloth.kernels import qk_norm_rope, swiglu
    from unsloth.models import llama, qwen3

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(llama, "_base_weight_dtype", lambda p: torch.bfloat16))
        for module in () if GPU or kernels else (llama, qwen3):
            stack.enter_context(patch.object(module, "fast_rms_layernorm", _rms))
            stack.enter_context(patch.object(module, "fast_rope_embedding", _rope))
        if not GPU and not kernels:
            stack.enter_context(patch.object(swiglu, "BLOCK_SIZE", 2**17))
            stack.enter_context(patch.object(qk_norm_rope, "QK_NORM_ROPE_ENABLED", False))
        yield


def rewrite_trl():
    "Do to TRL and transformers what Unsloth leaves out under UNSLOTH_ALLOW_CPU."
    if GPU:
        return  # it has not left it out
    from unsloth.models import rl
    from unsloth.trainer import _patch_trl_trainer

    with patch.dict(os.environ, UNSLOTH_ALLOW_CPU="0"):
        rl.PatchFastRL(FastLanguageModel=None)
        _patch_trl_trainer()
