"""The package for verifiers: its own loader and evaluator run it against a loopback endpoint that replays golden calls.

verifiers needs older versions of openai and mcp than constraints.txt has, so `make test` runs this file in an environment of its own."""

import asyncio
import http.server
import importlib
import json
import sys
import threading

import pytest

vf = pytest.importorskip(
    "verifiers.v1",
    reason="verifiers is not in this environment; `make test` runs this file in another",
)
from loans import loan_task
from two_hops import environment
from verifiers.v1.cli.eval.runner import run_eval
from verifiers.v1.configs.cli.eval import EvalConfig
from verifiers.v1.utils.loaders import load_environment

from toolrl_lit.collect import OraclePolicy, call_text, collect
from toolrl_lit.doors.export import to_verifiers
from toolrl_lit.reward import score_turn
from toolrl_lit.schema import Tool, ToolCall, ToolDoc


def lookup(name, param, facts):
    "A tool whose parameters are no plain strings, and which fails where it knows nothing."
    schema = {
        "type": "object",
        "required": [param],
        "properties": {param: {"type": ["string", "null"], "x-odd": [1]}},
    }
    return Tool(
        doc=ToolDoc(name=name, description=f"Find {name}.", parameters=schema),
        code=f"def {name}({param}):\n    return {facts!r}[{param}]\n",
    )


ENVIRONMENTS = [
    environment("e1", lookup=lookup),
    environment("e2", "train", "VIE", "Austria", "Vienna", lookup),
]


def call(name, arguments):
    "A call on the wire; arguments in a string go as they are."
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"type": "function", "function": {"name": name, "arguments": text}}


def golden(env):
    "The turns of an ideal policy."
    waves = [
        dict(content="", tool_calls=[call(c.name, c.arguments) for c in wave])
        for wave in env.golden_calls()
    ]
    return [*waves, dict(content=env.answer)]


class Endpoint:
    "A chat-completions server that writes turns as it is told, by question; keeps what it was asked."

    def __init__(self, turns):
        self.asked, endpoint = [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body)
                question = next(m["content"] for m in body["messages"] if m["role"] == "user")
                n = sum(m["role"] == "assistant" for m in body["messages"])
                message = {"role": "assistant"} | turns[question][n]
                for i, c in enumerate(message.get("tool_calls", [])):
                    c["id"] = f"c{n}-{i}"
                choice = {
                    "index": 0,
                    "message": message,
                    "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
                }
                data = json.dumps(
                    {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": "m",
                        "choices": [choice],
                        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                    }
                ).encode()
                self.send_response(200)
                for k, v in (
                    ("Content-Type", "application/json"),
                    ("Content-Length", str(len(data))),
                ):
                    self.send_header(k, v)
                self.end_headers()
                self.wfile.write(data)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=[0.02], daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture()
def package(tmp_path, monkeypatch, request):
    "The package, importable as after `pip install`."
    name = f"toolrl_{request.node.name.split('[')[0]}"[:60].lower()
    monkeypatch.syspath_prepend(str(to_verifiers(ENVIRONMENTS, tmp_path / name)))
    yield name
    sys.modules.pop(name, None)


def evaluate(name, endpoint, out, **task):
    "Run verifiers' evaluator; its traces by environment."
    client = dict(base_url=endpoint.url, api_key_var="NO_SUCH_KEY")
    config = EvalConfig.model_validate(
        dict(
            env=dict(taskset=dict(id=name, task=task)),
            model="m",
            rich=None,
            push=False,
            output_dir=str(out),
            client=client,
        )
    )
    return {t.task.data.id: t for episode in asyncio.run(run_eval(config)) for t in episode.traces}


