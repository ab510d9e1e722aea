"""Owns the answer to one shake: in memory, without waiting, by the clock of that moment.

Everything is decided here for every single shake (R4, R7, R15, R16): is the slot open, may this
user win, may a packet leave now, which sponsor is shown, when may the client come again. Slots,
files and switches are handed in from outside; nothing here touches a store or the network.

Most shakes get a reply that was built before: replies are handed out as they are and must not
be changed by whoever gets them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from hongbao.access.cursor import FileCursor
from hongbao.access.limits import AccessLimits
from hongbao.access.session import REFUSED
from hongbao.domain import ticket
from hongbao.domain.campaign import Slot
from hongbao.domain.errors import NotFound, Unauthenticated
from hongbao.domain.exposure import exposure_cycle
from hongbao.domain.ids import CampaignId
from hongbao.domain.pacing import Pace, issue_rate, refill
from hongbao.domain.timeline import Timeline
from hongbao.domain.token import seal_claim, verify_session
from hongbao.domain.user_cap import UserCap
from hongbao.proto.v1.access_pb2 import (
    ENDED,
    NOT_STARTED,
    NOTHING,
    PACKET,
    SLOW_DOWN,
    THANKS_PAGE,
    ShakeOutcome,
    ShakeReply,
    ShakeRequest,
    Tuning,
)

# Shares in [0, 1) by which waits are stretched: multiples of the golden ratio fill it evenly
# at every length (Weyl 1916), so any crowd is spread without drawing at random.
JITTER: Final = tuple(0.6180339887498949 * index % 1 for index in range(256))
_NEVER_MS: Final = 1 << 62
_CLOSED: Final = Pace(0, 1)


@dataclass(frozen=True, slots=True)
class Controls:
    """Is what switches, quota and limits say at the moment."""

    shake_interval_ms: int
    backoff_ms_max: int
    open_delay_ms_max: int
    speed: float = 1.0
    exposure_only: bool = False
    paused: bool = False
    quota_per_s: float | None = None  # this pod's share

    @property
    def tuning(self) -> Tuning:
        return Tuning(
            shake_interval_ms=self.shake_interval_ms,
            backoff_ms_max=self.backoff_ms_max,
            open_delay_ms_max=self.open_delay_ms_max,
        )


@dataclass(frozen=True, slots=True)
class Exposure:
    """Is one sponsor with one of its resources, and its share of the non-winning shakes."""

    sponsor: int
    resource: str
    weight: int


_NO_EXPOSURE: Final = Exposure(0, "", 1)


class ShakeService:
    """Answers shakes of one campaign at one pod. One event loop, no awaits inside."""

    def __init__(
        self,
        campaign: CampaignId,
        pod: int,
        epoch: int,
        *,
        binding_key: bytes,
        session_key: bytes,
        limits: AccessLimits,
        wall_ms: Callable[[], int],
    ) -> None:
        self._campaign: Final = campaign
        self._campaign_hash: Final = ticket.campaign_hash(campaign)
        self._pod: Final = pod
        self._epoch: Final = epoch
        self._binding_key: Final = binding_key
        self._session_key: Final = session_key
        self._limits: Final = limits
        self._wall_ms: Final = wall_ms
        self._cap: Final = UserCap(
            limits.user_packets_max, columns_log2=limits.user_cap_columns_log2
        )
        self.outcomes: Final = [0] * (max(ShakeOutcome.values()) + 1)
        """Replies by outcome; index 0 counts shakes that were refused."""
        self._timeline: Timeline | None = None
        self._cursors: Mapping[int, Sequence[FileCursor]] = {}
        self._exposures: Mapping[int, Sequence[Exposure]] = {}
        self._controls = Controls(
            limits.shake_interval_ms, limits.backoff_ms_max, limits.open_delay_ms_max
        )
        self._stopped = self._blocked = False
        self._slot: Slot | None = None
        self._since_ms = self._until_ms = 0  # what is known of the slot holds in [since, until)
        self._at_ms = 0
        self._open: Sequence[FileCursor] = ()
        self._pace = _CLOSED
        self._allowance = 0.0
        self._expiry_s = 0
        self._shares: Final = cycle(JITTER)
        self._build_waits()
        self._build_exposures(0)
        self._advance(wall_ms())

    @property
    def issued(self) -> int:
        return self.outcomes[PACKET]

    def shake(self, request: ShakeRequest) -> ShakeReply:
        """Answer one shake. Raises Unauthenticated, NotFound."""
        session = verify_session(request.session, self._session_key, self._campaign_hash)
        now_ms = self._wall_ms()
        if session is None or session.expiry_s * 1000 <= now_ms:
            self.outcomes[0] += 1
            raise Unauthenticated(REFUSED)
        if request.campaign != self._campaign:
            self.outcomes[0] += 1
            raise NotFound(f"no campaign {request.campaign!r} is served here", field="campaign")
        if now_ms != self._at_ms:
            self._advance(now_ms)
        if self._slot is None or self._blocked:
            return self._closed(now_ms)
        user = session.user
        if self._cap.reached(user):
            self.outcomes[THANKS_PAGE] += 1
            return self._next_thanks()
        if self._allowance < 1.0:
            self.outcomes[NOTHING] += 1
            return self._next_nothing()
        return self._issue(user)

    def user_of(self, request: ShakeRequest) -> int:
        """Return whose call it is, to shed by; 0 when the session is bad.

        Asked only while the process sheds. Proved, or a caller could make up users until one is let
        in (R25).
        """
        session = verify_session(request.session, self._session_key, self._campaign_hash)
        return 0 if session is None else session.user

    def _issue(self, user: int) -> ShakeReply:
        """Bind the next record to the user; slow_down while the log is slower than the pace."""
        for cursor in self._open:
            record = cursor.take()
            if record is not None:
                break
        else:
            self.outcomes[SLOW_DOWN] += 1
            return self._next_slow_down()
        self._allowance -= 1.0
        self._cap.add(user)
        self.outcomes[PACKET] += 1
        reply = ShakeReply()
        reply.CopyFrom(self._winning_reply(record[4] << 8 | record[5]))  # domain/ticket.py RECORD
        reply.retry_after_ms = self._next_wait_ms()
        reply.claim_token = seal_claim(
            self._binding_key,
            self._campaign_hash,
            self._pod,
            self._epoch,
            cursor.file.claims_shard,
            self._expiry_s,
            record,
            user,
        )
        return reply

    def _winning_reply(self, sponsor: int) -> ShakeReply:
        """Return what a sponsor's winning replies share: copying is cheaper than building."""
        reply = self._winning.get(sponsor)
        if reply is None:
            resource = self._resources.get(sponsor, "")
            reply = ShakeReply(
                outcome=PACKET, sponsor=sponsor, resource=resource, tuning=self._tuning
            )
            self._winning[sponsor] = reply
        return reply

    def _advance(self, now_ms: int) -> None:
        """Move to another millisecond: open or close the slot, let more packets leave."""
        if not self._since_ms <= now_ms < self._until_ms:
            self._enter(now_ms)
        remaining = sum([cursor.remaining for cursor in self._open])
        rate = issue_rate(remaining, now_ms, self._pace)
        self._allowance = refill(self._allowance, now_ms - self._at_ms, rate, remaining)
        self._expiry_s = now_ms // 1000 + self._limits.claim_ttl_s
        self._at_ms = now_ms

    def _enter(self, now_ms: int) -> None:
        """Find the slot of this moment, and how long that stays true."""
        timeline, before = self._timeline, self._slot
        self._slot = slot = timeline.slot_at(now_ms) if timeline else None
        self._open, self._pace = (), _CLOSED
        if slot is None:
            upcoming = timeline.next_slot(now_ms) if timeline else None
            self._since_ms = now_ms
            self._until_ms = upcoming.starts_at_ms if upcoming else _NEVER_MS
            return
        self._since_ms, self._until_ms = slot.starts_at_ms, slot.ends_at_ms
        if before is None or before.slot != slot.slot:
            self._allowance = 0.0
            self._at_ms = max(self._at_ms, slot.starts_at_ms)
        controls = self._controls
        if not controls.exposure_only:
            self._open = self._cursors.get(slot.slot, ())
        self._pace = Pace(
            slot.starts_at_ms,
            slot.ends_at_ms,
            controls.speed,
            controls.quota_per_s,
            self._limits.pacing_weights,
        )
        if self._shown_slot != slot.slot:
            self._build_exposures(slot.slot)

    def _closed(self, now_ms: int) -> ShakeReply:
        """Answer while nothing can be won: paused, drained, before, between or after slots."""
        timeline, longest_ms = self._timeline, self._limits.wait_ms_max
        if self._blocked or timeline is None:
            self.outcomes[SLOW_DOWN] += 1
            return self._next_slow_down()
        upcoming = timeline.next_slot(now_ms)
        if upcoming is None:
            self.outcomes[ENDED] += 1
            return ShakeReply(outcome=ENDED, retry_after_ms=longest_ms, tuning=self._tuning)
        self.outcomes[NOT_STARTED] += 1
        share = next(self._shares)
        wait_ms = upcoming.starts_at_ms - now_ms + int(self._limits.start_spread_ms * share)
        if wait_ms > longest_ms:
            wait_ms = longest_ms - int(longest_ms * share / 4)
        return ShakeReply(outcome=NOT_STARTED, retry_after_ms=wait_ms, tuning=self._tuning)

    def set_timeline(self, timeline: Timeline) -> None:
        """Follow another timeline from this moment."""
        self._timeline = timeline
        self._look_again()

    def set_files(
        self,
        cursors: Mapping[int, Sequence[FileCursor]],
        exposures: Mapping[int, Sequence[Exposure]],
    ) -> None:
        """Issue from these files and show these sponsors, by slot; files go in this order."""
        self._cursors = cursors
        if exposures != self._exposures:
            self._exposures = exposures
            self._shown_slot = 0
        self._look_again()

    def apply_controls(self, controls: Controls) -> None:
        """Obey other switches and quotas from this moment."""
        if controls == self._controls:
            return
        retuned = controls.tuning != self._tuning
        self._controls = controls
        self._blocked = controls.paused or self._stopped
        if retuned:
            self._build_waits()
            self._shown_slot = 0
        self._look_again()

    def stop(self) -> None:
        """Win nothing more here: every shake is told to slow down and come back elsewhere."""
        self._stopped = self._blocked = True

    @property
    def tuning(self) -> Tuning:
        """Return what clients are told at the moment."""
        return self._tuning

    def _look_again(self) -> None:
        self._since_ms = self._until_ms = 0
        self._advance(self._wall_ms())

    def _build_waits(self) -> None:
        """Build the replies that say only when to come again, with the tuning of the moment."""
        self._tuning = tuning = self._controls.tuning
        interval_ms, limits = tuning.shake_interval_ms, self._limits
        waits_ms = [interval_ms + int(interval_ms * share / 2) for share in JITTER]
        self._next_wait_ms = cycle(waits_ms).__next__
        self._next_thanks = self._cycle_of(THANKS_PAGE, max(interval_ms, limits.thanks_ms))
        self._next_slow_down = self._cycle_of(SLOW_DOWN, max(interval_ms, limits.slow_down_ms))

    def _cycle_of(self, outcome: ShakeOutcome.ValueType, least_ms: int) -> Callable[[], ShakeReply]:
        replies = [
            ShakeReply(
                outcome=outcome,
                retry_after_ms=least_ms + int(least_ms * share / 2),
                tuning=self._tuning,
            )
            for share in JITTER
        ]
        return cycle(replies).__next__

    def _build_exposures(self, slot: int) -> None:
        """Build the non-winning replies of a slot: each shows one sponsor, in the shares."""
        exposures = self._exposures.get(slot, ())
        shown = exposure_cycle([(each, each.weight) for each in exposures]) or (_NO_EXPOSURE,)
        shown *= max(1, len(JITTER) // len(shown))
        interval_ms = self._tuning.shake_interval_ms
        replies = [
            ShakeReply(
                outcome=NOTHING,
                sponsor=each.sponsor,
                resource=each.resource,
                retry_after_ms=interval_ms + int(interval_ms * share / 2),
                tuning=self._tuning,
            )
            for each, share in zip(shown, cycle(JITTER), strict=False)
        ]
        self._next_nothing = cycle(replies).__next__
        self._winning: dict[int, ShakeReply] = {}
        self._resources = {each.sponsor: each.resource for each in reversed(exposures)}
        self._shown_slot = slot
