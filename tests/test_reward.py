"The reward against an independent restatement of the paper's rules; the strict matcher; formats; batches; bad input."

import gc
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_lit.engine.sandbox import ToolSandbox
from toolrl_lit.reward import (
    KINDS,
    PARSERS,
    match_paper,
    match_strict,
    parse_qwen,
    parser_for,
    repeats,
    response_parser,
    reward_table,
    score_batch,
    score_turn,
)
from toolrl_lit.schema import (
    Environment,
    Scenario,
    StepRecord,
    SubQuestion,
    Tool,
    ToolDoc,
    UserError,
    to_ftrl,
)

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data/pairs.jsonl").read_text().splitlines()
]
CODES = {
    "echo": "def echo(x=None, **more): return x",
    "population": "def population(city, year=2020): return {'city': city, 'population': '2,105,000', 'year': year}",
    "capital": "def capital(country): return {'France': 'Paris', 'Italy': 'Rome'}[country]",
    "several": "def several(n=3): return ['a', 'Ünï', None, 1.5, float('nan')][:n]",
    "nothing": "def nothing(): return None",
    "nan": "def nan(): return float('nan')",
    "fails": "def fails(why='x'): raise ValueError(why)",
    "wild": "import sys\ndef wild(x=1): return (x, 'Paris')",
    "broken": "def broken(:",
}


@pytest.fixture(scope="module")
def box():
    with ToolSandbox(workers=2, timeout=1.0) as sandbox:
        yield sandbox


