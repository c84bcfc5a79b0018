"Serving: a real MCP client, over both transports and both kinds of the protocol, in environments kind and hostile."

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import anyio
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mcp", reason="the package mcp is not installed: pip install 'toolrl_lit[mcp]'")
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

from toolrl_lit.collect import call_text, collect
from toolrl_lit.doors.cli import main
from toolrl_lit.doors.serve import ClientSession, keep, mcp_server
from toolrl_lit.engine.sandbox import ToolSandbox
from toolrl_lit.evaluate import score
from toolrl_lit.reward import score_turn
from toolrl_lit.schema import (
    Environment,
    Scenario,
    SubQuestion,
    Tool,
    ToolCall,
    ToolDoc,
    Trajectory,
    UserError,
    read_jsonl,
    write_jsonl,
)

SECRET = "Zanzibar-7"
COMMAND = ["-c", "from toolrl_lit.doors.cli import main; main()", "serve"]


def tool(name, code, properties=None, **more):
    schema = {"type": "object", "properties": properties or {}} | more
    return Tool(doc=ToolDoc(name=name, description=f"Does {name}.", parameters=schema), code=code)


def environment(*tools, id="e1"):
    "One question, whose answer the tool `ask` knows."
    loud = {"type": ["boolean", "null"], "default": None, "x-note": {"a": [1, 2]}}
    ask = tool(
        "ask",
        f"def ask(key, loud=False):\n    return {{'k': {SECRET!r}}}[key]\n",
        {"key": {"type": "string", "minLength": 1}, "loud": loud},
        required=["key"],
        additionalProperties=False,
    )
    asked = SubQuestion(
        id="q1", question="What?", answer=SECRET, tool="ask", arguments={"key": "k"}
    )
    return Environment(
        tools=[ask, *tools],
        scenario=Scenario(
            id=id,
            kind="single-hop",
            question="What is under k?",
            answer=SECRET,
            sub_questions=[asked],
        ),
    )


COUNT = tool("count", "def count(data):\n    data['n'] += 1\n    return data['n']\n")
HOSTILE = {
    "leave": "import os\ndef leave():\n    os._exit(0)",
    "stop": "import sys\ndef stop():\n    sys.exit('bye')",
    "speak": "import os, sys\ndef speak():\n    print('{}', flush=True)\n    os.write(1, b'{}\\n')\n    return 'spoke'",
    "kill": "import os\ndef kill():\n    os.kill(os.getppid(), 9)",
    "read": "def read():\n    return open('/etc/passwd').read()",
    "broken": "def broken(:",
    "deep": "def deep():\n    return deep()",
}


@pytest.fixture()
def file(tmp_path):
    return lambda *envs: write_jsonl(tmp_path / "environments.jsonl", envs)


def stdio(file, *options, errlog=sys.__stderr__):
    "The transport of a client that starts the command."
    start = StdioServerParameters(
        command=sys.executable, args=[*COMMAND, str(file), *map(str, options)], env=dict(os.environ)
    )
    return stdio_client(start, errlog=errlog)


