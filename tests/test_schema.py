"Schema: what is written is read back, and what does not fit is named with file, line and field."

import bz2
import errno
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from toolrl_lit.collect import OraclePolicy, collect
from toolrl_lit.engine import shards, store
from toolrl_lit.schema import (
    Environment,
    OnDisk,
    Scenario,
    StepRecord,
    SubQuestion,
    Tool,
    ToolCall,
    ToolDoc,
    Trajectory,
    Turn,
    UserError,
    check_ids,
    explain,
    from_ftrl,
    is_ftrl,
    read_ftrl,
    read_jsonl,
    read_text,
    refuse_other,
    reserve,
    to_ftrl,
    write_jsonl,
    write_text,
)

ENV = Environment(
    tools=[
        Tool(
            doc=ToolDoc(name="look", description="Looks.", parameters={}),
            code="def look(q): return 'Pärnu'",
        )
    ],
    scenario=Scenario(
        id="e1",
        kind="single-hop",
        question="Which town?",
        answer="Pärnu",
        sub_questions=[
            SubQuestion(id="q1", question="?", answer="Pärnu", tool="look", arguments={"q": "x"})
        ],
    ),
)

few = settings(max_examples=40, deadline=None)
# everything that can stand in a file, with the characters that Python takes for ends of lines and JSON does not escape
words = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from('\x85\u2028\u2029\n\r\t\x0b\x1c"\\'),
    ),
    max_size=12,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3),
    max_leaves=5,
)
calls = st.builds(ToolCall, name=words, arguments=st.dictionaries(words, json_values, max_size=2))
turns = st.builds(
    Turn,
    text=words,
    calls=st.lists(calls, max_size=2),
    results=st.lists(words, max_size=2),
    solved=st.lists(st.none() | st.tuples(words, words), max_size=2),
    reward=st.sampled_from([0.0, -0.5, 2 / 3]),
)
trajectories = st.builds(
    Trajectory,
    environment=words,
    sample=st.integers(0, 9),
    kind=words,
    turns=st.lists(turns, max_size=2),
    messages=st.lists(st.fixed_dictionaries({"role": words, "content": words}), max_size=3),
    sub_questions=st.integers(0, 9),
    stop=st.sampled_from(["answer", "max_turns", "too_long", "empty"]),
)

# -- JSON Lines


@few
@given(st.lists(trajectories, max_size=3))
def test_what_is_written_is_read_back(tmp_path_factory, items):
    path = write_jsonl(tmp_path_factory.mktemp("jsonl") / "t.jsonl", items)
    before = path.read_bytes()
    assert read_jsonl(path, Trajectory) == items
    assert write_jsonl(path, read_jsonl(path, Trajectory)).read_bytes() == before


def test_environments_are_read_back(environments, tmp_path):
    path = write_jsonl(tmp_path / "e.jsonl", environments)
    assert read_jsonl(path, Environment) == environments


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "the line: Invalid JSON"),
        ("[]", "the line: .*object"),
        ('{"name": "a", "arguments": 3}', "arguments: .*object, got 3 "),
        ('{"arguments": {}}', "name: Field required"),
        ("\ufffd", "the line: Invalid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, said):
    path = tmp_path / "calls.jsonl"
    path.write_text('{"name": "fine"}\n\n' + line + "\n", "utf-8")
    with pytest.raises(UserError, match=f"{path}, line 3: {said}.*expected one ToolCall") as caught:
        read_jsonl(path, ToolCall)
    assert "\n" not in str(caught.value)


class Settings(BaseModel):
    "Settings as those of training, of questions and of a language model are declared."

    model_config = ConfigDict(extra="forbid")
    size: int = Field(3, ge=1)
    name: str = "n"
    parts: list[SubQuestion] = []

    @model_validator(mode="after")
    def _fits(self):
        if len(self.name) > self.size:
            raise ValueError(f"name={self.name} has more than size={self.size} letters")
        return self


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(size=0), "size: Input should be greater than or equal to 1, got 0"),
        (
            dict(size="many"),
            "size: Input should be a valid integer, unable to parse string as an integer, got 'many'",
        ),
        (dict(sise=2), "sise: Extra inputs are not permitted; there are: size, name, parts"),
        (dict(name="long"), "name=long has more than size=3 letters"),
        (dict(size=["x" * 90]), "size: Input should be a valid integer, got ['" + "x" * 58 + "…"),
        (
            dict(parts=[dict(id="q", question="?", answer="!", of=1)]),
            "parts.0.of: Extra inputs are not permitted, got 1",
        ),
        (dict(parts=[dict(id="q", question="?")]), "parts.0.answer: Field required"),
    ],
)
def test_the_first_problem_of_settings_is_one_sentence(values, said):
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    assert explain(caught.value, Settings) == said


