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
    "The command ended with exit code 2 and one sentence that says all of this, after progress bars perhaps."
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(lines) == 1 and "Traceback" not in done.err, done
    for s in said:
        assert str(s) in lines[0], lines[0]
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


# -- siblings: notes, caches and folders of others


def test_a_file_of_rollouts_without_its_note_is_not_believed(toolrl, builds, tmp_path):
    kept = tmp_path / "r.jsonl"
    toolrl("collect", "-e", builds["first"], "-m", "oracle", "-o", kept)
    moved = kept.rename(tmp_path / "moved.jsonl")
    done = toolrl("collect", "-e", builds["first"], "-m", "oracle", "-o", moved)
    assert refused(done, moved, "moved.settings.json") and moved.exists()


def test_two_endings_have_two_notes(toolrl, builds, tmp_path):
    for ending in ("jsonl", "json"):
        where = ("-m", "oracle", "-o", tmp_path / f"r.{ending}")
        other = builds["first" if ending == "jsonl" else "asked"]
        assert toolrl("collect", "-e", other, *where).code == 0
    again = toolrl("collect", "-e", builds["asked"], "-m", "oracle", "-o", tmp_path / "r.jsonl")
    assert refused(again, "other environments")


def test_two_processes_do_not_collect_into_one_file(environments, tmp_path):
    out, inside = tmp_path / "r.jsonl", []

    class Meets(OraclePolicy):
        "A policy during whose turns somebody else begins the same work."

        def generate(self, *prompts, **how):
            with pytest.raises(UserError, match="another process is working"):
                collect(OraclePolicy(environments[:2]), environments[:2], out=out)
            inside.append(out.exists())
            return super().generate(*prompts, **how)

    assert len(collect(Meets(environments[:2]), environments[:2], out=out)) == 2
    assert inside and not any(inside)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl", "r.settings.json"]


def test_a_session_is_not_added_to_the_rollouts_of_a_policy(environments, tmp_path):
    pytest.importorskip("mcp", reason="mcp is not installed")
    from toolrl_lit.doors.serve import keep

    out = tmp_path / "r.jsonl"
    done = collect(OraclePolicy(environments[:2]), environments[:2], out=out)
    with pytest.raises(UserError, match="rollouts of a policy"):
        keep(done, out)
    keep(done[:1], tmp_path / "sessions.jsonl")
    keep(done[:1], tmp_path / "sessions.jsonl")
    assert len(read_jsonl(tmp_path / "sessions.jsonl", Trajectory)) == 2


def test_a_file_that_no_build_has_made_is_kept_and_a_changed_one_too(toolrl, tmp_path):
    out = tmp_path / "k.jsonl"
    build = ("build", "-o", out, "-n", 2)
    out.write_text("my notes\n")
    assert refused(toolrl(*build), out, "no build has noted") and out.read_text() == "my notes\n"
    out.unlink()
    assert toolrl(*build).code == 0
    first = out.read_text().splitlines(keepends=True)[0]
    out.write_text(first)
    assert refused(toolrl(*build), out, "was changed") and out.read_text() == first


def test_scores_do_not_replace_another_file(toolrl, builds, tmp_path):
    out = tmp_path / "package.json"
    out.write_text('{"name": "mine"}')
    done = toolrl("evaluate", "-e", builds["first"], "-m", "oracle", "-o", out)
    assert refused(done, out, "expected an Evaluation") and "mine" in out.read_text()


def test_a_report_does_not_show_questions_of_another_build(toolrl, builds, tmp_path):
    scores = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in scores:
        toolrl("evaluate", "-e", builds["first"], "-m", "oracle", "-o", path)
    page = ("report", *scores, "-o", tmp_path / "r.html", "-e")
    assert refused(toolrl(*page, builds["tools"]), builds["tools"], "others with the same ids")
    assert toolrl(*page, builds["first"]).code == 0


@pytest.mark.parametrize("kind, file", [("verl", "train.sh"), ("verifiers", "pyproject.toml")])
def test_an_export_replaces_its_own_files_alone(toolrl, builds, tmp_path, kind, file):
    out = tmp_path / "project"
    out.mkdir()
    (out / file).write_text("mine")
    (out / "notes.txt").write_text("mine too")
    export = ("export", kind, "-e", builds["first"], "-o", out)
    assert refused(toolrl(*export), out / file, "would be lost")
    assert (out / file).read_text() == "mine"
    (out / file).unlink()
    assert toolrl(*export).code == 0 and toolrl(*export).code == 0
    assert (out / "notes.txt").read_text() == "mine too"
    (out / file).write_text("edited")
    assert refused(toolrl(*export), out / file)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".export")]


