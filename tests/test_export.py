"Export: what was written is read back by the other side's own means."

import importlib.util
import inspect
import json
import os
import subprocess
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import get_json_schema
from trl import chat_template_utils
from two_hops import environment, lookup

from toolrl_lit.collect import CHAT_TEMPLATE, OraclePolicy, call_text, collect
from toolrl_lit.doors.export import (
    plain_messages,
    step_records,
    to_ftrl_jsonl,
    to_hf_dataset,
    to_verifiers,
    to_verl,
    trl_environment,
)
from toolrl_lit.episode import ToolEnvironment, tool_method
from toolrl_lit.reward import score_turn
from toolrl_lit.schema import (
    Environment,
    ToolDoc,
    UserError,
    from_ftrl,
    read_ftrl,
    read_jsonl,
    to_ftrl,
)
from toolrl_lit.train import make_config

datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def env():
    return environment()


@pytest.fixture(scope="module")
def trajectory(env):
    return collect(OraclePolicy([env]), [env], temperature=0.0)[0]


@pytest.fixture(scope="module")
def steps(env, trajectory):
    return list(trajectory.step_records(env))


# -- messages


def test_plain_messages_say_the_same_as_the_chat_template(steps):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"x": 0})), chat_template=CHAT_TEMPLATE
    )
    for step in steps:
        theirs = tokenizer.apply_chat_template(
            step.messages, tools=step.tools, tokenize=False, add_generation_prompt=True
        )
        assert theirs == tokenizer.apply_chat_template(
            plain_messages(step), tokenize=False, add_generation_prompt=True
        )


def templated(template):
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"x": 0})),
        chat_template=template,
        bos_token="x",
    )


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_instruct_2507"])
def test_plain_messages_of_a_tokenizer_say_what_its_own_template_says(steps, name):
    "Which is what `toolrl evaluate` prompts the model with."
    tokenizer = templated(getattr(chat_template_utils, f"{name}_chat_template"))
    brief = steps[1].model_copy(
        update={"messages": [{"role": "system", "content": "Be brief."}] + steps[1].messages}
    )
    for step in (*steps, brief):
        plain = plain_messages(step, tokenizer)
        assert all(
            set(m) == {"role", "content"} and isinstance(m["content"], str) for m in plain
        ) and plain != plain_messages(step)
        for more in ({}, {"enable_thinking": False}):
            theirs = tokenizer.apply_chat_template(
                step.messages, tools=step.tools, tokenize=False, add_generation_prompt=True, **more
            )
            assert (
                theirs
                == tokenizer.apply_chat_template(
                    plain, tokenize=False, add_generation_prompt=True, **more
                )
                and "country_of" in theirs
            )


@pytest.mark.parametrize("name", ["llama3_1", "gemma", "deepseekv3", "qwen3_5_think"])
def test_a_template_that_plain_messages_cannot_follow_is_refused(steps, tmp_path, name):
    with pytest.raises(UserError, match="tokenizer: expected a chat template.*'e1', turn"):
        to_verl(
            steps,
            tmp_path / "out",
            templated(getattr(chat_template_utils, f"{name}_chat_template")),
        )
    assert not (tmp_path / "out").exists()


def test_a_template_that_drops_the_tools_is_refused(steps):
    ignorant = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' if m.content }}{% endfor %}"
    )
    with pytest.raises(UserError, match="turn 0"):
        plain_messages(steps[0], templated(ignorant))


def test_step_records_are_every_situation_once_and_of_these_environments(env, trajectory, steps):
    other = environment("e2", code="VIE", country="Austria", capital="Vienna")
    (more,) = collect(OraclePolicy([other]), [other], temperature=0.0)
    found = step_records([trajectory, more, trajectory], [other, env])
    assert [(s.environment, s.turn, s.open()) for s in found] == [
        (e, k, 2 - k) for e in ("e1", "e2") for k in range(3)
    ] and found[:3] == steps
    with pytest.raises(UserError, match="'e2' is not among"):
        step_records([trajectory, more], [env])
    with pytest.raises(UserError, match="'e2'.*or is another"):
        step_records([more], [environment("e2")])


def test_plain_messages_keep_a_system_message(steps):
    step = steps[0].model_copy(
        update={"messages": [{"role": "system", "content": "Be brief."}] + steps[0].messages}
    )
    system, user = plain_messages(step)
    assert (
        system["content"].startswith("Be brief.\n")
        and "country_of" in system["content"]
        and user["role"] == "user"
    )


