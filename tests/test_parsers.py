"Tool-call formats: a call that was made counts, an answer is no call, and no text raises or takes long."

import json
import pickle
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import qwen3_5_template

from toolrl_lit.engine.parsers import (
    DEEPEST,
    MARKUP,
    MOST_CALLS,
    PARSERS,
    Parsed,
    Reply,
    message_calls,
    parse_llama,
    parse_mistral,
    parse_qwen,
    parser_for,
    reply_text,
    response_parser,
    storable,
    written,
)
from toolrl_lit.reward import score_batch, score_turn
from toolrl_lit.schema import ToolCall

RECORD = {
    "codes": {
        "river": "def river(city=None): return 'Tiber'",
        "clock": "def clock(): return 'noon'",
    },
    "unsolved_set": {"river": ["Tiber"], "clock": ["noon"]},
    "answer": "Tiber",
    "solve_rate": 0,
}


def asked(parsed):
    return [written(c) for c in parsed.calls]


ROME = ("river", {"city": "Rome"})
LLAMA = '{"name": "river", "parameters": {"city": "Rome"}}'
OLD = '[{"name": "river", "arguments": {"city": "Rome"}}]'

# -- Llama and Mistral


@pytest.mark.parametrize(
    "parse, text, content",
    [
        (parse_llama, LLAMA, ""),
        (parse_llama, LLAMA + "\nI look it up.", ""),
        (parse_llama, "I look it up.\n" + LLAMA, "I look it up."),
        (parse_llama, "Hm. <|python_tag|>" + LLAMA + "<|eom_id|>", "Hm."),
        (parse_llama, f"```json\n{LLAMA}\n```", ""),
        (parse_llama, f"[{LLAMA}]", ""),
        (parse_llama, "So:\n```json\n[" + LLAMA + "]\n```\nOne moment.", "So:"),
        (
            parse_llama,
            '{"type": "function", "function": {"name": "river", "arguments": {"city": "Rome"}}}',
            "",
        ),
        (parse_llama, '{"type": "function", "name": "river", "parameters": {"city": "Rome"}}', ""),
        (parse_llama, r'{"name": "river", "parameters": "{\"city\": \"Rome\"}"}', ""),
        (parse_llama, r'{"name": "river", "parameters": "\"{\\\"city\\\": \\\"Rome\\\"}\""}', ""),
        (parse_mistral, "[TOOL_CALLS] " + OLD, ""),
        (parse_mistral, f"Hm.[TOOL_CALLS]{OLD}\n\nOne moment.</s>", "Hm."),
        (parse_mistral, f"[TOOL_CALLS]```json\n{OLD}\n```", ""),
        (parse_mistral, '[TOOL_CALLS]river[ARGS]{"city": "Rome"}\nOne moment.', ""),
        (parse_mistral, '[TOOL_CALLS]river{"city": "Rome"}', ""),
        (parse_mistral, '[TOOL_CALLS] river [CALL_ID]9aBc8xYz1[ARGS] {"city": "Rome"}</s>', ""),
        (parse_mistral, r'[TOOL_CALLS]river[ARGS]"{\"city\": \"Rome\"}"', ""),
        (
            parse_mistral,
            '[TOOL_CALLS] [{"type": "function", "function": {"name": "river", "arguments": {"city": "Rome"}}}]',
            "",
        ),
    ],
)
def test_a_whole_call_counts_whatever_stands_around_it(parse, text, content):
    assert (
        asked(parse(text)) == [ROME]
        and parse(text).content == content
        and not parse(text).malformed
    )
    name = "llama3.1" if parse is parse_llama else "mistral"
    assert score_turn(text, RECORD, parser=name).reward == 1.0


@pytest.mark.parametrize("between", [";", "\n", "; ", ", ", "", "<|python_tag|>", "\nand then\n"])
def test_llama_s_calls_one_after_another(between):
    assert asked(parse_llama(LLAMA + between + LLAMA)) == [ROME] * 2
    assert asked(parse_llama("<|python_tag|>" + LLAMA + between + LLAMA)) == [ROME] * 2


@pytest.mark.parametrize(
    "piece",
    [
        'river[ARGS]{"city": "Rome"}',
        'river[CALL_ID]a1[ARGS]{"city": "Rome"}',
        'river{"city": "Rome"}',
    ],
)
def test_mistral_s_calls_one_after_another(piece):
    for joint in ("[TOOL_CALLS]", "</s>[TOOL_CALLS]", "\n", ", "):
        assert asked(parse_mistral("[TOOL_CALLS]" + piece + joint + piece)) == [ROME] * 2
    assert asked(parse_mistral(f"[TOOL_CALLS]{piece}[TOOL_CALLS]{OLD}")) == [ROME] * 2


