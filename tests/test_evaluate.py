"Evaluation: the metrics by definition, intervals that mean what they say, and a report that stands alone."

import base64
import gzip
import html
import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.display import HTML
from plotly.offline import get_plotlyjs

from toolrl_lit.collect import OraclePolicy, collect
from toolrl_lit.engine.curves import seed_interval
from toolrl_lit.evaluate import (
    CUTS,
    METRICS,
    RESAMPLES,
    Evaluation,
    Score,
    bootstrap,
    distinct,
    ending,
    evaluate,
    figure,
    most_different,
    paired_difference,
    report_sections,
    results_table,
    score,
    score_trajectories,
    trajectory_html,
    truncated,
    write_report,
)
from toolrl_lit.reward import reward_table
from toolrl_lit.schema import (
    Environment,
    Scenario,
    SubQuestion,
    Tool,
    ToolCall,
    ToolDoc,
    Trajectory,
    Turn,
    UserError,
    read_jsonl,
)

PLACES = {"Austria": "Vienna", "France": "Paris", "Egypt": "Cairo", "Iraq": "Baghdad"}


def environment(i, countries, kind):
    code = f"def capital_of(country):\n    return {PLACES!r}.get(country, 'unknown country')\n"
    doc = ToolDoc(
        name="capital_of",
        description="Capital of a country.",
        parameters={
            "type": "object",
            "properties": {"country": {"type": "string"}},
            "required": ["country"],
        },
    )
    steps = [
        SubQuestion(
            id=f"q{k}",
            question=f"Capital of {c}?",
            answer=PLACES[c],
            tool="capital_of",
            arguments={"country": c},
        )
        for k, c in enumerate(countries)
    ]
    question = f"Question {i}: capitals of {' and '.join(countries)}?"
    return Environment(
        tools=[Tool(doc=doc, code=code)],
        scenario=Scenario(
            id=f"e{i}",
            kind=kind,
            question=question,
            answer=steps[-1].answer,
            sub_questions=steps,
            split="test",
        ),
    )


ENVS = [
    environment(0, ["Austria"], "single-hop"),
    environment(1, ["France"], "single-hop"),
    environment(2, ["Egypt", "Iraq"], "parallel single-hop"),
]


class Says:
    "A policy that writes the same text whatever it reads."

    parser = "qwen"

    def __init__(self, text):
        self.text = text

    def generate(self, prompts, *, temperature, max_new_tokens, seed):
        assert temperature == 0  # evaluation is greedy
        return [self.text] * len(prompts)


def scores(values, kind="single-hop"):
    "An evaluation whose Solve-R are the given shares of ten sub-questions."
    return Evaluation(
        rows=[
            Score(environment=f"e{i}", kind=kind, calls=10, solved=v, sub_questions=10, turns=1)
            for i, v in enumerate(values)
        ]
    )


counts = st.builds(
    lambda solved, open_, wasted: (solved + wasted, solved, solved + open_),
    *[st.integers(0, 8)] * 3,
)


@given(counts.filter(lambda c: c[2] > 0))
def test_metrics_by_definition(c):
    calls, solved, wanted = c
    s = Score(environment="e", calls=calls, solved=solved, sub_questions=wanted, turns=1)
    assert s.solve_p == (solved / calls if calls else 1)
    assert s.solve_r == solved / wanted
    assert s.solve_f1 == 2 * solved / (calls + wanted)
    assert 0 <= s.solve_f1 <= 1
    if solved:
        assert s.solve_f1 == pytest.approx(2 * s.solve_p * s.solve_r / (s.solve_p + s.solve_r))


@given(t=st.integers(0, 12), empty=st.booleans(), markup=st.booleans(), answered=st.booleans())
def test_the_ending_of_turns_of_earlier_versions_is_read_off_the_reward(t, empty, markup, answered):
    reward, case = reward_table(0, 0, t, empty, markup, answered, finished=t == 0)
    assert ending(Turn(text="x", reward=reward), t) == case


def test_score_of_a_rollout():
    call = ToolCall(name="capital_of", arguments={"country": "Egypt"})
    t = Trajectory(
        environment="e2",
        kind="parallel single-hop",
        sub_questions=2,
        messages=[],
        stop="empty",
        turns=[
            Turn(text="<tool_call>{", reward=-0.3),
            Turn(
                text="",
                calls=[call, call],
                results=["Cairo", "Cairo"],
                solved=[("capital_of", "Cairo"), None],
                reward=2 / 3,
            ),
            Turn(text="", reward=-0.5),
        ],
    )
    s = score(t)
    assert (s.calls, s.solved, s.turns, s.malformed, s.empty, s.answered) == (2, 1, 3, 1, 1, False)
    assert (s.malformed_share, s.empty_share, s.stop) == (1 / 3, 1 / 3, "empty")


