"""Stages 1 to 5: environments that are right, separate, repeatable, and resumable."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_lit.audit import (
    SIMILAR,
    Asked,
    audit,
    audit_figure,
    audit_records,
    audit_sections,
    audit_table,
    duplicates,
    examples_table,
    exploits,
    findings_figure,
    leaves,
    match_any,
    near_duplicates,
    overlaps,
    phrasing,
    rarity,
    similarity,
    words,
)
from toolrl_lit.build import (
    BATCH,
    Made,
    Plan,
    build_environments,
    fact_versions,
    make_elsewhere,
    run_stages,
    settle,
)
from toolrl_lit.collect import OraclePolicy, collect
from toolrl_lit.deploy import check_many, embedded
from toolrl_lit.document import document
from toolrl_lit.engine import workers
from toolrl_lit.engine.facts import load_people
from toolrl_lit.engine.sandbox import ToolSandbox, shared
from toolrl_lit.engine.wording import compare_branches
from toolrl_lit.integrate import integrate, overlapping
from toolrl_lit.reward import match_paper, match_strict, score_batch
from toolrl_lit.scenario import (
    RELATIONS,
    Difficulty,
    KnowledgeGenerator,
    convert,
    decompose,
    extent,
    faults,
    gives_away,
    plain,
)
from toolrl_lit.schema import (
    SCENARIOS,
    STRATEGIES,
    Environment,
    OnDisk,
    StepRecord,
    UserError,
    from_ftrl,
    read_jsonl,
    read_manifest,
    to_ftrl,
)

GENERATOR = KnowledgeGenerator()
LATE = "final answer known before the last step"
ALL = {s: 1.0 for s in STRATEGIES}
SMALL = 16  # places in a batch, where several batches matter and their size does not
SINGLE = 2 * SMALL + 8


@pytest.fixture(scope="module")
def train():
    return build_environments(GENERATOR, 120, seed=0, progress=False)


@pytest.fixture(scope="module")
def test():
    return build_environments(GENERATOR, 60, seed=1, split="test", progress=False)


@pytest.fixture(scope="module")
def validation():
    return build_environments(GENERATOR, 60, seed=1, split="validation", progress=False)


@pytest.fixture(scope="module")
def parallel():
    "Questions that are answered by several chains."
    return build_environments(
        GENERATOR, 150, seed=5, scenarios=["parallel multi-hop"], progress=False
    )


@pytest.fixture(scope="module")
def many():
    "Environments of each split as they are before stage 5 examines them, which takes longer than all else."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolrl_lit.build.check_many", lambda envs, sandbox=None: [[]] * len(envs))
        return {
            split: list(build_environments(GENERATOR, 800, seed=2, split=split, progress=False))
            for split in ("train", "test")
        }


@pytest.fixture
def small_batches(monkeypatch):
    "Builds work on a few places at a time; what comes out is what large batches give."
    monkeypatch.setattr("toolrl_lit.build.BATCH", SMALL)


class Flaky:
    "A sandbox that stops the build after some batches."

    def __init__(self, batches):
        self.left = batches

    def examine(self, calls):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return shared().examine(calls)


def test_scenarios_are_balanced_and_every_attempt_is_accounted_for(train):
    assert Counter(e.kind for e in train) == {k: 30 for k in SCENARIOS}
    c = train.counts
    assert c["attempts"] == c["kept"] + sum(v for k, v in c.items() if k.startswith("dropped"))
    assert c["stage 3, documents after merging"] <= c["stage 2, documents"]


def test_golden_calls_give_golden_answers(train, test):
    for env in (*train, *test):
        codes = env.codes()
        calls = [(q.tool, q.arguments, codes[q.tool]) for q in env.scenario.sub_questions]
        assert [r.text for r in shared().call_many(calls)] == [
            q.answer for q in env.scenario.sub_questions
        ]


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


def test_parallel_answers_are_joined_in_order_or_come_from_a_comparison(parallel):
    kinds = Counter()
    for env in parallel:
        subs = env.scenario.sub_questions
        needed = {d for q in subs for d in q.depends_on}
        last = [q for q in subs if q.id not in needed]
        if env.answer == ", ".join(q.answer for q in last):
            kinds["list"] += 1
            continue
        values = [float(q.answer) for q in last]
        if "and what is that" in env.question:
            least = re.match("Which has the (small|low)", env.question)
            best = last[values.index(min(values) if least else max(values))]
            assert env.answer == f"{best.entities[0]}, {best.answer}"
            kinds["which"] += 1
        else:
            kind = "sum" if "the sum of" in env.question else "difference"
            assert float(env.answer) == pytest.approx(
                sum(values) if kind == "sum" else max(values) - min(values), abs=1e-3
            )
            kinds[kind] += 1
    assert set(kinds) == {"list", "which", "sum", "difference"}


def test_splits_share_nothing(train, validation, test):
    for one, other in itertools.combinations((train, validation, test), 2):
        assert overlaps(one, other) == {"tool names": [], "entities": [], "questions": []}


def test_overlaps_are_found(train):
    assert all(overlaps(train, train).values())


def test_same_seed_same_bytes_whatever_the_hash_seed(tmp_path):
    code = (
        "import sys; from toolrl_lit.build import build_environments; from toolrl_lit.scenario import KnowledgeGenerator\n"
        "build_environments(KnowledgeGenerator(), 20, 3, out=sys.argv[1], progress=False)"
    )
    files = [tmp_path / f"{h}.jsonl" for h in (1, 2)]
    for h, f in zip((1, 2), files):
        subprocess.run(
            [sys.executable, "-c", code, str(f)],
            check=True,
            env=os.environ | {"PYTHONHASHSEED": str(h)},
        )
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(read_jsonl(files[0], Environment)) == 20


def test_other_seeds_give_other_environments(train):
    other = build_environments(GENERATOR, 40, seed=9, progress=False)
    assert len({e.question for e in train} & {e.question for e in other}) < 10


def test_an_interrupted_build_goes_on_and_ends_in_the_same_bytes(single, small_batches, tmp_path):
    n, (path, whole) = SINGLE, single
    out, part = tmp_path / "cut.jsonl", tmp_path / "cut.jsonl.part"
    with pytest.raises(KeyboardInterrupt):
        build_environments(GENERATOR, n, seed=0, out=out, sandbox=Flaky(4), progress=False)
    assert not out.exists() and part.exists()
    kept = part.read_bytes()
    assert 0 < kept.count(b"\n") - 1 < 3  # a batch is finished, and not all are
    part.write_bytes(kept + b'{"counts": {"att')  # killed in the middle of a line
    again = build_environments(GENERATOR, n, seed=0, out=out, progress=False)
    assert (
        out.read_bytes() == path.read_bytes() and again.counts == whole.counts and not part.exists()
    )
    part.write_bytes(kept)  # left behind by another build: neither taken up nor lost
    with pytest.raises(UserError, match=f"{part}: holds another build .*seed: 0 there, 3 now"):
        build_environments(GENERATOR, n, seed=3, out=out, progress=False)
    assert part.read_bytes() == kept
    part.write_text("who knows\n")
    with pytest.raises(UserError, match=f"{part}: is not the journal"):
        build_environments(GENERATOR, n, seed=0, out=out, progress=False)


@pytest.mark.parametrize(
    "change, field",
    [
        (dict(n=0), "n:"),
        (dict(executor="slurm"), "executor"),
        (dict(split="dev"), "split"),
        (dict(workers=0), "workers"),
        (dict(workers=2, sandbox=Flaky(1)), "sandbox"),
        (dict(executor="ray", sandbox=Flaky(1)), "sandbox"),
        (dict(shard=0), "shard"),
        (dict(format="csv"), "format"),
        (dict(out="x.parquet"), "out: expected a .jsonl file, or a folder"),
        (dict(out="x.jsonl", format="parquet"), "out"),
        (dict(scenarios=["two-hop"]), "scenarios"),
        (dict(scenarios=[]), "scenarios"),
        (dict(rates={"magic": 1.0}), "rates"),
        (
            dict(rates={"toolset extension": 2}),
            "rates: expected a probability .*'toolset extension', got 2",
        ),
        (dict(rates={"toolset extension": "x"}), "rates: .*got 'x'"),
    ],
)
def test_bad_arguments_are_named(change, field):
    with pytest.raises(UserError, match=field):
        build_environments(**dict(generator=GENERATOR, n=4, seed=0, progress=False) | change)


def test_a_build_is_not_continued_with_facts_of_other_versions(tmp_path, monkeypatch):
    arguments = dict(generator=GENERATOR, n=BATCH + 6, seed=2, progress=False)
    with pytest.raises(KeyboardInterrupt):
        build_environments(**arguments, out=tmp_path / "a.jsonl", sandbox=Flaky(3))
    assert (tmp_path / "a.jsonl.part").exists()
    build_environments(**arguments | dict(n=4), out=tmp_path / "s")
    assert fact_versions().items() <= read_manifest(tmp_path / "s").versions.items()
    later = fact_versions() | {"facts": "99"}
    monkeypatch.setattr("toolrl_lit.build.fact_versions", lambda: later)
    for out, n in (("a.jsonl", BATCH + 6), ("s", 4)):
        with pytest.raises(UserError, match="holds another build .facts: .*'facts': '99'"):
            build_environments(**arguments | dict(n=n), out=tmp_path / out)
    plan = Plan(GENERATOR, 1, 0, "train", SCENARIOS, Difficulty(), {})
    with pytest.raises(UserError, match="executor: .* has facts of .*99"):
        make_elsewhere(plan, {0: 0}, later | {"facts": "1"})
    assert 0 in make_elsewhere(plan, {0: 0}, later)


# -- large builds: on disk, in several processes, on a cluster


def whole(folder):
    return b"".join((folder / s.file).read_bytes() for s in read_manifest(folder).shards)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    "Environments in one file, to compare with, made in one batch."
    path = tmp_path_factory.mktemp("single") / "a.jsonl"
    return path, build_environments(GENERATOR, SINGLE, 0, out=path, progress=False)


def test_a_result_on_disk_reads_like_a_list(single, train):
    path, result = single
    listed = read_jsonl(path, Environment)
    assert list(result) == listed and len(result) == SINGLE and list(result) == train[:SINGLE]
    assert (
        result[-1] == listed[-1]
        and result[3:9:2] == listed[3:9:2]
        and random.Random(0).sample(result, 2)[0] in listed
    )
    with pytest.raises(IndexError):
        result[SINGLE]


@pytest.mark.parametrize(
    "shard, format", [(SINGLE, "jsonl"), (SMALL, "jsonl"), (7, "jsonl"), (25, "parquet")]
)
def test_shards_hold_the_same_environments_as_one_file(
    single, small_batches, tmp_path, shard, format
):
    path, result = single
    sharded = build_environments(
        GENERATOR, SINGLE, 0, out=tmp_path / "s", shard=shard, format=format, progress=False
    )
    manifest = read_manifest(tmp_path / "s")
    assert [s.rows for s in manifest.shards] == [shard] * (SINGLE // shard) + [SINGLE % shard] * (
        SINGLE % shard > 0
    )
    assert manifest.counts == sharded.counts == result.counts
    assert manifest.build["seed"] == 0 and set(fact_versions()) <= set(manifest.versions)
    assert (
        list(sharded) == list(result) == read_jsonl(tmp_path / "s", Environment)
        and sharded[29] == result[29]
    )
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == sorted(
        ["manifest.json", *(s.file for s in manifest.shards)]
    )
    if format == "jsonl":
        assert whole(tmp_path / "s") == path.read_bytes()


def test_the_number_of_processes_changes_nothing(single, small_batches, tmp_path):
    path, result = single
    build_environments(GENERATOR, SINGLE, 0, out=tmp_path / "two.jsonl", workers=2, progress=False)
    assert (tmp_path / "two.jsonl").read_bytes() == path.read_bytes()
    kept = build_environments(GENERATOR, SMALL + 4, 0, workers=3, progress=False)
    assert list(kept) == result[: SMALL + 4]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(0, 10**6))
def test_settling_batches_gives_what_one_after_the_other_gives(sizes, seed):
    "Questions are numbers; each place goes through a random list of them, some of which fail the examination (None)."

    def question(place, n):
        rng = random.Random(f"{seed} {place} {n}")
        return None if rng.random() < 0.2 else rng.randrange(15 if n < 6 else 10**6)

    def make(begin):
        made = {}
        for place, n in begin.items():
            m = n
            while question(place, m) is None:
                m += 1
            made[place] = Made(
                m,
                str(question(place, m)),
                f"{place} {question(place, m)}",
                Counter(attempts=m - n + 1),
            )
        return made

    asked, got, total, place, places = set(), [], 0, 0, []
    for size in sizes:
        places.append(range(place, place + size))
        place += size
        lines, counts = settle(make(dict.fromkeys(places[-1], 0)), asked, make)
        got += lines
        total += counts["attempts"]
    seen, want, attempts = set(), [], 0
    for some in places:  # the plain way: round after round
        done, n = {}, 0
        while len(done) < len(some):
            for p in some:
                if p in done:
                    continue
                attempts += 1
                q = question(p, n)
                if q is not None and str(q) not in seen:
                    seen.add(str(q))
                    done[p] = f"{p} {q}"
            n += 1
        want += [done[p] for p in some]
    assert got == want and total == attempts


@pytest.mark.parametrize(
    "function, call", [("write_shard", 2), ("write_text", 2), ("write_text", 4)]
)
def test_a_killed_build_of_shards_goes_on_and_ends_in_the_same_bytes(
    single, small_batches, tmp_path, function, call
):
    "Killed without warning: before a shard, between a shard and its journal, before the manifest."
    path, result = single
    arguments = dict(n=SINGLE, seed=0, out=str(tmp_path / "s"), shard=SMALL)
    code = (
        "import os, signal, toolrl_lit.build as b, toolrl_lit.engine.journal as j\n"
        "from toolrl_lit.scenario import KnowledgeGenerator\n"
        f"real, calls = j.{function}, []\n"
        "def deadly(*a):\n"
        "    calls.append(a)\n"
        f"    if len(calls) == {call}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*a)\n"
        f"j.{function} = deadly; b.BATCH = {SMALL}\n"
        f"b.build_environments(KnowledgeGenerator(), progress=False, **{arguments!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (tmp_path / "s" / "build.part").exists() and not (
        tmp_path / "s" / "manifest.json"
    ).exists()
    with pytest.raises(UserError, match="without manifest.json"):
        read_jsonl(tmp_path / "s", Environment)
    with pytest.raises(UserError, match="holds another build .seed: 0 there, 1 now"):
        build_environments(GENERATOR, **arguments | {"seed": 1}, progress=False)
    again = build_environments(GENERATOR, **arguments, progress=False)
    assert whole(tmp_path / "s") == path.read_bytes() and again.counts == result.counts
    assert not (tmp_path / "s" / "build.part").exists()


def test_a_finished_folder_is_not_built_again_and_not_overwritten(tmp_path):
    arguments = dict(generator=GENERATOR, n=8, out=tmp_path / "s", progress=False)
    build_environments(**arguments, seed=0)
    again = build_environments(**arguments, seed=0, sandbox=Flaky(0))
    assert len(again) == 8 and again.counts["kept"] == 8
    with pytest.raises(UserError, match="choose another folder"):
        build_environments(**arguments, seed=1)
    assert [e.seed for e in again] == [0] * 8


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_shard_that_was_changed_or_lost_is_named(tmp_path, format):
    stored = build_environments(
        GENERATOR, 12, 0, out=tmp_path / "s", shard=5, format=format, progress=False
    )
    shard = tmp_path / "s" / f"train-00001-of-00003.{format}"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    fresh = OnDisk(tmp_path / "s", Environment)
    assert fresh[4] == stored[4]
    for read in (
        lambda: list(fresh),
        lambda: fresh[5],
        lambda: read_jsonl(tmp_path / "s", Environment),
    ):
        with pytest.raises(UserError, match=f"{shard.name}: this shard was changed or cut off"):
            read()
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: cannot be read"):
        read_jsonl(tmp_path / "s", Environment)


def test_memory_does_not_grow_with_what_is_on_disk(tmp_path):
    code = """