def test_arguments_in_a_string_are_the_same_arguments(steps):
    record = json.loads(json.dumps(to_ftrl(steps[1])))
    function = record["messages"][1]["tool_calls"][0]["function"]
    function["arguments"] = json.dumps(function["arguments"])
    assert plain_messages(from_ftrl(record)) == plain_messages(steps[1])


# -- Hugging Face data sets and the authors' format


def test_data_set_holds_whole_records(steps, tmp_path):
    to_hf_dataset(steps).save_to_disk(tmp_path / "data")
    rows = datasets.load_from_disk(tmp_path / "data")
    again = [from_ftrl(json.loads(r["record"]), r["id"]) for r in rows]
    for a, s in zip(again, steps, strict=True):
        assert (a.messages, a.tools, a.codes, a.unsolved, a.answer, a.solve_rate) == (
            s.messages,
            s.tools,
            s.codes,
            s.unsolved,
            s.answer,
            s.solve_rate,
        )
    assert rows["turn"][:] == [0, 1, 2] and rows["unsolved"][:] == [2, 1, 0]


def test_no_row_gets_the_parameters_of_another(steps, env):
    rows = to_hf_dataset([*steps, environment("e2").start()])
    for row in rows:
        for message in row["prompt"]:
            assert set(message) == {"role", "content"}
    calls = [m["content"] for m in rows[2]["prompt"] if m["role"] == "assistant"]
    assert calls == [
        '<tool_call>\n{"name": "country_of", "arguments": {"code": "NCE"}}\n</tool_call>',
        '<tool_call>\n{"name": "capital_of", "arguments": {"country": "France"}}\n</tool_call>',
    ]


def test_environments_are_their_first_step(env):
    assert to_hf_dataset([env]).to_list() == to_hf_dataset([env.start()]).to_list()


