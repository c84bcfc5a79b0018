"Models as `load_unsloth` loads them, against transformers and PEFT; and what it refuses."

import json
import shutil

import pretended
import pytest
import scored
import torch
from tape import config_for, fill
from transformers import AutoTokenizer

from toolrl_lit import train
from toolrl_lit.engine.unsloth import adapted, load_unsloth
from toolrl_lit.schema import UserError

pytestmark = pytest.mark.usefixtures("unsloth")


def loaded(folder, tmp_path, **changes):
    "Return a model with what is to be trained."
    config = config_for(folder, tmp_path, **changes)
    pretended.begin()
    model = adapted(load_unsloth(config, folder)[0], config)
    pretended.settle()
    return model


def policy_of(folder, tmp_path, **changes):
    "Return what samples in training, as `unsloth_trainer` makes it."
    config = config_for(folder, tmp_path, **changes)
    pretended.begin()
    model, tokenizer = load_unsloth(config, folder)
    policy = train.sampling_policy(train.UnslothPolicy, config, model, tokenizer)
    policy.model, policy.memory = adapted(model, config), None
    pretended.settle()
    return policy


PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [20, 21, 22, 23, 24]]


@pytest.fixture
def named(qwen_folder, monkeypatch):
    "The tiny Qwen3 by a name for which Unsloth would take another repository's copy."
    monkeypatch.chdir(qwen_folder.parents[1])
    return "Qwen/Qwen3-4B"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_log_probabilities_gradients_and_reference_are_those_of_plain_models(
    kind, checkpointing, request, plain, tmp_path
):
    folder = request.getfixturevalue("padded_folder" if kind == "llama" else "named")
    with pretended.fast(kernels=not checkpointing):
        model = loaded(folder, tmp_path, gradient_checkpointing=checkpointing)
        assert model.config._name_or_path == str(folder)
        fill(model)
        fast = scored.all_of(model.train())
    slow = plain(
        scored.by_plain, request.getfixturevalue(f"{'padded' if kind == 'llama' else kind}_folder")
    )
    for padding in ("left", "right"):
        (a, grads), (b, same) = fast[padding], slow[padding]
        assert torch.allclose(a, b, atol=1e-5) and b.min() < -1
        assert grads.keys() == same.keys() and len(grads) == 28
        for name in same:
            assert torch.allclose(grads[name], same[name], atol=2e-5), name
    assert torch.allclose(fast["reference"], slow["reference"], atol=1e-5)


def test_the_decoder_says_what_a_plain_model_says_and_goes_back_to_training(
    padded_folder, plain, tmp_path
):
    policy = policy_of(padded_folder, tmp_path, gradient_checkpointing=True)
    policy.model.train()
    before = [bool(getattr(m, "gradient_checkpointing", None)) for m in policy.model.modules()]
    said = policy.tokens(PROMPTS, temperature=0, max_new_tokens=4, seed=0)
    assert said == plain(scored.said_greedily, padded_folder, PROMPTS, 4)
    assert policy.model.training and True in before
    after = [bool(getattr(m, "gradient_checkpointing", None)) for m in policy.model.modules()]
    assert after == before
    assert policy.tokens([], temperature=1.0, max_new_tokens=4, seed=0) == policy.logprobs == []


def test_what_a_model_would_like_changes_nothing_that_is_sampled(padded_folder, plain, tmp_path):
    folder = shutil.copytree(padded_folder, tmp_path / "opinionated")
    likes = dict(repetition_penalty=5.0, top_k=3, min_p=0.3, suppress_tokens=[0], top_p=0.5)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | likes | {"do_sample": True}))
    told = {}
    for name in (padded_folder, folder):
        policy = policy_of(name, tmp_path)
        with pretended.fast():
            rows = policy.tokens(PROMPTS * 3, temperature=1.0, max_new_tokens=5, seed=1)
        told[name] = rows, policy.logprobs
    assert policy.model.generation_config.repetition_penalty == 5.0  # for those who chat with it
    assert told[folder] == told[padded_folder]
    rows, logps = told[folder]
    for a, b in zip(logps, plain(scored.scored, padded_folder, PROMPTS * 3, rows), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert len({tuple(r) for r in rows}) > 3


def test_log_probabilities_are_those_at_the_temperature(padded_folder, plain, tmp_path):
    policy = policy_of(padded_folder, tmp_path)
    rows = policy.tokens(PROMPTS[:1], temperature=2.0, max_new_tokens=4, seed=0)
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[0] + rows[0]], device=policy.model.device)
        logits = policy.model(ids, use_cache=False).logits[0, len(PROMPTS[0]) - 1 : -1]
    expected = (logits / 2).log_softmax(-1).gather(1, ids[0, len(PROMPTS[0]) :, None])[:, 0]
    assert policy.logprobs[0] == pytest.approx(expected.tolist(), abs=1e-5)


# -- what is refused


def test_a_tokenizer_that_can_only_pad_with_its_end_is_refused_before_a_model_is_loaded(
    tiny_folder, tmp_path
):
    with pytest.raises(UserError, match="pads with '<|im_end|>', .*expected pad_token in .*plain"):
        load_unsloth(config_for(tiny_folder, tmp_path), tiny_folder)


def test_four_bits_are_refused_where_unsloth_takes_sixteen_in_their_place(
    padded_folder, tmp_path, monkeypatch
):
    from unsloth.models import loader

    monkeypatch.setattr(loader, "ALLOW_BITSANDBYTES", False)
    config = config_for(padded_folder, tmp_path, backend="unsloth", load_in="4bit")
    with pytest.raises(UserError, match="load_in=4bit: Unsloth loaded .* in 16 bits, .*16bit"):
        load_unsloth(config, padded_folder)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_pad_tokens_row_of_the_embeddings_is_kept(rank, padded_folder, tmp_path):
    model = loaded(padded_folder, tmp_path, lora_rank=rank, learning_rate=1e-5)
    row = model.get_input_embeddings().weight[
        AutoTokenizer.from_pretrained(padded_folder).pad_token_id
    ]
    assert row.abs().min() > 0