def call(name, arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


# ---------------------------------------------------------------- the paper's rules, said again in another way


def restated_result(name, arguments):
    "Feedback of a call, worked out without the library. None stands for some error text."
    if name not in CODES or name == "broken" or not isinstance(arguments, dict):
        return None
    scope = {}
    exec(CODES[name], scope)
    try:
        value = scope[name](**arguments)
    except Exception:
        return None
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def restated_calls(text):
    "Calls of a turn that was made by `turns` below: pieces of known shape, so no parser is needed."
    calls = []
    for piece in text.split("</tool_call>"):
        head, tag, body = piece.partition("<tool_call>")
        if not tag or (
            calls is not None and "<tool_call>" in text[: text.find(piece)] and head.strip()
        ):
            continue
        try:
            call = json.loads(body)
        except ValueError:
            continue
        if not isinstance(call, dict) or not call.get("name") or "arguments" not in call:
            continue
        arguments = call["arguments"]
        if not isinstance(arguments, dict):
            if not isinstance(arguments, str):
                continue
            try:
                arguments = json.loads(arguments)
            except ValueError:
                continue
        calls.append((call["name"], arguments))
    return calls


def squeeze(text):
    return "".join(c for c in text.lower() if c != ",").strip()


def restated_match(text, golden):
    return not any(squeeze(part) not in squeeze(text) for part in golden.split(", "))


names = st.sampled_from([*CODES, "unknown"])
values = st.sampled_from(
    [
        "France",
        "Italy",
        "Spain",
        "Paris",
        "",
        None,
        1,
        2.5,
        True,
        [1, "Paris"],
        {"a": "Rome"},
        math.nan,
        "2,105",
        "😀 İ",
        "\n",
    ]
)
arguments = st.dictionaries(
    st.sampled_from(["x", "city", "country", "n", "why"]), values, max_size=2
)
written = st.one_of(
    arguments,
    arguments.map(json.dumps),
    st.sampled_from(["null", "[1]", "{", "", 5, None, [], True]),
)
goldens = st.sampled_from(
    [
        "Paris",
        "2105000",
        "2,105,000",
        "Rome",
        "5",
        "a, Ünï",
        "Paris, 2105000",
        "None",
        "nan",
        "",
        ",",
        "1.5",
        "a",
        "x",
        "İ",
        "null",
    ]
)
said = st.sampled_from(
    [
        "",
        "I look.",
        "Paris",
        "It is 2,105,000.",
        " \n",
        "</tool_call",
        "<tool_parsed_response>",
        "😀",
    ]
)


@st.composite
def turns(draw):
    parts = [draw(said)]
    for _ in range(draw(st.integers(0, 4))):
        o = {
            "name": draw(st.one_of(names, st.sampled_from(["", None]))),
            "arguments": draw(written),
        }
        if draw(st.integers(0, 9)) == 0:
            del o["arguments"]
        body = json.dumps(o, ensure_ascii=draw(st.booleans()))
        parts.append(
            "<tool_call>\n"
            + (body[:-1] if draw(st.integers(0, 9)) == 0 else body)
            + "\n</tool_call>\n"
        )
    return "".join(parts) + draw(
        st.sampled_from(["", "<|im_end|>", "<|im_end|><|endoftext|>", "\n"])
    )


records = st.fixed_dictionaries(
    {
        "unsolved_set": st.dictionaries(names, st.lists(goldens, max_size=3)),
        "answer": goldens | st.none(),
        "solve_rate": st.sampled_from([0.0, 0.5, 1.0]),
    }
)


@settings(max_examples=300, deadline=None)
@given(text=turns(), record=records, kind=st.sampled_from(sorted(KINDS)))
def test_paper_reward_equals_the_table(box, text, record, kind):
    score = score_turn(text, record | {"codes": CODES}, kind=kind, sandbox=box)
    calls, left = restated_calls(text), {k: list(v) for k, v in record["unsolved_set"].items()}
    t, q = sum(map(len, left.values())), 0
    for (name, arguments), got in zip(calls, score.calls, strict=True):
        result = restated_result(name, arguments)
        assert (
            got.result == result
            if result is not None
            else got.result.startswith(f"an error occured when call {name}: ")
        )
        hit = next((a for a in left.get(name, []) if restated_match(got.result, a)), None)
        assert got.solved == hit and got.why
        if hit is not None:
            left[name].remove(hit)
            q += 1
    assert score.unsolved == left and sum(map(len, score.solved.values())) == q
    if p := len(calls):
        expected = {"f1": 2 * q / (p + 1), "p": q / p, "r": q, "pr": q * q / p}[kind]
    else:
        content = (
            text.strip().removesuffix("<|endoftext|>").strip().removesuffix("<|im_end|>").strip()
        )
        if content == "":
            expected = -0.5
        elif any(
            mark in content for mark in ("<tool_call>", "</tool_call>", "<tool_parsed_response>")
        ):
            expected = -0.3
        elif record["answer"] is not None and squeeze(record["answer"]) in squeeze(content):
            expected = 1 / (t + 1)
        else:
            expected = 0.5 if record["solve_rate"] == 1.0 else 0.0
    assert score.reward == expected


# ---------------------------------------------------------------- single rules

RECORD = {
    "codes": CODES,
    "unsolved_set": {"capital": ["Paris", "Rome"], "population": ["2105000"]},
    "answer": "2105000",
    "solve_rate": 0.0,
}


@pytest.mark.parametrize("kind, reward", [("f1", 1.5), ("p", 1.0), ("r", 3.0), ("pr", 3.0)])
def test_three_right_calls(box, kind, reward):
    text = (
        call("capital", {"country": "France"})
        + call("capital", {"country": "Italy"})
        + call("population", {"city": "Paris"})
    )
    score = score_turn(text, RECORD, kind=kind, sandbox=box)
    assert (
        score.reward == reward
        and score.unsolved == {"capital": [], "population": []}
        and score.case == "calls"
    )


@pytest.mark.parametrize(
    "text, reward, case",
    [
        ("", -0.5, "empty"),
        ("<|im_end|>", -0.5, "empty"),
        ("<tool_call>{</tool_call>", -0.3, "malformed"),
        ("hm</tool_call>", -0.3, "malformed"),
        ("It is 2,105,000.", 0.25, "answer"),
        ("No idea.", 0.0, "other"),
    ],
)
def test_rows_without_calls(box, text, reward, case):
    score = score_turn(text, RECORD, sandbox=box)
    assert (score.reward, score.case) == (reward, case)
    done = RECORD | {"unsolved_set": {"capital": []}, "solve_rate": 1.0}
    assert score_turn("No idea.", done, sandbox=box)[:1] + (
        score_turn("No idea.", done, sandbox=box).case,
    ) == (0.5, "done")


def test_one_call_solves_one_answer_and_a_repeated_call_solves_nothing(box):
    record = RECORD | {"unsolved_set": {"capital": ["Paris", "Paris"]}}
    france = call("capital", {"country": "France"})
    assert [c.solved for c in score_turn(france * 3, record, sandbox=box).calls] == [
        "Paris",
        "Paris",
        None,
    ]
    score = score_turn(france * 2, RECORD, sandbox=box)
    assert [c.solved for c in score.calls] == ["Paris", None] and "Rome" in score.calls[1].why


def test_the_record_is_left_as_it_was(box):
    record = json.loads(json.dumps(RECORD))
    score_turn(call("capital", {"country": "France"}), record, sandbox=box)
    assert record == RECORD


def test_quirks_of_the_parser():
    assert [c.name for c in parse_qwen('<tool_call>call{"name": "f", "arguments": {}}').calls] == [
        "f"
    ]
    assert parse_qwen('a <tool_call>{"name": "f", "arguments": {}}</tool_call> b').content == "a"
    assert parse_qwen('x{"name": "f", "arguments": {}}</tool_call>').calls == []
    both = parse_qwen(call("f", {}) + "<tool_call>{</tool_call>")
    assert len(both.calls) == 1 and both.malformed == ["<tool_call>{"]
    for odd in ("null", "[1]", "5"):
        assert parse_qwen(call("f", odd)).calls[0].arguments == {}
    assert parse_qwen('<tool_call>{"name": ["f"], "arguments": {}}').calls[0].name == "['f']"


@given(
    st.text(alphabet=st.sampled_from('<tool_cal>/{}"name:arguments, \\ud8\n[]'), max_size=80)
    | st.text()
)
def test_parsers_never_raise_and_give_calls_that_can_be_stored(text):
    for parse in PARSERS.values():
        for c in parse(text).calls:
            c.model_dump_json()


def test_halves_of_surrogate_pairs_can_be_stored(box):
    score = score_turn(
        r'<tool_call>{"name": "echo", "arguments": {"x": "\ud83d", "\ud83d": 1}}</tool_call>',
        RECORD,
        sandbox=box,
    )
    json.dumps([c._asdict() for c in score.calls], ensure_ascii=False).encode()


def test_formats():
    want = [("capital", {"country": "France"})]
    texts = {
        "qwen": "Hm." + call(*want[0]),
        "hermes": "Hm." + call(*want[0]),
        "llama3.1": 'Hm.<|python_tag|>{"name": "capital", "parameters": {"country": "France"}}<|eom_id|>',
        "mistral": 'Hm.[TOOL_CALLS] [{"name": "capital", "arguments": {"country": "France"}}]</s>',
    }
    assert set(texts) == set(PARSERS)
    for name, text in texts.items():
        parsed = PARSERS[name](text)
        assert [(c.name, c.arguments) for c in parsed.calls] == want and parsed.content == "Hm."
        broken = PARSERS[name](text.replace("}", "", 1))
        assert not broken.calls and broken.malformed
        assert score_turn(text.replace("}", "", 1), RECORD, parser=name).case == "malformed"
    two = PARSERS["llama3.1"]('{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}')
    assert [c.name for c in two.calls] == ["a", "b"] and not PARSERS["llama3.1"]("Paris").calls
    assert parser_for("{% if tools %}<tool_call>") == "qwen"


# ---------------------------------------------------------------- strict


def test_strict_rule_on_labelled_pairs():
    assert len(PAIRS) >= 500
    for match, least in ((match_strict, 0.99), (match_paper, 0.5)):
        accepted = [p["match"] for p in PAIRS if match(p["result"], p["golden"])]
        assert (
            sum(accepted) / len(accepted) >= least
            and sum(accepted) / sum(p["match"] for p in PAIRS) >= least
        )


@given(st.text(max_size=60), st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_strict_rule_takes_any_text(text, golden):
    assert match_strict(text, golden) in (True, False)


@given(st.integers(-(10**9), 10**9))
def test_numbers_match_in_every_spelling_and_no_longer_number(n):
    for spelling in (str(n), f"{n:,}", f"{n}.0", json.dumps({"value": n}), f"The value is {n:,}."):
        assert match_strict(spelling, str(n))
    for other in (f"{n}7", f"x{n}", str(n + 1), json.dumps({"value": n + 1})):
        assert not match_strict(other, str(n))


@given(st.lists(st.integers(0, 999), min_size=13, max_size=60, unique=True))
def test_no_table_solves_anything(ns):
    for table in (
        ns,
        {str(n): n for n in ns},
        [{"n": n} for n in ns],
        "\n".join(f"row {n}: {n}" for n in ns),
    ):
        assert not match_strict(table if isinstance(table, str) else json.dumps(table), str(ns[0]))


def test_strict_scoring_takes_no_errors_and_no_echo(box):
    record = RECORD | {
        "unsolved_set": {"fails": ["Paris"], "echo": ["Rome"], "capital": ["Paris"]},
        "answer": "Paris",
    }
    text = (
        call("fails", {"why": "Paris"})
        + call("echo", {"x": "Rome"})
        + call("capital", {"country": "France"})
    )
    paper, strict = (score_turn(text, record, match=m, sandbox=box) for m in ("paper", "strict"))
    assert [c.solved for c in paper.calls] == ["Paris", "Rome", "Paris"]
    assert [c.solved for c in strict.calls] == [None, None, "Paris"]
    assert strict.calls[1].why == "its result repeats its arguments"
    choice = {
        "codes": {"larger": "def larger(a, b): return max(a, b, key=len)"},
        "unsolved_set": {"larger": ["Lisbon"]},
    }
    assert (
        score_turn(
            call("larger", {"a": "Rome", "b": "Lisbon"}), choice, match="strict", sandbox=box
        ).reward
        == 1.0
    )
    assert (
        score_turn("London, Paris, Rome, Madrid, Oslo", record, match="strict", sandbox=box).case
        == "other"
    )
    assert (
        score_turn(
            "<think>Rome? Oslo?</think>\nThe capital is Paris.", record, match="strict", sandbox=box
        ).case
        == "answer"
    )


# ---------------------------------------------------------------- where turns come from, batches, bad input


def environment():
    tool = Tool(
        doc=ToolDoc(
            name="capital",
            description="Capital of a country.",
            parameters={"type": "object", "properties": {}},
        ),
        code=CODES["capital"],
    )
    sub = SubQuestion(
        id="q1",
        question="Capital of France?",
        answer="Paris",
        tool="capital",
        arguments={"country": "France"},
    )
    scenario = Scenario(
        id="e1",
        kind="single-hop",
        question="Capital of France?",
        answer="Paris",
        sub_questions=[sub],
    )
    return Environment(scenario=scenario, tools=[tool])


def test_environment_step_and_record_score_alike(box):
    env = environment()
    for where in (
        env,
        env.start(),
        to_ftrl(env),
        StepRecord.model_validate(env.start().model_dump()),
    ):
        score = score_turn(call("capital", {"country": "France"}), where, sandbox=box)
        assert (
            score.reward == 1.0
            and score.solved == {"capital": ["Paris"]}
            and score.unsolved == {"capital": []}
        )


def test_a_batch_scores_as_its_turns_alone_and_runs_equal_calls_of_an_environment_once(
    box, monkeypatch
):
    texts = [
        call("capital", {"country": c}) * n + s
        for c in ("France", "Italy", "Spain")
        for n in (0, 1, 2)
        for s in ("", "x")
    ]
    turns = [(t, r) for t in texts for r in (RECORD, environment())]
    sizes = []
    real = box.call_many
    monkeypatch.setattr(box, "call_many", lambda calls: sizes.append(len(calls)) or real(calls))
    batch = score_batch(turns, sandbox=box)
    assert sizes == [2 * 3]  # two environments with the same tool share nothing
    assert batch == [score_turn(t, r, sandbox=box) for t, r in turns]
    assert score_batch([], sandbox=box) == []


PIECES = [
    call("capital", {"country": "France"}),
    call("capital", {"country": "Italy"}),
    call("capital", {"country": "Peru"}),
    call("population", {"city": "Paris"}),
    call("wild", {}),
    call("gone", {"x": [1]}),
    call("echo", {"x": {"a": ["Paris"]}}),
    "<tool_call>{</tool_call>",
    call("capital", {"country": "Fr\ud800nce"}),
    call(7, {}),
    call("nan", '{"a": 1}'),
]
LEFT = {
    "capital": ["Paris", "Rome"],
    "population": ["2105000"],
    "echo": ["Paris"],
    "wild": ["Paris"],
}
PLACES = [RECORD | {"unsolved_set": LEFT}, RECORD, RECORD | {"solve_rate": 1.0, "unsolved_set": {}}]


@settings(max_examples=25, deadline=None)
@given(
    picks=st.lists(
        st.tuples(st.lists(st.sampled_from(PIECES), max_size=4), st.integers(0, 2)), max_size=12
    ),
    match=st.sampled_from(["paper", "strict"]),
    data=st.data(),
)
def test_turns_score_alike_alone_together_and_in_any_order(box, picks, match, data):
    turns = [("I think. " + "".join(pieces), PLACES[k]) for pieces, k in picks * 2]
    order = data.draw(st.permutations(range(len(turns))))
    batch = score_batch([turns[i] for i in order], match=match, sandbox=box)
    assert batch == [score_turn(*turns[i], match=match, sandbox=box) for i in order]


def test_each_call_of_a_dice_is_a_throw(box):
    for code in (
        "import random\ndef dice(): return random.randint(1, 10 ** 12)",
        "import time\ndef dice(): return time.perf_counter()",
        "def dice():\n    import os\n    return os.urandom(8).hex()",
    ):
        scores = score_batch(
            [(call("dice", {}) * 2, {"codes": {"dice": code}, "unsolved_set": {}})] * 4, sandbox=box
        )
        assert len({c.result for s in scores for c in s.calls}) == 8


def test_equal_turns_share_no_list(box):
    first, second = score_batch([(call("capital", {"country": "France"}), RECORD)] * 2, sandbox=box)
    assert first == second and first.solved
    first.calls.clear()
    first.solved["capital"].clear()
    first.unsolved.clear()
    assert second == score_turn(call("capital", {"country": "France"}), RECORD, sandbox=box)


@pytest.mark.parametrize(
    "code",
    [
        "def f(x): return {'known': 1, 'valid': 2}.get(x)",
        "import re, json as j\ndef f(x): return re.sub('a', 'b', x)",
        "from datetime import date\ndef f(): return str(date(2020, 1, 1))",
        "def f(today_s): return today_s",
    ],
)
def test_tools_that_must_answer_alike(code):
    assert repeats(code)


@pytest.mark.parametrize(
    "code",
    [
        "from datetime import date as d\ndef f(): return str(d.today())",
        "import json, random as r\ndef f(): return r.random()",
        "def f():\n    from time import time\n    return time()",
        "import numpy\ndef f(): return 1",
        "def f(x): return id(x)",
        "import json, \\\n    random\ndef f(): return random.random()",
        "def f(): return __import__('random').random()",
        "def f(): return open('/proc/uptime').read()",
        "from random import*\ndef f(): return random()",
    ],
)
def test_tools_that_may_answer_otherwise(code):
    assert not repeats(code)


def test_the_collector_is_left_as_it_was(box):
    with pytest.raises(UserError):
        score_batch([("x", RECORD), ("x", {})], sandbox=box)
    assert gc.isenabled()
    gc.disable()
    try:
        score_turn("x", RECORD, sandbox=box)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "options, word",
    [({"kind": "f2"}, "kind"), ({"match": "fuzzy"}, "match"), ({"parser": "xml"}, "parser")],
)
def test_unknown_options_are_refused(options, word):
    with pytest.raises(UserError, match=word):
        score_turn("x", RECORD, **options)


@pytest.mark.parametrize(
    "record, word",
    [
        ({}, "codes"),
        ({"codes": "{"}, "codes"),
        ({"codes": "{}", "unsolved_set": "[]"}, "unsolved_set"),
        (5, "int"),
    ],
)
def test_bad_records_are_refused(record, word):
    with pytest.raises(UserError, match=word):
        score_turn("x", record)


def test_the_table_is_the_papers():
    none = dict(empty=False, markup=False, answered=False, finished=False)
    rows = [("empty", -0.5), ("markup", -0.3), ("answered", 1 / 4), ("finished", 0.5)]
    for i, (_, reward) in enumerate(
        rows
    ):  # tested from the top: later rows cannot overrule earlier ones
        assert reward_table(0, 0, 3, **none | {n: True for n, _ in rows[i:]})[0] == reward
    assert reward_table(0, 0, 3, **none)[0] == 0.0 and reward_table(4, 2, 3, **none)[0] == 4 / 5


# -- formats that tokenizers describe themselves


@pytest.fixture(scope="module")
def glm():
    "A tokenizer that brings GLM's response template."
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl.chat_template_utils import glm4moe_template

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.response_template = glm4moe_template
    return tokenizer


def test_a_tokenizers_own_template_reads_calls_and_is_scored(box, glm):
    parser = parser_for("[gMASK]<tool_call>{{ name }}<arg_key>", glm)
    record = RECORD | {
        "codes": json.dumps(CODES),
        "unsolved_set": json.dumps({"capital": ["Paris"]}),
        "answer": "Paris",
    }
    call = "<tool_call>capital\n<arg_key>country</arg_key>\n<arg_value>France</arg_value>\n</tool_call>"
    turn = score_turn("I look it up." + call, record, parser=parser, sandbox=box)
    assert (
        turn.reward == 1.0
        and turn.calls[0].arguments == {"country": "France"}
        and turn.content == "I look it up."
    )
    assert score_turn("It is Paris.", record, parser=parser, sandbox=box).case == "answer"
    assert score_turn("<tool_call>", record, parser=parser, sandbox=box).case == "malformed"


@given(st.text(alphabet='<>/{}[]"tool_cargkey aé', max_size=60))
def test_a_tokenizers_own_template_never_raises(glm, text):
    content, calls, malformed = response_parser(glm)(text)
    assert isinstance(content, str) and all(c.name for c in calls)


def test_the_papers_formats_are_read_as_the_paper_does(glm):
    assert (
        parser_for("<tool_call>{{ tojson }}", glm) == "qwen"
        and parser_for("[TOOL_CALLS]", glm) == "mistral"
    )
    assert callable(parser_for("no mark at all", glm)) and parser_for("no mark at all") == "qwen"


FILLER = " ".join(
    f"Name{i} lives in Town{i}." for i in range(40)
)  # too much to be searched as a whole


@pytest.mark.parametrize(
    "after, answered", [(0, True), (1, True), (2, True), (3, False), (5, False)]
)
@pytest.mark.parametrize("ends", [". ", "\n", "! "])
def test_strictly_the_final_answer_stands_in_the_last_three_sentences(after, answered, ends):
    env = Environment(
        tools=[
            Tool(doc=ToolDoc(name="capital", description="", parameters={}), code=CODES["capital"])
        ],
        scenario=Scenario(
            id="e",
            kind="single-hop",
            question="?",
            answer="Paris",
            sub_questions=[SubQuestion(id="q1", question="?", answer="Paris", tool="capital")],
        ),
    )
    said = f"{FILLER} The capital is Paris{ends}" + "".join(
        f"So much for part {'abcdef'[i]}{ends}" for i in range(after)
    )
    assert (score_turn(said, env, match="strict").case == "answer") == answered
    assert score_turn(said, env, match="paper").case == "answer"


@pytest.mark.parametrize("share, reward", [(1.0, 0.5), (0.99, 0.0), (0.5, 0.0), (0.0, 0.0)])
def test_saying_that_all_is_done_pays_only_once_all_is_solved(share, reward):
    step = StepRecord(
        messages=[{"role": "user", "content": "?"}],
        tools=[],
        codes=CODES,
        unsolved={} if share == 1 else {"capital": ["Paris"]},
        answer="Paris",
        solve_rate=share,
    )
    assert (
        score_turn("I am done.", step).reward
        == score_turn("I am done.", to_ftrl(step)).reward
        == reward
    )
