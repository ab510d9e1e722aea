"""Rows of the bench: a miss is a miss, a skip says why, the JSON has the agreed fields (R33)."""

import json
from pathlib import Path

import pytest
from hongbao.cli.campaign_input import require_campaign

from tests.bench import budget
from tests.bench.drive import read_requests, write_requests
from tests.bench.results import Result, compare, write_results
from tests.bench.scale import describe


def test_a_row_is_the_median_of_its_rounds_beside_its_peer() -> None:
    row = compare("shake", "1/s", [30.0, 10.0, 20.0], "peer", [4.0, 5.0, 3.0], target=20.0)
    assert (row.value, row.peer_value, row.ratio, row.verdict) == (20.0, 4.0, 5.0, "met")


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (compare("a", "s", [6.0], target=5.0, lower_is_better=True), "missed"),
        (compare("a", "s", [4.0], target=5.0, lower_is_better=True), "met"),
        (compare("a", "1/s", [30.0], "peer", [10.0], target=20.0, target_ratio=5.0), "missed"),
        (compare("a", "1/s", [30.0], target=20.0, target_ratio=5.0), "met"),
        (compare("a", "1/s", [30.0]), ""),
        (Result("a", None, "", target=5.0, skipped="no peer"), ""),
    ],
)
def test_a_miss_of_the_value_or_of_the_ratio_is_a_miss(row: Result, verdict: str) -> None:
    assert row.verdict == verdict


def test_the_file_has_the_fields_that_the_issue_names(tmp_path: Path) -> None:
    path = tmp_path / "out" / "bench.json"
    row = compare("open", "1/s", [10.0], "peer", [5.0])
    write_results(path, {"cores": 2}, [row, Result("b", None, "", skipped="nothing here")])
    document = json.loads(path.read_text())
    assert document["machine"] == {"cores": 2}
    for result in document["results"]:
        assert {"name", "value", "unit", "peer", "peer_value", "ratio"} <= result.keys()
    assert document["results"][0]["ratio"] == 2.0


def test_requests_read_back_framed_or_plain(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    write_requests(path, [b"a", b"", b"bcd"])
    assert read_requests(path, framed=False) == [b"a", b"", b"bcd"]
    assert read_requests(path, framed=True)[2] == b"\0\0\0\0\3bcd"


def test_outcomes_are_told_as_shares_over_all_rounds() -> None:
    run = {"outcomes": {"PACKET": 3, "NOTHING": 1}, "p50_ms": 1.0, "p99_ms": 2.0}
    assert describe([run, run]) == "NOTHING 25.0%, PACKET 75.0%; worst round p50 1.0 ms, p99 2.0 ms"


def test_the_campaign_of_the_bench_is_a_good_one(tmp_path: Path) -> None:
    campaign = require_campaign(budget.write_campaign(tmp_path, 100_000))
    assert campaign.schemes[0].packets == 100_000


def test_a_peer_that_answers_nothing_is_no_win() -> None:
    row = compare("open", "opens/s", [12_000.0], "peer", [0.0], target=10_000.0, target_ratio=4.0)
    assert row.ratio is None
    assert row.verdict == "missed"