@pytest.mark.parametrize("nothing", ["null", '""', '" "', "{}", '"null"', '"{}"'])
def test_null_and_empty_arguments_are_none(nothing):
    for name, text in (
        ("llama3.1", '{"name": "clock", "parameters": %s}'),
        ("mistral", '[TOOL_CALLS] [{"name": "clock", "arguments": %s}]'),
        ("mistral", "[TOOL_CALLS]clock[ARGS]%s"),
    ):
        assert (
            asked(PARSERS[name](text % nothing)) == [("clock", {})]
            and score_turn(text % nothing, RECORD, parser=name).reward == 1.0
        )
    assert (
        asked(parse_mistral("[TOOL_CALLS]clock[ARGS]"))
        == asked(parse_mistral("[TOOL_CALLS]clock[ARGS] </s>"))
        == [("clock", {})]
    )


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "Tiber", "length": 405}',
        '[{"name": "Tiber"}, {"name": "Arno"}]',
        '{"name": null, "parameters": {}}',
        '{"parameters": {"city": "Rome"}}',
        "{}",
        "[]",
        "{",
        "[1, 2]",
        '{"name": {"a": 1}, "parameters": {}}',
        "Tiber",
        "It is {Tiber}.",
        '{"rivers": [{"name": "Tiber", "parameters": {}}]}',
        "set{1}",
        '{"name": "river", "description": "Finds rivers.", "parameters": {"type": "object"}}',
    ],
)
def test_an_answer_is_no_call(answer):
    for name in ("llama3.1", "mistral"):
        assert PARSERS[name](answer).calls == [] and PARSERS[name](answer).content == answer


def test_a_final_answer_in_json_is_worth_what_an_answer_is():
    text = '{"name": "Tiber", "length": 405}'
    assert (
        score_turn(text, RECORD, parser="llama3.1").case,
        score_turn(text, RECORD, parser="mistral").case,
    ) == ("answer", "answer")


@pytest.mark.parametrize(
    "name, text",
    [
        ("llama3.1", LLAMA[:-1]),
        ("llama3.1", "<|python_tag|>river.call(city='Rome')"),
        ("llama3.1", '{"name": "river", "parameters": "city: Rome"}'),
        ("mistral", "[TOOL_CALLS] " + OLD[:-2]),
        ("mistral", "[TOOL_CALLS]river"),
        ("mistral", '[TOOL_CALLS]river[ARGS]{"city": '),
        ("mistral", "[TOOL_CALLS]river[ARGS]city"),
        ("mistral", '[TOOL_CALLS][ARGS]{"city": "Rome"}'),
        ("mistral", '[TOOL_CALLS] [{"arguments": {}}]'),
    ],
)
def test_half_a_call_is_malformed(name, text):
    assert (
        PARSERS[name](text).calls == []
        and PARSERS[name](text).malformed
        and score_turn(text, RECORD, parser=name).case == "malformed"
    )


@pytest.mark.parametrize(
    "text, content",
    [
        (OLD, ""),
        (OLD[1:-1], ""),
        ("Hm. " + OLD, "Hm."),
        ('river{"city": "Rome"}', ""),
        (f"```json\n{OLD}\n```", ""),
    ],
)
def test_mistral_s_calls_are_read_when_its_special_tokens_were_dropped(text, content):
    assert (
        asked(parse_mistral(text)) == [ROME]
        and parse_mistral(text).content == content
        and score_turn(text, RECORD, parser="mistral").reward == 1.0
    )


@pytest.mark.parametrize(
    "text",
    [
        f"The list {OLD} is what I would send.",
        'I look. river{"city": "Rome"} and so on',
        '{"name": "river", "parameters": {"city": "Rome"}}',
    ],
)
def test_without_its_tags_mistral_s_call_must_be_the_end_of_the_turn(text):
    assert parse_mistral(text) == (text, [], [])


# -- any text

pieces = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "</s>",
        "<|eot_id|>",
        "```json",
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\",
        ",",
        ":",
        " ",
        "\n",
        '"name"',
        '"parameters"',
        '"arguments"',
        "river",
        "null",
        "1e999",
        "NaN",
        "\\ud83d",
        "\ud83d",
        "9" * 50,
        LLAMA,
        OLD,
    ]
)


def responder():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.response_template = qwen3_5_template
    return response_parser(tokenizer)


EVERY = {**PARSERS, "described": responder()}


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces | st.text(max_size=3), max_size=25).map("".join))
def test_no_text_raises_and_every_call_can_be_stored(text):
    for parse in EVERY.values():
        for c in parse(text).calls:
            assert ToolCall.model_validate_json(c.model_dump_json()).name == c.name