def test_a_rollout_without_turns():
    s = score(Trajectory(environment="e", sub_questions=2, messages=[], turns=[], stop="too_long"))
    assert (s.solve_p, s.solve_r, s.solve_f1, s.answered, s.empty_share) == (1, 0, 0, False, 0)


def test_the_answer_counts_only_as_the_last_word():
    said = Turn(text="Vienna", reward=0.5)  # one sub-question left: 1 / (1 + 1)
    t = Trajectory(environment="e0", sub_questions=1, messages=[], turns=[said])
    assert score(t).answered
    assert not score(t.model_copy(update={"turns": [said, Turn(text="no", reward=0.0)]})).answered


def test_oracle_scores_one_everywhere():
    e = evaluate(OraclePolicy(ENVS), ENVS, name="oracle")
    assert e.items()[["solve_p", "solve_r", "solve_f1", "answered"]].eq(1).all(axis=None)
    assert e.settings["temperature"] == 0 and e.settings["max_turns"] == 20 and e.name == "oracle"
    assert [r.environment for r in e.rows] == ["e0", "e1", "e2"]


def test_policies_that_call_nothing():
    silent, wrong = evaluate(Says(""), ENVS), evaluate(Says("<tool_call>{"), ENVS)
    assert (
        silent.table()["empty_share"].eq(1).all() and wrong.table()["malformed_share"].eq(1).all()
    )
    for e in (silent, wrong):
        assert e.table()["solve_p"].eq(1).all() and e.table()["solve_f1"].eq(0).all()
    guess = evaluate(Says("It is Vienna."), ENVS)
    assert guess.table()["answered"].tolist() == [True, False, False]


def test_a_policy_that_never_stops():
    call = '<tool_call>{"name": "capital_of", "arguments": {"country": "Austria"}}</tool_call>'
    e = evaluate(Says(call), ENVS[:1], max_turns=4)
    assert (e.rows[0].calls, e.rows[0].solved, e.rows[0].turns, e.rows[0].stop) == (
        4,
        1,
        4,
        "max_turns",
    )
    assert e.rows[0].solve_f1 == 2 / 5


def test_evaluation_keeps_its_trajectories_and_agrees_with_them(tmp_path):
    e = evaluate(OraclePolicy(ENVS), ENVS, out=tmp_path / "rollouts.jsonl")
    again = score_trajectories(read_jsonl(tmp_path / "rollouts.jsonl", Trajectory))
    assert again.rows == e.rows


