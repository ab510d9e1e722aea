"""Owns the script of the demo's New Year's Eve: what breaks or is changed, when, and how.

Every change is what an operator's command does; every kill is a SIGKILL.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hongbao.api.switches import Setting, find_switch
from hongbao.cipher.key_lists import deny_keys, document_name
from hongbao.cli.acks import wait_acked
from hongbao.cli.activation import activate_scheme
from hongbao.cli.keys import change_key_lists
from hongbao.cli.prepare import Prepared
from hongbao.cli.rain import Rain
from hongbao.cli.switch_state import wait_effective, write_setting
from hongbao.domain.campaign import Slot
from hongbao.domain.errors import HongbaoError, Rejected, Transient
from hongbao.domain.ids import KeyId
from hongbao.domain.plan import MintPlan
from hongbao.shards.member import Member

SWITCH: Final = "issue_speed"
SWITCH_VALUE: Final = 0.02  # of a plan that the demo's few users are far behind of
ACK_S_MAX: Final = 10.0
OWNERS_LOOKS_MAX: Final = 100

log = structlog.get_logger()


@dataclass(frozen=True)
class Event:
    """Is something that the demo does to the system at a moment of a slot."""

    slot: int  # number in the timeline, from 0
    share: float  # of the slot that has passed
    kind: str  # kill | zone | key | switch | scheme | store
    text: str
    act: Callable[[], Awaitable[str]]
    """Does it and returns what it did, in words."""


class EventLog:
    """Keeps what happened, for the report and for the screen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, object]] = []
        self.lines: list[str] = []
        self.failed: list[str] = []  # events that did not do what the script says

    @property
    def rows(self) -> Sequence[Mapping[str, object]]:
        """Return what happened, as the report reads it."""
        return tuple(self._rows)

    def add(self, at_ms: int, until_ms: int | None, kind: str, text: str) -> None:
        """Take one event; a zone that comes back ends the event of its loss."""
        lost = next((row for row in self._rows if row["kind"] == kind == "zone"), None)
        if lost is not None:
            lost["until_ms"] = until_ms
        else:
            row: dict[str, object] = {
                "at_ms": at_ms,
                "until_ms": until_ms,
                "kind": kind,
                "text": text,
            }
            self._rows.append(row)
        self._path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows)
        )
        self.lines.append(text)


async def play(up: Rain, events: Sequence[Event], told: EventLog) -> None:
    """Do every event at its moment; one that fails is told and does not stop the others."""
    await asyncio.gather(*(_play_one(up, event, told) for event in events))


async def _play_one(up: Rain, event: Event, told: EventLog) -> None:
    slot = up.timeline.slots[event.slot]
    at_ms = slot.starts_at_ms + int((slot.ends_at_ms - slot.starts_at_ms) * event.share)
    await asyncio.sleep(max(0.0, (at_ms - up.clock.wall_ms()) / 1000))
    began_ms = up.clock.wall_ms()
    try:
        text = await event.act()
    except HongbaoError as error:
        text = f"{event.text}: failed: {error}"
        told.failed.append(text)
        log.error("demo_event_failed", what=event.text, reason=str(error))
    told.add(began_ms, up.clock.wall_ms(), event.kind, text)


def plan_events(up: Rain, prepared: Prepared) -> list[Event]:
    """Return the evening's script: two kills, a lost zone, a leaked key, a switch, a scheme."""
    plans = {plan.scheme_number: plan for plan in prepared.plans}
    active = plans[prepared.active_scheme_number]
    other = next(plan for plan in prepared.plans if plan is not active)
    last = up.timeline.slots[-1]
    leaked = active.slot_batches(up.timeline.slots[3].slot)[0].key_ids[0]
    zone = up.settings.zones[-1]
    return [
        Event(0, 0.4, "kill", "an access process", _kill_access(up)),
        Event(1, 0.3, "kill", "a claims owner", _kill_claims_owner(up)),
        Event(1, 0.7, "switch", f"{SWITCH} {SWITCH_VALUE}", _set_switch(up, SWITCH_VALUE)),
        Event(1, 0.8, "scheme", other.scheme, _activate(up, prepared, other, last)),
        Event(2, 0.1, "switch", f"{SWITCH} cleared", _set_switch(up, None)),
        Event(2, 0.15, "zone", f"zone {zone} lost", _lose(up, zone)),
        Event(3, 0.15, "zone", f"zone {zone} back", _heal(up, zone)),
        Event(3, 0.5, "key", f"key {leaked}", _deny(up, leaked)),
    ]


def _kill_access(up: Rain) -> Callable[[], Awaitable[str]]:
    spec = up.of(role="access", zone=up.settings.zones[0])[0]

    async def act() -> str:
        up.supervisor.kill(spec.process)
        return f"{spec.process} killed (SIGKILL)"

    return act


def _kill_claims_owner(up: Rain) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        for _ in range(OWNERS_LOOKS_MAX):
            if owned := await _owned_claims(up):
                break
            await asyncio.sleep(0.1)  # all leases have just run out
        else:
            raise Transient("nobody owns a claims shard")
        victim = max(owned, key=lambda process: len(owned[process]))
        up.supervisor.kill(victim)
        return f"{victim} killed (SIGKILL), owner of claims {', '.join(sorted(owned[victim]))}"

    return act


async def _owned_claims(up: Rain) -> dict[str, list[str]]:
    """Return the claims shards of each owner."""
    owned: dict[str, list[str]] = {}
    for lease in await up.stores.coordination.read_prefix("lease/claims/"):
        owner = Member.from_json(lease.value).process
        owned.setdefault(owner, []).append(lease.key.rsplit("/", 1)[1])
    return owned


def _set_switch(up: Rain, value: float | None) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        spec = find_switch(SWITCH)
        held = spec.default if value is None else value
        why = "opens are slow" if value is not None else "opens are fast again"
        setting = Setting(held, by="demo", why=why, set_at_ms=up.clock.wall_ms())
        revision = await write_setting(up.stores.coordination, spec, setting)
        obeying = await wait_effective(up.stores.coordination, spec, revision, ACK_S_MAX)
        return f"switch {SWITCH} = {held}, effective on {len(obeying)} processes"

    return act


def _activate(
    up: Rain, prepared: Prepared, plan: MintPlan, slot: Slot
) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        done = await activate_scheme(
            up.stores.coordination,
            up.campaign,
            prepared.plans,
            plan.scheme_number,
            [slot.slot],
            wall_ms=up.clock.wall_ms,
        )
        if done.problems:
            raise Rejected("; ".join(map(str, done.problems)))
        return f"scheme {plan.scheme} activated for slot {slot.slot}"

    return act


def _lose(up: Rain, zone: str) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        up.supervisor.lose(up.of(zone=zone))
        return f"zone {zone} lost: all its processes killed"

    return act


def _heal(up: Rain, zone: str) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        await up.supervisor.start(up.of(zone=zone))
        return f"zone {zone} back"

    return act


def _deny(up: Rain, key_id: KeyId) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        campaign = up.campaign.campaign
        _, revision = await change_key_lists(
            up.stores.coordination, campaign, lambda lists: deny_keys(lists, [key_id])
        )
        document = document_name(campaign)
        obeying = await wait_acked(
            up.stores.coordination, document, "redeem", revision, ACK_S_MAX, expected=True
        )
        return f"key {key_id} denied, effective on {len(obeying)} processes"

    return act
