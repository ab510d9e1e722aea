"""ClaimsMachine against a plain dict, with snapshots, replay and bad bytes (R43, R51, F2-F4)."""

import struct
from collections.abc import Iterable
from hashlib import shake_256

import hypothesis.strategies as st
import pytest
from hongbao.domain.claim import (
    CLAIM_BYTES,
    CLOSING,
    Claim,
    claims_array,
    closed_key,
    pack_claim,
    parse_claim,
)
from hongbao.domain.errors import Corrupt, Rejected
from hongbao.redeem import machine as claims_machine
from hongbao.redeem.machine import ClaimOutcome, ClaimsMachine, parse_result
from hongbao.shards.block import Block, BlockKind, ShardKey, encode_block
from hongbao.shards.machine import Answer, Append, Lookup
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

FILE_PACKETS = 5000
SHARD = ShardKey("claims", 3)


def block_of(position: int, *claims: Claim) -> bytes:
    """Return a block as an owner writes it."""
    entries = [pack_claim(claim) for claim in claims]
    return encode_block(Block(BlockKind.OPERATIONS, 1, bytes(16), position, entries))


def claim_of(serial: int, user: int, **changes: int) -> Claim:
    """Return the claim of a packet: its serial decides all but the user."""
    file, bit = divmod(serial, FILE_PACKETS)
    claim = Claim(
        batch=3,
        key_id=serial % 7 + 1,
        slot=1,
        sponsor=2,
        pod=4,
        pod_epoch=5,
        file=file,
        bit=bit,
        amount_fen=100 + serial,
        serial=serial,
        user=user,
        opened_at_ms=1_700_000_000_000,
    )
    return claim._replace(**changes)


def state(machine: ClaimsMachine) -> bytes:
    """Return all that a machine knows."""
    return b"".join(machine.snapshot())


def restored(snapshot: bytes) -> ClaimsMachine:
    machine = ClaimsMachine(SHARD)
    for _ in machine.restore(snapshot):
        pass
    return machine


