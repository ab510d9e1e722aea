"""The contract of LogStore, on every adapter (design §1)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hongbao.domain.errors import Ambiguous, Exhausted, Transient
from hongbao.shards.ports import KEY_BYTES_MAX, VALUE_BYTES_MAX

from tests.contracts.conftest import EMBEDDED, embedded_contract
from tests.contracts.store_contracts import Contract
from tests.contracts.tikv_contracts import TIKV, TXN, tikv_contract
from tests.waiting import LIMIT_S

REPEATS_MAX = 100
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


async def test_scans_during_writes_see_all_across_a_split(contract: Contract) -> None:
    """F10: nothing is missing, doubled or out of order while the keys' region is cut in two."""
    acknowledged = 0
    keys = [contract.key(f"{position:04d}") for position in range(200)]

    async def write() -> None:
        nonlocal acknowledged
        for key in keys:
            while True:
                try:
                    assert await contract.store.create(key, key) is True
                    break
                except Ambiguous:
                    if await contract.store.get(key) == key:
                        break
            acknowledged += 1
            await asyncio.sleep(0)

    async def split() -> None:
        for name in ("0029~", "0119~", "0149~"):
            await contract.split(name)

    writing = asyncio.create_task(write())
    splitting = asyncio.create_task(split())
    while not (writing.done() and splitting.done()):
        known = acknowledged
        found = await contract.store.scan(keys[0], contract.key("9999"), 1000)
        assert [key for key, _ in found] == keys[: len(found)]
        assert len(found) >= known
        await asyncio.sleep(0)
    await asyncio.gather(writing, splitting)
    assert await contract.store.scan(keys[10], keys[190], 170) == [
        (key, key) for key in keys[10:180]
    ]


async def test_the_last_of_a_put_is_never_seen_before_the_others(contract: Contract) -> None:
    """F11: it says that the others are there, wherever they lie."""
    names = [f"{(number * 37) % 100:04d}" for number in range(100)]  # hops between the parts
    await contract.split("0029~")
    await contract.split("0059~")
    for turn in range(3):
        keys = [contract.key(f"{name}{turn}") for name in [*names, "last"]]
        putting = asyncio.create_task(contract.store.put_many([(key, b"x") for key in keys]))
        while not putting.done():
            if await contract.store.get(keys[-1]) is not None:
                found = await contract.store.scan(contract.key("0000"), contract.key("9999"), 1000)
                assert set(keys[:-1]) <= {key for key, _ in found}
            await asyncio.sleep(0)
        await putting
        assert await contract.store.get(keys[-1]) == b"x"


async def repeat_put(contract: Contract, pairs: list[tuple[bytes, bytes]]) -> None:
    """Put as the deriver does: again, while the one that was cut off still gets in the way."""
    for _ in range(REPEATS_MAX):
        try:
            await contract.store.put_many(pairs)
            return
        except Transient:
            await asyncio.sleep(0.05)
    raise AssertionError(f"no put of {REPEATS_MAX} went through")


@pytest.mark.parametrize("contract", ["lmdb", "client", *TIKV], indirect=True)
async def test_a_put_that_is_cut_off_leaves_a_prefix_and_may_be_repeated(
    contract: Contract,
) -> None:
    names = [f"{(number * 37) % 100:04d}" for number in range(100)]
    await contract.split("0029~")
    await contract.split("0059~")
    cut = 0
    for turn in range(8):
        keys = [contract.key(f"{name}{turn}") for name in names]
        putting = asyncio.create_task(contract.store.put_many([(key, b"x") for key in keys]))
        await asyncio.sleep(0.002 * turn)
        cut += putting.cancel()
        await asyncio.wait([putting])
        # Backwards, for the rest may still be on its way: whatever precedes what is seen is there.
        there = [await contract.store.get(key) is not None for key in reversed(keys)]
        assert there == sorted(there)
        await repeat_put(contract, [(key, b"x") for key in keys])
    assert cut > 0