def test_ftrl_lines_are_read_back(steps, env, tmp_path):
    lines = to_ftrl_jsonl([*steps, env], tmp_path / "s.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [to_ftrl(s) for s in [*steps, env]]
    assert all(
        isinstance(json.loads(line)[k], str)
        for line in lines
        for k in ("tools", "codes", "unsolved_set")
    )


# -- verl


def verl_reward(folder):
    "Import the reward module from its path, as verl does."
    spec = importlib.util.spec_from_file_location("custom_module", folder / "reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute_score


def test_verl_rows_and_reward(steps, trajectory, tmp_path):
    out = tmp_path / "out"
    files = to_verl([*steps, environment("t1", "test", "VIE", "Austria", "Vienna")], out)
    assert (
        {f.name for f in files}
        == {"reward.py", "train.sh", "train.parquet", "test.parquet"}
        == {f.name for f in out.iterdir()}
    )
    rows = datasets.load_dataset(
        "parquet", data_files=str(out / "train.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert set(rows.column_names) == {
        "data_source",
        "prompt",
        "ability",
        "reward_model",
        "extra_info",
    }
    compute_score = verl_reward(out)
    for i, (row, step) in enumerate(zip(rows, steps, strict=True)):
        assert row["prompt"] == plain_messages(step) and row["extra_info"]["index"] == i
        for text in (trajectory.turns[i].text, "Paris", "", "<tool_call>{"):
            got = compute_score(
                data_source=row["data_source"],
                solution_str=text,
                extra_info=row["extra_info"],
                ground_truth=row["reward_model"]["ground_truth"],
            )
            assert got["score"] == score_turn(text, step).reward


def test_the_script_for_verl_names_files_that_are_there_and_the_papers_settings(steps, tmp_path):
    out = tmp_path / "two words"
    to_verl([*steps, environment("t1", "test", "VIE", "Austria", "Vienna")], out)
    run = lambda **env: subprocess.run(
        ["bash", out / "train.sh", "trainer.nnodes=2"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **env},
    )
    assert "set MODEL" in run().stderr
    (tmp_path / "python").write_text(
        "#!/bin/sh\nprintf '%s\\n' \"$@\"\n"
    )  # prints what verl would be started with
    (tmp_path / "python").chmod(0o755)
    done = run(MODEL="some/model", PYTHON=str(tmp_path / "python"))
    module, name, *pairs = done.stdout.splitlines()
    assert done.returncode == 0 and (module, name, pairs[-1]) == (
        "-m",
        "verl.trainer.main_ppo",
        "trainer.nnodes=2",
    )
    told = dict(p.lstrip("+").split("=", 1) for p in pairs)
    for key in (
        "data.train_files",
        "data.val_files",
        "custom_reward_function.path",
        "reward.custom_reward_function.path",
    ):
        assert Path(told[key]).is_file()
    paper, actor, rollout = (
        make_config("paper"),
        "actor_rollout_ref.actor.",
        "actor_rollout_ref.rollout.",
    )
    for key, value in {
        "data.train_batch_size": paper.prompts,
        actor + "ppo_mini_batch_size": paper.prompts // paper.mini_batches,
        rollout + "n": paper.group,
        actor + "optim.lr": paper.learning_rate,
        actor + "kl_loss_coef": paper.kl,
        actor + "entropy_coeff": paper.entropy,
        rollout + "temperature": paper.temperature,
        "data.max_prompt_length": paper.max_prompt_tokens,
        "data.max_response_length": paper.max_new_tokens,
        "data.apply_chat_template_kwargs.enable_thinking": paper.reasoning,
        "trainer.total_epochs": paper.epochs,
    }.items():
        assert yaml.safe_load(told[key]) == value or float(told[key]) == value, key


def test_verl_reward_takes_the_ablations(steps, trajectory, tmp_path):
    to_verl(steps, tmp_path)
    rows = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path))
    truth = rows[0]["reward_model"]["ground_truth"]
    text = trajectory.turns[0].text + call_text(trajectory.turns[1].calls * 2)
    for kind in ("f1", "p", "r", "pr"):
        assert (
            verl_reward(tmp_path)("x", text, truth, kind=kind)["score"]
            == score_turn(text, steps[0], kind=kind).reward
        )


def test_the_same_steps_give_the_same_bytes(steps, tmp_path):
    for name in ("a", "b"):
        to_verl(steps, tmp_path / name)
    for file in ("train.parquet", "reward.py"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_nothing_to_write(tmp_path, env):
    for write in (
        to_hf_dataset,
        lambda x: to_verl(x, tmp_path / "out"),
        lambda x: to_verifiers(x, tmp_path / "out"),
        trl_environment,
    ):
        with pytest.raises(UserError, match="at least one"):
            write([])
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        to_verl([env], tmp_path / "file" / "out")
    with pytest.raises(UserError, match="cannot be written"):
        to_ftrl_jsonl([env], tmp_path / "file" / "out.jsonl")


# -- verifiers (tests/test_verifiers.py runs the package, where verifiers is installed)


def test_a_package_for_verifiers_is_whole(env, tmp_path):
    import tomllib

    for parent in ("a", "b"):
        to_verifiers([env], tmp_path / parent / "capitals")
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    inner = ["capitals/__init__.py", "capitals/environments.jsonl", "pyproject.toml"]
    assert [str(f) for f in files] == [f"capitals/{name}" for name in inner]
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    compile((tmp_path / "a" / files[0]).read_text(), "package", "exec")
    project = tomllib.loads((tmp_path / "a" / files[2]).read_text())
    assert project["project"]["name"] == "capitals" and project["tool"]["setuptools"][
        "package-data"
    ] == {"capitals": ["*.jsonl"]}
    assert read_jsonl(tmp_path / "a" / files[1], Environment) == [env]


@pytest.mark.parametrize("name", ["two words", "Upper", "1st", "class", "my-tools", "a.b"])
def test_a_folder_that_python_cannot_import_is_refused(env, tmp_path, name):
    with pytest.raises(UserError, match="small letters, digits and _"):
        to_verifiers([env], tmp_path / name)
    assert not list(tmp_path.iterdir())


# -- TRL

plain_schema = st.sampled_from(
    [{"type": t} for t in ("string", "integer", "number", "boolean", "object", "array")]
    + [
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        {"type": "string", "enum": ["a b", "c"]},
        {"type": "integer", "enum": [1, 2]},
    ]
)
rich_schema = st.sampled_from(
    [
        {"type": "integer", "minimum": 1},
        {"type": ["string", "null"]},
        {"type": "string", "default": "x"},
        {"enum": ["a", 1]},
        {},
        {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
        {"anyOf": [{"type": "null"}]},
    ]
)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40)

parameter_names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)


@given(
    st.dictionaries(
        parameter_names, st.tuples(plain_schema | rich_schema, words, st.booleans()), max_size=5
    ),
    words,
)
@settings(max_examples=150, deadline=None)
def test_trl_reads_the_document_back(parameters, description):
    from keyword import iskeyword

    parameters = {k: v for k, v in parameters.items() if not iskeyword(k) and k != "self"}
    doc = ToolDoc(
        name="tool",
        description=description,
        parameters={
            "type": "object",
            "properties": {k: s | {"description": d} for k, (s, d, _) in parameters.items()},
            "required": [k for k, (_, _, needed) in parameters.items() if needed],
        },
    )
    read = get_json_schema(tool_method(doc, lambda name, arguments: ""))["function"]
    assert read["name"] == "tool" and read["description"]
    assert list(read["parameters"]["properties"]) == list(parameters)
    assert read["parameters"].get("required", []) == doc.parameters["required"]
    for k, (schema, _, _) in parameters.items():
        got = read["parameters"]["properties"][k]
        said = got.pop("description")
        assert (
            got == schema or json.dumps(schema, ensure_ascii=False) in said
        )  # said in types, or else in words


def test_descriptions_cannot_break_the_docstring():
    doc = ToolDoc(
        name="tool",
        description="Look up.\nArgs:\n    fake: parameter\nReturns: nothing",
        parameters={
            "type": "object",
            "properties": {
                "a": {"type": "string", "description": "One.\nb: two Raises: three"},
                "b": {"type": "string"},
            },
        },
    )
    read = get_json_schema(tool_method(doc, lambda n, a: ""))["function"]
    assert "fake: parameter" in read["description"] and set(read["parameters"]["properties"]) == {
        "a",
        "b",
    }
    assert "three" in read["parameters"]["properties"]["a"]["description"]


@pytest.mark.parametrize("name", ["from", "two words", "self", "1st"])
def test_a_parameter_that_python_cannot_name(name):
    doc = ToolDoc(
        name="tool",
        description="d",
        parameters={"type": "object", "properties": {name: {"type": "string"}}},
    )
    with pytest.raises(UserError, match=f"'tool', parameter '{name}'"):
        tool_method(doc, lambda n, a: "")


def test_reward_of_a_rollout_is_its_solve_f1(env):
    e = ToolEnvironment(env)
    assert e.get_reward() == 0
    assert e.country_of(code="NCE") == "France" and e.get_reward() == 2 * 1 / (1 + 2)
    e.country_of(code="NCE")  # solved already: one stray call
    assert e.capital_of(country="Spain") == "unknown" and e.get_reward() == 2 * 1 / (3 + 2)
    e.capital_of(country="France")
    assert e.get_reward() == 2 * 2 / (4 + 2)
    e.reset(prompt=[], environment="e1")
    assert e.get_reward() == 0


def test_feedback_is_the_sandbox_s(env):
    e = ToolEnvironment(env)
    wrong = (
        score_turn(
            '<tool_call>{"name": "country_of", "arguments": {"cod": "NCE"}}</tool_call>', env
        )
        .calls[0]
        .result
    )
    assert e.country_of(cod="NCE") == wrong != "France" and e.get_reward() == 0
    assert (
        e.country_of(code="</tool_call><tool_call>{") == "unknown"
    )  # an argument cannot end the markup


def test_rollouts_do_not_share_state(env):
    factories, _ = trl_environment([env])
    a, b = factories["e1"](), factories["e1"]()
    a.country_of(code="NCE")
    assert b.get_reward() == 0 < a.get_reward()


def test_names_that_trl_would_take_for_its_own(env):
    for name in ("reset", "get_reward", "_hidden"):
        bad = env.model_copy(update={"tools": [*env.tools, lookup(name, "x", {})]})
        with pytest.raises(UserError, match=name):
            trl_environment([bad])[0]["e1"]()
    with pytest.raises(UserError, match="'e1' appears 2 times"):
        trl_environment([env, env])
    with pytest.raises(UserError, match="'e1' appears 2 times"):
        to_verifiers([env, env], "capitals")


def bpe(texts):
    "A tokenizer for these texts, with the library's chat template and Qwen's way of reading calls."
    from trl.chat_template_utils import qwen3_template

    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    t.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600,
            show_progress=False,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=t,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.response_template = qwen3_template
    return tokenizer


def memorise(model, tokenizer, prompt, answer):
    "Train until the model writes the answer after the prompt."
    ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
    start = len(tokenizer(prompt).input_ids)
    labels = ids.clone()
    labels[:, :start] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = model(ids, labels=labels).loss
        if loss < 0.01:
            return
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError(f"not memorised: loss {loss.item():.3f}")


def test_grpo_trainer_rolls_out_our_environments(env, trajectory, tmp_path, monkeypatch):
    "A tiny model that has learned the oracle's first turn calls the tool through TRL and is rewarded for it."
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import GRPOConfig, GRPOTrainer

    factories, dataset = trl_environment([env])
    start, probe = env.start(), factories["e1"]()
    shown = [m for name, m in inspect.getmembers(probe, inspect.ismethod) if name in env.codes()]
    template = lambda t: t.apply_chat_template(
        start.messages, tools=shown, tokenize=False, add_generation_prompt=True
    )
    tokenizer = bpe([trajectory.turns[0].text] * 20 + [template(bpe(["x"]))])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    memorise(model, tokenizer, template(tokenizer), trajectory.turns[0].text + "<|im_end|>")
    config = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        num_generations=2,
        logging_steps=1,
        max_completion_length=160,
        max_tool_calling_iterations=1,
        temperature=0.1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        bf16=False,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        environment_factory=factories,
    )
    trainer.train()
    log = next(
        entry for entry in trainer.state.log_history if "rewards/ToolEnvironment/mean" in entry
    )
    assert (
        log["rewards/ToolEnvironment/mean"] == pytest.approx(2 * 1 / (1 + 2))
        and log["tools/call_frequency"] == 1
    )


