"Unsloth's kernels against torch, forward and backward."

import pretended
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("unsloth")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def numbers(*shape, grad=True):
    return torch.randn(*shape, device=pretended.DEVICE).requires_grad_(grad)


def gradients(outputs, inputs, by):
    "Return the gradients of inputs by outputs, which are weighed by given numbers."
    total = sum((out * weight).sum() for out, weight in zip(outputs, by))
    return torch.autograd.grad(total, inputs)


def same(fast, plain, inputs, within=1e-5):
    "Compare the outputs of two functions of the same inputs, and the gradients of these."
    a, b = fast(*inputs), plain(*inputs)
    a, b = (x if isinstance(x, tuple) else (x,) for x in (a, b))
    by = [torch.randn_like(x) for x in b]
    wanted = [x for x in inputs if x.requires_grad]
    for x, y in zip(a + gradients(a, wanted, by), b + gradients(b, wanted, by), strict=True):
        assert x.shape == y.shape and torch.allclose(x, y, atol=within) and y.abs().max() > 0


@pytest.mark.parametrize("trained", [False, True])
def test_rms_norm(trained):
    from unsloth.kernels.rms_layernorm import fast_rms_layernorm

    norm = torch.nn.RMSNorm(64, eps=1e-6).to(pretended.DEVICE)
    norm.variance_epsilon = 1e-6
    norm.weight.data.normal_()
    norm.weight.requires_grad_(trained)
    same(
        lambda x, w: fast_rms_layernorm(norm, x),
        lambda x, w: F.rms_norm(x, (64,), w, 1e-6),
        (numbers(2, 3, 64), norm.weight),
    )


@pytest.mark.parametrize("shifted", [False, True])
def test_rope(shifted):
    from unsloth.kernels.rope_embedding import fast_rope_embedding

    angle = torch.arange(16)[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)
    angle = torch.cat([angle, angle], -1).to(pretended.DEVICE)
    cos, sin = angle.cos(), angle.sin()
    positions = torch.stack([torch.arange(5), torch.arange(5) + 3]).to(angle.device, torch.int32)
    at = positions.long() if shifted else torch.arange(5, device=angle.device).expand(2, 5)

    def turned(x):
        half = torch.cat([-x[..., 8:], x[..., :8]], -1)
        return x * cos[at][:, None] + half * sin[at][:, None]

    same(
        lambda q, k: fast_rope_embedding(
            q.clone(), k.clone(), cos, sin, positions if shifted else None
        ),
        lambda q, k: (turned(q), turned(k)),
        (numbers(2, 4, 5, 16), numbers(2, 2, 5, 16)),
    )


def test_swiglu():
    from unsloth.kernels.swiglu import swiglu_DWf_DW_dfg_kernel, swiglu_fg_kernel

    gate, up = numbers(2, 5, 96), numbers(2, 5, 96)
    out = F.silu(gate) * up
    assert torch.allclose(swiglu_fg_kernel(gate.detach(), up.detach()), out, atol=1e-6)
    # backward, in place: what flows into the layer below, and the gradients of both inputs
    by = torch.randn_like(out)
    flat = [x.detach().clone().view(10, 96) for x in (by, gate, up)]
    told = swiglu_DWf_DW_dfg_kernel(*flat)
    expected = (out, by * F.silu(gate), torch.autograd.grad(out, gate, by)[0])
    for a, b in zip(told, expected, strict=True):
        assert torch.allclose(a, b.view(10, 96), atol=1e-5)


@pytest.mark.parametrize("vocabulary", [1000, 151936])  # the second one in chunks
def test_cross_entropy(vocabulary):
    from unsloth.kernels.cross_entropy_loss import fast_cross_entropy_loss

    labels = torch.randint(0, vocabulary, (1, 3), device=pretended.DEVICE)
    labels[0, 1] = -100
    same(
        lambda x: fast_cross_entropy_loss(x * 1.0, labels),
        lambda x: F.cross_entropy(x.flatten(0, 1), labels.flatten()),
        (numbers(1, 3, vocabulary),),
    )


class Layer(torch.nn.Module):
    "The linear layers of a transformer's layer."

    def __init__(self):
        super().__init__()
        self.act_fn = F.silu
        for name in TARGETS:
            wide_in, wide_out = name == "down_proj", name in ("gate_proj", "up_proj")
            size = 32 if name in ("k_proj", "v_proj") else 64
            setattr(
                self,
                name,
                torch.nn.Linear(96 if wide_in else 64, 96 if wide_out else size, bias=False),
            )

    def forward(self, x):
        raise NotImplementedError

    def mlp(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    def qkv(self, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def out(self, x):
        return self.o_proj(x)


@pytest.mark.parametrize("on", [True, False])  # off is the reference policy
@pytest.mark.parametrize("part", ["mlp", "qkv", "out"])
def test_fused_adapters(part, on):
    from unsloth.kernels import fast_lora

    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    layer = get_peft_model(Layer().to(pretended.DEVICE), config).base_model.model
    adapters = [p for n, p in layer.named_parameters() if "lora_" in n]
    for p in adapters:
        p.data.normal_(std=0.1)
    for name in TARGETS:
        getattr(layer, name).enable_adapters(on)
    fused = {
        "mlp": lambda x: fast_lora.apply_lora_mlp_swiglu(layer, x, inplace=False),
        "qkv": lambda x: fast_lora.apply_lora_qkv(layer, x, inplace=False),
        "out": lambda x: fast_lora.apply_lora_o(layer, x),
    }[part]
    x = numbers(2, 5, 64)
    same(lambda x, *_: fused(x.clone()), lambda x, *_: getattr(layer, part)(x), (x,))
    if on:
        outs = [y if isinstance(y, tuple) else (y,) for y in (fused(x), getattr(layer, part)(x))]
        by = [torch.randn_like(y) for y in outs[0]]
        for g, h in zip(
            *(
                [
                    torch.autograd.grad(
                        sum((y * w).sum() for y, w in zip(o, by)), adapters, allow_unused=True
                    )
                    for o in outs
                ]
            ),
            strict=True,
        ):
            assert (g is None) == (h is None) and (g is None or torch.allclose(g, h, atol=1e-5))


def test_four_bits():
    import bitsandbytes.functional as bnb
    from unsloth.kernels.utils import fast_dequantize

    weights = torch.randn(64, 128, device=pretended.DEVICE)
    packed, state = bnb.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    assert torch.equal(
        fast_dequantize(packed, state).float(), bnb.dequantize_4bit(packed, state).float()
    )
    assert 0 < (fast_dequantize(packed, state) - weights).abs().mean() < 0.15
