"Noise around a sandbox: its shares, its fates, what it leaves alone, and what it does to scores and rollouts."

import random

import pytest

from toolrl_lit import train as training
from toolrl_lit.collect import OraclePolicy, call_text, collect
from toolrl_lit.engine.calls import Call
from toolrl_lit.engine.demo import demo_environment
from toolrl_lit.engine.noise import Noise, NoisySandbox, noisy, reword
from toolrl_lit.engine.sandbox import ToolSandbox
from toolrl_lit.evaluate import evaluate
from toolrl_lit.reward import match_paper, match_strict, score_batch
from toolrl_lit.schema import ToolCall, UserError
from toolrl_lit.tasks import make_task
from toolrl_lit.train import make_config

ENV = demo_environment()
ASKED = Call("capital_of", {"country": "France"}, ENV.codes()["capital_of"])
RIGHT = call_text(ENV.golden_calls()[0])


@pytest.fixture(scope="module")
def box():
    with ToolSandbox(workers=2, timeout=2.0) as sandbox:
        yield sandbox


def test_each_kind_of_noise_meets_its_share_of_the_calls(box):
    noisy = NoisySandbox(Noise(fails=0.2, late=0.1, reworded=0.3), 0, box)
    results = noisy.call_many([ASKED] * 3000)
    errors = [r.error for r in results]
    other = sum(r.ok and r.text != "Paris" for r in results)
    for kind, n, share in (
        ("fails", errors.count("raised"), 0.2),
        ("late", errors.count("timeout"), 0.1),
        ("reworded", other, 0.3),
    ):
        assert noisy.met[kind] == n
        assert abs(n / 3000 - share) < 0.04  # five standard deviations and more
    assert sum(noisy.met.values()) == 3000


def test_fates_follow_from_the_seed(box):
    def texts(seed):
        return [r.text for r in NoisySandbox(Noise(fails=0.5), seed, box).call_many([ASKED] * 40)]

    assert texts(1) == texts(1) != texts(2)


def test_without_noise_a_noisy_sandbox_is_the_sandbox(box):
    calls = [ASKED, ASKED._replace(arguments={"country": "Atlantis"}), Call("none", {}, None)]
    assert NoisySandbox(Noise(), 0, box).call_many(calls) == box.call_many(calls)


def test_what_fails_by_itself_says_why(box):
    unknown = [ASKED._replace(arguments={"country": "Atlantis"}), Call("none", {}, None)]
    noisy = NoisySandbox(Noise(reworded=1.0), 0, box)
    assert noisy.call_many(unknown * 5) == box.call_many(unknown * 5)
    assert noisy.met == {"failed by itself": 10}


@pytest.mark.parametrize("golden", ["Paris", "547030", "New York", "1969-07-20", "12.5 km"])
@pytest.mark.parametrize("seed", range(6))
def test_a_reworded_answer_is_still_the_answer(golden, seed):
    text = reword(golden, random.Random(seed))
    assert text != golden
    assert match_paper(text, golden) and match_strict(text, golden)


def test_json_stays_json(box):
    assert reword('{"city": "Paris"}', random.Random(0)) == '{"result": {"city": "Paris"}}'
    assert reword("[1, 2]", random.Random(0)) == '{"result": [1, 2]}'


@pytest.mark.parametrize("noise", [Noise(fails=-0.1), Noise(late=0.7, reworded=0.7)])
def test_shares_that_make_no_sense_are_refused(noise):
    with pytest.raises(UserError, match="noise"):
        NoisySandbox(noise)


def test_equal_turns_have_fates_of_their_own(box):
    noisy = NoisySandbox(Noise(fails=0.5), 0, box)
    rewards = [s.reward for s in score_batch([(RIGHT, ENV)] * 60, match="strict", sandbox=noisy)]
    assert set(rewards) == {0.0, 1.0}
    assert sum(noisy.met.values()) == 60  # each of them ran
    quiet = [s.reward for s in score_batch([(RIGHT, ENV)] * 60, match="strict", sandbox=box)]
    assert set(quiet) == {1.0}


def test_a_time_out_pays_under_the_papers_rule_alone(box):
    late = NoisySandbox(Noise(late=1.0), 0, box)
    paid = {m: score_batch([(RIGHT, ENV)], match=m, sandbox=late)[0] for m in ("paper", "strict")}
    assert paid["paper"].reward == 1.0 and paid["strict"].reward == 0.0
    assert paid["strict"].calls[0].result.endswith("timed out after 2.000000 seconds.\n")


def test_rollouts_meet_noise(box):
    environments = [demo_environment(d) for d in (".fr", ".pl", ".pe", ".ke")]
    noisy = NoisySandbox(Noise(fails=1.0), 0, box)
    lost = collect(OraclePolicy(environments), environments, match="strict", sandbox=noisy)
    assert [t.n_solved for t in lost] == [0] * 4 and all(t.n_calls == 2 for t in lost)


def test_a_task_is_refused_and_a_policy_that_writes_like_one_is_not(box):
    task, noisy = make_task(0), NoisySandbox(Noise(fails=0.1), 0, box)
    called = call_text([ToolCall(name=task.tools[0].name, arguments={})])
    with pytest.raises(UserError, match="tasks have none"):
        score_batch([(called, task)], sandbox=noisy)
    odd = call_text(
        [ToolCall(name="run", arguments={"given": "def run(given, runs):", "runs": []})]
    )
    assert score_batch([(odd, ENV)], match="strict", sandbox=noisy)[0].reward == 0.0


def test_kept_rollouts_note_the_noise_and_no_other_noise_goes_on_in_them(box, tmp_path):
    environments, out = [demo_environment(d) for d in (".fr", ".pl")], tmp_path / "t.jsonl"
    policy = OraclePolicy(environments)
    some = NoisySandbox(Noise(fails=0.5), 1, box)
    first = collect(policy, environments, sandbox=some, out=out)
    assert collect(policy, environments, sandbox=some, out=out) == first
    for other in (box, NoisySandbox(Noise(fails=0.5), 2, box), NoisySandbox(Noise(), 1, box)):
        with pytest.raises(UserError, match="noise"):
            collect(policy, environments, sandbox=other, out=out)
    scored = evaluate(policy, environments, sandbox=some)
    assert scored.settings["noise"] == dict(fails=0.5, late=0.0, reworded=0.0, seed=1)


def test_one_share_is_failures_and_other_words_in_halves(box):
    mixed = noisy(0.6, 3, box)
    assert mixed.noise == Noise(fails=0.3, reworded=0.3) and mixed.settings["seed"] == 3
    assert noisy(0, 3, box) is box and noisy(0) is None
    with pytest.raises(UserError, match="noise: expected shares of at most 1"):
        noisy(1.5)
    twice = noisy(1, 0, NoisySandbox(Noise(reworded=1.0), 0, box))  # noise around noise
    assert {r.error for r in twice.call_many([ASKED] * 20)} == {None, "raised"}


@pytest.mark.parametrize("credit", ["step", "episode"])
def test_a_training_meets_the_noise_that_it_asks_for(credit, box, tmp_path, monkeypatch):
    config = make_config(out=str(tmp_path), credit=credit, noise=0.5, seed=7)
    monkeypatch.setattr(training, f"{credit}_trainer", lambda *given: given[-1])
    sandbox = training.rollout_trainer(config, tmp_path, None, None, [ENV], box)
    assert sandbox.settings == dict(fails=0.25, late=0.0, reworded=0.25, seed=7)
    assert sandbox.box is box
    quiet = config.model_copy(update=dict(noise=0))
    assert training.rollout_trainer(quiet, tmp_path, None, None, [ENV], box) is box
