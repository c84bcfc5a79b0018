"Invented worlds: what is asked has one answer, the tools give it, every part of a call matters, and the splits share nothing."

import json
import random
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolrl_lit.build import build_environments
from toolrl_lit.collect import OraclePolicy
from toolrl_lit.deploy import check_many
from toolrl_lit.engine.domains import SPLITS, UNITS, domains
from toolrl_lit.engine.frames import load_frames
from toolrl_lit.engine.invent import invent
from toolrl_lit.engine.match import match_paper, match_strict
from toolrl_lit.engine.measures import (
    copied_share,
    document_measures,
    json_share,
    question_measures,
    shared_ngrams,
)
from toolrl_lit.engine.monty import any_scope
from toolrl_lit.engine.operations import (
    PAIRS,
    WORDS,
    Filter,
    Operation,
    arguments,
    countable,
    parameters,
    refs_of,
    title,
    vocabulary,
)
from toolrl_lit.engine.phrases import in_words
from toolrl_lit.engine.plans import draw_path, fill_path
from toolrl_lit.engine.queries import PER, Condition, Query, is_tight, solve
from toolrl_lit.engine.rendering import render
from toolrl_lit.engine.rules import RulePolicy, rule_scores
from toolrl_lit.engine.sandbox import shared
from toolrl_lit.evaluate import evaluate
from toolrl_lit.scale import RATES
from toolrl_lit.scenario import Difficulty, KnowledgeGenerator
from toolrl_lit.schema import SCENARIOS
from toolrl_lit.worlds import WORLDS, WorldGenerator, decompose_world

seeds = st.integers(0, 10**6)
some = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def attempts(seed, split="train", n=6):
    "Return environments that stages 1 to 5 made, not examined yet."
    rng = random.Random(seed)
    made = []
    while len(made) < n:
        kind = SCENARIOS[len(made) % 4]
        how = WORLDS["difficulty"], RATES, random.Random(rng.random())
        env, _ = WorldGenerator().attempt(f"w{len(made)}", kind, split, *how)
        made += [env] * (env is not None)
    return made


def sql(world):
    "Return a database in memory that holds a world."
    db = sqlite3.connect(":memory:")
    for name, rows in world.tables.items():
        columns = list(next(iter(rows.values())))
        db.execute(f'create table "{name}" ({", ".join(f"[{c}]" for c in columns)})')
        marks = ", ".join("?" for _ in columns)
        db.executemany(
            f'insert into "{name}" values ({marks})', [list(r.values()) for r in rows.values()]
        )
    return db


def ask(db, query: Query) -> str:
    "Return the answer that SQL gives to a query."
    signs = {"is": "=", "from": ">=", "to": "<="}
    where = " and ".join(f"[{c.column}] {signs[c.test]} ?" for c in query.where) or "1"
    values = [c.value for c in query.where]
    if query.kind == "stats":
        word = {"sum": "sum", "average": "avg", "lowest": "min", "highest": "max"}[query.metric]
        what = f"{word}([{query.target}])"
        ((value,),) = db.execute(f'select {what} from "{query.table}" where {where}', values)
        return value
    way = "desc" if query.descending else "asc"
    order = f"[{query.sort}] {way}, id {way} limit 1 offset {query.place - 1}"
    text = f'select [{query.target}] from "{query.table}" where {where} order by {order}'
    ((value,),) = db.execute(text, values)
    return value


@some
@given(seeds, st.sampled_from(SPLITS), st.sampled_from(SCENARIOS))
def test_sql_gives_the_golden_answers(seed, split, kind):
    design, why = decompose_world("w", kind, split, Difficulty(), random.Random(seed))
    if design is None:
        return
    queries = [q for branch in design.branches for q in branch]
    db = sql(design.world)
    assert len(queries) == len(design.scenario.sub_questions)
    for query, step in zip(queries, design.scenario.sub_questions):
        value = ask(db, query)
        if query.unit:
            assert float(step.answer) == pytest.approx(value / PER[query.unit], abs=0.006)
        elif query.kind == "stats":
            assert float(step.answer) == pytest.approx(value, abs=0.006)
        else:
            assert step.answer == str(value)


@some
@given(seeds)
def test_chains_hang_together_and_need_all_their_parts(seed):
    rng = random.Random(seed)
    world = invent(domains()["train"]["shop"], rng)
    chain = fill_path(world, draw_path(world, rng.randint(1, 5), rng), rng)
    for before, query in zip([None, *chain], chain):
        if before:
            assert solve(before, world.tables) in [c.value for c in query.where]
        if query.kind in ("search", "stats"):
            assert is_tight(query, world)


