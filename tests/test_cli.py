"Command line: what a user can mend is one sentence on standard error and exit code 2; no folder is mixed or lost."

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import nbformat
import pytest
import torch
from transformers import AutoModelForCausalLM

from toolrl_lit import train
from toolrl_lit.doors import cli, runs
from toolrl_lit.doors.cli import find_notebook, open_run, parse_parameters, timed
from toolrl_lit.engine.workers import cluster
from toolrl_lit.evaluate import Evaluation, Score
from toolrl_lit.schema import (
    Environment,
    OnDisk,
    Trajectory,
    UserError,
    read_jsonl,
    reserve,
    write_jsonl,
)


@pytest.fixture(scope="module")
def envs(environments, tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("cli") / "environments.jsonl", environments[:4])


def release():
    "Let go of the folders that are open, as the end of a process would."
    runs.release_runs()


@pytest.fixture(autouse=True)
def released():
    yield
    release()


def refused(done, *said):
    "The command ended with exit code 2 and one sentence that says all of this."
    lines = [l for l in done.err.splitlines() if l.strip()]
    assert done.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (
        done.code,
        done.err,
    )
    for s in said:
        assert str(s) in lines[0], lines[0]
    return True


# -- refusals


def test_the_installed_command_ends_with_exit_code_2_and_one_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from toolrl_lit.doors.cli import main; main()",
            "export",
            "verl",
            "-e",
            tmp_path / "none.jsonl",
            "-o",
            tmp_path / "x",
        ],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and done.stderr.startswith(f"error: {tmp_path / 'none.jsonl'}: ")
    )


def test_a_broken_line_is_named_with_file_and_line(toolrl, envs, tmp_path, tiny_folder):
    lines = envs.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")
    for command in (
        ["export", "hf", "-o", tmp_path / "x"],
        ["collect", "-o", tmp_path / "x", "-m", tiny_folder],
        ["evaluate", "-o", tmp_path / "x.json", "-m", tiny_folder],
        ["train"],
    ):
        assert refused(toolrl(*command, "-e", broken), broken, "line 2", "Environment")
    assert [p.name for p in tmp_path.iterdir()] == ["broken.jsonl"]


def test_a_field_that_does_not_fit_is_named(toolrl, envs, tmp_path):
    row = json.loads(envs.read_text().splitlines()[0])
    row["scenario"]["kind"] = "octopus"
    (tmp_path / "odd.jsonl").write_text(json.dumps(row) + "\n")
    assert refused(
        toolrl("export", "hf", "-e", tmp_path / "odd.jsonl", "-o", tmp_path / "x"),
        "line 1",
        "scenario.kind",
        "octopus",
    )


def test_an_unknown_parameter_of_training_is_refused_with_the_nearest_one(toolrl, envs):
    assert refused(
        toolrl("train", "-e", envs, "-p", "learning_rat=1"),
        "'learning_rat'",
        "Did you mean 'learning_rate'?",
    )


def test_presets_are_refused_by_name_and_take_parameters_on_top(toolrl, envs):
    assert refused(
        toolrl("train", "-e", envs, "--preset", "papers"),
        "preset",
        "'laptop', 'consumer-24gb' or 'paper'",
        "'papers'",
    )
    assert refused(
        toolrl("train", "-e", envs, "--preset", "paper", "-p", "prompts=500"),
        "prompts=500",
        "mini_batches=16",
    )


@pytest.mark.parametrize(
    "command", [["collect", "-o", "t.jsonl"], ["evaluate", "-o", "e.json"], ["train"]]
)
def test_reasoning_is_refused_where_the_template_has_none(
    toolrl, envs, tmp_path, monkeypatch, tiny_folder, command
):
    monkeypatch.chdir(tmp_path)
    model = ["-p", f"model={tiny_folder}"] if command[0] == "train" else ["-m", tiny_folder]
    assert refused(
        toolrl(*command, "--reasoning", "-e", envs, *model), "reasoning", "enable_thinking"
    )


def test_an_impossible_parameter_of_training_is_refused(toolrl, envs):
    assert refused(
        toolrl("train", "-e", envs, "-p", "group=1"), "group", "greater than or equal to 2", "got 1"
    )


def test_an_unknown_parameter_of_a_run_is_refused_with_the_nearest_one(toolrl, tmp_path):
    assert refused(
        toolrl("run", "quickstart", "-p", "sed=1", "--out", tmp_path / "run"),
        "'sed'",
        "Did you mean 'seed'?",
    )
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_exist_is_refused_and_the_others_named(toolrl):
    assert refused(toolrl("run", "quikstart"), "'quikstart'", "quickstart")