def test_nothing_to_score():
    with pytest.raises(UserError, match="at least one trajectory"):
        score_trajectories([])
    with pytest.raises(UserError, match="evaluate: expected at least one environment"):
        evaluate(Says("x"), [])
    with pytest.raises(UserError, match="at least one item"):
        bootstrap(np.array([]))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_interval_lies_around_the_mean_within_the_values(values, seed):
    low, high = bootstrap(np.array(values), seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9 or len(set(values)) > 1


def test_bootstrap_is_seeded_exact_and_in_pieces():
    values = np.random.default_rng(0).random(700)  # 7 million draws: four pieces
    assert bootstrap(values, 3) == bootstrap(values, 3) != bootstrap(values, 4)
    drawn = np.random.default_rng(3)  # the same draws in the open, one by one
    means = [values[drawn.integers(0, 700, 700)].mean() for _ in range(RESAMPLES)]
    assert bootstrap(values, 3) == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_columns_share_the_resamples():
    values = np.random.default_rng(0).random((40, 3))
    low, high = bootstrap(values, 1)
    for i in range(3):
        assert (low[i], high[i]) == pytest.approx(bootstrap(values[:, i], 1))


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = sum(
        low <= 0.3 <= high for low, high in (bootstrap(rng.random(60) < 0.3, s) for s in range(60))
    )
    assert 50 <= hits <= 60  # 95 % of 60 is 57


def test_summary_has_mean_n_and_interval():
    e = evaluate(Says("It is Vienna."), ENVS)
    s = e.summary()
    assert list(s.columns) == ["group", "metric", "n", "mean", "low", "high"] and list(
        s["metric"]
    ) == list(METRICS)
    assert (s["n"] == 3).all() and (s["low"] <= s["mean"]).all() and (s["mean"] <= s["high"]).all()
    by = e.summary(by="kind", metrics=["answered"])
    assert by[["kind", "n", "mean"]].values.tolist() == [
        ["single-hop", 2, 0.5],
        ["parallel single-hop", 1, 0.0],
    ]
    with pytest.raises(UserError, match="'kind' or None"):
        e.summary(by="colour")
    with pytest.raises(UserError, match="solve_f2"):
        e.summary(metrics=["solve_f2"])


def test_rollouts_of_one_question_are_averaged_first():
    rows = [
        Score(
            environment="a",
            sample=k,
            kind="single-hop",
            calls=1,
            solved=k,
            sub_questions=1,
            turns=1,
        )
        for k in (0, 1)
    ]
    e = Evaluation(
        rows=rows
        + [Score(environment="b", kind="single-hop", calls=1, solved=1, sub_questions=1, turns=1)]
    )
    s = e.summary(metrics=["solve_r"]).iloc[0]
    assert (s["n"], s["mean"]) == (2, 0.75)


def test_compare_is_paired():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 9, 80)
    result = paired_difference(scores(before), scores(before + 1), metrics=["solve_r"]).iloc[0]
    assert (
        result["difference"] == pytest.approx(0.1)
        and result["low"] == pytest.approx(0.1) == result["high"]
    )
    assert (result["before"], result["after"]) == pytest.approx(
        (before.mean() / 10, before.mean() / 10 + 0.1)
    )


def test_compare_does_not_depend_on_the_order_of_rows():
    a, b = scores([1, 5, 9, 3]), scores([2, 5, 10, 9])
    shuffled = b.model_copy(update={"rows": b.rows[::-1]})
    pd.testing.assert_frame_equal(
        paired_difference(a, b, by="kind"), paired_difference(a, shuffled, by="kind")
    )
    assert (
        paired_difference(a, b, metrics=["solve_r"])["difference"].item()
        == -paired_difference(b, a, metrics=["solve_r"])["difference"].item()
    )


def test_compare_by_kind_keeps_the_groups_apart():
    chain = scores([5]).rows[0].model_copy(update={"environment": "m", "kind": "multi-hop"})
    a = Evaluation(rows=scores([1, 1]).rows + [chain])
    b = Evaluation(
        rows=[
            r.model_copy(update={"solved": r.solved + (3 if r.kind == "multi-hop" else 1)})
            for r in a.rows
        ]
    )
    result = paired_difference(a, b, by="kind", metrics=["solve_r"])
    assert result["kind"].tolist() == ["single-hop", "multi-hop"] and result["n"].tolist() == [2, 1]
    assert result["difference"].tolist() == pytest.approx([0.1, 0.3]) and result[
        "before"
    ].tolist() == pytest.approx([0.1, 0.5])


def test_compare_refuses_different_items():
    a, b = scores([1, 2, 3]), scores([1, 2])
    with pytest.raises(UserError, match="only in 'policy': e2; only in 'policy': none"):
        paired_difference(a, b)
    with pytest.raises(UserError, match="same environments"):
        paired_difference(b, a)
    other = Evaluation(rows=[r.model_copy(update={"sub_questions": 11}) for r in a.rows])
    with pytest.raises(UserError, match="'e0' has 10 sub-questions.*11"):
        paired_difference(a, other)


def test_save_and_load(tmp_path):
    e = evaluate(Says("It is Vienna."), ENVS, name="guess")
    assert Evaluation.load(e.save(tmp_path / "e.json")) == e
    with pytest.raises(UserError, match="nowhere.json: cannot be read"):
        Evaluation.load(tmp_path / "nowhere.json")
    (tmp_path / "bad.json").write_text('{"rows": [{"environment": 3}]}')
    with pytest.raises(UserError, match="bad.json: expected an Evaluation"):
        Evaluation.load(tmp_path / "bad.json")


