"""Operations over real gRPC between processes' owners."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Ambiguous, Fenced, Overloaded, Rejected
from hongbao.shards.owner import Owner, OwnerLimits
from hongbao.shards.peers import GrpcPeers, add_shards_service

from tests.sim.toy import READ, REFUSED, TOTAL, ToyMachine, add
from tests.waiting import LIMIT_S


@pytest.fixture
async def owner() -> Owner:
    return await Owner.take_over(
        MemoryStore(),
        "toy",
        1,
        epoch=1,
        nonce=bytes(16),
        lease_valid=lambda: True,
        machine=ToyMachine(),
        limits=OwnerLimits(queue_operations_max=300),
    )


@pytest.fixture
async def address(owner: Owner, tmp_path: Path) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_shards_service(server, lambda plane, shard: owner if shard == 1 else None)
    server.add_insecure_port(f"unix:{tmp_path}/peer")
    await server.start()
    yield f"unix:{tmp_path}/peer"
    await server.stop(None)


@pytest.fixture
async def peers() -> AsyncIterator[GrpcPeers]:
    peers = GrpcPeers(call_s_max=LIMIT_S)
    yield peers
    await peers.close()


async def test_outcomes_come_back_in_order(address: str, peers: GrpcPeers) -> None:
    outcomes = await peers.submit(address, "toy", 1, [add(1, 5), REFUSED, READ, add(2, 1)])
    assert [outcomes[0], outcomes[2], outcomes[3]] == [
        TOTAL.pack(5),
        TOTAL.pack(5),
        TOTAL.pack(6),
    ]
    assert type(outcomes[1]) is Rejected


async def test_what_a_full_queue_sheds_is_told_for_each(address: str, peers: GrpcPeers) -> None:
    outcomes = await peers.submit(address, "toy", 1, [add(number, 1) for number in range(350)])
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) == 300
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 50


async def test_a_process_that_does_not_own_the_shard_says_so(
    address: str, peers: GrpcPeers
) -> None:
    with pytest.raises(Fenced):
        await peers.submit(address, "toy", 2, [READ])


async def test_a_process_that_is_not_there_leaves_the_outcome_open(
    peers: GrpcPeers, tmp_path: Path
) -> None:
    with pytest.raises(Ambiguous):
        await peers.submit(f"unix:{tmp_path}/nobody", "toy", 1, [READ])
