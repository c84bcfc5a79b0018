"The smallest task: one of two loans is to be handed back."

from toolrl_lit.engine.goals import Change, Fact, Request, Script, Step, Task
from toolrl_lit.schema import Tool, ToolCall, ToolDoc
from toolrl_lit.tasks import task_environment


def loan_tool(name, told, body):
    key = {"loan": {"type": "string", "description": "id of the loan"}}
    parameters = {"type": "object", "properties": key, "required": ["loan"]}
    code = (
        f'def {name}(loan, data=None):\n    row = data["loans"][loan]\n    {body}\n    return row'
    )
    return Tool(doc=ToolDoc(name=name, description=told, parameters=parameters), code=code)


def loan_task(n=0):
    "The smallest task: one of two loans is to be handed back, and a shelf to be told."
    loans = {f"LN-{k}": {"id": f"LN-{k}", "state": "out", "shelf": f"B{k}{n}"} for k in (1, 2)}
    goal = Change(table="loans", key="LN-2", row=loans["LN-2"] | {"state": "back"})
    request = Request(
        opening=f"I bring book {n} back. Which shelf?",
        facts=[Fact(noun="id", words=["id"], value="LN-2", first="LN-3", misread=True)],
    )
    step = Step(
        request=request,
        lookups=[ToolCall(name="get_loan", arguments={"loan": "LN-2"})],
        write=ToolCall(name="return_loan", arguments={"loan": "LN-2"}),
        goal=goal,
        says=[f"B2{n}"],
        noun="shelf",
    )
    task = Task(
        policy="You work for a library.",
        rules=[],
        table="loans",
        writing=["return_loan"],
        tables={"loans": loans},
        script=Script(requests=[request], split="train", seed=5),
        steps=[step],
    )
    body = 'row["state"] = "back"'
    tools = [loan_tool("get_loan", "Show.", "pass"), loan_tool("return_loan", "Take back.", body)]
    return task_environment(f"loan-{n}", task, tools)
