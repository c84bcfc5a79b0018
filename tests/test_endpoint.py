"A model behind an endpoint acts as one that runs here, whatever the endpoint does on the way."

import gzip
import http.server
import json
import logging
import sys
import threading
import time
import traceback
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, quote_plus, urlsplit

import pytest
from pydantic import BaseModel

from toolrl_lit.collect import OraclePolicy, call_text, collect
from toolrl_lit.doors.author import Endpoint, Unanswered, llm_config
from toolrl_lit.doors.cli import main
from toolrl_lit.doors.endpoint import EndpointPolicy
from toolrl_lit.engine.client import Client, hide, redact
from toolrl_lit.engine.conversations import wire_messages
from toolrl_lit.engine.parsers import reply_text
from toolrl_lit.evaluate import Evaluation
from toolrl_lit.reward import parse_qwen
from toolrl_lit.schema import Trajectory, UserError, read_jsonl, write_jsonl


class Server:
    """Plays the oracle over the protocol, and refuses what OpenAI's own endpoint would refuse. `script` (request number, question) ->
    status, or a message to send instead, or None."""

    def __init__(self, environments, script=lambda n, question: None):
        self.known, self.requests, self.lock = (
            {e.question: e for e in environments},
            [],
            threading.Lock(),
        )
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(asked)
                    n = len(server.requests)
                question = next(m["content"] for m in asked["messages"] if m["role"] == "user")
                odd = script(n, question) or server.check(asked)
                if isinstance(odd, int):
                    return self.send(odd, {"error": {"message": f"status {odd}"}})
                if isinstance(odd, str):
                    return self.send(400, {"error": {"message": odd}})
                message = odd or server.oracle(server.known[question], asked["messages"])
                self.send(
                    200,
                    message
                    if "choices" in message
                    else {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 0,
                        "model": asked["model"],
                        "choices": [
                            {
                                "index": 0,
                                "finish_reason": "stop",
                                "message": {"role": "assistant", "content": None} | message,
                            }
                        ],
                    },
                )

            def send(self, status, what):
                body = json.dumps(what).encode()
                self.send_response(status)
                for header in (
                    ("Content-Type", "application/json"),
                    ("Content-Length", str(len(body))),
                    ("Retry-After", "0.01"),
                ):
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(body)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=[0.02], daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def check(self, asked) -> str | None:
        "What a strict endpoint says of messages that do not fit together."
        open_ids = []
        for m in asked["messages"]:
            if m["role"] == "tool":
                if not open_ids or m["tool_call_id"] != open_ids.pop(0):
                    return "a result without its call"
            elif open_ids:
                return "a call without its result"
            for c in m.get("tool_calls") or []:
                if not isinstance(c["function"]["arguments"], str):
                    return "arguments are no string"
                open_ids.append(c["id"])
        return "a call without its result" if open_ids else None

    def oracle(self, env, messages) -> dict:
        turn, waves = sum(m["role"] == "assistant" for m in messages), env.golden_calls()
        if turn >= len(waves):
            return {"content": env.answer}
        return {
            "tool_calls": [
                {
                    "id": f"x{i}",
                    "type": "function",
                    "function": {"name": c.name, "arguments": json.dumps(c.arguments)},
                }
                for i, c in enumerate(waves[turn])
            ]
        }


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")


@pytest.fixture()
def serve():
    made = []

    def start(*args):
        made.append(Server(*args))
        return made[-1]

    yield start
    for server in made:
        server.http.shutdown()


def alike(a, b):
    return [(t.environment, t.turns, t.messages, t.stop) for t in a] == [
        (t.environment, t.turns, t.messages, t.stop) for t in b
    ]


def test_an_oracle_behind_an_endpoint_acts_as_one_here(environments, serve):
    server = serve(environments)
    there = collect(EndpointPolicy("m", server.url, top_p=0.5), environments, temperature=0)
    assert alike(there, collect(OraclePolicy(environments), environments, temperature=0))
    first = next(
        a
        for a in server.requests
        if any(e.question in str(a["messages"]) for e in environments[:1])
    )
    assert (
        first["tools"] == environments[0].documents()
        and first["temperature"] == 0
        and first["top_p"] == 0.5
        and first["max_completion_tokens"] == 128
    )


