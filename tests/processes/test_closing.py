"""R36: a lone redeem process is stopped between its lease check and its append; refunds go out.

What it appends when it goes on comes too late, and its client hears so: as found, the open was
acknowledged behind the refunds, quarantined and never paid.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from hongbao.adapters import sql
from hongbao.adapters.clock import SystemClock
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.adapters.store_client import StoreClient
from hongbao.cli.demo_close import hongbao
from hongbao.domain.claim import Claim, logged_claims, pack_claim, parse_claim
from hongbao.domain.errors import Fenced
from hongbao.domain.manifest import Manifest
from hongbao.settle.ports import TransferState
from hongbao.settle.rules import Rules
from hongbao.settle.run import Settlement
from hongbao.settle.settler import Settler
from hongbao.shards.block import ShardKey
from hongbao.shards.peers import GrpcPeers
from hongbao.shards.replay import read_blocks

from tests.audit.test_money_commands import Night
from tests.contracts.store_contracts import StoreProcess
from tests.processes.claimer import PAUSED, PLANE, SHARD
from tests.processes.nursery import Nursery
from tests.processes.rainy import short_folder
from tests.settle.claims import schemes_of, shard_claims
from tests.waiting import until

EPOCH = 2

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("faults")]


def test_nothing_is_opened_behind_refunds_by_a_process_that_was_paused() -> None:
    with short_folder() as folder:
        night = Night(folder)  # no loop may run here
        night.settle()
        late = shard_claims(night.minted, SHARD, count=51)[50]
        asyncio.run(pause_refund_and_go_on(folder, night, late))


async def pause_refund_and_go_on(folder: Path, night: Night, late: Claim) -> None:
    (folder / "store").symlink_to(night.run.store)
    server = StoreProcess(folder)
    night.run.socket.symlink_to(server.socket)
    store = StoreClient(night.run.socket, night.run.store)
    engine = sql.open_engine(night.run.ledger_url(night.settings))
    peers = GrpcPeers(call_s_max=120.0)
    leave = asyncio.Event()
    settling = asyncio.create_task(settlement_of(store, night, SqlLedger(engine)).run(leave))
    try:
        async with Nursery("tests.processes.claimer", folder / "claimer.log") as nursery:
            argument = {"folder": str(folder), "epoch": EPOCH, "point": PAUSED, "call": 1}
            pid = await nursery.bear(argument)
            await nursery.wait("serves", 0)
            address = f"unix:{folder}/owner.{EPOCH}"
            opening = asyncio.create_task(peers.submit(address, PLANE, SHARD, [pack_claim(late)]))
            await until(lambda: is_stopped(pid), "the claimer stops before its append")
            run = ("--run", str(night.run.path))
            assert (await hongbao("fund", "pay-in", "--all", *run))[0] == 0
            refund = ("fund", "refund", "--grace-s", "0", *run)
            status, text = await hongbao(*refund)
            assert (status, "refund/1/" in text) == (0, True), text
            os.kill(pid, signal.SIGCONT)
            (outcome,) = await opening
            assert isinstance(outcome, Fenced)
            await nursery.kill(pid)
        leave.set()
        await settling
        assert await hongbao(*refund) == (0, "nothing to return")
        blocks = await read_blocks(store, ShardKey(PLANE, SHARD), 0, 1000, limit=1000)
        logged = [parse_claim(one) for block in blocks for one in logged_claims(block.entries)]
        assert logged == night.claims
    finally:
        settling.cancel()
        await peers.close()
        await store.close()
        server.kill()
        engine.dispose()


def settlement_of(store: StoreClient, night: Night, ledger: SqlLedger) -> Settlement:
    async def load_schemes() -> list[tuple[Manifest, Path]]:
        return schemes_of(night.minted)

    settler = Settler(SHARD, ledger, state=TransferState.CREDITED, wall_ms=SystemClock().wall_ms)
    rules = Rules(store, night.campaign.campaign, load_schemes)
    return Settlement(store, settler, rules, rounds=lambda: contextlib.nullcontext(True))


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
