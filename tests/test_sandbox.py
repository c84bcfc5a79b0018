"The sandbox: feedback texts, isolation, limits, recovery, and a suite of hostile tools."
import json, os, re, signal, subprocess, sys, threading, time, warnings
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from toolrl_lit.sandbox import ToolSandbox, allowed, harmless, shared, timeout_text
from toolrl_lit.schema import UserError

ROOT = Path(__file__).parent.parent
ATTACKS = [json.loads(line) for line in (ROOT / "tests/data/escapes.jsonl").read_text().splitlines()]
PROBE = "import json\ndef probe(x): return json.loads(json.dumps([len(x), sorted(x), sum(x)]))"
ADD = "def add(a, b): return {'sum': a + b}"
RULES = allowed()


@pytest.fixture(scope="module")
def box():
    with ToolSandbox(timeout=0.5, memory_mb=256) as sandbox: yield sandbox


def told(box, name, code, **arguments): return box.call(name, arguments, code).text


@pytest.mark.parametrize("body, text", [
    ("return {'a': 'é', 'b': None}", '{"a": "é", "b": null}'), ("return [1, 'x']", '[1, "x"]'), ("return None", "None"),
    ("return float('nan')", "nan"), ("return [float('nan')]", "[NaN]"), ("return (1, 2)", "(1, 2)"), ("return 'x'", "x"),
    ("return True", "True"), ("return ''", ""), ("return 1e20", "1e+20"), ("pass", "None")])
def test_results_are_worded_as_in_the_paper(box, body, text):
    assert told(box, "f", f"def f(): {body}") == text
    assert told(box, "f", f"import os\ndef f(): {body}") == text        # the same from a throw-away process


@pytest.mark.parametrize("head", ["", "import os\n"])
@pytest.mark.parametrize("name, code, arguments, reason", [
    ("f", "def f(x): return x", {}, "f() missing 1 required positional argument: 'x'"),
    ("f", "def f(): return {}['é']", {}, "'é'"), ("f", "def f(): raise ValueError('no')", {}, "no"),
    ("f", "def f(): return 1 / 0", {}, "division by zero"), ("f", "def g(): pass", {}, "name 'f' is not defined"),
    ("f", "def f(:", {}, "invalid syntax (<string>, line {line})"), ("f", "def f(): pass", [1],
     "utils.utils.f() argument after ** must be a mapping, not list"), ("a-b", "def a(): pass", {}, "name 'b' is not defined"),
    ("f", "def f():\n a = []; a.append(a); return a", {}, "Circular reference detected")])
def test_errors_are_worded_as_in_the_paper(box, head, name, code, arguments, reason):
    result = box.call(name, arguments, head + code)
    assert result.text == f"an error occured when call {name}: {reason.format(line=1 + len(head.splitlines()))}"
    assert not result.ok and result.error == "raised"


def test_unknown_tool_and_names_that_are_no_strings(box):
    assert box.call("f", {}, None).text == "an error occured when call f: 'f'"
    assert box.call(5, {}, "def f(): pass").text == "an error occured when call 5: 5"
    assert box.call(["a"], {}, None).text == "an error occured when call ['a']: unhashable type: 'list'"


@pytest.mark.parametrize("head", ["", "import os\n"])
def test_time_out_names_call_and_source(box, head):
    code = head + "def f(x):\n    while True: pass"
    result = box.call("f", {"x": 1}, code)
    assert result.error == "timeout"
    assert result.text == (f"an error occured when call f: Function call_function (args={('f', {'x': 1}, code)!r}) (kwargs={{}}) "
                           "timed out after 0.500000 seconds.\n")
    assert timeout_text("f", {}, "", 10).endswith("timed out after 10.000000 seconds.\n")


def test_output_limit_counts_bytes():
    with ToolSandbox(workers=1, output_bytes=10) as box:
        assert box.call("f", {}, "def f(): return 'x' * 10").ok
        for head in ("", "import os\n"): assert box.call("f", {}, head + "def f(): return 'é' * 6").error == "output"


