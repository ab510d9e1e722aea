"""What the TiKV adapters promise beside the contract: limits, TLS, endpoints, namespaces, extra."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hongbao.adapters.tikv import HARD_TRY_S_MAX, TikvStore, TikvTls
from hongbao.adapters.tikv_calls import CALL_S_MAX, IN_FLIGHT_MAX, WAITING_MAX, Turns
from hongbao.adapters.tikv_txn import TikvTxnStore
from hongbao.domain.errors import Ambiguous, Overloaded, Rejected, Transient
from hongbao.shards.ports import VALUE_BYTES_MAX
from tikv._async._client import SCAN_PAGE_SIZE
from tikv._proto import metapb_pb2
from tikv._region import Region

from tests.contracts.patient import Patient
from tests.contracts.tikv_contracts import NOT_OURS, RAW, TIKV, TXN, TikvContract, tikv_contract
from tests.servers.certificates import Certificates, make_certificates
from tests.servers.proxy import running_proxy
from tests.servers.started import free_port
from tests.stalls import Stalls
from tests.waiting import LIMIT_S

SLACK_S = 1.0
T = TypeVar("T")


@pytest.fixture(params=[TIKV[0], TXN[0]])
async def contract(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TikvContract]:
    async with tikv_contract(request, tmp_path) as made:
        yield made


async def took_s(
    stalls: Stalls, call: Callable[[], Awaitable[object]], error: type[Transient]
) -> float:
    """Return how long a call took that must fail, without what the machine stood still."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(error) as raised:
        await call()
    assert raised.type is error
    return loop.time() - began_s - stalls.within_s(began_s, loop.time())


async def test_no_call_waits_for_ever_for_a_store_that_hangs(
    contract: TikvContract, stalls: Stalls
) -> None:
    """Nobody knows whether the writes happened; what was acknowledged afterwards stays."""
    cluster, store = contract.cluster, contract.connect()
    if cluster is None:
        pytest.skip(NOT_OURS)
    await contract.store.create(b"before", b"x")
    await contract.store.put_many([(b"put", b"x")])
    assert await _until_answered(lambda: store.get(b"before")) == b"x"
    cluster.pause_store(0)
    try:
        waits_s = await asyncio.gather(
            took_s(stalls, lambda: store.create(b"a", b"first"), Ambiguous),
            took_s(stalls, lambda: store.put_many([(b"put", b"x")]), Ambiguous),
            took_s(stalls, lambda: store.get(b"before"), Transient),
            took_s(stalls, lambda: store.scan(b"a", b"z", 10), Transient),
        )
    finally:
        cluster.resume_store(0)
    assert max(waits_s) < CALL_S_MAX + SLACK_S
    if contract.kind == "raw":
        assert waits_s[0] < 2 * HARD_TRY_S_MAX
    created = await _until_answered(lambda: store.create(b"a", b"second"))
    assert await contract.store.get(b"a") == (b"second" if created else b"first")
    await store.close()


async def test_no_call_waits_for_ever_for_a_cluster_that_is_gone(
    contract: TikvContract, stalls: Stalls
) -> None:
    gone = contract.connect(pd=[f"127.0.0.1:{free_port()}"])
    assert await took_s(stalls, lambda: gone.get(b"a"), Transient) < CALL_S_MAX + SLACK_S
    with pytest.raises(Transient):
        await gone.create(b"a", b"x")
    await gone.close()


async def test_a_dead_endpoint_does_no_harm(contract: TikvContract, stalls: Stalls) -> None:
    store = Patient(contract.connect(pd=[f"127.0.0.1:{free_port()}", *contract.pd]), stalls)
    assert await store.create(b"a", b"x") is True
    await store.close()


async def test_namespaces_of_one_cluster_do_not_meet(
    contract: TikvContract, stalls: Stalls
) -> None:
    other = Patient(contract.connect(within=b"/other/"), stalls)
    assert await contract.store.create(b"a", b"1") is True
    assert await other.create(b"a", b"2") is True
    assert await contract.store.get(b"a") == b"1"
    assert await other.scan(b"", b"z", 10) == [(b"a", b"2")]
    await other.close()


@pytest.mark.parametrize("contract", RAW[:1], indirect=True)
async def test_a_client_that_is_closed_under_a_call_says_that_nobody_knows(
    contract: TikvContract, monkeypatch: pytest.MonkeyPatch, stalls: Stalls
) -> None:
    async with running_proxy() as proxy:
        with proxy.used(monkeypatch):
            store = contract.connect()
            await Patient(store, stalls).get(b"warm")
        proxy.requests.clear()
        creating = asyncio.create_task(store.create(b"a", b"x"))
        await proxy.wait_held()
        reading = asyncio.create_task(store.get(b"a"))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(Ambiguous):
            await creating
        with pytest.raises(Transient):
            await reading
    with pytest.raises(Transient):
        await store.create(b"b", b"x")