class ClaimsAgainstADict(RuleBasedStateMachine):
    """Opens packets in any order, between fail-overs of every kind.

    The model is a dict from serial to the winner. The store is what an owner would have written:
    a log of blocks, of one entry each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.machine = ClaimsMachine(SHARD)
        self.winners: dict[int, int] = {}
        self.log: list[bytes] = []
        self.checkpoint: tuple[int, Iterable[bytes]] = (0, self.machine.snapshot())

    def submit(self, operation: bytes) -> tuple[int, int]:
        """Do what an owner does with one operation."""
        decision = self.machine.decide(operation, len(self.log))
        if isinstance(decision, Append):
            self.log.append(decision.entry)
            assert not self.machine.derive(decision.entry)
            return parse_result(decision.result)
        if isinstance(decision, Answer):
            return parse_result(decision.result)
        blocks = {
            SHARD.log(position): block_of(position, parse_claim(entry))
            for position, entry in enumerate(self.log)
        }
        return parse_result(self.machine.answer(operation, blocks[decision.key]))

    @rule(
        serial=st.one_of(st.integers(0, 12), st.integers(0, 4 * FILE_PACKETS - 1)),
        user=st.integers(1, 3),
    )
    def open_packet(self, serial: int, user: int) -> None:
        outcome, amount_fen = self.submit(pack_claim(claim_of(serial, user)))
        first = serial not in self.winners
        winner = self.winners.setdefault(serial, user)
        if first:
            assert (outcome, amount_fen) == (ClaimOutcome.OPENED, 100 + serial)
        elif winner == user:
            assert (outcome, amount_fen) == (ClaimOutcome.REPEATED, 100 + serial)
        else:
            assert (outcome, amount_fen) == (ClaimOutcome.ALREADY_OPENED, 0)

    @rule()
    def take_checkpoint(self) -> None:
        """Freeze the state; it is read at a fail-over, when packets were opened meanwhile."""
        self.checkpoint = (len(self.log), self.machine.snapshot())

    @rule()
    def fail_over(self) -> None:
        """Replay behind the last checkpoint into a new machine; the state must be the same."""
        before = state(self.machine)
        replayed, pieces = self.checkpoint
        snapshot = b"".join(pieces)
        self.checkpoint = (replayed, [snapshot])
        self.machine = restored(snapshot)
        for position, entry in enumerate(self.log[replayed:], replayed):
            self.machine.apply(entry, position)
        assert state(self.machine) == before

    @invariant()
    def one_claim_per_packet(self) -> None:
        claims = [parse_claim(entry) for entry in self.log]
        assert {claim.serial: claim.user for claim in claims} == self.winners
        assert len(claims) == len(self.winners)


TestClaimsAgainstADict = ClaimsAgainstADict.TestCase
TestClaimsAgainstADict.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


claims = st.builds(
    Claim,
    *[st.integers(0, (1 << 16) - 1)] * 5,
    *[st.integers(0, (1 << 32) - 1)] * 4,
    *[st.integers(0, (1 << 64) - 1)] * 3,
)


@given(st.lists(claims, max_size=20))
def test_claims_read_back_one_by_one_and_as_an_array(some: list[Claim]) -> None:
    entries = [pack_claim(claim) for claim in some]
    assert [parse_claim(entry) for entry in entries] == some
    array = claims_array(b"".join(entries))
    for name in Claim._fields:
        assert array[name].tolist() == [getattr(claim, name) for claim in some]


@given(st.binary(max_size=120))
def test_bytes_that_are_no_claim_change_nothing(noise: bytes) -> None:
    machine = ClaimsMachine(SHARD)
    if (len(noise) == CLAIM_BYTES and noise[:2] == b"\0\1") or noise == CLOSING:
        return
    with pytest.raises(Rejected):
        machine.decide(noise, 1)
    with pytest.raises(Corrupt):
        machine.apply(noise, 1)
    with pytest.raises(Corrupt):
        parse_claim(noise)
    assert state(machine) == state(ClaimsMachine(SHARD))


def test_an_array_of_claims_refuses_other_bytes() -> None:
    entry = pack_claim(claim_of(1, 1))
    with pytest.raises(Corrupt, match="multiple"):
        claims_array(entry + b"\0")
    with pytest.raises(Corrupt, match="version"):
        claims_array(entry + b"\0\2" + entry[2:])


def test_a_packet_past_the_limits_of_a_shard_is_rejected_and_takes_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims_machine, "PAGES_MAX", 1)
    machine = ClaimsMachine(SHARD)
    machine.decide(pack_claim(claim_of(1, 1)), 1)
    before = state(machine)
    with pytest.raises(Rejected, match="limits"):
        machine.decide(pack_claim(claim_of(2, 1, bit=(1 << 32) - 1)), 2)
    assert state(machine) == before


places = st.integers(0, (1 << 32) - 1)


@given(st.dictionaries(st.tuples(places, places), st.integers(0, (1 << 32) - 2), max_size=20))
def test_every_packet_has_a_place_of_its_own(opened: dict[tuple[int, int], int]) -> None:
    """Whatever their files and bits, packets do not open one another, and are found again."""
    machine = ClaimsMachine(SHARD)
    for (file, bit), position in opened.items():
        operation = pack_claim(claim_of(1, 1, file=file, bit=bit))
        assert isinstance(machine.decide(operation, position), Append)
    again = restored(state(machine))
    for (file, bit), position in opened.items():
        operation = pack_claim(claim_of(1, 1, file=file, bit=bit))
        assert again.decide(operation, position + 1) == Lookup(SHARD.log(position))


def test_a_large_state_is_restored_step_by_step_and_changes_at_the_last() -> None:
    """A lease is renewed between two steps."""
    machine = ClaimsMachine(SHARD)
    pages = 3 * claims_machine.STEP_PAGES
    for file in range(pages):
        machine.apply(pack_claim(claim_of(1, 1, file=file)), 5)
    again = ClaimsMachine(SHARD)
    empty = state(again)
    steps = again.restore(state(machine))
    for _ in range(3):
        next(steps)
        assert state(again) == empty
    assert list(steps) == []
    assert state(again) == state(machine)


def test_a_packet_that_was_opened_is_found_while_a_snapshot_holds_its_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look-up is decided, the state is frozen for a checkpoint, and then it is answered."""
    monkeypatch.setattr(claims_machine, "PAGES_MAX", 1)
    machine = ClaimsMachine(SHARD)
    operation = pack_claim(claim_of(1, 1))
    machine.decide(operation, 7)
    assert machine.decide(operation, 8) == Lookup(SHARD.log(7))
    pieces = machine.snapshot()
    block = block_of(7, claim_of(1, 1))
    assert parse_result(machine.answer(operation, block)) == (ClaimOutcome.REPEATED, 101)
    assert machine.decide(operation, 9) == Lookup(SHARD.log(7))
    assert isinstance(machine.decide(pack_claim(claim_of(2, 1)), 10), Append)  # of the same page
    with pytest.raises(Rejected, match="limits"):
        machine.decide(pack_claim(claim_of(2, 1, file=9)), 11)
    assert state(restored(b"".join(pieces))) != state(machine)


