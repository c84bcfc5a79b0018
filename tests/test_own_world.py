"Worlds of your own: columns get the right types, bad values are named, splits share no entity, and golden answers can be had."

import datetime as dt
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_lit.build import build_environments
from toolrl_lit.collect import OraclePolicy
from toolrl_lit.doors.cli_build import build
from toolrl_lit.doors.cli_options import typed
from toolrl_lit.engine.domains import SPLITS
from toolrl_lit.engine.operations import refs_of
from toolrl_lit.engine.own import kind_of, parse_csv, read_tables, values_of
from toolrl_lit.engine.own_calls import dealt, groups_of
from toolrl_lit.engine.own_functions import parse_functions, read_functions, tools_in
from toolrl_lit.engine.own_live import (
    AUTHORIZATION,
    MOST_BYTES,
    http_talk,
    mcp_talk,
    read_service,
    record,
    request_of,
)
from toolrl_lit.engine.own_recorded import openapi_tools, operations, recorded_generator
from toolrl_lit.engine.own_recorded import parse_recording as parse
from toolrl_lit.engine.own_tables import many_of, one_of
from toolrl_lit.engine.own_worlds import read_world
from toolrl_lit.engine.splits import entities, overlaps
from toolrl_lit.evaluate import evaluate
from toolrl_lit.schema import UserError
from toolrl_lit.worlds import WORLDS, WorldGenerator

WOODS = "Oak Steel Cork Glass Birch Linen Copper Walnut".split()
THINGS = "Lamp Desk Shelf Chair Clock Vase Mirror Basket".split()
NAMES = [f"{w} {t}" for w in WOODS for t in THINGS]
HEADER = "sku,name,category,price,weight_grams,added,fragile"


def products(n=48):
    "A table of products, as CSV."
    rng, rows = random.Random(0), [HEADER]
    for i, name in enumerate(NAMES[:n]):
        price, weight = rng.randint(900, 30000) / 100, rng.randint(100, 9000)
        day = f"2031-{rng.randint(1, 6):02}-{rng.randint(1, 28):02}"
        flags = rng.choice(("office", "kitchen")), rng.choice(("yes", "no"))
        rows.append(f"SKU-{1000 + 7 * i},{name},{flags[0]},{price},{weight},{day},{flags[1]}")
    return "\n".join(rows) + "\n"


def orders(n=300, m=48):
    "Orders of customers for products, and the customers, as CSV."
    rng = random.Random(1)
    people = [
        f"{i},Ann{i} Reed,{rng.choice(('Oslo', 'Bergen'))},20{i % 20 + 10}-05-07" for i in range(40)
    ]
    rows = [
        f"{i},{rng.randrange(40)},{rng.choice(NAMES[:m])},2031-07-{rng.randint(1, 28):02},{rng.randint(1000, 90000) / 100}"
        for i in range(n)
    ]
    return "\n".join(["id,name,town,since", *people]), "\n".join(
        ["order_id,customer_id,product,placed,amount", *rows]
    )


@pytest.fixture()
def file(tmp_path):
    path = tmp_path / "products.csv"
    path.write_text(products())
    return path


@pytest.fixture()
def folder(tmp_path):
    inner = tmp_path / "shop"
    inner.mkdir()
    customers, bought = orders()
    for name, text in dict(products=products(), customers=customers, orders=bought).items():
        (inner / f"{name}.csv").write_text(text)
    return inner


def made(generator, split="train", n=8, seed=0, **more):
    more = {"difficulty": WORLDS["difficulty"]} | more
    kinds = getattr(generator, "kinds", None)
    more |= {"scenarios": kinds} if kinds and "scenarios" not in more else {}
    return build_environments(generator, n, seed, split=split, progress=False, **more).environments


def said(function, *arguments, **more):
    with pytest.raises(UserError) as e:
        function(*arguments, **more)
    return str(e.value)


# Types of columns ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "date": st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1)).map(str),
    "number": st.integers(-(10**9), 10**9).map(str) | st.decimals(-9999, 9999, places=2).map(str),
    "text": st.from_regex(r"[A-Z][a-z]{2,9} [A-Z][a-z]{2,9}( and so on)?", fullmatch=True),
    "code": st.from_regex(r"[A-Z]{2}-[1-9][0-9]{3}", fullmatch=True),
}
READ = {"date": str, "number": float, "text": str, "code": str}