async def test_a_create_that_is_cut_off_is_settled_by_the_next_one(contract: Contract) -> None:
    """F3, F4: whoever is told that it created has the key, whatever is still on its way."""
    won: dict[bytes, bytes] = {}
    for number in range(30):
        key = contract.key(f"{number:04d}")
        creating = asyncio.create_task(contract.store.create(key, b"cut off"))
        await asyncio.sleep(0.0002 * number)
        creating.cancel()
        created = await contract.store.create(key, b"second")
        await asyncio.wait([creating])
        won[key] = b"second" if created else b"cut off"
    await asyncio.sleep(0.05)
    for key, value in won.items():
        assert await contract.store.get(key) == value


async def test_many_values_at_the_limit_are_put_and_scanned(contract: Contract) -> None:
    pairs = [(contract.key(f"{number:04d}"), bytes([number]) * VALUE_BYTES_MAX)
             for number in range(6)]  # fmt: skip
    small = [(contract.key(f"{number:04d}"), b"small") for number in range(6, 60)]
    await contract.store.put_many([*pairs, *small])
    end = contract.key("9999")
    assert await contract.store.scan(pairs[0][0], end, 1000) == [*pairs, *small]
    mixed = [*small, (contract.key("0060"), bytes(VALUE_BYTES_MAX))]
    await contract.store.put_many(mixed)
    assert await contract.store.scan(small[0][0], end, 1000) == mixed


async def test_a_put_of_thousands_of_small_pairs_is_taken(contract: Contract) -> None:
    """As found: the transactional client sends all keys with each part, too much for one put."""
    pairs = [(contract.key(f"{number:05d}"), b"x") for number in range(3000)]
    await contract.store.put_many(pairs)
    assert await contract.store.scan(pairs[0][0], contract.key("99999"), 10_000) == pairs


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


@pytest.mark.parametrize("contract", TXN, indirect=True)
async def test_a_create_with_puts_writes_all_or_nothing(contract: Contract) -> None:
    """F4, F11: of racing creators one wins, and only its puts are there, with the key."""

    async def race(position: int, racer: bytes) -> bool:
        puts = [(contract.key(f"{name}{position:03d}"), racer) for name in ("x", "y")]
        try:
            return bool(
                await contract.store.create_with(contract.key(f"a{position:03d}"), racer, puts)
            )
        except Ambiguous:
            return await contract.store.get(contract.key(f"a{position:03d}")) == racer

    for position in range(10):
        racers = [b"%d" % racer for racer in range(8)]
        won = await asyncio.gather(*(race(position, racer) for racer in racers))
        assert won.count(True) == 1
        for name in ("a", "x", "y"):
            value = await contract.store.get(contract.key(f"{name}{position:03d}"))
            assert value == racers[won.index(True)]


@pytest.mark.parametrize("contract", ["client", *TIKV], indirect=True)
async def test_a_create_that_a_kill_interrupts_is_told_by_reading_back(contract: Contract) -> None:
    """F8, F10: whatever was answered is true after the restart; Ambiguous is read back.

    A kill that falls between two calls interrupts none, and one before anything is written again
    cannot; so let writes be answered, kill, and go on until a create was interrupted.
    """
    outcomes: dict[bytes, bool | None] = {}
    bare = getattr(contract.store, "bare", contract.store)  # a patient one settles what is in doubt
    answered = asyncio.Event()
    killed_enough = False

    async def write(writer: int) -> None:
        number = 0
        while not killed_enough:
            key = contract.key(f"{writer}-{number}")
            number += 1
            try:
                outcomes[key] = await bare.create(key, key)
                answered.set()
            except Ambiguous:
                outcomes[key] = None
            except Transient:
                await asyncio.sleep(0.01)

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    for _ in range(KILLS_MAX):
        answered.clear()
        await asyncio.wait_for(answered.wait(), LIMIT_S)
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
