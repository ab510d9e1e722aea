"""Builds a run for the audit: a tiny minted campaign, its logs, a ledger that settlement wrote."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import sqlalchemy as sa
from hongbao.adapters import sql
from hongbao.adapters.memory import MemoryStore
from hongbao.adapters.sql_fund import SqlFund
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.audit.campaign import AuditInput, AuditReport, audit_campaign
from hongbao.domain.campaign import Campaign, Slot, Sponsor
from hongbao.domain.claim import Claim
from hongbao.domain.cursor import RESERVED, RETURNED, CursorEntry, cursor_key, pack_cursor
from hongbao.domain.ids import Fen, SlotNumber, SponsorIndex
from hongbao.settle.book import KeyRules
from hongbao.settle.fund import Minted, plan_pay_in
from hongbao.settle.ports import TransferState
from hongbao.settle.settler import Settler
from hongbao.shards.block import Block

from tests.minted import CAMPAIGN, RUN, MintedCampaign
from tests.settle.claims import (
    OPENED_AT_MS,
    SteppedClock,
    blocks_of,
    book_of,
    schemes_of,
    shard_claims,
    write_log,
)

LATENCY_MS = 1500
ACTIVE = {1: 1, 2: 1}


def deposits_of(minted: MintedCampaign) -> dict[int, int]:
    fen: dict[int, int] = {}
    for batch in minted.plan.batches:
        fen[batch.sponsor] = fen.get(batch.sponsor, 0) + batch.total_fen
    return fen


def campaign_of(minted: MintedCampaign) -> Campaign:
    """Return a campaign whose deposits are what was minted."""
    sponsors = tuple(
        Sponsor(SponsorIndex(index), f"sponsor-{index}", f"Sponsor {index}", Fen(fen), 1)
        for index, fen in sorted(deposits_of(minted).items())
    )
    slots = tuple(Slot(SlotNumber(n), f"slot {n}", n * 1000, n * 1000 + 900) for n in (1, 2))
    return Campaign(CAMPAIGN, "Tiny", sponsors, slots, (), "scheme-1", 3)


@dataclass
class Run:
    """Is a run that can be audited, honest until a test plants something."""

    minted: MintedCampaign
    engine: sa.Engine
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: SteppedClock = field(default_factory=lambda: SteppedClock(OPENED_AT_MS + LATENCY_MS))
    given: AuditInput = field(init=False)

    def __post_init__(self) -> None:
        sql.prepare_schema(self.engine, CAMPAIGN, RUN)
        self.given = AuditInput(
            campaign=campaign_of(self.minted),
            schemes=schemes_of(self.minted),
            active=ACTIVE,
            log_store=self.store,
            ledger=self.engine,
        )

    async def play(self, *, count: int | None = 60) -> list[Claim]:
        """Pay in, open `count` packets of each shard, settle them."""
        self.pay_in()
        claims = []
        for shard in (0, 1):
            mine = shard_claims(self.minted, shard, count=count, user=100 + 1000 * shard)
            await self.log_and_settle(shard, blocks_of(mine))
            claims += mine
        return claims

    def pay_in(self) -> None:
        deposits = deposits_of(self.minted)
        for sponsor, fen in deposits.items():
            self.pay(sponsor, fen, f"r{sponsor}")

    def pay(self, sponsor: int, fen: int, reference: str) -> None:
        """Record a pay-in of any size, as a campaign with larger deposits would."""
        movement = plan_pay_in(reference, sponsor, fen, {sponsor: fen}, 1)
        assert SqlFund(self.engine).pay_in(movement, 1 << 50)

    async def log_and_settle(
        self,
        shard: int,
        blocks: list[Block],
        *,
        settle: bool = True,
        state: int = 1,
        keys: KeyRules | None = None,
    ) -> None:
        await write_log(self.store, shard, blocks)
        if settle:
            ledger, wall_ms = SqlLedger(self.engine), self.clock.wall_ms
            settler = Settler(shard, ledger, state=TransferState(state), wall_ms=wall_ms)
            assert settler.settle(blocks, book_of(self.minted, keys=keys)).blocks == len(blocks)

    async def reserve(self, file: int, *entries: CursorEntry) -> None:
        """Write a ticket file's cursor log."""
        for position, entry in enumerate(entries):
            assert await self.store.create(cursor_key(file, position), pack_cursor(entry))

    def refund(self) -> None:
        SqlFund(self.engine).refund(Minted(deposits_of(self.minted)), 1)

    def execute(self, statement: str, **values: object) -> None:
        """Plant something in the ledger, behind everybody's back."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    async def reserve_rest(self) -> None:
        """Let access have issued every ticket file whose cursor log no test wrote."""
        for file in self.minted.manifest.files:
            if await self.store.get(cursor_key(file.file, 0)) is None:
                whole = CursorEntry(RESERVED, 1, 1, 0, file.count, 0)
                returned = CursorEntry(RETURNED, 1, 1, file.count, file.count, file.count)
                await self.reserve(file.file, whole, returned)

    async def audit(self, **changes: object) -> AuditReport:
        await self.reserve_rest()
        return await audit_campaign(replace(self.given, **changes))  # type: ignore[arg-type]


def make_run(minted: MintedCampaign, folder: Path) -> Run:
    return Run(minted, sql.open_engine(f"sqlite:///{folder / 'ledger.db'}"))
