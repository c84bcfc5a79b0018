"What every page and every module must keep, so that a reader who follows a link, a figure or an import finds something there."

import ast
import json
import os
import re
import warnings
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import apart
import pytest
import yaml

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
PACKAGE = ROOT / "toolrl_lit"
PAGES = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
RUNS = sorted(p for p in (ROOT / "runs").rglob("*.ipynb") if "out" not in p.parts)
CHAPTERS = [p for p in PAGES if p.parent == NBS and re.match(r"\d\d", p.name)]


def known(found, exceptions, what):
    """Compare what a rule finds with what is known to break it: what is new fails. A line of the list that nothing needs
    any more is warned of, and goes."""
    found, exceptions = set(found), set(exceptions)
    assert not found - exceptions, f"{what}:\n" + "\n".join(sorted(map(str, found - exceptions)))
    for line in sorted(map(str, exceptions - found)):
        warnings.warn(f"{what}: mended, take it out of the list: {line}", stacklevel=2)


@cache
def cells(page: Path) -> list[dict]:
    return json.loads(page.read_text("utf-8"))["cells"]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def prose(page: Path) -> str:
    if page.suffix == ".md":
        return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    return "\n\n".join(text(c) for c in cells(page) if c["cell_type"] == "markdown")


def at(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Pages ---------------------------------------------------------------------------------------------------------------

TEXTS = [
    *PAGES,
    *RUNS,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "papers" / "README.md",
]


def links(page: Path) -> list[str]:
    plain = re.sub(r"`[^`\n]*`", "", prose(page))
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", plain)
    found += re.findall(r"(?:href|src)=\"([^\"]+)\"", plain)
    return [
        link for link in found if not re.match(r"[a-z][a-z0-9+.-]*:|#|mailto:|attachment:", link)
    ]


def anchors(page: Path) -> set[str]:
    "Return the anchors of a page as pandoc makes them from its headings."
    heads = re.findall(r"^#{1,6}\s+(.+?)\s*(?:\{#([\w-]+)\})?\s*$", prose(page), re.M)
    names = set()
    for head, name in heads:
        bare = re.sub(r"[`*$]|\]\([^)]*\)|\[", "", head).lower()
        slug = re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", bare).strip())
        names |= {name or re.sub(r"^[^a-z]+", "", slug), slug.replace(".", "")}
    return names


def test_every_link_resolves():
    broken = []
    for page in TEXTS:
        for link in links(page):
            path, _, anchor = link.partition("#")
            target = Path(os.path.normpath(page.parent / path))
            if not target.exists():
                hint = " (link to the .ipynb)" if target.suffix == ".html" else ""
                broken.append(f"{at(page)}: {link} is not there{hint}")
            elif page.suffix == target.suffix == ".ipynb" and anchor:
                if anchor.lower() not in anchors(target) and not documented(target, anchor):
                    broken.append(f"{at(page)}: {link}: no such heading")
    known(broken, BROKEN_LINKS, "links that lead nowhere")


def documented(page: Path, name: str) -> bool:
    "Return whether a page documents this name, so that nbdev makes a heading for it."
    code = "\n".join(text(c) for c in cells(page) if c["cell_type"] == "code")
    return bool(
        re.search(rf"^(?:class|def)\s+{re.escape(name.split('.')[-1])}\b", code, re.M | re.I)
    )


def contents(item) -> list[str]:
    if isinstance(item, str):
        return sorted(at(p).removeprefix("nbs/") for p in NBS.glob(item)) if "*" in item else [item]
    pages = [item["file"]] if "file" in item else [item["href"]] if "href" in item else []
    parts = item.get("contents", [])
    return pages + [
        p for part in ([parts] if isinstance(parts, str) else parts) for p in contents(part)
    ]


def test_the_sidebar_holds_every_page_once_and_nothing_else():
    sidebar = yaml.safe_load((NBS / "sidebar.yml").read_text("utf-8"))["website"]["sidebar"]
    listed = [p for p in contents(sidebar) if not p.startswith("http")]
    assert len(listed) == len(set(listed)), "a page is listed twice"
    there = {p.relative_to(NBS).as_posix() for p in PAGES}
    known([f"not in the sidebar: {p}" for p in there - set(listed)], [], "pages")
    known([f"no such page: {p}" for p in set(listed) - there], [], "entries of the sidebar")


def test_every_page_begins_with_a_cell_of_its_title_and_what_it_is_about():
    "The site takes both from the first cell with text, and drops what else is in there."
    odd = []
    for page in PAGES:
        first = next(text(c) for c in cells(page) if c["cell_type"] == "markdown").strip()
        title, *rest = [line for line in first.splitlines() if line]
        quoted = [line for line in rest if line.startswith(">")]
        short = page.parent.name == "solutions"  # a title says what these are about
        if not (title.startswith("# ") and (quoted or short) and quoted == rest):
            odd.append(at(page))
    known(odd, ODD_FIRST_CELLS, "first cells that are not a title and a line after >")


def outputs(page: Path):
    for cell in cells(page):
        for output in cell.get("outputs", []):
            yield cell, output


def test_every_figure_has_a_picture_beside_it():
    blank = {}
    for page in PAGES + RUNS:
        for cell, output in outputs(page):
            data = output.get("data", {})
            drawn = "plotly" in "".join(data.get("text/html", "")) + " ".join(data)
            if drawn and not {"image/png", "image/svg+xml"} & data.keys():
                blank.setdefault(at(page), []).append(text(cell).splitlines()[-1][:80])
    for page, lines in blank.items():
        print(page, *lines, sep="\n    ")
    known(blank, FIGURES_WITHOUT_PICTURE, "figures that GitHub and JupyterLab cannot show")


MACHINE = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users|private|var/folders)/[\w.~-]+")


