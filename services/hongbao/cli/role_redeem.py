"""Owns how a redeem process is put together: opens in front, claims shards behind."""

import asyncio
import os

from hongbao.cli.prepare import role_keyring
from hongbao.cli.process import Process, read_manifests
from hongbao.cli.serving import StartedRole
from hongbao.cli.stores import SharedState
from hongbao.domain.manifest import Manifest
from hongbao.proto.v1 import redeem_pb2
from hongbao.redeem.role import RedeemRole, RedeemSecrets
from hongbao.redeem.service import PLANE
from hongbao.shards.block import NONCE_BYTES
from hongbao.shards.host import HostLimits, ShardHost
from hongbao.shards.peers import GrpcPeers, add_shards_service
from hongbao.shards.router import ShardRouter
from hongbao.shards.tenure import Owners
from hongbao.transport.dispatcher import Method


async def start_redeem(process: Process, stores: SharedState) -> StartedRole:
    """Start the role and compete for claims shards."""
    keyring = role_keyring(process.run, "redeem")
    campaign = process.campaign.campaign

    async def load_manifests() -> list[Manifest]:
        return await read_manifests(process.objects(), campaign, keyring.verify_key)

    peers = GrpcPeers()
    owners = Owners(
        stores.log_store,
        PLANE,
        lambda shard: role.new_machine(shard),
        lambda: os.urandom(NONCE_BYTES),
    )
    router = ShardRouter(stores.coordination, owners.find, peers)
    role = RedeemRole(
        campaign=campaign,
        process=process.name,
        secrets=RedeemSecrets(keyring.ticket_masters, keyring.token_root, keyring.session_key),
        manifests=await load_manifests(),
        load_manifests=load_manifests,
        submit=router.submit,
        coordination=stores.coordination,
        wall_ms=process.clock.wall_ms,
        monotonic_s=process.clock.monotonic_s,
    )
    host = ShardHost(
        stores.coordination,
        process.member(),
        PLANE,
        range(process.settings.claims_shards),
        owners.serve,
        process.clock.monotonic_s,
        HostLimits(lease_ttl_s=process.settings.lease_ttl_s),
    )
    await role.start()
    tasks = [asyncio.create_task(host.run()), asyncio.create_task(router.follow(PLANE))]

    async def drain() -> None:
        await role.drain()
        await host.stop()
        for task in tasks:
            task.cancel()
        await peers.close()

    method = Method(
        "/hongbao.v1.Redeem/Open",
        redeem_pb2.OpenRequest,
        redeem_pb2.OpenReply,
        role.open,
        priority=0,
        user_of=role.user_of,
    )
    return StartedRole(
        [method], drain, role.counters, [lambda server: add_shards_service(server, owners.find)]
    )
