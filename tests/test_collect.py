"Collect: rollouts that can be resumed, and generation that says what transformers says, only sooner."
import errno, json
import pytest, torch
from hypothesis import given, settings, strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from toolrl_lit import collect as module
from toolrl_lit.collect import (OraclePolicy, PrefixMemory, TransformersPolicy, call_text, collect, find_model, generate_tokens, load_model,
                                packaged_warm_model, save_model)
from toolrl_lit.reward import parse_qwen
from toolrl_lit.schema import Trajectory, UserError, read_jsonl

@pytest.fixture(scope="module")
def llama():
    "A random model in single precision, peaked enough that rounding does not change a token."
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=6,
                                         num_key_value_heads=2, initializer_range=0.3)).eval()
    model.set_attn_implementation("grouped")
    return model

@pytest.fixture()
def policy(tiny_folder): return TransformersPolicy(tiny_folder)

def generate(model, prompts, **changes):
    return generate_tokens(model, prompts, **dict(max_new_tokens=7, temperature=0, seed=0, stop={0}, pad=0) | changes)

prompt_lists = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=9), min_size=1, max_size=6)
few = settings(max_examples=12, deadline=None)

# -- generation

@few
@given(prompt_lists)
def test_greedy_rows_are_those_of_generate(llama, prompts):
    for p, row in zip(prompts, generate(llama, prompts)):
        ids = torch.tensor([p])
        theirs = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False, eos_token_id=0, pad_token_id=0)
        assert theirs[0, len(p):].tolist() == row

@few
@given(prompt_lists, st.integers(1, 5), st.integers(0, 9))
def test_a_sampled_row_does_not_depend_on_its_batch(llama, prompts, batch, seed):
    prompts = prompts + prompts[:1]          # a prompt asked for twice is sampled twice
    together = generate(llama, prompts, temperature=1.0, seed=seed)
    assert generate(llama, prompts, temperature=1.0, seed=seed, batch=batch) == together

def test_copies_of_a_prompt_differ_and_a_seed_repeats_itself(llama):
    rows = generate(llama, [[5, 6, 7]] * 8, temperature=1.0)
    assert len({tuple(r) for r in rows}) > 1 and rows == generate(llama, [[5, 6, 7]] * 8, temperature=1.0)
    assert rows != generate(llama, [[5, 6, 7]] * 8, temperature=1.0, seed=1)

def test_a_row_ends_with_the_stop_token_or_is_full(llama):
    rows = generate(llama, [[i] for i in range(1, 40)], temperature=2.0, stop={0, 3, 9, 20, 30}, max_new_tokens=9)
    for row in rows:
        assert not {0, 3, 9, 20, 30} & set(row[:-1])
        assert row[-1] in {0, 3, 9, 20, 30} or len(row) == 9
    assert len({len(r) for r in rows}) > 2

@few
@given(prompt_lists, st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 8))
def test_what_is_remembered_does_not_change_what_is_said(llama, prompts, more, cut):
    memory = PrefixMemory(llama)
    first = generate(llama, prompts, memory=memory)
    asked = [(p + row)[:len(p) + cut] + more for p, row in zip(prompts, first)]   # goes on, or turns off midway
    assert generate(llama, asked, memory=memory) == generate(llama, asked)

def test_the_memory_finds_the_longest_common_beginning(llama):
    memory = PrefixMemory(llama)
    generate(llama, [[1, 2, 3, 4], [1, 2, 9, 9], [7]], memory=memory, max_new_tokens=1)
    assert [memory.find(p)[0] for p in ([1, 2, 3, 4, 5], [1, 2, 3, 8], [1, 2, 9], [7, 7], [8], [])] == [4, 3, 3, 1, 0, 0]

def test_the_memory_forgets_when_weights_change(llama):
    model = LlamaForCausalLM(llama.config).eval()
    model.set_attn_implementation("grouped")
    memory = PrefixMemory(model)
    generate(model, [[1, 2, 3, 4]], memory=memory)
    assert memory.find([1, 2, 3, 4])[0] == 4
    with torch.no_grad(): model.model.layers[1].self_attn.v_proj.weight.mul_(1.5)
    assert memory.find([1, 2, 3, 4]) == (0, None)
    assert generate(model, [[1, 2, 3, 4, 5]], memory=memory) == generate(model, [[1, 2, 3, 4, 5]])

# -- the loop

def told(trajectories): return [t.model_dump() for t in trajectories]

def test_the_oracle_solves_everything_in_as_few_turns_as_there_are_hops(environments):
    for env, traj in zip(environments, collect(OraclePolicy(environments), environments, temperature=0)):
        assert traj.n_solved == traj.sub_questions == len(env.scenario.sub_questions) and traj.stop == "answer"
        assert len(traj.turns) == len(env.golden_calls()) + 1 and traj.messages[-1]["content"] == env.answer

