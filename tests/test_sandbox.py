"The sandbox: feedback texts, two engines, isolation, limits, recovery, and a suite of hostile tools."

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_lit.engine.sandbox import Call, ToolSandbox, repeats, shared, timeout_text
from toolrl_lit.schema import UserError

ROOT = Path(__file__).parent.parent
ATTACKS = [
    json.loads(line) for line in (ROOT / "tests/data/escapes.jsonl").read_text().splitlines()
]
PROBE = "import json\ndef probe(x): return json.loads(json.dumps([len(x), sorted(x), sum(x)]))"
ADD = "def add(a, b): return {'sum': a + b}"
WILD = "import string\n"  # what Monty does not have: such a tool runs in CPython


def run_apart(program: str) -> subprocess.CompletedProcess:
    "Run a program in a new interpreter, which finds the library of this one."
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


@pytest.fixture(scope="module")
def box():
    with ToolSandbox(timeout=0.5, memory_mb=256) as sandbox:
        yield sandbox


def told(box, name, code, **arguments):
    return box.call(name, arguments, code).text


@pytest.mark.parametrize(
    "body, text",
    [
        ("return {'a': 'é', 'b': None}", '{"a": "é", "b": null}'),
        ("return [1, 'x']", '[1, "x"]'),
        ("return None", "None"),
        ("return float('nan')", "nan"),
        ("return [float('nan')]", "[NaN]"),
        ("return (1, 2)", "(1, 2)"),
        ("return 'x'", "x"),
        ("return True", "True"),
        ("return ''", ""),
        ("return 1e20", "1e+20"),
        ("pass", "None"),
        ("return round(2.675, 2)", "2.67"),
        ("return '😀'", "😀"),
        ("return 10 ** 30", "1" + "0" * 30),
        ("return {3, 1, 2} == {1, 2, 3}", "True"),
    ],
)
def test_results_are_worded_as_in_the_paper(box, body, text):
    assert told(box, "f", f"def f(): {body}") == text
    assert told(box, "f", f"{WILD}def f(): {body}") == text


@pytest.mark.parametrize("head", ["", WILD])
@pytest.mark.parametrize(
    "name, code, arguments, reason",
    [
        ("f", "def f(x): return x", {}, "f() missing 1 required positional argument: 'x'"),
        ("f", "def f(): return {}['é']", {}, "'é'"),
        ("f", "def f(): raise ValueError('no')", {}, "no"),
        ("f", "def f(): return 1 / 0", {}, "division by zero"),
        ("f", "def g(): pass", {}, "name 'f' is not defined"),
        ("f", "def f(:", {}, "invalid syntax (<string>, line {line})"),
        (
            "f",
            "def f(): pass",
            [1],
            "utils.utils.f() argument after ** must be a mapping, not list",
        ),
        ("a-b", "def a(): pass", {}, "name 'b' is not defined"),
        ("f", "def f():\n a = []; a.append(a); return a", {}, "Circular reference detected"),
        ("f", "def f(): return ''.nothing", {}, "'str' object has no attribute 'nothing'"),
        ("f", "def f(): return int('x')", {}, "invalid literal for int() with base 10: 'x'"),
    ],
)
def test_errors_are_worded_as_in_the_paper(box, head, name, code, arguments, reason):
    result = box.call(name, arguments, head + code)
    assert (
        result.text
        == f"an error occured when call {name}: {reason.format(line=1 + len(head.splitlines()))}"
    )
    assert not result.ok and result.error == "raised"