def test_what_an_environment_says_of_itself_is_said_of_its_line(environments, tmp_path):
    row = environments[0].model_dump()
    (tmp_path / "e.jsonl").write_text(json.dumps(row | dict(tools=row["tools"] * 2)) + "\n")
    with pytest.raises(UserError, match=r"line 1: [^{]*repeat[^{]*\(expected one Environment\)$"):
        read_jsonl(tmp_path / "e.jsonl", Environment)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"name": "caf\xe9"}\n')
    for name, said in (
        ("none.jsonl", "No such file"),
        ("", "directory"),
        ("latin.jsonl", "not UTF-8 text .byte 13"),
    ):
        with pytest.raises(UserError, match=said):
            read_jsonl(tmp_path / name, ToolCall)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda p: p.write_bytes(b"PAR1 and then nothing"), "cannot be read as Parquet: "),
        (lambda p: p.write_bytes(b"PAR1" + bytes(40) + b"PAR1"), "cannot be read as Parquet: "),
        (lambda p: None, "cannot be read as Parquet: .*No such file"),
        (lambda p: p.mkdir(), "without manifest.json"),
        (
            lambda p: pq.write_table(pa.table({"name": ["a"]}), p),
            "got one without a column 'record' of texts",
        ),
        (
            lambda p: pq.write_table(pa.table({"record": [3]}), p),
            "got one without a column 'record' of texts",
        ),
        (
            lambda p: pq.write_table(pa.table({"record": ['{"name": "a"}', None]}), p),
            "line 2: the line: JSON input should be string",
        ),
    ],
)
def test_a_parquet_file_that_no_build_has_written_is_named(tmp_path, make, said):
    path = tmp_path / "a.parquet"
    make(path)
    with pytest.raises(UserError, match=f"{path}.*{said}") as caught:
        read_jsonl(path, ToolCall)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_with_broken_pages_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"record": ['{"name": "a"}'] * 99}), path, compression="zstd")
    whole = path.read_bytes()
    assert len(read_jsonl(path, ToolCall)) == 99
    shards._group.cache_clear()
    path.write_bytes(whole[:20] + bytes(40) + whole[60:])
    with pytest.raises(UserError, match=f"{path}: cannot be read as Parquet: "):
        read_jsonl(path, ToolCall)


# -- writing


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch, fails):
    path = write_text(tmp_path / "deep" / "a.txt", "before")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, fails, full)
    with pytest.raises(UserError, match="No space left.*What was there is unchanged"):
        write_text(path, "after")
    assert path.read_text() == "before" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file/a.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_written_file_can_be_read_by_others(tmp_path):
    assert os.stat(write_text(tmp_path / "a.txt", "x")).st_mode & 0o777 == 0o644


# -- models that contradict themselves


def scenario(*links):
    "Sub-questions q0, q1, ... with these dependencies."
    return Scenario(
        id="s",
        kind="multi-hop",
        question="?",
        answer="!",
        sub_questions=[
            SubQuestion(id=f"q{i}", question="?", answer=str(i), tool="t", depends_on=list(d))
            for i, d in enumerate(links)
        ],
    )


@pytest.mark.parametrize(
    "links, said",
    [
        ((["q1"], []), "'q0' depends on .*'q1'"),
        ((["q0"],), "'q0' depends on"),
        (([], ["x"]), "'x'"),
        ((), "at least 1"),
    ],
)
def test_dependencies_point_backwards(links, said):
    with pytest.raises(ValidationError, match=said):
        scenario(*links)


