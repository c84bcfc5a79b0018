"Layers: relative change, adapters without merging, and transplants that load."

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from toolrl_lit.layers import (
    MATRICES,
    Weights,
    acting_in,
    by_depth,
    compare,
    heatmap,
    lora_norm,
    place,
    transplant,
    weights,
)
from toolrl_lit.schema import UserError


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    shape = (
        dict(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        | changes
    )
    return LlamaForCausalLM(LlamaConfig(**shape))


@pytest.fixture(scope="module")
def base():
    return llama()


@pytest.fixture(scope="module")
def tuned(base):
    model = copy.deepcopy(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def folders(base, tuned, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    base.save_pretrained(root / "base")
    tuned.save_pretrained(root / "tuned", max_shard_size="8KB")
    return root


def adapter(base, path, **settings):
    torch.manual_seed(2)
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]} | settings
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    model.save_pretrained(path)
    return model


def logits(model):
    return model(torch.arange(10)[None]).logits


def test_compare_is_the_formula(base, tuned):
    df = compare(base, tuned).set_index("name")
    old, new = (weights(m) for m in (base, tuned))
    assert set(df.index) == set(old)
    for name, row in df.iterrows():
        w, v = old[name].double(), new[name].double()
        assert row["relative"] == pytest.approx(float((v - w).norm() / w.norm()), rel=1e-5)
        assert row["parameters"] == w.numel()


def test_every_kind_of_a_llama_is_named(base):
    df = compare(base, base)
    assert "other" not in set(df["kind"]) and set(MATRICES) <= set(df["kind"])
    assert (df["relative"] == 0).all()
    assert df.groupby("kind")["layer"].nunique()[list(MATRICES)].eq(3).all()


def test_paths_models_and_state_dicts_agree(base, tuned, folders):
    by_model = compare(base, tuned)
    assert (
        len(Weights(folders / "tuned").files)
        and len(set(Weights(folders / "tuned").files.values())) > 1
    )  # sharded
    pd.testing.assert_frame_equal(by_model, compare(folders / "base", str(folders / "tuned")))
    pd.testing.assert_frame_equal(by_model, compare(base.state_dict(), folders / "tuned"))
    pd.testing.assert_frame_equal(by_model, compare(folders / "base" / "model.safetensors", tuned))


def test_files_are_read_one_tensor_at_a_time(folders, monkeypatch):
    opened = []
    real = Weights.__getitem__
    monkeypatch.setattr(
        Weights, "__getitem__", lambda self, name: opened.append(name) or real(self, name)
    )
    w = weights(folders / "tuned")
    assert len(w) and not opened
    w["model.norm.weight"]
    assert opened == ["model.norm.weight"]


def test_a_zero_weight_has_no_relative_change():
    zero = torch.zeros(2)
    df = compare(
        {"a.weight": zero, "b.weight": zero.clone()}, {"a.weight": torch.ones(2), "b.weight": zero}
    )
    assert np.isnan(df["relative"][0]) and df["relative"][1] == 0


def test_small_changes_survive_bf16():
    w = torch.ones(1000, dtype=torch.bfloat16)
    v = w.clone()
    v[0] = 1.0078125  # the next bf16 number
    assert compare({"w": w}, {"w": v})["relative"][0] == pytest.approx(
        0.0078125 / 1000**0.5, rel=1e-6
    )


@given(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.floats(-4, 4), st.integers(0, 2**31)
)
@settings(max_examples=50, deadline=None)
def test_norm_of_a_low_rank_change_needs_no_product(r, m, n, scale, seed):
    g = torch.Generator().manual_seed(seed)
    A, B = torch.randn(r, n, generator=g), torch.randn(m, r, generator=g)
    assert lora_norm(A, B, scale) == pytest.approx(
        float((scale * B.double() @ A.double()).norm()), abs=1e-6, rel=1e-6
    )


@pytest.mark.parametrize(
    "extra",
    [{}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 4}}],
)
def test_adapter_equals_merged_model(base, tmp_path, extra):
    untied = llama(tie_word_embeddings=False) if "modules_to_save" in extra else base
    model = adapter(untied, tmp_path / "a", **extra)
    if "modules_to_save" in extra:
        with torch.no_grad():
            model.base_model.model.lm_head.modules_to_save["default"].weight += 0.1
        model.save_pretrained(tmp_path / "a")
    direct, merged = compare(untied, tmp_path / "a"), compare(untied, model.merge_and_unload())
    pd.testing.assert_frame_equal(direct, merged, rtol=1e-3, atol=1e-6)
    assert set(direct.loc[direct["relative"] > 0, "kind"]) == {"q", "up"} | (
        {"head"} if "modules_to_save" in extra else set()
    )


