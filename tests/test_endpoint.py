"A model behind an endpoint acts as one that runs here, whatever the endpoint does on the way."
import http.server, json, sys, threading
from types import SimpleNamespace
import pytest
from toolrl_lit.cli import main
from toolrl_lit.collect import EndpointPolicy, OraclePolicy, call_text, collect, reply_text, wire_messages
from toolrl_lit.evaluate import Evaluation
from toolrl_lit.reward import parse_qwen
from toolrl_lit.schema import UserError, write_jsonl

class Server:
    """Plays the oracle over the protocol, and refuses what OpenAI's own endpoint would refuse. `script` (request number, question) ->
    status, or a message to send instead, or None."""
    def __init__(self, environments, script=lambda n, question: None):
        self.known, self.requests, self.lock = {e.question: e for e in environments}, [], threading.Lock()
        server = self
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *_): pass
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(asked)
                    n = len(server.requests)
                question = next(m["content"] for m in asked["messages"] if m["role"] == "user")
                odd = script(n, question) or server.check(asked)
                if isinstance(odd, int): return self.send(odd, {"error": {"message": f"status {odd}"}})
                if isinstance(odd, str): return self.send(400, {"error": {"message": odd}})
                message = odd or server.oracle(server.known[question], asked["messages"])
                self.send(200, message if "choices" in message else
                          {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"],
                           "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None} | message}]})
            def send(self, status, what):
                body = json.dumps(what).encode()
                self.send_response(status)
                for header in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Retry-After", "0.01")): self.send_header(*header)
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
                if not open_ids or m["tool_call_id"] != open_ids.pop(0): return "a result without its call"
            elif open_ids: return "a call without its result"
            for c in m.get("tool_calls") or []:
                if not isinstance(c["function"]["arguments"], str): return "arguments are no string"
                open_ids.append(c["id"])
        return "a call without its result" if open_ids else None

    def oracle(self, env, messages) -> dict:
        turn, waves = sum(m["role"] == "assistant" for m in messages), env.golden_calls()
        if turn >= len(waves): return {"content": env.answer}
        return {"tool_calls": [{"id": f"x{i}", "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
                               for i, c in enumerate(waves[turn])]}

@pytest.fixture(autouse=True)
def key(monkeypatch): monkeypatch.setenv("OPENAI_API_KEY", "none")

@pytest.fixture()
def serve():
    made = []
    def start(*args):
        made.append(Server(*args))
        return made[-1]
    yield start
    for server in made: server.http.shutdown()

def alike(a, b): return [(t.environment, t.turns, t.messages, t.stop) for t in a] == [(t.environment, t.turns, t.messages, t.stop) for t in b]

def test_an_oracle_behind_an_endpoint_acts_as_one_here(environments, serve):
    server = serve(environments)
    there = collect(EndpointPolicy("m", server.url, top_p=0.5), environments, temperature=0)
    assert alike(there, collect(OraclePolicy(environments), environments, temperature=0))
    first = next(a for a in server.requests if any(e.question in str(a["messages"]) for e in environments[:1]))
    assert first["tools"] == environments[0].documents() and first["temperature"] == 0 and first["top_p"] == 0.5 and first["max_completion_tokens"] == 128

def test_what_fails_for_a_moment_is_asked_again(environments, serve):
    server = serve(environments, lambda n, question: {1: 429, 2: 500, 5: 503}.get(n))
    assert alike(collect(EndpointPolicy("m", server.url), environments, temperature=0), collect(OraclePolicy(environments), environments, temperature=0))

def test_calls_in_the_text_are_read_as_well(environments, serve):
    env = environments[0]
    server = serve(environments, lambda n, question: {"content": call_text(env.golden_calls()[0])} if n == 1 else None)
    traj, = collect(EndpointPolicy("m", server.url), [env], temperature=0)
    assert traj.turns[0].text == call_text(env.golden_calls()[0]) and traj.n_solved == traj.sub_questions

def function(name, arguments): return SimpleNamespace(type="function", function=SimpleNamespace(name=name, arguments=arguments))

@pytest.mark.parametrize("arguments, parses", [('{"a": 1}', True), ("", True), ("{}", True), ('{"a": "</tool_call>"}', True), ('{"a": ', False), ("nonsense", False)])
def test_arguments_come_through_or_count_as_malformed(arguments, parses):
    said = parse_qwen(reply_text(SimpleNamespace(content="So:", tool_calls=[function('odd "name"', arguments)])))
    assert bool(said.calls) == parses and bool(said.malformed) != parses
    if parses: assert said.calls[0].name == 'odd "name"' and said.calls[0].arguments == json.loads(arguments or "{}") and said.content.strip() == "So:"

def test_messages_on_the_wire_fit_together(environments):
    for traj, env in zip(collect(OraclePolicy(environments, slips=0.5), environments, temperature=0), environments):
        wire = wire_messages(traj.messages)
        calls = [c for m in wire for c in m.get("tool_calls") or []]
        assert [c["id"] for c in calls] == [m["tool_call_id"] for m in wire if m["role"] == "tool"] and len({c["id"] for c in calls}) == len(calls)
        assert [json.loads(c["function"]["arguments"]) for c in calls] == [c.arguments for t in traj.turns for c in t.calls]
        assert [m["content"] for m in wire] == [m["content"] for m in traj.messages]

def test_no_request_has_the_seed_of_another(environments, serve):
    server = serve(environments)
    for seed in range(6): collect(EndpointPolicy("m", server.url), environments, temperature=0, seed=seed)
    seeds = [asked["seed"] for asked in server.requests]
    assert len(set(seeds)) == len(seeds) > 100 and all(0 <= s < 2**31 for s in seeds)

def test_tokens_are_counted_where_the_endpoint_tells(environments, serve):
    said = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Hm."}}], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}
    server = serve(environments, lambda n, question: said if n <= 2 else None)
    policy = EndpointPolicy("m", server.url)
    policy.generate([(e.start().messages, e.documents()) for e in environments[:4]])
    assert policy.generated == 6

def test_a_conversation_that_is_too_long_ends(environments, serve):
    server = serve(environments, lambda n, question: "This model's maximum context length is 10 tokens." if question == environments[0].question else None)
    trajs = collect(EndpointPolicy("m", server.url), environments[:2], temperature=0)
    assert [t.stop for t in trajs] == ["too_long", "answer"] and not trajs[0].turns

@pytest.mark.parametrize("odd, said", [(401, "refuses|fails.*401"), (404, "fails.*404"), (400, "refuses a request.*400"), (500, "fails.*500"),
                                       ({"choices": []}, "fails"), ({"choices": [{"message": None}]}, "fails")])
def test_an_endpoint_that_does_not_work_is_one_sentence(environments, serve, odd, said):
    server = serve(environments, lambda n, question: odd)
    with pytest.raises(UserError, match=f"the endpoint {server.url}/? .*({said})"):
        collect(EndpointPolicy("m", server.url, retries=1), environments, temperature=0)

def test_without_a_key_or_with_an_odd_url_nothing_is_asked(monkeypatch):
    with pytest.raises(UserError, match="base_url 'ftp:/x'|fails"): EndpointPolicy("m", "ftp:/x").generate([([{"role": "user", "content": "?"}], [])])
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"): EndpointPolicy("m")

def test_the_command_line_measures_a_model_behind_an_endpoint(environments, serve, tmp_path, monkeypatch, capsys):
    server, envs = serve(environments), write_jsonl(tmp_path / "e.jsonl", environments)
    run = lambda *words: (monkeypatch.setattr(sys, "argv", ["toolrl", *map(str, words)]), main())
    with pytest.raises(SystemExit) as done: run("evaluate", "-e", envs, "-o", tmp_path / "scores.json", "-m", "some-model", "--base-url", server.url)
    assert not done.value.code and all(r.solve_f1 == 1 for r in Evaluation.load(tmp_path / "scores.json").rows)
    with pytest.raises(SystemExit) as done: run("collect", "-e", envs, "-o", tmp_path / "t.jsonl", "-m", "some-model", "--base-url", server.url, "--reasoning")
    assert done.value.code == 2 and "--reasoning" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done: run("collect", "-e", envs, "-o", tmp_path / "t.jsonl", "-m", "m", "--base-url", server.url, "--max-prompt-tokens", 9)
    assert done.value.code == 2 and "--max-prompt-tokens: an endpoint decides" in capsys.readouterr().err
    at_a_time, plain = [], EndpointPolicy.generate
    monkeypatch.setattr(EndpointPolicy, "generate", lambda self, *prompts, **how: (at_a_time.append(self.concurrency), plain(self, *prompts, **how))[1])
    with pytest.raises(SystemExit): run("collect", "-e", envs, "-o", tmp_path / "t.jsonl", "-m", "m", "--base-url", server.url, "--batch", 3)
    assert set(at_a_time) == {3}