def test_what_fails_for_a_moment_is_asked_again(environments, serve):
    server = serve(environments, lambda n, question: {1: 429, 2: 500, 5: 503}.get(n))
    assert alike(
        collect(EndpointPolicy("m", server.url), environments, temperature=0),
        collect(OraclePolicy(environments), environments, temperature=0),
    )


def test_calls_in_the_text_are_read_as_well(environments, serve):
    env = environments[0]
    server = serve(
        environments,
        lambda n, question: {"content": call_text(env.golden_calls()[0])} if n == 1 else None,
    )
    (traj,) = collect(EndpointPolicy("m", server.url), [env], temperature=0)
    assert (
        traj.turns[0].text == call_text(env.golden_calls()[0])
        and traj.n_solved == traj.sub_questions
    )


def function(name, arguments):
    return SimpleNamespace(
        type="function", function=SimpleNamespace(name=name, arguments=arguments)
    )


@pytest.mark.parametrize(
    "arguments, parses",
    [
        ('{"a": 1}', True),
        ("", True),
        ("{}", True),
        ('{"a": "</tool_call>"}', True),
        ('{"a": ', False),
        ("nonsense", False),
    ],
)
def test_arguments_come_through_or_count_as_malformed(arguments, parses):
    said = parse_qwen(
        reply_text(SimpleNamespace(content="So:", tool_calls=[function('odd "name"', arguments)]))
    )
    assert bool(said.calls) == parses and bool(said.malformed) != parses
    if parses:
        assert (
            said.calls[0].name == 'odd "name"'
            and said.calls[0].arguments == json.loads(arguments or "{}")
            and said.content.strip() == "So:"
        )


def test_messages_on_the_wire_fit_together(environments):
    for traj, env in zip(
        collect(OraclePolicy(environments, slips=0.5), environments, temperature=0), environments
    ):
        wire = wire_messages(traj.messages)
        calls = [c for m in wire for c in m.get("tool_calls") or []]
        assert [c["id"] for c in calls] == [
            m["tool_call_id"] for m in wire if m["role"] == "tool"
        ] and len({c["id"] for c in calls}) == len(calls)
        assert [json.loads(c["function"]["arguments"]) for c in calls] == [
            c.arguments for t in traj.turns for c in t.calls
        ]
        assert [m["content"] for m in wire] == [m["content"] for m in traj.messages]


def test_no_request_has_the_seed_of_another(environments, serve):
    server = serve(environments)
    for seed in range(6):
        collect(EndpointPolicy("m", server.url), environments, temperature=0, seed=seed)
    seeds = [asked["seed"] for asked in server.requests]
    assert len(set(seeds)) == len(seeds) > 100 and all(0 <= s < 2**31 for s in seeds)


def test_tokens_are_counted_where_the_endpoint_tells(environments, serve):
    said = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Hm."},
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }
    server = serve(environments, lambda n, question: said if n <= 2 else None)
    policy = EndpointPolicy("m", server.url)
    policy.generate([(e.start().messages, e.documents()) for e in environments[:4]])
    assert policy.generated == 6


def test_a_conversation_that_is_too_long_ends(environments, serve):
    server = serve(
        environments,
        lambda n, question: (
            "This model's maximum context length is 10 tokens."
            if question == environments[0].question
            else None
        ),
    )
    trajs = collect(EndpointPolicy("m", server.url), environments[:2], temperature=0)
    assert [t.stop for t in trajs] == ["too_long", "answer"] and not trajs[0].turns


@pytest.mark.parametrize(
    "odd, said",
    [
        (401, "refuses|fails.*401"),
        (404, "fails.*404"),
        (400, "refuses a request.*400"),
        (500, "fails.*500"),
        ({"choices": []}, "fails"),
        ({"choices": [{"message": None}]}, "fails"),
    ],
)
def test_an_endpoint_that_does_not_work_is_one_sentence(environments, serve, odd, said):
    server = serve(environments, lambda n, question: odd)
    with pytest.raises(UserError, match=f"the endpoint {server.url}/? .*({said})"):
        collect(EndpointPolicy("m", server.url, retries=1), environments, temperature=0)