@pytest.mark.parametrize(
    "code, text",
    [
        ("import string\ndef f(): return string.ascii_letters[:3]", "abc"),
        ("import statistics\ndef f(): return statistics.mean([1, 2])", "1.5"),
        ("def f():\n    def g():\n        yield 1\n    return list(g())", "[1]"),
        ("import re\ndef f(): return re.sub('a', lambda m: 'b', 'a')", "b"),
        ("def f(): return type(type('A', (), {})()).__name__", "A"),
        (
            "import difflib\ndef f(): return difflib.get_close_matches('ape', ['apple'])",
            '["apple"]',
        ),
    ],
)
def test_what_monty_does_not_know_is_never_shown_as_the_tools_error(box, code, text):
    assert told(box, "f", code) == text
    assert (
        box.call_many([Call("f", {}, code, None, "monty")])[0].text == text
    )  # also where the choice was another


def test_a_tool_whose_calls_differ_goes_to_cpython_for_good(box):
    code = "def f(x): return round(x, 2)"
    assert told(box, "f", code, x=2.675) == "2.67"
    results, engines = box.examine(
        [
            Call("f", {"x": 2.675}, code, group=1),
            Call("add", {"a": 1, "b": 2}, ADD, group=1),
            Call("f", {"x": 1.5}, code, group=2),
        ]
    )
    assert engines == {(1, code): "cpython", (1, ADD): "monty", (2, code): "monty"}
    assert [r.text for r in results] == ["2.67", '{"sum": 3}', "1.5"]


def test_unknown_tool_and_names_that_are_no_strings(box):
    assert box.call("f", {}, None).text == "an error occured when call f: 'f'"
    assert box.call(5, {}, "def f(): pass").text == "an error occured when call 5: 5"
    assert (
        box.call(["a"], {}, None).text
        == "an error occured when call ['a']: unhashable type: 'list'"
    )


@pytest.mark.parametrize("head", ["", WILD])
def test_time_out_names_call_and_source(box, head):
    code = head + "def f(x):\n    while True: pass"
    result = box.call("f", {"x": 1}, code)
    assert result.error == "timeout"
    assert result.text == (
        f"an error occured when call f: Function call_function (args={('f', {'x': 1}, code)!r}) (kwargs={{}}) "
        "timed out after 0.500000 seconds.\n"
    )
    assert timeout_text("f", {}, "", 10).endswith("timed out after 10.000000 seconds.\n")


def test_output_limit_counts_bytes():
    with ToolSandbox(workers=1, output_bytes=10) as box:
        assert box.call("f", {}, "def f(): return 'x' * 10").ok
        for head in ("", WILD):
            assert box.call("f", {}, head + "def f(): return 'é' * 6").error == "output"


@pytest.mark.parametrize("engine", ["auto", "cpython", "monty"])
def test_every_attack_is_contained_and_harms_no_neighbour(tmp_path, engine):
    canary = tmp_path / "canary"
    canary.write_text("alive")
    want = {
        "canary": str(canary),
        "folder": str(tmp_path),
        "host": os.getpid(),
        "home": str(Path.home()),
    }
    secret = ("keep", {}, "def keep(): return 'the golden-secret of another environment'")
    batch = []
    for a in ATTACKS:
        names = re.search(r"def attack\((.*?)\)", a["code"])[1]
        mine = {k: v for k, v in want.items() if k in names}
        batch += [
            secret,
            ("attack", mine, a["code"]),
            ("probe", {"x": [3, 1, 2]}, PROBE),
            ("probe", {"x": [3, 1, 2]}, (engine != "monty") * WILD + PROBE),
        ]
    with ToolSandbox(workers=4, timeout=3, cpu_seconds=0.5, memory_mb=256, engine=engine) as box:
        results = box.call_many(batch)
        assert box.call("add", {"a": 1, "b": 2}, ADD).text == '{"sum": 3}'
    assert len(ATTACKS) >= 40
    for i, a in enumerate(ATTACKS):
        kept, got, tame, wild = results[4 * i : 4 * i + 4]
        assert not (got.ok and "ESCAPED" in got.text), a["name"]
        assert (
            kept.text.endswith("environment") and tame.text == wild.text == "[3, [1, 2, 3], 6]"
        ), f"neighbour of {a['name']}"
    assert canary.read_text() == "alive" and [p.name for p in tmp_path.iterdir()] == ["canary"]


