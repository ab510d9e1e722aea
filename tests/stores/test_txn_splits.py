"""What the transactional client does while PD knows no region for a key: it is asked again."""

import asyncio
from typing import Any

import pytest
from hongbao.adapters import tikv_txn
from hongbao.adapters.tikv_txn import TikvTxnStore
from hongbao.domain.errors import Transient

pytest.importorskip("tikv_client", reason="the extra tikv-txn is not installed")


class Splitting:
    """Is the client, its snapshots and its transactions, over one region that is just splitting."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.commits = 0
        self.values: dict[bytes, bytes] = {}

    async def current_timestamp(self) -> int:
        return 1

    def snapshot(self, *_: Any) -> "Splitting":
        return self

    async def begin(self) -> "Splitting":
        return self

    async def get(self, key: bytes) -> bytes | None:
        self._find_region(key)
        return self.values.get(key)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        self._find_region(start)
        return sorted(pair for pair in self.values.items() if start <= pair[0] < end)[:limit]

    async def put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value

    async def rollback(self) -> None:
        pass

    async def commit(self) -> None:
        self.commits += 1

    def _find_region(self, key: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise Exception(f"Region is not found for key: {key!r}")


def store_over(client: Splitting) -> TikvTxnStore:
    store = TikvTxnStore(["pd:2379"])
    store._client = client
    return store


async def test_reads_and_creates_wait_out_a_split() -> None:
    client = Splitting(failures=2)
    store = store_over(client)
    assert await store.create(b"a", b"1") is True
    assert (client.failures, client.commits) == (0, 1)
    for read in (lambda: store.get(b"a"), lambda: store.scan(b"a", b"b", 10)):
        client.failures = 2
        assert await read() in (b"1", [(b"a", b"1")])
        assert client.failures == 0
    await store.close()


async def test_what_goes_on_longer_than_a_split_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tikv_txn, "SPLIT_S_MAX", 0.2)
    client = Splitting(failures=1 << 30)
    store = store_over(client)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(Transient, match="Region is not found"):
        await store.get(b"a")
    assert asyncio.get_running_loop().time() - began_s >= 0.2
    with pytest.raises(Transient, match="Region is not found"):
        await store.create(b"a", b"1")
    assert client.commits == 0
    await store.close()


class Gated(Splitting):
    """Answers a read once it may."""

    def __init__(self) -> None:
        super().__init__(failures=0)
        self.may = asyncio.Event()

    async def get(self, key: bytes) -> bytes | None:
        await self.may.wait()
        return await super().get(key)


@pytest.mark.parametrize("turns", range(12))
async def test_a_call_that_is_cancelled_as_its_answer_comes_is_cancelled(turns: int) -> None:
    """As found: `wait_for` gave the answer, lost the cancellation, and a reader read for ever."""
    client = Gated()
    store = store_over(client)
    call = asyncio.create_task(store.get(b"key"))
    await asyncio.sleep(0.01)
    client.may.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    answered = call.done()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled() is not answered
    await store.close()
