"""F1: a gateway killed (SIGKILL) while it shakes, over a hundred times, at seeded moments.

The pod, its cursor log and the store process are the real ones; only Envoy is left out, so that a
start costs a tenth of a second. test_storm.py kills whole gateways.
"""

import asyncio
import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hongbao.adapters.store_client import StoreClient
from hongbao.audit.findings import Findings
from hongbao.audit.residue import FileCursor, read_cursors
from hongbao.client.draws import seeded_draw
from hongbao.domain import cursor, ticket
from hongbao.domain.assignment import AccessPod, plan_assignment
from hongbao.domain.cursor import CursorEntry
from hongbao.mint.scheme import mint_scheme

from tests.contracts.store_contracts import StoreProcess
from tests.minted import CAMPAIGN, tiny_keyring, tiny_plan
from tests.processes import checkers
from tests.processes.nursery import Nursery
from tests.processes.rainy import short_folder
from tests.processes.shaker import LIMITS, POD

KILLS = 110
AT_ONCE_SHARE = 0.15  # of the kills come before the first ticket
LIFE_S_MAX = 0.03
WINDOW_PACKETS = LIMITS.reserve_files * LIMITS.reserve_records

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.xdist_group("faults")]


@dataclass(frozen=True)
class Battery:
    """Is what many short lives left behind."""

    issued: dict[int, list[bytes]]  # epoch → records, as the callers got them
    places: dict[bytes, tuple[int, int]]  # record → file, index
    entries: dict[int, list[CursorEntry]]  # file → its cursor log
    cursors: dict[int, FileCursor]  # what the audit makes of it
    audit_findings: list[str]


@pytest.fixture(scope="module")
def battery(seed: int) -> Iterator[Battery]:
    with short_folder() as folder:
        yield asyncio.run(live_and_die(folder, seed))


async def live_and_die(folder: Path, seed: int) -> Battery:
    """Kill the gateway again and again; let the last one drain."""
    (folder / "objects").mkdir()
    manifest = mint_scheme(
        tiny_plan(packets_a_batch=6_000, slots=1), tiny_keyring(), folder / "objects"
    )
    server = StoreProcess(folder)
    store = StoreClient(server.socket, server.path)
    try:
        await write_orders(
            store, [(one.file, one.slot, one.ticket_shard) for one in manifest.files]
        )
        issued = await kill_often(store, folder, seed)
        findings = Findings()
        cursors = await read_cursors(store, manifest.files, set(), findings)
        entries = {file: await read_entries(store, file) for file in cursors}
    finally:
        await store.close()
        server.kill()
    places = {}
    for file in manifest.files:
        data = (folder / "objects" / file.name).read_bytes()[ticket.FILE_RECORDS_AT :]
        for index in range(file.count):
            record = data[index * ticket.RECORD_BYTES : (index + 1) * ticket.RECORD_BYTES]
            places[record] = (int(file.file), index)
    return Battery(issued, places, entries, cursors, findings.broken)


async def write_orders(store: StoreClient, files: list[tuple[int, int, int]]) -> None:
    """Open one slot in a moment, for long; all files are this pod's."""
    now_ms = time.time_ns() // 1_000_000
    slot = {"slot": 1, "name": "one", "starts_at_ms": now_ms, "ends_at_ms": now_ms + 150_000}
    assignment = plan_assignment(files, [AccessPod(POD, "access-a-0", "a")])
    speed = {"value": 10.0, "by": "test", "why": "fast", "set_at_ms": now_ms, "expires_at_ms": None}
    prefix = f"campaigns/{CAMPAIGN}"
    await store.put(f"{prefix}/timeline", json.dumps({"slots": [slot]}).encode())
    await store.put(f"{prefix}/active", b'{"1": 1}')
    await store.put(f"{prefix}/assignment", assignment.to_json())
    await store.put("switches/issue_speed", json.dumps(speed).encode())


async def kill_often(store: StoreClient, folder: Path, seed: int) -> dict[int, list[bytes]]:
    draw = seeded_draw(seed)
    async with Nursery("tests.processes.shaker", folder / "shaker.log") as nursery:
        for epoch in range(1, KILLS + 2):
            await store.put(f"pods/{POD}/epoch", str(epoch).encode())
            born = len(nursery.lines)
            pid = await nursery.bear({"epoch": epoch, "folder": str(folder)})
            if epoch > KILLS or draw() > AT_ONCE_SHARE:
                await nursery.wait("issued", born)
                await asyncio.sleep(draw() * LIFE_S_MAX)
            else:
                await asyncio.sleep(draw() * LIFE_S_MAX * 2)
            if epoch <= KILLS:
                await nursery.kill(pid)
            else:
                os.kill(pid, signal.SIGTERM)
                await nursery.wait("dead", born)
    issued: defaultdict[int, list[bytes]] = defaultdict(list)
    for words in nursery.lines:
        if words[0] == "issued":
            issued[int(words[1])].append(bytes.fromhex(words[2]))
    return dict(issued)


async def read_entries(store: StoreClient, file: int) -> list[CursorEntry]:
    pairs = await store.scan(cursor.cursor_key(file, 0), cursor.cursor_end(file), 1 << 16)
    return [cursor.parse_cursor(value) for _, value in pairs]


def test_most_lives_ended_in_the_midst_of_shaking(battery: Battery) -> None:
    assert len(battery.issued) > KILLS * 0.7
    assert sum(map(len, battery.issued.values())) > KILLS * LIMITS.reserve_records / 2


def test_no_record_is_issued_twice_over_a_hundred_kills(battery: Battery) -> None:
    checkers.check_issued_once(record for records in battery.issued.values() for record in records)
    assert battery.audit_findings == []


def test_each_life_issued_only_what_it_had_reserved(battery: Battery) -> None:
    reserved: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
    for file, entries in battery.entries.items():
        for one in entries:
            if one.kind == cursor.RESERVED:
                reserved[one.pod_epoch] |= {(file, at) for at in range(one.start, one.end)}
    for epoch, records in battery.issued.items():
        assert {battery.places[record] for record in records} <= reserved[epoch]


def test_a_crash_loses_at_most_the_reserved_window(battery: Battery) -> None:
    """And a life that drained loses nothing."""
    lost: defaultdict[int, int] = defaultdict(int)
    for one in battery.cursors.values():
        for residue in one.residues:
            lost[residue.pod_epoch] += residue.packets
    assert max(lost) <= KILLS
    for packets in lost.values():
        checkers.check_residue(packets, 1, WINDOW_PACKETS)


def test_the_audit_counts_every_lost_record(battery: Battery) -> None:
    """Reserved = issued + residue, but for those issued after a life's last word."""
    seen = {battery.places[record] for records in battery.issued.values() for record in records}
    reserved = {(file, at) for file, one in battery.cursors.items() for at in range(one.reserved)}
    reported = {
        (one.file, at)
        for found in battery.cursors.values()
        for one in found.residues
        for at in range(one.start, one.end)
    }
    assert seen <= reserved
    assert reserved - seen <= reported <= reserved
