"""Settle processes under seeded faults: a claim is paid once, or refused and never (F5, F6, F7)."""

from collections import Counter

import pytest
from hongbao.settle.ports import SinkAnswer

from tests.sim.payouts import NAMES, PLANTED, PayoutScenario, PayoutSimulation

SEEDS_PER_TEST = 16
BUG_SEEDS_MAX = 32


@pytest.mark.parametrize("part", range(4))
def test_no_seed_pays_twice_or_forgets_to_pay(part: int) -> None:
    """64 seeds; `python -m tests.sim --scenario payouts --seeds 1 --first SEED` repeats one."""
    first = part * SEEDS_PER_TEST
    broken = {}
    for seed in range(first, first + SEEDS_PER_TEST):
        if found := PayoutSimulation(seed, PayoutScenario()).run():
            broken[seed] = found
    assert broken == {}


@pytest.mark.parametrize(
    ("bug", "rule"),
    [
        ("silence-is-payment", "credited = paid by the bank, one to one"),
        ("silence-is-refusal", "credited = paid by the bank, one to one"),
        ("ack-while-paying", "nothing is paid behind the ack of a pause"),
    ],
)
def test_a_planted_bug_of_settlement_breaks_its_rule(bug: str, rule: str) -> None:
    for seed in range(BUG_SEEDS_MAX):
        found = PayoutSimulation(seed, PayoutScenario(), **PLANTED[bug]).run()
        if rule in {violation.rule for violation in found}:
            return
    raise AssertionError("no seed found it")


def test_the_simulation_pays_in_every_way_and_leases_move() -> None:
    """Else the seeds would prove little."""
    answers, struck = Counter[SinkAnswer](), set[str]()
    for seed in range(8):
        scenario = PayoutScenario()
        simulation = PayoutSimulation(seed, scenario)
        assert simulation.run() == []
        events = [event for event in simulation.history.events if " kill " in event]
        answers += scenario.bank.answers
        struck |= {name for _, _, name in (event.rpartition(" kill ") for event in events)}
    assert set(answers) == set(SinkAnswer)
    assert struck >= set(NAMES)
