"""Simulates many seeds: python -m tests.sim --seeds 10000 [--first 0] [--bug NAME] [--trace].

Prints each seed that breaks a rule and the command that repeats it. Exit status 1 if one did.
"""

import argparse
import logging
import sys

import structlog

from tests.sim.bugs import PLANTED
from tests.sim.money import ClaimsScenario, DoubleSettleScenario
from tests.sim.network import JointSimStore, SimStore
from tests.sim.payouts import PLANTED as PLANTED_IN_SETTLEMENT
from tests.sim.payouts import PayoutScenario, PayoutSimulation
from tests.sim.scenario import Scenario, ToyScenario
from tests.sim.simulation import Owner, Simulation

SCENARIOS: dict[str, type[Scenario]] = {
    "toy": ToyScenario,
    "claims": ClaimsScenario,
    "double-settle": DoubleSettleScenario,  # a planted bug: see tests/sim/money.py
}


def main() -> int:
    options = _parse()
    quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.stdlib.BoundLogger if options.trace else quiet)
    failed = 0
    for seed in range(options.first, options.first + options.seeds):
        simulation = _simulation(options, seed)
        violations = simulation.run()
        if options.trace:
            print("\n".join(simulation.history.events))
            print("\n".join(map(str, simulation.history.calls)))
        if violations:
            failed += 1
            _report(options, seed, [f"{found.rule}: {found.evidence}" for found in violations])
    print(f"{options.seeds} seeds from {options.first}, {failed} failed")
    return 1 if failed else 0


def _simulation(options: argparse.Namespace, seed: int) -> Simulation:
    owner_type = PLANTED.get(options.bug, Owner)
    store_type = JointSimStore if options.joint else SimStore
    if options.scenario == "payouts":
        planted = PLANTED_IN_SETTLEMENT.get(options.bug, {})
        return PayoutSimulation(
            seed, PayoutScenario(), owner_type=owner_type, store_type=store_type, **planted
        )
    scenario = SCENARIOS[options.scenario]()
    return Simulation(seed, scenario, owner_type=owner_type, store_type=store_type)


def _report(options: argparse.Namespace, seed: int, lines: list[str]) -> None:
    bug = f" --bug {options.bug}" if options.bug else ""
    bug += " --joint" if options.joint else ""
    command = f"python -m tests.sim --scenario {options.scenario}{bug} --seeds 1 --first {seed}"
    print(f"seed {seed} FAILED; again: {command} --trace")
    for line in lines[:10]:
        print(f"    {line[:300]}")
    sys.stdout.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    scenarios = sorted([*SCENARIOS, "payouts"])
    parser.add_argument("--scenario", choices=scenarios, default="toy")
    bugs = sorted([*PLANTED, *PLANTED_IN_SETTLEMENT])
    parser.add_argument("--bug", choices=bugs, default="", help="those of payments: payouts only")
    parser.add_argument("--joint", action="store_true", help="blocks with derived keys, at once")
    parser.add_argument("--trace", action="store_true", help="show faults, calls and logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
