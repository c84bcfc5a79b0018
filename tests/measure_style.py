"""Measure how the notebooks read: `python tests/measure_style.py [folder of notebooks]` prints one table.

A function's tokens are those of Python's tokenizer, without comments, line ends and docstrings. A cell that a reader
sees run is a code cell that is neither exported nor hidden."""

import ast
import io
import json
import sys
import tokenize
from pathlib import Path

import numpy as np

SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
EXPORT = ("#| export", "#|export", "#| exporti")
HIDDEN = ("#| hide", "#| default_exp", "#| include: false")


def tokens(code: str) -> list[tokenize.TokenInfo]:
    "Return the tokens of a piece of code that say something."
    return [
        t for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type not in SKIPPED
    ]


def without_docstring(function: ast.AST) -> str:
    "Return the code of a function without its docstring."
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:] or [ast.Pass()]
    return ast.unparse(function)


def functions(code: str) -> list[int]:
    "Return the tokens of each function in a cell."
    nodes = ast.walk(ast.parse(code))
    return [
        len(tokens(without_docstring(n)))
        for n in nodes
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def cells(notebook: Path) -> list[tuple[str, str]]:
    "Return kind (prose, exported, run) and text of each cell that a reader meets."
    found = []
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if not text.strip() or text.startswith(HIDDEN):
            continue
        kind = (
            "prose"
            if cell["cell_type"] == "markdown"
            else "exported"
            if text.startswith(EXPORT)
            else "run"
        )
        found.append((kind, text))
    return found


def spread(values: list[int], *quantiles: float) -> str:
    "Return the median, other quantiles and the largest of some values."
    return (
        " / ".join(f"{np.quantile(values, q):.0f}" for q in (0.5, *quantiles, 1)) if values else "-"
    )


def measure(notebooks: list[Path]) -> dict[str, str]:
    "Return each quantity of DESIGN's table as text."
    books = [cells(n) for n in notebooks]
    exported = [t for book in books for k, t in book if k == "exported"]
    bodies = [
        t
        for t in exported
        if not all(line.startswith(("#", "import", "from", " ", ")")) for line in t.splitlines())
    ]
    lines = [
        line
        for t in exported
        for line in t.splitlines()
        if line.strip() and not line.startswith("#|")
    ]
    code_lines = [line for line in lines if not line.strip().startswith("#")]
    follows = [book[i + 1 :] for book in books for i, (k, _) in enumerate(book) if k == "exported"]
    alone = [next((k for k, _ in rest if k != "prose"), "") == "exported" for rest in follows]
    words = sum(len(t.split()) for book in books for k, t in book if k == "prose")
    run = sum(k == "run" for book in books for k, _ in book)
    sizes = [n for t in exported for n in functions(t)]
    return {
        "tokens in a function, median / 90th / largest": spread(sizes, 0.9),
        "tokens in a line of code": f"{sum(len(tokens(t)) for t in exported) / len(code_lines):.1f}",
        "lines of an exported cell, median / 90th / largest": spread(
            [len(t.splitlines()) for t in bodies], 0.9
        ),
        "cells a reader sees run, for each exported cell": f"{run / len(exported):.1f}",
        "exported cells followed by another one before any example": f"{100 * np.mean(alone):.0f} %",
        "words of prose for each exported line": f"{words / len(lines):.1f}",
        "lines over 120 characters": str(sum(len(line) > 120 for line in lines)),
        "exported lines": str(len(lines)),
    }


def main():
    "Print the table: the book, the engine, the doors and all."
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "nbs"
    parts = {
        "book": sorted(root.glob("[01]*.ipynb")),
        "engine": sorted(root.glob("engine/*.ipynb")),
        "doors": sorted(root.glob("doors/*.ipynb")),
    }
    parts["all"] = [n for part in parts.values() for n in part]
    columns = {
        name: measure(books)
        for name, books in parts.items()
        if any(k == "exported" for b in books for k, _ in cells(b))
    }
    width = max(map(len, columns["all"]))
    print(f"{'':{width}}", *(f"{name:>16}" for name in columns))
    for quantity in columns["all"]:
        print(f"{quantity:{width}}", *(f"{column[quantity]:>16}" for column in columns.values()))


if __name__ == "__main__":
    main()