import sys, tracemalloc
import toolrl_lit.build as b
from toolrl_lit.scenario import KnowledgeGenerator
g = KnowledgeGenerator()
b.build_environments(g, 64, 1, progress=False)
b.check_many = lambda envs, sandbox=None: [[]] * len(envs)
tracemalloc.start()
for n in (200, 800):
    tracemalloc.reset_peak()
    r = b.build_environments(g, n, 1, out=f"{sys.argv[1]}/{n}", shard=100, progress=False)
    assert sum(len(e.question) for e in r)
    print(tracemalloc.get_traced_memory()[1])
    del r
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    few, many = map(int, done.stdout.split())
    sizes = [sum(p.stat().st_size for p in (tmp_path / n).iterdir()) for n in ("200", "800")]
    assert many - few < (sizes[1] - sizes[0]) / 2, (few, many, sizes)


class Shelf:
    "An author of environments that are written already; it gives some up, and stops where it is told."

    def __init__(self, written, drop=lambda i: False, stop=None):
        self.written, self.drop, self.stop = written, drop, stop

    def identity(self):
        return {"questions": [e.question for e in self.written]}

    def environments(self, n, seed, split, difficulty, rates, sandbox=None):
        for i, e in enumerate(self.written[:n]):
            if i == self.stop:
                raise UserError("out of ink")
            yield None if self.drop(i) else e, Counter(attempts=1)