def test_golden_calls_are_worth_everything(package, tmp_path):
    endpoint = Endpoint({e.question: golden(e) for e in ENVIRONMENTS})
    traces = evaluate(package, endpoint, tmp_path / "out")
    for e in ENVIRONMENTS:
        t = traces[e.id]
        assert not t.has_error, t.last_error
        assert t.reward == 1.0 and t.metrics == {
            "solve_f1": 1.0,
            "solve_p": 1.0,
            "solve_r": 1.0,
            "calls": 2.0,
        }
        assert [m.content for m in t.tool_messages] == [q.answer for q in e.scenario.sub_questions]
    tools = {e.question: e.documents() for e in ENVIRONMENTS}
    assert len(endpoint.asked) == 6 and all(
        body["tools"] == tools[body["messages"][0]["content"]] for body in endpoint.asked
    )
    assert "def country_of" not in json.dumps(endpoint.asked)


def test_every_kind_of_turn_is_rewarded_as_the_library_does(package, tmp_path):
    a, b = ENVIRONMENTS
    written = [("country_of", {"code": "NCE"}), ("country_of", {"code": "?"}), ("nothing", {})]
    made = [*(call(*c) for c in written), call("capital_of", "{broken")]
    wrong = [dict(content="", tool_calls=made), dict(content="I do not know.")]
    endpoint = Endpoint(
        {
            a.question: wrong,
            b.question: [dict(content="", tool_calls=[call("country_of", "{broken")])],
        }
    )
    traces = evaluate(package, endpoint, tmp_path / "out")
    t = traces["e1"]
    assert not t.has_error, t.last_error
    first = score_turn(call_text([ToolCall(name=n, arguments=x) for n, x in written]), a)
    assert (
        t.reward == (first.reward + 0.0) / 2 == 0.25
        and t.metrics["solve_p"] == 1 / 3
        and t.metrics["solve_r"] == 0.5
    )
    assert [m.content for m in t.tool_messages] == [c.result for c in first.calls] + [
        "the arguments are no JSON object"
    ]
    assert traces["e2"].reward == pytest.approx(-0.3)


def test_strict_matching_is_an_option_and_turns_are_limited(package, tmp_path):
    a, b = ENVIRONMENTS
    echo = [dict(content="", tool_calls=[call("country_of", {"code": "France"})])] * 30
    endpoint = Endpoint({a.question: echo, b.question: golden(b)})
    traces = evaluate(package, endpoint, tmp_path / "out", match="strict")
    assert traces["e2"].reward == 1.0 and traces["e1"].reward == 0.0
    assert traces["e1"].num_turns == 20 and not traces["e1"].has_error


def test_the_loader_finds_taskset_harness_and_environment(package):
    config = EvalConfig.model_validate(dict(env=dict(taskset=dict(id=package)))).env
    env, module = load_environment(config), importlib.import_module(package)
    assert isinstance(env, module.ToolEnv) and isinstance(config.agent.runtime, vf.SubprocessConfig)
    assert [t.data.environment for t in env.taskset] == ENVIRONMENTS and env.taskset.bounded


def test_a_golden_rollout_of_a_task_is_replayed_with_its_user(tmp_path, monkeypatch):
    env, name = loan_task(), "toolrl_tasks"
    monkeypatch.syspath_prepend(str(to_verifiers([env], tmp_path / name)))
    [played] = collect(OraclePolicy([env]), [env], temperature=0)
    golden = [
        dict(content="", tool_calls=[call(c.name, c.arguments) for c in t.calls])
        if t.calls
        else dict(content=t.text)
        for t in played.turns
    ]
    endpoint = Endpoint({env.task.opening: golden})
    trace = evaluate(name, endpoint, tmp_path / "out")[env.id]
    assert not trace.has_error, trace.last_error
    assert trace.reward == 1.0 and trace.metrics["solve_f1"] == 1.0
    said = [[m["role"], m["content"]] for m in endpoint.asked[-1]["messages"]]
    assert said[0] == ["system", env.task.policy]
    users = [text for role, text in said if role == "user"]
    assert users == [m["content"] for m in played.messages if m["role"] == "user"]
    sys.modules.pop(name, None)