@pytest.mark.parametrize("field", ["use_dora", "alpha_pattern"])
def test_adapters_that_are_no_plain_lora_are_refused(base, tmp_path, field):
    adapter(base, tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(
        json.dumps(
            json.loads(file.read_text())
            | {field: {"q_proj": 3} if field == "alpha_pattern" else True}
        )
    )
    with pytest.raises(UserError, match=field):
        compare(base, tmp_path / "a")


def test_transplant_of_everything_is_the_tuned_model(tuned, folders, tmp_path):
    names = transplant(folders / "base", tuned, out=tmp_path / "all")
    assert len(names) == len(weights(tuned))
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path / "all")), logits(tuned))


def test_transplant_takes_the_chosen_weights_and_no_others(base, tuned, folders, tmp_path):
    transplant(
        folders / "base",
        folders / "tuned",
        layers=[0, 2],
        kinds=["down", "q"],
        out=tmp_path / "some",
    )
    mixed = LlamaForCausalLM.from_pretrained(tmp_path / "some")
    for name, p in mixed.named_parameters():
        layer, kind = place(name)
        giver = tuned if layer in (0, 2) and kind in ("down", "q") else base
        assert torch.equal(p, giver.get_parameter(name)), name


def test_transplant_of_an_adapter(base, folders, tmp_path):
    model = adapter(base, tmp_path / "a")
    transplant(folders / "base", tmp_path / "a", out=tmp_path / "all")
    torch.testing.assert_close(
        logits(LlamaForCausalLM.from_pretrained(tmp_path / "all")),
        logits(model),
        atol=1e-5,
        rtol=1e-4,
    )
    transplant(folders / "base", tmp_path / "a", layers=[1], out=tmp_path / "one")
    df = compare(folders / "base", tmp_path / "one")
    assert set(df.loc[df["relative"] > 0, "layer"]) == {1}


def test_transplant_of_shards_keeps_the_files(base, folders, tmp_path):
    transplant(folders / "tuned", base, kinds=["embedding"], out=tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        p.name for p in (folders / "tuned").iterdir()
    }
    mixed = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(mixed.model.embed_tokens.weight, base.model.embed_tokens.weight)


def test_transplant_keeps_the_type_of_the_base(tuned, folders, tmp_path):
    llama().to(torch.bfloat16).save_pretrained(tmp_path / "b16")
    transplant(tmp_path / "b16", tuned, out=tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_what_was_there_stays(tuned, folders, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        transplant(folders / "base", tuned, out=tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_refused_transplant_leaves_nothing(folders, tmp_path):
    wide = llama(intermediate_size=64)
    with pytest.raises(UserError, match=r"gate_proj.*\[32, 16\].*\[64, 16\]|(up|down)_proj"):
        transplant(folders / "base", wide, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"layers": [3]}, r"no \[3\].*\[0, 1, 2\]"),
        ({"kinds": ["gat"]}, "no .'gat'.*'gate'"),
        ({"layers": [0], "kinds": ["embedding"]}, "no weight"),
        ({"layers": []}, "no weight"),
    ],
)
def test_a_choice_that_is_not_there(folders, tuned, tmp_path, choice, message):
    with pytest.raises(UserError, match=message):
        transplant(folders / "base", tuned, out=tmp_path / "out", **choice)


def test_models_that_do_not_fit(base, tmp_path):
    with pytest.raises(UserError, match="only in tuned: .*layers.3"):
        compare(base, llama(num_hidden_layers=4))
    with pytest.raises(UserError, match=r"shape \[.*\] in base, \[.*\] in tuned"):
        compare(base, llama(intermediate_size=64))
    model = adapter(base, tmp_path / "a")
    with pytest.raises(UserError, match="Save the adapter"):
        compare(base, model)
    with pytest.raises(UserError, match="only in tuned"):
        compare(llama(num_hidden_layers=1), tmp_path / "a")


