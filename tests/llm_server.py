"""A chat-completions endpoint on loopback that plays the language model. Its right answers are made from the packaged facts by
the stages of this library; its *moods* are the ways in which endpoints and models go wrong. What it does with a prompt depends on
the prompt, for the endpoint's moods also on how often it came, and on nothing else."""

import hashlib
import http.server
import io
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter

from toolrl_lit import deploy, scale
from toolrl_lit.document import Draft, document
from toolrl_lit.doors.author_checks import shortcuts
from toolrl_lit.engine.workers import PARSING
from toolrl_lit.integrate import integrate
from toolrl_lit.scenario import Difficulty, KnowledgeGenerator, decompose
from toolrl_lit.schema import SCENARIOS, Environment

GENERATOR, EASY = KnowledgeGenerator(), Difficulty()
TRANSPORT = (
    "429",
    "500",
    "reset",
    "cut body",
    "short body",
    "no completion",
    "no message",
    "504",
    "slow",
)
REFUSED = ("400",)
FREE = (
    "429",
    "500",
    *REFUSED,
)  # what nobody is billed for; all else was worked on, whether or not the answer arrives
CONTENT = ("cut answer", "wrong schema", "wrong", "hostile")
STAGES = {
    "stage 1": "decompose",
    "stage 2": "document",
    "stage 3": "integrate",
    "stage 5": "deploy",
    "propose questions": "propose",
    "verification": "verify",
    "stage 4: functionality generalization": "generalize_function",
    "stage 4: parameter expansion": "expand_parameters",
    "stage 4: parameter type generalization": "generalize_types",
    "stage 4: toolset extension": "extend_toolset",
}


def scenarios(n: int, seed: int) -> dict:
    "Scenarios by question, all kinds in turn."
    found, rng = {}, random.Random(seed)
    while len(found) < n:
        s, _ = decompose(GENERATOR, "s", SCENARIOS[len(found) % 4], "train", EASY, rng)
        if s and good(document(s, GENERATOR, EASY, random.Random(0))):
            found.setdefault(s.question, s)
    return found


def good(draft: Draft) -> bool:
    "Whether the environment of a draft would pass."
    env = deploy.deploy(draft)
    return not deploy.check(env) and not shortcuts(env)


def best(draft: Draft, change, wanted=lambda d: True) -> Draft:
    "The first change of a draft that passes, or the draft."
    return next(
        (d for d in (change(random.Random(i)) for i in range(30)) if wanted(d) and good(d)), draft
    )


def toolset(draft: Draft) -> dict:
    "A draft as an answer."
    calls = [
        dict(sub_question=q.id, tool=q.tool, arguments=q.arguments)
        for q in draft.scenario.sub_questions
    ]
    tools = [t.model_dump() for t in draft.documents()]
    for tool in tools:
        for schema in tool["parameters"]["properties"].values():
            schema.setdefault("description", "What is asked about, or how it is to be told.")
    return dict(tools=tools, calls=calls)


