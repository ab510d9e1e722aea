"""Creates over a line that loses requests and replies, on TiKV's raw API (F3, F7, F10)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hongbao.domain.errors import Ambiguous

from tests.contracts.patient import Patient
from tests.contracts.tikv_contracts import NOT_OURS, RAW, TikvContract, tikv_contract
from tests.servers.proxy import Proxy, running_proxy
from tests.stalls import Stalls
from tests.waiting import LIMIT_S, until


@pytest.fixture(params=RAW)
async def contract(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TikvContract]:
    async with tikv_contract(request, tmp_path) as made:
        await made.store.create(b"warm", b"1")
        yield made


@pytest.fixture
async def proxy(contract: TikvContract) -> AsyncIterator[Proxy]:
    async with running_proxy() as made:
        yield made


@pytest.fixture
async def far(
    contract: TikvContract, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, stalls: Stalls
) -> AsyncIterator[Patient]:
    """Give a client whose connections, open already, go through the proxy."""
    store = Patient(contract.connect(), stalls)
    with proxy.used(monkeypatch):
        assert await store.create(b"warm", b"2") is False
        yield store
    await store.close()


async def test_a_create_whose_reply_is_lost_is_ambiguous_and_there(
    contract: TikvContract, proxy: Proxy, far: Patient
) -> None:
    proxy.replies.clear()
    creating = asyncio.create_task(far.bare.create(b"a", b"ours"))
    await _wait_until_there(contract, b"a")
    proxy.cut()
    with pytest.raises(Ambiguous):
        await creating
    assert await far.get(b"a") == b"ours"
    assert await far.create(b"a", b"ours") is False


async def test_a_create_whose_request_is_lost_is_ambiguous_and_absent(
    contract: TikvContract, proxy: Proxy, far: Patient
) -> None:
    proxy.requests.clear()
    creating = asyncio.create_task(far.bare.create(b"a", b"ours"))
    await proxy.wait_held()
    proxy.cut()
    with pytest.raises(Ambiguous):
        await creating
    assert await far.get(b"a") is None
    assert await far.create(b"a", b"ours") is True


async def test_a_slow_writer_that_wakes_after_another_created_the_key_changes_nothing(
    contract: TikvContract, proxy: Proxy, far: Patient
) -> None:
    """F7: its request is under way while another creates."""
    proxy.requests.clear()
    creating = asyncio.create_task(far.create(b"a", b"slow"))
    await proxy.wait_held()
    assert await contract.store.create(b"a", b"other") is True
    proxy.requests.set()
    assert await creating is False
    assert await contract.store.get(b"a") == b"other"


async def test_a_lost_reply_about_a_key_that_another_has_is_no_riddle(
    contract: TikvContract, proxy: Proxy, far: Patient
) -> None:
    """Keys are never overwritten, so the read-back tells that ours was not written."""
    assert await contract.store.create(b"a", b"other") is True
    proxy.replies.clear()
    creating = asyncio.create_task(far.create(b"a", b"ours"))
    await proxy.wait_held()
    proxy.cut()
    assert await creating is False


@pytest.mark.parametrize("contract", RAW[1:], indirect=True)
async def test_a_put_waits_for_what_comes_before_it_in_another_region(
    contract: TikvContract, proxy: Proxy, far: Patient
) -> None:
    """F11: the applied marker must not overtake what it speaks of, though its store answers."""
    if contract.cluster is None:
        pytest.skip(NOT_OURS)
    cluster, namespace = contract.cluster, contract.namespace
    await contract.split("m~")
    first, last = namespace + b"a", namespace + b"z"
    held = await asyncio.to_thread(cluster.leader_of, first)
    other = (held + 1) % cluster.stores
    await asyncio.to_thread(cluster.transfer_leader, last, other)
    assert await contract.store.create(b"z0", b"warm") is True
    await far.get(b"z0")
    proxy.held_target = cluster.store_address(held)
    proxy.requests.clear()
    putting = asyncio.create_task(far.put_many([(b"a", b"derived"), (b"z", b"applied")]))
    await proxy.wait_held()
    await asyncio.sleep(0.3)
    assert await contract.store.get(b"z") is None
    proxy.requests.set()
    await putting
    assert await contract.store.get(b"a") == b"derived"
    assert await contract.store.get(b"z") == b"applied"


async def _wait_until_there(contract: TikvContract, key: bytes) -> None:
    async def is_there() -> bool:
        return await contract.store.get(key) is not None

    await until(is_there, f"{key!r} is written")


async def test_a_ping_that_comes_first_hides_no_call_from_the_proxy() -> None:
    """As found: the proxy kept the ping and never read the call behind it."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(100):
            writer.write(piece)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with running_proxy() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % server.sockets[0].getsockname()[1])
        await reader.readuntil(b"\r\n\r\n")
        proxy.requests.clear()
        writer.write(b"a ping")
        assert await asyncio.wait_for(reader.read(100), LIMIT_S) == b"a ping"
        writer.write(b"a call, which is longer")
        await proxy.wait_held()
        writer.close()
        await writer.wait_closed()
    server.close()
