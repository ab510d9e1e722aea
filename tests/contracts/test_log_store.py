"""The contract of LogStore, on every adapter (design §1)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hongbao.domain.errors import Ambiguous, Exhausted, Transient
from hongbao.shards.ports import KEY_BYTES_MAX, VALUE_BYTES_MAX

from tests.contracts.conftest import EMBEDDED, embedded_contract
from tests.contracts.store_contracts import Contract
from tests.contracts.tikv_contracts import TIKV, tikv_contract

KILLS_MAX = 20
"""A kill that interrupts no call is possible each time; twenty in a row are not."""


@pytest.fixture(params=[*EMBEDDED, *TIKV])
async def contract(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Contract]:
    open_contract = embedded_contract if request.param in EMBEDDED else tikv_contract
    async with open_contract(request, tmp_path) as made:
        yield made


async def test_an_absent_key_is_created(contract: Contract) -> None:
    assert await contract.store.create(contract.key("a"), b"first") is True
    assert await contract.store.get(contract.key("a")) == b"first"


async def test_a_present_key_keeps_its_first_value(contract: Contract) -> None:
    await contract.store.create(contract.key("a"), b"first")
    assert await contract.store.create(contract.key("a"), b"second") is False
    assert await contract.store.get(contract.key("a")) == b"first"


async def test_exactly_one_of_many_racing_creates_wins(contract: Contract) -> None:
    """F4: no two writers ever get the same position."""
    for position in range(20):
        key = contract.key(f"{position:04d}")
        racers = [contract.store.create(key, b"%d" % racer) for racer in range(16)]
        won = await asyncio.gather(*racers)
        assert won.count(True) == 1
        assert await contract.store.get(key) == b"%d" % won.index(True)


async def test_an_absent_key_reads_as_none(contract: Contract) -> None:
    assert await contract.store.get(contract.key("a")) is None


async def test_put_many_writes_in_the_given_order_and_may_be_repeated(contract: Contract) -> None:
    items = [(contract.key("a"), b"1"), (contract.key("b"), b"2"), (contract.key("a"), b"3")]
    await contract.store.put_many(items)
    await contract.store.put_many(items)
    assert await contract.store.get(contract.key("a")) == b"3"
    assert await contract.store.get(contract.key("b")) == b"2"


async def test_a_scan_is_ordered_half_open_and_limited(contract: Contract) -> None:
    keys = [contract.key(f"{number:03d}") for number in range(10)]
    await contract.store.put_many([(key, key) for key in reversed(keys)])
    found = await contract.store.scan(keys[2], keys[8], 100)
    assert found == [(key, key) for key in keys[2:8]]
    assert await contract.store.scan(keys[2], keys[8], 3) == found[:3]
    assert await contract.store.scan(keys[2], keys[8], 0) == []
    assert await contract.store.scan(keys[8], keys[2], 100) == []
    between = contract.key("0025")
    assert await contract.store.scan(between, keys[4], 100) == [(keys[3], keys[3])]


async def test_scans_during_writes_see_every_write_that_was_acknowledged(
    contract: Contract,
) -> None:
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        for position in range(60):
            await contract.store.create(contract.key(f"{position:04d}"), b"x")
            acknowledged = position + 1
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    while not writing.done():
        known = acknowledged
        found = await contract.store.scan(contract.key("0000"), contract.key("9999"), 1000)
        assert [key for key, _ in found] == [
            contract.key(f"{position:04d}") for position in range(len(found))
        ]
        assert len(found) >= known
        await asyncio.sleep(0)
    await writing


async def test_the_largest_key_and_value_are_taken(contract: Contract) -> None:
    key = contract.key("a").ljust(KEY_BYTES_MAX, b"k")
    value = bytes(VALUE_BYTES_MAX)
    assert await contract.store.create(key, value)
    assert await contract.store.get(key) == value


@pytest.mark.parametrize(
    ("key_bytes", "value_bytes"), [(0, 1), (KEY_BYTES_MAX + 1, 1), (1, VALUE_BYTES_MAX + 1)]
)
async def test_what_is_too_large_or_empty_is_refused_and_nothing_written(
    contract: Contract, key_bytes: int, value_bytes: int
) -> None:
    key, value = b"k" * key_bytes, bytes(value_bytes)
    with pytest.raises(Exhausted):
        await contract.store.create(key, value)
    with pytest.raises(Exhausted):
        await contract.store.put_many([(contract.key("a"), b"1"), (key, value)])
    assert await contract.store.get(contract.key("a")) is None


async def test_everything_acknowledged_is_there_after_a_restart(contract: Contract) -> None:
    await contract.store.create(contract.key("a"), b"created")
    await contract.store.put_many([(contract.key("b"), b"put")])
    await contract.restart()
    assert await contract.store.get(contract.key("a")) == b"created"
    assert await contract.store.get(contract.key("b")) == b"put"
    assert await contract.store.create(contract.key("a"), b"second") is False
    assert await contract.store.create(contract.key("c"), b"new") is True


@pytest.mark.parametrize("contract", ["client", *TIKV], indirect=True)
async def test_a_create_that_a_kill_interrupts_is_told_by_reading_back(contract: Contract) -> None:
    """F8, F10: whatever was answered is true after the restart; Ambiguous is read back.

    A kill that falls between two calls interrupts none, and the writers go on after it; so kill
    until one was interrupted.
    """
    outcomes: dict[bytes, bool | None] = {}
    killed_enough = False

    async def write(writer: int) -> None:
        number = 0
        while not killed_enough:
            key = contract.key(f"{writer}-{number}")
            number += 1
            try:
                outcomes[key] = await contract.store.create(key, key)
            except Ambiguous:
                outcomes[key] = None
            except Transient:
                await asyncio.sleep(0.01)

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    for _ in range(KILLS_MAX):
        await asyncio.sleep(0.05)
        await contract.restart()
        if None in outcomes.values():
            break
    killed_enough = True
    await asyncio.gather(*writers)
    assert None in outcomes.values()
    for key, outcome in outcomes.items():
        value = await contract.store.get(key)
        if outcome is None:
            assert await contract.store.create(key, b"again") is (value is None)
        else:
            assert outcome is True
            assert value == key