LEAVES = [  # code of a tool that leaves something behind, and what a later call would see of it
    "seen = []\ndef f(x, d=[]):\n    seen.append(x); d.append(x)\n    return [len(seen), len(d)]",
    "n = 0\ndef f(x):\n    global n\n    n += 1\n    return [n, 1]",
    "def f(x):\n    f.n = getattr(f, 'n', 0) + 1\n    return [f.n, 1]",
    "class A: n = 0\ndef f(x):\n    A.n += 1\n    return [A.n, 1]",
    "import decimal\ndef f(x):\n    p = decimal.getcontext().prec\n    decimal.getcontext().prec = 3\n    return [p - 27, 1]",
    "import math\ndef f(x):\n    p = int(math.pi)\n    math.pi = 9.0\n    return [p - 2, 1]",
    "import json\ndef f(x):\n    n = getattr(json, 'n', 0) + 1\n    json.n = n\n    return [n, 1]",
    "import builtins\ndef f(x):\n    n = getattr(builtins, 'n', 0) + 1\n    builtins.n = n\n    return [n, 1]",
]


@pytest.mark.parametrize("head", ["", WILD])
@pytest.mark.parametrize("code", LEAVES)
def test_no_state_outlives_a_call(box, head, code):
    texts = {r.text for r in box.call_many([("f", {"x": i}, head + code) for i in range(6)])}
    assert texts == {"[1, 1]"} or all(t.startswith("an error") for t in texts)


def test_the_host_believes_nothing_that_it_is_told(box):
    talk = "import os, json, struct\ndef say(body): os.write(0, struct.pack('I', len(body)) + body)\ndef attack():\n    {}\n    os._exit(0)"
    forged = [
        "say(json.dumps([123, None]).encode())",
        "say(b'[]')",
        "say(b'{\"a\": 1}')",
        "say(b'nonsense')",
        "say(b'[' * 100000)",
        "say(json.dumps(['x', 'no such error']).encode())",
        "say(json.dumps(['x' * (1 << 21), None]).encode())",
        "os.write(0, struct.pack('I', 1 << 31))",
        "os.write(0, b'\\x01')",
        "say(json.dumps(['x', None, 'more']).encode())",
    ]
    neighbour = ("add", {"a": 1, "b": 2}, ADD)
    results = box.call_many(
        [c for f in forged for c in (("attack", {}, talk.format(f)), neighbour)]
    )
    assert {r.error for r in results[::2]} <= {"crashed", "timeout"} and {
        r.text for r in results[1::2]
    } == {'{"sum": 3}'}
    lies = (
        "def f():\n    S = type('S', (str,), {'__len__': lambda s: 0, 'encode': lambda s, *a: b''})\n"
        "    return type('V', (), {'__str__': lambda s: S('x' * 4000000)})()"
    )
    assert box.call("f", {}, WILD + lies).error == "output"


def test_a_reply_that_is_too_long_is_not_read(box):
    from toolrl_lit.engine.walls import Child, Gone

    ours, theirs = socket.socketpair()
    child = Child.__new__(Child)
    limits = {"timeout": 0.1, "cpu_seconds": 1, "output_bytes": 10}
    child.socket, child.limits, child.grace = ours, limits, 0.1
    theirs.sendall(struct.pack("I", 1 << 30))
    with pytest.raises(Gone):
        child.outcome()


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors as Linux shows them")
def test_a_tool_holds_no_descriptor_but_its_own(box):
    code = WILD + (
        "import os\ndef f():\n    found = []\n    for fd in range(100):\n        try: os.fstat(fd); found.append(fd)\n"
        "        except OSError: pass\n    return found"
    )
    assert box.call("f", {}, code).text == "[0, 1, 2]"  # our socket, and twice /dev/null