@pytest.mark.parametrize("kept, files", [(10, 3), (8, 2), (9, 3), (1, 1), (0, 0)])
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_shards_of_an_author_are_as_many_as_it_kept(train, tmp_path, kept, files, format):
    written, author = train[:10], Shelf(train[:10], drop=lambda i: i >= kept)
    built = build_environments(
        author, 10, 0, out=tmp_path / "s", shard=4, format=format, progress=False
    )
    assert [s.file for s in read_manifest(tmp_path / "s").shards] == [
        f"train-{i:05d}-of-{files:05d}.{format}" for i in range(files)
    ]
    assert (
        list(built) == written[:kept]
        and len(built) == kept == built.counts.get("kept", 0)
        and built.counts["attempts"] == 10
    )
    assert {p.name for p in (tmp_path / "s").iterdir()} == {
        "manifest.json",
        *(s.file for s in read_manifest(tmp_path / "s").shards),
    }
    one = build_environments(author, 10, 0, out=tmp_path / "one.jsonl", progress=False)
    assert list(one) == written[:kept] == read_jsonl(tmp_path / "one.jsonl", Environment)


def seen(folder):
    "What lies in a folder, without the note of a finished build."
    return [p.name for p in folder.iterdir() if not p.name.endswith(".build")]


@pytest.mark.parametrize("out", ["s", "s.jsonl"])
def test_an_author_that_stops_leaves_what_is_finished_and_another_build_does_not_take_its_place(
    train, tmp_path, out
):
    build = lambda author, **more: build_environments(
        author, 10, 0, out=tmp_path / out, progress=False, **more
    )
    with pytest.raises(
        UserError, match="out of ink .7 of 10 environments are finished, see .*s.so-far.jsonl"
    ):
        build(Shelf(train[:10], stop=7))
    assert read_jsonl(tmp_path / "s.so-far.jsonl", Environment) == train[:7]
    for other in (Shelf(train[1:11]), GENERATOR):
        with pytest.raises(UserError, match="holds another build .*there.*now"):
            build(other)
    assert list(build(Shelf(train[:10]))) == train[:10]
    assert seen(tmp_path) == [out]
    assert list(build(Shelf(train[:10], stop=99))) == train[:10]
    with pytest.raises(UserError, match="holds another build .*there.*now"):
        build(GENERATOR)