def test_a_model_is_not_saved_over_a_folder_of_something_else(tmp_path):
    from toolrl_lit.engine.models import save_model

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(UserError, match="something else than a model"):
        save_model(None, None, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_shards_that_were_built_anew_are_read_anew(toolrl, tmp_path):
    from toolrl_lit.schema import OnDisk

    out, ids = tmp_path / "shards", []
    for seed in (0, 1):
        base = ("build", "-o", out, "-n", 2, "--format", "parquet", "--seed", seed)
        assert toolrl(*base).code == 0
        ids.append([e.question for e in OnDisk(out, Environment)])
        for p in out.iterdir():
            p.unlink()
    assert ids[0] != ids[1]


def test_a_run_that_somebody_wrote_is_not_replaced_nor_deleted(toolrl, tmp_path):
    notebook, out = run_of(tmp_path / "tiny.ipynb"), tmp_path / "mine"
    out.mkdir()
    run_of(out / "tiny.ipynb")
    (out / "thesis.txt").write_text("mine")
    for more in ((), ("--fresh",)):
        assert refused(toolrl("run", notebook, "-o", out, *more), "no run has made")
    assert (out / "thesis.txt").exists()


def test_a_run_says_that_its_code_has_changed_since_it_was_begun(toolrl, tmp_path):
    notebook, out = run_of(tmp_path / "tiny.ipynb"), tmp_path / "out"
    assert "has changed" not in toolrl("run", notebook, "-o", out).out
    assert "has changed" not in toolrl("run", notebook, "-o", out, "-p", "size=2").out
    written = nbformat.read(notebook, 4)
    written.cells.append(nbformat.v4.new_code_cell("print(size)"))
    nbformat.write(written, notebook)
    assert "has changed since" in toolrl("run", notebook, "-o", out).out


def test_a_sweep_does_not_take_a_run_of_other_parameters_for_its_own(toolrl, tmp_path):
    notebook, out = run_of(tmp_path / "tiny.ipynb"), tmp_path / "out"
    assert toolrl("run", notebook, "-p", "size=5", "-o", out / "size-1").code == 0
    done = toolrl("sweep", notebook, "-p", "size=[1]", "-o", out)
    assert refused(done, out / "size-1", "size: 5 there, 1 now")


def test_answers_are_written_into_the_recording_as_it_is_by_then(tmp_path):
    from toolrl_lit.engine.own_live import record
    from toolrl_lit.schema import ToolDoc

    file = tmp_path / "calls.jsonl"
    file.write_text('{"tool": "now", "arguments": {}}\n')
    later = '{"tool": "now", "arguments": {"zone": "utc"}, "response": "noon"}\n'

    def talk(choose):
        zone = {"type": "object", "properties": {"zone": {"type": "string"}}}
        docs = {"now": ToolDoc(name="now", description="Tell the time.", parameters=zone)}
        calls = choose(docs)
        file.write_text(file.read_text() + later)
        return docs, [("morning", False)] * len(calls)

    record(talk, file)
    assert '"response": "morning"' in file.read_text() and later in file.read_text()


def test_two_models_have_two_names_and_a_plain_name_stays():
    from toolrl_lit.doors.cli_bench import file_stem

    names = ["org/m", "org-m", "/org/m", "org_m"]
    assert len({file_stem(n) for n in names}) == 4 and file_stem("smollm2-warm") == "smollm2-warm"


def test_a_longer_limit_asks_an_item_again_that_was_too_long(tmp_path):
    from toolrl_lit.bench.common import Item, play

    class Short:
        "A policy that reads prompts of 10 tokens at most."

        parser, max_prompt_tokens = "qwen", 10

        def generate(self, prompts, **how):
            return [None if self.max_prompt_tokens < 20 else "yes" for _ in prompts]

    item, policy = Item(bench="b", id="1", group="g", messages=[]), Short()
    assert play(policy, [item], out=tmp_path / "r.jsonl")[0].stop == "too_long"
    policy.max_prompt_tokens = 40
    assert play(policy, [item], out=tmp_path / "r.jsonl")[0].turns == ["yes"]


def test_a_reward_is_known_by_its_source(tmp_path, monkeypatch):
    from toolrl_lit.engine.config import rule_digest

    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for name, worth in (("rule_a", 1), ("rule_b", 2)):
        (tmp_path / f"{name}.py").write_text(f"def worth(score):\n    return {worth}\n")
        digests.append(rule_digest(f"{name}:worth"))
    assert digests[0].keys() == {"reward_sha256"} and digests[0] != digests[1]
    assert rule_digest("") == {}


def test_a_start_policy_is_known_by_each_of_its_files(tiny_folder, tmp_path):
    import shutil

    from toolrl_lit.engine.checkpoints import digest_of

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    before = digest_of(folder)
    assert before == digest_of(tiny_folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    changed = digest_of(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert len({before, changed, digest_of(folder)}) == 3


def test_a_benchmark_is_known_by_how_its_name_begins(toolrl, tmp_path):
    bench = ("bench", "-m", "smollm2", "-d", tmp_path / "none", "-o", tmp_path / "o")
    assert refused(toolrl(*bench, "tau"), "airline: there is no such folder")
    assert refused(toolrl(*bench, "t"), "rotbench, taubench", "got 't'")