@pytest.mark.parametrize(
    "command", [["collect", "-o", "t.jsonl"], ["evaluate", "-o", "e.json"], ["train"]]
)
def test_a_model_that_is_not_there_is_named(toolrl, envs, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    model = ["-p", "model=no/such/model"] if command == ["train"] else ["-m", "no/such/model"]
    assert refused(toolrl(*command, "-e", envs, *model), "no/such/model", "config.json")


def test_an_unknown_format_is_refused(toolrl, envs, tmp_path):
    assert refused(
        toolrl("export", "csv", "-e", envs, "-o", tmp_path / "x"),
        "'csv'",
        "'ftrl', 'verl', 'hf' or 'verifiers'",
    )


def test_the_size_of_questions_is_a_parameter_of_building(toolrl, tmp_path):
    out = tmp_path / "long.v2"
    done = toolrl(
        "build",
        "-o",
        out,
        "-n",
        2,
        "-p",
        "hops=[5, 5]",
        "-p",
        "calls=5",
        "-p",
        "scenarios=[multi-hop]",
        "--audit",
    )
    assert done.code == 0 and (tmp_path / "long.v2.audit.html").exists()
    assert [len(e.scenario.sub_questions) for e in OnDisk(out, Environment)] == [5, 5]
    assert refused(
        toolrl("build", "-o", tmp_path / "b.jsonl", "-p", "hops=[5, 5]"),
        "error: calls=4 is less than",
    )
    assert refused(
        toolrl("build", "-o", tmp_path / "b.jsonl", "-p", "calls=0"),
        "error: calls: ",
        "greater than or equal to 1, got 0",
    )
    assert refused(
        toolrl("build", "-o", tmp_path / "b.jsonl", "-p", "hop=3"), "Did you mean 'hops'"
    )
    assert "steps of a chain" in toolrl("parameters", "build").out


def test_the_scaling_strategies_are_a_parameter_of_building(toolrl, tmp_path):
    for typed, there in (("{}", set()), ("{parameter expansion: 1}", {"parameter expansion"})):
        assert (
            toolrl(
                "build", "-o", tmp_path / f"{len(there)}.jsonl", "-n", 8, "-p", f"rates={typed}"
            ).code
            == 0
        )
        assert {
            s for e in OnDisk(tmp_path / f"{len(there)}.jsonl", Environment) for s in e.strategies
        } == there
    for typed, said in (
        ("5", "rates: expected probabilities by strategy"),
        ("{magic: 1}", "rates: expected some of"),
        ("{parameter expansion: 2}", "from 0 to 1"),
    ):
        assert refused(toolrl("build", "-o", tmp_path / "b.jsonl", "-p", f"rates={typed}"), said)
    told = toolrl("parameters", "build").out
    assert (
        all(word in told for word in ("scenarios", "rates", "parallel", "toolset"))
        and "scenarios" not in toolrl("parameters", "llm").out
    )


def test_a_build_is_audited_against_the_other_split(toolrl, tmp_path):
    assert toolrl("build", "-o", tmp_path / "train.jsonl", "-n", 8).code == 0
    done = toolrl(
        "build",
        "-o",
        tmp_path / "test.jsonl",
        "-n",
        8,
        "--split",
        "test",
        "--audit",
        "--against",
        tmp_path / "train.jsonl",
    )
    assert done.code == 0 and "entities shared by the splits: 0" in done.out
    assert refused(
        toolrl("build", "-o", tmp_path / "c.jsonl", "--against", tmp_path / "train.jsonl"),
        "against",
        "--audit",
    )


def test_an_unknown_split_is_refused(toolrl, tmp_path):
    assert refused(
        toolrl("build", "-n", 1, "-o", tmp_path / "x.jsonl", "--split", "dev"), "split", "'dev'"
    )


# -- parameters


@pytest.mark.parametrize(
    "typed, value",
    [
        ("3", 3),
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        ("2E-4", 2e-4),
        ("[f1, p]", ["f1", "p"]),
        ("[1e-3, 2e-3]", [1e-3, 2e-3]),
        ("true", True),
        ("a=b", "a=b"),
        ("", None),
        ("grpo", "grpo"),
    ],
)
def test_values_are_read_as_what_they_look_like(typed, value):
    read = parse_parameters([f"x={typed}"], ["x"])["x"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "pair, said",
    [
        ("x", "expected name=value"),
        ("zzz=1", r"'zzz'[.;:,] [Tt]here are: x"),
        ("x=[1", "not a YAML value"),
    ],
)
def test_a_parameter_that_cannot_be_read_is_refused(pair, said):
    with pytest.raises(UserError, match=said):
        parse_parameters([pair], ["x"])


# -- a run's folder


def test_a_folder_of_another_run_is_refused_and_kept(tmp_path):
    folder = open_run(tmp_path / "run", {"seed": 0, "kl": 0.1}, free_gb=0)
    (folder / "result.txt").write_text("made by it")
    before = (folder / "parameters.json").read_bytes()
    release()
    with pytest.raises(
        UserError, match=rf"{folder}: .*other parameters \(seed: 0 there, 1 now\).*--fresh"
    ):
        open_run(folder, {"seed": 1, "kl": 0.1}, free_gb=0)
    release()
    assert (folder / "parameters.json").read_bytes() == before
    assert open_run(folder, {"kl": 0.1, "seed": 0}, free_gb=0) == folder


def test_a_training_goes_on_with_what_needs_less_memory_and_with_nothing_else(
    toolrl, envs, tmp_path, monkeypatch
):
    began = []

    def begins(config, environments, start):
        (Path(config.out) / "log.json").write_text("[]")
        began.append(config)
        return Path(config.out)

    monkeypatch.setattr(train, "train", begins)
    for changes, said in (
        ([], None),
        (
            ["rollout_rows=8", "split_group=2", "gradient_checkpointing=true", "save_updates=1"],
            None,
        ),
        (["rollout_rows=4", "report_to=tensorboard"], None),
        (["kl=0.5", "rollout_rows=4"], "kl: 0.001 there, 0.5 now"),
    ):
        done = toolrl(
            "train",
            "-e",
            envs,
            *(a for p in (f"out={tmp_path / 'run'}", "warm_steps=0", *changes) for a in ("-p", p)),
        )
        assert (
            (done.code == 0) if not said else refused(done, said) and "rollout_rows" not in done.err
        )
        release()
    assert [c.rollout_rows for c in began] == [128, 8, 4] and json.loads(
        (tmp_path / "run" / "parameters.json").read_text()
    )["rollout_rows"] == 4


def test_a_start_that_came_to_nothing_binds_nobody(toolrl, envs, tmp_path, tiny_folder):
    out = tmp_path / "run"
    assert refused(
        toolrl(
            "train",
            "-e",
            envs,
            "-p",
            f"model={tmp_path / 'typo'}",
            "-p",
            f"out={out}",
            "-p",
            "warm_steps=0",
        ),
        "typo",
    )
    release()
    pairs = [
        x
        for k, v in dict(
            model=tiny_folder,
            out=out,
            warm_steps=0,
            epochs=1,
            updates=1,
            prompts=1,
            group=2,
            environments=2,
            max_turns=1,
            max_new_tokens=4,
            max_prompt_tokens=2000,
            lora_rank=2,
            oversample=1,
        ).items()
        for x in ("-p", f"{k}={v}")
    ]
    assert toolrl("train", "-e", envs, *pairs).code == 0
    release()
    assert refused(
        toolrl("train", "-e", envs, *pairs, "-p", "seed=1"), "seed: 0 there, 1 now", "-p out="
    )


def test_too_little_memory_is_said_before_anything_is_loaded_or_warmed(
    toolrl, envs, tmp_path, tiny_folder, monkeypatch
):
    out, pairs = (
        tmp_path / "run",
        [
            "-p",
            f"model={tiny_folder}",
            "-p",
            f"out={tmp_path / 'run'}",
            "-p",
            "lora_rank=1000000000",
            "-p",
            "warm_steps=2",
        ],
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            AutoModelForCausalLM,
            "from_pretrained",
            lambda *args, **kwargs: pytest.fail("must not load a model"),
        )
        assert refused(
            toolrl("train", "-e", envs, *pairs),
            "training needs about",
            "GB are free",
            "smaller model",
        )
        assert not (out / "warm").exists()
    release()
    (out / "rl" / "model").mkdir(
        parents=True
    )  # finished: nothing will be trained that could not fit
    (out / "rl" / "model" / "config.json").write_text("{}")
    monkeypatch.setattr(
        train, "warm_start", lambda config, environments: pytest.fail("the warm start has begun")
    )
    with pytest.raises(pytest.fail.Exception, match="has begun"):
        toolrl("train", "-e", envs, *pairs)


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    open_run(tmp_path / "run", {}, free_gb=0)
    program = f"from toolrl_lit.doors.cli import open_run; open_run({str(tmp_path / 'run')!r}, {{}}, free_gb=0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "UserError" in done.stderr and "another process" in done.stderr


def test_too_little_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5e9))
    with pytest.raises(UserError, match=r"1\.5 GB of disk are free, 2\.0 GB"):
        open_run(tmp_path / "run", {})
    assert not (tmp_path / "run" / "parameters.json").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file/run: cannot be made"):
        open_run(tmp_path / "file" / "run", {})