def test_sleeping_counts_as_time():
    with ToolSandbox(workers=1, timeout=0.3) as box:
        sleep = Call(
            "f", {"s": 2}, "import time\ndef f(s):\n    time.sleep(s)\n    return s", None, "monty"
        )
        assert (
            box.call_many([sleep])[0].error == "timeout"
            and box.call_many([sleep._replace(arguments={"s": 0.1})])[0].text == "0.1"
        )


def test_a_loop_inside_c_is_ended_by_its_time_of_the_processor():
    endless = WILD + "def f(): return sum(iter(int, 1))"
    with ToolSandbox(workers=1, timeout=600, cpu_seconds=0.3, engine="cpython") as box:
        results = box.call_many([("f", {}, endless), ("add", {"a": 1, "b": 2}, ADD)])  # else 10 min
    assert results[0].error == "timeout" and results[1].text == '{"sum": 3}'


def test_equal_calls_that_were_made_one_run_alone_in_cpython(box):
    code = (
        WILD
        + "def f(x):\n    import math\n    n = getattr(math, 'n', 0) + 1\n    math.n = n\n    return n"
    )
    code = code.replace("getattr(math, 'n', 0) + 1", "1 + ('n' in dir(math))")
    assert repeats(code) and [
        r.text for r in box.call_many([Call("f", {"x": i}, code, group=1) for i in range(3)])
    ] == ["1", "1", "1"]


def test_a_tool_that_the_papers_scope_breaks_goes_to_cpython(box):
    code = "def g(x): return x\ndef f(x): return g(x)"
    assert box.examine([Call("f", {"x": 1}, code)])[1] == {(None, code): "cpython"}


def test_what_only_the_papers_scope_breaks_breaks_there_whatever_the_engine(box):
    code = "def f(x): return x if x < 2 else f(x - 1)"
    texts = [
        r.text
        for r in box.call_many([Call("f", {"x": x}, code, None, "monty", 1, True) for x in (1, 5)])
    ]
    assert texts == ["1", "an error occured when call f: name 'f' is not defined"]


def test_time_of_a_finaliser_is_its_own(box):
    code = (
        "import time\ndef f():\n    def d(self):\n        end = time.perf_counter() + 30\n        while time.perf_counter() < end:\n"
        "            try: time.sleep(1)\n            except BaseException: pass\n"
        "    x = type('L', (list,), {'__del__': d})()\n    x.append(x)\n    return 'left'"
    )
    results = box.call_many(
        [Call("f", {}, code, group=1), Call("add", {"a": 1, "b": 2}, WILD + ADD, group=1)]
    )
    assert [r.error for r in results] == ["timeout", None]