def test_the_oracle_does_not_know_other_environments(environments):
    with pytest.raises(UserError, match="no environment that asks"): collect(OraclePolicy(environments[:1]), environments[1:2])

def test_the_warm_start_that_comes_with_the_library_calls_tools(environments, tmp_path):
    shown = collect(TransformersPolicy("smollm2-warm"), environments[::2], temperature=0, max_turns=2, max_new_tokens=64)
    assert all(t.n_calls for t in shown) and any(t.n_solved for t in shown)
    with pytest.raises(UserError, match="adapter_model.safetensors is missing"): packaged_warm_model(tmp_path)

def test_rollouts_resume_and_none_is_lost_or_doubled(policy, environments, tmp_path, monkeypatch):
    options = dict(samples=2, max_turns=3, max_new_tokens=8, seed=3, batch=5)
    whole = collect(policy, environments[:4], **options)
    assert [(t.environment, t.sample) for t in whole] == [(e.id, k) for e in environments[:4] for k in range(2)]
    assert {t.stop for t in whole} <= {"answer", "empty", "max_turns"} and sum(t.n_solved for t in whole) > 0
    out, scored = tmp_path / "t.jsonl", module.score_batch
    def fails_later(*args, **kwargs):
        if out.exists(): raise KeyboardInterrupt     # in the middle of the second batch
        return scored(*args, **kwargs)
    monkeypatch.setattr(module, "score_batch", fails_later)
    with pytest.raises(KeyboardInterrupt): collect(policy, environments[:4], out=out, **options)
    assert told(read_jsonl(out, Trajectory)) == told(whole[:5])
    monkeypatch.setattr(module, "score_batch", scored)
    resumed = collect(policy, environments[:4], out=out, **options)
    assert told(resumed) == told(whole) == told(read_jsonl(out, Trajectory))

def test_a_finished_file_is_read_and_the_policy_not_asked(environments, tmp_path):
    first = collect(OraclePolicy(environments), environments, temperature=0, out=tmp_path / "t.jsonl")
    assert told(collect(OraclePolicy([]), environments, temperature=0, out=tmp_path / "t.jsonl")) == told(first)

@pytest.mark.parametrize("other", [lambda e: e[1:], lambda e: e[:2], lambda e: list(reversed(e))])
def test_a_file_of_other_environments_is_refused_and_kept(environments, tmp_path, other):
    out = tmp_path / "t.jsonl"
    collect(OraclePolicy(environments), environments[:4], temperature=0, out=out)
    before = out.read_bytes()
    with pytest.raises(UserError, match=f"{out}.*other environments"): collect(OraclePolicy(environments), other(environments[:4]), out=out)
    assert out.read_bytes() == before

@pytest.mark.parametrize("change", [dict(seed=1), dict(temperature=0.5), dict(max_turns=3), dict(match="strict")])
def test_a_file_of_other_settings_is_refused_and_kept(environments, tmp_path, change):
    out, options = tmp_path / "t.jsonl", dict(temperature=0, max_turns=4)
    collect(OraclePolicy(environments), environments[:4], out=out, **options)
    before, (name, now) = out.read_bytes(), *change.items()
    with pytest.raises(UserError, match=f"{out}.*other settings.*{name}: .* there, {now!r} now"):
        collect(OraclePolicy(environments), environments, out=out, **options | change)
    assert out.read_bytes() == before

def test_a_file_of_other_weights_is_refused(policy, tiny_folder, environments, tmp_path):
    ask = dict(out=tmp_path / "t.jsonl", max_turns=1, max_new_tokens=2)
    collect(TransformersPolicy(tiny_folder), environments[:1], **ask)
    collect(TransformersPolicy(tiny_folder), environments[:2], **ask)
    other = TransformersPolicy(tiny_folder)
    with torch.no_grad(): other.model.model.layers[0].mlp.up_proj.weight.flatten()[0] += 1
    with pytest.raises(UserError, match="other settings.*policy"): collect(other, environments[:2], **ask)

def test_a_conversation_that_is_too_long_ends_and_says_so(tiny_folder, environments):
    traj, = collect(TransformersPolicy(tiny_folder, max_prompt_tokens=20), environments[:1], max_new_tokens=4)
    assert traj.stop == "too_long" and traj.turns == [] and traj.n_solved == 0

def test_a_step_record_is_continued(environments):
    env = environments[2]
    full, = collect(OraclePolicy([env]), [env], temperature=0)
    later = list(full.step_records(env))[1]
    rest, = collect(OraclePolicy([env]), [later], temperature=0)
    assert rest.messages == full.messages and rest.sub_questions == later.open() == rest.n_solved

