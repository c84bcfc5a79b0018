"""The README is what the first page of the site says, and prints what the kept run measured.

README.md is written from nbs/index.ipynb by `python tests/test_readme.py` (`make readme`), since nbdev_readme needs quarto."""

import contextlib
import html
import io
import json
import re
from pathlib import Path

import numpy as np

from toolrl_lit.engine.curves import seed_interval

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "nbs" / "index.ipynb"
README = ROOT / "README.md"


def shown(output: dict) -> str:
    "Return an output as Markdown: tables as they are, text indented."
    data = output.get("data", {})
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    said = "".join(output.get("text") or data.get("text/plain", ""))
    return "\n".join("    " + line for line in said.rstrip().splitlines())


def rendered(index: Path) -> str:
    "Return the README that a notebook makes: what a reader of the site sees, with links from the repository's root."
    parts = []
    for cell in json.loads(index.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?!https?:|#)", "](nbs/", source.strip()))
            continue
        if not re.match(r"#\|\s*(hide|echo: false)", source):
            parts.append(f"```python\n{source.strip()}\n```")
        if not re.match(r"#\|\s*hide", source):
            parts += [shown(o) for o in cell["outputs"]]
    return "\n\n".join(filter(None, parts)) + "\n"


def test_the_readme_is_the_first_page_of_the_site():
    assert README.read_text("utf-8") == rendered(INDEX), "run: make readme"


def test_its_python_prints_what_it_shows():
    said = README.read_text("utf-8")
    *blocks, last = re.findall(r"```python\n(.*?)```\n", said, re.S)
    prints = re.match(r"\n((?:    .*\n)+)", said[said.index(last) + len(last) + 4 :])[1]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec("\n".join([*blocks, last]), {})
    assert out.getvalue() == re.sub("^    ", "", prints, flags=re.M)


def percent(x: float, sign: str = "") -> str:
    return f"{100 * x:{sign}.1f}"


def told(row: dict, value: str, sign: str = "") -> str:
    low, high = percent(row["low"], sign), percent(row["high"], sign)
    return f"{percent(row[value], sign)} [{low}, {high}]"


def listed(points, sign: str = "") -> str:
    *others, last = (percent(p, sign) for p in points)
    return f"{', '.join(others)} and {last}"


def less(row: dict) -> dict:
    "Return a difference the other way round."
    return dict(difference=-row["difference"], low=-row["high"], high=-row["low"])


def rounded(row: dict) -> str:
    mean, low, high = (round(100 * row[k]) for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def test_its_numbers_are_those_of_the_run_that_is_kept():
    kept = json.loads((ROOT / "papers" / "results" / "quickstart.json").read_text())
    said = README.read_text("utf-8")
    scores, gains = kept["scores"], kept["gains"]
    assert len(scores) == 8 and len(gains) == 9
    for policy, row in scores.items():
        assert row["solve_f1"]["n"] == 100
        gain = gains.get(f"{policy} against warm start")
        numbers = [told(row[m], "mean") for m in ("solve_p", "solve_r", "solve_f1")]
        numbers.append(told(gain["solve_f1"], "difference", "+") if gain else "")
        assert f"| {policy} | {' | '.join(numbers)} |\n" in said
    drawn = html.unescape((ROOT / "nbs" / "images" / "result.svg").read_text("utf-8"))
    for policy in scores.keys() - {"base"}:
        means = [percent(scores[policy][m]["mean"]) for m in ("solve_f1", "solve_r")]
        assert all(f">{label}</text>" in drawn for label in (policy, *means)), "run nbs/index.ipynb"
    recall = gains["trained against warm start"]["solve_r"]
    assert f"Solve-R changes by {told(recall, 'difference', '+')} points" in said
    ahead = less(gains["trained against warm start, no repeats, oracle's stop"]["solve_f1"])
    assert f"is {told(ahead, 'difference')} points ahead" in said
    lost = less(gains["shuffled rewards against warm start"]["solve_r"])
    assert f"solves {told(lost, 'difference')} points less than its start" in said
    more = gains["trained against shuffled rewards"]["solve_r"]
    assert f"{told(more, 'difference')} points more than that" in said
    shown_more = gains["more demonstrations against trained"]["solve_f1"]
    assert f"{told(shown_more, 'difference')} points of Solve-F1 above the trained" in said
    others = json.loads((ROOT / "papers" / "results" / "quickstart-seeds.json").read_text())
    runs = [run["gains"] for run in (kept, *others.values())]

    def by_seed(policy, metric):
        return [run[f"{policy} against warm start"][metric]["difference"] for run in runs]

    def over_seeds(points):
        low, high = seed_interval(np.array(points))
        return told(dict(mean=np.mean(points), low=low, high=high), "mean")

    trained, recall = (by_seed("trained", metric) for metric in ("solve_f1", "solve_r"))
    stopped = by_seed("warm start, no repeats, oracle's stop", "solve_f1")
    unrepeated = by_seed("warm start, no repeats", "solve_f1")
    ahead = over_seeds(np.subtract(trained, unrepeated))
    assert f"gain {listed(trained)} points of Solve-F1" in said
    assert f"{over_seeds(trained)} on average" in said
    assert f"with an oracle's stop {listed(stopped)}." in said
    assert f"gains {listed(unrepeated)} with nothing learnt,\n{ahead} points less" in said
    assert f"Solve-R changes by {listed(recall, '+')}, {over_seeds(recall)} on average:" in said
    tiny = json.loads((ROOT / "papers" / "results" / "reward_kinds.json").read_text())
    start, whole, precise, complete, product = (
        rounded(tiny["scores"][k]["Solve-F1"]) for k in ("start", "f1", "p", "r", "pr")
    )
    assert (
        f"{whole} percent; rewarded for precision alone {precise}, for completeness alone {complete},"
        f" for the product of both {product}."
        f" It starts with {start}; " in said
    )
    for name in ("Dr. GRPO", "DAPO", "Reinforce++"):
        end = tiny["algorithms"][f"{name.lower().replace('. ', '_')}, f1"]["Solve-F1"]["mean"]
        assert f"{name} ({round(100 * end)})" in said
    kept = json.loads((ROOT / "papers" / "results" / "transplant.json").read_text())
    gains = kept["gains over the start policy"]
    alone = gains["MLPs of layers 0 to 2 alone"]["Solve-F1"]
    left = gains["all but the MLPs of layers 0 to 2"]["Solve-F1"]
    assert f"bring {told(alone, 'difference')} points of Solve-F1 alone" in said
    assert f"without them {told(left, 'difference')} of the" in said
    longer = json.loads((ROOT / "papers" / "results" / "longer.json").read_text())
    gain = longer["gains"]["trained against imitation"]["solve_f1"]
    assert f"gain {told(gain, 'difference')} points of Solve-F1" in said


if __name__ == "__main__":
    README.write_text(rendered(INDEX), "utf-8")
