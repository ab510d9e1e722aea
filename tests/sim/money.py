"""The claims plane in the simulation: real claims machines, real settlement, money that adds up.

Settlement reads what readers read, but its own process is worse off: blocks come again and out
of order, two settlers work on one shard, and each may die just before or just after a commit.
"""

import atexit
import functools
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from hongbao.domain.claim import CLOSING, Claim, logged_claims, pack_claim, parse_claim
from hongbao.domain.errors import Fenced, Transient
from hongbao.redeem.machine import ClaimOutcome, ClaimsMachine, parse_result
from hongbao.settle.book import Book
from hongbao.settle.memory import MemoryLedger
from hongbao.settle.ports import AccountKind, Posted, Posting, TransferState
from hongbao.settle.settler import Settler
from hongbao.shards.block import Block, ShardKey

from tests.minted import MintedCampaign, tiny_campaign
from tests.settle.claims import book_of, shard_claims
from tests.sim.dice import Dice
from tests.sim.history import Call, Violation

PACKETS_A_SHARD = 12
USERS = 5
CLOSING_CHANCE = 0.02
ROUNDS_MAX = 100
SETTLED_AT_MS = 1_700_000_002_000

Logs = Mapping[int, Sequence[Block]]


class CrashingLedger(MemoryLedger):
    """Lets the process die around its commits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.crash = ""  # before | after

    def post(self, posting: Posting) -> Posted:
        if self.crash == "before":
            raise Transient("died before the commit")
        posted = super().post(posting)
        if self.crash == "after":
            raise Transient("died after the commit")
        return posted


class MovesLater(CrashingLedger):
    """Is the planted double settle: no unique id, and the position in a transaction of its own."""

    def post(self, posting: Posting) -> Posted:
        if self.position(posting.shard) != posting.start:
            raise Fenced("another process settled this")
        self.transfers.update({one.serial: one for one in posting.transfers})
        self._book(posting.transfers, posting.posted_at_ms)
        if self.crash:
            raise Transient("died between the two transactions")
        self.positions[posting.shard] = posting.end
        return Posted.POSTED


class ClaimsScenario:
    """Lets a few users race for a few packets, and settles what they claimed."""

    plane = "claims"
    shards = (0, 1)
    ledger_type: type[CrashingLedger] = CrashingLedger

    def __init__(self) -> None:
        minted, self._book = minted_book()
        self._packets = {
            shard: shard_claims(minted, shard, count=PACKETS_A_SHARD) for shard in self.shards
        }
        self.ledger = self.ledger_type()
        self._read: dict[int, list[Block]] = {shard: [] for shard in self.shards}
        self._settlers = {shard: [self._settler(shard) for _ in range(2)] for shard in self.shards}

    def machine(self, shard: int) -> ClaimsMachine:
        return ClaimsMachine(ShardKey(self.plane, shard))

    def operation(self, client: int, dice: Dice) -> tuple[int, bytes]:
        shard = dice.choose(self.shards)
        if dice.happens(CLOSING_CHANCE):
            return shard, CLOSING
        packet = dice.choose(self._packets[shard])
        user = 1 + dice.below(USERS)
        opened_at_ms = packet.opened_at_ms + dice.below(1000)
        return shard, pack_claim(packet._replace(user=user, opened_at_ms=opened_at_ms))

    def consume(self, shard: int, position: int, block: Block) -> None:
        """Settle some of what was read so far, with crashes that follow from the block."""
        read = self._read[shard]
        read.append(block)
        dice = Dice(int.from_bytes(block.nonce[:8], "big") ^ position)
        again = read[max(0, len(read) - 1 - dice.below(6)) :]
        if dice.happens(0.3):
            again = [*again[::-1], *again]
        if dice.happens(0.2):
            again = again[1:]  # a gap: the next delivery fills it
        self.ledger.crash = dice.choose(("", "", "before", "after"))
        settler = self._settlers[shard][dice.below(2)]
        try:
            settler.settle(again, self._book)
        except (Transient, Fenced):
            if dice.happens(0.5):
                self._settlers[shard] = [self._settler(shard) for _ in range(2)]

    def check(self, logs: Logs, calls: Sequence[Call]) -> list[Violation]:
        self.ledger.crash = ""
        for shard in self.shards:
            self._catch_up(shard, logs[shard])
        claims = claims_of(logs)
        return [*self._check_ledger(claims), *check_plane(logs, claims, calls)]

    def _settler(self, shard: int) -> Settler:
        return Settler(
            shard, self.ledger, state=TransferState.CREDITED, wall_ms=lambda: SETTLED_AT_MS
        )

    def _catch_up(self, shard: int, blocks: Sequence[Block]) -> None:
        """Settle the rest as a restarted process does, once no fault is left."""
        settler = self._settler(shard)
        for _ in range(ROUNDS_MAX):
            if not settler.settle(blocks[settler.position() :], self._book).blocks:
                return

    def _check_ledger(self, claims: Mapping[int, Claim]) -> list[Violation]:
        """Every claim is credited once, to its user, with what was minted."""
        found = []
        wanted = {serial: (one.user, one.amount_fen) for serial, one in claims.items()}
        ledger = self.ledger
        paid = {key: (one.user, one.amount_fen) for key, one in ledger.transfers.items()}
        for serial in sorted(wanted.keys() | paid.keys()):
            if wanted.get(serial) != paid.get(serial):
                evidence = f"{serial}: claimed {wanted.get(serial)}, paid {paid.get(serial)}"
                found.append(Violation("credited = claims one to one", evidence))
        credits: Counter[int] = Counter()
        for user, amount_fen in wanted.values():
            credits[user] += amount_fen
        booked = {
            user: fen
            for (kind, user), fen in ledger.credited_fen.items()
            if kind == AccountKind.USER
        }
        if booked != dict(credits):
            found.append(Violation("accounts equal the claims", f"{booked}, not {dict(credits)}"))
        if ledger.quarantine:
            evidence = str(next(iter(ledger.quarantine.values())))
            found.append(Violation("no honest claim is quarantined", evidence))
        return found


class DoubleSettleScenario(ClaimsScenario):
    """Is the claims plane with the planted double settle."""

    ledger_type = MovesLater


def claims_of(logs: Logs) -> dict[int, Claim]:
    """Return every claim of the logs, by the packet's serial."""
    return {
        claim.serial: claim
        for blocks in logs.values()
        for block in blocks
        for claim in map(parse_claim, logged_claims(block.entries))
    }