def test_without_a_key_or_with_an_odd_url_nothing_is_asked(monkeypatch):
    with pytest.raises(UserError, match="base_url 'ftp:/x'|fails"):
        EndpointPolicy("m", "ftp:/x", retries=0).generate(
            [([{"role": "user", "content": "?"}], [])]
        )
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        EndpointPolicy("m")


def test_the_command_line_measures_a_model_behind_an_endpoint(
    environments, serve, tmp_path, monkeypatch, capsys
):
    server, envs = serve(environments), write_jsonl(tmp_path / "e.jsonl", environments)
    run = lambda *words: (monkeypatch.setattr(sys, "argv", ["toolrl", *map(str, words)]), main())
    with pytest.raises(SystemExit) as done:
        run(
            "evaluate",
            "-e",
            envs,
            "-o",
            tmp_path / "scores.json",
            "-m",
            "some-model",
            "--base-url",
            server.url,
        )
    assert not done.value.code and all(
        r.solve_f1 == 1 for r in Evaluation.load(tmp_path / "scores.json").rows
    )
    with pytest.raises(SystemExit) as done:
        run(
            "collect",
            "-e",
            envs,
            "-o",
            tmp_path / "t.jsonl",
            "-m",
            "some-model",
            "--base-url",
            server.url,
            "--reasoning",
        )
    assert done.value.code == 2 and "--reasoning" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        run(
            "collect",
            "-e",
            envs,
            "-o",
            tmp_path / "t.jsonl",
            "-m",
            "m",
            "--base-url",
            server.url,
            "--max-prompt-tokens",
            9,
        )
    assert (
        done.value.code == 2
        and "--max-prompt-tokens: an endpoint decides" in capsys.readouterr().err
    )
    at_a_time, plain = [], EndpointPolicy.generate
    monkeypatch.setattr(
        EndpointPolicy,
        "generate",
        lambda self, *prompts, **how: (
            at_a_time.append(self.concurrency),
            plain(self, *prompts, **how),
        )[1],
    )
    with pytest.raises(SystemExit):
        run(
            "collect",
            "-e",
            envs,
            "-o",
            tmp_path / "t.jsonl",
            "-m",
            "m",
            "--base-url",
            server.url,
            "--batch",
            3,
        )
    assert set(at_a_time) == {3}


# -- dialects


def function_of(call, **more):
    return {"function": call["function"] | more}


