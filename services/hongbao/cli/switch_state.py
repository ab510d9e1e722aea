"""Owns reading and writing switches through Coordination; prints nothing.

A switch is effective where a process of its role has acknowledged the revision that set it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hongbao.api.switches import (
    ACKS,
    CATALOGUE,
    PREFIX,
    Setting,
    SwitchSpec,
    SwitchValue,
    setting_from_json,
    setting_to_json,
)
from hongbao.cli.acks import of_role, read_living, wait_acked
from hongbao.domain.errors import Corrupt
from hongbao.shards.ports import Coordination, Versioned


@dataclass(frozen=True, slots=True)
class SwitchState:
    """Is one switch as it stands; `setting` is None where nobody ever set it."""

    spec: SwitchSpec
    setting: Setting | None
    revision: int
    value: SwitchValue  # what holds now
    acked: tuple[str, ...]  # living processes that have made it effective
    waiting: tuple[str, ...]  # living processes that have not

    @property
    def is_default(self) -> bool:
        return self.value == self.spec.default

    def to_json(self) -> dict[str, Any]:
        """Return the state for scripts."""
        setting = self.setting
        return {
            "switch": self.spec.name,
            "value": self.value,
            "default": self.spec.default,
            "by": setting.by if setting else None,
            "why": setting.why if setting else None,
            "set_at_ms": setting.set_at_ms if setting else None,
            "expires_at_ms": setting.expires_at_ms if setting else None,
            "acked": list(self.acked),
            "waiting": list(self.waiting),
        }


async def observe_switches(coordination: Coordination, now_ms: int) -> list[SwitchState]:
    """Return every switch of the catalogue, in its order. Raises Corrupt for a broken one."""
    stored = {fact.key: fact for fact in await coordination.read_prefix(PREFIX)}
    acks = {fact.key: _revision(fact) for fact in await coordination.read_prefix(ACKS)}
    roles = await read_living(coordination)
    return [_state(spec, stored.get(PREFIX + spec.name), acks, roles, now_ms) for spec in CATALOGUE]


async def write_setting(coordination: Coordination, spec: SwitchSpec, setting: Setting) -> int:
    """Store a setting; return its revision. The last writer wins."""
    written = await coordination.put(PREFIX + spec.name, setting_to_json(setting))
    return written.revision


async def wait_effective(
    coordination: Coordination, spec: SwitchSpec, revision: int, wait_s: float
) -> list[str]:
    """Wait until every living process of the role has acked; see acks.wait_acked."""
    return await wait_acked(coordination, PREFIX + spec.name, spec.role, revision, wait_s)


def _state(
    spec: SwitchSpec,
    fact: Versioned | None,
    acks: Mapping[str, int],
    roles: Mapping[str, str],
    now_ms: int,
) -> SwitchState:
    if fact is None:
        return SwitchState(spec, None, 0, spec.default, (), ())
    setting = setting_from_json(spec, fact.value)
    prefix = f"{ACKS}{spec.name}/"
    living = of_role(roles, spec.role)
    acked = tuple(one for one in living if acks.get(prefix + one, 0) >= fact.revision)
    return SwitchState(
        spec,
        setting,
        fact.revision,
        spec.default if setting.expired(now_ms) else setting.value,
        acked,
        tuple(process for process in living if process not in acked),
    )


def _revision(ack: Versioned) -> int:
    try:
        return int(json.loads(ack.value)["revision"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{ack.key} does not name a revision") from error
