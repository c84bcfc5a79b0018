"Runs: all have parameters, and those that need neither a trained model nor data from elsewhere execute at a small size."

from pathlib import Path

import nbformat
import pytest
from execnb.shell import CaptureShell

from toolrl_lit.doors.runs import notebook_parameters

ROOT = Path(__file__).resolve().parents[1]
ALL = sorted(p for p in (ROOT / "runs").rglob("*.ipynb") if "out" not in p.parts)
TINY = dict(seeds=[0], train_environments=12, test_environments=8, imitated=2, updates=1)
SIZES = {
    "hackable": TINY | dict(rules=["strict"]),
    "neighbours": TINY,
    "noise": TINY | dict(shares=[0.4]),
    "reward_kinds": TINY | dict(kinds=["f1", "p"]),
    "bench/build": dict(sizes=[6, 12], audited=12),
    "bench/reward": dict(environments=6, calls=40, prompts=4, samples=2, rounds=1, workers=[1]),
    "bench/worlds": dict(questions=6, tasks=4, calls=64, samples=2, rows=20),
}


PLAIN = ("out", "seed", "questions")  # that need no comment, or have it on a line of their own


@pytest.mark.parametrize("run", ALL, ids=lambda p: p.stem)
def test_every_run_has_parameters_with_comments(run):
    found = notebook_parameters(run)
    assert found and all(p["help"] for name, p in found.items() if name not in PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_run_executes_from_its_first_cell_to_its_last(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, shell = ROOT / "runs" / f"{name}.ipynb", CaptureShell()
    given = SIZES[name]
    assert given.keys() <= notebook_parameters(path).keys()
    given = {"out": str(tmp_path / "run")} | given
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        shell.run(cell.source)
        assert not shell.exc, f"{cell.source}\n{shell.prettytb()}"
        if "parameters" in cell.metadata.get("tags", ()):
            shell.run("\n".join(f"{k} = {v!r}" for k, v in given.items()))