@pytest.mark.parametrize("out", ["s", "s.jsonl"])
def test_two_builds_do_not_work_in_one_place(train, tmp_path, out):
    build = lambda author: build_environments(author, 4, 0, out=tmp_path / out, progress=False)

    def drop(i):
        "While the first is at work, a second begins the same build."
        with pytest.raises(UserError, match="another process is working"):
            build(Shelf(train[:4]))
        tried.append(i)

    tried = []
    assert (
        list(build(Shelf(train[:4], drop))) == train[:4]
        and tried == [0, 1, 2, 3]
        and seen(tmp_path) == [out]
    )


def test_what_is_written_is_not_built_by_several_processes(train):
    for more, said in (
        (dict(workers=2), "keeps the budget"),
        (dict(executor="ray"), "keeps the budget"),
        (dict(scenarios=["multi-hop"]), "its questions"),
    ):
        with pytest.raises(UserError, match=said):
            build_environments(Shelf(train[:4]), 4, 0, progress=False, **more)


def test_ray_is_asked_for_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install 'toolrl_lit.ray.'"):
        build_environments(GENERATOR, 4, 0, executor="ray", progress=False)


def test_a_cluster_makes_the_same_bytes_though_a_worker_is_killed(
    train, small_batches, tmp_path, monkeypatch
):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'toolrl_lit[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    small, out = dict(num_cpus=1, object_store_memory=80 << 20), tmp_path / "ray.jsonl"
    head = partial(Cluster, True, head_node_args=small | dict(include_dashboard=False))
    begun, killed, plain = tmp_path / "begun", tmp_path / "killed", workers._do

    def dies_at_the_second_task(work, task):
        if begun.exists() and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        begun.touch()
        return plain(work, task)

    monkeypatch.setattr(workers, "_do", dies_at_the_second_task)
    cluster = workers.started(head, ray.shutdown, times=4)
    try:
        workers.started(partial(cluster.add_node, **small), lambda: None, times=4)
        result = build_environments(
            GENERATOR,
            len(train),
            0,
            out=out,
            executor="ray",
            address=cluster.address,
            progress=False,
        )
    finally:
        cluster.shutdown()
    assert killed.exists()
    made = [e.model_dump_json(exclude_defaults=True) for e in train]
    assert out.read_text("utf-8").splitlines() == made and result.counts == train.counts


def test_a_cluster_that_does_not_answer_is_named():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'toolrl_lit[ray]'")
    with pytest.raises(UserError, match="address: .*127.0.0.1:1"):
        build_environments(GENERATOR, 4, 0, executor="ray", address="127.0.0.1:1", progress=False)


def test_too_many_environments_from_too_few_facts_end_in_one_sentence(monkeypatch):
    class Tiny(KnowledgeGenerator):
        def scenario(self, *a, **k):
            return None

    with pytest.raises(UserError, match="could be made"):
        build_environments(Tiny(), 1, 0, progress=False)


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        build_environments(GENERATOR, 4, 0, out=tmp_path / "file" / "x.jsonl", progress=False)
    assert (tmp_path / "file").read_text() == "in the way"


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(1, 4), st.integers(0, 2)),
    st.tuples(st.integers(1, 4), st.integers(0, 2)),
    st.sampled_from(["train", "test"]),
)
def test_any_difficulty_passes_the_examination(seed, hops, branches, split):
    grow = lambda r: (r[0], r[0] + r[1])
    difficulty = Difficulty(hops=grow(hops), branches=grow(branches), calls=8, distractors=(1, 3))
    envs = build_environments(
        GENERATOR, 4, seed, split=split, difficulty=difficulty, rates=ALL, progress=False
    )
    assert check_many(list(envs)) == [[]] * 4
    assert all(len(e.scenario.sub_questions) <= 8 for e in envs)


def test_each_strategy_alone_leaves_environments_valid():
    for s in STRATEGIES:
        envs = build_environments(GENERATOR, 16, seed=4, rates={s: 1.0}, progress=False)
        assert sum(s in e.strategies for e in envs) > 8 and all(
            set(e.strategies) <= {s} for e in envs
        )
        if s != "toolset extension":
            assert not any(t.distractor for e in envs for t in e.tools)
    plain_ones = build_environments(GENERATOR, 8, seed=4, rates={}, progress=False)
    assert all(not e.strategies for e in plain_ones)


def test_every_scaling_strategy_changes_types_parameters_and_tools():
    envs = build_environments(GENERATOR, 200, seed=6, rates=ALL, progress=False)
    kinds = Counter(
        p.get("type", "enum") if "enum" not in p else "enum"
        for e in envs
        for t in e.tools
        for p in t.doc.parameters["properties"].values()
    )
    assert {"string", "enum", "array", "object", "integer", "boolean"} <= set(kinds)
    assert all(s in {x for e in envs for x in e.strategies} for s in STRATEGIES)
    assert any(len(q.arguments) > 1 for e in envs for q in e.scenario.sub_questions)


