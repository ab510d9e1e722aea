"""The shard runtime under seeded faults (F2, F3, F4, F7, F8, F9, F22), and proof that it bites."""

import subprocess
import sys
from pathlib import Path

import pytest
from hongbao.shards.owner import Owner

from tests.sim.bugs import PLANTED
from tests.sim.history import Violation
from tests.sim.network import JointSimStore, SimStore
from tests.sim.scenario import ToyScenario
from tests.sim.simulation import Simulation

ROOT = Path(__file__).parents[2]
SEEDS_PER_TEST = 64
BUG_SEEDS_MAX = 64


def simulate(
    seed: int, owner_type: type[Owner] = Owner, store_type: type[SimStore] = SimStore
) -> list[Violation]:
    simulation = Simulation(seed, ToyScenario(), owner_type=owner_type, store_type=store_type)
    return simulation.run()


@pytest.mark.parametrize("part", range(4))
def test_no_seed_breaks_a_rule(part: int) -> None:
    """256 seeds; `python -m tests.sim --seeds 1 --first SEED --trace` repeats one."""
    first = part * SEEDS_PER_TEST
    broken = {
        seed: found for seed in range(first, first + SEEDS_PER_TEST) if (found := simulate(seed))
    }
    assert broken == {}


def test_no_seed_breaks_a_rule_when_blocks_and_derived_keys_are_one_transaction() -> None:
    """`python -m tests.sim --joint --seeds 1 --first SEED --trace` repeats one."""
    seeds = range(SEEDS_PER_TEST)
    broken = {seed: found for seed in seeds if (found := simulate(seed, store_type=JointSimStore))}
    assert broken == {}


@pytest.mark.parametrize(
    ("bug", "rule"),
    [
        ("skipped-epoch-block", "an epoch begins with its block"),
        ("reply-before-durable", "no acknowledged operation is lost"),
        ("stale-read-back", "no acknowledged operation is lost"),
    ],
)
def test_a_planted_bug_breaks_its_rule(bug: str, rule: str) -> None:
    """A skipped epoch block shows in the log of every seed; as a stale answer only rarely."""
    rules = (found.rule for seed in range(BUG_SEEDS_MAX) for found in simulate(seed, PLANTED[bug]))
    assert rule in rules


def test_a_seed_repeats_to_the_last_event_in_another_process() -> None:
    """Hash seeds and addresses differ there; the history does not."""
    simulation = Simulation(7, ToyScenario())
    simulation.run()
    code = (
        "from tests.sim.simulation import Simulation\n"
        "from tests.sim.scenario import ToyScenario\n"
        "s = Simulation(7, ToyScenario()); s.run(); print('digest', s.digest())"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"digest {simulation.digest()}" in again.stdout


def test_a_failing_seed_is_printed_with_the_command_that_repeats_it() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--seeds", "1", "--bug", "skipped-epoch-block"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    command = "python -m tests.sim --scenario toy --bug skipped-epoch-block --seeds 1 --first 0"
    assert command in run.stdout