def test_seconds_add_up_over_restarts_and_failures(tmp_path, capsys):
    (tmp_path / "timings.json").write_text('{"build": 100.0, "train": 7.0}')
    with pytest.raises(ValueError), timed(tmp_path, "build"):
        raise ValueError
    seconds = json.loads((tmp_path / "timings.json").read_text())
    assert (
        100 <= seconds["build"] < 200
        and seconds["train"] == 7
        and "== build" in capsys.readouterr().out
    )


# -- runs


@pytest.fixture()
def notebook(tmp_path):
    "A run that opens its folder and writes what it was given."
    cells = [
        nbformat.v4.new_code_cell(
            'out = "out/x"  # folder\nsize = 1  # of it', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(
            "from toolrl_lit.doors.cli import open_run\nout = open_run(out, {'size': size}, free_gb=0)\n"
            "(out / 'metrics.json').write_text(str(size)); print('size', size)"
        ),
    ]
    meta = {
        "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"},
        "language_info": {"name": "python"},
    }
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=meta), path)
    return path


def test_a_run_goes_on_and_refuses_other_parameters(toolrl, notebook, tmp_path):
    out = tmp_path / "out"
    done = toolrl("run", notebook, "-p", "size=2", "--out", out)
    assert (
        done.code == 0 and f"done: {out}" in done.out and (out / "metrics.json").read_text() == "2"
    )
    assert refused(
        toolrl("run", notebook, "-p", "size=3", "--out", out),
        "other parameters (size: 2 there, 3 now)",
    )
    assert (out / "metrics.json").read_text() == "2" and json.loads(
        (out / "parameters.json").read_text()
    ) == {"size": 2}
    assert (
        toolrl("run", notebook, "-p", "size=3", "--out", out, "--fresh").code == 0
        and (out / "metrics.json").read_text() == "3"
    )


def test_starting_over_does_not_delete_what_no_run_has_made(toolrl, notebook, tmp_path):
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter1.tex").write_text("years of work")
    done = toolrl("run", notebook, "--out", mine, "--fresh")
    assert (mine / "chapter1.tex").exists() and refused(done, mine)


def test_a_folder_that_cannot_be_made_is_one_sentence(toolrl, notebook, tmp_path):
    (tmp_path / "file").write_text("x")
    assert refused(
        toolrl("run", notebook, "--out", tmp_path / "file" / "run"), tmp_path / "file" / "run"
    )


def test_finished_runs_of_a_sweep_are_not_run_again_and_stopped_ones_are(
    toolrl, notebook, tmp_path
):
    for size in (1, 2, 3):
        (tmp_path / "out" / f"size-{size}").mkdir(parents=True)
        (tmp_path / "out" / f"size-{size}" / "metrics.json").write_text('{"size": 0}')
    for size in (1, 2):
        (tmp_path / "out" / f"size-{size}" / "finished.json").write_text("{}")
    done = toolrl("sweep", notebook, "-p", "size=[1, 2, 3]", "--out", tmp_path / "out")
    assert done.code == 0 and done.out.count("finished before") == 2
    assert "3 of 3 done" in done.out and done.out.count("\nsize ") == done.out.count("size 3") == 1
    note = json.loads((tmp_path / "out" / "size-3" / "finished.json").read_text())
    assert note["parameters"] == {"size": 3} and note["seconds"] >= 0


SLOW_TO_END = """
import inspect, time
handlers = get_ipython().kernel.shell_handlers
answer = handlers["kernel_info_request"]  # the last message that papermill sends

async def late(*message):
    done = answer(*message)
    if inspect.isawaitable(done):
        await done
    time.sleep(2)

handlers["kernel_info_request"] = late
"""


def test_a_kernel_that_is_slow_to_end_says_nothing_of_its_own(tmp_path, capfd):
    cell = nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    cells = [cell, nbformat.v4.new_code_cell(SLOW_TO_END)]
    meta = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    path = tmp_path / "slow.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=meta), path)
    runs.run_notebook(str(path), [], tmp_path / "out")
    said = capfd.readouterr()
    assert "KeyboardInterrupt" not in said.out + said.err


@pytest.fixture()
def picky(tmp_path):
    "A run that fails for some sizes, after it has written its metrics."
    cells = [
        nbformat.v4.new_code_cell(
            'out = "x"\nsize = 1  # of it\nname = "a"  # whose\nkinds = ["f1"]  # of reward',
            metadata={"tags": ["parameters"]},
        ),
        nbformat.v4.new_code_cell(
            "import json, pathlib\n"
            "pathlib.Path(out, 'metrics.json').write_text(json.dumps(dict(score=dict(f1=size / 4))))\n"
            "assert size != 2, 'no room for two'\nprint(size, name, kinds)"
        ),
    ]
    meta = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    path = tmp_path / "picky.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=meta), path)
    return path


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_goes_on_after_a_failure_and_sums_up(toolrl, picky, tmp_path, jobs):
    out = tmp_path / "out"
    done = toolrl("sweep", picky, "-p", "size=[1, 2, 3]", "-o", out, "--jobs", jobs)
    assert done.code == 1 and "2 of 3 runs finished" in done.out
    assert "FAILED" in done.out and "no room for two" in done.out and "3 of 3" in done.out
    assert (out / "size-2" / "metrics.json").exists()
    assert not (out / "size-2" / "finished.json").exists()
    with (out / "summary.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [(r["folder"], r["size"], r["score.f1"]) for r in rows] == [
        ("size-1", "1", "0.25"),
        ("size-3", "3", "0.75"),
    ]