def test_figure_and_table_show_the_numbers():
    e = [
        evaluate(OraclePolicy(ENVS), ENVS, name="oracle"),
        evaluate(Says("It is Vienna."), ENVS, name="guess"),
    ]
    fig = figure(e, "answered")
    assert (
        [t.name for t in fig.data] == ["oracle", "guess"]
        and fig.layout.xaxis.title.text
        and fig.layout.yaxis.title.text
    )
    assert list(fig.data[1].x) == ["single-hop", "parallel single-hop", "all"]
    assert list(fig.data[1].y) == pytest.approx([0.5, 0, 1 / 3])
    assert len({t.marker.color for t in fig.data}) == 2
    table = results_table(e)
    assert (
        table.loc["oracle", "Solve-F1"] == "1.000 [1.000, 1.000]" and table.loc["guess", "n"] == "3"
    )


def test_trajectory_shows_every_turn_and_escapes_everything():
    evil = "<img src=x onerror=alert(1)>"
    env = ENVS[2].model_copy(deep=True)
    env.scenario.question = evil
    call = ToolCall(name="capital_of", arguments={"country": evil})
    t = Trajectory(
        environment="e2",
        sub_questions=2,
        messages=[],
        turns=[
            Turn(
                text=f"{evil}<tool_call>...",
                calls=[call],
                results=[evil],
                solved=[("capital_of", evil)],
                reward=1.0,
            ),
            Turn(text=evil, reward=-0.3),
            Turn(text="", reward=-0.5),
        ],
    )
    page = trajectory_html(t, env).data
    assert evil not in page and page.count(html.escape(evil)) >= 5
    assert [float(r) for r in re.findall(r"reward ([+-][\d.]+)", page)] == [1.0, -0.3, -0.5]
    assert "nothing said" in page and "Cairo" in page and "solved 1 of 2 with 1 calls" in page
    with pytest.raises(UserError, match="'e2', not 'e0'"):
        trajectory_html(t, ENVS[0])


def test_trajectory_of_a_real_rollout():
    (t,) = collect(OraclePolicy(ENVS), ENVS[2:], temperature=0.0)
    page = trajectory_html(t, ENVS[2]).data
    assert page.count("class='hit'") == 2 and page.count("Turn ") == 2 and "✓ Baghdad" in page


@pytest.fixture
def report(tmp_path):
    fig = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="</script><script>alert(1)</script>"))
    table = pd.DataFrame({"policy": ["a<b>", None], "n": [1, 2], "score": [0.12345, float("nan")]})
    sections = [
        (
            "Text & <tags>",
            [
                "A *word* and `code`.\n\n<script>alert(2)</script>\n\n| a | b |\n|---|---|\n| 1 | 2 |"
            ],
        ),
        ("Numbers", [table, table.set_index("policy"), fig, fig]),
        ("Raw", [HTML("<p id='raw'>kept</p>")]),
        ("Parameters", [{"lr": 1e-6, "kinds": ["f1"], "note": "<i>"}]),
    ]
    metrics = {"f1": float("nan"), "n": np.int64(3), "x": [np.float64(0.5)]}
    path = write_report(tmp_path / "out" / "report.html", "T <1>", sections, metrics)
    return path, path.read_text("utf-8")


def test_report_stands_alone(report):
    path, page = report
    bare = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", bare) and "@import" not in page
    (packed,) = re.findall(r"id='plotly'>([^<]*)<", page)
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    data = re.findall(r"<script type='application/json'>([^<]*)</script>", page)
    assert [json.loads(x)["data"][0]["y"] for x in data] == [[3, 4], [3, 4]]
    assert path.stat().st_size < 2_200_000
    assert {p.name for p in path.parent.iterdir()} == {"report.html", "metrics.json"}
    for i in range(1, 5):
        assert f"href='#s{i}'" in page and f"id='s{i}'" in page


def test_report_escapes_what_it_shows(report):
    _, page = report
    assert "alert(2)</script>" not in page and "</script><script>alert(1)" not in page
    for text in ("T &lt;1&gt;", "Text &amp; &lt;tags&gt;", "a&lt;b&gt;", "&lt;i&gt;"):
        assert text in page
    assert (
        "<em>word</em>" in page and "<code>code</code>" in page and "<p id='raw'>kept</p>" in page
    )
    assert (
        "0.123" in page
        and ">nan<" not in page
        and ">None<" not in page
        and "<th class='num'>n</th>" in page
    )


def test_metrics_are_plain_json(report):
    path, _ = report
    assert json.loads((path.parent / "metrics.json").read_text()) == {
        "f1": None,
        "n": 3,
        "x": [0.5],
    }


