"""Facts about what `hongbao up` shows while it runs."""

from pathlib import Path

from hongbao.cli.campaign_input import require_campaign
from hongbao.cli.run_dir import ProcessSpec
from hongbao.cli.up_screen import CALLS, Rates, build_screen, count_calls, find_owing
from hongbao.settle.fund import Pool
from rich.console import Console

from tests.processes.rainy import Plot, write_campaign

METRICS = """# TYPE hongbao_calls counter
hongbao_calls_total{method="/hongbao.v1.Access/Shake",outcome="ok"} 40.0
hongbao_calls_total{method="/hongbao.v1.Access/Shake",outcome="shed"} 2.0
hongbao_calls_total{method="/hongbao.v1.Access/OpenSession",outcome="ok"} 9.0
"""


def test_calls_of_a_method_are_summed_over_what_came_of_them() -> None:
    assert count_calls(METRICS, CALLS["access"]) == 42
    assert count_calls(METRICS, CALLS["redeem"]) == 0


def test_a_rate_follows_from_two_looks_and_a_restart_begins_anew() -> None:
    rates = Rates()
    for now_s, calls, rate in ((1, 10, None), (3, 30, 10.0), (4, 5, None), (5, 6, 1.0)):
        rates.observe("access-a-0", float(calls), float(now_s))
        assert rates.per_s.get("access-a-0") == rate
    rates.observe("access-a-0", None, 6.0)
    assert rates.per_s == {}


def test_deaths_and_rates_stand_beside_their_process() -> None:
    specs = [ProcessSpec(f"access-{zone}-0", "access", zone, 1, {}) for zone in "ab"]
    pids = {"access-a-0": 7, "access-b-0": None}
    deaths = [("access-b-0", -9), ("access-b-0", 76)]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(build_screen(specs, pids, deaths, {"access-a-0": 1234.5}, "slot 1"))
    rows = [line.split() for line in captured.get().splitlines() if "access-" in line]
    assert [[cell for cell in row if cell.strip("│")] for row in rows] == [
        ["access-a-0", "a", "7", "1,234"],
        ["access-b-0", "b", "down", "2"],
    ]


def test_sponsors_owe_until_their_whole_deposit_is_paid_in(tmp_path: Path) -> None:
    path = write_campaign(tmp_path / "campaign", Plot(seed=1, slots=1, packets_a_slot=40))
    campaign = require_campaign(path)
    apple, berry = campaign.sponsors
    paid = Pool(apple.index, paid_in_fen=apple.deposit_fen)
    part = Pool(berry.index, paid_in_fen=berry.deposit_fen - 1)
    assert find_owing(campaign, []) == ["apple", "berry"]
    assert find_owing(campaign, [paid, part]) == ["berry"]