def test_a_sweep_on_a_cluster_goes_on_after_a_failure_and_is_resumed(toolrl, picky, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'toolrl_lit[ray]'")
    out = tmp_path / "out"
    sweep = ["sweep", picky, "-p", "size=[1, 2, 3]", "-o", out, "--executor", "ray", "--jobs", 2]
    with cluster():  # one for all sweeps, since to start one takes seconds
        for before in (0, 2):
            done = toolrl(*sweep)
            assert done.code == 1 and "2 of 3 runs finished" in done.out
            assert "FAILED" in done.out and "no room for two" in done.out
            assert done.out.count("finished before") == before
        lost = toolrl(*sweep, "--gpus", 99)
    assert refused(lost, "gpus: a run claims 99")
    with (out / "summary.csv").open() as f:
        assert [r["size"] for r in csv.DictReader(f)] == ["1", "3"]


def test_a_sweep_on_a_cluster_that_does_not_answer_is_refused(toolrl, picky, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'toolrl_lit[ray]'")
    where = ["--executor", "ray", "--address", "127.0.0.1:1"]
    done = toolrl("sweep", picky, "-p", "size=[1]", "-o", tmp_path / "out", *where)
    assert refused(done, "address: no Ray cluster answers at '127.0.0.1:1'")


@pytest.mark.parametrize("failures, started", [(0, True), (1, True), (2, False)])
def test_ray_gets_a_second_chance_on_a_busy_machine(monkeypatch, failures, started):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'toolrl_lit[ray]'")
    tried = []

    def init(**how):
        tried.append(how)
        if len(tried) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if started:
        with cluster() as joined:
            assert joined is ray and len(tried) == failures + 1
    else:
        with pytest.raises(UserError, match="Ray did not start here in 2 times 30 seconds"):
            cluster().__enter__()


def test_values_of_a_sweep_may_be_lists_and_paths(toolrl, picky, tmp_path):
    out = tmp_path / "out"
    lists = ["-p", 'kinds=[["f1", "p"], ["r"]]', "-p", "name=a/b"]
    done = toolrl("sweep", picky, *lists, "-o", out)
    assert done.code == 0 and "1 a/b ['f1', 'p']" in done.out and "1 a/b ['r']" in done.out
    folders = [p for p in out.iterdir() if p.is_dir()]
    assert len(folders) == 2 and all((p / "finished.json").exists() for p in folders)


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize(
    "name, pair, said",
    [
        ("picky", "size=half", "parameter size: expected a whole number, a value like 1"),
        ("picky", "name=[[1]]", "parameter name: expected text"),
        ("picky", "kinds=f1", "parameter kinds: expected a list"),
        ("quickstart", "algorithm=gropo", "algorithm: .*'grpo', 'dapo'"),
        ("quickstart", "prompts=0", "prompts: .*greater than or equal to 1"),
        ("quickstart", "control_warm_steps=many", "parameter control_warm_steps: expected a whole"),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_kernel_starts(
    toolrl, picky, tmp_path, monkeypatch, command, name, pair, said
):
    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("started"))
    done = toolrl(command, picky if name == "picky" else name, "-p", pair, "-o", tmp_path / "out")
    assert refused(done) and re.search(said, done.err) and not list((tmp_path / "out").glob("*"))


def test_the_help_of_a_run_says_what_it_takes(toolrl, picky):
    plain, ours = toolrl("run", "--help"), toolrl("run", picky, "--help")
    assert "Parameters of" not in plain.out and "--fresh" in plain.out
    assert re.search(r"-p size=1 +a whole number +of it", ours.out) and "--fresh" in ours.out
    assert re.search(r"-p kinds=\[\"f1\"\] +a list +of reward", ours.out)
    assert "control_warm_steps=60" in toolrl("sweep", "quickstart", "-h").out


def test_a_stopped_run_says_that_it_can_go_on(toolrl, notebook, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_notebook", stopped)
    done = toolrl("run", notebook)
    assert done.code == 130 and "the same command goes on" in done.err


def test_notebooks_are_found_beside_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_notebook("quickstart").name == "quickstart.ipynb"


def test_the_run_of_difficulty_writes_the_tables_that_its_metrics_say(
    toolrl, tiny_folder, tmp_path
):
    given = dict(
        environments=4, sized=1, distractors=[1, 3], hops=[1, 5], branches=[3], model=tiny_folder
    )
    done = toolrl(
        "run",
        "difficulty",
        *(x for k, v in given.items() for x in ("-p", f"{k}={v}")),
        "--out",
        tmp_path / "run",
    )
    assert done.code == 0, done.err[-2000:]
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    more = {name: c["tools"]["mean"] for name, c in numbers["changes"].items()}
    assert (
        more["1 distractors"],
        more["3 distractors"],
        more["all, 1 distractors"],
        more["parameter expansion"],
    ) == (1, 3, 1, 0)
    assert numbers["changes"]["parameter expansion"]["parameters"]["mean"] == 1 and list(
        numbers["sizes"]
    ) == ["1 hop", "3 branches", "5 hops"]
    assert all(
        v["oracle's Solve-F1"]["mean"] == 1
        for v in (numbers["strategies"] | numbers["sizes"]).values()
    )
    assert numbers["sizes"]["1 hop"]["tools"]["mean"] < numbers["sizes"]["5 hops"]["tools"]["mean"]
    told = (tmp_path / "run" / "tables.md").read_text()
    assert "| 3 distractors | +3.0 | " in told and (tmp_path / "run" / "report.html").exists()


# -- commands that do something


def test_calls_that_fail_on_purpose_cost_the_oracle_and_are_noted(toolrl, envs, tmp_path):
    oracle, settings = ["-e", envs, "-m", "oracle", "--max-turns", 4], {}
    for share in (0, 1):
        done = toolrl("evaluate", *oracle, "-o", tmp_path / f"{share}.json", "--noise", share)
        assert done.code == 0
        kept = Evaluation.load(tmp_path / f"{share}.json")
        settings[share] = kept.settings.get("noise"), set(kept.items().solve_r == 1)
    assert settings[0] == (None, {True})
    assert (
        settings[1][0] == dict(fails=0.5, late=0.0, reworded=0.5, seed=0)
        and False in settings[1][1]
    )
    collected = ["collect", *oracle, "-o", tmp_path / "t.jsonl", "--noise"]
    assert toolrl(*collected, 0.2).code == 0
    assert "noise" in toolrl(*collected, 0.3).err  # other noise does not go on in this file
    assert "less than or equal to 1" in toolrl(*collected, 1.5).err


def test_collect_and_evaluate_leave_what_they_promise(toolrl, envs, tmp_path, tiny_folder):
    done = toolrl(
        "collect", "-e", envs, "-o", tmp_path / "t.jsonl", "-m", tiny_folder, "--max-turns", 2
    )
    assert (
        done.code == 0
        and "4 trajectories" in done.out
        and len(read_jsonl(tmp_path / "t.jsonl", Trajectory)) == 4
    )
    for name in ("before", "after"):
        done = toolrl(
            "evaluate",
            "-e",
            envs,
            "-o",
            tmp_path / f"{name}.json",
            "-m",
            tiny_folder,
            "--name",
            name,
            "--max-turns",
            2,
        )
        assert done.code == 0 and "solve_f1" in done.out
    done = toolrl(
        "report", tmp_path / "before.json", tmp_path / "after.json", "-o", tmp_path / "report.html"
    )
    page = (tmp_path / "report.html").read_text()
    assert done.code == 0 and all(
        x in page
        for x in ("after against before", "examination of stage 5 failed", "Balance and difficulty")
    )


def test_rows_and_length_of_rollouts_can_be_set(toolrl, envs, tmp_path, tiny_folder, monkeypatch):
    from toolrl_lit.engine import generate as module

    plain, sizes = module._decode, []

    def watched(model, part, *rest, **more):
        sizes.append(sum(len(numbers) for _, numbers in part))
        return plain(model, part, *rest, **more)

    monkeypatch.setattr(module, "_decode", watched)
    for command in (["collect", "--samples", 3], ["evaluate"]):
        common = [*command, "-e", envs, "-m", tiny_folder, "--max-turns", 1]
        sizes.clear()
        assert toolrl(*common, "-o", tmp_path / "a.json").code == 0 and max(sizes) > 2
        sizes.clear()
        assert (
            toolrl(*common, "-o", tmp_path / "b.json", "--batch", 2).code == 0 and max(sizes) == 2
        )
        assert toolrl(*common, "-o", tmp_path / "c.json", "--max-prompt-tokens", 20).code == 0
        kept = tmp_path / ("c.json" if command[0] == "collect" else "c.trajectories.jsonl")
        assert {t.stop for t in read_jsonl(kept, Trajectory)} == {"too_long"}
        assert refused(
            toolrl(*common, "-o", tmp_path / "d.json", "--batch", 0),
            "batch: expected at least 1, got 0",
        )
        for p in tmp_path.iterdir():
            p.unlink()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 GiB.\nGPU 0 has 24"),
    ],
)
@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_lack_of_memory_is_one_sentence_and_fewer_rows_go_on(
    toolrl, envs, tmp_path, tiny_folder, monkeypatch, error, command
):
    from toolrl_lit.collect import TransformersPolicy

    words, plain = (
        [command, "-e", envs, "-o", tmp_path / "x.json", "-m", tiny_folder, "--max-turns", 2],
        TransformersPolicy.tokens,
    )

    def tokens(self, *prompts, **how):
        if self.batch > 8:
            raise error
        return plain(self, *prompts, **how)

    monkeypatch.setattr(TransformersPolicy, "tokens", tokens)
    done = toolrl(*words)  # the bar comes before the sentence
    assert done.code == 2 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith(
        "error: out of memory: lower --batch=64 and start the same command again"
    )
    assert toolrl(*words, "--batch", 8).code == 0
    error = RuntimeError("shapes do not fit")  # a bug, which must not look like lack of memory
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        toolrl(command, "-e", envs, "-o", tmp_path / "y.json", "-m", tiny_folder)


def test_a_report_audits_the_environments_that_were_evaluated_if_it_finds_them(
    toolrl, environments, tmp_path, tiny_folder
):
    write_jsonl(tmp_path / "all.jsonl", environments)
    write_jsonl(tmp_path / "there.jsonl", environments[:2])
    assert (
        toolrl(
            "evaluate",
            "-e",
            tmp_path / "there.jsonl",
            "-o",
            tmp_path / "a.json",
            "-m",
            tiny_folder,
            "--max-turns",
            1,
        ).code
        == 0
    )
    report = ("report", tmp_path / "a.json", "-o", tmp_path / "r.html")
    assert (
        toolrl(*report).code == 0 and "<td class='num'>2</td>" in (tmp_path / "r.html").read_text()
    )  # of the two that were evaluated
    (tmp_path / "there.jsonl").rename(tmp_path / "moved.jsonl")
    done = toolrl(*report)
    assert (
        done.code == 0
        and "no audit" in done.out
        and "Balance" not in (tmp_path / "r.html").read_text()
    )
    for given in ("moved.jsonl", "all.jsonl"):
        assert toolrl(*report, "-e", tmp_path / given).code == 0
        page = (tmp_path / "r.html").read_text()
        assert "examination of stage 5 failed" in page and "<td class='num'>2</td>" in page
    write_jsonl(tmp_path / "other.jsonl", environments[2:4])
    assert refused(
        toolrl(*report, "-e", tmp_path / "other.jsonl"),
        "other.jsonl",
        repr(min(e.id for e in environments[:2])),
    )
    (tmp_path / "other.jsonl").rename(tmp_path / "there.jsonl")  # another file in its place
    assert "no audit" in toolrl(*report).out


@pytest.mark.parametrize("kind", ["ftrl", "verl", "hf"])
def test_export_writes_every_environment(toolrl, envs, tmp_path, kind):
    done = toolrl("export", kind, "-e", envs, "-o", tmp_path / "x")
    assert done.code == 0 and "4 environments" in done.out and (tmp_path / "x").exists()


def test_export_hands_over_every_turn_of_rollouts_as_a_model_reads_them(
    toolrl, environments, envs, tmp_path, tiny_folder
):
    from toolrl_lit.collect import OraclePolicy, TransformersPolicy, collect

    rollouts = write_jsonl(
        tmp_path / "t.jsonl",
        collect(OraclePolicy(environments), environments[:4], samples=2, temperature=0),
    )
    export = lambda kind, *more: toolrl("export", kind, "-e", envs, "-o", tmp_path / kind, *more)
    done = export("verl", "-t", rollouts, "-m", tiny_folder)
    policy, steps = (
        TransformersPolicy(tiny_folder),
        [
            s
            for t in read_jsonl(rollouts, Trajectory)[::2]
            for s in t.step_records(next(e for e in environments if e.id == t.environment))
        ],
    )
    rows = datasets.Dataset.from_parquet(
        str(tmp_path / "verl" / "train.parquet"), cache_dir=str(tmp_path)
    )
    assert (
        done.code == 0 and f"{len(steps)} step records" in done.out and len(rows) == len(steps) > 8
    )
    assert {r["extra_info"]["turn"] for r in rows} >= {0, 1, 2}
    for row, s in zip(rows, steps):
        assert policy.text(row["prompt"], []) == policy.text(s.messages, s.tools)
    assert export("ftrl", "-t", rollouts).code == 0 and len(
        (tmp_path / "ftrl").read_text().splitlines()
    ) == len(steps)
    assert refused(export("verifiers", "-t", rollouts), "trajectories: verifiers")
    assert refused(export("hf", "-m", tiny_folder), "model: hf takes none")
    assert refused(export("verl", "-m", "no/such/model"), "no/such/model")
    write_jsonl(tmp_path / "one.jsonl", environments[:1])
    assert refused(
        toolrl(
            "export", "verl", "-e", tmp_path / "one.jsonl", "-o", tmp_path / "x", "-t", rollouts
        ),
        "trajectories: ",
        environments[1].id,
    )


def test_train_makes_a_policy_and_refuses_another_run_in_its_folder(
    toolrl, envs, tmp_path, tiny_folder
):
    given = dict(
        model=tiny_folder,
        out=tmp_path / "run",
        warm_steps=1,
        warm_batch=1,
        epochs=1,
        updates=1,
        prompts=1,
        micro_prompts=1,
        group=2,
        environments=2,
        max_turns=1,
        max_new_tokens=3,
        max_prompt_tokens=2000,
        lora_rank=2,
    )
    pairs = [x for k, v in given.items() for x in ("-p", f"{k}={v}")]
    done = toolrl("train", "-e", envs, *pairs)
    assert done.code == 0 and str(tmp_path / "run" / "rl" / "model") in done.out
    for tuned in ("model", "adapter"):
        assert (
            toolrl(
                "layers",
                tmp_path / "run" / "warm" / "model",
                tmp_path / "run" / "rl" / tuned,
                "-o",
                tmp_path / "l.html",
            ).code
            == 0
        )
    release()
    assert refused(toolrl("train", "-e", envs, *pairs, "-p", "seed=1"), tmp_path / "run", "seed")


def test_parameters_are_explained(toolrl):
    done = toolrl("parameters")
    assert done.code == 0 and all(
        name in done.out for name in ("learning_rate", "shuffle_rewards", "micro_prompts")
    )


def test_the_same_build_gives_the_same_bytes(toolrl, tmp_path):
    assert (
        toolrl("build", "-n", 2, "-o", tmp_path / "a.jsonl").code
        == toolrl("build", "-n", 2, "-o", tmp_path / "b.jsonl").code
        == 0
    )
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes() and len(
        read_jsonl(tmp_path / "a.jsonl", Environment)
    ) == 2


def test_an_audit_passes_sound_data_and_ends_with_1_where_there_are_defects(toolrl, tmp_path):
    done = toolrl("build", "-n", "20", "-o", tmp_path / "train.jsonl", "--audit")
    assert (
        done.code == 0
        and "examination of stage 5 failed: 0 of 20" in done.out
        and (tmp_path / "train.audit.html").exists()
    )
    assert toolrl("build", "-n", "10", "--split", "test", "-o", tmp_path / "test.jsonl").code == 0
    against = ("audit", tmp_path / "train.jsonl", "--out", tmp_path / "a.html", "--against")
    assert toolrl(*against, tmp_path / "test.jsonl").code == 0
    same = toolrl(*against, tmp_path / "train.jsonl")
    assert same.code == 1 and "DEFECT tool names shared by the splits" in same.out
    assert refused(
        toolrl("audit", tmp_path / "train.jsonl", "--match", "loose"),
        "'loose'",
        "'paper' or 'strict'",
    )


def test_a_folder_of_shards_is_built_audited_and_handed_over_like_a_file(toolrl, tmp_path):
    done = toolrl("build", "-n", 6, "-o", tmp_path / "set", "--shard", 4, "--format", "parquet")
    assert (
        done.code == 0
        and "6 environments" in done.out
        and (tmp_path / "set" / "train-00001-of-00002.parquet").exists()
    )
    assert toolrl("audit", tmp_path / "set", "--out", tmp_path / "a.html").code == 0
    assert (
        toolrl("export", "ftrl", "-e", tmp_path / "set", "-o", tmp_path / "records.jsonl").code == 0
    )
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 6
    assert refused(toolrl("build", "-n", 7, "-o", tmp_path / "set"), "set", "n: 6 there, 7 now")


def test_the_authors_records_are_audited_by_the_same_command(toolrl, envs, tmp_path):
    assert toolrl("export", "ftrl", "-e", envs, "-o", tmp_path / "records.jsonl").code == 0
    done = toolrl("audit", tmp_path / "records.jsonl", "--out", tmp_path / "a.html")
    assert done.code == 0 and "documents and code do not fit: 0 of 4" in done.out
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    (tmp_path / "broken.jsonl").write_text(lines[0] + '\n{"tools": "[]"}\n')
    assert refused(toolrl("audit", tmp_path / "broken.jsonl"), "broken.jsonl, line 2", "codes")
    page = (tmp_path / "a.html").read_text()
    assert "Balance and difficulty" in page and "turns taken" in page


def test_records_are_audited_against_another_file_of_records(toolrl, tmp_path):
    for split in ("train", "test"):
        assert (
            toolrl("build", "-n", 4, "--split", split, "-o", tmp_path / f"{split}.jsonl").code == 0
        )
        assert (
            toolrl(
                "export",
                "ftrl",
                "-e",
                tmp_path / f"{split}.jsonl",
                "-o",
                tmp_path / f"{split}-records.jsonl",
            ).code
            == 0
        )
    records, held = tmp_path / "train-records.jsonl", tmp_path / "test-records.jsonl"
    done = toolrl("audit", records, "--against", held, "--out", tmp_path / "a.html")
    assert done.code == 0 and "questions shared by the splits: 0 of 4" in done.out
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    lines[0]["messages"][0]["content"] += " Please."
    held.write_text("".join(json.dumps(line | dict(split="train")) + "\n" for line in lines))
    done = toolrl("audit", records, "--against", held, "--out", tmp_path / "a.html")
    assert (
        done.code == 1
        and "DEFECT questions shared by the splits: 3 of 4" in done.out
        and "DEFECT tool names shared by the splits" in done.out
    )
    assert (
        "DEFECT near-duplicate question shared by the splits: 1 of 8" in done.out
        and f"{records} line-1 and {held} line-1: " in done.out
    )


def test_environments_and_records_are_not_audited_against_each_other(toolrl, envs, tmp_path):
    records = tmp_path / "records.jsonl"
    assert toolrl("export", "ftrl", "-e", envs, "-o", records).code == 0
    assert refused(
        toolrl("audit", envs, "--against", records),
        "against: expected environments",
        f"{records} holds records of the authors",
    )
    assert refused(
        toolrl("audit", records, "--against", envs),
        "against: expected records",
        f"{envs} holds environments",
    )
    assert refused(
        toolrl("build", "-n", 2, "-o", tmp_path / "x.jsonl", "--audit", "--against", records),
        "against: expected environments",
    )
    assert not (tmp_path / "x.jsonl").exists(), "refused before it is built"


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="a folder in which nobody can make a file"
)
def test_a_place_where_nothing_can_be_written_is_not_called_busy(toolrl):
    assert refused(
        toolrl("build", "-n", 1, "-o", "/proc/x.jsonl"), "/proc/x.jsonl: cannot be written"
    )
    with pytest.raises(UserError, match="/proc: cannot be written to"):
        reserve("/proc")


# -- what was typed


@pytest.mark.parametrize(
    "typed, value",
    [
        ("012", 12),
        ("1:30", "1:30"),
        ("runs/try #2", "runs/try #2"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("1_000", "1_000"),
        ("0x10", 16),
        ("0o17", 15),
        ("1e5", 1e5),
        ("-.5", -0.5),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("", None),
        ("*.jsonl", "*.jsonl"),
        ("&a", "&a"),
        ("key: value", "key: value"),
        ("- a", "- a"),
        ("abc ", "abc "),
        (" 5 ", 5),
        ('"true"', "true"),
        ("'012'", "012"),
        ("[no, 1:30, 012]", ["no", "1:30", 12]),
        ("{a: 2024-01-01}", {"a": "2024-01-01"}),
        ("!x", "!x"),
        ("%d", "%d"),
        ("http://h:80/v1", "http://h:80/v1"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_a_value_means_what_was_typed(typed, value):
    got = parse_parameters([f"x={typed}"], ["x"])["x"]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "typed", ["'a' #2", "[draft] plan", '"a" and "b"', "[a #b]", "[*a]", "{", "'"]
)
def test_what_only_begins_like_a_list_or_a_quote_is_refused_and_not_cut(typed):
    with pytest.raises(UserError, match="parameter x: .*is not a YAML value"):
        parse_parameters([f"x={typed}"], ["x"])


def test_a_run_takes_words_for_truth_values_and_numbers(tmp_path, toolrl):
    cell = nbformat.v4.new_code_cell(
        "n = 1\nlive = True\nname = 'a'\nout = '.'", metadata={"tags": ["parameters"]}
    )
    shown = nbformat.v4.new_code_cell(
        "import json\nopen(out + '/got.json', 'w').write(json.dumps([n, live, name]))"
    )
    path = tmp_path / "takes.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, shown], metadata=kernel), path)
    assert (
        toolrl(
            "run", path, "-o", tmp_path / "o", "-p", "n=1_000", "-p", "live=no", "-p", "name=no"
        ).code
        == 0
    )
    assert json.loads((tmp_path / "o" / "got.json").read_text()) == [1000, False, "no"]
    assert refused(
        toolrl("run", path, "-o", tmp_path / "p", "-p", "live=perhaps"),
        "parameter live",
        "'perhaps'",
        "True",
    )


@pytest.mark.parametrize("content", ["", "{}", "[]", "no notebook"])
def test_what_is_no_notebook_is_named(toolrl, tmp_path, content):
    (tmp_path / "n.ipynb").write_text(content)
    for command in ("run", "sweep"):
        assert refused(
            toolrl(command, tmp_path / "n.ipynb"),
            tmp_path / "n.ipynb",
            "cannot be read as a notebook",
        )


# -- where nothing can be written


@pytest.fixture()
def places(tmp_path, envs, monkeypatch):
    "Commands that need an --out, by whether it is a folder."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "x").write_text("kept")
    Evaluation(rows=[Score(environment="e", calls=1, solved=1, sub_questions=1, turns=1)]).save(
        tmp_path / "ev.json"
    )
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})]
        ),
        tmp_path / "n.ipynb",
    )
    return {
        False: [
            ["audit", envs],
            ["collect", "-e", envs],
            ["evaluate", "-e", envs],
            ["layers", "smollm2", "smollm2"],
            ["report", "ev.json"],
            ["export", "ftrl", "-e", envs],
            ["serve", envs],
        ],
        True: [
            ["build", "-n", 1],
            ["export", "verl", "-e", envs],
            ["export", "hf", "-e", envs],
            ["export", "verifiers", "-e", envs],
            ["run", "n.ipynb"],
            ["sweep", "n.ipynb", "-p", "n=[1]"],
        ],
    }


