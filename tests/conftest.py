"""What several test files share: eight real environments, and a tiny random model that writes calls often enough to learn.

Imports stand where they are needed: the process that hands out tests runs none, and need not import the library."""

import gc
import os
import sys
from typing import NamedTuple

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Files in the order in which workers take them: what takes longest first, so that no worker is left with it at the end
LONGEST = (
    "processes",
    "train",
    "build",
    "site",
    "llm",
    "cli",
    "bench",
    "backend",
    "collect",
)


def pytest_collection_modifyitems(items):
    "Put the files that take longest first."
    order = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish(session):
    "Leave what was imported out of garbage collections: each training asks for one, which took a second."
    gc.freeze()


@pytest.fixture(scope="session")
def environments():
    "Two environments of each scenario."
    from toolrl_lit.build import build_environments
    from toolrl_lit.scenario import KnowledgeGenerator

    return build_environments(KnowledgeGenerator(), 8, seed=0, progress=False).environments


def golden_calls(environments):
    from toolrl_lit.collect import call_text

    return sorted({call_text([c]) for e in environments for wave in e.golden_calls() for c in wave})


def save(environments, folder, template, calls):
    "Write a tiny model; its tokenizer is made from the prompts themselves, which makes them half as long."
    from toolrl_lit.engine.tiny import stand_in_model, stand_in_tokenizer

    render = stand_in_tokenizer([], calls, template).apply_chat_template
    prompts = [
        render(s.messages, tools=s.tools, add_generation_prompt=True, tokenize=False)
        for s in (e.start() for e in environments)
    ]
    tokenizer = stand_in_tokenizer(prompts, calls, template)
    stand_in_model(tokenizer, len(calls)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(environments, tmp_path_factory):
    from toolrl_lit.collect import CHAT_TEMPLATE

    return save(
        environments,
        tmp_path_factory.mktemp("tiny") / "model",
        CHAT_TEMPLATE,
        golden_calls(environments),
    )


@pytest.fixture(scope="session")
def padded_folder(tiny_folder, tmp_path_factory):
    "The tiny model, with a token to pad with that is not the one that ends a turn, as Unsloth wants it; weights in fp32."
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("padded") / "model"
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.get_input_embeddings().padding_idx = tokenizer.pad_token_id
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


THOUGHT = "<think>\nWhich tool?\n</think>\n\n"
# Behaves as Qwen3's: an empty thought closes the prompt of a model that shall not think, the last turn is shown with its thought,
# were it empty, turns before it only with a thought that holds something, and turns before the last user message with none.
THINKING_TEMPLATE = (
    "{%- set ns = namespace(asked=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.asked = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for tool in tools or [] %}{{- (tool | tojson) + '\n' }}{%- endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}"
    "{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{%- if loop.index0 > ns.asked and (loop.last or thought) %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- content }}"
    "{%- for c in m.tool_calls or [] %}{{- '\n' if content or not loop.first }}{{- '<tool_call>\n{\"name\": ' + (c.function.name | tojson) "
    "+ ', \"arguments\": ' + (c.function.arguments | tojson) + '}\n</tool_call>' }}{%- endfor %}"
    "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)


@pytest.fixture(scope="session")
def thinking_folder(environments, tmp_path_factory):
    "The same for a model that thinks before its calls now and then, with a chat template that behaves as Qwen3's."
    calls = golden_calls(environments)
    return save(
        environments,
        tmp_path_factory.mktemp("thinking") / "model",
        THINKING_TEMPLATE,
        calls + [THOUGHT + c for c in calls],
    )


@pytest.fixture(scope="session")
def small_llama():
    "Makes a random Llama in single precision, peaked enough that rounding does not change a token."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(vocab_size=61, hidden_size=24, intermediate_size=48, num_hidden_layers=2)
    heads = dict(num_attention_heads=6, num_key_value_heads=2)

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        settings = shape | heads | dict(initializer_range=0.3) | changes
        return LlamaForCausalLM(LlamaConfig(**settings)).eval()

    return make


class Done(NamedTuple):
    "How a command ended, and what it said."

    code: int
    out: str
    err: str


@pytest.fixture
def toolrl(capsys, monkeypatch):
    "Runs the command in this process: exit code, standard output, standard error."
    from toolrl_lit.doors.cli import main

    def run(*words) -> Done:
        monkeypatch.setattr(sys, "argv", ["toolrl", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def computes(monkeypatch):
    "Lets a test choose the type that models compute in, whatever this machine is fast at."

    def use(dtype):
        for name, module in list(sys.modules.items()):
            if name.startswith("toolrl_lit.") and "fast_dtype" in vars(module):
                monkeypatch.setattr(module, "fast_dtype", lambda: dtype)

    return use