@contextlib.contextmanager
def process(file, *options, end=signal.SIGINT):
    "The command as a process, and the URL that it says if it serves HTTP; ended by a signal."
    p = subprocess.Popen(
        [sys.executable, *COMMAND, str(file), *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        p.url = p.stderr.readline().split()[-1] if "--http" in options else None
        yield p
        p.send_signal(end)
        p.said = p.communicate(timeout=60)
    finally:
        p.kill()
        p.wait()


def text(result):
    return result.content[0].text


def wire(*models):
    return " ".join(m.model_dump_json() for m in models)


async def visit(client, env):
    "What every client must find in an environment; calls right, wrong and unknown."
    listed, prompts, prompt = (
        await client.list_tools(),
        await client.list_prompts(),
        await client.get_prompt("question"),
    )
    assert [
        dict(name=t.name, description=t.description, parameters=t.input_schema)
        for t in listed.tools
    ] == [t.doc.model_dump() for t in env.tools]
    assert [p.name for p in prompts.prompts] == ["question"] and [
        m.role for m in prompt.messages
    ] == ["user"]
    assert prompt.messages[0].content.text == env.question
    wrong, lacking, unknown = [
        await client.call_tool(*c) for c in (("ask", {"key": "x"}), ("ask", {}), ("nothing", {}))
    ]
    assert text(wrong) == "an error occured when call ask: 'x'"
    assert text(unknown) == "an error occured when call nothing: 'nothing'"
    assert (
        text(lacking)
        == "an error occured when call ask: ask() missing 1 required positional argument: 'key'"
    )
    assert wrong.is_error and unknown.is_error and lacking.is_error
    seen = wire(listed, prompts, prompt, wrong, lacking, unknown)
    assert SECRET not in seen and "def ask" not in seen and "return" not in seen
    right = await client.call_tool("ask", {"key": "k"})
    assert (text(right), right.is_error) == (SECRET, False)
    with pytest.raises(MCPError, match="question"):
        await client.get_prompt("answer")


# -- transports


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_client_over_standard_input_and_output(file, tmp_path, mode):
    env = environment()
    path = file(environment(COUNT, id="e0"), env)

    async def run():
        async with Client(
            stdio(path, "--id", "e1", "--out", tmp_path / "out.jsonl"), mode=mode
        ) as client:
            await visit(client, env)

    anyio.run(run)
    (done,) = read_jsonl(tmp_path / "out.jsonl", Trajectory)
    assert (done.environment, done.n_calls, done.n_solved, score(done).solve_f1) == (
        "e1",
        4,
        1,
        2 / 5,
    )
    assert [s.unsolved for s in done.step_records(env)][-1] == {"ask": []}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_clients_over_http_do_not_share_anything(file, tmp_path, mode):
    env = environment(COUNT)
    (tmp_path / "data.json").write_text('{"n": 0}')

    async def run(url):
        async with Client(url, mode=mode) as a, Client(url, mode=mode) as b:
            got = [text(await c.call_tool("count", {})) for c in (a, a, b, a, b)]
            assert got == ["1", "2", "1", "3", "2"]

    out = tmp_path / "out.jsonl"
    with process(file(env), "--http", 0, "--data", tmp_path / "data.json", "--out", out) as p:
        anyio.run(run, p.url)
    assert p.returncode == 0 and p.said[0] == ""
    assert sorted(t.n_calls for t in read_jsonl(out, Trajectory)) == [2, 3]


def eventually(holds):
    for _ in range(200):
        if holds():
            return True
        time.sleep(0.05)


def test_a_session_over_http_is_kept_when_its_client_leaves(file, tmp_path):
    out = tmp_path / "out.jsonl"
    kept = lambda: [(t.n_calls, t.n_solved) for t in read_jsonl(out, Trajectory)]

    async def run(url):
        for n in (1, 2):
            async with Client(url) as client:
                for _ in range(n):
                    await client.call_tool("ask", {"key": "k"})

    with process(file(environment()), "--http", 0, "--out", out, end=signal.SIGKILL) as p:
        anyio.run(run, p.url)
        assert eventually(lambda: kept() == [(1, 1), (2, 1)]), kept()
    assert kept() == [(1, 1), (2, 1)]


def test_a_session_that_cannot_be_kept_now_is_kept_in_the_end(file, tmp_path):
    out = tmp_path / "out.jsonl"

    async def run(url):
        async with Client(url) as client:
            await client.call_tool("ask", {"key": "k"})

    with process(file(environment()), "--http", 0, "--out", out) as p:
        out.write_text("no trajectory\n")
        anyio.run(run, p.url)
        said = p.stderr.readline()
        out.write_text("")
    assert said.startswith(f"error: {out}, line 1") and "tried again" in said
    assert p.returncode == 0 and [t.n_solved for t in read_jsonl(out, Trajectory)] == [1]


def test_a_client_over_http(file):
    env = environment()

    async def run(url):
        async with Client(url) as client:
            await visit(client, env)
        async with Client(
            url, mode="2026-07-28"
        ) as client:  # a version without sessions, insisted on
            with pytest.raises(MCPError, match="needs a session"):
                await client.call_tool("ask", {"key": "k"})

    with process(file(env), "--http", 0, "--index", 0, "--score", end=signal.SIGTERM) as p:
        anyio.run(run, p.url)
    assert p.returncode == 0
    assert (
        p.said[1]
        == "session 1: Solve-P 0.25, Solve-R 1.00, Solve-F1 0.40 (1 of 1 sub-questions solved, 4 calls)\n"
    )


def test_http_listens_on_loopback_only_and_refuses_other_origins(file):
    import httpx

    with process(file(environment()), "--http", 0) as p:
        assert p.url.startswith("http://127.0.0.1:")
        for c in psutil.Process(p.pid).net_connections("inet"):
            assert c.laddr.ip in ("127.0.0.1", "::1"), c
        for header, status in (
            ({"Origin": "http://evil.example"}, 403),
            ({"Host": "evil.example"}, 421),
        ):
            accept = {"Accept": "application/json, text/event-stream"}
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            assert httpx.post(p.url, json=ping, headers=accept | header).status_code == status


# -- ends


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, None])
def test_it_ends_by_itself_and_keeps_what_was_done(file, tmp_path, end):
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "0"},
        },
    }
    call = {
        "jsonrpc": "2.0",
        "id": 2,
        "method": "tools/call",
        "params": {"name": "ask", "arguments": {"key": "k"}},
    }
    p = subprocess.Popen(
        [sys.executable, *COMMAND, str(file(environment())), "--out", str(tmp_path / "out.jsonl")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        for message in (hello, ready, call):
            p.stdin.write(json.dumps(message) + "\n")
        p.stdin.flush()
        answers = [json.loads(p.stdout.readline()) for _ in range(2)]
        assert answers[1]["result"]["content"][0]["text"] == SECRET
        if end:
            p.send_signal(end)
            p.wait(60)  # the pipe is still open
        out, err = p.communicate(timeout=60)
    finally:
        p.kill()
        p.wait()
    assert (p.returncode, out, err) == (0, "", "")
    assert [t.n_solved for t in read_jsonl(tmp_path / "out.jsonl", Trajectory)] == [1]


def test_a_client_that_says_nothing_leaves_no_session(file, tmp_path):
    done = subprocess.run(
        [sys.executable, *COMMAND, file(environment()), "--out", tmp_path / "out.jsonl"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and (
        tmp_path / "out.jsonl"
    ).read_text() == ""


# -- hostile tools


def test_hostile_tools_harm_neither_server_nor_protocol(file):
    env = environment(*[tool(name, code) for name, code in HOSTILE.items()])

    async def run():
        async with Client(stdio(file(env))) as client:
            for name in HOSTILE:
                result = await client.call_tool(name, {})
                failed = result.is_error and text(result).startswith(
                    f"an error occured when call {name}: "
                )
                assert failed or name == "speak", name
                assert "root:" not in text(result) and "def " not in text(result)
            assert text(await client.call_tool("ask", {"key": "k"})) == SECRET

    anyio.run(run)


def test_a_time_out_does_not_tell_the_source():
    slow = tool(
        "slow",
        f"def slow(x):\n    answer = {SECRET!r}\n    while True: pass\n",
        {"x": {"type": "integer"}},
    )
    env = environment(slow)
    env.scenario.sub_questions[0].tool = "slow"
    with ToolSandbox(workers=1, timeout=0.5) as box:
        session = ClientSession(env, sandbox=box)

        async def run():
            async with Client(mcp_server(env, lambda ctx: session)) as client:
                return await client.call_tool("slow", {"x": 1})

        result = anyio.run(run)
    assert (
        result.is_error
        and text(result).startswith("an error occured when call slow: ")
        and "timed out" in text(result)
    )
    assert (
        SECRET not in text(result)
        and "answer" not in text(result)
        and session.trajectory.n_solved == 0
    )


# -- sessions


def test_calls_at_once_are_all_counted_and_keep_their_state():
    env, box = environment(COUNT), ToolSandbox(workers=2)
    session = ClientSession(env, data={"n": 0}, sandbox=box)

    async def run():
        async with (
            Client(mcp_server(env, lambda ctx: session)) as client,
            anyio.create_task_group() as tasks,
        ):

            async def call():
                got.append(int(text(await client.call_tool("count", {}))))

            for _ in range(12):
                tasks.start_soon(call)

    got = []
    with box:
        anyio.run(run)
    assert (
        sorted(got) == list(range(1, 13))
        and session.data == {"n": 12}
        and session.trajectory.n_calls == 12
    )


def test_the_given_state_is_not_changed():
    data = {"n": 5}
    assert ClientSession(environment(COUNT), data).call("count", {}).text == "6" and data == {
        "n": 5
    }


plain = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8)
values = (
    plain | st.lists(plain, max_size=2) | st.dictionaries(st.text(max_size=4), plain, max_size=2)
)
names = st.sampled_from(["ask", "echo", "", "</tool_call>"]) | st.text(max_size=5)
some_arguments = st.dictionaries(
    st.sampled_from(["key", "x"]) | st.text(max_size=4),
    st.sampled_from(["k", SECRET]) | values,
    max_size=2,
)


@given(st.lists(st.tuples(names, some_arguments), max_size=4), st.sampled_from(["paper", "strict"]))
@settings(max_examples=60, deadline=None)
def test_a_session_scores_as_the_library_does(calls, match):
    env = environment(tool("echo", "def echo(x): return x", {"x": {}}))
    session, step = ClientSession(env, match=match), env.start()
    for name, arguments in calls:
        got = session.call(name, arguments)
        assert got.ok or got.text.startswith(f"an error occured when call {name}: ")
        if not name:
            continue  # cannot be written as a turn
        written = json.dumps({"name": name, "arguments": arguments}).replace("<", "\\u003c")
        turn = score_turn(f"<tool_call>{written}</tool_call>", step, match=match)
        step = step.model_copy(update={"unsolved": turn.unsolved})
        assert (
            session.trajectory.turns[-1].results == [turn.calls[0].result]
            and session.step.unsolved == step.unsolved
        )
        assert session.trajectory.turns[-1].reward == turn.reward
    assert (
        Trajectory.model_validate_json(session.trajectory.model_dump_json()) == session.trajectory
    )


whole_turns = st.lists(
    st.tuples(
        st.sampled_from(["", "Hm.", SECRET, "<tool_call>{"]),
        st.lists(st.sampled_from(["k", "x"]), max_size=3),
    ),
    max_size=4,
)


@given(whole_turns)
@settings(max_examples=40, deadline=None)
def test_a_session_scores_whole_turns_as_the_library_does(turns):
    session, step = ClientSession(environment()), environment().start()
    for said, keys in turns:
        calls = [ToolCall(name="ask", arguments={"key": k}) for k in keys]
        session.turn(said, calls)
        turn = score_turn(call_text(calls) if calls else said, step)
        left = sum(map(len, turn.unsolved.values()))
        step = step.model_copy(update={"unsolved": turn.unsolved, "solve_rate": 1.0 - left})
        assert session.trajectory.turns[-1].reward == turn.reward


def test_trajectories_are_added_to_a_file_and_nothing_else_is_touched(tmp_path):
    session = ClientSession(environment())
    session.call("ask", {"key": "k"})
    for n in (1, 2):
        assert len(read_jsonl(keep([session.trajectory], tmp_path / "t.jsonl"), Trajectory)) == n
    other = write_jsonl(tmp_path / "other.jsonl", [environment()])
    before = other.read_bytes()
    with pytest.raises(UserError, match=r"other\.jsonl, line 1"):
        keep([session.trajectory], other)
    assert other.read_bytes() == before
    with pytest.raises(UserError, match="cannot be made"):
        keep([], other / "t.jsonl")


# -- refusals


@pytest.mark.parametrize(
    "options, said",
    [
        (["--id", "e11"], "Did you mean 'e1'?"),
        (["--index", "1"], "expected a number below 1"),
        (["--index", "-1"], "below 1"),
        (["--id", "e1", "--index", "0"], "expected one of them"),
        (["--match", "exact"], "'exact'"),
        (["--data", "none.json"], "none.json: cannot be read"),
        (["--http", "70000"], "port 70000"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(file, capsys, monkeypatch, options, said):
    monkeypatch.setattr(sys, "argv", ["toolrl", "serve", str(file(environment())), *options])
    with pytest.raises(SystemExit) as e:
        main()
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_a_port_that_is_taken_and_a_package_that_is_missing_are_named(file, capsys, monkeypatch):
    def refused(*options):
        monkeypatch.setattr(
            sys, "argv", ["toolrl", "serve", str(file(environment())), *map(str, options)]
        )
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot be served" in refused("--http", taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    assert "pip install 'toolrl_lit[mcp]'" in refused()


# -- turns


def test_the_calls_of_a_turn_run_in_one_batch_and_keep_their_case():
    env, batches = environment(), []

    class Watched(ToolSandbox):
        def call_many(self, calls, *more):
            batches.append(len(calls))
            return super().call_many(calls, *more)

    with Watched(workers=1) as box:
        session = ClientSession(env, sandbox=box)
        session.turn("Both.", [ToolCall(name="ask", arguments={"key": k}) for k in ("x", "k", "k")])
        for said in (f" {SECRET} ", "Hm.", "", "  ", "<tool_call>{"):
            session.turn(said)
    assert list(filter(None, batches)) == [3] and session.trajectory.n_solved == 1
    assert [(t.case, t.reward) for t in session.trajectory.turns] == [
        ("calls", 2 / 4),
        ("answer", 1.0),
        ("done", 0.5),
        ("empty", -0.5),
        ("empty", -0.5),
        ("malformed", -0.3),
    ]
    assert session.trajectory.turns[0].solved == [None, ("ask", SECRET), None] and (
        session.step.turn,
        session.step.solve_rate,
    ) == (6, 1.0)


def test_each_call_of_a_turn_sees_the_state_that_the_one_before_left():
    session = ClientSession(environment(COUNT), {"n": 0})
    assert [r.text for r in session.turn("", [ToolCall(name="count")] * 3)] == [
        "1",
        "2",
        "3",
    ] and session.data == {"n": 3}


def test_a_session_is_a_rollout_as_the_collector_keeps_it():
    env = environment()
    call = ToolCall(name="ask", arguments={"key": "k"})

    class Plays:
        parser = "qwen"

        def generate(self, prompts, **_):
            return [
                (call_text([call]), SECRET)[sum(m["role"] == "assistant" for m in messages)]
                for messages, _ in prompts
            ]

    kept, session = collect(Plays(), [env], temperature=0)[0], ClientSession(env)
    session.turn("", [call])
    session.turn(SECRET)
    said = lambda t: [turn.model_dump(exclude={"text"}) for turn in t.turns]
    assert said(session.trajectory) == said(kept) and session.trajectory.messages == kept.messages


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"type": "object"},
        {"properties": {"x": True}},
        {"additionalProperties": False},
        {"$defs": {}, "title": "x"},
    ],
)
def test_a_tool_that_does_not_say_that_it_takes_an_object_is_listed(parameters):
    now = Tool(
        doc=ToolDoc(name="now", description="", parameters=parameters),
        code="def now(): return 'noon'",
    )
    session = ClientSession(environment(now))

    async def run():
        async with Client(mcp_server(session.env, lambda ctx: session)) as client:
            return (await client.list_tools()).tools[1].input_schema, text(
                await client.call_tool("now", {})
            )

    assert anyio.run(run) == ({"type": "object"} | parameters, "noon")


@pytest.mark.parametrize("kind", ["string", ["object", "null"], None])
def test_a_tool_that_takes_no_object_is_refused(kind):
    odd = Tool(
        doc=ToolDoc(name="odd", description="", parameters={"type": kind}),
        code="def odd(): return 1",
    )
    with pytest.raises(UserError, match="tool 'odd': MCP needs parameters of type object"):
        mcp_server(environment(odd), lambda ctx: None)