@pytest.mark.parametrize("kind", COLUMNS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_column_has_the_type_of_its_cells_and_gives_their_values(kind, data):
    cells = data.draw(st.lists(COLUMNS[kind], min_size=3, max_size=40, unique=True))
    raw = parse_csv("\n".join(["what", *cells]), "x.csv")
    assert kind_of("what", raw.cells("what")) == kind
    assert values_of(raw, "what", kind) == [READ[kind](c) for c in cells]


@pytest.mark.parametrize("kind", ["date", "number"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_wrong_cell_among_many_is_named_by_file_line_and_column(kind, data):
    cells = data.draw(st.lists(COLUMNS[kind], min_size=10, max_size=40, unique=True))
    place = data.draw(st.integers(0, len(cells)))
    wrong = data.draw(st.sampled_from(["12;5O", "2031-02-30", "soon", "3 May", "--1"]))
    cells.insert(place, wrong)
    raw = parse_csv("\n".join(["first,what", *(f"a,{c}" for c in cells)]), "x.csv")
    assert kind_of("what", raw.cells("what")) == kind
    why = said(values_of, raw, "what", kind)
    assert why.startswith(f"x.csv, line {place + 2}, column what: expected a {kind}")
    assert repr(wrong) in why


def test_flags_enumerations_and_codes():
    assert kind_of("fragile", ["yes", "No"]) == "flag"
    assert kind_of("is_new", ["1", "0", "1"]) == "flag" and kind_of("seats", ["1", "0"]) == "number"
    assert kind_of("fragile", ["yes", "yes"]) != "flag"  # nothing to choose from
    assert kind_of("state", ["open", "sent"] * 3) == "enum" != kind_of("state", ["open", "sent"])
    assert kind_of("zip", ["7010", "7011", "7012"]) == "code" == kind_of("x", ["007", "008"])
    assert kind_of("email", ["a@b.example", "c@d.example"]) == "code"


def test_the_same_table_from_csv_sqlite_and_parquet(tmp_path, file):
    import pandas as pd

    frame = pd.read_csv(file)
    frame.to_parquet(tmp_path / "products.parquet")
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as db:
        frame.to_sql("products", db, index=False)
    worlds = [read_world(tmp_path / f) for f in ("products.csv", "products.parquet", "shop.sqlite")]
    assert len({w.notes()[0] for w in worlds}) == 1
    assert worlds[0].tables[0].rows == worlds[1].tables[0].rows == worlds[2].tables[0].rows
    row = worlds[0].tables[0].rows["SKU-1000"]
    assert (
        row["name"] == "Oak Lamp" and type(row["fragile"]) is bool and type(row["price"]) is float
    )


def test_a_database_says_its_keys_and_references(tmp_path):
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        db.executescript(
            "create table maker (nr text primary key, name text);"
            "create table gadgets (gid integer primary key, label text, by text references maker(nr), watts int);"
        )
        db.executemany(
            "insert into maker values (?, ?)", [(f"MK-{i}", f"Firm {i} Holm") for i in range(40)]
        )
        rows = [(i, f"Gadget x{i}", f"MK-{i % 40}", 100 + i) for i in range(200)]
        db.executemany("insert into gadgets values (?, ?, ?, ?)", rows)
        db.commit()
    own = read_world(tmp_path / "x.db")
    gadgets = next(f for f in own.tables if f.table.name == "gadgets")
    assert {c.name: c.of for c in refs_of(gadgets.table)} == {"by": "makers"}
    assert gadgets.rows["GA-00007"] == {
        "id": "GA-00007",
        "label": "Gadget x7",
        "by": "MK-7",
        "watts": 107,
    }
    for split in SPLITS:  # nothing refers to two tables, so no row is left out
        assert len(own.rows(gadgets, split)) == 5 * len(own.rows(own.tables[0], split))


@pytest.mark.parametrize(
    "one", ["product", "category", "box", "person", "order line", "day", "class"]
)
def test_plurals_go_back_and_forth(one):
    assert one_of(many_of(one)) == one != many_of(one)


# Environments from tables --------------------------------------------------------------------------------------------


def spread(own):
    return {s: made(WorldGenerator(own=own), s) for s in SPLITS}


@pytest.mark.parametrize("what", ["file", "folder"])
def test_the_oracle_earns_everything_and_the_splits_share_no_entity(what, request):
    own = read_world(request.getfixturevalue(what))
    by = spread(own)
    for split, envs in by.items():
        scores = evaluate(OraclePolicy(envs), envs, name="oracle").items()
        assert scores[["solve_p", "solve_r", "solve_f1", "answered"]].min().min() == 1
        mine = {r["name"] for f in own.tables for r in own.rows(f, split).values() if "name" in r}
        others = {r["name"] for f in own.tables for r in f.rows.values() if "name" in r} - mine
        sources = " ".join(t.code for e in envs for t in e.tools)
        assert any(name in sources for name in mine) and not any(name in sources for name in others)
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not any(overlaps(by[a], by[b]).values())
    assert any(entities(e) for e in by["test"])


def test_questions_use_every_kind_of_column_and_tool(folder):
    envs = made(WorldGenerator(own=read_world(folder)), n=60)
    kinds = {q.relation.partition(".")[2] for e in envs for q in e.scenario.sub_questions}
    assert {"price", "added", "amount", "id"} <= kinds
    schemas = [s for e in envs for t in e.tools for s in t.doc.parameters["properties"].values()]
    assert all(s.get("description") for s in schemas)
    assert {"string", "number", "integer", "boolean", "array"} <= {s["type"] for s in schemas}
    assert ["kitchen", "office"] in [s.get("enum") for s in schemas]
    assert any(t.distractor for e in envs for t in e.tools)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), split=st.sampled_from(SPLITS))
def test_what_a_row_refers_to_is_in_its_world_and_of_its_split(tmp_path_factory, seed, split):
    own = test_what_a_row_refers_to_is_in_its_world_and_of_its_split.own
    world = own.draw(split, random.Random(seed))
    for name, rows in world.tables.items():
        assert 0 < len(rows) <= 60
        for row in rows.values():
            assert own.splits[name][row["id"]] == split
            for c in refs_of(world.domain.tables[name]):
                assert row[c.name] in world.tables[c.of]


@pytest.fixture(autouse=True, scope="module")
def _shop(tmp_path_factory):
    inner = tmp_path_factory.mktemp("all")
    customers, bought = orders()
    for name, text in dict(products=products(), customers=customers, orders=bought).items():
        (inner / f"{name}.csv").write_text(text)
    test_what_a_row_refers_to_is_in_its_world_and_of_its_split.own = read_world(inner)


def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    program = (
        "import sys; from toolrl_lit.doors.cli_build import build; from pathlib import Path; "
        "build(Path(sys.argv[2]), n=6, world=sys.argv[1])"
    )
    texts = []
    for k in (1, 2):
        out = tmp_path / f"{k}.jsonl"
        env = os.environ | {"PYTHONHASHSEED": str(k), "TQDM_DISABLE": "1"}
        subprocess.run([sys.executable, "-c", program, folder, out], env=env, check=True, stdout=-3)
        texts.append(out.read_bytes())
    assert texts[0] == texts[1] and texts[0].count(b"\n") == 6
    other = made(WorldGenerator(own=read_world(folder)), n=6, seed=1)
    assert [e.question for e in other] != [
        json.loads(t)["scenario"]["question"] for t in texts[0].splitlines()
    ]


def test_another_file_is_another_build(file):
    before = WorldGenerator(own=read_world(file)).identity()
    file.write_text(products().replace("Oak Lamp", "Elm Lamp"))
    assert WorldGenerator(own=read_world(file)).identity() != before


@pytest.mark.parametrize("what", ["file", "folder"])
def test_some_questions_have_no_answer(what, request):
    own = read_world(request.getfixturevalue(what))
    envs = made(WorldGenerator(1.0, own), n=16)
    gaps = {e.scenario.missing for e in envs}
    assert gaps == {"parameter", "record", *(["tool"] if what == "folder" else [])}
    for e in envs:
        if e.scenario.missing == "record":  # whatever its tools know, they do not know this one
            asked = {*map(str, e.scenario.sub_questions[0].arguments.values())}
            assert asked and not any(f'"{a}"' in t.code for a in asked for t in e.tools)


ODD = "class,order,count,list,sort_by,unit,name,id,from"


def test_column_names_that_python_or_other_parameters_use(tmp_path):
    rng, rows = random.Random(0), [ODD]
    for i, name in enumerate(NAMES[:40]):
        three = [rng.choice(c) for c in ("ABC", "DEF", "GHI", "JKL")]
        flag, day = rng.choice(("yes", "no")), f"2020-0{rng.randint(1, 9)}-11"
        x, o, s, u = (f"{t}xy" for t in three)
        rows.append(f"{x},{o},{rng.randint(100, 9000)},{flag},{s},{u},{name},{i},{day}")
    (tmp_path / "odds.csv").write_text("\n".join(rows))
    envs = made(WorldGenerator(own=read_world(tmp_path / "odds.csv")), n=12)
    assert any("odd_class" in t.code for e in envs for t in e.tools)
    scores = evaluate(OraclePolicy(envs), envs, name="oracle").items()
    assert scores["solve_f1"].min() == 1


def test_a_wide_table_keeps_as_many_columns_as_a_result_can_show(tmp_path):
    rng = random.Random(0)
    header = ["name", *(f"note{i}" for i in range(4)), *(f"size{i}" for i in range(14))]
    rows = [
        [
            n,
            *(f"A text about {n} {i}" for i in range(4)),
            *(str(rng.randint(100, 9999)) for _ in range(14)),
        ]
        for n in NAMES[:40]
    ]
    (tmp_path / "wide.csv").write_text("\n".join(map(",".join, [header, *rows])))
    own = read_world(tmp_path / "wide.csv")
    assert "size13 (no room)" in own.notes()[0] and len(own.tables[0].table.columns) == 10
    envs = made(WorldGenerator(own=own), n=8)
    assert evaluate(OraclePolicy(envs), envs, name="oracle").items()["solve_f1"].min() == 1


def test_empty_cells_and_names_that_come_again_are_left_out_and_told(file):
    lines = products().splitlines()
    lines[3] = lines[3].replace(lines[3].split(",")[3], "", 1)
    lines[5] = lines[5].replace("Birch", "Oak").replace(lines[5].split(",")[1], "Oak Lamp")
    file.write_text("\n".join(lines))
    own = read_world(file)
    assert "46 rows" in own.notes()[0] and "left out: 2 rows" in own.notes()[0]


def test_a_short_table_becomes_a_list_of_values(folder):
    (folder / "makers.csv").write_text("id,name\n1,Holm\n2,Vance\n3,Kerr")
    lines = products().splitlines()
    lines = [lines[0] + ",maker_id", *(f"{line},{i % 3 + 1}" for i, line in enumerate(lines[1:]))]
    (folder / "products.csv").write_text("\n".join(lines))
    own = read_world(folder)
    table = next(f.table for f in own.tables if f.table.name == "products")
    assert {*table.columns["maker_id"].values} == {"Holm", "Vance", "Kerr"}
    assert "makers" not in [f.table.name for f in own.tables]


BROKEN = {  # what is done to the products, and what is said of it
    "a cell too many": (lambda t: t.replace("Oak Desk", "Oak,Desk"), "line 3: expected 7 cells"),
    "no column name": (lambda t: t.replace("category", ""), "line 1: expected a name for each"),
    "a column twice": (lambda t: t.replace("category", "price"), "expected each column once"),
    "a key twice": (
        lambda t: t.replace("SKU-1007", "SKU-1000"),
        "line 3, column sku: expected a key of its own, not the one of line 2",
    ),
    "a key missing": (lambda t: t.replace("SKU-1007", ""), "line 3, column sku: expected a key"),
    "nothing": (lambda t: "", "line 1: expected the names of the columns"),
    "no rows": (lambda t: t.partition("\n")[0], "expected at least one table with rows"),
    "nothing to ask": (
        lambda t: "\n".join(line.split(",")[1] for line in t.splitlines()),
        "expected a column of numbers, dates or codes",
    ),
    "too few rows": (
        lambda t: "\n".join(t.splitlines()[:13]),
        "expected at least 5 there, which takes about 25 rows",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_wrong_with_a_table_is_said_with_its_place(file, how):
    change, wanted = BROKEN[how]
    file.write_text(change(products()))
    why = said(read_world, file)
    assert wanted in why and why.startswith(str(file))


def test_a_reference_to_nothing_is_named(folder):
    text = (folder / "orders.csv").read_text().splitlines()
    text[7] = ",".join([*text[7].split(",")[:1], "999", *text[7].split(",")[2:]])
    (folder / "orders.csv").write_text("\n".join(text))
    why = said(read_world, folder)
    assert (
        "orders.csv, line 8, column customer_id: expected a key or a name of customers, got '999'"
        in why
    )


@pytest.mark.parametrize("name", ["none.csv", "bad.xlsx", "bad.sqlite", "bad.parquet", "latin.csv"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    if name != "none.csv":
        (tmp_path / name).write_bytes("name;price\nMüller;3\n".encode("latin-1"))
    assert said(read_tables, tmp_path / name).startswith(str(tmp_path / name))


# Functions -----------------------------------------------------------------------------------------------------------

SHOP = '''
from typing import Literal

DATA = "products.csv"


def _row(key, value):
    for row in DATA:
        if row[key] == value:
            return row
    raise ValueError(f"no product has this {key}")


def product_name(
    sku: str,  # article number, such as SKU-0000
) -> str:
    """Return the name of a product.

    Question: Which product has the number {sku}?"""
    return _row("sku", sku)["name"]


def price_in(name: str, currency: Literal["EUR", "NOK"] = "EUR") -> float:
    """Return the price of a product.

    Args:
        name: what the product is called
        currency: in which the price is wanted"""
    return round(_row("name", name)["price"] * {"EUR": 1, "NOK": 11.5}[currency], 2)


def card(sku: str) -> dict:
    "Return what is known of a product."
    row = _row("sku", sku)
    return {"weight": row["weight_grams"], "since": row["added"]}
'''


@pytest.fixture()
def shop(file):
    path = file.parent / "my_shop.py"
    path.write_text(SHOP)
    return path


def test_a_file_is_read_and_never_imported(shop, tmp_path):
    mark = tmp_path / "ran"
    harm = f"open({str(mark)!r}, 'w').write('x')\n"
    shop.write_text(harm + SHOP.replace('EUR"]', 'EUR"]') + harm)
    envs = made(read_functions(shop), n=4)
    assert len(envs) == 4 and not mark.exists() and "my_shop" not in sys.modules


@pytest.mark.parametrize("place", ["annotation", "default", "decorator", "data"])
def test_no_expression_of_a_file_is_evaluated_here(shop, tmp_path, place):
    mark = tmp_path / "ran"
    harm = f"__import__('pathlib').Path({str(mark)!r}).write_text('x')"
    changes = {
        "annotation": SHOP.replace("sku: str,", f"sku: {harm},"),
        "default": SHOP.replace(
            'currency: Literal["EUR", "NOK"] = "EUR"', f"currency: str = {harm}"
        ),
        "decorator": SHOP.replace("def price_in", f"@({harm})\ndef price_in"),
        "data": SHOP.replace('"products.csv"', harm),
    }
    shop.write_text(changes[place])
    assert ", line " in said(read_functions, shop) and not mark.exists()


def test_functions_make_questions_of_one_and_two_steps(shop):
    source = read_functions(shop)
    by = {s: made(source, s) for s in SPLITS}
    for envs in by.values():
        assert {e.kind for e in envs} == {*source.kinds} and len(source.kinds) == 4
        scores = evaluate(OraclePolicy(envs), envs, name="oracle").items()
        assert scores[["solve_f1", "answered"]].min().min() == 1
    assert not overlaps(by["train"], by["test"])["entities"]
    assert not overlaps(by["train"], by["test"])["questions"]
    sources = {s: " ".join(t.code for e in envs for t in e.tools) for s, envs in by.items()}
    assert not any(n in sources["train"] and n in sources["test"] for n in NAMES)
    said_ = [e.question for e in by["train"]]
    assert any("Which product has the number SKU-" in q for q in said_)
    assert any("price of a product for" in q for q in said_)  # no wording: its docstring


def test_the_document_of_a_function_has_types_and_comments():
    docs = tools_in(parse_functions(SHOP, "x.py"))
    assert list(docs) == ["product_name", "price_in", "card"]
    own = docs["price_in"].parameters
    assert own["required"] == ["name"] and own["properties"]["currency"]["enum"] == ["EUR", "NOK"]
    assert own["properties"]["name"]["description"] == "what the product is called"
    assert (
        docs["product_name"]
        .parameters["properties"]["sku"]["description"]
        .startswith("article number")
    )


WRONG = {
    "no Python": (lambda t: t + "\ndef :", "is not Python"),
    "no tools": (lambda t: 'DATA = "products.csv"\n', "expected a function with a docstring"),
    "no data": (lambda t: t.replace("DATA = ", "ROWS = "), "expected a line DATA"),
    "no such file": (lambda t: t.replace("products.csv", "none.csv"), "no such file"),
    "no type": (lambda t: t.replace("sku: str,", "sku,"), "line 15: parameter sku has no type"),
    "odd type": (
        lambda t: t.replace("sku: str,", "sku: Path,"),
        "line 15: parameter sku: expected a text",
    ),
    "odd gap": (
        lambda t: t.replace("{sku}", "{code}"),
        "line 14: product_name: Question: expected gaps",
    ),
    "foreign": (
        lambda t: "import numpy as np\n" + t.replace("round(", "np.round("),
        "line 1: expected a module of Python's own, got numpy",
    ),
    "async": (lambda t: t.replace("def card", "async def card"), "card: is async"),
    "no column": (
        lambda t: t.replace("sku: str", "key: str").replace("name: str", "title: str"),
        "expected a parameter with the name of a column",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_is_wrong_with_a_file_of_functions_is_said_with_its_line(shop, how):
    change, wanted = WRONG[how]
    shop.write_text(change(SHOP))
    assert wanted in said(read_functions, shop)


def test_functions_that_all_fail_are_told(shop):
    shop.write_text(
        'DATA = "products.csv"\n\n\ndef name(sku: str) -> str:\n    "Return it."\n    return DATA[sku]\n'
    )
    assert "every call fails" in said(read_functions, shop)


def test_groups_stay_together_and_too_few_are_refused():
    marks = [[f"customer {i % 40}"] for i in range(200)]
    found = dealt(marks, 5, "x")
    assert sorted(n for numbers in found.values() for n in numbers) == [*range(200)]
    homes = {
        m: {s for s, ns in found.items() for n in ns if marks[n] == [m]}
        for m in {m for (m,) in marks}
    }
    assert all(len(h) == 1 for h in homes.values())
    assert groups_of([["a", "b"], ["c"], ["b", "c"]]) == [[0, 1, 2]]
    assert "which takes 25" in said(dealt, [["a"]] * 12, 5, "x")


# Services ------------------------------------------------------------------------------------------------------------

PETS = {
    "openapi": "3.0.3",
    "paths": {
        "/pets/{petId}": {
            "parameters": [
                {"name": "petId", "in": "path", "required": True, "schema": {"type": "integer"}}
            ],
            "get": {"operationId": "get-pet", "summary": "Find a pet by its number."},
        },
        "/owners": {
            "post": {
                "operationId": "owner",
                "description": "Find the owner of pets.",
                "requestBody": {
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}
                    }
                },
            }
        },
    },
    "components": {
        "schemas": {
            "Ask": {
                "type": "object",
                "properties": {"code": {"type": "string"}},
                "required": ["code"],
            }
        }
    },
}


def recording(n=30):
    lines = []
    for i in range(n):
        pet = {"name": f"Rex the {i}th", "owner": f"OW-{100 + i}"}
        lines.append(
            {
                "tool": "get_pet",
                "arguments": {"petId": 7000 + i},
                "response": pet,
                "question": "What is the {field} of pet {petId}?",
            }
        )
        lines.append(
            {
                "tool": "owner",
                "arguments": {"code": f"OW-{100 + i}"},
                "response": {"town": f"Port {i * 3 + 100}"},
            }
        )
    return "\n".join(map(json.dumps, lines))


def test_recorded_calls_become_tools_and_questions(tmp_path):
    (tmp_path / "pets.json").write_text(json.dumps(PETS))
    (tmp_path / "calls.jsonl").write_text(recording())
    source = read_service(str(tmp_path / "pets.json"), tmp_path / "calls.jsonl")
    by = {s: made(source, s) for s in SPLITS}
    for envs in by.values():
        assert {e.kind for e in envs} == {*source.kinds} and len(source.kinds) == 4
        assert evaluate(OraclePolicy(envs), envs, name="oracle").items()["answered"].min() == 1
    assert not overlaps(by["train"], by["test"])["entities"]
    assert any("of pet 70" in e.question for e in by["train"])
    steps = next(e for e in by["train"] if e.kind == "multi-hop").scenario.sub_questions
    assert steps[0].answer == steps[1].arguments["code"]


def test_a_document_in_yaml_is_the_same(tmp_path):
    import yaml

    docs = openapi_tools(PETS, "x")
    assert openapi_tools(yaml.safe_load(yaml.safe_dump(PETS)), "x") == docs
    assert docs["owner"].parameters["required"] == ["code"]


LINES = {
    '{"tool": "cat"}': "line 2, field tool: expected one of get_pet, owner, got 'cat'",
    "{": "line 2: is not JSON",
    '["get_pet"]': "line 2: expected an object with the fields",
    '{"tool": "get_pet", "response": 1}': "line 2, field arguments: 'petId' is a required property",
    '{"tool": "get_pet", "arguments": {"petId": "x"}, "response": 1}': "line 2, field arguments: 'x' is not of type",
    '{"tool": "get_pet", "arguments": {"petId": 1, "a": 2}, "response": 1}': "line 2, field arguments: 'a' is no parameter",
    '{"tool": "get_pet", "arguments": {"petId": 1}}': "line 2, field response: expected what the call returned",
    '{"tool": "get_pet", "arguments": {"petId": 1}, "response": 1, "question": 3}': "line 2, field question: expected a text",
}


@pytest.mark.parametrize("line", LINES)
def test_a_bad_line_of_a_recording_is_named(line):
    text = recording(1).splitlines()[0] + "\n" + line
    why = said(parse, text, "calls.jsonl", openapi_tools(PETS, "x"))
    assert why.startswith("calls.jsonl, ") and LINES[line] in why


def test_too_few_recorded_calls_are_refused():
    docs = openapi_tools(PETS, "x")
    why = said(recorded_generator, docs, parse(recording(4), "c.jsonl", docs), "c.jsonl")
    assert "c.jsonl: recorded calls: expected at least 5 for each split" in why


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"swagger": "2.0"},
        {"openapi": "3.0.0"},
        {"openapi": "3.0.0", "paths": {"/a": {"get": 3}}},
    ],
)
def test_what_is_no_openapi_document_is_refused(document):
    assert said(openapi_tools, document, "pets.json").startswith("pets.json: expected")


SERVER = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("ports")


@server.tool()
def tide(port: str) -> str:
    "Return the height of the next tide at a port."
    if port == "Nowhere":
        raise ValueError("no such port")
    return f"{sum(map(ord, port)) * 7919 % 9000 + 1000} mm"


server.run()
"""


def test_an_mcp_server_is_asked_once_and_the_file_takes_the_answers(tmp_path):
    pytest.importorskip("mcp")
    (tmp_path / "server.py").write_text(SERVER)
    command, calls = f"{sys.executable} {tmp_path / 'server.py'}", tmp_path / "calls.jsonl"
    ports = [
        f"{a} {b}"
        for a in ("Oslo", "Bergen", "Bodo", "Narvik", "Molde")
        for b in ("Quay", "West", "East", "North", "South", "Old")
    ]
    asked = "\n".join(json.dumps({"tool": "tide", "arguments": {"port": p}}) for p in ports) + "\n"
    calls.write_text(asked)
    assert "field response" in said(read_service, f"mcp:{command}", calls)  # no live call unasked
    assert calls.read_text() == asked
    source = read_service(f"mcp:{command}", calls, live=True)
    kept = [json.loads(line)["response"] for line in calls.read_text().splitlines()]
    assert len({*kept}) > 20
    envs = made(source, n=4)
    assert evaluate(OraclePolicy(envs), envs, name="oracle").items()["answered"].min() == 1
    before = (
        calls.read_text() + json.dumps({"tool": "tide", "arguments": {"port": "Nowhere"}}) + "\n"
    )
    calls.write_text(before)
    talk = partial(mcp_talk, command)
    assert "line 31: tide fails" in said(record, talk, calls) and calls.read_text() == before


class Service(BaseHTTPRequestHandler):
    "Knows the heights of tides, but none at Nowhere, and a port with much to tell."

    asked: list[tuple[str, str]] = []  # what was asked, and who did

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        known, much = "Nowhere" not in self.path, "Much" in self.path
        height = dict(height=sum(map(ord, self.path)) * 7919 % 9000 + 1000)
        body = json.dumps(height if known else "no such port") + much * " " * MOST_BYTES
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture()
def tides():
    "An OpenAPI document of a service that answers."
    server, Service.asked = HTTPServer(("127.0.0.1", 0), Service), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    named = [
        {"name": "port", "in": "path", "required": True, "schema": {"type": "string"}},
        {"name": "deep", "in": "query", "schema": {"type": "boolean"}},
        {"name": "days", "in": "query", "schema": {"type": "array", "items": {"type": "integer"}}},
    ]
    paths = {
        "/tides/{port}": {
            v: {"operationId": f"{v}_tide", "parameters": named} for v in ("get", "put")
        }
    }
    yield {
        "openapi": "3.1.0",
        "servers": [{"url": f"http://127.0.0.1:{server.server_port}/v1/"}],
        "paths": paths,
    }
    server.shutdown()
    server.server_close()


def tide_calls(file, *ports):
    "Write calls without a response."
    lines = [json.dumps({"tool": "get_tide", "arguments": {"port": p}}) + "\n" for p in ports]
    file.write_text("".join(lines))
    return file


def test_a_service_over_http_is_asked_once_and_the_file_takes_the_answers(
    tides, tmp_path, monkeypatch
):
    monkeypatch.setenv(AUTHORIZATION, "Bearer 4711")
    (tmp_path / "tides.json").write_text(json.dumps(tides))
    ports = [
        f"{a} {b}"
        for a in ("Oslo", "Bergen", "Bodo", "Narvik", "Molde")
        for b in "North East South West Quay Old".split()
    ]
    calls = tide_calls(tmp_path / "calls.jsonl", *ports)
    world = str(tmp_path / "tides.json")
    assert "field response" in said(read_service, world, calls) and not Service.asked  # not unasked
    source = read_service(world, calls, live=True)
    assert {a for _, a in Service.asked} == {"Bearer 4711"} and len(Service.asked) == len(ports)
    assert "4711" not in calls.read_text()
    envs = made(source, n=3)
    assert evaluate(OraclePolicy(envs), envs, name="oracle").items()["answered"].min() == 1
    read_service(world, calls, live=True)
    assert len(Service.asked) == len(ports)  # nothing was lacking


def test_what_path_and_query_hold_arrives(tides):
    asks = [("get_tide", {"port": "Bodø / West?", "deep": True, "days": [1, 2]})]
    _, [(_, failed)] = http_talk(tides, "tides.json", lambda docs: asks)
    assert not failed
    assert Service.asked == [("/v1/tides/Bod%C3%B8%20%2F%20West%3F?deep=true&days=1&days=2", "")]


def test_a_list_in_a_path_is_written_with_commas_and_nothing_deeper_is_asked(tides):
    tide = {o.name: o for o in operations(tides)}["get_tide"]
    path, query = request_of(tide, {"port": ["Oslo", "a,b", 3], "days": 1})
    assert path == "/tides/Oslo,a%2Cb,3" and query == {"days": ["1"]}
    for deep in ({"a": 1}, [{"a": 1}], [[1]]):
        for name in ("port", "days"):
            assert said(request_of, tide, {name: deep}).startswith(f"{name}: a path and a query")


@pytest.mark.parametrize(
    "port, tool, why",
    [
        ("Nowhere", "get_tide", 'HTTP 404: "no such port"'),
        ("Much", "get_tide", "more than 100000 bytes"),
        ("Oslo", "put_tide", "PUT may change something"),
    ],
)
def test_a_call_that_fails_is_named_and_the_other_answers_are_kept(
    tides, tmp_path, port, tool, why
):
    calls = tide_calls(tmp_path / "calls.jsonl", "Oslo", "Bergen")
    failing = json.dumps({"tool": tool, "arguments": {"port": port}})
    calls.write_text(failing + "\n" + calls.read_text())
    text = said(record, partial(http_talk, tides, "tides.json"), calls)
    assert f"calls.jsonl, line 1: {tool} fails: " in text and why in text
    assert "2 of 3 calls are answered and kept" in text
    first, *others = calls.read_text().splitlines()
    assert first == failing and all("height" in json.loads(o)["response"] for o in others)


@pytest.mark.parametrize("servers", [None, [], [{"url": "/v1"}], [{"url": "ftp://a.example"}]])
def test_a_service_without_an_address_is_refused_before_anything_is_asked(tides, tmp_path, servers):
    calls = tide_calls(tmp_path / "calls.jsonl", "Oslo")
    talk = partial(http_talk, tides | {"servers": servers}, "tides.json")
    assert "tides.json, field servers: expected the address" in said(record, talk, calls)


def test_a_service_that_is_not_there_is_a_call_that_fails(tides, tmp_path):
    calls = tide_calls(tmp_path / "calls.jsonl", "Oslo")
    before, gone = calls.read_text(), tides | {"servers": [{"url": "http://127.0.0.1:9"}]}
    text = said(record, partial(http_talk, gone, "tides.json"), calls)
    assert "line 1: get_tide fails" in text and calls.read_text() == before


# The command line ----------------------------------------------------------------------------------------------------

REFUSED = {
    "--world products.csv --generator llm": "world: not for --generator llm",
    "--recorded c.jsonl": "recorded: needs --world, and a service",
    "--live": "live: needs --world, and a service",
    "--world products.csv --live": "live: needs --world, and a service",
    "--world my_shop.py --unanswerable 0.5": "unanswerable: needs tables",
    "--world pets.json": "pets.json: needs --recorded",
    "--world pets.json --recorded c.jsonl --live": "pets.json: cannot be read: No such file",
    "--world products.csv -m some-model": "model: needs --generator llm",
    "--world none.csv": "none.csv: no such file",
}


@pytest.mark.parametrize("line", REFUSED)
def test_options_that_do_not_fit_are_refused(line, shop, monkeypatch):
    monkeypatch.chdir(shop.parent)
    text = typed(build, f"-n 2 -o out.jsonl {line}")
    assert f"error: {REFUSED[line]}" in text and not Path("out.jsonl").exists()


def test_the_command_says_what_it_understood_and_what_comes_next(shop, monkeypatch):
    monkeypatch.chdir(shop.parent)
    text = typed(build, "-n 3 --world products.csv -o out.jsonl")
    assert "products: 48 rows; name (name), category (enum), price (number)" in text
    assert "3 environments in out.jsonl" in text and "next: toolrl show out.jsonl" in text
    assert (
        "found" in typed(build, "-n 3 --world my_shop.py -o calls.jsonl")
        or Path("calls.jsonl").exists()
    )
    assert "--world" in typed(build, "--help")


def test_a_build_that_cannot_be_says_why_most_attempts_failed(file):
    source = WorldGenerator(own=read_world(file))
    from toolrl_lit.scenario import Difficulty

    why = said(made, source, n=1, scenarios=("multi-hop",), difficulty=Difficulty(hops=(3, 3)))
    assert "800 attempts" in why and "most were dropped in stage 1: no such chain of rows" in why


# -- what a newcomer's own files held


def test_numbers_of_a_file_of_functions_keep_all_their_digits(tmp_path):
    (tmp_path / "drugs.csv").write_text("name,dose\nalpha,0.00484\nbeta,0.01255\n")
    from toolrl_lit.engine.own_functions import records_of

    raw = read_tables(tmp_path / "drugs.csv")[0]
    assert [r["dose"] for r in records_of(raw)] == [0.00484, 0.01255]
    assert values_of(raw, "dose", "number") == [0, 0.01]


def test_a_generated_column_of_sqlite_shifts_no_other(tmp_path):
    from toolrl_lit.engine.own import read_sqlite

    path = tmp_path / "books.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "create table books(name text, shelf integer, "
            "far integer generated always as (shelf * 1000) virtual, pages integer)"
        )
        db.executemany("insert into books(name, shelf, pages) values (?, ?, ?)", [("A", 6, 991)])
    raw = read_sqlite(path)[0]
    assert dict(zip(raw.header, raw.rows[0])) == {"name": "A", "shelf": "6", "pages": "991"}


OWN = '''
from dataclasses import dataclass
from functools import lru_cache

mcp = None

@dataclass
class Price:
    pounds: float

@lru_cache
def round(x: float) -> int:
    return int(x * 100)

@mcp.tool()
def pence(x: float) -> str:
    """Tell a price.

    Args:
        x: in pounds
    """
    return str(round(Price(x).pounds))
'''


def test_helpers_keep_their_decorators_and_names_of_builtins(tmp_path):
    from toolrl_lit.engine.own_functions import source_with
    from toolrl_lit.engine.sandbox import shared

    code = parse_functions(OWN, "own.py")
    source = source_with(code, "pence", [])
    assert "@dataclass" in source and "@lru_cache" in source and "@mcp" not in source
    assert shared().call("pence", {"x": 1.51}, source).text == "151"


def test_a_reference_is_found_whatever_its_capitals(tmp_path):
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table Customers(CustomerID integer primary key, name text, town text)")
        db.execute(
            "create table Orders(OrderID integer primary key, total real, "
            "Cust integer references customers(CustomerID))"
        )
        towns = [(i, f"Customer {i}", f"Town {i % 40}") for i in range(1, 301)]
        db.executemany("insert into Customers values (?, ?, ?)", towns)
        orders = [(i, 10 + 3 * i, 1 + i * 7 % 300) for i in range(1, 301)]
        db.executemany("insert into Orders values (?, ?, ?)", orders)
    told = " ".join(read_world(str(path)).notes())
    assert "cust (number)" not in told, told


def test_gaps_in_the_question_of_a_recording_are_checked():
    from toolrl_lit.schema import ToolDoc

    book = {"type": "object", "properties": {"book": {"type": "string"}}}
    docs = {"get": ToolDoc(name="get", description="Get a book.", parameters=book)}
    line = '{"tool": "get", "arguments": {"book": "a"}, "response": {}, "question": "%s"}'
    assert parse(line % "The {field} of {book}?", "r.jsonl", docs)
    with pytest.raises(UserError, match="line 1, field question: .*book, field, got 'bookk'"):
        parse(line % "The {field} of {bookk}?", "r.jsonl", docs)
    with pytest.raises(UserError, match="field tool"):
        parse('{"tool": ["get"], "arguments": {}, "response": 1}', "r.jsonl", docs)


def test_a_table_with_a_name_of_two_words_can_be_asked_by_id(tmp_path):
    rows = "\n".join(f"L-{i},Item {i},{3 * i},Town {i % 90}" for i in range(300))
    (tmp_path / "order_items.csv").write_text(f"id,name,pieces,town\n{rows}\n")
    own = read_world(str(tmp_path / "order_items.csv"))
    envs = made(WorldGenerator(own=own), n=4)
    assert any("order_item" in json.dumps(e.documents()) for e in envs)
    assert all("order item:" not in tool.code for e in envs for tool in e.tools)


def test_a_table_that_nothing_can_be_ordered_by_gives_questions_of_other_kinds(tmp_path):
    rows = "\n".join(f"Place {i},{1 + i % 5}/5,{i:05d}x" for i in range(300))
    (tmp_path / "places.csv").write_text(f"name,rating,postcode\n{rows}\n")
    try:
        assert made(WorldGenerator(own=read_world(str(tmp_path / "places.csv"))), n=4)
    except UserError as e:
        assert "in" in str(e)


def test_a_server_in_python_is_no_file_of_functions(tmp_path, monkeypatch):
    from toolrl_lit.doors import cli_build

    asked = []
    monkeypatch.setattr(
        "toolrl_lit.engine.own_live.read_service", lambda *a: asked.append(a) or "service"
    )
    assert cli_build._calls("mcp:python server.py", None, True) == "service" and asked
