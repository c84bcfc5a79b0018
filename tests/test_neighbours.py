"Rewards from elsewhere: thoughts that count where the outcome is right, and answers that count if a result said them."

from types import SimpleNamespace

import pytest

from toolrl_lit.collect import OraclePolicy, call_text, collect
from toolrl_lit.engine.config import make_config, rule_reward
from toolrl_lit.engine.demo import demo_environment
from toolrl_lit.engine.neighbours import (
    THOUGHT,
    announced,
    grounded,
    memory_share,
    posterior,
    thought_of,
    thoughtful,
    was_said,
)
from toolrl_lit.engine.parsers import parse_qwen
from toolrl_lit.reward import score_batch
from toolrl_lit.schema import ToolCall
from toolrl_lit.train import StepRewards

ENV = demo_environment()


def call(domain):
    return call_text([ToolCall(name="country_of", arguments={"domain": domain})])


def score(text, where=ENV):
    return score_batch([(text, where)], match="strict")[0]


@pytest.mark.parametrize(
    "text, share, outcome",
    [
        (call(".fr"), 0.0, True),
        (f"<think>Look up .fr</think>{call('.fr')}", 1.0, True),
        (f"<think>Look up .pe</think>{call('.fr')}", 0.0, True),
        (f"<think>Look up .pe</think>{call('.pe')}", 1.0, False),
        (f"<think>.fr or .pe</think>{call('.fr')}{call('.pe')}", 1.0, False),
        (f"<think>Look up .fr</think>{call('.fr')}{call('.pe')}", 0.5, False),
        (f"Look up .fr. {call('.fr')}", 0.0, True),
        (f"<think>Look up .fr{call('.fr')}", 0.0, True),
        ("<think>Look up .fr</think>", 0.0, False),
        ("", 0.0, False),
    ],
)
def test_a_thought_counts_as_far_as_it_announces_calls_that_are_right(text, share, outcome):
    found = score(text)
    assert announced(found) == share
    assert thoughtful(found) == found.reward + THOUGHT * share
    assert posterior(found) == found.reward + THOUGHT * share * outcome


def test_a_thought_is_what_stands_before_its_end():
    assert thought_of("<think>so</think> and so on") == "so"
    assert thought_of("<think>so") == thought_of("so") == ""


def test_an_answer_counts_if_a_result_said_it():
    [t] = collect(OraclePolicy([ENV]), [ENV], match="strict")
    start, after_one, after_both = t.step_records(ENV)
    for step, paper, worth in ((start, 1 / 3, 0), (after_one, 1 / 2, 0), (after_both, 1, 1)):
        found = score("Paris", step)
        assert found.case == "answer" and found.reward == pytest.approx(paper)
        assert grounded(found, step) == worth
    for other in (call(".fr"), "I do not know.", "", "<tool_call>"):
        assert grounded(score(other, start), start) == score(other, start).reward


def test_a_list_is_said_part_by_part_and_an_error_says_nothing():
    told = [{"role": "tool", "content": "Paris"}, {"role": "tool", "content": "Lima"}]
    assert was_said(told, "Paris, Lima") and not was_said(told[:1], "Paris, Lima")
    assert not was_said([{"role": "user", "content": "Paris"}], "Paris")
    error = "an error occured when call capital_of: Paris"
    assert not was_said([{"role": "tool", "content": error}], "Paris")


def test_the_share_from_memory_counts_right_answers_alone():
    class Says:
        parser = "qwen"

        def __init__(self, text):
            self.text = text

        def generate(self, prompts, **how):
            return [self.text] * len(prompts)

    looked, recalled, wrong = (
        collect(p, [ENV], match="strict") for p in (OraclePolicy([ENV]), Says("Paris"), Says("Oz"))
    )
    assert memory_share(looked + recalled, [ENV]) == 0.5
    assert memory_share(looked + wrong, [ENV]) == memory_share(wrong, [ENV]) == 0.0


def test_a_rule_may_ask_for_the_step():
    policy = SimpleNamespace(decode=lambda text: text, parser=parse_qwen)
    rewards = StepRewards(
        make_config(reward="toolrl_lit.engine.neighbours:grounded", match="strict"), policy
    )
    rewards.steps = [ENV.start()]
    assert rewards([None] * 2, [None] * 2, ["Paris", call(".fr")], [0, 0]) == [0.0, 1.0]


def test_a_parameter_with_a_default_and_a_function_in_c_are_given_the_score_alone():
    assert rule_reward(lambda score, weight=2: weight * score, 3, "step") == 6.0
    assert rule_reward(lambda *given: len(given), 3, "step") == 1.0
    assert rule_reward(float, 3, "step") == 3.0