DIALECTS = {
    "no type": lambda m: {
        "tool_calls": [{k: v for k, v in c.items() if k != "type"} for c in m["tool_calls"]]
    },
    "type is null": lambda m: {
        "tool_calls": [c | {"type": None, "id": None} for c in m["tool_calls"]]
    },
    "arguments as an object": lambda m: {
        "tool_calls": [
            function_of(c, arguments=json.loads(c["function"]["arguments"]))
            for c in m["tool_calls"]
        ]
    },
    "encoded twice": lambda m: {
        "tool_calls": [
            function_of(c, arguments=json.dumps(c["function"]["arguments"]))
            for c in m["tool_calls"]
        ]
    },
    "no function around them": lambda m: {"tool_calls": [c["function"] for c in m["tool_calls"]]},
    "with thoughts": lambda m: (
        m | {"content": "", "reasoning_content": "Which tool?", "refusal": None}
    ),
    "one as function_call": lambda m: (
        {"function_call": m["tool_calls"][0]["function"]} if len(m["tool_calls"]) == 1 else m
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_oracle_acts_the_same_in_every_dialect(environments, serve, dialect):
    server = serve(environments)
    plain = server.oracle
    server.oracle = lambda env, messages: (
        DIALECTS[dialect](m)
        if "tool_calls" in (m := plain(env, messages))
        else {"content": [{"type": "text", "text": m["content"]}]}
    )
    assert alike(
        collect(EndpointPolicy("m", server.url), environments, temperature=0),
        collect(OraclePolicy(environments), environments, temperature=0),
    )


def call_message(env, **more):
    return {
        "tool_calls": [
            {
                "id": "a",
                "type": "function",
                "function": {"name": c.name, "arguments": json.dumps(c.arguments)},
            }
            for c in env.golden_calls()[0]
        ]
    } | more


def one(environments, serve, said, **how):
    "The trajectory of a policy that says this first, and then what the oracle says."
    env, server = environments[0], serve(environments, lambda n, question: said if n == 1 else None)
    return collect(EndpointPolicy("m", server.url, retries=0), [env], temperature=0, **how)[0]


def test_words_that_mention_the_markup_take_no_call_away(environments, serve, tmp_path):
    traj = one(
        environments,
        serve,
        call_message(environments[0], content="I use <tool_call> now."),
        out=tmp_path / "t.jsonl",
    )
    assert (
        traj.turns[0].case == "calls"
        and traj.n_solved == traj.sub_questions
        and traj.messages[1]["content"] == "I use <tool_call> now."
    )
    assert (
        read_jsonl(tmp_path / "t.jsonl", Trajectory) == [traj] and type(traj.turns[0].text) is str
    )


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "I look "}, {"type": "text", "text": "it up."}],
        "I look it up. \ud83d",
    ],
)
def test_content_in_parts_and_half_a_character_are_kept(environments, serve, tmp_path, content):
    traj = one(
        environments,
        serve,
        call_message(environments[0], content=content),
        out=tmp_path / "t.jsonl",
    )
    assert traj.n_solved == traj.sub_questions and traj.messages[1]["content"].startswith(
        "I look it up."
    )
    assert read_jsonl(tmp_path / "t.jsonl", Trajectory) == [traj]


@pytest.mark.parametrize(
    "arguments",
    ['{"a": NaN, "b": -Infinity}', '{"\\ud83d": 1}', '{"a": ' + "[" * 300 + "]" * 300 + "}"],
)
def test_odd_arguments_end_no_collection_and_are_read_back(
    environments, serve, tmp_path, arguments
):
    said = {
        "tool_calls": [
            {"function": {"name": environments[0].tools[0].name, "arguments": arguments}}
        ]
    }
    traj = one(environments, serve, said, out=tmp_path / "t.jsonl", max_turns=2)
    assert traj.turns[0].case == "calls" and str(
        read_jsonl(tmp_path / "t.jsonl", Trajectory)
    ) == str([traj])


def test_thousands_of_calls_in_one_reply_are_malformed(environments, serve):
    traj = one(
        environments, serve, {"tool_calls": call_message(environments[0])["tool_calls"] * 20_000}
    )
    assert (traj.n_calls, traj.turns[0].case, len(traj.turns)) == (0, "malformed", 1) and len(
        traj.turns[0].text
    ) < 200


def test_a_cut_call_is_malformed_and_the_first_of_several_choices_is_taken(environments, serve):
    call = call_message(environments[0])["tool_calls"][0]
    cut = {
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {
                    "role": "assistant",
                    "tool_calls": [function_of(call, arguments=call["function"]["arguments"][:-3])],
                },
            }
        ]
    }
    assert one(environments, serve, cut).turns[0].case == "malformed"
    two = {
        "choices": [
            {"index": k, "message": {"role": "assistant", "content": text}}
            for k, text in enumerate(("Hm.", "Ha."))
        ]
    }
    assert one(environments, serve, two).turns[0].text == "Hm."


# -- histories of other makers

