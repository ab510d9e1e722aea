"""Owns the funding model: sponsors, slots, schemes and their allocations, in fen and ms.

Refuses to know any file format and to mint: everything else is computed from this model
(seed 000 §10, R38). A Campaign that `campaign_file.read_campaign` returned keeps its rules:
every scheme spends each sponsor's deposit to the fen.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from hongbao.domain.ids import CampaignId, Fen, SlotNumber, SponsorIndex

KINDS: Final = ("image", "video", "logo")  # R36
CURVES: Final = ("uniform", "lucky")
KEY_CAP_FEN_DEFAULT: Final = Fen(200_000_00)  # R45: 200,000 to 300,000 yuan a key
KEY_CAP_FEN_MAX: Final = Fen(300_000_00)
PER_USER_PACKETS_MAX: Final = 255  # user_cap.CAP_MAX; what access counts, by process
SLOT_NUMBER_MAX: Final = (1 << 16) - 1
SLOTS_MAX: Final = 1000
SCHEMES_MAX: Final = 100
EXPOSURE_WEIGHT_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Sponsor:
    """Is one merchant of the budget.

    `index` is its position and never changes: a sponsor that withdraws keeps its line, with
    the deposit lowered to what was issued.
    """

    index: SponsorIndex
    sponsor: str
    name: str
    deposit_fen: Fen
    exposure_weight: int  # share of the non-winning shakes that show this sponsor


@dataclass(frozen=True, slots=True)
class Slot:
    """Is one window of the timeline, [starts_at_ms, ends_at_ms) in wall time."""

    slot: SlotNumber
    name: str
    starts_at_ms: int
    ends_at_ms: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """Is what one sponsor gives in one slot as packets of one kind."""

    sponsor: str
    slot: SlotNumber
    kind: str
    count: int
    total_fen: Fen
    min_fen: Fen
    max_fen: Fen
    curve: str
    resource: str


@dataclass(frozen=True)
class Scheme:
    """Is one funding script (资金剧本) over the whole budget (R42)."""

    scheme: str
    title: str
    allocations: tuple[Allocation, ...]

    @cached_property
    def packets(self) -> int:
        return sum(allocation.count for allocation in self.allocations)

    @cached_property
    def total_fen(self) -> int:
        return sum(allocation.total_fen for allocation in self.allocations)


@dataclass(frozen=True)
class Campaign:
    """Is one event: a budget, one or more schemes, a timeline of slots."""

    campaign: CampaignId
    title: str
    sponsors: tuple[Sponsor, ...]  # by index, from 1
    slots: tuple[Slot, ...]  # by time
    schemes: tuple[Scheme, ...]
    active_scheme: str
    per_user_packets: int
    key_cap_fen: Fen = KEY_CAP_FEN_DEFAULT

    @cached_property
    def budget_fen(self) -> int:
        return sum(sponsor.deposit_fen for sponsor in self.sponsors)

    @cached_property
    def deposits(self) -> dict[int, int]:
        """Return each sponsor's deposit in fen, by index."""
        return {sponsor.index: sponsor.deposit_fen for sponsor in self.sponsors}

    @cached_property
    def sponsor_indexes(self) -> dict[str, SponsorIndex]:
        return {sponsor.sponsor: sponsor.index for sponsor in self.sponsors}

    def find_scheme(self, scheme: str) -> Scheme | None:
        return next((one for one in self.schemes if one.scheme == scheme), None)