def test_tools_know_a_neighbourhood(train):
    for env in train[:40]:
        for tool in env.tools:
            assert len(embedded(tool.code)) >= 2


def counts(findings):
    return {f.check: f.count for f in findings if f.failed}


def test_tools_of_both_splits_are_named_from_different_patterns(train, test):
    verbs = ("get", "find", "lookup", "fetch")
    assert all(t.name.startswith(verbs) for e in train for t in e.tools)
    assert not any(t.name.startswith(verbs) for e in test for t in e.tools)


def test_every_environment_has_a_tool_that_nobody_needs_and_few_in_all(train, test):
    for env in (*train, *test):
        assert any(t.distractor for t in env.tools) and 2 <= len(env.tools) <= 5


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "kind, hops, branches",
    [
        ("multi-hop", 6, 1),
        ("multi-hop", 8, 1),
        ("parallel single-hop", 1, 6),
        ("parallel multi-hop", 3, 6),
        ("parallel multi-hop", 8, 2),
    ],
)
def test_chains_of_eight_and_six_branches_are_built_and_pass(kind, hops, branches, split):
    if (hops, branches, split) == (8, 2, "test"):
        hops = 6  # its facts hold no two chains of eight that share no answer
    size = Difficulty(
        hops=(hops, hops), branches=(branches, branches), calls=hops * branches, tools=20
    )
    n = 1 if hops * branches > 8 else 2
    for env in build_environments(
        GENERATOR, n, seed=0, scenarios=(kind,), split=split, difficulty=size, progress=False
    ):
        assert (
            len(env.scenario.sub_questions) == hops * branches and len(env.scenario.waves()) == hops
        )


def test_the_steps_of_long_chains_change_no_short_one(train):
    far = {r.name for r in RELATIONS.values() if r.far}
    used = {
        q.relation
        for e in build_environments(
            GENERATOR,
            4,
            seed=0,
            scenarios=("multi-hop",),
            difficulty=Difficulty(hops=(8, 8), calls=8),
            progress=False,
        )
        for q in e.scenario.sub_questions
    }
    assert far & used and not far & {q.relation for e in train for q in e.scenario.sub_questions}
    assert not far & set(GENERATOR.relations()) and not far & set(
        GENERATOR.siblings("city_country")
    )


