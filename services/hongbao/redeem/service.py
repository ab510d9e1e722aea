"""Owns the call Open: from a request to a durable claim and its reply (R8, R43, R44).

Refuses to know how a shard finds its owner: `submit` does. Every bad session or token gets one
answer and changes nothing; what went wrong is counted here.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from hongbao.domain import token
from hongbao.domain.errors import (
    Corrupt,
    Fenced,
    NotFound,
    Overloaded,
    Rejected,
    Transient,
    Unauthenticated,
)
from hongbao.domain.ids import CampaignId
from hongbao.domain.ticket import campaign_hash
from hongbao.proto.v1 import redeem_pb2
from hongbao.redeem.alarms import FailureAlarms
from hongbao.redeem.epochs import EpochReader
from hongbao.redeem.facts import Facts
from hongbao.redeem.flights import Flights
from hongbao.redeem.judge import Admitted, Cause, Early, Judge, Refusal
from hongbao.redeem.limits import RedeemLimits
from hongbao.redeem.machine import ClaimOutcome, parse_result

PLANE: Final = "claims"
NOT_GOOD: Final = "not authenticated"
CLOSED: Final = "the campaign is closed"

Submit = Callable[[str, int, bytes], Awaitable[bytes]]

log = structlog.get_logger()

_OPENED: Final = redeem_pb2.OPENED
_ALREADY_OPENED: Final = redeem_pb2.ALREADY_OPENED
_parse_claim_head = token.parse_claim_head
_verify_session = token.verify_session


@dataclass(slots=True)
class OpenCounts:
    """Counts what became of opens since the process started (R29: logical against system)."""

    opened: int = 0
    opened_fen: int = 0
    repeated: int = 0
    already_opened: int = 0
    early: int = 0
    shed: int = 0
    failed: int = 0  # by us, not by the caller
    open_s: float = 0.0  # time that the opens above waited for durability, in total
    refused: Counter[Cause] = field(default_factory=Counter)


class OpenService:
    """Answers Open. One instance per process; not for use by several threads."""

    def __init__(
        self,
        *,
        campaign: CampaignId,
        session_key: bytes,
        facts: Facts,
        judge: Judge,
        epochs: EpochReader,
        flights: Flights,
        alarms: FailureAlarms,
        submit: Submit,
        wall_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
        limits: RedeemLimits,
    ) -> None:
        self._campaign: Final = campaign
        self._campaign_hash: Final = campaign_hash(campaign)
        self._session_key: Final = session_key
        self._facts: Final = facts
        self._judge: Final = judge
        self._epochs: Final = epochs
        self._flights: Final = flights
        self._alarms: Final = alarms
        self._submit: Final = submit
        self._wall_ms: Final = wall_ms
        self._monotonic_s: Final = monotonic_s
        self._limits: Final = limits
        self.accepting = True
        self.counts = OpenCounts()

    async def open(self, request: redeem_pb2.OpenRequest) -> redeem_pb2.OpenReply:
        """Redeem a claim token; durable before the reply, safe to repeat.

        Raises Unauthenticated for every bad session or token, Transient when the same call may
        succeed later, NotFound for another campaign, Rejected once the campaign is closed.
        """
        now_ms = self._wall_ms()
        user = self._check_in(request, now_ms)
        claim_token = request.claim_token
        head = _parse_claim_head(claim_token)
        if head is None:
            raise self._refused(Refusal(Cause.MALFORMED))
        if self._facts.epochs.get(head.pod, -1) < head.epoch:
            await self._learn_epoch(claim_token, head, user)
        generation = self._flights.enter()
        # From here to the submission nothing waits, so the facts that are judged by stay true.
        try:
            if self._facts.closed:
                raise Rejected(CLOSED, field="campaign")
            admitted = self._judge.judge(claim_token, head, user, now_ms)
            if not isinstance(admitted, Admitted):
                raise self._not_admitted(admitted)
            result = await self._claim(admitted)
        finally:
            self._flights.leave(generation)
        return self._reply(admitted, result)

    def user_of(self, request: redeem_pb2.OpenRequest) -> int:
        """Return whose call it is, for admission by priority; 0 when the session is bad."""
        session = _verify_session(request.session, self._session_key, self._campaign_hash)
        return 0 if session is None else session.user

    def _check_in(self, request: redeem_pb2.OpenRequest, now_ms: int) -> int:
        """Return whose call it is, if this process can serve it now."""
        if request.campaign != self._campaign:
            raise NotFound(f"campaign {request.campaign!r} is not played here", field="campaign")
        session = _verify_session(request.session, self._session_key, self._campaign_hash)
        if session is None or session.expiry_s * 1000 <= now_ms:
            self.counts.refused[Cause.SESSION] += 1
            raise Unauthenticated(NOT_GOOD)
        if self._flights.count >= self._limits.in_flight_max:
            self.counts.shed += 1
            raise Overloaded(
                f"{self._flights.count} opens are under way",
                retry_after_s=self._limits.transient_retry_s,
            )
        if not self.accepting or self._facts.missing:
            raise Transient("opens are not served here now")
        if self._facts.switches.value("open_pause", now_ms):
            raise Transient("opens are paused")
        return session.user

    async def _learn_epoch(self, claim_token: bytes, head: token.ClaimHead, user: int) -> None:
        """Look up an epoch that the watch has not brought yet, once the MAC is proved."""
        if not self._judge.sealed(claim_token, head, user):
            raise self._refused(Refusal(Cause.MAC))
        if not await self._epochs.exists(head.pod, head.epoch):
            raise self._refused(Refusal(Cause.EPOCH))

    def _not_admitted(self, answer: Early | Refusal) -> Exception:
        """Count it; a token that is only early may come again, its owner must not lose it."""
        if isinstance(answer, Refusal):
            return self._refused(answer)
        self.counts.early += 1
        wait_s = min(answer.wait_ms / 1000, self._limits.early_retry_s_max)
        return Transient("the slot has not started here", retry_after_s=wait_s)

    async def _claim(self, admitted: Admitted) -> bytes:
        """Ask the owner of the shard; count the time and whatever is our fault."""
        started_s = self._monotonic_s()
        try:
            result = await self._submit(PLANE, admitted.claims_shard, admitted.operation)
        except Overloaded:
            self.counts.shed += 1
            raise
        except Fenced as error:
            self.counts.failed += 1
            raise Transient(
                f"claims shard {admitted.claims_shard} is moving",
                retry_after_s=self._limits.transient_retry_s,
            ) from error
        except asyncio.CancelledError:
            raise
        except Exception:
            self.counts.failed += 1
            raise
        self.counts.open_s += self._monotonic_s() - started_s
        return result

    def _reply(self, admitted: Admitted, result: bytes) -> redeem_pb2.OpenReply:
        outcome, amount_fen = parse_result(result)
        counts = self.counts
        if outcome == ClaimOutcome.OPENED:
            counts.opened += 1
            counts.opened_fen += amount_fen
        elif outcome == ClaimOutcome.REPEATED:
            counts.repeated += 1
        elif outcome == ClaimOutcome.ALREADY_OPENED:
            counts.already_opened += 1
            self._alarms.count("pod", admitted.pod, "bound_twice")
            return redeem_pb2.OpenReply(
                outcome=_ALREADY_OPENED, packet=admitted.serial, sponsor=admitted.sponsor
            )
        else:
            raise self._not_opened(admitted, outcome)
        return redeem_pb2.OpenReply(
            outcome=_OPENED,
            amount_fen=amount_fen,
            packet=admitted.serial,
            sponsor=admitted.sponsor,
        )

    def _not_opened(self, admitted: Admitted, outcome: int) -> Exception:
        if outcome == ClaimOutcome.CLOSED:
            return Rejected(CLOSED, field="campaign")
        if outcome == ClaimOutcome.REFUSED:
            return self._refused(Refusal(Cause.KEY, admitted.key_id, admitted.pod))
        self.counts.failed += 1
        log.error("claim_contradicts", packet=admitted.serial, shard=admitted.claims_shard)
        return Corrupt(f"the claim of packet {admitted.serial} contradicts its shard")

    def _refused(self, refusal: Refusal) -> Unauthenticated | Transient:
        """Count a refusal and return the one answer that all of them get.

        Except for a good token of a scheme that this process has yet to learn: that may come again.
        """
        self.counts.refused[refusal.cause] += 1
        if refusal.cause is Cause.SCHEME:
            return Transient("the slot's scheme is not loaded yet")
        if refusal.pod:
            if refusal.cause in (Cause.SHARD, Cause.ASSIGNMENT):
                self._alarms.count("pod", refusal.pod, refusal.cause)
            elif refusal.cause is not Cause.SLOT:
                self._alarms.count("key", refusal.key_id, refusal.cause)
        return Unauthenticated(NOT_GOOD)
