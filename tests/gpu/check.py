"""What one GPU has to show, in about ten minutes: `make gpu-check`. One JSON and one page come out, named by the device. A stage that is done is not
done again, so the check may be stopped at any time, and the same command goes on."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import torch

from toolrl_lit.schema import write_text
from toolrl_lit.train import make_config

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs"
PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "unsloth", "bitsandbytes", "xformers")
NO_GPU = "no GPU here: nothing was checked on one. What differs there is in tests/test_backend.py, tests/gpu and runs/bench/"
SPEED, MEMORY, ESTIMATE = (
    1.5,
    0.5,
    0.15,
)  # the bars: times TRL's speed, of its memory, off the estimate


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts() -> dict:
    "Return what identifies device and software: results of others are not gone on with."
    told = dict(device="CPU", python=".".join(map(str, sys.version_info[:3])))
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        told |= dict(
            device=card.name,
            memory_gb=round(card.total_memory / 1e9, 1),
            capability=f"{card.major}.{card.minor}",
            cuda=torch.version.cuda,
            gpus=torch.cuda.device_count(),
        )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return told | {"commit": commit.stdout.strip()} | {p: version(p) for p in PACKAGES}


# -- stages


def tests(*paths: str) -> Callable[[Path], dict]:
    "Return a stage that runs tests, and says how many passed, were skipped and failed, and which."

    def run(folder: Path) -> dict:
        report = folder / "tests.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *paths]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        if not report.exists():
            raise RuntimeError("pytest has not come to its report")
        cases = ET.parse(report).findall(".//testcase")
        bad = [
            c.get("name")
            for c in cases
            if c.find("failure") is not None or c.find("error") is not None
        ]
        skipped = sum(c.find("skipped") is not None for c in cases)
        return dict(passed=len(cases) - len(bad) - skipped, skipped=skipped, failed=bad)

    return run


def measured(size: str, *backends: str, **parameters) -> Callable[[Path], list]:
    "Return a stage that runs runs/bench/backend.ipynb; those of a size share a folder, so they have the same weights and are compared."

    def run(folder: Path) -> list:
        import papermill

        folder = folder.parent / size
        papermill.execute_notebook(
            str(RUNS / "bench" / "backend.ipynb"),
            None,
            parameters=parameters | dict(out=str(folder), sizes=[size], backends=list(backends)),
            progress_bar=False,
            kernel_name="python3",
        )
        return json.loads((folder / "metrics.json").read_text())

    return run


def quickstart(folder: Path) -> dict:
    "Train SmolLM2 as the quickstart does, without its controls; return its learning curve, and the seconds of its stages."
    import papermill

    how = dict(out=str(folder / "run"), controls=False)
    papermill.execute_notebook(
        str(RUNS / "quickstart.ipynb"),
        None,
        parameters=how,
        progress_bar=False,
        kernel_name="python3",
    )
    log = json.loads((folder / "run" / "rl" / "log.json").read_text())
    seconds = json.loads((folder / "run" / "timings.json").read_text())
    return {
        "mean reward": [r["mean_reward"] for r in log if "mean_reward" in r],
        "seconds": seconds,
    }


def stages(tiny: bool) -> dict[str, Callable[[Path], list | dict]]:
    "Return what is done, by name and in order; `tiny` is what a CPU does of it in half a minute."
    fast = ["unsloth", "unsloth-4bit"] if importlib.util.find_spec("unsloth") else []
    if tiny:
        how = dict(prompt_tokens=40, new_tokens=6, group=4, repeats=1)
        return {"models: tiny": measured("tiny", "trl", "plain", **how)}
    found = {"kernels and tiny models": tests("tests/gpu")} if fast else {}
    found["backends"] = tests("tests/test_backend.py")
    how = dict(prompt_tokens=1024, new_tokens=128, repeats=1)
    for size in ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"):
        for backend in ("plain", "trl", *fast):
            found[f"models: {size}, {backend}"] = measured(size, backend, **how)
    found["quickstart"] = quickstart
    preset = make_config("consumer-24gb")  # as many turns, as long, and as many at a time
    how = dict(
        prompt_tokens=preset.max_prompt_tokens,
        new_tokens=preset.max_new_tokens,
        group=preset.rollout_rows,
        update_rows=preset.group // preset.split_group,
        collect_rows=preset.collect_rows,
        limit_gb=24,
        repeats=1,
    )
    for backend in ("plain", *fast[:1]):
        name = f"consumer-24gb within 24 GB: {backend}"
        found[name] = measured("qwen3-4b", backend, **how)
    return found


# -- the page


def rows_of(done: dict, prefix: str) -> list[dict]:
    kept = [s["result"] for name, s in done.items() if name.startswith(prefix) and "result" in s]
    return [row for result in kept for row in result]


def number(value) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def table(rows: list[dict], columns: list[str]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for row in rows:
        cells = [v if isinstance(v := row.get(c), str) else number(v) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def bars(done: dict) -> list[str]:
    "Say of each bar whether it is met, by the rows that were measured."
    rows, said = rows_of(done, "models"), []
    trl = {r["size"]: r for r in rows if r["backend"] == "trl"}
    for r in rows:
        if r["backend"] == "trl" or r["size"] not in trl:
            continue
        base = trl[r["size"]]
        speed = r["update tokens/s"] / base["update tokens/s"]
        memory = r["update GB"] / base["update GB"]
        met = "met" if speed >= SPEED or memory <= MEMORY else "MISSED"
        said.append(
            f"- {met}: {r['size']}, {r['backend']}: updates {speed:.2f} times as fast as TRL's, in {memory:.2f} of its memory "
            f"(bar: {SPEED} times, or {MEMORY})"
        )
    for r in [r for r in rows if r.get("estimated update GB")]:
        off = r["update GB"] / r["estimated update GB"] - 1
        met = "met" if abs(off) <= ESTIMATE else "MISSED"
        said.append(
            f"- {met}: {r['size']}, {r['backend']}: {100 * off:+.0f} % off the estimate (bar: {100 * ESTIMATE:.0f} %)"
        )
    for r in rows_of(done, "consumer-24gb"):
        said.append(
            f"- met: {r['size']}, {r['backend']} ran within 24 GB, with updates of {r['update GB']:.1f} GB and rollouts of {r['rollout GB']:.1f}"
        )
    return said


def page(device: dict, done: dict, left: list[str]) -> str:
    "Return the page of a check, as far as it has come."
    lines = [f"# {device['device']}", "", "> What `make gpu-check` measured on this device", ""]
    lines += [", ".join(f"{k} {v}" for k, v in device.items() if v not in (None, "")), ""]
    if left:
        lines += [f"**Not done yet:** {', '.join(left)}. The same command goes on.", ""]
    for name, stage in done.items():
        if "failed" in stage:
            lines += [f"**{name} failed**: {stage['failed']}", ""]
        elif isinstance(stage["result"], dict) and "passed" in stage["result"]:
            r = stage["result"]
            lines += [
                f"**{name}**: {r['passed']} passed, {r['skipped']} skipped, {len(r['failed'])} failed {' '.join(r['failed'])}",
                "",
            ]
    if rows := rows_of(done, "models"):
        columns = [
            "size",
            "backend",
            "rollout tokens/s",
            "update tokens/s",
            "update GB",
            "estimated update GB",
            "largest difference of a log-probability",
        ]
        lines += ["## Speed and memory", "", *table(rows, columns), ""]
        if device["device"] != "CPU":
            lines += ["## Bars", "", *bars(done), ""]
    if told := done.get("quickstart", {}).get("result"):
        curve = ", ".join(f"{x:.2f}" for x in told["mean reward"])
        lines += ["## Quickstart", "", f"Mean reward of each update: {curve}", ""]
    return "\n".join(lines)


# -- the run


def go_on(out: Path, told: dict, tiny: bool) -> tuple[Path, dict]:
    "Return the file of this device, and what is done in it by the same software."
    name = re.sub(r"\W+", "-", told["device"]).strip("-").lower()
    file = out / f"{name}.json"
    if file.exists():
        before = json.loads(file.read_text())
        if before["facts"] == told and before["tiny"] == tiny:
            return file, before["stages"]
        print(f"{file}: of other software, and measured again")
    return file, {}


def check(out: Path, work: Path, minutes: float = 10, tiny: bool = False) -> Path:
    "Do what is left of the stages, in the folder `work`, as long as there is time to begin one; return the file with the results."
    told, begun = facts(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    file, done = go_on(out, told, tiny)
    if not done:  # what is there is of other software
        shutil.rmtree(work / file.stem, ignore_errors=True)
    todo = stages(tiny)
    for name, stage in todo.items():
        if "result" in done.get(name, {}):
            print(f"{name}: done before")
            continue
        if time.monotonic() - begun >= 60 * minutes:
            print(f"{minutes:g} minutes are over; the same command goes on")
            break
        print(f"{name} ...", flush=True)
        done[name] = attempted(stage, work / file.stem / re.sub(r"\W+", "-", name))
        print(f"{name}: {done[name].get('failed', 'done')}, {done[name]['seconds']} s", flush=True)
        save(file, told, tiny, done, todo)
    save(file, told, tiny, done, todo)
    if all("result" in done.get(name, {}) for name in todo):
        shutil.rmtree(work / file.stem, ignore_errors=True)  # models of many GB
    print(file.with_suffix(".md"))
    return file


def attempted(stage: Callable, folder: Path) -> dict:
    "Return the result of a stage, or the last line of its error, which does not hinder the other stages; and its seconds."
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    try:
        done = dict(result=stage(folder))
    except Exception as e:
        done = dict(failed=str(e).strip().splitlines()[-1][:500])
    return done | dict(seconds=round(time.monotonic() - begun, 1))


def save(file: Path, told: dict, tiny: bool, done: dict, todo: dict):
    "Write what is known by now, for machines and as a page."
    write_text(file, json.dumps(dict(facts=told, tiny=tiny, stages=done), indent=1))
    write_text(file.with_suffix(".md"), page(told, done, [n for n in todo if n not in done]))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "papers" / "results" / "gpu")
    parser.add_argument("--minutes", type=float, default=10, help="no stage is begun after these")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on any machine")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and not args.tiny:
        return print(NO_GPU)
    if importlib.util.find_spec("unsloth") is None:
        print("Unsloth is not installed, so it is left out: make install-gpu")
    check(args.out, ROOT / "runs" / "out" / "gpu-check", args.minutes, args.tiny)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