def test_a_log_with_two_claims_of_one_packet_is_corrupt() -> None:
    """R51 c: an owner that finds this must not serve the shard."""
    machine = ClaimsMachine(SHARD)
    machine.apply(pack_claim(claim_of(1, 1)), 1)
    with pytest.raises(Corrupt, match="two claims"):
        machine.apply(pack_claim(claim_of(1, 2)), 2)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        block_of(8, claim_of(1, 1)),
        block_of(7, claim_of(1, 1)._replace(serial=2)),
        block_of(7, claim_of(1, 1, file=9), claim_of(1, 1, bit=9)),
        block_of(7, claim_of(1, 1))[:-1] + b"?",
    ],
)
def test_a_claim_that_is_missing_or_of_another_packet_contradicts(value: bytes | None) -> None:
    """Nothing is paid on a contradiction, and the shard goes on."""
    machine = ClaimsMachine(SHARD)
    operation = pack_claim(claim_of(1, 1))
    machine.decide(operation, 7)
    assert machine.decide(operation, 8) == Lookup(SHARD.log(7))
    assert parse_result(machine.answer(operation, value)) == (ClaimOutcome.CONTRADICTION, 0)
    good = block_of(7, claim_of(2, 2), claim_of(1, 1))
    assert parse_result(machine.answer(operation, good)) == (ClaimOutcome.REPEATED, 101)


def test_a_denied_key_is_refused_before_it_opens_and_replayed_if_it_was_opened() -> None:
    """F20: the gate refuses operations; it never changes what the log says."""
    denied: set[int] = set()
    machine = ClaimsMachine(SHARD, key_allowed=lambda key_id: key_id not in denied)
    opened, late = pack_claim(claim_of(7, 1, key_id=300)), pack_claim(claim_of(8, 1, key_id=300))
    machine.decide(opened, 1)
    before = state(machine)
    denied.add(300)
    decision = machine.decide(late, 2)
    assert isinstance(decision, Answer)
    assert parse_result(decision.result) == (ClaimOutcome.REFUSED, 0)
    assert state(machine) == before
    replayed = ClaimsMachine(SHARD, key_allowed=lambda key_id: False)
    replayed.apply(opened, 1)
    assert state(replayed) == before


def test_a_snapshot_that_is_cut_padded_or_foreign_is_corrupt() -> None:
    machine = ClaimsMachine(SHARD)
    for serial in (1, 9000):
        machine.apply(pack_claim(claim_of(serial, 1)), 5)
    good = state(machine)
    huge = struct.pack(">4sBI", b"HBCM", 2, 1 << 31)
    noise = [shake_256(bytes([seed])).digest(40) for seed in range(20)]
    for bad in [*(good[:cut] for cut in range(len(good))), good + b"\0", huge, *noise]:
        with pytest.raises(Corrupt):
            restored(bad)


def test_a_result_of_other_length_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        parse_result(b"\1")


def test_a_closed_log_opens_nothing_and_stays_closed_over_snapshots_and_replay() -> None:
    machine = ClaimsMachine(SHARD)
    first = pack_claim(claim_of(1, 5))
    machine.decide(first, 0)
    closing = machine.decide(CLOSING, 1)
    assert isinstance(closing, Append)
    assert closing.entry == CLOSING
    assert machine.derive(CLOSING) == ((closed_key(3), b"\x01"),)
    again, replayed = restored(state(machine)), ClaimsMachine(SHARD)
    for entry in (first, CLOSING):
        replayed.apply(entry, 0)
    for closed in (machine, again, replayed):
        for operation in (pack_claim(claim_of(2, 5)), first, CLOSING):
            decision = closed.decide(operation, 2)
            assert isinstance(decision, Answer)
            assert parse_result(decision.result) == (ClaimOutcome.CLOSED, 0)


def test_a_repeat_finds_its_claim_in_a_block_that_the_closing_ends() -> None:
    machine = ClaimsMachine(SHARD)
    for serial in (1, 2):
        machine.apply(pack_claim(claim_of(serial, 5)), 0)
    entries = [pack_claim(claim_of(1, 5)), CLOSING]
    block = encode_block(Block(BlockKind.OPERATIONS, 1, bytes(16), 0, entries))
    repeat, missing = pack_claim(claim_of(1, 5)), pack_claim(claim_of(2, 5))
    assert parse_result(machine.answer(repeat, block)) == (ClaimOutcome.REPEATED, 101)
    assert parse_result(machine.answer(missing, block)) == (ClaimOutcome.CONTRADICTION, 0)