def test_ids_and_tool_names_do_not_repeat():
    q = SubQuestion(id="q", question="?", answer="!", tool="t")
    with pytest.raises(ValidationError, match="'q' appears twice"):
        Scenario(id="s", kind="single-hop", question="?", answer="!", sub_questions=[q, q])
    tool = Tool(doc=ToolDoc(name="t", description="", parameters={}), code="def t(): pass")
    with pytest.raises(ValidationError, match="repeat"):
        Environment(scenario=scenario([]), tools=[tool, tool])
    with pytest.raises(ValidationError, match="needs tool 't'"):
        Environment(scenario=scenario([]), tools=[])


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match="anwser"):
        SubQuestion(id="q", question="?", answer="!", anwser="!")


@few
@given(st.data())
def test_waves_ask_everything_once_and_never_before_its_dependencies(data):
    n = data.draw(st.integers(1, 6))
    links = [
        data.draw(st.lists(st.sampled_from([f"q{j}" for j in range(i)]), unique=True)) if i else []
        for i in range(n)
    ]
    known, last = set(), set()
    for wave in scenario(*links).waves():
        assert wave and all(set(q.depends_on) <= known for q in wave)
        assert not known or all(set(q.depends_on) & last for q in wave)  # no later than needed
        last = {q.id for q in wave}
        assert not known & last
        known |= last
    assert known == {f"q{i}" for i in range(n)}


# -- step records


def test_step_records_of_the_oracle_count_down_to_nothing(environments):
    for env, traj in zip(
        environments, collect(OraclePolicy(environments), environments, temperature=0)
    ):
        steps = list(traj.step_records(env))
        assert [s.open() for s in steps] == [
            sum(len(w) for w in env.golden_calls()[i:]) for i in range(len(env.golden_calls()) + 1)
        ]
        assert (
            steps[0] == env.start()
            and steps[-1].solve_rate == 1
            and steps[-1].messages == traj.messages[:-1]
        )
        assert [s.turn for s in steps] == list(range(len(steps)))
        assert env.start().unsolved == env.unsolved(), (
            "expanding a trajectory must not change its environment"
        )


# -- the authors' format


def written(values):
    "JSON in a string, in several spellings, or the value itself."
    spelled = [
        lambda x: x,
        *(
            lambda x, how=how: json.dumps(x, **how)
            for how in (
                dict(ensure_ascii=False),
                dict(),
                dict(separators=(",", ":")),
                dict(indent=1),
            )
        ),
    ]
    return st.builds(lambda x, f: f(x), values, st.sampled_from(spelled))


answers = st.one_of(words, st.integers(), st.floats(allow_nan=False, allow_infinity=False))
records = st.fixed_dictionaries(
    dict(
        messages=st.lists(st.fixed_dictionaries({"role": words, "content": words}), max_size=2),
        tools=written(st.lists(st.dictionaries(words, json_values, max_size=2), max_size=2)),
        codes=written(st.dictionaries(words, words, max_size=2)),
        unsolved_set=written(st.dictionaries(words, st.lists(answers, max_size=3), max_size=2)),
    ),
    optional=dict(
        answer=words,
        solve_rate=st.floats(0, 1),
        data_source=words,
        split=words,
        difficulty=json_values,
    ),
)


@few
@given(records)
def test_a_record_of_the_authors_survives_the_round_trip(record):
    step = from_ftrl(record)
    assert json.dumps(to_ftrl(step), sort_keys=True) == json.dumps(
        record | ({"solve_rate": float(record["solve_rate"])} if "solve_rate" in record else {}),
        sort_keys=True,
    )
    assert to_ftrl(StepRecord.model_validate_json(step.model_dump_json())) == record
    assert all(isinstance(a, str) for answers in step.unsolved.values() for a in answers)


def test_what_has_been_solved_since_is_not_written_as_it_was():
    step = from_ftrl(dict(messages=[], tools="[]", codes="{}", unsolved_set='{"f":["a", 2]}'))
    assert to_ftrl(step)["unsolved_set"] == '{"f":["a", 2]}'
    assert (
        to_ftrl(step.model_copy(update={"unsolved": {"f": ["2"]}}))["unsolved_set"]
        == '{"f": ["2"]}'
    )