@pytest.mark.skipif(sys.platform != "linux", reason="signals by fcntl are Linux's")
@pytest.mark.parametrize("backend", ["sandlock", "process"])
def test_no_tool_can_signal_anybody(backend):
    other = subprocess.Popen(["sleep", "60"])
    code = (
        "import os, fcntl\ndef attack(pid, data):\n    for fd in range(8):\n        try:\n            fcntl.fcntl(fd, 8, pid); fcntl.fcntl(fd, 10, 9)\n"
        "            fcntl.fcntl(fd, 4, fcntl.fcntl(fd, 3) | 0o20000)\n        except OSError: pass\n    return 'x' * 300000"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ToolSandbox(workers=1, timeout=2, backend=backend) as box, box.session({}) as rollout:
            for _ in range(3):
                assert rollout.call(
                    "attack", {"pid": other.pid}, code
                ).ok  # what we send next would raise the signal
    time.sleep(0.2)
    assert other.poll() is None
    other.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_the_filter_alone_keeps_files_whole(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ToolSandbox(workers=1, backend="process", engine="cpython") as box:
            for flags in (
                "os.O_RDONLY | os.O_TRUNC",
                "os.O_WRONLY",
                "os.O_RDWR",
                "os.O_RDONLY | os.O_APPEND",
                "os.O_RDONLY | os.O_CREAT",
            ):
                assert "not permitted" in told(
                    box,
                    "f",
                    f"import os\ndef f(path): return os.open(path, {flags})",
                    path=str(kept),
                )
            assert (
                box.call("f", {"path": str(kept)}, "def f(path): return open(path).read()").text
                == "whole"
            )  # reading is Landlock's part
    assert kept.read_text() == "whole"


PAY = "def pay(to, data):\n    data['log'].append(to)\n    return len(data['log'])"


def test_data_keeps_its_state_for_its_owner_only(box):
    ann, bob = {"log": []}, {"log": []}
    assert [box.call("pay", {"to": str(i)}, PAY, ann).text for i in range(3)] == ["1", "2", "3"]
    assert (
        box.call("pay", {"to": "x"}, PAY, bob).text == "1"
        and ann == {"log": ["0", "1", "2"]}
        and bob == {"log": ["x"]}
    )
    ann["log"].clear()  # by us, between two calls
    assert box.call("pay", {"to": "y"}, PAY, ann).text == "1" and ann == {"log": ["y"]}


def test_any_mapping_that_json_takes_is_a_database(box):
    ann = OrderedDict(log=[])
    assert [box.call("pay", {"to": str(i)}, PAY, ann).text for i in range(2)] == [
        "1",
        "2",
    ] and ann == {"log": ["0", "1"]}


def test_a_long_batch_on_one_database_runs_in_its_order(box):
    ann = {"log": []}
    texts = [r.text for r in box.call_many([("pay", {"to": str(i)}, PAY, ann) for i in range(600)])]
    assert texts == [str(i + 1) for i in range(600)] and ann["log"] == [str(i) for i in range(600)]


def test_threads_may_share_a_database(box):
    ann, threads = {"log": []}, []
    for i in range(4):
        threads.append(
            threading.Thread(target=box.call, args=("pay", {"to": str(i)}, PAY, {"log": []}))
        )
        threads[-1].start()
    for t in threads:
        t.join()
    assert box.call("pay", {"to": "x"}, PAY, ann).text == "1" and ann == {"log": ["x"]}


def test_a_session_holds_its_database_from_call_to_call(box):
    start = {"log": []}
    with box.session(start) as a, box.session(start) as b:
        assert [a.call("pay", {"to": str(i)}, PAY).text for i in range(3)] == [
            "1",
            "2",
            "3",
        ] and b.call("pay", {"to": "x"}, PAY).text == "1"
        assert (
            a.state() == {"log": ["0", "1", "2"]}
            and b.state() == {"log": ["x"]}
            and start == {"log": []}
        )
        hang = (
            WILD
            + "def hang(data):\n    while True:\n        try: data['log'].copy()\n        except BaseException: pass"
        )
        assert (
            a.call("hang", {}, hang).error == "timeout"
            and a.call("die", {}, WILD + "import os\ndef die(data): os._exit(1)").error == "crashed"
        )
        assert (
            a.call("pay", {"to": "3"}, PAY).text == "4"
            and a.call("die", {}, WILD + "import os\ndef die(data): os._exit(1)").error == "crashed"
        )
        assert a.call("pay", {"to": "4"}, PAY).text == "5" and a.state() == {
            "log": ["0", "1", "2", "3", "4"]
        }  # a new process made the call again
    with box.session({"a": 1}) as c:
        c.call("f", {}, "def f(data): data['x'] = {1, 2}")
        with pytest.raises(UserError, match="JSON"):
            c.state()
    with pytest.raises(UserError, match="JSON"):
        box.session({"a": {1}})


@pytest.mark.parametrize(
    "code", ["return 1\ndef f(): pass", "def f(): pass\nbreak", "def f(x, x): pass"]
)
def test_code_that_parses_and_does_not_compile_says_why(box, code):
    with pytest.raises(SyntaxError) as error:
        compile(code, "<string>", "exec")
    assert told(box, "f", code) == f"an error occured when call f: {error.value}"


def test_an_interrupted_batch_leaves_a_sandbox_that_works(box, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    calls = [("f", {"x": i}, WILD + "def f(x): return x") for i in range(8)]
    with monkeypatch.context() as patch:
        patch.setattr(ToolSandbox, "_in_cpython", interrupt)
        with pytest.raises(KeyboardInterrupt):
            box.call_many(calls)
    assert [r.text for r in box.call_many(calls)] == list("01234567")


def children(of: int) -> list[int]:
    try:
        return [p.pid for p in psutil.Process(of).children() if alive(p.pid)]
    except psutil.NoSuchProcess:
        return []


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes as they are on Linux")
@pytest.mark.parametrize("head", ["", WILD])
def test_killed_processes_are_replaced(box, head):
    calls = [("add", {"a": 1, "b": 2}, head + ADD)] * 50
    box.call_many(calls)
    for pid in children(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    assert {r.text for r in box.call_many(calls)} == {'{"sum": 3}'}


def test_processes_killed_in_the_middle_of_a_batch_lose_no_call(box):
    stop = threading.Event()
    box.call("add", {"a": 1, "b": 2}, WILD + ADD)

    def killer():
        for _ in range(5):
            if stop.wait(0.1):
                return
            if server := box._parts.server:
                os.killpg(server.process.pid, signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        results = box.call_many(
            [
                (
                    "f",
                    {"x": i},
                    f"import time\ndef f(x):\n    time.sleep({i % 20} / 10000)\n    return x",
                )
                for i in range(300)
            ]
        )
    finally:
        stop.set()
        thread.join()
    lost = [i for i, r in enumerate(results) if r.text != str(i)]
    assert len(lost) <= 6 and all(
        results[i].error == "crashed" for i in lost
    )  # unlucky three times over


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes as they are on Linux")
@pytest.mark.parametrize("kills, text", [(1, "42"), (2, "42"), (3, "crashed")])
def test_a_call_whose_process_is_killed_from_outside_is_made_again(kills, text):
    with ToolSandbox(workers=1, timeout=5, engine="cpython") as box:
        box.call("add", {"a": 1, "b": 2}, ADD)
        server, killed = box._parts.server.process.pid, set()
        before = set(children(server))

        def killer():
            while len(killed) < kills:
                for pid in set(children(server)) - killed - before:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                time.sleep(0.01)

        thread = threading.Thread(target=killer, daemon=True)
        thread.start()
        result = box.call(
            "f", {"x": 41}, "import time\ndef f(x):\n    time.sleep(0.5)\n    return x + 1"
        )
        assert len(killed) == kills and text in (result.text if result.ok else result.error)


def test_many_large_results_do_not_sink_the_batch():
    with ToolSandbox(workers=1, memory_mb=64) as box:
        results = box.call_many(
            [("f", {"n": i}, "def f(n): return 'x' * 1000000") for i in range(100)]
        )
    assert all(r.ok and len(r.text) == 10**6 for r in results)


def test_usable_from_threads_and_within_a_running_loop(box):
    import asyncio

    texts = []

    def work(i):
        texts.append(box.call("add", {"a": i, "b": 0}, ADD).text)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()

    async def within():
        return box.call("add", {"a": 9, "b": 0}, ADD).text

    assert (
        sorted(texts) == [f'{{"sum": {i}}}' for i in range(8)]
        and asyncio.run(within()) == '{"sum": 9}'
    )


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes as they are on Linux")
def test_starts_lazily_and_ends_with_close():
    before = set(children(os.getpid()))
    box = ToolSandbox(workers=1)
    assert set(children(os.getpid())) == before
    for head in ("", WILD):
        box.call("add", {"a": 1, "b": 2}, head + ADD)
    assert len(set(children(os.getpid())) - before) == 2
    box.close()
    assert set(children(os.getpid())) == before
    assert box.call("add", {"a": 1, "b": 2}, ADD).ok
    box.close()
    assert shared() is shared()


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes as they are on Linux")
def test_nothing_lives_on_when_the_host_is_killed():
    program = (
        "from toolrl_lit.engine.sandbox import Call, ToolSandbox\nimport os, psutil, signal, threading, time\nbox = ToolSandbox(workers=2)\n"
        "code = 'def f(): return sum(range(10 ** 14))'\n"
        "for head in ('', 'import string\\n'): box.call('f', {}, head + 'def f(): pass')\n"
        "threading.Thread(target=box.call_many, args=([Call('f', {}, code, None, e) for e in ('cpython', 'monty')],), daemon=True).start()\n"
        "time.sleep(0.4)\n"
        "print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    out = run_apart(program)
    started = list(map(int, out.stdout.split()))
    assert len(started) >= 4, out.stderr
    for _ in range(50):
        if not any(map(alive, started)):
            break
        time.sleep(0.1)
    assert not any(map(alive, started))


FORK = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore")
from toolrl_lit.engine.sandbox import ToolSandbox
box = ToolSandbox(workers=1)
box.call("f", {"x": 1}, "def f(x): return x")
threading.Thread(target=box.call, args=("f", {"x": 1}, "import time\\ndef f(x):\\n    time.sleep(1)\\n    return x")).start()
time.sleep(0.3)
if (pid := os.fork()) == 0:
    print(box.call("f", {"x": 42}, "def f(x): return x").text, flush=True)
    assert box.examine([("f", {"x": 1}, "def f(x): return x")])[1] == {}            # an engine is not chosen with one eye shut
    os._exit(0)
os.waitpid(pid, 0)
print(box.call("f", {"x": 43}, "def f(x): return x").text)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_in_the_middle_of_a_batch_leaves_both_sides_working():
    out = run_apart(FORK)
    assert out.stdout.split() == ["42", "43"], out.stderr


STARTED = """
import os, psutil, sys
from toolrl_lit.engine.sandbox import ToolSandbox
box = ToolSandbox(workers=1)
def texts(): return [box.call("f", {}, head + "def f(): return 1").text for head in ("", "import string\\n")]
texts()
started = box._parts.server.process.pid, box._parts.monty
processes = psutil.Process().children()
if (pid := os.fork()) == 0: sys.exit(0)
os.waitpid(pid, 0)
"""
EXIT = STARTED + "print(*texts(), (box._parts.server.process.pid, box._parts.monty) == started)"
LEFT = STARTED + "print(len(processes), *{p.status() for p in processes})"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_what_a_parent_has_started_lives_on_after_a_forked_process_and_the_parent_can_end():
    out = run_apart(LEFT)
    assert out.returncode == 0 and out.stdout == "2 sleeping\n", out.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_that_ends_takes_nothing_with_it():
    out = run_apart(EXIT)
    assert out.stdout.split() == ["1", "1", "True"], out.stderr


NO_FILES = """
import os, resource
from toolrl_lit.engine.sandbox import ToolSandbox
from toolrl_lit.schema import UserError
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
kept = []
try:
    while True: kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError: pass
try: ToolSandbox(workers=1).call("f", {}, "import string\\ndef f(): return 1")
except UserError as e: print(e)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="lowers a limit")
def test_too_few_descriptors_end_in_one_sentence():
    out = run_apart(NO_FILES)
    assert "ulimit -n" in out.stdout and len(out.stdout.splitlines()) == 1, out.stderr


def test_weaker_backend_says_so_once_and_holds_what_it_can(tmp_path):
    import toolrl_lit.engine.processes as module

    module._said.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with ToolSandbox(workers=1, timeout=0.5, backend="process", engine="cpython") as box:
                assert (
                    box.call("add", {"a": 1, "b": 2}, ADD).text == '{"sum": 3}'
                    and box.backend == "process"
                )
                for body in (
                    f"open({str(tmp_path / 'x')!r}, 'w').write('x')",
                    "__import__('os').fork()",
                ):
                    assert not box.call("f", {}, f"def f(): return {body}").ok
    assert len([w for w in caught if "plain subprocesses" in str(w.message)]) == 1 and not list(
        tmp_path.iterdir()
    )


def test_refuses_where_nothing_works(monkeypatch):
    import toolrl_lit.engine.walls as module

    monkeypatch.setattr(module, "BOOT", "raise SystemExit(1)")
    with pytest.raises(UserError, match="unsafe"):
        ToolSandbox(workers=1).call("add", {"a": 1, "b": 2}, WILD + ADD)
    assert (
        ToolSandbox(workers=1).call_many([Call("add", {"a": 1, "b": 2}, ADD, None, "monty")])[0].ok
    )  # needs no walls


@pytest.mark.parametrize(
    "field, value",
    [
        ("timeout", 0),
        ("workers", 0),
        ("memory_mb", -1),
        ("timeout", "5"),
        ("backend", "docker"),
        ("engine", "pypy"),
    ],
)
def test_senseless_limits_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        ToolSandbox(**{field: value})


PREDICT = "def predict(x): return x"


@pytest.mark.parametrize(
    "name, code, module, paper",
    [
        ("f", "import math\ndef f(x): return math.sqrt(x)", "4.0", "name 'math' is not defined"),
        ("f", "def g(x): return x\ndef f(x): return g(x)", "16", "name 'g' is not defined"),
        (
            "f",
            "def f(x): return sha256(b'').hexdigest()[:4] + deepcopy('x')",
            "name 'sha256' is not defined",
            "e3b0x",
        ),
        ("f", "def f(x): return x if x < 2 else f(x - 1)", "1", "name 'f' is not defined"),
        ("predict", PREDICT, "16", "name 'predict' is not defined"),
        ("name", "def name(x): return x", "16", "'str' object is not callable"),
        ("code", "def code(x): return x", "16", "'str' object is not callable"),
        ("arguments", "def arguments(x): return x", "16", "'dict' object is not callable"),
        ("kwargs", "def kwargs(x): return x", "16", "'dict' object is not callable"),
        ("json", "def json(x): return x", "16", "16"),
        ("f", "def f(x): return json.dumps([x])", "[16]", "[16]"),
        ("f", "def f(x): return x", "16", "16"),
    ],
)
def test_scope_of_the_paper_and_of_a_module(box, name, code, module, paper):
    with ToolSandbox(workers=1, paper_scope=True) as theirs:
        for run, in_paper, text in (
            (box, False, module),
            (box, True, paper),
            (theirs, False, paper),
        ):
            got = run.call_many([Call(name, {"x": 16}, code, paper_scope=in_paper)])[0].text
            assert got == text or got == f"an error occured when call {name}: {text}"


@pytest.mark.parametrize(
    "code, same",
    [
        ("import re, json as j\ndef f(x): return re.sub('a', 'b', x)", True),
        ("import random\ndef f(): return random.random()", False),
        ("def f(): return open('x').read()", False),
        ("from datetime import date\ndef f(): return str(date.today())", False),
        ("def f():\n    import json, time\n    return time.time()", False),
        ("def f(): return __builtins__", False),
        ("def f(): return ｅxec('1')", False),
        ("import decimal\ndef f(): return decimal.getcontext().prec", False),
        ("def f(x):\n    'Give the time zone of a city.'\n    return {'a': 'b'}[x]", True),
    ],
)
def test_only_tools_without_chance_and_clock_repeat_themselves(code, same):
    assert repeats(code) == same


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)


@settings(max_examples=60, deadline=None)
@given(value=json_values)
def test_any_json_argument_arrives_as_it_was_sent(box, value):
    code = "import json\ndef f(x): return json.dumps(x)"
    wire = json.loads(json.dumps(value))
    for head in ("", WILD):
        assert told(box, "f", head + code, x=value) == json.dumps(wire)