@some
@given(seeds)
def test_a_seed_gives_the_same_bytes(seed):
    one, two = (
        [e.model_dump_json() for e in attempts(seed, n=2)],
        [e.model_dump_json() for e in attempts(seed, n=2)],
    )
    assert one == two
    assert one != [e.model_dump_json() for e in attempts(seed + 1, n=2)]


def test_the_number_of_workers_changes_nothing(tmp_path):
    made = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.jsonl"
        how = dict(seed=3, out=out, workers=workers, progress=False, **WORLDS)
        build_environments(WorldGenerator(), 70, **how)
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_splits_share_no_table_no_frame_no_name_and_no_tool():
    found = {}
    for split in SPLITS:
        own = domains()[split].values()
        tables = {n for d in own for n in d.tables}
        layouts = {tuple(t.columns) for d in own for t in d.tables.values()}
        scenes = {s for d in own for s in d.scenes}
        frames = {f for fs in load_frames(split).values() for f in fs}
        envs = attempts(1, split, 40)
        tools = {t.name for e in envs for t in e.tools}
        words = set()
        for d in own:
            for seed in range(3):
                for name, rows in invent(d, random.Random(seed)).tables.items():
                    column = title(d.tables[name])
                    words |= {r[column] for r in rows.values() if column}
        found[split] = tables, layouts, scenes, frames, tools, words
    assert len({n for own in domains().values() for n in own}) >= 10
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        for one, other in zip(found[a], found[b]):
            assert one and not one & other


def test_every_intent_has_a_dozen_frames():
    for split in SPLITS:
        frames = load_frames(split)
        for intent in ("ask", "lead", "detail", "total"):
            assert len(set(frames[intent])) >= 12, (split, intent)
        assert set(frames) == set(load_frames("train"))


def test_the_examination_passes_nearly_all_of_them_in_monty():
    envs = attempts(5, "test", 32)
    problems = check_many(envs)
    good = [e for e, p in zip(envs, problems) if not p]
    assert len(good) >= 28, [p for p in problems if p]
    assert {t.engine for e in good for t in e.tools} == {"monty"}
    assert all(any_scope(t.code, t.name) for e in envs for t in e.tools)


def test_both_rules_accept_the_golden_calls_and_the_reward_too():
    envs = attempts(6, "validation", 16)
    for env in envs:
        codes, types = env.codes(), env.answer_types
        for q in env.scenario.sub_questions:
            result = shared().call(q.tool, q.arguments, codes[q.tool])
            assert result.ok, result.text
            assert isinstance(json.loads(result.text), dict)
            assert match_paper(result.text, q.answer)
            assert match_strict(result.text, q.answer, types[q.answer])


def test_a_wrong_golden_answer_is_noticed():
    env = attempts(7, "train", 1)[0]
    step = env.scenario.sub_questions[0].model_copy(update=dict(answer="nowhere at all"))
    scenario = env.scenario.model_copy(update=dict(sub_questions=[step]))
    (problems,) = check_many([env.model_copy(update=dict(scenario=scenario))])
    assert problems and problems[0].startswith("golden call fails")


def whole(kind, table, domain, split):
    "Return a tool that takes all that its kind can take."
    kinds = [
        c for c in table.columns.values() if c.kind in ("enum", "flag", "ref", "number", "date")
    ]
    shapes = {"enum": "array", "number": "object", "date": "pair"}
    filters = [Filter(column=c.name, shape=shapes.get(c.kind, "one")) for c in kinds]
    units = [c for c in countable(table) if UNITS[table.columns[c].of][3]]
    units = [c for c in units if kind == "get" or table.columns[c].brief]
    return Operation(
        name="tool",
        kind=kind,
        table=table.name,
        description="x",
        filters=[] if kind == "get" else filters,
        words={k: vocabulary(w, split)[0] for k, w in (WORDS | PAIRS).items()},
        skips=True,
        nested=kind == "get" and bool(refs_of(table)),
        unit=units[0] if units and kind != "stats" else "",
    )


def values(param, rows):
    "Return some values of a parameter that may change what comes back."
    schema = param.schema_
    if param.does in ("limit", "skip"):
        return [1, 5]
    if param.does == "fields":
        return [["id"]]
    if param.does in ("sort", "order", "unit", "metric", "target"):
        return schema["enum"]
    cells = [r[param.column] for r in rows] if param.column else [True]
    if param.does == "any":
        return [[c] for c in cells]
    if param.does == "range":
        ends = list(schema["properties"])
        return [{end: c} for c in cells for end in ends]
    return cells


def base(op, params, row):
    "Return arguments with which a tool gives a record."
    column = {p.does: p for p in params}
    if op.kind == "get":
        return {column["key"].name: row["id"]}
    if op.kind == "find":
        return {column["query"].name: row[column["query"].column]}
    if op.kind == "stats":
        needed = [column["metric"], *([column["target"]] if "target" in column else [])]
        return {p.name: p.schema_["enum"][0] for p in needed}
    return {}