def test_no_stored_output_names_a_folder_of_a_machine():
    named = []
    for page in PAGES + RUNS:
        for _, output in outputs(page):
            data = output.get("data", {})
            shown = ["".join(output.get("text", [])), *output.get("traceback", [])]
            shown += ["".join(v) for k, v in data.items() if k.startswith("text/")]
            named += [f"{at(page)}: {hit}" for s in shown for hit in MACHINE.findall(s)]
    known(named, MACHINE_PATHS, "paths of the machine that executed a page")


def test_every_chapter_ends_with_what_was_learnt_and_exercises_with_solutions():
    unfinished = []
    for page in CHAPTERS:
        said, solutions = prose(page), NBS / "solutions" / page.name
        back = prose(solutions) if solutions.exists() else ""
        wanted = {
            "What was learnt": re.search(r"^## What was learnt\s*$", said, re.M),
            "Exercises": re.search(r"^## Exercises\s*$", said, re.M),
            "solutions": solutions.exists(),
            "link to the solutions": f"](solutions/{page.name}" in said,
            "link back": f"](../{page.name}" in back,
        }
        if missing := [what for what, there in wanted.items() if not there]:
            unfinished.append(f"{at(page)}: no {', '.join(missing)}")
    known(unfinished, UNFINISHED_CHAPTERS, "chapters that are not finished")


@pytest.mark.slow
def test_the_site_can_be_built(tmp_path):
    "Each page goes through what `nbdev_proc_nbs` does to it, from the repository's root, as there."
    pages, log = [at(p) for p in PAGES], tmp_path / "log"
    said = tmp_path / "failed.json"
    assert apart.run(apart.processed, ROOT, pages, said, log=log, IN_TEST="1") == 0, log.read_text()
    failed = json.loads(said.read_text())
    for page in failed.keys() - SITE_FAILS:
        print(page, failed[page], sep=": ")
    known(failed, SITE_FAILS, "pages that stop the site")


# Modules -------------------------------------------------------------------------------------------------------------

MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))


def exported_to(page: Path) -> str | None:
    "Return the module that a page makes."
    found = re.search(r"^#\| *default_exp +(\S+)", "\n".join(map(text, cells(page))), re.M)
    return found and found[1]


ORDER = [
    module for page in CHAPTERS if (module := exported_to(page))
]  # as the chapters are numbered


def name(path: Path) -> str:
    "Return a module's name without the package: schema, engine.calls."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


NAMES = {name(p) for p in MODULES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path, deep: bool = True):
    "Yield (module of the house, imported name or None) of each import, those inside functions too."
    nodes = ast.walk(tree(path)) if deep else top_level(tree(path))
    here = ["toolrl_lit", *path.relative_to(PACKAGE).parts[:-1]]
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("toolrl_lit."):
                    yield alias.name.removeprefix("toolrl_lit."), None
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module.split(".")[0] != "toolrl_lit":
                continue
            module = module.partition(".")[2]
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                yield (inner, None) if inner in NAMES else (module, alias.name)


def top_level(module: ast.Module):
    "Yield the statements that run when a module is imported, and not under TYPE_CHECKING."
    todo = list(module.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]


COMMAND_LINE = ("doors.cli", "doors.main")  # and what these names begin