def test_sources_that_are_nothing(base, tmp_path):
    with pytest.raises(UserError, match="found none"):
        compare(base, tmp_path / "nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(UserError, match="model.safetensors: is no readable"):
        compare(base, tmp_path / "bad")
    with pytest.raises(UserError, match="state dict of tensors, got int"):
        compare(base, 3)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config.json"):
        compare(base, tmp_path / "adapter")


def test_means_by_depth_are_those_of_the_weights(base, tuned):
    df = compare(base, tuned)
    means, inside = by_depth(df, lowest=1), df[df.layer.notna()]
    for module, kinds in (("MLP", ("gate", "up", "down")), ("attention", ("q", "k", "v", "o"))):
        for column, layers in (
            ("layers 0 to 0", inside.layer == 0),
            ("layers from 1 on", inside.layer >= 1),
        ):
            assert means.loc[module, column] == pytest.approx(
                inside[inside.kind.isin(kinds) & layers].relative.mean()
            )
    assert (
        list(by_depth(df, lowest=99)) == ["layers 0 to 98"] and by_depth(df[df.layer.isna()]).empty
    )


def test_heatmap_shows_the_numbers(base, tuned):
    df = compare(base, tuned)
    fig = heatmap(df)
    z, kinds = np.array(fig.data[0].z), list(fig.data[0].y)
    assert kinds == list(MATRICES) and z.shape == (7, 3)
    for i, kind in enumerate(kinds):
        for layer in range(3):
            assert z[i, layer] == pytest.approx(
                df[(df["kind"] == kind) & (df["layer"] == layer)]["relative"].item()
            )
    assert (
        fig.layout.xaxis.title.text == "Layer"
        and fig.layout.yaxis.title.text
        and fig.data[0].colorbar.title.text
    )
    with pytest.raises(UserError, match="conv"):
        heatmap(df, kinds=["conv"])


def test_experts_share_a_cell():
    e = lambda i: f"model.layers.0.mlp.experts.{i}.up_proj.weight"
    one = torch.ones(3, 4)
    df = compare({e(0): one, e(1): one.clone()}, {e(0): one, e(1): 3 * one})
    assert heatmap(df).data[0].z[0][0] == pytest.approx(
        2**0.5
    )  # as for one matrix of both: sqrt(4*12 / 24)


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_norms_of_huge_and_tiny_weights_are_exact(size):
    "Their squares are beyond what 32 bits hold."
    w, A, B = torch.full((4, 4), size), torch.full((2, 4), size**0.5), torch.full((4, 2), size**0.5)
    row = compare({"a": w}, {"a": 3 * w}).iloc[0]
    assert (
        row["norm"] == pytest.approx(4 * size)
        and row["change"] == pytest.approx(8 * size)
        and row["relative"] == pytest.approx(2)
    )
    assert lora_norm(A, B) == pytest.approx(8 * size, rel=1e-5)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff\xfe{\0}\0", b"\xff", b"3"])
def test_an_adapter_without_readable_settings_is_named(base, tmp_path, content):
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(UserError, match="adapter_config.json: "):
        compare(base, tmp_path)


def test_an_adapter_acts_in_the_chosen_places_as_their_transplant_does(base, folders, tmp_path):
    beside = adapter(base, tmp_path / "a")
    everywhere = logits(beside)
    kinds = ["q"]
    taken = transplant(
        folders / "base", tmp_path / "a", layers=[1], kinds=kinds, out=tmp_path / "one"
    )
    with acting_in(beside, layers=[1], kinds=kinds) as where:
        assert [place(n) for n in where] == [place(n) for n in taken]
        here = logits(beside)
    with acting_in(beside, layers=[1], kinds=kinds, elsewhere=True) as others:
        assert not set(others) & set(where)
        assert not torch.equal(logits(beside), everywhere)
    with acting_in(beside, elsewhere=True) as nowhere:
        assert not nowhere and torch.equal(logits(beside), logits(base))
    mixed = LlamaForCausalLM.from_pretrained(tmp_path / "one")
    assert torch.allclose(here, logits(mixed), atol=1e-5)
    assert not torch.allclose(here, everywhere, atol=1e-4)
    assert torch.equal(logits(beside), everywhere)


def test_an_adapter_acts_everywhere_again_after_an_error(base, tmp_path):
    beside = adapter(base, tmp_path / "a")
    everywhere = logits(beside)
    with pytest.raises(KeyError), acting_in(beside, layers=[0]):
        raise KeyError("what is done in the block")
    assert torch.equal(logits(beside), everywhere)
    trained = {name for name, p in beside.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in beside.named_parameters() if ".lora_" in name}


def test_a_place_without_adapters_is_refused(base, tmp_path):
    with pytest.raises(UserError, match="found none"), acting_in(base, layers=[0]):
        pass
    beside = adapter(base, tmp_path / "a")
    with pytest.raises(UserError, match="no \\[9\\]"), acting_in(beside, layers=[9]):
        pass