def given_back(function, said):
    "Return what a tool gives, or its error."
    try:
        return json.dumps(function(**said))
    except ValueError as e:
        return str(e)


@pytest.mark.parametrize("split", SPLITS)
def test_every_described_parameter_changes_some_result(split):
    for domain in domains()[split].values():
        world = invent(domain, random.Random(2))
        for table in domain.tables.values():
            for kind in ("find", "get", "search", "stats"):
                if kind == "find" and not title(table) or kind == "stats" and not countable(table):
                    continue
                op, scope = whole(kind, table, domain, split), {}
                exec(render(op, domain, world.tables), scope)
                params, rows = parameters(op, domain), list(world.tables[table.name].values())
                for p in params:
                    assert p.schema_["description"]
                    assert any(
                        given_back(scope["tool"], said | {p.name: v})
                        != given_back(scope["tool"], said)
                        for said in (base(op, params, row) for row in rows[:3])
                        for v in values(p, rows)
                    ), (kind, table.name, p.name)


@some
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=3,
    ),
    st.sampled_from(("find", "get", "search", "stats")),
)
def test_whatever_is_passed_an_error_names_it(value, kind):
    domain = domains()["train"]["airline"]
    table = domain.tables["bookings" if kind != "find" else "passengers"]
    op, world, scope = whole(kind, table, domain, "train"), invent(domain, random.Random(2)), {}
    exec(render(op, domain, world.tables), scope)
    for p in parameters(op, domain):
        row = next(iter(world.tables[table.name].values()))
        said = base(op, parameters(op, domain), row)
        try:
            assert isinstance(scope["tool"](**(said | {p.name: value})), dict)
        except ValueError as e:
            assert p.name in str(e) or repr(value) in str(e) or str(e).startswith("no ")


def test_one_database_serves_all_tools_that_take_it_as_data():
    domain = domains()["test"]["hotel"]
    world = invent(domain, random.Random(4))
    op = whole("search", domain.tables["stays"], domain, "test")
    query = Query("search", "stays", (Condition("settled", "is", True),), "arrival", "bill", True)
    said = arguments(op, domain, query)
    with shared().session(world.tables) as session:
        (result,) = session.call_many([("tool", said, render(op, domain))])
    assert match_paper(result.text, solve(query, world.tables))
    alone = shared().call("tool", said, render(op, domain, world.tables))
    assert alone.text == result.text


def test_the_bars():
    "What the second edition asked of worlds, on a smaller set: the rest is measured in the chapter."
    envs = attempts(9, "test", 120)
    shown = document_measures([t.doc for e in envs for t in e.tools])
    assert shown["parameters of a tool, median"] >= 3
    assert shown["tools with optional parameters"] >= 0.4
    assert shown["parameters with a description"] == 1
    assert copied_share(envs) <= 0.6
    codes = [
        (q.tool, q.arguments, e.codes()[q.tool]) for e in envs for q in e.scenario.sub_questions
    ]
    assert json_share([r.text for r in shared().call_many(codes)]) >= 0.7
    said = question_measures([e.question for e in envs])
    assert said["openings of two words"] >= 0.67 * len(envs)
    assert said["distinct words without names"] >= 600
    train = [e.question for e in attempts(9, "train", 60)]
    assert shared_ngrams(train, [e.question for e in envs]) < 0.01


def test_a_policy_without_a_model_gets_far_in_the_almanac_and_not_in_worlds():
    how = dict(n=40, seed=0, split="test", progress=False)
    worlds = build_environments(WorldGenerator(), **how, **WORLDS)
    almanac = build_environments(KnowledgeGenerator(), **how)
    scores = [
        sum(row.solve_f1 for row in evaluate(RulePolicy(), [*envs]).rows) / 40
        for envs in (almanac, worlds)
    ]
    assert scores[0] > 0.5 and scores[1] < 0.3, scores


def test_numbers_in_words():
    said = {
        7: "seven",
        40: "forty",
        85: "eighty-five",
        300: "three hundred",
        2500: "two thousand five hundred",
    }
    assert {n: in_words(n) for n in said} == said


def test_rules_score_as_the_evaluation_does():
    envs = attempts(11, "test", 12)
    rows = evaluate(RulePolicy(), envs).rows
    assert rule_scores(envs) == pytest.approx([row.solve_f1 for row in rows])


def test_the_oracle_solves_worlds_under_both_rules():
    made = attempts(12, "test", 16)
    envs = [e for e, problems in zip(made, check_many(made)) if not problems]
    for match in ("paper", "strict"):
        rows = evaluate(OraclePolicy(envs), envs, match=match).rows
        assert all(r.solve_f1 == 1 and r.answered for r in rows), match