# -- what cannot be written

CALL = {"type": "function", "function": {"name": "country_of", "arguments": {}}}


def asked(**message):
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""} | message]


def called(**changes):
    return asked(
        tool_calls=[
            {
                "type": "function",
                "function": {k: v for k, v in (CALL["function"] | changes).items() if v is not ...},
            }
        ]
    )


ODD = {
    "arguments that are empty": called(arguments=""),
    "arguments that are a list": called(arguments=[1]),
    "arguments that are a number": called(arguments="7"),
    "arguments that are missing": called(arguments=...),
    "a call without a name": called(name=...),
    "a name that is a number": called(name=7),
    "a call without a function": asked(tool_calls=[{"name": "country_of"}]),
    "calls that are no list": asked(tool_calls={"a": 1}),
    "a call that is text": asked(tool_calls=["x"]),
    "content in parts": asked(content=[{"type": "text", "text": "?"}]),
    "content that is a number": asked(content=7),
    "no role": [{"content": "?"}],
    "a role that is a number": [{"role": 1, "content": "?"}],
    "no message": [],
    "half a surrogate pair": asked(content="\ud83d"),
    "deep arguments": called(arguments="[" * 100_000),
}
TOOLS = {
    "no function": [{"name": "x", "parameters": {}}],
    "a function that is text": [{"function": "x"}],
    "no name": [{"function": {"description": "x"}}],
}

