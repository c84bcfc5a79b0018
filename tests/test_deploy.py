"""The examination notices what is wrong with an environment."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_lit.build import build_environments
from toolrl_lit.deploy import check, check_documents, fill, final_told, probes
from toolrl_lit.engine.sandbox import shared
from toolrl_lit.scenario import KnowledgeGenerator
from toolrl_lit.schema import Environment, Scenario, SubQuestion, Tool, ToolDoc


def small(
    code: str,
    answer: str = "Lima",
    extra: list[Tool] = (),
    schema: dict | None = None,
    arguments: dict | None = None,
) -> Environment:
    "One question, one tool."
    q = SubQuestion(
        id="q1",
        question="?",
        answer=answer,
        tool="capital_of",
        arguments=arguments or {"country": "Peru"},
        entities=["Peru", answer],
    )
    doc = ToolDoc(
        name="capital_of",
        description="",
        parameters=schema
        or {
            "type": "object",
            "properties": {"country": {"type": "string"}},
            "required": ["country"],
        },
    )
    return Environment(
        scenario=Scenario(
            id="s", kind="single-hop", question="?", answer=answer, sub_questions=[q]
        ),
        tools=[Tool(doc=doc, code=code), *extra],
    )


GOOD = "def capital_of(country):\n    table = {'Peru': 'Lima', 'Chad': \"N'Djamena\"}\n    if country not in table: raise ValueError('unknown')\n    return table[country]\n"


def first(env):
    return check(env)[0].partition(":")[0]


def test_a_right_environment_passes():
    assert check(small(GOOD)) == []


@pytest.mark.parametrize(
    "code, problem",
    [
        ("def capital_of(country):\n    return 'Quito'\n", "golden call fails"),
        ("def capital_of(country):\n    return 'Lima'\n", "solved by empty arguments"),
        ("def capital_of(country=''):\n    return 'Lima'\n", "solved by no arguments"),
        (
            "def capital_of(country):\n    table = {'Peru': 'Lima', 'Chad': 'Lima'}\n    if country not in table: raise ValueError\n    return table[country]\n",
            "solved by known neighbour",
        ),
        (
            "def capital_of(country):\n    return 'Lima' if country == 'Peru' else f'unknown: {country}'\n",
            "solved by entity of the question",
        ),
        (
            "def capital_of(country):\n    if country != 'Peru': raise ValueError('only Peru, whose capital is LIMA')\n    return 'Lima'\n",
            "solved by empty arguments",
        ),
        ("def capital_of(country:\n", "code does not parse"),
        (
            "def capital(country):\n    return 'Lima'\n",
            "code defines no function of the tool's name",
        ),
        (
            "def capital_of(nation):\n    return 'Lima'\n",
            "document and code disagree on parameters",
        ),
        ("def capital_of(country):\n    while True: pass\n", "golden call fails"),
    ],
)
def test_what_is_wrong_is_noticed(code, problem):
    from toolrl_lit.engine.sandbox import ToolSandbox

    if "while True" in code:
        with ToolSandbox(workers=1, timeout=0.3) as box:
            assert check(small(code), box)[0].startswith(problem)
    else:
        assert first(small(code)) == problem


def test_bad_documents_are_noticed():
    assert (
        first(
            small(
                GOOD,
                schema={
                    "type": "object",
                    "properties": {"country": {"type": "text"}},
                    "required": ["country"],
                },
            )
        )
        == "document is no JSON Schema"
    )
    assert (
        first(
            small(
                GOOD,
                schema={
                    "type": "object",
                    "properties": {"country": {"type": "string", "enum": ["Chad"]}},
                    "required": ["country"],
                },
            )
        )
        == "golden arguments are invalid"
    )
    told = small(GOOD)
    told.tools[0].doc.description = "For example lima."
    assert first(told) == "golden answer in documents"


def asks(question, answer, description=""):
    "An environment with the steps 1284000 and 1285780."
    env = small(GOOD)
    env.tools[0].doc.description, env.scenario.question, env.scenario.answer = (
        description,
        question,
        answer,
    )
    env.scenario.sub_questions = [
        env.scenario.sub_questions[0].model_copy(update=dict(id=a, answer=a))
        for a in ("1284000", "1285780")
    ]
    return env


@pytest.mark.parametrize(
    "question, answer, description, where",
    [
        ("By how much does Chad exceed Peru?", "1780", "For instance 1780.", ["documents"]),
        ("By how much does Chad exceed Peru?", "1780", "For instance 17801.", []),
        ("Is it 1,780?", "1780", "", ["question"]),
        ("In 1780, is it less?", "178", "", []),
        ("Of 12 lakes, how many are left?", "12", "At most 12.", ["question"]),
        ("How many lakes?", "12", "At most 12.", []),
        ("Which is larger, Chad or Peru?", "Peru", "Of Chad and Peru.", []),
        ("Which is larger, Chad or Peru?", "Chad", "", []),
        ("Which of the lakes Chad, Titicaca or Volta is deepest?", "Titicaca", "", []),
        ("Which is larger: the Chad, the Niger, or the Volta?", "niger", "", []),
        ("Of Chad and Peru, which is larger?", "Peru", "", []),
        ("Which is larger, Chad or Peru? Hint: Peru.", "Peru", "", ["question"]),
        ("Where is Lima? In Peru.", "Peru", "Such as Peru.", ["question", "documents"]),
        ("Is it a lake or not? Yes, no?", "no", "", []),
        ("What do Chad and Peru add up to, 99?", "99", "", ["question"]),
        ("Is 1284000 right?", "1284000", "", []),
        ("What?", "", "", []),
    ],
)
def test_a_final_answer_that_can_be_read_is_noticed_unless_it_is_offered_for_choice(
    question, answer, description, where
):
    env = asks(question, answer, description)
    assert final_told(env) == where
    assert [p for p in check_documents(env) if p.startswith("final")] == [
        "final answer in documents"
    ] * ("documents" in where)


@pytest.mark.parametrize(
    "parameters, bare",
    [
        ({"required": ["country"]}, "country"),
        ({"properties": {}, "required": ["a", "b"]}, "a, b"),
        ({"properties": {"country": True}}, "country"),
    ],
)
def test_a_parameter_without_a_description_is_noticed(parameters, bare):
    "Of a distractor too, which no golden call tries."
    other = Tool(
        doc=ToolDoc(name="main_city", description="", parameters={"type": "object", **parameters}),
        code=GOOD.replace("capital_of", "main_city"),
        distractor=True,
    )
    assert check(small(GOOD, extra=[other])) == [
        f"parameters without a description: main_city: {bare}"
    ]


def test_a_distractor_that_solves_is_noticed():
    doc = ToolDoc(
        name="main_city",
        description="",
        parameters={
            "type": "object",
            "properties": {"country": {"type": "string"}},
            "required": ["country"],
        },
    )
    code = GOOD.replace("capital_of", "main_city")
    assert (
        first(small(GOOD, extra=[Tool(doc=doc, code=code, distractor=True)]))
        == "solved by entity of the question"
    )


def test_errors_repeat_nothing_and_list_nothing():
    for env in build_environments(KnowledgeGenerator(), 40, seed=8, progress=False):
        for p in probes(env):
            if p.why != "senseless arguments":
                continue
            result = shared().call(p.tool, p.arguments, env.codes()[p.tool])
            assert not result.ok and "zzqx" not in result.text and len(result.text) < 300


@settings(deadline=None)  # a slow machine is no fault of `fill`
@given(st.text(max_size=20))
def test_filled_values_fit_their_type(text):
    import jsonschema

    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "array", "items": {"type": "integer"}},
            "c": {"type": "boolean"},
        },
    }
    for value in fill(schema, text):
        jsonschema.validate(value, schema)


def test_a_tool_knows_its_entities_however_they_are_written():
    for env in build_environments(KnowledgeGenerator(), 24, seed=5, progress=False):
        for q in env.scenario.sub_questions:
            tool = next(t for t in env.tools if t.doc.name == q.tool)
            texts = {k: v for k, v in q.arguments.items() if v in q.entities}
            for spell in (str.lower, str.upper, lambda v: f" {v} ", lambda v: v.lstrip(".+")):
                said = shared().call(
                    q.tool, q.arguments | {k: spell(v) for k, v in texts.items()}, tool.code
                )
                assert (
                    said.ok and said.text == shared().call(q.tool, q.arguments, tool.code).text
                ), (q.arguments, said)


@pytest.mark.parametrize(
    "code",
    [
        "def capital_of(*, country):",
        "def capital_of(country, *rest):",
        "def capital_of(country, **options):",
        "def capital_of(**options):\n    country = options['country']",
        "def capital_of(unused=1, /, *, country):",
        "import functools\n@functools.cache\ndef capital_of(country):",
    ],
)
def test_parameters_may_be_taken_in_any_way_that_calls_can_use(code):
    assert check(small(GOOD.replace("def capital_of(country):", code))) == []


def test_a_lambda_is_a_function_too():
    assert (
        check(
            small(
                "capital_of = lambda country: {'Peru': 'Lima', 'Chad': 'Niamey'}.get(country, 'not known')"
            )
        )
        == []
    )


@pytest.mark.parametrize(
    "head, problem",
    [
        ("def capital_of(country, /):", "code needs a parameter by its position"),
        ("async def capital_of(country):", "code is an async function"),
        ("def capital_of(*country):", "document and code disagree"),
        ("def capital_of(country, other=1):", "document and code disagree"),
        ("def capital_of(other, **options):", "document and code disagree"),
        ("def capital_of(country, *, other):", "document and code disagree"),
        ("class capital_of:\n  def x(country):", "code defines no function"),
        ("def capital_of(\0country):", "code does not parse"),
    ],
)
def test_parameters_that_calls_cannot_pass_are_noticed(head, problem):
    assert check_documents(small(f"{head}\n    return 'Lima'\n"))[0].startswith(f"{problem}")


def test_a_document_that_refers_to_nothing_is_noticed():
    schema = {
        "type": "object",
        "properties": {"country": {"$ref": "#/$defs/Country"}},
        "required": ["country"],
    }
    assert check(small(GOOD, schema=schema))[0].startswith(
        "document refers to what is not there: capital_of"
    )
