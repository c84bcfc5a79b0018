"The README says what its code prints, what the kept run measured, and what the first page of the site says."

import contextlib, io, json, re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_its_python_prints_what_it_shows():
    *blocks, last = re.findall(r"```python\n(.*?)```\n", README, re.S)
    shown = re.match(r"\n((?:    .*\n)+)", README[README.index(last) + len(last) + 4 :])[1]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec("\n".join([*blocks, last]), {})
    assert out.getvalue() == re.sub("^    ", "", shown, flags=re.M)


def test_its_numbers_are_those_of_the_run_that_is_kept():
    kept = json.loads((ROOT / "papers" / "results" / "quickstart.json").read_text())
    number = lambda x, sign="": f"{100 * x:{sign}.1f}"
    told = lambda row, value, sign="": (
        f"{number(row[value], sign)} [{number(row['low'], sign)}, {number(row['high'], sign)}]"
    )
    assert len(kept["scores"]) == 5 and len(kept["gains"]) == 4
    for policy, row in kept["scores"].items():
        assert (
            f"| {policy} | "
            + " | ".join(told(row[m], "mean") for m in ("solve_p", "solve_r", "solve_f1"))
            + f" | {row['solve_f1']['n']} |\n"
            in README
        )
    for what, row in kept["gains"].items():
        assert f"- {what}: {told(row['solve_f1'], 'difference', '+')} points\n" in README


def test_the_first_page_of_the_site_says_the_same():
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text("utf-8"))["cells"]
    plain = lambda s: s.replace("](nbs/", "](")
    for said in ("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"):
        assert plain(said).strip() in plain(README)