def check_plane(logs: Logs, claims: Mapping[int, Claim], calls: Sequence[Call]) -> list[Violation]:
    """What users were told is what the logs say, and a closed log stays closed."""
    closed = {
        shard: [CLOSING in block.entries for block in blocks] for shard, blocks in logs.items()
    }
    found = _check_answers(claims, closed, calls)
    for shard, closings in closed.items():
        behind = logs[shard][closings.index(True) + 1 :] if any(closings) else []
        if any(block.entries for block in behind):
            found.append(Violation("nothing lies behind a closing", f"claims/{shard}"))
    return found


def _check_answers(
    claims: Mapping[int, Claim], closed: Mapping[int, Sequence[bool]], calls: Sequence[Call]
) -> list[Violation]:
    """What a user was told is what the log says, for ever."""
    found = []
    for call in calls:
        if call.result is None:
            continue
        told = parse_result(call.result)
        if call.operation == CLOSING or told.outcome == ClaimOutcome.CLOSED:
            if told.outcome != ClaimOutcome.CLOSED or not any(closed[call.shard]):
                found.append(Violation("closed is what the log closes", str(call)))
            continue
        asked = parse_claim(call.operation)
        claim = claims.get(asked.serial)
        if claim is None:
            found.append(Violation("no acknowledged claim is lost", str(call)))
            continue
        mine = told.outcome in (ClaimOutcome.OPENED, ClaimOutcome.REPEATED)
        right = mine or told.outcome == ClaimOutcome.ALREADY_OPENED
        amount_fen = claim.amount_fen if mine else 0
        if not right or mine != (claim.user == asked.user) or told.amount_fen != amount_fen:
            found.append(Violation("every answer is the log's", f"{call}: {claim}"))
    return found


@functools.cache
def minted_book() -> tuple[MintedCampaign, Book]:
    folder = tempfile.TemporaryDirectory(prefix="hongbao-sim-")
    atexit.register(folder.cleanup)
    minted = tiny_campaign(Path(folder.name))
    return minted, book_of(minted)
