"Commands that are given again, to other things or in the same place: no old result is taken for a new one, no file is lost."

import json
import re
import shlex

import nbformat
import pytest

from toolrl_lit.collect import OraclePolicy, collect
from toolrl_lit.doors.cli_options import tell_next
from toolrl_lit.doors.runs_sweep import members
from toolrl_lit.engine.resume import digest_environments
from toolrl_lit.evaluate import Evaluation, evaluate, paired_difference
from toolrl_lit.schema import (
    Environment,
    Trajectory,
    UserError,
    read_jsonl,
    reserve,
    write_jsonl,
)


def refused(done, *said):
    "The command ended with exit code 2 and one sentence that says all of this."
    assert done.code == 2 and done.err.count("\n") == 1 and done.err.startswith("error: "), done
    for s in said:
        assert str(s) in done.err, done.err
    return True


@pytest.fixture
def builds(environments, tmp_path):
    "Three builds with the same ids: environments, other questions, and the same questions with another tool."
    first = [e.model_copy(deep=True) for e in environments[:2]]
    asked, tools = ([e.model_copy(deep=True) for e in first] for _ in range(2))
    for env in asked:
        env.scenario.question = f"Please: {env.scenario.question}"
    for env in tools:
        env.tools[-1].doc.description += " It is slow."
    paths = {"first": first, "asked": asked, "tools": tools}
    return {k: write_jsonl(tmp_path / f"{k}.jsonl", v) for k, v in paths.items()}


@pytest.mark.parametrize("other", ["asked", "tools"])
@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_rollouts_of_another_build_with_equal_ids_are_refused(
    toolrl, builds, tmp_path, command, other
):
    out = tmp_path / ("r.jsonl" if command == "collect" else "r.json")
    base = (command, "-m", "oracle", "-o", out)
    assert toolrl(*base, "-e", builds["first"]).code == 0
    before = {p: p.read_bytes() for p in tmp_path.glob("r.*")}
    assert refused(toolrl(*base, "-e", builds[other]), "trajectories of other environments")
    assert {p: p.read_bytes() for p in tmp_path.glob("r.*")} == before
    assert toolrl(*base, "-e", builds["first"]).code == 0


def test_a_rollout_is_not_shown_beside_another_build(toolrl, builds, tmp_path):
    kept = tmp_path / "r.jsonl"
    toolrl("collect", "-e", builds["first"], "-m", "oracle", "-o", kept)
    assert toolrl("show", kept, "-e", builds["first"]).code == 0
    assert refused(toolrl("show", kept, "-e", builds["asked"]), "another one with this id")


def test_rollouts_go_on_in_more_environments_and_know_each_of_them(environments, tmp_path):
    out, policy = tmp_path / "r.jsonl", OraclePolicy(environments[:4])
    collect(policy, environments[:2], out=out)
    assert len(collect(policy, environments[:3], out=out)) == 3
    changed = environments[2].model_copy(deep=True)
    changed.tools[-1].doc.description += " It is slow."
    with pytest.raises(UserError, match="other environments"):
        collect(policy, [*environments[:2], changed, environments[3]], out=out)
    assert len(read_jsonl(out, Trajectory)) == 3


def test_a_note_of_an_earlier_version_names_no_environments_and_is_believed(environments, tmp_path):
    out, policy = tmp_path / "r.jsonl", OraclePolicy(environments[:2])
    collect(policy, environments[:2], out=out)
    note = tmp_path / "r.settings.json"
    known = json.loads(note.read_text())
    places = known.pop("environments")
    assert places == {"n": 2, "sha256": digest_environments(e.start() for e in environments[:2])}
    note.write_text(json.dumps(known))
    assert len(collect(policy, environments[:2], out=out)) == 2
    assert json.loads(note.read_text())["environments"] == places


def test_scores_of_another_build_with_equal_ids_are_not_paired(builds):
    scores = {}
    for name, path in builds.items():
        envs = read_jsonl(path, Environment)
        scores[name] = evaluate(OraclePolicy(envs), envs, name=name)
    with pytest.raises(UserError, match="have the same ids and differ"):
        paired_difference(scores["first"], scores["tools"])
    envs = read_jsonl(builds["first"], Environment)[::-1]
    turned = evaluate(OraclePolicy(envs), envs, name="turned")
    assert len(paired_difference(scores["first"], turned))
    old = Evaluation.model_validate(scores["tools"].model_dump(exclude={"environments_sha256"}))
    assert len(paired_difference(scores["first"], old))


def test_other_samples_are_told_as_another_setting(toolrl, builds, tmp_path):
    base = ("collect", "-e", builds["first"], "-m", "oracle", "-o", tmp_path / "r.jsonl")
    toolrl(*base)
    assert refused(toolrl(*base, "--samples", 2), "samples: 1 there, 2 now")


