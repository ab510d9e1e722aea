"""Each rule over appends fails on a history that breaks it, and on no good one (F10)."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.shards.block import Block, BlockKind, ShardKey, encode_block

from tests.sim.dice import Dice
from tests.sim.toy import derived_key
from tests.stalls import Stalls
from tests.stores.appends import (
    PLANE,
    Answer,
    Appends,
    Writers,
    check_appends,
    check_resumed,
    resumed_s,
)
from tests.waiting import until

SHARD = 7
KEY = ShardKey(PLANE, SHARD)
PAST_END = b"\xff"

Pairs = dict[bytes, bytes]
Spoil = Callable[[Pairs, Appends], None]


async def good_history(seed: int) -> tuple[Pairs, Appends]:
    store = MemoryStore()
    writers = Writers({SHARD: store}, Dice(seed))
    await writers.start()
    await until(lambda: len(writers.appends.answers) >= 10, "some appends are answered")
    await writers.finish()
    return dict(await store.scan(b"", PAST_END, 1 << 20)), writers.appends


async def broken_rules(pairs: Pairs, appends: Appends) -> set[str]:
    store = MemoryStore()
    await store.put_many(list(pairs.items()))
    return {found.rule for found in await check_appends(store, appends)}


def lose_a_block(pairs: Pairs, appends: Appends) -> None:
    del pairs[KEY.log(2)]


def lose_an_answer(pairs: Pairs, appends: Appends) -> None:
    appends.answers.append(replace(appends.answers[0], number=999))


def tell_another_total(pairs: Pairs, appends: Appends) -> None:
    appends.answers[0] = replace(appends.answers[0], total=appends.answers[0].total + 1)


def append_twice(pairs: Pairs, appends: Appends) -> None:
    last = appends.seen[SHARD][-1].block
    again = appends.seen[SHARD][1].block.entries
    block = Block(BlockKind.OPERATIONS, last.epoch, last.nonce, last.position + 1, again)
    pairs[KEY.log(block.position)] = encode_block(block)


def let_another_write(pairs: Pairs, appends: Appends) -> None:
    last = appends.seen[SHARD][-1].block
    block = replace(last, nonce=b"x" * 16)
    pairs[KEY.log(block.position)] = encode_block(block)


def lose_a_derived_key(pairs: Pairs, appends: Appends) -> None:
    del pairs[derived_key(appends.answers[0].number)]


def lose_a_marker(pairs: Pairs, appends: Appends) -> None:
    del pairs[KEY.applied(1)]


def show_a_block_too_early(pairs: Pairs, appends: Appends) -> None:
    appends.seen[SHARD][1].derived_present = False


def stop_a_reader_early(pairs: Pairs, appends: Appends) -> None:
    appends.seen[SHARD].pop()


def read_a_block_twice(pairs: Pairs, appends: Appends) -> None:
    appends.seen[SHARD].insert(1, appends.seen[SHARD][1])


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lose_a_block, "no hole in the log"),
        (lose_an_answer, "no acknowledged operation is lost"),
        (tell_another_total, "what was told is in the log"),
        (append_twice, "no operation is doubled"),
        (let_another_write, "one writer per epoch"),
        (lose_a_derived_key, "derived keys follow from the log"),
        (lose_a_marker, "every block is applied in the end"),
        (show_a_block_too_early, "readers never pass what is applied"),
        (stop_a_reader_early, "readers reach the end"),
        (read_a_block_twice, "readers see a prefix of the log"),
    ],
)
async def test_a_bad_history_is_caught(spoil: Spoil, rule: str, seed: int) -> None:
    pairs, appends = await good_history(seed)
    assert await broken_rules(pairs, appends) == set()
    spoil(pairs, appends)
    assert rule in await broken_rules(pairs, appends)


def test_a_shard_that_does_not_go_on_in_time_is_caught() -> None:
    answers = [
        Answer(SHARD, 1, 1, asked_s=9.0, answered_s=10.5),  # asked before the fault: says nothing
        Answer(SHARD, 2, 2, asked_s=11.0, answered_s=13.0),
    ]
    appends = Appends(answers, {SHARD: []})
    assert resumed_s(appends, 10.0) == {SHARD: 3.0}
    assert check_resumed(appends, {"kill": 10.0}, within_s=3.0) == []
    assert len(check_resumed(appends, {"kill": 10.0}, within_s=2.0)) == 1
    assert len(check_resumed(appends, {"kill": 12.0}, within_s=99.0)) == 1


def test_the_time_in_which_the_machine_stood_still_does_not_count() -> None:
    appends = Appends([Answer(SHARD, 1, 1, asked_s=11.0, answered_s=18.0)], {SHARD: []})
    stalls = Stalls()
    stalls.note(9.0, 13.0)  # three of these seconds lie behind the fault
    stalls.note(14.0, 14.2)  # too short: the machine was busy
    stalls.note(17.5, 30.0)
    for within_s, violations in ((4.4, 1), (4.6, 0)):
        found = check_resumed(appends, {"kill": 10.0}, within_s, stalls.within_s)
        assert len(found) == violations
