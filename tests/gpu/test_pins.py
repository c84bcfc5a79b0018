"constraints.txt and constraints-gpu.txt together name one version of everything that a machine with a GPU needs."

import json
import re
import subprocess
from pathlib import Path

import pytest
import uv

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "constraints.txt", ROOT / "constraints-gpu.txt"]
TOLD = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", re.MULTILINE)


def versions(text: str) -> dict[str, str]:
    return {re.sub(r"[-_.]+", "-", name.lower()): version for name, version in TOLD.findall(text)}


def resolved(python: str, *given: str) -> dict[str, str]:
    "Return what uv would install on Linux, by name."
    binary = Path(uv.__file__).parents[4] / "bin" / "uv"
    where = ["--python-platform", "x86_64-manylinux_2_28", "--python-version", python]
    found = subprocess.run(
        [binary, "pip", "compile", "-q", "--no-annotate", "setup.py", *where, *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "dns error" in found.stderr or "Failed to fetch" in found.stderr:
        pytest.skip("no package index can be reached")
    assert found.returncode == 0, found.stderr
    return versions(found.stdout)


def test_what_a_gpu_needs_resolves_and_is_pinned():
    pinned = [versions(file.read_text()) for file in FILES]
    assert not pinned[0].keys() & pinned[1].keys()
    extras = ["--extra=unsloth", "--extra=dev", "--extra=ray"]
    found = resolved("3.11.9", *[f"-c{file}" for file in FILES], *extras)
    assert {"triton", "bitsandbytes", "xformers", "torchao", "unsloth"} <= found.keys()
    both = pinned[0] | pinned[1]
    assert {n: v for n, v in found.items() if both.get(n) != v} == {}
    assert pinned[1].items() <= found.items()  # and nothing that nobody needs


def test_make_install_gpu_installs_by_both_files():
    told = subprocess.run(
        ["make", "-n", "install-gpu"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told[-1].endswith("-c constraints.txt -c constraints-gpu.txt -e '.[dev,ray,unsloth]'")


def test_the_notebook_for_a_rented_gpu_installs_what_resolves_on_its_python():
    cells = json.loads((ROOT / "nbs" / "howto" / "colab.ipynb").read_text())["cells"]
    said = next(t for c in cells if "INSTALL = " in (t := "".join(c["source"])))
    (python,) = re.findall(r"uv venv .*--python (\S+)", said)
    installs = [line for line in said.splitlines() if "uv pip install" in line]
    assert len(installs) == 2 and all("-c constraints.txt " in line for line in installs)
    binary = Path(uv.__file__).parents[4] / "bin" / "uv"
    options = subprocess.run([binary, "help", "pip", "install"], capture_output=True, text=True)
    for option in re.findall(r"--[a-z-]+", " ".join(installs)):
        assert option in options.stdout
    found, pinned = resolved(python, f"-c{FILES[0]}"), versions(FILES[0].read_text())
    # torch asks for the triton of its own release, where there is a GPU
    assert {"torch", "trl", "typer"} <= found.keys() & pinned.keys()
    assert all(found[name] == pinned[name] for name in ("torch", "trl", "transformers"))