@pytest.mark.parametrize(
    "words",
    [
        ("--samples", 0),
        ("--temperature", -1),
        ("--temperature", "nan"),
        ("--max-new-tokens", 0),
        ("--max-turns", 0),
        ("--max-prompt-tokens", 0),
        ("--batch", 0),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_written(
    toolrl, builds, tmp_path, words
):
    out = tmp_path / "r.jsonl"
    base = ("collect", "-e", builds["first"], "-m", "oracle", "-o", out)
    name = words[0].strip("-").replace("-", "[-_]")
    done = toolrl(*base, *words)
    assert refused(done) and not list(tmp_path.glob("r.*"))
    assert re.search(name, done.err), done.err


def test_a_finished_file_of_another_build_is_kept(toolrl, tmp_path):
    out = tmp_path / "k.jsonl"
    base = ("build", "-o", out, "-n", 2)
    assert toolrl(*base).code == 0
    before = out.read_bytes()
    assert refused(toolrl(*base, "--seed", 1), out, "another build", "seed")
    assert toolrl(*base).code == 0 and out.read_bytes() == before
    out.unlink()
    assert toolrl(*base, "--seed", 1).code == 0 and out.read_bytes() != before


def test_what_a_command_reads_is_not_written_over(toolrl, builds, tmp_path):
    envs, here = builds["first"], tmp_path / "way" / ".." / "first.jsonl"
    (tmp_path / "way").mkdir()
    before = envs.read_bytes()
    commands = (
        ("export", "ftrl", "-e", envs, "-o", here),
        ("collect", "-m", "oracle", "-e", envs, "-o", here),
        ("serve", envs, "-o", here),
        ("build", "-n", 2, "--audit", "--against", envs, "-o", here),
    )
    for words in commands:
        assert refused(toolrl(*words), here, "would be lost"), words
    assert envs.read_bytes() == before


def test_an_ending_in_capitals_makes_no_folder(toolrl, tmp_path):
    out = tmp_path / "X.JSONL"
    assert refused(toolrl("build", "-n", 2, "-o", out), out, ".jsonl") and not out.exists()


@pytest.mark.parametrize("value", ["3", "[]", "{}"])
def test_scenarios_that_are_none_are_refused(toolrl, tmp_path, value):
    done = toolrl("build", "-n", 2, "-o", tmp_path / "k.jsonl", "-p", f"scenarios={value}")
    assert refused(done, "scenarios: expected", "multi-hop", value)


def test_the_sizes_of_worlds_are_explained_beside_those_of_the_almanac(toolrl):
    said = " ".join(toolrl("parameters", "build").out.split())
    assert "of worlds (2, 6)" in said and "of worlds 12" in said


# -- runs


def run_of(path):
    "A run of one cell."
    cell = nbformat.v4.new_code_cell("size = 1  # of it", metadata={"tags": ["parameters"]})
    meta = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=meta), path)
    return path


def test_a_folder_in_which_somebody_works_is_not_deleted(toolrl, tmp_path):
    notebook, out = run_of(tmp_path / "tiny.ipynb"), tmp_path / "out"
    assert toolrl("run", notebook, "-o", out).code == 0
    with reserve(out):
        assert refused(toolrl("run", notebook, "-o", out, "--fresh"), out, "another process")
    assert (out / "finished.json").exists()
    assert toolrl("run", notebook, "-o", out, "--fresh").code == 0


def test_the_folder_of_another_run_is_refused(toolrl, tmp_path):
    first, other = run_of(tmp_path / "first.ipynb"), run_of(tmp_path / "other.ipynb")
    out = tmp_path / "out"
    assert toolrl("sweep", first, "-p", "size=[1, 2]", "-o", out).code == 0
    said = ("first.ipynb", "a run of other needs a folder of its own")
    assert refused(toolrl("sweep", other, "-p", "size=[1, 2]", "-o", out), *said)
    assert refused(toolrl("run", other, "-o", out / "size-1"), *said)
    assert "finished before" in toolrl("sweep", first, "-p", "size=[1, 2]", "-o", out).out


def test_no_values_are_refused_and_equal_ones_are_one_run(toolrl, tmp_path):
    notebook, out = run_of(tmp_path / "tiny.ipynb"), tmp_path / "out"
    out.mkdir()
    (out / "summary.csv").write_text("kept")
    assert refused(toolrl("sweep", notebook, "-p", "size=[]", "-o", out), "size", "got []")
    assert (out / "summary.csv").read_text() == "kept"
    assert [m.values for m in members({"a": [2, 1, 2], "b": 0}, tmp_path)] == [
        {"a": 2, "b": 0},
        {"a": 1, "b": 0},
    ]


def test_help_of_a_run_is_that_of_the_named_one_whatever_stands_before(toolrl, tmp_path):
    notebook = run_of(tmp_path / "tiny.ipynb")
    for words in (
        ("run", "-o", "foo", notebook, "-h"),
        ("sweep", "--jobs", 2, "-p", "size=[1, 2]", notebook, "--help"),
    ):
        done = toolrl(*words)
        assert done.code == 0 and "-p size=1" in done.out, done
    assert toolrl("run", "-h").code == 0


# -- what comes next


def test_commands_that_come_next_can_be_typed(toolrl, builds, tmp_path, capsys):
    folder = tmp_path / "my questions; (new)"
    folder.mkdir()
    envs = builds["first"].rename(folder / "a.jsonl")
    kept = folder / "r.jsonl"
    for words in (
        ("collect", "-m", "oracle", "-e", envs, "-o", kept),
        ("show", kept, "-e", envs),
        ("export", "ftrl", "-e", envs, "-o", folder / "f.jsonl"),
        ("export", "verl", "-e", envs, "-o", folder / "verl"),
    ):
        done = toolrl(*words)
        told = [l.removeprefix("next: ") for l in done.out.splitlines() if l.startswith("next: ")]
        assert told, words
        for line in told:
            assert any(str(folder) in word for word in shlex.split(line)), line
    tell_next(["toolrl", "show", "a b"], "toolrl run quickstart")
    assert capsys.readouterr().out == "next: toolrl show 'a b'\nnext: toolrl run quickstart\n"


def test_pip_is_given_a_folder_and_not_a_name_of_its_index(toolrl, builds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = toolrl("export", "verifiers", "-e", builds["first"], "-o", "mine")
    assert "next: pip install ./mine\n" in done.out, done.out