def test_environments_survive_the_authors_format(environments):
    for env in environments:
        step = from_ftrl(to_ftrl(env), environment=env.id)
        assert step.model_dump(exclude={"extra", "kind", "answer_types"}) == env.start().model_dump(
            exclude={"extra", "kind", "answer_types"}
        )


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(unsolved_set=None), "unsolved_set"),
        (dict(codes="{"), "'codes': expected JSON"),
        (dict(messages="hello"), "messages: .*list"),
        (dict(unsolved_set='{"f": "1"}'), "unsolved.f: .*list"),
    ],
)
def test_a_malformed_record_is_named_by_field(change, said):
    record = dict(messages=[], tools="[]", codes="{}", unsolved_set="{}", answer="x") | change
    record = {k: v for k, v in record.items() if v is not None}
    with pytest.raises(UserError, match=said):
        from_ftrl(record)


@pytest.mark.parametrize("line", ["null", "5", '"tools codes unsolved_set"', "[1]"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    good = json.dumps(dict(messages=[], tools="[]", codes="{}", unsolved_set="{}"))
    path = write_text(tmp_path / "records.jsonl", good + "\n" + line + "\n")
    with pytest.raises(
        UserError, match=f"{path}, line 2: expected an object with the fields messages, .*, got "
    ):
        read_ftrl(path)


# -- work that goes on


def test_a_folder_is_reserved_until_it_is_given_back(tmp_path):
    with reserve(tmp_path / "x"):
        with pytest.raises(UserError, match="x: another process"):
            reserve(tmp_path / "x")
    with reserve(tmp_path / "x"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/y: cannot be made"):
        reserve(tmp_path / "file" / "y")


@pytest.mark.parametrize(
    "before, now, said",
    [
        ({"a": 1}, {"a": 2}, "a: 1 there, 2 now"),
        ({}, {"b": None, "a": 0}, "a: None there, 0 now"),
        ({"a": [1], "c": 3}, {"a": (1,)}, r"\(c: 3 there, None now\)"),
    ],
)
def test_other_settings_are_named(before, now, said):
    with pytest.raises(UserError, match=f"here: holds a thing .*{said}.*; go away"):
        refuse_other("here", "a thing", before, now, "go away")
    refuse_other("here", "a thing", json.loads(json.dumps(now)), now, "go away")


# -- files as other programs write them

BOM = b"\xef\xbb\xbf"


def as_written(tmp_path, how):
    lines = [m.model_dump_json().encode() for m in (ENV, ENV)]
    content = {
        "mark": BOM + b"\n".join(lines),
        "windows": BOM + b"\r\n".join([*lines, b""]),
        "empty lines": b"\n\r\n" + b"\n\n  \n".join(lines) + b"\n\n",
        "joined": b"\n".join(BOM + line for line in lines),
    }[how]
    (tmp_path / "e.jsonl").write_bytes(content)
    return tmp_path / "e.jsonl"


@pytest.mark.parametrize("how", ["mark", "windows", "empty lines", "joined"])
def test_files_of_other_programs_are_read(tmp_path, how):
    path = as_written(tmp_path, how)
    stored = OnDisk(path, Environment)
    assert (
        read_jsonl(path, Environment) == [ENV, ENV] == [stored[0], stored[1]] and len(stored) == 2
    )


def test_a_file_of_only_a_byte_order_mark_is_empty(tmp_path):
    (tmp_path / "e.jsonl").write_bytes(BOM)
    assert read_jsonl(tmp_path / "e.jsonl", Environment) == [] and not is_ftrl(tmp_path / "e.jsonl")


def test_the_authors_records_are_known_behind_a_byte_order_mark(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(BOM + json.dumps(to_ftrl(ENV)).encode())
    assert (
        is_ftrl(tmp_path / "f.jsonl")
        and read_ftrl(tmp_path / "f.jsonl")[0].unsolved == ENV.unsolved()
    )


@pytest.mark.parametrize(
    "content, said",
    [
        (ENV.model_dump_json().encode("utf-16"), "UTF-16"),
        (ENV.model_dump_json().encode("utf-16-le"), "UTF-16"),
        (ENV.model_dump_json().encode("utf-16-be"), "UTF-16"),
        (gzip.compress(b"{}", mtime=0), "gzip.*unpack"),
        (bz2.compress(b"{}"), "bzip2"),
        (b"PK\x03\x04...", "zip"),
        (BOM + b'{"a": "\xff"}', r"not UTF-8 text \(byte 10\)"),
    ],
    ids=["utf-16", "utf-16-le", "utf-16-be", "gzip", "bzip2", "zip", "broken utf-8"],
)
def test_what_is_no_utf_8_text_is_named(tmp_path, content, said):
    (tmp_path / "e.jsonl").write_bytes(content)
    for read in (lambda p: read_jsonl(p, Environment), read_ftrl, is_ftrl, read_text):
        with pytest.raises(UserError, match=f"e.jsonl: is .*{said}"):
            read(tmp_path / "e.jsonl")


@pytest.mark.parametrize(
    "path",
    ["", "/proc/x", "/dev/null", "x" * 300, "a\0b"],
    ids=["nothing", "proc", "a device", "a long name", "a zero byte"],
)
def test_what_cannot_be_written_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda: write_text(path, "x"), lambda: write_jsonl(path, [ENV])):
        with pytest.raises(UserError, match="cannot be written"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_half_a_surrogate_pair_is_refused_and_what_was_there_is_kept(tmp_path):
    path, step = write_jsonl(tmp_path / "s.jsonl", [ENV.start()]), ENV.start()
    before = path.read_bytes()
    step.messages[0]["content"] = "\ud83d"
    for write in (lambda: write_jsonl(path, [step]), lambda: write_text(path, "\ud83d")):
        with pytest.raises(UserError, match="s.jsonl.*: cannot be written.*surrogate"):
            write()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["s.jsonl"]


@pytest.mark.parametrize(
    "field, value",
    [
        ("unsolved_set", {"look": "Paris"}),
        ("unsolved_set", {"look": None}),
        ("unsolved_set", {"look": [None]}),
        ("unsolved_set", ["Paris"]),
        ("unsolved_set", "{"),
        ("unsolved_set", "[" * 100_000),
        ("codes", {"look": None}),
        ("codes", "7"),
        ("tools", None),
        ("tools", {"a": 1}),
        ("messages", None),
        ("messages", "text"),
        ("messages", ["text"]),
        ("answer", ["Paris"]),
        ("solve_rate", "much"),
        ("solve_rate", None),
    ],
)
def test_a_record_of_the_authors_with_another_kind_of_value_is_refused_by_its_field(
    tmp_path, field, value
):
    record = to_ftrl(ENV) | {field: value}
    name = {"unsolved_set": "unsolved"}.get(field, field)
    with pytest.raises(UserError, match=name):
        from_ftrl(record)
    (tmp_path / "r.jsonl").write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"r.jsonl, line 1: .*{name}"):
        read_ftrl(tmp_path / "r.jsonl")


# -- what follows a turn


def test_steps_of_a_rollout_that_began_later_go_on_counting():
    half = ENV.start().model_copy(update=dict(turn=3))
    q = ENV.scenario.sub_questions[0]
    t = Trajectory(
        environment=ENV.id,
        start=1,
        messages=list(half.messages),
        turns=[],
        sub_questions=half.open(),
    )
    call = ToolCall(name=q.tool, arguments=q.arguments)
    for _ in range(2):
        t.add("", Turn(text="x", calls=[call], results=["?"], solved=[None]))
    assert [s.turn for s in t.step_records(half)] == [3, 4, 5] and [
        len(s.messages) for s in t.step_records(half)
    ] == [1, 3, 5]
    after = half.after([{"role": "assistant", "content": "x"}], {}, half.open())
    assert (
        after.turn,
        after.solve_rate,
        after.open(),
        len(after.messages),
        len(half.messages),
    ) == (4, 1.0, 0, 2, 1)


def test_ids_that_appear_twice_and_no_environments_are_refused():
    check_ids("x", [ENV])
    with pytest.raises(UserError, match="x: expected at least one"):
        check_ids("x", [])
    with pytest.raises(UserError, match=f"x: expected every id once, {ENV.id!r} appears 2 times"):
        check_ids("x", [ENV, ENV])