TEXT = '<tool_call>\n{"name": "river", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.mark.parametrize(
    "said",
    [
        {"content": TEXT},
        {
            "content": None,
            "tool_calls": [{"function": {"name": "river", "arguments": {"city": "Rome"}}}],
        },
        {
            "content": "",
            "tool_calls": [
                {
                    "id": "x7",
                    "type": "function",
                    "function": {"name": "river", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {
            "content": [{"type": "text", "text": ""}],
            "tool_calls": [
                {"function": {"name": "river", "arguments": json.dumps('{"city": "Rome"}')}}
            ],
        },
        {"function_call": {"name": "river", "arguments": '{"city": "Rome"}'}},
    ],
)
@pytest.mark.parametrize(
    "result",
    [
        {"role": "tool"},
        {"role": "tool", "tool_call_id": "x7"},
        {"role": "function", "name": "river"},
    ],
)
def test_histories_of_other_makers_are_continued(environments, serve, said, result):
    history = [
        {"role": "user", "content": [{"type": "text", "text": "Which river?"}]},
        {"role": "assistant"} | said,
        result | {"content": [{"type": "text", "text": "Tiber"}]},
    ]
    before = json.dumps(history)
    wire = wire_messages(history)
    call = wire[1]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"} and wire[2] == {
        "role": "tool",
        "tool_call_id": call["id"],
        "content": "Tiber",
    }
    assert call["id"] == (said.get("tool_calls", [{}])[0].get("id") or "call_1_0") and [
        m["content"] for m in wire
    ] == ["Which river?", "", "Tiber"]
    assert Server.check(None, {"messages": wire}) is None and json.dumps(history) == before, (
        "what was given is left alone"
    )


@pytest.mark.parametrize(
    "history, said",
    [
        (
            [{"role": "user", "content": "?"}, {"role": "tool", "content": "Tiber"}],
            "message 2: expected as many results",
        ),
        (
            [{"role": "assistant", "content": "Hm."}, {"role": "tool", "content": "Tiber"}],
            "message 2: expected as many results",
        ),
        (
            [
                {"role": "assistant", "content": TEXT},
                {"role": "tool", "content": "Tiber"},
                {"role": "tool", "content": "Arno"},
            ],
            "message 3: expected as many results",
        ),
        ([{"content": "Hm."}], "message 1: expected role"),
        (
            [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"arguments": "{}"}}],
                }
            ],
            "message 1: expected role",
        ),
        ([{"role": "user", "content": 3}], "message 1: expected role"),
        ([{"role": "user", "content": "?"}, "Hm."], "message 2: expected role"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"name": "river"}]}],
            "message 1: expected role",
        ),
    ],
)
def test_histories_that_make_no_sense_are_refused_in_one_sentence(history, said):
    with pytest.raises(UserError, match=said):
        wire_messages(history)


# -- limits on a whole request


class Raw:
    "A server that answers each request by `act(handler)`, and counts them."

    def __init__(self, act):
        self.asked = 0
        raw = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                raw.asked += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    act(self)
                except OSError:
                    pass

            do_GET = do_POST

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=[0.02], daemon=True).start()
        self.netloc = f"127.0.0.1:{self.http.server_port}"
        self.url = f"http://{self.netloc}/v1"


@pytest.fixture()
def raw():
    made = []

    def start(act):
        made.append(Raw(act))
        return made[-1]

    yield start
    for server in made:
        server.http.shutdown()


def answer(handler, status=200, body=b"", **headers):
    handler.send_response(status)
    for k, v in {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }.items() | headers.items():
        handler.send_header(k.replace("_", "-"), v)
    handler.end_headers()
    handler.wfile.write(body)