def test_every_attack_is_contained_and_harms_no_neighbour(tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("alive")
    want = {"canary": str(canary), "folder": str(tmp_path), "host": os.getpid(), "home": str(Path.home())}
    secret = ("keep", {}, "def keep(): return 'the golden-secret of another environment'")
    batch = []
    for a in ATTACKS:
        names = re.search(r"def attack\((.*?)\)", a["code"])[1]
        mine = {k: v for k, v in want.items() if k in names}
        batch += [secret, ("attack", mine, a["code"]), ("probe", {"x": [3, 1, 2]}, PROBE),
                  ("probe", {"x": [3, 1, 2]}, "import os\n" + PROBE)]
    with ToolSandbox(workers=4, timeout=0.5, memory_mb=256) as box:
        results = box.call_many(batch)
        assert box.call("add", {"a": 1, "b": 2}, ADD).text == '{"sum": 3}'
    assert len(ATTACKS) >= 40
    for i, a in enumerate(ATTACKS):
        kept, got, tame, wild = results[4 * i:4 * i + 4]
        assert not (got.ok and "ESCAPED" in got.text), a["name"]
        assert kept.text.endswith("environment") and tame.text == wild.text == "[3, [1, 2, 3], 6]", f"neighbour of {a['name']}"
    assert canary.read_text() == "alive" and [p.name for p in tmp_path.iterdir()] == ["canary"]


@pytest.mark.parametrize("head", ["", "import os\n"])
def test_no_state_outlives_a_call(box, head):
    code = head + "seen = []\ndef f(x, d=[]):\n    seen.append(x); d.append(x)\n    return [len(seen), len(d)]"
    assert {r.text for r in box.call_many([("f", {"x": i}, code) for i in range(20)])} == {"[1, 1]"}


def test_data_keeps_its_state_for_its_owner_only(box):
    code = "def pay(to, data):\n    data['log'].append(to)\n    return len(data['log'])"
    ann, bob = {"log": []}, {"log": []}
    assert [box.call("pay", {"to": str(i)}, code, ann).text for i in range(3)] == ["1", "2", "3"]
    assert box.call("pay", {"to": "x"}, code, bob).text == "1" and ann == {"log": ["0", "1", "2"]} and bob == {"log": ["x"]}


@pytest.mark.parametrize("code", ["return 1\ndef f(): pass", "def f(): pass\nbreak", "def f(x, x): pass"])
def test_code_that_parses_and_does_not_compile_says_why(box, code):
    with pytest.raises(SyntaxError) as error: compile(code, "<string>", "exec")
    assert told(box, "f", code) == f"an error occured when call f: {error.value}"


def test_a_known_source_stays_with_its_worker():
    calls = [("f", {"x": i}, f"def f(x): return x + {i}") for i in range(12)]
    with ToolSandbox(workers=3) as box:
        for _ in range(10): assert [box.call(*c).text for c in calls] == [str(2 * i) for i in range(12)]
        assert sum(len(w.known) for w in box._pool) == 12


def test_work_is_done_meanwhile_and_its_error_is_not_swallowed(box):
    steps, slow = [], ("f", {}, "import time\ndef f():\n    time.sleep(0.05)\n    return 1")
    assert [r.text for r in box.call_many([slow] * 2, (steps.append(i) for i in range(5)))] == ["1", "1"]
    assert steps == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError): box.call_many([slow] * 2, (1 // 0 for _ in range(1)))
    assert told(box, "add", ADD, a=1, b=2) == '{"sum": 3}'


def test_killed_workers_are_replaced(box):
    box.call("add", {"a": 1, "b": 2}, ADD)
    for w in list(box._pool): os.kill(w.process.pid, signal.SIGKILL)
    assert {r.text for r in box.call_many([("add", {"a": 1, "b": 2}, ADD)] * 50)} == {'{"sum": 3}'}


def test_workers_killed_in_the_middle_of_a_batch_lose_no_call(box):
    stop = threading.Event()
    def killer():
        for _ in range(5):
            if stop.wait(0.1): return
            for w in list(box._pool)[:1]: os.killpg(w.process.pid, signal.SIGKILL)
    thread = threading.Thread(target=killer)
    thread.start()
    try: results = box.call_many([("f", {"x": i}, f"import time\ndef f(x):\n    time.sleep({i % 20} / 10000)\n    return x")
                                  for i in range(600)])
    finally: stop.set(); thread.join()
    lost = [i for i, r in enumerate(results) if r.text != str(i)]
    assert len(lost) <= 6 and all(results[i].error == "crashed" for i in lost)   # unlucky three times over


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kills, text", [(1, "42"), (2, "42"), (3, "crashed")])
def test_a_call_whose_process_is_killed_from_outside_is_made_again(kills, text):
    with ToolSandbox(workers=1, timeout=5) as box:
        box.call("add", {"a": 1, "b": 2}, ADD)
        keeper, killed = box._pool[0].process.pid, set()
        children = lambda: {p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(p) == keeper}
        runner = children()                                    # the call's own process comes and goes beside it
        def killer():
            while len(killed) < kills:
                for pid in children() - runner - killed: os.kill(pid, signal.SIGKILL); killed.add(pid)
                time.sleep(0.01)
        thread = threading.Thread(target=killer, daemon=True)
        thread.start()
        result = box.call("f", {"x": 41}, "import time\ndef f(x):\n    time.sleep(0.5)\n    return x + len(x.__class__.__name__) - 2")   # not vouched for
        assert len(runner) == 1 and len(killed) == kills and text in (result.text if result.ok else result.error)


def test_many_large_results_do_not_sink_the_batch():
    with ToolSandbox(workers=1, memory_mb=64) as box:
        results = box.call_many([("f", {"n": i}, "def f(n): return 'x' * 1000000") for i in range(60)])
    assert sum(len(r.text) for r in results if r.ok) >= 50 * 10 ** 6 and all(r.ok or r.error == "crashed" for r in results)


def test_usable_from_threads_and_within_a_running_loop(box):
    import asyncio
    texts = []
    def work(i): texts.append(box.call("add", {"a": i, "b": 0}, ADD).text)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    async def within(): return box.call("add", {"a": 9, "b": 0}, ADD).text
    assert sorted(texts) == [f'{{"sum": {i}}}' for i in range(8)] and asyncio.run(within()) == '{"sum": 9}'


def test_starts_lazily_and_ends_with_close():
    box = ToolSandbox(workers=1)
    assert not box._pool
    box.call("add", {"a": 1, "b": 2}, ADD)
    pid = box._pool[0].process.pid
    box.close()
    with pytest.raises(ProcessLookupError): os.kill(pid, 0)
    assert box.call("add", {"a": 1, "b": 2}, ADD).ok
    box.close()
    assert shared() is shared()


def parent(pid: int) -> int:
    try: return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[1])
    except (FileNotFoundError, ProcessLookupError): return 0


def alive(pid: int) -> bool:
    try: state = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
    except FileNotFoundError: return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_their_host_is_killed():
    program = ("from toolrl_lit.sandbox import ToolSandbox\nimport os, signal, threading, time\nbox = ToolSandbox(workers=1)\n"
               "box.call('f', {}, 'def f(): pass')\nprint(box._pool[0].process.pid, flush=True)\n"
               "threading.Thread(target=box.call, args=('f', {}, 'def f(): return sum(range(10 ** 14))'), daemon=True).start()\n"
               "time.sleep(0.5)\nos.kill(os.getpid(), signal.SIGKILL)")
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
    keeper = int(out.stdout)
    group = lambda: [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if alive(p) and os.getsid(p) == keeper]
    for _ in range(100):
        if not (alive(keeper) or group()): break
        time.sleep(0.1)
    assert not alive(keeper) and not group()


def test_weaker_backend_says_so_once_and_holds_what_it_can(tmp_path):
    import toolrl_lit.sandbox as module
    module._said.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with ToolSandbox(workers=1, timeout=0.5, backend="process") as box:
                assert box.call("add", {"a": 1, "b": 2}, ADD).text == '{"sum": 3}' and box.backend == "process"
                for body in (f"open({str(tmp_path / 'x')!r}, 'w').write('x')", "__import__('os').fork()"):
                    code = f"def f(): return {body}"
                    assert not box.call("f", {}, code).ok
    assert len([w for w in caught if "plain subprocesses" in str(w.message)]) == 1 and not list(tmp_path.iterdir())


def test_refuses_where_nothing_works(monkeypatch):
    import toolrl_lit.sandbox as module
    monkeypatch.setattr(module, "BOOT", "raise SystemExit(1)")
    with pytest.raises(UserError, match="unsafe"): ToolSandbox(workers=1).call("add", {"a": 1, "b": 2}, ADD)


@pytest.mark.parametrize("field, value", [("timeout", 0), ("workers", 0), ("memory_mb", -1), ("timeout", "5"), ("backend",
    "docker")])
def test_senseless_limits_are_refused(field, value):
    with pytest.raises(UserError, match=field): ToolSandbox(**{field: value})


def test_paper_scope_hides_what_stands_beside_the_tool():
    code = "import math\ndef f(x): return math.sqrt(x)"
    with ToolSandbox(workers=1) as ours, ToolSandbox(workers=1, paper_scope=True) as theirs:
        assert ours.call("f", {"x": 4}, code).text == "2.0"
        assert theirs.call("f", {"x": 4}, code).text == "an error occured when call f: name 'math' is not defined"


@pytest.mark.parametrize("code", [
    "def f(): return ().__class__", "def f(): return open('/etc/passwd')", "import os\ndef f(): pass",
    "def f(): return globals()",
    "import json as j\ndef f(): return j", "import json\ndef f(): json.x = 1", "def f(s): return s.format(1)",
    "from json import *",
    "def f(): return '{0.a}'.format(f)", "def f(): return '{0[a]}'.format(f)", "def f(): return '{:{}}'.format(1, 2)",
    "class A: pass",
    "def f(open): return open\ndef g(): return open('x')", "def f(): return getattr(1, 'x')", "async def f(): pass",
    "lambda: ().__len__",
    "def f():\n    import json as a\ndef g():\n    import re as a", "def f(): return (i for i in ()).gi_frame",
    "def f(): return eval('1')",
    "def f(x):\n    match x:\n        case int(real=r): return r", "@f.setter\ndef g(): pass",
    "from typing import get_type_hints", "def f(:"])
def test_code_with_a_way_out_is_not_vouched_for(code): assert not harmless(code, RULES)


PLACES = ["@{}\ndef f(): pass", "def f(x={}): pass", "def f(*, x={}): pass", "def f(x: {}): pass", "def f() -> {}: pass",
          "x: int = {}", "x: {} = 1", "f(*{})", "f(a={})", "f(**{})", "{{**{}}}", "{{1: 2, None: {}}}", "[x for x in y if {}]",
          "f'{{1:{{{}}}}}'", "x[1:{}]", "with f() as x, {}: pass", "try: pass\nexcept {}: pass", "try: pass\nfinally: {}",
          "lambda x=1, *y, z={}: 0", "(x := {})", "x = *y, {}", "raise x from {}", "assert 1, {}", "del x[{}]",
          "while 0: pass\nelse: {}", "1 < 2 < {}", "1 if {} else 2", "x += {}", "def f():\n    yield {}",
          "def f():\n    return [lambda: (1, {{'a': ({})}})]"]

@pytest.mark.parametrize("place", PLACES)
def test_no_place_of_a_program_is_overlooked(place):
    names = "x = y = f = 1\n"
    assert harmless(names + place.format("x.title"), RULES) is not None
    for way_out in ("().__class__", "open", "(y, open)", "x.gi_frame"): assert not harmless(names + place.format(way_out), RULES)


@pytest.mark.parametrize("code", [
    "T = {'a': 1}\ndef f(x): return T.get(x, 'no')", "import math\ndef f(x): return math.sqrt(x)",
    "def f(x: str = 'a') -> dict: return {x: 1}",
    "from datetime import date\ndef f(): return date(2020, 1, 1).isoformat()", "def f(x): return '{:.2f} {}'.format(x, 1)",
    "import json, re\ndef f(s):\n    try: return json.loads(s)\n"
    "    except ValueError as e: return f'{e} {re.sub(\"a\", \"b\", s)}'",
    "def f(x):\n    if not isinstance(x, str): raise TypeError(f'expected str, got {type(x).__name__}')\n"
    "    return sorted(x, key=lambda c: -ord(c))"])
def test_ordinary_tools_are_vouched_for(code): assert harmless(code, RULES) == {"f"}


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                           lambda x: st.lists(x) | st.dictionaries(st.text(), x))

@settings(max_examples=60, deadline=None)
@given(value=json_values)
def test_any_json_argument_arrives_as_it_was_sent(box, value):
    code = "import json\ndef f(x): return json.dumps(x)"
    wire = json.loads(json.dumps(value))
    for head in ("", "import os\n"): assert told(box, "f", head + code, x=value) == json.dumps(wire)