def test_report_without_figures_is_small(tmp_path):
    assert write_report(tmp_path / "r.html", "T", [("A", ["text"])]).stat().st_size < 10_000


def test_report_refuses_what_it_cannot_show(tmp_path):
    with pytest.raises(UserError, match="got int"):
        write_report(tmp_path / "r.html", "T", [("A", [3])])
    with pytest.raises(UserError, match="list of things"):
        write_report(tmp_path / "r.html", "T", [("A", "text")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file" / "r.html", "T", [])


@pytest.mark.parametrize(
    "case, counted",
    [
        ("empty", (False, 0, 1)),
        ("malformed", (False, 1, 0)),
        ("answer", (True, 0, 0)),
        ("done", (False, 0, 0)),
        ("other", (False, 0, 0)),
    ],
)
def test_a_turn_counts_by_its_case_whatever_its_reward(case, counted):
    for reward in (-0.5, -0.3, 0.0, 0.5, 1.0, 0.123):
        s = score(
            Trajectory(
                environment="e",
                sub_questions=1,
                messages=[],
                turns=[Turn(text="x", reward=reward, case=case)],
            )
        )
        assert (s.answered, s.malformed, s.empty) == counted


@pytest.mark.parametrize("kind", ["f1", "p", "r", "pr"])
def test_cases_are_those_that_the_collector_met_whatever_the_kind_of_reward(kind):
    for text, counted in (
        ("", (False, 0, 1)),
        ("<tool_call>{", (False, 1, 0)),
        ("It is Vienna.", (True, 0, 0)),
        ("Hm.", (False, 0, 0)),
    ):
        s = score(collect(Says(text), ENVS[:1], temperature=0, kind=kind)[0])
        assert (s.answered, s.malformed, s.empty) == counted


def test_environments_with_one_id_are_refused():
    twin = ENVS[0].model_copy(deep=True)
    twin.scenario.question = "Another question?"
    with pytest.raises(UserError, match="evaluate: expected every id once, 'e0' appears 2 times"):
        evaluate(Says("x"), [*ENVS, twin])


def test_rollouts_of_one_environment_are_averaged_before_environments_are():
    row = lambda environment, sample, solved: Score(
        environment=environment, sample=sample, calls=10, solved=solved, sub_questions=10, turns=1
    )
    e = Evaluation(
        rows=[*(row("a", k, 10) for k in range(9)), row("b", 0, 0)]
    )  # nine rollouts of one, one of the other
    s = e.summary(metrics=["solve_r"])
    assert (s["n"][0], s["mean"][0]) == (2, 0.5) and e.items()["solve_r"].to_dict() == {
        "a": 1.0,
        "b": 0.0,
    }
    mixed = Evaluation(rows=[row("a", 0, 10), row("a", 1, 0), row("b", 0, 10)])
    assert mixed.items()["solve_r"].to_dict() == {"a": 0.5, "b": 1.0}
    difference = paired_difference(e, mixed, metrics=["solve_r"])
    assert (
        difference["n"][0],
        difference["before"][0],
        difference["after"][0],
        difference["difference"][0],
    ) == (2, 0.5, 0.75, 0.25)


def test_an_evaluation_with_a_byte_order_mark_is_read_and_other_files_are_named(tmp_path):
    path = scores([1, 2]).save(tmp_path / "e.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(Evaluation.load(path).rows) == 2
    path.write_bytes(path.read_text("utf-8-sig").encode("utf-16"))
    with pytest.raises(UserError, match="e.json: is UTF-16 text"):
        Evaluation.load(path)


def test_error_bars_of_a_figure_end_where_the_interval_does():
    e = scores([0, 3, 5, 10, 7])
    s, bar = e.summary(metrics=["solve_r"]).iloc[0], figure([e], "solve_r").data[0]
    assert bar.y[-1] + bar.error_y.array[-1] == pytest.approx(s["high"]) and bar.y[
        -1
    ] - bar.error_y.arrayminus[-1] == pytest.approx(s["low"])


def test_a_turn_of_an_earlier_version_counts_by_what_was_left_before_it():
    call = ToolCall(name="capital_of", arguments={"country": "Egypt"})
    for solved, answered in (
        (("capital_of", "Cairo"), True),
        (None, False),
    ):  # 1 / (1 + 1) with one left, and with two left nothing is worth 1/2
        t = Trajectory(
            environment="e",
            sub_questions=2,
            messages=[],
            turns=[
                Turn(text="", calls=[call], results=["Cairo"], solved=[solved], reward=1.0),
                Turn(text="It is so.", reward=0.5),
            ],
        )
        assert score(t).answered == answered


@pytest.mark.parametrize("reward, tone", [(1.0, "good"), (0.0, "flat"), (-0.3, "bad")])
def test_a_reward_of_nothing_is_neither_good_nor_bad(reward, tone):
    t = Trajectory(
        environment="e0", sub_questions=1, messages=[], turns=[Turn(text="Hm.", reward=reward)]
    )
    assert f"reward {tone}'" in trajectory_html(t, ENVS[0]).data


def named(name, model=""):
    return scores([1, 2]).model_copy(update={"name": name, "model": model})


@pytest.mark.parametrize(
    "evaluations, files, wanted",
    [
        ([named("a"), named("b")], [], ["a", "b"]),
        ([named("policy", "x/one"), named("policy", "x/two")], [], ["one", "two"]),
        ([named("a", "m"), named("a", "m")], ["d/mon.json", "d/tue.json"], ["mon", "tue"]),
        ([named("policy", "m"), named("policy", "m")], [], ["policy 1", "policy 2"]),
        ([named("policy", "smollm2")], [], ["smollm2"]),
        ([named("policy")], [], ["policy"]),
    ],
)
def test_evaluations_get_names_that_tell_them_apart(evaluations, files, wanted):
    assert [e.name for e in distinct(evaluations, files)] == wanted


def test_an_evaluation_keeps_model_and_date_and_reads_files_without_them(tmp_path):
    e = evaluate(OraclePolicy(ENVS), ENVS)
    assert e.model == "OraclePolicy" and re.fullmatch(r"\d{4}-\d\d-\d\d", e.date)
    older = {k: v for k, v in json.loads(e.model_dump_json()).items() if k not in ("model", "date")}
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert Evaluation.load(tmp_path / "older.json").rows == e.rows


def test_an_overview_has_a_row_for_each_scenario_and_one_for_all():
    shown = evaluate(Says("It is Vienna."), ENVS).overview()
    assert shown.index.tolist() == ["single-hop", "parallel single-hop", "all"]
    assert shown["n"].tolist() == ["2", "1", "3"] and shown.loc["all", "Answered"].startswith(
        "0.33"
    )


def test_names_that_changed_are_still_found():
    import toolrl_lit.build
    import toolrl_lit.doors.serve
    import toolrl_lit.evaluate

    assert toolrl_lit.evaluate.compare is paired_difference
    assert toolrl_lit.build.attempt is toolrl_lit.build.run_stages
    assert toolrl_lit.doors.serve.Session is toolrl_lit.doors.serve.ClientSession
    with pytest.raises(AttributeError, match="no attribute 'compared'"):
        toolrl_lit.evaluate.compared  # noqa: B018


def test_each_scenario_and_all_together_come_from_one_table():
    e = evaluate(Says("It is Vienna."), ENVS)
    table = e.by_scenario(["solve_r"]).set_index("kind")
    assert table.index.tolist() == ["single-hop", "parallel single-hop", "all"]
    assert table.loc["all", "mean"] == e.summary(metrics=["solve_r"])["mean"].item()
    assert (
        e.overview(["solve_r"]).loc["all", "Solve-R"].startswith(f"{table.loc['all', 'mean']:.3f}")
    )


def test_small_numbers_keep_their_digits(tmp_path):
    table = pd.DataFrame({"change": [0.00042, 0.0, 0.5], "share": [0.25, 0.5, 1.0]})
    page = write_report(tmp_path / "r.html", "T", [("A", [table])]).read_text()
    for text in ("4.20e-04", ">0<", "5.00e-01", "0.250"):
        assert text in page
    assert "0.000" not in page


def test_a_report_of_two_shows_scores_differences_rollouts_and_settings(tmp_path):
    policies = [Says("It is Vienna."), OraclePolicy(ENVS)]
    files = [tmp_path / f"{k}.jsonl" for k in range(2)]
    known = [evaluate(p, ENVS, out=f, max_turns=4) for p, f in zip(policies, files)]
    rollouts = [read_jsonl(f, Trajectory) for f in files]
    sections = report_sections(known, ENVS, rollouts)
    assert [heading for heading, _ in sections] == [
        "Scores",
        "OraclePolicy against Says",
        "Where Says and OraclePolicy differ most",
        "Settings",
    ]
    page = write_report(tmp_path / "r.html", "T", sections).read_text()
    assert "policy against policy" not in page and page.count("<h5>Says</h5>") == 3
    assert "Solve-R went from 0.000 to 1.000" in page and known[0].date in page
    settings = sections[-1][1][0]
    assert settings.loc["max_turns"].tolist() == ["4", "4"]
    assert [heading for heading, _ in report_sections(known[:1])] == ["Scores", "Settings"]


def test_rollouts_that_fared_alike_are_not_shown():
    (same,) = collect(OraclePolicy(ENVS), ENVS[:1], temperature=0)
    assert most_different([same], [same]) == []
    silent = same.model_copy(update={"turns": []})
    assert most_different([same], [silent]) == [(same, silent)]


def test_a_report_is_readable_by_night_and_its_tables_say_that_they_go_on(report):
    _, page = report
    assert "prefers-color-scheme: dark" in page and "overflow-x: auto" in page
    assert page.count("class='wide' tabindex='0'") == 4


# -- controls in which nothing is learnt


def turn(*calls, solved=(), text=""):
    "A turn with calls by one letter each, of which those named solve something."
    return Turn(
        text=text,
        calls=[ToolCall(name=c, arguments={"a": 1, "b": 2}) for c in calls],
        results=["x"] * len(calls),
        solved=[(c, "x") if c in solved else None for c in calls],
        reward=0.0,
        case="calls" if calls else "answer",
    )


@pytest.mark.parametrize(
    "turns, kept",
    [
        ([turn("a", solved="a"), turn("b", solved="b"), turn("a"), turn(text="x")], (1, 2, 2)),
        ([turn("a", solved="a"), turn("a", "b", solved="b"), turn("c")], (1, 3, 2)),
        ([turn("a", "a"), turn("a"), turn("b", solved="b")], (1, 1, 1)),
        ([turn("a"), turn(text="I do not know."), turn("a")], (1, 2, 2)),
        ([turn("a", "b", solved="ab"), turn("c")], (1, 2, 1)),
        ([turn(text="Paris")], (1, 1, 1)),
        ([], (0, 0, 0)),
    ],
)
def test_a_rule_ends_a_rollout_where_it_says(turns, kept):
    whole = Trajectory(environment="e0", messages=[], turns=turns, sub_questions=2)
    assert tuple(truncated([whole], rule).rows[0].turns for rule in CUTS) == kept
    for rule, n in zip(CUTS, kept):
        (row,) = truncated([whole], rule, "warm").rows
        assert row.calls == sum(len(t.calls) for t in turns[:n])
        assert row.solved == sum(s is not None for t in turns[:n] for s in t.solved)
    assert len(whole.turns) == len(turns)  # the rollout itself stays as it was


def test_the_same_arguments_in_another_order_are_a_repeated_call():
    first, again = turn("a"), turn("a")
    again.calls[0].arguments = {"b": 2, "a": 1}
    rollout = Trajectory(environment="e0", messages=[], turns=[first, again], sub_questions=1)
    assert truncated([rollout], "no repeats").rows[0].turns == 1
    again.calls[0].arguments = {"b": 1, "a": 1}
    assert truncated([rollout], "no repeats").rows[0].turns == 2


def test_truncation_controls_are_compared_with_a_policy_and_an_unknown_rule_is_refused():
    kept = collect(Says("no call"), ENVS, temperature=0)
    assert truncated(kept, "one turn", "warm").name == "warm, one turn"
    assert (
        paired_difference(truncated(kept, "one turn"), score_trajectories(kept))
        .difference.eq(0)
        .all()
    )
    with pytest.raises(UserError, match="rule: expected one of 'one turn', .*got 'two turns'"):
        truncated(kept, "two turns")


def test_the_interval_over_seeds_is_students_and_covers_as_often_as_it_says():
    low, high = seed_interval([0.12, 0.06, 0.10])
    x = np.array([0.12, 0.06, 0.10])
    half = 4.302653 * x.std(ddof=1) / 3**0.5
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half))
    assert seed_interval([0.3]) == (0.3, 0.3)
    drawn = np.random.default_rng(0).normal(size=(3, 4000))
    low, high = seed_interval(drawn)
    assert np.mean((low < 0) & (0 < high)) == pytest.approx(0.95, abs=0.015)