class ModelServer:
    "The server: started at once on a free port. `mood` is the share of requests that go wrong, `moods` how."

    def __init__(
        self,
        questions: int = 12,
        mood: float = 0.0,
        moods=TRANSPORT + CONTENT,
        seed: int = 0,
        slow: float = 3.0,
        canary: str = "canary",
        unstructured: tuple | None = None,
        usage: bool | dict = True,
        always=None,
    ):
        self.known, self.drafts, self.lock = scenarios(questions, seed), {}, threading.Lock()
        self.mood, self.possible, self.slow, self.canary = mood, moods, slow, canary
        self.unstructured, self.usage = (
            unstructured,
            usage,
        )  # how `response_format` is refused: (status, words); or not at all
        self.always = always  # (stage, question) -> mood or None, instead of chance
        self.requests, self.moods, self.came, self.log, self.retry_after = (
            0,
            Counter(),
            Counter(),
            [],
            lambda: "1",
        )
        self.paid, self.lost, self.bill = (
            Counter(),
            Counter(),
            (0, 0, 0),
        )  # answers given, answers that got lost, what both are billed as
        self.busy, self.most_busy, self.hold_after, self.held = 0, 0, None, threading.Event()
        handler = type("Handler", (Handler,), {"model": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads, self.http.block_on_close = True, False
        threading.Thread(target=self.http.serve_forever, args=[0.02], daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    @property
    def questions(self) -> list[str]:
        return list(self.known)

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def right(self, env: Environment) -> bool:
        "Whether the golden answers of an environment are the facts."
        s = self.known[env.question]
        return env.answer == s.answer and [q.answer for q in env.scenario.sub_questions] == [
            q.answer for q in s.sub_questions
        ]

    def answer(self, stage: str, facts: dict) -> dict:
        "The right answer."
        if stage == "propose":
            fits = [
                q
                for q, s in self.known.items()
                if s.kind == facts["scenario"] and q not in facts["proposed before"]
            ]
            return dict(questions=fits[: facts["questions wanted"]] or facts["proposed before"])
        s = self.known[facts["question"]]
        if stage == "verify":
            return dict(answer=s.answer)
        if stage == "decompose":
            shown = dict(id=True, question=True, answer=True, depends_on=True, entities=True)
            return dict(
                steps=[q.model_dump(include=shown) for q in s.sub_questions], answer=s.answer
            )
        draft = self.drafts.get(key(facts), None)
        if stage == "deploy":
            return dict(codes=[dict(tool=t.name, code=deploy.render(t)) for t in draft.tools])
        made = self.changed(stage, s, draft, facts)
        answer = toolset(made)
        self.drafts[key(facts | answer)] = made
        return answer

    def changed(self, stage: str, scenario, draft: Draft | None, facts: dict) -> Draft:
        "The draft after a stage."
        if stage == "document":
            return document(scenario, GENERATOR, EASY, random.Random(0))
        if stage == "integrate":
            return best(draft, lambda rng: integrate(draft, rng))
        if stage != "extend_toolset":
            return best(draft, lambda rng: getattr(scale, stage)(draft, GENERATOR, rng))
        n = facts["tools to add"]
        hard = EASY.model_copy(update=dict(distractors=(n, n), tools=20))
        grown = lambda d: len(d.tools) == len(draft.tools) + n
        return best(draft, lambda rng: scale.extend_toolset(draft, GENERATOR, rng, hard), grown)

    def spoil(self, mood: str, stage: str, answer: dict) -> str:
        "The text of a wrong answer."
        if mood == "cut answer":
            return json.dumps(answer)[: len(json.dumps(answer)) // 2]
        if mood == "wrong schema":
            return json.dumps({"result": answer})
        if stage == "decompose":  # gives an answer away, or is cleverer than the question
            if mood == "wrong":
                answer["steps"][-1]["answer"] = answer["steps"][-1]["question"][:10]
            else:
                answer["steps"][0]["depends_on"] = ["q9"]
        elif stage == "deploy":
            codes = answer["codes"]
            if mood == "wrong":  # plausible: a table with its values shifted by one
                for c in codes:
                    c["code"] = shifted(c["code"])
            else:
                evil = f"    __import__('os').system('touch {self.canary}')\n    open({self.canary!r}, 'w').write('x')\n"
                for c in codes:
                    c["code"] = c["code"].replace("    table", evil + "    table", 1)
        elif stage == "verify":  # disagrees
            answer["answer"] = "Atlantis"
        elif stage != "propose":
            if mood == "wrong":
                answer["calls"] = answer["calls"][1:]
            else:
                answer["tools"][0]["parameters"]["properties"] = {
                    "x": {"$ref": "http://127.0.0.1:9/evil"}
                }
        return json.dumps(answer)


def key(facts: dict) -> tuple:
    "What a draft is found under."
    return facts["question"] if "question" in facts else "", tuple(
        sorted(json.dumps(t, sort_keys=True) for t in facts["tools"])
    )


def shifted(code: str) -> str:
    "Source whose tables give each subject the value of the next."
    rows = re.findall(r'^ +"[^"]*": (".*"),$', code, re.M)
    turn = iter([*rows[1:], *rows[:1]])
    return re.sub(r'^( +"[^"]*": )".*",$', lambda m: f"{m[1]}{next(turn)},", code, flags=re.M)


class Handler(http.server.BaseHTTPRequestHandler):
    "One request."

    protocol_version = "HTTP/1.1"
    model: ModelServer

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.model.lock:
            self.model.requests += 1
            self.model.busy += 1
            self.model.most_busy = max(self.model.most_busy, self.model.busy)
        try:
            self.reply(self.model, body)
        except OSError:
            self.close_connection = True  # the client has gone
        finally:
            with self.model.lock:
                self.model.busy -= 1

    def reply(self, m: ModelServer, body: dict):
        if self.path != "/v1/chat/completions":
            return self.send(404, {"error": {"message": f"no such path: {self.path}"}})
        if self.headers["Authorization"] == "Bearer wrong":
            return self.send(401, {"error": {"message": "who are you?"}})
        if m.unstructured and "response_format" in body:
            status, words = m.unstructured
            return self.send(status, {"error": {"message": words}})
        prompt = json.dumps(body["messages"])
        with m.lock:
            n = m.came[prompt]
            m.came[prompt] += 1
            with PARSING:
                text, stage, facts, mood = self.think(m, body, prompt, n)
            if mood:
                m.moods[mood] += 1
            m.log.append((stage, mood, time.monotonic(), prompt))
            wait = (
                m.hold_after is not None and sum(m.paid.values()) >= m.hold_after
            )  # worked on when the client dies
            if mood not in FREE:
                self.charge(
                    m,
                    prompt,
                    completion(text, body["messages"], True)["usage"],
                    wait or mood in TRANSPORT,
                )
        if wait:
            m.held.wait(60)
            raise OSError
        if mood in TRANSPORT + REFUSED:
            return self.misbehave(m, mood, text)
        self.send(200, completion(text, body["messages"], m.usage))

    def charge(self, m: ModelServer, prompt: str, used: dict, lost: bool):
        "Put an answer on the bill."
        (m.lost if lost else m.paid)[prompt] += 1
        m.bill = tuple(map(sum, zip(m.bill, (1, used["prompt_tokens"], used["completion_tokens"]))))

    def think(self, m: ModelServer, body: dict, prompt: str, n: int):
        "Text, stage, facts and mood."
        title = body["messages"][0]["content"].splitlines()[0].removeprefix("# ").lower()
        stage = next((s for t, s in STAGES.items() if title.startswith(t)), "say")
        if stage == "say":
            return json.dumps({"word": "hello"}), stage, {}, None
        facts = json.loads(body["messages"][1]["content"])
        text = m.answer(stage, facts)
        mood = self.draw(m, TRANSPORT, f"{prompt} {n}") or self.draw(m, CONTENT, prompt)
        if m.always:
            mood = m.always(stage, facts.get("question"), n, len(body["messages"]))
        return (
            m.spoil(mood, stage, text) if mood in CONTENT else json.dumps(text),
            stage,
            facts,
            mood,
        )

    def draw(self, m: ModelServer, kinds: tuple, prompt: str) -> str | None:
        "A mood of these kinds, or none."
        rng, kinds = (
            random.Random(hashlib.sha256(prompt.encode()).hexdigest()),
            [k for k in kinds if k in m.possible],
        )
        return rng.choice(kinds) if kinds and rng.random() < m.mood / 2 else None

    def misbehave(self, m: ModelServer, mood: str, text: str):
        "What is wrong with an endpoint, rather than with a model."
        whole = completion(text, [], True)
        if mood == "429":
            self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": m.retry_after()})
        elif mood == "500":
            self.send(500, {"error": {"message": "sorry"}})
        elif mood == "504":
            self.send(504, {"error": {"message": "the gateway is tired of waiting"}})
        elif mood == "400":
            self.send(400, {"error": {"message": "context length exceeded"}})
        elif mood == "cut body":
            self.send(200, whole, cut=len(json.dumps(whole)) // 2)
        elif mood == "short body":
            self.send(200, whole, missing=40)
        elif mood == "no completion":
            self.send(200, {"error": {"message": "overloaded"}})
        elif mood == "no message":
            self.send(200, whole | {"choices": [{"index": 0, "finish_reason": "error"}]})
        elif mood == "slow":
            time.sleep(m.slow)
            self.send(200, whole)
        else:  # a reset, not an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            for file in (self.rfile, self.wfile, self.connection):
                file.close()
            self.wfile = io.BytesIO()  # the base class flushes it
            self.close_connection = True

    def send(
        self, status: int, body: dict, headers: dict = {}, cut: int | None = None, missing: int = 0
    ):
        "Send JSON: whole, cut off and honest about its length, or shorter than announced."
        data = json.dumps(body).encode()[:cut]
        self.send_response(status)
        for k, v in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **headers,
        }.items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data[: len(data) - missing])
        if missing:
            self.close_connection = True


def completion(text: str, messages: list, usage: bool | dict) -> dict:
    "A chat completion; a word is a token, unless `usage` says otherwise or is False."
    said, asked = len(text.split()), sum(len(m["content"].split()) for m in messages)
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "played",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        ],
        **(
            {}
            if usage is False
            else {
                "usage": {
                    "prompt_tokens": asked,
                    "completion_tokens": said,
                    "total_tokens": asked + said,
                }
                if usage is True
                else usage
            }
        ),
    }