def test_cities_are_asked_about_the_more_the_larger_they_are(train):
    people = load_people()["city"]
    asked = [
        q.entities[0]
        for e in train
        for q in e.scenario.sub_questions
        if q.relation[:5] == "city_" and not q.depends_on
    ]
    assert asked and all(people[c] >= 200_000 for c in asked)
    assert sorted(people[c] for c in asked)[len(asked) // 2] > 400_000


def test_the_default_data_passes_its_audit(train, test):
    assert counts(audit(list(train), list(test))) == {}


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_rule_accepts_a_wrong_result_in_many_environments(many, split):
    "None that stage 5 lets pass: whatever the audit finds, the examination refuses."
    rules = (match_any, match_paper, match_strict)
    accepts = lambda text, golden: any(rule(text, golden) for rule in rules)
    found = [env for env in many[split] if any(why != LATE for why, _ in exploits(env, accepts))]
    assert len(found) < 30 and [e.id for e, p in zip(found, check_many(found)) if not p] == []


def test_what_strict_matching_accepts_is_given_away():
    for text, golden in (
        ("850", "+850"),
        ("036", "+36"),
        ("Feira de Santana", ".de"),
        ("Republic of Timor-Leste", "Timor Leste"),
        ("x 3.50 y", "3.50"),
    ):
        assert gives_away(text, [golden]), (text, golden)
    for text, golden in (
        ("1850", "+850"),
        ("Denmark", ".de"),
        ("Timor Sea", "Timor Leste"),
        ("13.50", "+3.5"),
    ):
        assert not gives_away(text, [golden])


def test_a_code_of_several_territories_names_no_country():
    for split in ("train", "test"):
        facts = GENERATOR.table("calling_code_country", split)
        assert (
            facts
            and not {"+61", "+47", "+590", "+1", "+"} & set(facts)
            and all(re.fullmatch(r"\+\d[\d-]*", code) for code in facts)
        )


def test_no_name_in_a_question_has_parentheses():
    for split in ("train", "test"):
        for relation in RELATIONS:
            assert not [s for s in GENERATOR.table(relation, split) if "(" in s], relation


def test_questions_ask_for_other_units_and_the_golden_calls_say_them(many):
    found = [
        (e, q)
        for split in ("train", "test")
        for e in many[split]
        for q in e.scenario.sub_questions
        if q.unit
    ]
    assert check_many([e for e, _ in found[:30]]).count([]) > 20
    for e, q in found:
        units, value = (
            dict(RELATIONS[q.relation].units),
            GENERATOR.table(q.relation, e.split)[q.entities[0]],
        )
        assert (
            q.answer == convert(value, units[q.unit])
            and q.unit in q.arguments.values()
            and q.unit in q.question
            and q.unit in e.question
        )
    env, q = found[0]
    tool = next(t for t in env.tools if t.name == q.tool)
    name = next(k for k, v in q.arguments.items() if v == q.unit)
    plain_call = {k: v for k, v in q.arguments.items() if k != name}
    assert not match_paper(
        ToolSandbox(workers=1).call(q.tool, plain_call, tool.code).text, q.answer
    ), "the unit of the facts is not what is asked for"


def test_the_wrong_unit_is_noticed_where_it_would_be_accepted(many):
    env = next(
        e for e in many["train"] if any(q.unit for q in e.scenario.sub_questions)
    ).model_copy(deep=True)
    q = next(q for q in env.scenario.sub_questions if q.unit)
    tool = next(t for t in env.tools if t.name == q.tool)
    tool.code = re.sub(
        r"factors = \{.*\}",
        f"factors = {json.dumps(dict.fromkeys(json.loads(re.search(r'factors = (.*)', tool.code)[1]), dict(RELATIONS[q.relation].units)[q.unit]))}",
        tool.code,
    )
    assert any(p.startswith("solved by another unit") for p in check_many([env])[0])


def test_dates_are_computed_by_the_zone_and_its_summer_time():
    facts = lambda relation: GENERATOR.table(relation, "train") | GENERATOR.table(relation, "test")
    for city, summer, winter, began in (
        ("Lima", "2024-07-01 13:00", "2025-01-15 01:00", "2025-01-01 05:00"),
        ("Delhi", "2024-07-01 23:30", "2025-01-15 11:30", "2024-12-31 18:30"),
        ("Kathmandu", "2024-07-01 23:45", "2025-01-15 11:45", "2024-12-31 18:15"),
    ):
        known = [facts(f"city_{r}").get(city) for r in ("local_time", "winter_time", "new_year")]
        assert all(x in (None, y) for x, y in zip(known, (summer, winter, began))) and any(known), (
            city,
            known,
        )


def branches_of(relation, *subjects, unit=""):
    r = RELATIONS[relation].asked_in(unit) if unit else RELATIONS[relation]
    facts = GENERATOR.table(relation, "train") | GENERATOR.table(relation, "test")
    return [[(r, s, r.says(facts[s]))] for s in subjects]


@pytest.mark.parametrize("unit", ["", "square miles"])
def test_comparisons_differences_and_sums_are_right(unit):
    two = branches_of("country_area", "Peru", "Poland", unit=unit)
    peru, poland = (float(b[0][2]) for b in two)
    seen = set()
    for i in range(60):
        question, answer = compare_branches(two, random.Random(i))
        if "sum of" in question:
            want, kind = peru + poland, "sum"
        elif question.startswith("By how much does"):
            want, kind = abs(peru - poland), "difference"
            assert (question.index("Peru") < question.index("Poland")) == (peru > poland)
        else:
            kind, small = "which", "smaller" in question
            assert small or "larger" in question
            assert (unit or "square kilometres") in question and answer.split(", ")[0] == (
                "Peru" if (peru < poland) == small else "Poland"
            )
            answer, want = answer.split(", ")[1], min(peru, poland) if small else max(peru, poland)
        assert float(answer) == pytest.approx(want, abs=1e-3) and (not unit or unit in question)
        seen.add(kind)
    assert seen == {"sum", "difference", "which"}


def test_a_text_that_names_all_candidates_is_no_answer():
    record = next(
        e
        for e in build_environments(
            GENERATOR,
            100,
            seed=6,
            scenarios=("parallel multi-hop",),
            progress=False,
            difficulty=Difficulty(hops=(2, 2), branches=(2, 2)),
        )
        if "and what is that" in e.question
    )
    names = [
        q.answer for q in record.scenario.sub_questions if not q.answer.replace(".", "").isdigit()
    ]
    step = StepRecord.model_validate(
        record.start().model_dump() | dict(unsolved={}, solve_rate=1.0, turn=2)
    )
    score = lambda text: score_batch([(text, step)], match="strict")[0].case
    assert score(" and ".join(names)) != "answer" and score(record.answer) == "answer"


def test_an_answer_that_is_known_before_the_last_step_is_counted(train):
    assert {f.check: f.count for f in audit(train)}[LATE] == 0
    env = next(e for e in train if e.kind == "multi-hop").model_copy(deep=True)
    env.scenario.answer = env.scenario.sub_questions[0].answer
    assert {f.check: f.count for f in audit([env])}[LATE] == 1


def test_every_check_is_in_the_figure_of_the_findings(train, test):
    findings = audit(train, test)
    drawn = {
        (check, text): share
        for bars in findings_figure(findings).data
        for check, text, share in zip(bars.y, bars.text, bars.x)
    }
    assert drawn == {
        (f.check, f"{f.count} of {f.of}"): pytest.approx(100 * f.count / max(1, f.of))
        for f in findings
    }


def test_pairs_of_documents_that_overlap_are_counted_before_and_after_merging():
    told, seen = Counter(), Counter()
    for i in range(60):
        kind, rng = SCENARIOS[i % 4], random.Random(i)
        told += run_stages(GENERATOR, str(i), kind, "train", Difficulty(), {}, random.Random(i))[1]
        scenario, _ = decompose(GENERATOR, str(i), kind, "train", Difficulty(), rng)
        if not scenario:
            continue
        written = document(scenario, GENERATOR, Difficulty(), rng)
        seen["before"] += len(overlapping(written.documents()))
        seen["after"] += len(overlapping(integrate(written, rng).documents()))
    assert {k: told[f"stage 3, pairs that overlap {k} merging"] for k in ("before", "after")} == {
        k: seen[k] for k in ("before", "after")
    }
    assert seen["before"] > 10 > seen["after"]


def panels(figure):
    "What each histogram counts: value -> number, by the title above it."
    titles = [a.text for a in figure.layout.annotations][2:]
    counted = {title: Counter() for title in titles}
    for bars in figure.data:
        if bars.type == "bar" and bars.orientation != "h":
            counted[titles[int(bars.xaxis[1:]) - 3]].update(
                {x: y for x, y in zip(bars.x, bars.y) if y}
            )
    return counted


def test_the_figure_of_difficulty_counts_hops_branches_distractors_and_parameters(train):
    figure, waves = audit_figure(train), [e.scenario.waves() for e in train]
    assert panels(figure) == {
        "hops": Counter(map(len, waves)),
        "branches": Counter(len(w[0]) for w in waves),
        "distractors": Counter(sum(t.distractor for t in e.tools) for e in train),
        "parameters of a tool": Counter(
            len(t.doc.parameters["properties"]) for e in train for t in e.tools
        ),
    }
    balance = Counter()
    for bars in figure.data:
        if bars.type == "bar" and bars.orientation == "h":
            balance[bars.name] += sum(bars.x)
    assert balance == Counter(e.kind for e in train)
    table = next(d for d in figure.data if d.type == "heatmap")
    assert sum(n or 0 for row in table.z for n in row) == 120 and "null" not in str(
        table.text
    ) + str(table.texttemplate)


def test_the_figure_of_records_shows_what_records_know(train):
    some = list(train)[:20]
    by_id = {e.id: e for e in some}
    steps = [
        s for t in collect(OraclePolicy(some), some) for s in t.step_records(by_id[t.environment])
    ]
    records = [from_ftrl(to_ftrl(s), s.id) for s in steps]
    assert counts(audit_records(records)) == {}, (
        "records of later turns, some of whose tools have no answer left"
    )
    shown = panels(audit_figure(records))
    assert shown["turns taken"] == Counter(s.turn for s in steps) and shown[
        "solved before, %"
    ] == Counter(round(100 * s.solve_rate) for s in steps)
    assert shown["tools with no answer left"] == Counter(
        len(s.tools) - sum(map(bool, s.unsolved.values())) for s in steps
    )
    left = next(d for d in audit_figure(records).data if d.type == "heatmap")
    assert left.x[0] == 0 and sum(row[0] or 0 for row in left.z) == sum(
        s.open() == 0 for s in steps
    )


def test_sections_of_an_audit_show_every_check_and_examples_whole(train):
    e = train[0].model_copy(deep=True)
    e.scenario.question = "Well, " + "please, " * 60 + f"is it {e.answer}?"
    findings = audit([e])
    (_, shown), (_, figures) = audit_sections(findings, [e])
    tables = [x for x in shown if hasattr(x, "columns")]
    assert list(tables[0]["check"]) == [f.check for f in findings] and {
        "found",
        "of",
        "a defect",
    } < set(tables[0])
    assert e.question in tables[1][tables[1].check == "golden answer in question"].example.iloc[0]
    assert (
        len(figures) == 1
        and tables[0].equals(audit_table(findings))
        and tables[1].equals(examples_table(findings))
    )


def test_nothing_is_not_audited():
    with pytest.raises(UserError, match="there is no environment"):
        audit([])


@pytest.mark.parametrize(
    "kind, size, least",
    [
        ("multi-hop", dict(hops=(1, 1)), (1, 2)),
        ("parallel single-hop", dict(branches=(1, 1)), (2, 1)),
        ("parallel multi-hop", dict(hops=(1, 3), branches=(1, 3)), (2, 2)),
    ],
)
def test_a_scenario_is_never_smaller_than_its_name(kind, size, least):
    for i in range(40):
        n, hops = extent(kind, Difficulty(**size), random.Random(i))
        assert n >= least[0] and hops >= least[1] and n * hops <= 4
    with pytest.raises(UserError, match="calls=1"):
        extent(
            kind, Difficulty(**size | dict(hops=(1, 1), branches=(1, 1), calls=1)), random.Random(0)
        )


def test_questions_that_are_larger_than_allowed_are_refused():
    with pytest.raises(ValueError, match=r"calls=4 is less than the least of hops=\(8, 8\)"):
        Difficulty(hops=(8, 8))


def test_an_audit_finds_what_was_planted(train):
    def planted(change, **options):
        env = train[0].model_copy(deep=True)
        change(env, env.scenario.sub_questions[0])
        return set(counts(audit([env], **options)))

    def in_question(e, q):
        e.scenario.question += f" Is it {q.answer}?"

    def in_document(e, q):
        e.tools[0].doc.description += f" For instance {q.answer}."

    def neighbour(e, q):
        t = next(t for t in e.tools if t.name == q.tool)
        other = next(v for _, v in embedded(t.code) if v != q.answer)
        t.code = t.code.replace(json.dumps(other), json.dumps(q.answer + " and more"))

    def unknown(e, q):
        e.scenario.question = "What is it?"

    for change, check in (
        (in_question, "golden answer in question"),
        (in_document, "golden answer in documents"),
        (neighbour, "wrong entity accepted"),
        (unknown, "argument that nothing tells"),
    ):
        assert check in planted(change), check
    assert "wrong entity accepted" not in planted(
        neighbour, match=lambda text, golden: text == golden
    )


def test_an_audit_finds_a_final_answer_that_no_step_has(parallel):
    computed = next(e for e in parallel if "the sum of" in e.question or "exceed" in e.question)
    assert computed.answer not in [q.answer for q in computed.scenario.sub_questions]
    for where in ("question", "documents"):
        env = computed.model_copy(deep=True)
        if where == "question":
            env.scenario.question += f" (It is {env.answer}.)"
        else:
            env.tools[-1].doc.description += f" Such as {env.answer}."
        for findings in (audit([env]), audit_records([from_ftrl(to_ftrl(env), "x")])):
            told = {f.check: f for f in findings if f.failed and f.check.startswith("final")}
            assert (
                set(told) == {f"final answer in {where}"}
                and told[f"final answer in {where}"].count
                == told[f"final answer in {where}"].of
                == 1
            )
            assert "documents and code do not fit" not in counts(findings)


def test_an_audit_finds_repetition_within_and_between(train):
    assert counts(audit([train[0], train[0]]))["same question twice"] == 1
    between = counts(audit([train[0]], [train[0].model_copy(deep=True)]))
    assert {
        "tool names shared by the splits",
        "entities shared by the splits",
        "questions shared by the splits",
    } <= set(between)
    assert "_" in phrasing(train[0]) and duplicates(train[:3], lambda e: e.id) == []


def test_an_audit_takes_environments_of_other_makers():
    broken = "def f(:"
    env = Environment.model_validate(
        dict(
            scenario=dict(
                id="x",
                kind="single-hop",
                question="Who?",
                answer="Ada",
                sub_questions=[
                    dict(id="q1", question="Who?", answer="Ada", tool="f", arguments={})
                ],
            ),
            tools=[dict(doc=dict(name="f", description="", parameters={}), code=broken)],
        )
    )
    assert exploits(env) == [] and counts(audit([env])) == {"examination of stage 5 failed": 1}
    assert leaves({"a": [1, {"b": "Lima"}]}) == ["1", "lima"]
    assert counts(audit([env], [env]))["examination of stage 5 failed"] == 2, (
        "against a second split as well"
    )


@pytest.mark.parametrize(
    "tool",
    [
        {},
        {"function": 5},
        {"function": {"name": None}},
        {"function": {"name": "f", "parameters": [1]}},
        {"function": {"name": "f", "parameters": {"properties": 5}}},
        {"function": {"name": "f", "parameters": {"required": True}}},
        {"function": {"name": "f", "parameters": {"required": ["a"]}}},
    ],
)
def test_an_audit_takes_records_whose_documents_are_nothing_of_the_kind(tool):
    step = StepRecord(
        environment="x",
        messages=[{"role": "user", "content": None}],
        tools=[tool],
        codes={"f": "def f(: pass"},
        unsolved={"f": ["Lima"]},
    )
    findings = audit_records([step], [step])
    assert counts(findings)["documents and code do not fit"] == 2 and audit_sections(
        findings, [step]
    )


# -- near-duplicates, and data of other makers


def asked(*questions):
    return [Asked(str(i), "train", q, ("Lima",)) for i, q in enumerate(questions)]


def test_near_duplicates_are_found_by_similar_words_and_equal_answers(train):
    rest = [
        Asked(e.id, e.split, e.question, tuple(sorted(q.answer for q in e.scenario.sub_questions)))
        for e in train
    ]
    spoilt = [
        a._replace(id=f"copy of {a.id}", question=a.question.replace("the ", "the very ", 1))
        for a in rest
        if len(a.question) > 80 and "the " in a.question
    ]
    assert len(spoilt) > 20
    found = {b.id: a.id for a, b in near_duplicates([*rest, *spoilt])}
    right = [s for s in spoilt if found.get(s.id) == s.id.removeprefix("copy of ")]
    weight = rarity(a.question for a in [*rest, *spoilt])
    near = [
        s
        for s in spoilt
        for a in rest
        if s.id == f"copy of {a.id}"
        and similarity(words(s.question), words(a.question), weight) >= SIMILAR
    ]
    assert len(near) > 10 and len(right) >= 0.9 * len(near)
    assert near_duplicates(rest) == []
    assert near_duplicates([a._replace(answers=(a.id,)) for a in [*rest, *spoilt]]) == [], (
        "other answers, other questions"
    )


def test_equal_questions_are_not_near_duplicates():
    first = "What is the capital of the country where the river Rimac reaches the sea?"
    assert near_duplicates(asked(first, first.upper())) == []
    assert [
        (a.id, b.id)
        for a, b in near_duplicates(asked(first, first.replace("capital", "capital city")))
    ] == [("0", "1")]


def test_an_audit_reports_near_duplicates_across_splits_as_a_defect(train):
    e = next(e for e in train if len(words(e.question)) > 15)
    near = e.model_copy(deep=True)
    near.scenario.id, near.scenario.question, near.scenario.split = (
        "other",
        e.question + " Please.",
        "test",
    )
    found = {f.check: f for f in audit([e], [near])}["near-duplicate question shared by the splits"]
    assert found.count == 1 and found.defect and "Please." in found.examples[0]


def spoil(record, **change):
    return from_ftrl(
        record | {k: json.dumps(v) if k != "messages" else v for k, v in change.items()}, "spoilt"
    )


def test_records_of_the_authors_are_audited_without_golden_calls(train):
    records = [to_ftrl(e) for e in train]
    steps = [from_ftrl(r, e.id) for r, e in zip(records, train)]
    assert counts(audit_records(steps)) == {}
    record, env = records[0], train[0]
    (name, golden), *_ = env.unsolved().items()
    parameters = ", ".join(
        f"{p}=None" for t in env.tools if t.name == name for p in t.doc.parameters["properties"]
    )
    says = lambda text: {name: f"def {name}({parameters}):\n    return {text!r}\n"}
    for change, check in (
        (dict(codes={}), "documents and code do not fit"),
        (dict(tools=[]), "documents and code do not fit"),
        (dict(codes=env.codes() | {name: "def f(:"}), "documents and code do not fit"),
        (
            dict(codes=env.codes() | says(golden[0] + " and so on")),
            "solved by a call that knows nothing",
        ),
        (
            dict(messages=[{"role": "user", "content": f"Is it {golden[0]}?"}]),
            "golden answer in question",
        ),
    ):
        assert check in counts(audit_records([*steps[1:], spoil(record, **change)])), (
            change,
            check,
        )
    done = {
        f.check: f.count for f in audit_records([*steps, steps[0], spoil(record, unsolved_set={})])
    }
    assert done["same prompt twice"] == 2 and done["question of an earlier record"] == 2


def test_records_of_two_files_are_compared_whatever_their_own_fields_say(train, test):
    as_records = lambda envs, **more: [from_ftrl(to_ftrl(e) | more, e.id) for e in envs]
    learnt, split = (
        as_records(train[:20]),
        lambda findings: {k: v for k, v in counts(findings).items() if "split" in k},
    )
    assert split(audit_records(learnt, as_records(test[:20]))) == {} == split(audit_records(learnt))
    names = {t.name for e in train[:20] for t in e.tools}
    same = audit_records(learnt, learnt)
    assert split(same) == {
        "questions shared by the splits": 20,
        "tool names shared by the splits": len(names),
    }
    assert {f.check: f.count for f in same if not f.defect and "splits" in f.check}[
        "entities shared by the splits"
    ] > 20
    assert (
        split(audit_records([*learnt, *as_records(train[:3], split="test")]))[
            "questions shared by the splits"
        ]
        == 3
    )
    long = next(e for e in train if len(words(e.question)) > 15)
    near = to_ftrl(long) | dict(messages=[{"role": "user", "content": long.question + " Please."}])
    for more in ({}, dict(split="train")):
        (found,) = [
            f
            for f in audit_records(as_records([long], **more), [from_ftrl(near | more, "near")])
            if f.check == "near-duplicate question shared by the splits"
        ]
        assert (
            found.failed
            and found.count == 1
            and found.examples[0].startswith(f"{long.id} and near")
        )
    subject = long.scenario.sub_questions[0].entities[0]
    assert subject in long.question and subject not in phrasing(long) and "_" in phrasing(long)
    blank = long.model_copy(deep=True)
    for q in blank.scenario.sub_questions:
        q.entities = []
    assert subject not in phrasing(blank), "a subject is known by the table it stands in"


def test_a_question_in_other_letters_is_the_same_question(train):
    loud = train[0].model_copy(deep=True)
    loud.scenario.question = loud.question.upper()
    assert overlaps([train[0]], [loud])["questions"] == [loud.question.casefold()]