HOSTILE = [
    "x" + " " * 100_000 + "y",
    "</s>" * 25_000,
    " </s>" * 20_000 + "x",
    "{" * 100_000,
    '{"' * 50_000,
    '{"a":' * 20_000,
    "[" * 100_000,
    "[ " * 50_000,
    '{"name": "f", "parameters": ' * 4_000,
    '{"name": "f", "parameters": {}} ' * 3_000,
    "[TOOL_CALLS]" * 9_000,
    "[TOOL_CALLS]" + "f[ARGS]{}" * 11_000,
    "[TOOL_CALLS]" + "[CALL_ID]" * 11_000,
    "[TOOL_CALLS]f" + " " * 100_000 + "[",
    "f[ARGS]{}" * 11_000 + "}",
    '{"a\\' * 25_000,
    '{"x": ' + "1" * 100_000 + "}",
    "<tool_call>" * 9_000,
    "</tool_call>" * 9_000,
    "<tool_call>{" + " " * 100_000,
    "<tool_call>" + "[" * 100_000 + "</tool_call>",
    "<function=" * 10_000,
    "\n" * 100_000 + "}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: t[:12].strip() or "blanks")
def test_a_hundred_thousand_characters_are_read_in_no_time(text):
    for name, parse in PARSERS.items():
        begun = time.process_time()
        parse(text)
        assert time.process_time() - begun < 1, (
            name
        )  # some hundredths of a second; what is quadratic takes minutes


# -- what cannot be stored as it was written


@pytest.mark.parametrize("depth", [DEEPEST - 2, DEEPEST, 195, 250, 900])
def test_deep_arguments_count_and_run_and_are_stored_as_text(depth):
    nested = "[" * depth + "]" * depth
    for name, text in (
        ("qwen", '<tool_call>{"name": "river", "arguments": {"city": %s, "n": 1}}</tool_call>'),
        ("llama3.1", '{"name": "river", "parameters": {"city": %s, "n": 1}}'),
        ("mistral", '[TOOL_CALLS]river[ARGS]{"city": %s, "n": 1}'),
    ):
        (call,) = PARSERS[name](text % nested).calls
        assert (
            written(call)[1] == {"city": json.loads(nested), "n": 1}
            and ToolCall.model_validate_json(call.model_dump_json()).arguments == call.arguments
        )
        if depth > DEEPEST:
            assert call.arguments == {"city": nested, "n": 1}
        assert (
            score_turn((text % nested).replace(', "n": 1', ""), RECORD, parser=name).reward == 1.0
        )
    (call,) = message_calls(
        {"tool_calls": [{"function": {"name": "river", "arguments": {"city": json.loads(nested)}}}]}
    )[0]
    assert written(call)[1] == {"city": json.loads(nested)} and call.model_dump_json()


def test_halves_of_surrogate_pairs_become_question_marks():
    assert storable("Tiber \ud83d") == "Tiber ?" and storable("Tiber 🌊") == "Tiber 🌊"


# -- calls as data


def test_calls_as_data_are_read_by_every_parser_as_they_came():
    said = Parsed(
        "I use <tool_call> and [TOOL_CALLS].",
        [ToolCall(name="river", arguments={"city": "Rome"})],
        [],
    )
    reply = Reply("anything", said)
    assert reply == "anything" and all(parse(reply) is said for parse in EVERY.values())
    for parser in (*PARSERS, EVERY["described"], lambda text: Parsed(text, [], [])):
        assert score_turn(reply, RECORD, parser=parser).reward == 1.0
    again = pickle.loads(pickle.dumps(reply))
    assert isinstance(again, Reply) and again.parsed == said


def test_equal_texts_that_are_read_differently_are_scored_differently():
    call = Reply("Tiber", Parsed("", [ToolCall(name="clock")], []))
    other = Reply("Tiber", Parsed("", [ToolCall(name="river")], []))
    scores = score_batch([(text, RECORD) for text in ("Tiber", call, other, "Tiber", call)])
    assert [s.case for s in scores] == ["answer", "calls", "calls", "answer", "calls"] and [
        [c.name for c in s.calls] for s in scores[1:3]
    ] == [["clock"], ["river"]]


def message(*calls, **fields):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)} | fields


FUNCTION = {"name": "river", "arguments": '{"city": "Rome"}'}


@pytest.mark.parametrize(
    "said",
    [
        message({"id": "a", "type": "function", "function": FUNCTION}),
        message({"function": FUNCTION}),
        message({"type": None, "function": FUNCTION}),
        message({"type": "", "function": FUNCTION}),
        message({"id": None, "type": "tool", "function": FUNCTION}),
        message(FUNCTION),
        {"content": "", "tool_calls": {"function": FUNCTION}},
        {"content": None, "function_call": FUNCTION},
        message(function_call=FUNCTION),
        message({"function": {"name": "river", "arguments": {"city": "Rome"}}}),
        message({"function": {"name": "river", "arguments": json.dumps('{"city": "Rome"}')}}),
        message({"function": FUNCTION}, content="Hm.", reasoning_content="Rome?", refusal=None),
        message({"function": FUNCTION}, content=[{"type": "text", "text": "Hm."}]),
    ],
)
def test_calls_of_every_dialect_count(said):
    for form in (said, SimpleNamespace(**said)):
        turn = reply_text(form)
        assert (
            asked(parse_qwen(turn)) == [ROME]
            and score_turn(turn, RECORD).reward == 1.0
            and turn.endswith(
                '<tool_call>\n{"name": "river", "arguments": {"city": "Rome"}}\n</tool_call>'
            )
        )