def drip_body(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def flood(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 2**16)


def bomb(handler):
    answer(handler, 200, gzip.compress(b" " * 2**26), Content_Encoding="gzip")


HELLO = [([{"role": "user", "content": "?"}], [])]


def asked(policy):
    with pytest.raises(UserError) as e:
        policy.generate(HELLO)
    return str(e.value)


@pytest.mark.parametrize("act", [drip_body, drip_headers])
def test_a_slow_drip_ends_with_the_time_of_a_whole_request(raw, act):
    server = raw(act)
    said = asked(EndpointPolicy("m", server.url, timeout=0.6, retries=1))
    assert (
        f"the endpoint {server.url}/ fails" in said
        and "no whole reply within 0.6 seconds" in said
        and server.asked == 2
    )


@pytest.mark.parametrize("act", [flood, bomb])
def test_an_endless_reply_ends_after_so_many_bytes_and_is_not_asked_for_again(raw, act):
    server = raw(act)
    said = asked(EndpointPolicy("m", server.url, retries=3, most_bytes=2**20))
    assert "its reply has more than 1048576 bytes" in said and server.asked == 1


def test_a_redirect_to_another_host_is_refused_and_one_within_the_host_followed(raw):
    whole = json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hm."}}],
        }
    ).encode()
    other = raw(lambda handler: answer(handler, 200, whole))
    for status in (301, 302, 307, 308):
        away = raw(
            lambda handler: answer(
                handler, status, Location=other.url + "/chat/completions?key=open-sesame"
            )
        )
        said = asked(EndpointPolicy("m", away.url, retries=3))
        assert (
            "redirects to another host" in said
            and "sesame" not in said
            and (away.asked, other.asked) == (1, 0)
        )
    near = raw(
        lambda handler: (
            answer(handler, 200, whole)
            if handler.path.startswith("/v2")
            else answer(handler, 307, Location="/v2/chat/completions")
        )
    )
    assert EndpointPolicy("m", near.url).generate(HELLO) == ["Hm."] and near.asked == 2
    round_ = raw(lambda handler: answer(handler, 307, Location="/v1/chat/completions"))
    assert "redirects without end" in asked(EndpointPolicy("m", round_.url, retries=0))


@pytest.mark.parametrize(
    "body, kind",
    [
        (b"<html><body>Welcome</body></html>", "text/html"),
        (b"<html>", "application/json"),
        (b"[]", "application/json"),
        (b'"Hm."', "application/json"),
        (b"null", "application/json"),
        (b"{}", "application/json"),
        (b'{"choices": [null]}', "application/json"),
        (b'{"choices": ["a"]}', "application/json"),
        (b'{"choices": {"a": 1}}', "application/json"),
        (b'{"choices": [{"message": "Hm."}]}', "application/json"),
        (b'{"choices": 3}', "application/json"),
        (b'{"choices": [{"message": {"content": 3}}]}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\xff\xfe{", "application/json"),
        (
            b'{"choices": [{"message": {"tool_calls": ' + b"[" * 3000 + b"]" * 3000 + b"}}]}",
            "application/json",
        ),
    ],
)
def test_a_page_that_is_no_chat_completion_is_one_sentence(raw, body, kind):
    server = raw(lambda handler: answer(handler, 200, body, Content_Type=kind))
    said = asked(EndpointPolicy("m", server.url, retries=0))
    assert (
        said.startswith(f"the endpoint {server.url}/ fails: ")
        and len(said) < 700
        and "\n" not in said
    )


# -- secrets


class Word(BaseModel):
    word: str


SECRETS = ("hunter2-pass", "open/sesame 42", "sk-very-secret-key")


def echo(status):
    "Repeats all that it was sent: address, headers, and who that is."

    def act(handler):
        all_ = {
            "path": handler.path,
            "headers": dict(handler.headers),
            "url": f"http://me:{SECRETS[0]}@host/v1?key={quote(SECRETS[1])}",
        }
        body = (
            {
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": json.dumps(all_)}}
                ]
            }
            if status == 200
            else {"error": {"message": json.dumps(all_), "key": SECRETS[2]}}
        )
        answer(handler, status, json.dumps(body).encode())

    return act


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_passwords_and_keys_are_neither_said_nor_written_nor_logged(
    environments, raw, tmp_path, monkeypatch, caplog, status
):
    monkeypatch.setenv("OPENAI_API_KEY", SECRETS[2])
    seen = {}

    def act(handler):
        seen.update(path=handler.path, auth=handler.headers["Authorization"])
        echo(status)(handler)

    server = raw(act)
    url = f"http://me:{SECRETS[0]}@{server.netloc}/v1?key={quote_plus(SECRETS[1])}"
    with caplog.at_level(logging.DEBUG):
        policy = EndpointPolicy(
            "m", url, retries=0, api_key_of_theirs="x", extra={"api_key": "a-third-secret"}
        )
        said = []
        try:
            collect(policy, environments[:1], temperature=0, out=tmp_path / "t.jsonl")
        except UserError as e:
            said += traceback.format_exception(e)
        try:
            endpoint = Endpoint(
                llm_config(
                    model="m",
                    base_url=url,
                    retries=0,
                    repairs=0,
                    cache=str(tmp_path / "answers"),
                    settings={"api_key": "a-third-secret"},
                )
            )
            with endpoint.open():
                endpoint.ask("say", [{"role": "user", "content": "?"}], Word)
        except Exception as e:
            said += [*traceback.format_exception(e), str(endpoint.stopped)]
    assert parse_qs(urlsplit(seen["path"]).query) == {"key": [SECRETS[1]]} and seen[
        "auth"
    ].startswith("Basic ")  # they arrive where they belong
    written = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    logged = "".join(r.getMessage() for r in caplog.records)
    for secret in (
        *SECRETS,
        quote(SECRETS[1], safe=""),
        quote_plus(SECRETS[1]),
        seen["auth"].split()[1],
        "a-third-secret",
    ):
        assert secret not in written and secret not in "".join(said), secret
        assert secret not in logged, secret
    assert bool(said) == (status != 200) and f"http://{server.netloc}/v1" in "".join(said) + written
    assert "chat/completions" in logged


