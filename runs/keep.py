"""Keep what an executed run printed and drew in its notebook, with the command, the machine and the minutes.

python runs/keep.py difficulty        from runs/out/difficulty/difficulty.ipynb into runs/difficulty.ipynb
"""

import argparse
import os
import shlex
from datetime import datetime
from pathlib import Path

import nbformat

from toolrl_lit.doors.doctor import computes_in_16_bits, graphics_check
from toolrl_lit.doors.runs import find_notebook
from toolrl_lit.engine.store import UserError, write_text

HEADING = "## This execution"


def machine() -> str:
    "Return the processor, its cores and its graphics cards in words."
    named = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    model = named[0].partition(":")[2].strip() if named else "an unnamed processor"
    bits = "with" if computes_in_16_bits() else "without"
    card = graphics_check().found
    cards = "no graphics card" if card == "none found" else card
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model} {bits} instructions for 16 bits, {cards}"
    )


def command(name: str, cells: list) -> str:
    "Return the command of a run, with the parameters that papermill put in."
    given = [c.source for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
    lines = [line.partition(" = ") for line in "\n".join(given).splitlines() if " = " in line]
    options = [f"-p {shlex.quote(f'{key}={value}')}" for key, _, value in lines if key != "out"]
    return " ".join([f"toolrl run {name}", *options])


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
    if told.exception is not False or not told.duration:
        raise UserError(f"{executed}: the run has not ended well; the same command goes on")
    outputs = {c.id: c for c in ran.cells if c.cell_type == "code"}
    notebook.cells = [c for c in notebook.cells if not c.source.startswith(HEADING)]
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        if cell.id not in outputs or outputs[cell.id].source != cell.source:
            raise UserError(f"{source}: cell {cell.id} is not what was executed; run it again")
        cell.outputs = kept(outputs[cell.id].outputs, folder, name)
        for output in cell.outputs:
            output.pop("execution_count", None)
            if output.output_type == "execute_result":
                output.execution_count = None
    day = datetime.fromisoformat(told.end_time).date()
    note = f"{HEADING}\n\n`{command(name, ran.cells)}` on {day}, {told.duration / 60:.1f} minutes on {machine()}."
    notebook.cells.append(nbformat.v4.new_markdown_cell(note))
    write_text(source, nbformat.writes(notebook) + "\n")
    return source


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a run's name, such as difficulty")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/out/NAME)")
    given = parser.parse_args()
    folder = given.out or Path("runs/out") / find_notebook(given.name).stem
    print(f"kept: {keep(given.name, folder.resolve())}")
