"Python functions as tools: the text that is made of them gives what they give, and what text cannot take along is refused."

import functools
import math
import re
from typing import Literal

import pytest

from toolrl_lit.engine.config import rule_reward
from toolrl_lit.engine.functions import (
    environment_from_functions,
    kind_of_steps,
    source_of,
    tool_from_function,
)
from toolrl_lit.engine.sandbox import shared
from toolrl_lit.schema import Environment, SubQuestion, UserError

RATES = {"EUR": 1.0, "PLN": 4.25}
NAMES = [("euro", "EUR"), ("zloty", "PLN")]
CYCLE: list = []
CYCLE.append(CYCLE)
PATTERN = re.compile(r"[a-z]+")


def code_of(name: str) -> str:
    return dict(NAMES)[name]


def convert(
    amount: float,  # how much
    to: Literal["EUR", "PLN"] = "EUR",  # the currency that is wanted
    places: int | None = None,
) -> str:
    """Return an amount in another currency.

    More on it that no model needs."""
    value = amount * RATES[to]
    return str(round(value, places) if places is not None else math.floor(value))


def currency(name: str) -> str:
    "Return the code of a currency."
    return re.sub(r"\W", "", code_of(name))


def even(n: int) -> bool:
    "Return whether a number is even."
    return n == 0 or odd(n - 1)


def odd(n: int) -> bool:
    return n != 0 and even(n - 1)


@pytest.mark.parametrize(
    "function, arguments",
    [
        (convert, {"amount": 10.5, "to": "PLN"}),
        (convert, {"amount": 10.5, "places": 1}),
        (currency, {"name": "zloty"}),
        (even, {"n": 10}),
    ],
)
def test_the_text_of_a_function_gives_what_the_function_gives(function, arguments):
    tool = tool_from_function(function)
    assert shared().call(tool.name, arguments, tool.code).text == str(function(**arguments))


def has_letters(text: str) -> bool:
    "Return whether a text has small letters."
    return bool(PATTERN.search(text))


def test_what_a_module_of_the_standard_library_has_made_is_not_imported_from_there():
    with pytest.raises(UserError, match="uses PATTERN, a Pattern; expected plain data"):
        source_of(has_letters)


def test_the_document_says_what_the_function_says():
    doc = tool_from_function(convert).doc
    assert doc.description == "Return an amount in another currency."
    assert doc.parameters["required"] == ["amount"]
    to = doc.parameters["properties"]["to"]
    assert to["enum"] == ["EUR", "PLN"] and to["default"] == "EUR"
    assert to["description"] == "the currency that is wanted"
    assert "title" not in str(doc.parameters)


def test_what_is_needed_is_written_once_and_before_it_is_used():
    code = source_of(even)
    assert code.count("def even") == code.count("def odd") == 1
    assert source_of(currency).index("NAMES =") < source_of(currency).index("def currency")


def with_star(*names: str):
    "Return names."


def by_place(name: str, /):
    "Return a name."


async def later(name: str):
    "Return a name."


def steps_on(name: str):
    "Return names."
    yield name


def silent(name: str):
    return name


def bare(name):
    "Return a name."


def odd_type(name: set[str]):
    "Return a name."


def cyclic(name: str):
    "Return a name."
    return CYCLE, name


def foreign(name: str):
    "Return a name."
    return pytest, name


@functools.wraps(currency)
def wrapped(name: str):
    "Return a name."
    return currency(name)


@pytest.mark.parametrize(
    "function, why",
    [
        (with_star, "calls name each argument"),
        (by_place, "calls name each argument"),
        (later, "is async or a generator"),
        (steps_on, "is async or a generator"),
        (silent, "has no docstring"),
        (bare, "parameter name has no type; write name: str"),
        (odd_type, "parameter name: JSON cannot carry set"),
        (cyclic, "uses CYCLE, a list"),
        (foreign, "uses pytest, a module"),
        (wrapped, "is decorated"),
        (Environment, "expected a plain function"),
        ("".join, "expected a plain function"),
        (lambda name: name, "a lambda has no name"),
    ],
)
def test_what_text_cannot_take_along_is_refused_and_why(function, why):
    with pytest.raises(UserError, match=re.escape(why)):
        tool_from_function(function)


def test_a_function_from_nowhere_is_refused():
    space = {}
    exec("def f(a: str):\n    'Return it.'\n    return a", space)
    with pytest.raises(UserError, match="its source is not to be found"):
        tool_from_function(space["f"])