def test_an_address_that_is_none_is_told_without_its_password(monkeypatch):
    for url in (
        "http://me:hunter2-pass@[::1/v1",
        "ftp://me:hunter2-pass@host/?key=open-sesame-42",
        "http://me:hunter2-pass@host:port/v1",
    ):
        with pytest.raises(UserError) as e:
            EndpointPolicy("m", url, retries=0).generate(HELLO)
        assert "hunter2" not in "".join(
            traceback.format_exception(e.value)
        ) and "sesame" not in str(e.value)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:hunter2-pass@host/v1")
    assert Client().where == "http://host/v1/"


@pytest.mark.parametrize(
    "text, clean",
    [
        ("https://me:pw@host/v1", "https://***@host/v1"),
        (
            "see https://token@host and http://a:b:c@d:1/?x=1&key=2#f.",
            "see https://***@host and http://***@d:1/?x=***&key=***#f.",
        ),
        ("mail me@host about http://host/a", "mail me@host about http://host/a"),
        ("what? a=b", "what? a=b"),
        ('"http://h?key=1"', '"http://h?key=***"'),
    ],
)
def test_addresses_are_said_without_what_they_hide(text, clean):
    assert redact(text) == clean


@pytest.mark.parametrize("secret", ["pw", "p@", "word", "pass word", 'q"uote'])
def test_a_secret_is_found_in_whatever_stands_around_it(raw, monkeypatch, secret):
    server = raw(
        lambda handler: answer(
            handler, 400, json.dumps({"error": {"message": f"no: {secret}, '{secret}'!"}}).encode()
        )
    )
    said = asked(EndpointPolicy("m", f"http://me:{quote(secret)}@{server.netloc}/v1", retries=0))
    assert (
        "***, '***'!" in said.replace("\\'", "'")
        and secret not in said
        and "word"
        not in redact("a sword, keyword", "word").replace("sword", "").replace("keyword", "")
    )


def test_settings_that_are_named_as_secrets_are_hidden():
    assert hide(
        {
            "top_p": 1,
            "max_tokens": 2,
            "extra": [{"Authorization": "a", "client_secret": "b", "keys": 3}],
        }
    ) == {
        "top_p": 1,
        "max_tokens": 2,
        "extra": [{"Authorization": "***", "client_secret": "***", "keys": 3}],
    }


def test_an_author_is_not_kept_waiting_either(raw, tmp_path):
    for act, why in ((drip_body, "no whole reply"), (flood, "more than")):
        server = raw(act)
        endpoint = Endpoint(
            llm_config(
                model="m",
                base_url=server.url,
                retries=0,
                timeout=1,
                cache=str(tmp_path / act.__name__),
            )
        )
        with endpoint.open(), pytest.raises(Unanswered, match=why if act is drip_body else "fails"):
            endpoint.ask("say", [{"role": "user", "content": "?"}], Word)
