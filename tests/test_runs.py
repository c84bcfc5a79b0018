"Runs: all have parameters, and those that need no trained model execute at a small size, where the data that they ask for are at hand."

import os
from pathlib import Path

import nbformat
import pytest
from execnb.shell import CaptureShell

from toolrl_lit.doors.runs import find_notebook, known_runs, notebook_parameters

TINY = dict(seeds=[0], train_environments=12, test_environments=8, imitated=2, updates=1)
SIZES = {
    "hackable": TINY | dict(rules=["strict"]),
    "neighbours": TINY,
    "noise": TINY | dict(shares=[0.4]),
    "reward_kinds": TINY | dict(train_environments=16, kinds=["f1", "p"], algorithms=["dapo"]),
    "bench_build": dict(sizes=[6, 12], audited=12),
    "bench_reward": dict(environments=6, calls=40, prompts=4, samples=2, rounds=1, workers=[1]),
    "bench_taubench": dict(most=2),
    "bench_worlds": dict(questions=6, tasks=4, calls=64, samples=2, rows=20),
}
BENCH = Path(
    os.environ.get("TOOLRL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "bench")
)
DATA = {"bench_taubench": BENCH / "tau-bench"}  # what others published
PLAIN = ("out", "seed", "questions")  # that need no comment, or have it on a line of their own


@pytest.mark.parametrize("name", known_runs())
def test_every_run_has_parameters_with_comments(name):
    found = notebook_parameters(find_notebook(name))
    assert found and all(p["help"] for key, p in found.items() if key not in PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_run_executes_from_its_first_cell_to_its_last(name, tmp_path, monkeypatch):
    path, shell = find_notebook(name), CaptureShell()
    monkeypatch.chdir(tmp_path)
    given = SIZES[name]
    if data := DATA.get(name):
        if not data.is_dir():
            pytest.skip(f"{data}: there are no published data; see `toolrl bench --list`")
        given = given | {"data": str(data)}
    assert given.keys() <= notebook_parameters(path).keys()
    given = {"out": str(tmp_path / "run")} | given
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        shell.run(cell.source)
        if shell.exc:
            raise AssertionError(cell.source) from shell.exc
        if "parameters" in cell.metadata.get("tags", ()):
            shell.run("\n".join(f"{k} = {v!r}" for k, v in given.items()))
