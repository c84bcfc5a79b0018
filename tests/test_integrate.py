"Integrate: which documents overlap, by words or by meaning."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_lit.integrate import overlapping, sentence_embedder, stems
from toolrl_lit.schema import ToolDoc, UserError


def doc(name: str, description: str, *parameters: str) -> ToolDoc:
    return ToolDoc(
        name=name,
        description=description,
        parameters={"type": "object", "properties": {p: {"type": "string"} for p in parameters}},
    )


capital = doc("get_capital", "Returns the capital of a country.", "country")
other = doc("lookupCapitalCity", "Find the capital city of a country.", "country_name")
people = doc("get_population", "Returns the number of people in a country.", "nation")
weather = doc("forecast", "Tomorrow's weather at a place.", "latitude", "longitude")


def test_tools_that_do_the_same_overlap_and_others_do_not():
    (found,) = overlapping([capital, weather, other, people])
    assert (found.a, found.b) == ("get_capital", "lookupCapitalCity") and 0.4 <= found.score < 1


words = st.lists(
    st.sampled_from("get find capital city people country code number of a the".split()),
    min_size=1,
    max_size=4,
)
documents = st.lists(
    st.builds(lambda n, d, p: doc("_".join(n), " ".join(d), *p), words, words, words), max_size=5
)


@settings(max_examples=50, deadline=None)
@given(documents)
def test_every_pair_has_a_score_between_0_and_1_whatever_the_order(docs):
    pairs, back = overlapping(docs, least=0), overlapping(docs[::-1], least=0)
    assert len(pairs) == len(docs) * (len(docs) - 1) // 2
    assert all(0 <= x <= 1 for o in pairs for x in o[2:]) and [o.score for o in pairs] == sorted(
        (o.score for o in pairs), reverse=True
    )
    assert sorted(o.score for o in pairs) == pytest.approx(sorted(o.score for o in back))


@settings(max_examples=50, deadline=None)
@given(words, words, words)
def test_a_document_overlaps_its_copy_wholly_if_it_says_anything(n, d, p):
    one = doc("_".join(n), " ".join(d), *p)
    found = overlapping([one, one], least=0)[0]
    assert found[3:] == tuple(
        float(bool(stems(text))) for text in ("_".join(n), " ".join(p), " ".join(d))
    )


def test_parameters_within_objects_count():
    nested = ToolDoc(
        name="x",
        description="",
        parameters={
            "type": "object",
            "properties": {"query": {"type": "object", "properties": {"town": {}}}},
        },
    )
    assert (
        overlapping([nested, doc("y", "", "town")], least=0)[0].parameters == 1
    )  # "query" is a filler


def test_meaning_takes_the_place_of_the_words_of_descriptions():
    vectors = {
        capital.description: [1, 0],
        people.description: [0.6, 0.8],
        weather.description: [-1, 0],
    }
    found = {
        (o.a, o.b): o.meaning
        for o in overlapping(
            [capital, people, weather], 0, lambda texts: np.array([vectors[t] for t in texts])
        )
    }
    assert found == pytest.approx(
        {
            ("get_capital", "get_population"): 0.6,
            ("get_capital", "forecast"): 0,
            ("get_population", "forecast"): 0,
        }
    )


def test_a_sentence_transformers_model_tells_meaning(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra [embed]")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    vocabulary = "the capital of a country number people in".split()
    table = WordEmbeddings(
        WhitespaceTokenizer(vocabulary),
        np.random.default_rng(0).normal(size=(len(vocabulary), 8)).astype("float32"),
    )
    SentenceTransformer(modules=[table, Pooling(8)], device="cpu").save(str(tmp_path / "model"))
    embed = sentence_embedder(str(tmp_path / "model"))
    assert np.linalg.norm(embed(["the capital of a country"]), axis=1) == pytest.approx(1, abs=1e-5)
    same = overlapping([capital, capital.model_copy(update=dict(name="x"))], 0, embed)[0]
    assert same.meaning == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="embedder: expected a folder or a name on the hub"):
        sentence_embedder(str(tmp_path / "none"))