def test_steps_depend_on_what_they_are_called_with():
    env = environment_from_functions(
        "How much is 10 euros in zloty?",
        "42",
        [currency, convert],
        [(currency, {"name": "zloty"}), ("convert", {"amount": 10, "to": "PLN"})],
    )
    assert env.kind == "multi-hop" and env.answer == "42"
    assert [q.answer for q in env.scenario.sub_questions] == ["PLN", "42"]


def test_kinds():
    def q(i, *needs):
        return SubQuestion(id=i, question="?", answer=i, depends_on=list(needs))

    assert kind_of_steps([q("a")]) == "single-hop"
    assert kind_of_steps([q("a"), q("b")]) == "parallel single-hop"
    assert kind_of_steps([q("a"), q("b", "a"), q("c", "b")]) == "multi-hop"
    assert kind_of_steps([q("a"), q("b"), q("c", "a", "b")]) == "parallel multi-hop"


def test_steps_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="expected at least one golden call"):
        environment_from_functions("?", "1", [even], [])
    with pytest.raises(UserError, match="'odd' is not among the functions: even"):
        environment_from_functions("?", "1", [even], [(odd, {"n": 1})])
    with pytest.raises(UserError, match="the golden call currency.* fails"):
        environment_from_functions("?", "1", [currency], [(currency, {"name": "dollar"})])
    told = SubQuestion(
        id="q1", question="?", answer="EUR", tool="currency", arguments={"name": "zloty"}
    )
    with pytest.raises(UserError, match="gives 'PLN', not 'EUR'"):
        environment_from_functions("?", "EUR", [currency], [told])
    with pytest.warns(UserWarning, match="no step says the final answer 'dollar'"):
        environment_from_functions("?", "dollar", [currency], [(currency, {"name": "euro"})])


def test_the_class_has_it():
    env = Environment.from_functions(
        "?", "EUR", [currency, even], [(currency, {"name": "euro"})], id="x", split="test"
    )
    assert env.id == "x" and env.split == "test"
    assert [t.distractor for t in env.tools] == [False, True]


# -- names of builtins, and steps that use a part of what came before


def oct(x: float) -> int:
    "A helper with the name of a builtin."
    return int(x * 100)


def test_a_helper_with_the_name_of_a_builtin_is_taken_along():
    def pence(x: float) -> str:
        """Tell a price.

        Args:
            x: in pounds
        """
        return str(oct(x))

    source = source_of(pence)
    assert "def oct" in source and shared().call("pence", {"x": 1.51}, source).text == "151"


def test_a_step_that_uses_one_field_of_an_earlier_answer_depends_on_it():
    def item(code: str) -> dict:
        """Look an item up.

        Args:
            code: of the item
        """
        return {"name": "lamp", "code": code, "pieces": 7}

    def price(article: str) -> str:
        """Tell a price.

        Args:
            article: name of the article
        """
        return {"lamp": "12 pounds"}[article]

    env = Environment.from_functions(
        question="What does the article with code A-100 cost?",
        functions=[item, price],
        sub_questions=[(item, {"code": "A-100"}), (price, {"article": "lamp"})],
        answer="12 pounds",
    )
    assert env.scenario.kind == "multi-hop"
    again = Environment.from_functions(
        question="What is A-100, twice?",
        functions=[item, price],
        sub_questions=[(item, {"code": "A-100"}), (item, {"code": "A-100"})],
        answer="lamp",
    )
    assert again.scenario.kind == "parallel single-hop"  # the code is no news


# -- a reward of one's own


@pytest.mark.parametrize(
    "rule, said",
    [
        (lambda score: None, "expected a finite number, got None"),
        (lambda score: math.nan, "expected a finite number, got nan"),
        (lambda score: [1, 2], "expected a finite number"),
        (lambda score: 1 / 0, "fails: ZeroDivisionError"),
        (lambda score, step, more: 1.0, "fails: TypeError"),
    ],
)
def test_a_rule_that_gives_no_number_is_named(rule, said):
    with pytest.raises(UserError, match=said):
        rule_reward(rule, "score", "step")


def test_a_rule_is_given_the_step_record_that_it_asks_for():
    assert rule_reward(lambda score: 0.5, 1, 2) == 0.5
    assert rule_reward(lambda score, record: record, 1, 2) == 2
    assert rule_reward(lambda score, step=None: step, 1, 2) == 2
    assert rule_reward(lambda score, *, step: step, 1, 2) == 2
    assert rule_reward(lambda score, scale=3: scale, 1, 2) == 3