READ = {
    what: ODD.pop(what)
    for what in ("arguments that are empty", "arguments that are missing", "content in parts")
}


@pytest.mark.parametrize("messages", READ.values(), ids=READ)
def test_a_foreign_history_whose_meaning_is_clear_is_written(tmp_path, messages):
    step = from_ftrl(to_ftrl(environment()) | {"messages": messages}, "line-7")
    assert len(to_hf_dataset([step])) == 1


@pytest.mark.parametrize(
    "change",
    [*({"messages": m} for m in ODD.values()), *({"tools": t} for t in TOOLS.values())],
    ids=[*ODD, *TOOLS],
)
def test_a_foreign_record_that_a_table_cannot_hold_is_refused_in_one_sentence(tmp_path, change):
    step = from_ftrl(
        to_ftrl(environment())
        | {k: json.dumps(v) if k == "tools" else v for k, v in change.items()},
        "line-7",
    )
    for write in (lambda: to_hf_dataset([step]), lambda: to_verl([step], tmp_path / "verl")):
        with pytest.raises(UserError) as e:
            write()
        assert "\n" not in str(e.value) and (
            "line-7" in str(e.value) or "surrogate" in str(e.value)
        )
    try:
        written = to_ftrl_jsonl([step], tmp_path / "a.jsonl")
    except UserError as e:
        assert "surrogate" in str(e)
    else:
        assert to_ftrl(read_ftrl(written)[0]) == to_ftrl(step)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["a.jsonl"])


def test_a_split_that_names_no_file_is_refused(tmp_path):
    for split in ("../train", "a/b", ".", "a b"):
        with pytest.raises(UserError, match="split .*names a file"):
            to_verl([environment().start().model_copy(update={"split": split})], tmp_path / "out")


def test_step_records_of_environments_with_one_id_or_another_question_are_refused():
    env, other = environment(), environment()
    other.scenario.question = "Another question?"
    rollouts = collect(OraclePolicy([env]), [env], temperature=0)
    with pytest.raises(UserError, match=f"step_records: expected every id once, {env.id!r}"):
        step_records(rollouts, [env, other])
    with pytest.raises(UserError, match="not among the environments, or is another"):
        step_records(rollouts, [other])
    assert len(step_records(rollouts, iter([env]))) == len(rollouts[0].turns)
