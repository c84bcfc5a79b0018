"The environment of two hops in which what is exported is tried."

from toolrl_lit.schema import Environment, Scenario, SubQuestion, Tool, ToolDoc


def lookup(name, param, facts):
    "A tool that knows some facts."
    doc = ToolDoc(
        name=name,
        description=f"Find the {name}.",
        parameters={
            "type": "object",
            "properties": {param: {"type": "string", "description": f"A {param}."}},
            "required": [param],
        },
    )
    return Tool(
        doc=doc, code=f"def {name}({param}):\n    return {facts!r}.get({param}, 'unknown')\n"
    )


def environment(
    id="e1", split="train", code="NCE", country="France", capital="Paris", lookup=lookup
):
    "An airport's country, and then its capital."
    first = SubQuestion(
        id="q1",
        question="Which country?",
        answer=country,
        tool="country_of",
        arguments={"code": code},
    )
    second = SubQuestion(
        id="q2",
        question="Its capital?",
        answer=capital,
        tool="capital_of",
        arguments={"country": country},
        depends_on=["q1"],
    )
    return Environment(
        tools=[
            lookup("country_of", "code", {code: country}),
            lookup("capital_of", "country", {country: capital}),
        ],
        scenario=Scenario(
            id=id,
            kind="multi-hop",
            question=f"Capital of the country of {code}?",
            answer=capital,
            split=split,
            sub_questions=[first, second],
        ),
    )