@pytest.mark.parametrize(
    "out", ["", ".", "dir", "file", "file/x", "/dev/null", "/proc/x", "x" * 300, "/"]
)
def test_an_impossible_place_to_write_is_one_sentence_for_every_command(toolrl, places, out):
    for folder, commands in places.items():
        if out in ([".", "dir"] if folder else ["file"]):
            continue
        for command in commands:
            assert refused(toolrl(*command, "-o", out), out or "--out")
    assert (
        Path("file").read_text() == Path("dir/x").read_text() == "kept"
        and Path("/dev/null").is_char_device()
    )


def test_training_into_an_impossible_folder_is_one_sentence(toolrl, envs, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in ("/proc/x", tmp_path / "file", "null"):
        assert refused(toolrl("train", "-e", envs, "-p", f"out={out}"))


def test_one_of_several_environments_with_one_id_is_not_served(toolrl, environments, tmp_path):
    path = write_jsonl(tmp_path / "e.jsonl", [environments[0], environments[0]])
    assert refused(toolrl("serve", path, "--id", environments[0].id), "2 environments have the id")


# -- a newcomer


def test_light_commands_need_no_heavy_library_and_little_time(tmp_path, envs):
    program = (
        "import sys, time; begun = time.monotonic()\n"
        "from toolrl_lit.doors.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'papermill', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert time.process_time() < 4, time.process_time()\n"
    )
    for words in (["--version"], ["build", "-h"], ["doctor"], ["show", envs]):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout, (words, done.stderr)


def test_python_can_run_the_library_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "toolrl_lit", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("toolrl_lit 0.")


def test_every_command_explains_itself_in_sentences(toolrl):
    from typer.main import get_command

    commands = get_command(cli.app).commands
    for name, command in commands.items():
        assert toolrl(name, "-h").code == 0
        told = [command.help, *(p.help for p in command.params if p.name != "help")]
        assert all(t and t[0].isupper() and not t.startswith("Of ") for t in told), (name, told)


def test_what_the_parser_refuses_is_one_sentence_too(toolrl, tmp_path):
    assert refused(toolrl("build"), "--out", "toolrl build -h")
    assert refused(toolrl("biuld"), "'biuld'")
    assert refused(toolrl("build", "-o", tmp_path / "x.jsonl", "--splt", "test"), "--split")
    assert refused(toolrl("build", "-o", tmp_path / "x.jsonl", "-n", "many"), "'-n'", "integer")


def test_presets_and_formats_are_those_of_the_library():
    from typing import get_args

    from toolrl_lit.doors.cli_data import Format
    from toolrl_lit.doors.cli_train import Preset

    assert set(get_args(Preset)) == set(train.PRESETS) and len(get_args(Format)) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["build", "-n", "1", "-o", "x.json"],
        ["build", "-n", "1", "-o", "x.parquet"],
        ["collect", "-o", "x.html"],
        ["evaluate", "-o", "x.jsonl"],
        ["export", "hf", "-o", "x.jsonl"],
        ["export", "ftrl", "-o", "x.csv"],
        ["train", "-o", "x.json"],
    ],
)
def test_a_name_that_promises_something_else_is_refused(toolrl, envs, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    given = words if words[0] == "build" else [*words, "-e", envs]
    assert refused(toolrl(*given), words[-1], "expected", Path(words[-1]).suffix)
    assert not list(tmp_path.iterdir())


def test_a_build_of_nothing_is_refused(toolrl, tmp_path):
    assert refused(toolrl("build", "-n", 0, "-o", tmp_path / "x.jsonl"), "-n: expected at least 1")


def test_a_file_without_environments_is_refused(toolrl, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    for command in (["audit"], ["evaluate", "-o", tmp_path / "x.json", "-e"], ["show"]):
        assert refused(toolrl(*command, tmp_path / "none.jsonl"), "none.jsonl")


def test_an_environment_is_shown(toolrl, environments, envs, tmp_path):
    shown = " ".join(toolrl("show", envs, "--index", 3).out.split())
    assert " ".join(environments[3].question.split()) in shown
    assert environments[3].id in shown and "golden answer" in shown
    assert "def " in toolrl("show", envs, "--code").out
    done = toolrl("show", envs, "--id", environments[2].id, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert done.code == 0 and "written: " in done.out and environments[2].answer in page
    assert refused(toolrl("show", envs, "--index", 4), "--index 4", "below 4")
    assert refused(toolrl("show", envs, "--id", environments[2].id[:-1]), "Did you mean")


def test_a_rollout_is_shown_turn_by_turn_with_credit(toolrl, environments, envs, tmp_path):
    kept = tmp_path / "r.jsonl"
    assert toolrl("collect", "-e", envs, "-o", kept, "-m", "oracle").code == 0
    shown = " ".join(toolrl("show", kept, "--index", 1, "-e", envs).out.split())
    assert "Turn 1: reward +" in shown and "solved: " in shown and "Golden calls" in shown
    assert toolrl("show", kept, "-o", tmp_path / "r.html").code == 0
    assert "solved: " in (tmp_path / "r.html").read_text()
    write_jsonl(tmp_path / "one.jsonl", environments[5:6])
    assert refused(toolrl("show", kept, "-e", tmp_path / "one.jsonl"), "one.jsonl", "has the id")


def test_what_cannot_be_shown_is_named_with_what_can(toolrl, envs, tmp_path):
    toolrl("evaluate", "-e", envs, "-o", tmp_path / "s.json", "-m", "oracle")
    assert refused(toolrl("show", tmp_path / "s.json"), "s.trajectories.jsonl")
    toolrl("export", "ftrl", "-e", envs, "-o", tmp_path / "records.jsonl")
    assert refused(toolrl("show", tmp_path / "records.jsonl"), "expected environments")


def test_the_oracle_is_measured_like_a_model(toolrl, envs, tmp_path):
    done = toolrl("evaluate", "-e", envs, "-o", tmp_path / "s.json", "-m", "oracle")
    assert done.code == 0 and "next: toolrl show" in done.out
    lines = [line.split() for line in done.out.splitlines()]
    assert any(line[:2] == ["all", "solve_f1"] and "1.0" in line for line in lines)
    kept = Evaluation.load(tmp_path / "s.json")
    assert kept.name == "oracle" and kept.model == "oracle" and kept.date
    assert refused(
        toolrl("collect", "-e", envs, "-o", tmp_path / "r.jsonl", "-m", "oracle", "--reasoning"),
        "oracle",
    )


def test_training_takes_its_folder_by_an_option(toolrl, envs, tmp_path, monkeypatch):
    began = []
    monkeypatch.setattr(
        train, "train", lambda config, environments, start: began.append(config) or tmp_path
    )
    assert toolrl("train", "-e", envs, "-o", tmp_path / "run", "-p", "warm_steps=0").code == 0
    assert began[0].out == str(tmp_path / "run")
    assert refused(toolrl("train", "-e", envs, "-o", tmp_path / "a", "-p", "out=b"), "-p out=")


def test_what_needs_no_model_of_this_machine_does_not_wait_for_torch(envs, tmp_path):
    program = (
        "import json, sys\n"
        "import toolrl_lit.bench.suites, toolrl_lit.doors.endpoint, toolrl_lit.doors.serve\n"
        "from toolrl_lit.doors.cli import app\n"
        "for words in json.loads(sys.argv[1]): app(words, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    scores, rollouts = f"{tmp_path}/scores.json", f"{tmp_path}/rollouts.jsonl"
    commands = [
        ["collect", "-e", str(envs), "-m", "oracle", "-o", rollouts],
        ["show", rollouts, "-e", str(envs), "--index", "0"],
        ["evaluate", "-e", str(envs), "-m", "oracle", "-o", scores],
        ["report", scores, "-o", f"{tmp_path}/report.html"],
    ]
    command = [sys.executable, "-c", program, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "report.html").exists(), done.stderr


def test_errors_of_training_come_before_heavy_libraries(envs, tmp_path):
    program = (
        "import sys; sys.argv = ['toolrl', *sys.argv[1:]]\n"
        "from toolrl_lit.doors.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert e.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    for words in (
        ["train", "-e", tmp_path / "none.jsonl"],
        ["train", "-e", envs, "-p", "epochs"],
        ["train", "-e", envs, "-p", "model=no/such/model"],
        ["evaluate", "-e", envs, "-o", tmp_path / "s.json", "-m", "no/such/model"],
        ["layers", "smollm2", tmp_path / "none"],
        ["report", tmp_path / "none.json"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stderr.startswith("error: "), (words, done.stderr)


def test_the_doctor_agrees_with_the_library_and_ends_with_0(toolrl, monkeypatch):
    from toolrl_lit.collect import fast_dtype
    from toolrl_lit.doors import doctor

    able = doctor.computes_in_16_bits()
    if able is not None and not torch.cuda.is_available():
        assert able == (fast_dtype() == torch.bfloat16)
    monkeypatch.setattr(doctor, "has_package", lambda name: False)
    done = toolrl("doctor")
    assert done.code == 0
    for word in ("cores", "16-bit", "memory", "disk", "graphics card", "Monty", "pip install"):
        assert word in done.out, word


# -- stages


def test_a_report_fills_in_and_says_what_is_missing(tmp_path, capsys):
    from toolrl_lit.doors.stages import StagedReport

    page = StagedReport(tmp_path, "Demo", {"a": 10, "b": 7200}, order=["Second", "First"])
    with page.stage("a"):
        page.put("First", ["one"])
    page.write()
    assert "Still to come" in (tmp_path / "report.html").read_text()
    assert "== a (about 10 seconds)" in (told := capsys.readouterr().out) and "2.0 hours" in told
    with page.stage("b"):
        page.put("Second", ["two"])
    page.write(metrics={"n": 2})
    text = (tmp_path / "report.html").read_text()
    assert "Still to come" not in text and text.index(">Second<") < text.index(">First<")
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"n": 2}


def test_the_adapters_of_a_training_are_a_policy_to_measure(tmp_path):
    from toolrl_lit.doors.cli_options import check_model

    (tmp_path / "adapter").mkdir()
    with pytest.raises(UserError, match="no model here"):
        check_model(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    check_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize("words", [(), ("--fresh",)])
def test_a_run_never_replaces_or_deletes_its_own_notebook(toolrl, tmp_path, words):
    source = tmp_path / "runs" / "tiny.ipynb"
    source.parent.mkdir()
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seed = 0  # of it")])
    made.cells[0].metadata["tags"] = ["parameters"]
    made.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
    nbformat.write(made, source)
    before = source.read_bytes()
    for folder in (source.parent, tmp_path) if words else (source.parent,):
        done = toolrl("run", source, "-o", folder, *words)
        assert done.code == 2 and "holds the notebook tiny.ipynb itself" in done.err
        assert source.read_bytes() == before
