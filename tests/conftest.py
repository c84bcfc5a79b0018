"What several test files share: eight real environments, and a tiny random model that writes calls often enough to learn."

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import pytest, torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from toolrl_lit.build import build_environments
from toolrl_lit.collect import CHAT_TEMPLATE, call_text
from toolrl_lit.scenario import KnowledgeGenerator


@pytest.fixture(scope="session")
def environments():
    "Two environments of each scenario."
    return build_environments(KnowledgeGenerator(), 8, seed=0, progress=False).environments


def tiny_model(environments, folder, template: str, calls: list[str]):
    """A random Llama and its tokenizer on disk. Each of `calls` is one token, and those tokens are likely: so the model
    solves something now and then, and turns differ in reward, as reinforcement learning needs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    text = [str(e.documents()) + e.question for e in environments]
    ends = ["<|im_end|>", "<|im_start|>"]
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=ends,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.add_tokens([AddedToken(c, normalized=False) for c in calls])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=ends[0], pad_token=ends[0], chat_template=template
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.2,
            eos_token_id=0,
            pad_token_id=0,
            bos_token_id=None,
        )
    ).bfloat16()
    with torch.no_grad():  # the first state is the same for all tokens: a bias for the head
        model.model.embed_tokens.weight[:, 0] = 4
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[-len(calls) :, 0] = 1
        model.lm_head.weight[0, 0] = 1.5
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def golden_calls(environments):
    return sorted({call_text([c]) for e in environments for wave in e.golden_calls() for c in wave})


@pytest.fixture(scope="session")
def tiny_folder(environments, tmp_path_factory):
    return tiny_model(
        environments,
        tmp_path_factory.mktemp("tiny") / "model",
        CHAT_TEMPLATE,
        golden_calls(environments),
    )


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
    return tiny_model(
        environments,
        tmp_path_factory.mktemp("thinking") / "model",
        THINKING_TEMPLATE,
        calls + [THOUGHT + c for c in calls],
    )


@pytest.fixture
def computes(monkeypatch):
    "Lets a test choose the type that models compute in, whatever this machine is fast at."

    def use(dtype: torch.dtype):
        for module in ("collect", "train"):
            monkeypatch.setattr(f"toolrl_lit.{module}.fast_dtype", lambda: dtype)

    return use
