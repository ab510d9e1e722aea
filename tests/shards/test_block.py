"""The bytes of blocks and the names of keys."""

import pytest
from hongbao.domain.errors import Corrupt
from hongbao.shards.block import Block, BlockKind, ShardKey, decode_block, encode_block, position_of
from hongbao.shards.ports import KEY_BYTES_MAX
from hypothesis import given
from hypothesis import strategies as st

U64 = st.integers(0, (1 << 64) - 1)
BLOCKS = st.builds(
    Block,
    st.sampled_from(BlockKind),
    U64,
    st.binary(min_size=16, max_size=16),
    U64,
    st.lists(st.binary(max_size=40), max_size=8).map(tuple),
)


@given(BLOCKS)
def test_a_block_comes_back_as_it_was(block: Block) -> None:
    assert decode_block(encode_block(block), position=block.position) == block


@given(BLOCKS, st.data())
def test_a_changed_byte_is_noticed(block: Block, data: st.DataObject) -> None:
    good = bytearray(encode_block(block))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt):
        decode_block(bytes(good), position=block.position)


@given(BLOCKS, st.integers(1, 60))
def test_a_cut_or_lengthened_block_is_noticed(block: Block, size: int) -> None:
    good = encode_block(block)
    for bad in (good[:-size], good + bytes(size)):
        with pytest.raises(Corrupt):
            decode_block(bad, position=block.position)


def test_a_block_of_another_position_is_noticed() -> None:
    block = Block(BlockKind.OPERATIONS, 1, bytes(16), 5, (b"x",))
    with pytest.raises(Corrupt):
        decode_block(encode_block(block), position=6)


@given(U64, U64, st.integers(0, (1 << 32) - 1))
def test_keys_sort_as_positions_do(first: int, second: int, shard: int) -> None:
    key = ShardKey("tickets", shard)
    assert (key.log(first) < key.log(second)) == (first < second)
    assert (key.applied(first) < key.applied(second)) == (first < second)
    assert position_of(key.log(first)) == position_of(key.applied(first)) == first


def test_keys_of_different_shards_and_kinds_never_meet() -> None:
    shards = [ShardKey(plane, shard) for plane in ("claims", "tickets") for shard in (0, 1, 10)]
    keys = [
        key
        for shard in shards
        for key in (
            shard.log(1),
            shard.applied(1),
            shard.checkpoint(),
            shard.checkpoint_chunk(1, 0, 0),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert max(map(len, keys)) < KEY_BYTES_MAX
