"""Owns how a settle process is put together: readers of the claims log, rules, ledger, sink."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.adapters.webhook import WebhookSink
from hongbao.cli.child_environ import take_webhook_headers
from hongbao.cli.prepare import role_keyring
from hongbao.cli.process import Process, read_manifests
from hongbao.cli.run_claim import claim_ledger
from hongbao.cli.run_objects import local_amounts
from hongbao.cli.serving import serve_until_signal
from hongbao.domain.manifest import Manifest
from hongbao.settle.metrics import SettleMetrics
from hongbao.settle.pause import PauseSwitch
from hongbao.settle.payout import Payout
from hongbao.settle.ports import TransferState
from hongbao.settle.rules import Rules
from hongbao.settle.run import Settlement
from hongbao.settle.settler import Settler
from hongbao.shards.host import HostLimits, ShardHost
from hongbao.shards.lease import HeldLease
from hongbao.transport.metrics import serve_metrics


async def run_settle(process: Process) -> None:
    """Settle the shards that this process gets, until SIGTERM."""
    campaign = process.campaign.campaign
    headers = take_webhook_headers(os.environ)
    verify_key = role_keyring(process.run, "access").verify_key
    ledger_url = process.run.ledger_url(process.settings)
    engine = await asyncio.to_thread(claim_ledger, process.run, ledger_url, campaign)
    ledger = SqlLedger(engine)
    stores, metrics = await process.connect(), SettleMetrics()
    wall_ms = process.clock.wall_ms

    async def load_schemes() -> Sequence[tuple[Manifest, Path]]:
        manifests = await read_manifests(process.objects(), campaign, verify_key)
        return [(one, await local_amounts(process.run, process.settings, one)) for one in manifests]

    async with contextlib.AsyncExitStack() as stack:
        sink = None
        if url := process.settings.webhook_url:
            sink = await stack.enter_async_context(WebhookSink(url, campaign, headers=headers))
        rules = Rules(stores.coordination, campaign, load_schemes)
        pause = PauseSwitch(stores.coordination, process.name, wall_ms)

        async def settle(shard: int, _held: HeldLease, leave: asyncio.Event) -> None:
            state = TransferState.PENDING if sink else TransferState.CREDITED
            payout = None
            if sink is not None:
                payout = Payout(
                    shard, ledger, sink, paused=pause.paused, clock=process.clock, campaign=campaign
                )
            settlement = Settlement(
                stores.log_store,
                Settler(shard, ledger, state=state, wall_ms=wall_ms),
                rules,
                payout=payout,
                rounds=pause.round,
                counts=metrics,
            )
            await settlement.run(leave)

        host = ShardHost(
            stores.coordination,
            process.member(),
            process.spec.role,
            range(process.settings.claims_shards),
            settle,
            process.clock.monotonic_s,
            HostLimits(lease_ttl_s=process.settings.lease_ttl_s),
        )
        running: list[asyncio.Task[None]] = []

        async def start() -> None:
            running.append(asyncio.create_task(host.run()))
            serve_metrics("127.0.0.1", process.spec.ports["metrics"])

        await serve_until_signal(start, host.stop)
        await asyncio.gather(*running)
    await stores.close()
    engine.dispose()
