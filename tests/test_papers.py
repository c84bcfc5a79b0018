"What papers/ says can be read, adds up and points at things that exist."

import json
import re
from pathlib import Path

import pandas as pd

from toolrl_lit.evaluate import Evaluation

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "papers"


def test_main_table_adds_up():
    table = pd.read_csv(PAPERS / "table2.csv")
    columns = [
        "solve_p",
        "solve_r",
        "solve_f1",
        "toolhop_ac",
        "taubench_pass1",
        "rotbench_ts",
        "rotbench_pi",
        "rotbench_cf",
    ]
    assert (
        abs(table[columns].mean(axis=1) - table["avg"]) < 0.011
    ).all()  # as printed, two decimals
    assert table["version"].str.contains("FTRL").sum() == 12
    assert not table.duplicated(["family", "version"]).any()


def test_claims_point_at_notebooks():
    claims = pd.read_csv(PAPERS / "claims.csv")
    assert claims["id"].is_unique and not claims.isna().any(axis=None)
    assert set(claims["status"]) <= {
        "method checked",
        "numbers checked",
        "seen in a small model",
        "not seen in a small model",
        "cannot be told at this scale",
    }
    for name in claims["notebook"]:
        assert (ROOT / "nbs" / f"{name}.ipynb").exists(), name


def test_links_of_the_reading_notes_exist():
    links = re.findall(r"\]\((\.\./[^)]+)\)", (PAPERS / "README.md").read_text("utf-8"))
    assert len(links) > 8
    for link in links:
        assert (PAPERS / link).exists(), link


def test_the_reading_notes_name_all_that_we_measured():
    named = re.findall(r"\]\((results/[^)]+)\)", (PAPERS / "README.md").read_text("utf-8"))
    kept = {f"results/{p.name}" for p in (PAPERS / "results").iterdir()}
    assert set(named) == kept


def test_references_are_whole():
    text = (PAPERS / "references.bib").read_text("utf-8")
    entries = re.findall(r"^@(\w+)\{([^,]+),\n(.*?)\n\}$", text, re.M | re.S)
    assert len(entries) == text.count("\n@") + 1 and len({key for _, key, _ in entries}) == len(
        entries
    )
    for kind, key, body in entries:
        assert body.count("{") == body.count("}"), key
        for field in ("title", "author", "year"):
            assert re.search(rf"^\s+{field}\s+=", body, re.M), (key, field)


def test_the_run_of_difficulty_shows_what_was_measured():
    cells = [
        "".join(c["source"])
        for c in json.loads((ROOT / "runs" / "difficulty.ipynb").read_text("utf-8"))["cells"]
    ]
    (told,), kept = (
        [c for c in cells if c.startswith("## Measured")],
        PAPERS / "results" / "difficulty.json",
    )
    rows = [
        [x.strip() for x in line.strip("| ").split(" | ")]
        for line in told.splitlines()
        if line.startswith("| ")
    ]
    rows = [r for r in rows if r[0] not in ("form", "---")]
    assert kept.exists() == bool(rows) != ("not been measured yet" in told)
    numbers = json.loads(kept.read_text()) if kept.exists() else {"changes": {}, "sizes": {}}
    known = numbers["changes"] | numbers["sizes"]
    assert {r[0] for r in rows} == known.keys()
    for name, tools, *_, score, n in rows:
        assert (
            tools.split()[0].lstrip("+") == f"{known[name]['tools']['mean']:.1f}"
            and int(n) == known[name]["tools"]["n"]
        ), name
        assert score.split()[0].lstrip("+") == format(
            known[name]["policy's Solve-F1"]["mean"], ".2f"
        ), name


def test_results_of_the_ablation_are_of_its_parameters_and_of_no_machine():
    kept, cells = (
        PAPERS / "results" / "ablation",
        [
            "".join(c["source"])
            for c in json.loads((ROOT / "runs" / "ablation.ipynb").read_text("utf-8"))["cells"]
        ],
    )
    (measured,) = [c for c in cells if c.startswith("## Measured")]
    assert kept.exists() != ("not been measured yet" in measured)
    if not kept.exists():
        return
    chosen: dict = {}
    exec(next(c for c in cells if c.startswith('out = "out/ablation"')), chosen)
    known = json.loads((kept / "parameters.json").read_text())
    names = ("train_environments", "test_environments", "data_seed", "oversample", "max_turns")
    assert {n: known[n] for n in names} == {
        n: chosen[n] for n in names
    } and known.keys() - names == {"train_sha256", "test_sha256"}
    for path in kept.glob("*/scores.json"):
        scores = Evaluation.load(path)
        assert (
            len({r.environment for r in scores.rows})
            == len(scores.rows)
            == chosen["test_environments"]
        )
        assert scores.name == path.parent.name and scores.settings["environments"] == "test.jsonl"
        if scores.name == "warm start":
            continue
        rows = json.loads((path.parent / "rl" / "log.json").read_text())
        assert [r["step"] for r in rows] == list(range(1, 9)) and all(
            0 <= r["solve_precision"] <= 1 for r in rows
        )