async def test_calls_beyond_the_bounds_are_shed_before_they_are_sent() -> None:
    turns, done = Turns(), asyncio.Event()

    async def call() -> None:
        async with turns.turn():
            await done.wait()

    calls = [asyncio.create_task(call()) for _ in range(IN_FLIGHT_MAX + WAITING_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await call()
    done.set()
    await asyncio.gather(*calls)
    await call()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def server_side(certificates: Certificates) -> ssl.SSLContext:
    """Want a client certificate, as a cluster does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
    context.load_cert_chain(certificates.cert, certificates.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize("contract", RAW[:1], indirect=True)
async def test_pd_and_stores_are_reached_by_tls_with_a_client_certificate(
    contract: TikvContract,
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stalls: Stalls,
) -> None:
    """The test servers have no TLS: the proxy on the way to each of them has."""
    if contract.tls is not None:
        pytest.skip("the given cluster has TLS of its own")
    other = make_certificates(tmp_path / "other")
    good = TikvTls(certificates.ca, certificates.cert, certificates.key)
    bad = {
        "none of ours": TikvTls(certificates.ca),
        "another authority's": TikvTls(certificates.ca, other.cert, other.key),
        "a server we do not trust": TikvTls(other.ca, certificates.cert, certificates.key),
    }
    async with running_proxy(server_side(certificates)) as proxy:
        with proxy.used(monkeypatch):
            trusted = TikvStore(contract.pd, namespace=contract.namespace, tls=good)
            patient = Patient(trusted, stalls)
            assert await patient.create(b"a", b"x") is True
            assert await patient.scan(b"", b"z", 10) == [(b"a", b"x")]
            await patient.close()
            for tls in bad.values():
                store = TikvStore(contract.pd, namespace=contract.namespace, tls=tls)
                with pytest.raises(Transient):
                    await store.get(b"a")
                await store.close()


Pairs = list[tuple[bytes, bytes]]


def region(end: bytes, version: int = 1) -> Region:
    """Return the region that everything up to a border lies in."""
    epoch = metapb_pb2.RegionEpoch(version=version)
    return Region(metapb_pb2.Region(id=2, end_key=end, region_epoch=epoch), None)


class Answers:
    """Stands for the client: gives scans one after the other, and the region before each."""

    def __init__(self, scans: list[Pairs], regions: list[Region]) -> None:
        self._scans, self._regions = scans, regions

    async def scan_once(self, start: bytes, end: bytes, limit: int) -> Pairs:
        return self._scans.pop(0) if len(self._scans) > 1 else self._scans[0]

    async def region_of(self, key: bytes) -> Region:
        return self._regions.pop(0) if len(self._regions) > 1 else self._regions[0]

    async def close(self) -> None:
        pass


async def scanned(scans: list[Pairs], regions: list[Region], limit: int = 10_000) -> Pairs:
    """Return what a store makes of its client's answers."""
    store = TikvStore(["127.0.0.1:1"])
    store._client = Answers(scans, regions)  # type: ignore[assignment]
    found = await store.scan(b"l", b"n", limit)
    await store.close()
    return found


async def test_a_key_that_came_between_the_answers_of_two_regions_is_not_missing() -> None:
    """As found: a take-over held the hole for a broken log (`Corrupt`)."""
    one, two, three = ((name, b"x") for name in (b"l1", b"m2", b"m3"))
    found = await scanned([[two], [one, two], [one, two, three]], [region(b"m")])
    assert found == [one, two]


async def test_regions_that_merged_between_their_answers_are_not_taken_for_one() -> None:
    """The client knows only the merged one when the scan is over."""
    one, two = (b"l1", b"x"), (b"m2", b"x")
    assert await scanned([[two], [one, two]], [region(b"m"), region(b"z", 2)]) == [one, two]


async def test_a_key_that_came_between_two_pages_of_one_region_is_not_missing() -> None:
    late = (b"l", b"x")
    others = [(b"m%04d" % number, b"x") for number in range(SCAN_PAGE_SIZE + 1)]
    whole = [region(b"z")]
    assert await scanned([others, [late, *others]], whole) == [late, *others]


@pytest.mark.parametrize("limit", [SCAN_PAGE_SIZE, SCAN_PAGE_SIZE + 1])
async def test_what_one_request_answers_is_asked_once(limit: int) -> None:
    first = [(b"m%04d" % number, b"x") for number in range(limit)][:SCAN_PAGE_SIZE]
    few = first if limit == SCAN_PAGE_SIZE else first[1:]
    assert await scanned([few, []], [region(b"z")], limit) == few


async def test_a_scan_gets_over_values_that_suddenly_are_large(contract: TikvContract) -> None:
    """A page grew while values were small; four of the largest are more than a reply holds."""
    pairs = [(b"%03d" % number, b"small") for number in range(20)]
    pairs += [(b"%03d" % number, bytes(VALUE_BYTES_MAX)) for number in range(20, 26)]
    await contract.store.put_many(pairs[:23])
    await contract.store.put_many(pairs[23:])
    assert await contract.store.scan(b"", b"z", 1000) == pairs


def test_a_missing_extra_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tikv_client.asynchronous", None)
    with pytest.raises(Rejected, match=r"hongbao\[tikv-txn\]"):
        TikvTxnStore(["127.0.0.1:2379"])


def test_a_process_without_tikv_does_not_load_its_clients() -> None:
    code = (
        "import sys, hongbao.cli.main, hongbao.cli.process, hongbao.cli.role, hongbao.cli.stores\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('tikv', 'tikv_client')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


async def _until_answered(call: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await call()
            except Transient:
                await asyncio.sleep(0.05)
