"""Keep what an executed run printed and drew in its notebook, with the command, the machine and the minutes.

python runs/keep.py difficulty        from runs/out/difficulty/difficulty.ipynb into runs/difficulty.ipynb
"""

import argparse
import json
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path

import nbformat
from nbdev.clean import nbdev_clean

from toolrl_lit.doors.doctor import computes_in_16_bits, graphics_check
from toolrl_lit.doors.runs import find_notebook
from toolrl_lit.engine.store import UserError, write_text

HEADING = "## This execution"
ROOT = Path(__file__).resolve().parents[1]


def machine() -> str:
    "Return the processor, its cores and its graphics cards in words."
    lines = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    model = lines[0].partition(":")[2].strip() if lines else "an unnamed processor"
    bits = "with" if computes_in_16_bits() else "without"
    card = graphics_check().found
    cards = "no graphics card" if card == "none found" else card
    cores = len(os.sched_getaffinity(0))
    named = f"{cores} core{'s' if cores > 1 else ''} of {model}"
    return f"{named} {bits} instructions for 16 bits, {cards}"


def command(name: str, parameters: dict) -> str:
    "Return the command of a run, as it is typed in the repository's folder."
    given = {k: v if isinstance(v, str) else json.dumps(v) for k, v in parameters.items()}
    options = [f"-p {shlex.quote(f'{k}={v}')}" for k, v in given.items() if k != "out"]
    return " ".join([f"toolrl run {name}", *options]).replace(str(ROOT), "$PWD")


def kept(outputs: list, folder: Path, name: str) -> list:
    "Return outputs without progress bars and without the place of the run's folder on this machine."
    left = [o for o in outputs if o.get("name") != "stderr"]
    return [nbformat.from_dict(_elsewhere(o, str(folder), f"runs/out/{name}")) for o in left]


def _elsewhere(value, old: str, new: str):
    "Return a value of JSON with one text in place of another in all its strings."
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {k: _elsewhere(v, old, new) for k, v in value.items()}
    return [_elsewhere(v, old, new) for v in value] if isinstance(value, list) else value


def keep(name: str, folder: Path) -> Path:
    "Write the outputs of a finished run into its notebook. Raises `UserError` if the run has not ended or had another source."
    source = find_notebook(name)
    executed = folder / source.name
    if not executed.exists():
        raise UserError(f"{executed}: there is no executed notebook; run `toolrl run {name}` first")
    ran, notebook = nbformat.read(executed, 4), nbformat.read(source, 4)
    told = ran.metadata.papermill
    if told.exception or any(c.metadata.papermill.status != "completed" for c in ran.cells):
        raise UserError(f"{executed}: the run has not ended well; the same command goes on")
    outputs = {c.id: c for c in ran.cells if c.cell_type == "code"}
    notebook.cells = [c for c in notebook.cells if not c.source.startswith(HEADING)]
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        if cell.id not in outputs or outputs[cell.id].source != cell.source:
            raise UserError(f"{source}: cell {cell.id} is not what was executed; run it again")
        cell.outputs = kept(outputs[cell.id].outputs, folder, name)
    day = datetime.fromisoformat(told.end_time).date()
    note = f"`{command(name, told.parameters)}` on {day}, {told.duration / 60:.1f} minutes on {machine()}."
    notebook.cells.append(nbformat.v4.new_markdown_cell(f"{HEADING}\n\n{note}"))
    write_text(source, nbformat.writes(notebook) + "\n")
    nbdev_clean(str(source))
    return source


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a run's name, such as difficulty")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/out/NAME)")
    given = parser.parse_args()
    folder = given.out or Path("runs/out") / find_notebook(given.name).stem
    try:
        print(f"kept: {keep(given.name, folder.resolve())}")
    except UserError as e:
        sys.exit(f"error: {e}")