def may_import(here: str, there: str) -> bool:
    "Return whether the rules of the house let the module `here` import the module `there`."
    if there == here or there == "":
        return True
    floor, target = here.split(".")[0], there.split(".")[0]
    if target == "engine":
        return True
    if floor == "engine":
        return there == "schema"
    if here == "__main__" or here.startswith(COMMAND_LINE):
        return True
    if target == "doors":  # a door may be in several modules, such as author and author_checks
        return floor == "doors" and here.split("_")[0] == there.split("_")[0]
    if target == "bench":
        return floor == "bench"
    if floor in ("doors", "bench"):
        return True
    return here in ORDER and there in ORDER and ORDER.index(there) < ORDER.index(here)


def test_imports_go_down():
    up = {
        f"{name(path)} -> {there}"
        for path in MODULES
        for there, _ in imports(path)
        if not may_import(name(path), there)
    }
    known(up, IMPORTS_THAT_GO_UP, "imports against the rules of the house")


def test_no_private_name_crosses_modules():
    crossing = {
        f"{name(path)} takes {there}.{what}"
        for path in MODULES
        for there, what in imports(path)
        if what and what.startswith("_") and not what.startswith("__")
    }
    known(crossing, PRIVATE_NAMES, "private names of other modules")


def test_no_modules_import_each_other_in_a_circle():
    graph = {name(p): {m for m, _ in imports(p, deep=False)} - {name(p)} for p in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        raise AssertionError("a circle: " + " <- ".join(e.args[1])) from None


def test_no_module_is_long():
    long = {name(p) for p in MODULES if len(p.read_text("utf-8").splitlines()) > 460}
    known(long, LONG_MODULES, "modules of more than 460 lines")


# a docstring that begins with one of these begins with no verb
NO_VERB = set(
    """a all an and any as at both by each every everybody everything for from here how if in it its itself just least most
    new no nobody none nothing number of on one only other our out per same some somebody something such that the their
    them there these they this those three true false two under we what whatever when where whether which who whole
    whose why with without your is
    advantage attention base checksum entry environment frobenius gb golden greedy json layer log-probability lower mean
    model paired parameter plotly python question reinforcement relative reward row size solve-f1 stage token tool toolset
    training value weight""".split()
)
# verbs that end as only nouns and adjectives usually do
VERBS = set(
    "need seed speed feed proceed embed shed question mention position partition edit".split()
)


def verb_first(doc: str) -> bool:
    """Return whether the first word of a docstring can be a verb: it is no known noun, has no ending of nouns (-s, -ed,
    -tion, -ity), and the line is no heading that ends in a colon."""
    first = re.match(r"[\s`\"']*([A-Za-z0-9'-]*)", doc)[1].lower()
    if first in VERBS:
        return True
    noun = re.search(r"(?<!s)s$|ed$|tion$|ity$|\d|'", first)
    return bool(first) and first not in NO_VERB and not noun and not doc.rstrip().endswith(":")


def public(path: Path):
    "Yield (name, node) of what a module exports, and of the public methods of its classes."
    body = tree(path).body
    exported = next(
        (
            ast.literal_eval(n.value)
            for n in body
            if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
        ),
        [],
    )
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        patched = any("patch" in ast.dump(d) for d in node.decorator_list)
        if node.name.startswith("_") or not (node.name in exported or patched):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    if not part.name.startswith("_"):
                        yield f"{node.name}.{part.name}", part


def test_every_public_name_says_what_it_does_verb_first():
    """Functions and methods begin with a verb. A class may be a noun ("A tool call ..."), and so may a property
    and what a base class of another library has told already, such as a callback's `on_step_end`."""
    silent = {}
    for path in MODULES:
        for what, node in public(path):
            doc = ast.get_docstring(node) or ""
            decorated = " ".join(ast.dump(d) for d in node.decorator_list)
            if isinstance(node, ast.ClassDef) or "property" in decorated:
                fine = bool(doc) or "property" in decorated
            else:
                inherited = "." in what and re.match(r"on_[a-z_]+$|forward$|close$", node.name)
                fine = verb_first(doc) or (inherited and not doc)
            if not fine:
                silent.setdefault(name(path), []).append(what)
    for module, names in silent.items():
        print(module, *names, sep="\n    ")
    known(silent, DOCSTRINGS, "modules with names whose docstring does not begin with a verb")


# What breaks a rule today. Lists only get shorter: a line that nothing needs any more is warned of. ------------------

BROKEN_LINKS: list[str] = []
ODD_FIRST_CELLS: list[str] = []
FIGURES_WITHOUT_PICTURE: list[str] = []
MACHINE_PATHS: list[str] = []
UNFINISHED_CHAPTERS: list[str] = []
SITE_FAILS: list[str] = []
IMPORTS_THAT_GO_UP: list[str] = []
PRIVATE_NAMES: list[str] = []
LONG_MODULES: list[str] = []
DOCSTRINGS: list[str] = []