@pytest.mark.parametrize("nothing", [None, "", " ", "null", "{}", {}, '""'])
def test_a_call_without_arguments_counts(nothing):
    assert asked(
        parse_qwen(reply_text(message({"function": {"name": "clock", "arguments": nothing}})))
    ) == [("clock", {})]
    assert asked(parse_qwen(reply_text(message({"function": {"name": "clock"}})))) == [
        ("clock", {})
    ]


@pytest.mark.parametrize(
    "function",
    [
        {"name": "river", "arguments": '{"city": '},
        {"name": "river", "arguments": "Rome"},
        {"name": "river", "arguments": ["Rome"]},
        {"name": "river", "arguments": "[1]"},
        {"name": "river", "arguments": 3},
        {"name": None, "arguments": "{}"},
        {"arguments": "{}"},
        {"name": 5, "arguments": "{}"},
        {"name": ""},
        {},
        None,
        "river",
        7,
    ],
)
def test_what_is_no_call_is_malformed_and_stands_beside_those_that_are(function):
    turn = reply_text(message({"type": "function", "function": function}))
    assert (
        not parse_qwen(turn).calls
        and parse_qwen(turn).malformed
        and score_turn(turn, RECORD).case == "malformed"
        and any(m in turn for m in MARKUP["qwen"])
    )
    both = parse_qwen(reply_text(message({"function": function}, {"function": FUNCTION})))
    assert asked(both) == [ROME] and len(both.malformed) == 1


def test_thousands_of_calls_in_one_message_are_malformed_and_none_runs():
    most = message(*[{"function": FUNCTION}] * MOST_CALLS)
    assert len(parse_qwen(reply_text(most)).calls) == MOST_CALLS
    turn = reply_text(message(*[{"function": FUNCTION}] * 20_000))
    assert (
        len(turn) < 100
        and "20000 calls" in turn
        and score_turn(turn, RECORD).case == "malformed"
        and not parse_qwen(turn).calls
    )


@pytest.mark.parametrize(
    "fields, text",
    [
        (dict(content="Tiber"), "Tiber"),
        (dict(content=None), ""),
        (dict(content=[]), ""),
        (dict(content=["Ti", {"text": "ber"}]), "Tiber"),
        (dict(content={"type": "text", "text": "Tiber"}), "Tiber"),
        (dict(content=[{"type": "image_url"}, {"type": "text", "text": "Tiber"}]), "Tiber"),
        (dict(content=None, refusal="No."), "No."),
        (dict(content="Tiber", refusal="No."), "Tiber"),
        (dict(content="", reasoning_content="Tiber?"), ""),
        (dict(content="Tiber \ud83d"), "Tiber ?"),
        (dict(content="<tool_call>{}</tool_call>", tool_calls=[]), "<tool_call>{}</tool_call>"),
    ],
)
def test_words_alone_are_a_plain_text(fields, text):
    assert reply_text(fields) == text and not isinstance(reply_text(fields), Reply)


@pytest.mark.parametrize("content", [3, True, [4], {"a": 1}])
def test_a_content_that_is_no_text_is_refused(content):
    with pytest.raises(TypeError, match="expected a text"):
        reply_text({"content": content})


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=4)
    | st.sampled_from(["river", "{}", "null", "\ud83d"]),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "arguments", "function", "tool_calls", "type", "custom", "input", "a"]
            ),
            x,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "tool_calls": json_like,
            "function_call": json_like,
            "content": st.none() | st.text(max_size=5),
        },
    )
)
def test_no_message_raises(said):
    turn = reply_text(said)
    turn.encode()
    for c in parse_qwen(turn).calls:
        c.model_dump_json()


def test_a_described_format_gives_arguments_as_they_are_meant():
    parse = EVERY["described"]
    text = "I look. <tool_call>\n<function=river>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
    assert (
        asked(parse(text)) == [ROME]
        and parse(text).content == "I look."
        and parse("<tool_call>river</tool_call>").malformed
    )


def test_a_template_may_be_several():
    assert (
        parser_for({"default": "", "tool_use": "[TOOL_CALLS]"}) == "mistral"
        and parser_for({"default": "<|python_tag|>"}) == "llama3.1"
        and parser_for({}) == "qwen"
    )