def test_a_call_and_its_rendering_are_read_back(policy, environments):
    env = environments[1]
    full, = collect(OraclePolicy([env]), [env], temperature=0)
    text = policy.tokenizer.decode(policy.render(full.messages, env.documents()))
    assert call_text(env.golden_calls()[0]) in text and text.endswith("<|im_start|>assistant\n")
    assert all(r in text for t in full.turns for r in t.results)

@few
@given(prompt_lists, st.integers(1, 5), st.integers(1, 4))
def test_no_more_rows_than_asked_for_are_decoded_together(llama, prompts, copies, batch):
    prompts, sizes, plain = prompts * copies, [], module._decode
    def watched(model, some, counts, *rest, **more):
        sizes.append(sum(counts))
        return plain(model, some, counts, *rest, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_decode", watched)
        rows = generate(llama, prompts, temperature=1, batch=batch)
    assert max(sizes) <= batch and sum(sizes) == len(prompts)
    assert rows == generate(llama, prompts, temperature=1, batch=1000)

# -- reasoning

def test_thoughts_are_kept_as_written_and_shown_as_the_template_has_it(thinking_folder, environments):
    thinking, silent = (TransformersPolicy(thinking_folder, reasoning=r) for r in (True, False))
    thoughtful = 0
    for env, traj in zip(environments, collect(thinking, environments, max_turns=3, max_new_tokens=4, seed=3)):
        said = [m for m in traj.messages[traj.start:] if m["role"] == "assistant"]
        assert [m["content"] for m in said] == [parse_qwen(t.text).content for t in traj.turns]
        if not any("<think>" in m["content"] and m.get("tool_calls") for m in said): continue
        thoughtful += 1
        shown = thinking.text(traj.messages, env.documents())
        assert "Which tool?" in shown and shown.endswith("<|im_start|>assistant\n")
        assert silent.text(traj.messages, env.documents()) == shown + "<think>\n\n</think>\n\n"
        assert "Which tool?" not in thinking.text(traj.messages + [{"role": "user", "content": "Sure?"}], env.documents())
    assert thoughtful

def test_a_template_that_cannot_reason_is_refused(tiny_folder, thinking_folder):
    with pytest.raises(UserError, match="reasoning: .*enable_thinking"): TransformersPolicy(tiny_folder, reasoning=True)
    model, tokenizer = load_model(thinking_folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A: <think>\n{% endif %}"
    assert TransformersPolicy(model, tokenizer, reasoning=True).text([{"role": "user", "content": "?"}], []) == "?A: <think>\n"

@pytest.mark.parametrize("before", [False, True])
def test_trajectories_with_and_without_reasoning_are_not_mixed(thinking_folder, environments, tmp_path, before):
    ask = dict(out=tmp_path / "t.jsonl", max_turns=1, max_new_tokens=2)
    collect(TransformersPolicy(thinking_folder, reasoning=before), environments[:1], **ask)
    with pytest.raises(UserError, match="other settings.*reasoning"):
        collect(TransformersPolicy(thinking_folder, reasoning=not before), environments[:2], **ask)

# -- models on disk

@pytest.mark.parametrize("path", ["no/such/model", "empty folder"])
def test_a_model_that_is_not_there_is_named(tmp_path, path):
    where = tmp_path / path
    if path == "empty folder": where.mkdir()
    for load in (load_model, find_model):
        with pytest.raises(UserError, match=str(where)): load(str(where))
        with pytest.raises(UserError, match=str(where)): load(where)

def test_a_model_is_found_without_its_weights_and_its_tokenizer_can_pad(tiny_folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"): (tmp_path / name).write_text((tiny_folder / name).read_text())
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    told.pop("pad_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    where, config, tokenizer = find_model(tmp_path)
    assert where == tmp_path and config.hidden_size == 32 and tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    with pytest.raises(UserError, match="no model could be loaded: expected 'smollm2'"): load_model(tmp_path)

def test_a_model_is_saved_and_loaded(policy, tmp_path):
    folder = save_model(policy.model, policy.tokenizer, tmp_path / "a" / "model")
    again, tokenizer = load_model(folder)
    assert all(torch.equal(p, again.state_dict()[k]) for k, p in policy.model.state_dict().items())
    assert tokenizer.chat_template == policy.tokenizer.chat_template and [p.name for p in folder.parent.iterdir()] == ["model"]

def test_a_full_disk_leaves_the_model_that_was_there(policy, tmp_path, monkeypatch):
    folder = save_model(policy.model, policy.tokenizer, tmp_path / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    def half(where, **kwargs):
        (where / "model.safetensors").write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(policy.model, "save_pretrained", half)
    with pytest.raises(UserError, match="No space left.*start the same command again"): save_model(policy.model, policy.tokenizer, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before and list(tmp_path.iterdir()) == [folder]

def test_a_loaded_model_needs_its_tokenizer(llama):
    with pytest.raises(UserError, match="needs its tokenizer"): TransformersPolicy(llama)
