"""Owns an access pod: it puts orders, files, cursors and the shake service together.

Everything from outside is an argument. Loops beside the watch bring cursors to what the orders
say, fetch files ahead, reserve records ahead and acknowledge. Shakes are answered between them
and never wait for any.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from hongbao.access import deploy, orders
from hongbao.access.cursor import FileCursor
from hongbao.access.limits import AccessLimits
from hongbao.access.orders import Orders, Wanted
from hongbao.access.service import Controls, ShakeService
from hongbao.access.session import SessionDesk
from hongbao.access.shelf import FileShelf, Instance
from hongbao.access.watch import DocumentWatch
from hongbao.api import switches
from hongbao.domain.errors import Corrupt, HongbaoError, NotFound, Transient
from hongbao.domain.ids import CampaignId
from hongbao.domain.manifest import Manifest
from hongbao.domain.objects import ObjectStore
from hongbao.proto.v1.access_pb2 import (
    SHAKE_OUTCOME_UNSPECIFIED,
    OpenSessionReply,
    OpenSessionRequest,
    ShakeOutcome,
    ShakeReply,
    ShakeRequest,
)
from hongbao.shards.ports import Coordination, LogStore, Versioned
from hongbao.transport.dispatcher import Method

ROLE: Final = "access"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """Is who this pod is. `epoch` is greater than that of every earlier start of the pod."""

    campaign: CampaignId
    process: str  # access-a-0
    pod: int
    epoch: int


@dataclass(frozen=True, slots=True)
class PodKeys:
    """Is all that an access pod may know; no key here opens or makes a packet (R44, R55)."""

    binding_key: bytes
    session_key: bytes
    verify_key: bytes
    jwks: Mapping[str, Any]

    def __repr__(self) -> str:
        return "PodKeys(…)"


@dataclass(frozen=True, slots=True)
class PodStores:
    """Is what the pod reads and writes."""

    objects: ObjectStore
    log: LogStore
    coordination: Coordination
    cache: Path


@dataclass(frozen=True, slots=True)
class PodCounts:
    """Is what the pod counts, for metrics and for a person's eye."""

    issued: int
    outcomes: Mapping[str, int]
    shakes_refused: int
    residue: int
    remaining: int
    files_here: int
    files_active: int
    files_refused: int


class AccessPod:
    """Serves shakes and sessions of one campaign. `start` once, `drain` once."""

    def __init__(
        self,
        identity: PodIdentity,
        keys: PodKeys,
        stores: PodStores,
        *,
        wall_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
        limits: AccessLimits,
        exposure_weights: Mapping[int, int] | None = None,
    ) -> None:
        self._identity: Final = identity
        self._verify_key: Final = keys.verify_key
        self._stores: Final = stores
        self._wall_ms: Final = wall_ms
        self._monotonic_s: Final = monotonic_s
        self._limits: Final = limits
        self._weights: Final = dict(exposure_weights or {})
        self._desk: Final = SessionDesk(
            identity.campaign, keys.session_key, keys.jwks, limits, wall_ms
        )
        self.service: Final = ShakeService(
            identity.campaign,
            identity.pod,
            identity.epoch,
            binding_key=keys.binding_key,
            session_key=keys.session_key,
            limits=limits,
            wall_ms=wall_ms,
        )
        self._low: Final = asyncio.Event()  # a window should be topped up
        self._changed: Final = asyncio.Event()  # the orders are others than at the last pass
        self._fetch_due: Final = asyncio.Event()
        self._acks_due: Final = asyncio.Event()
        self._ready: Final = asyncio.Event()
        self.shelf: Final = FileShelf(
            Instance(identity.pod, identity.epoch),
            stores.objects,
            stores.log,
            keys.verify_key,
            stores.cache,
            limits,
            monotonic_s,
            self._low.set,
        )
        self._watch: Final = DocumentWatch(
            stores.coordination,
            (f"campaigns/{identity.campaign}/", switches.PREFIX, f"pods/{identity.pod}/"),
            self._on_change,
            stores.cache / "orders.json",
            limits,
        )
        self._board: Final = switches.SwitchBoard()
        self._orders = Orders()
        self._version = 0  # counts changes of orders and switches
        self._fetched_version = -1  # up to which everything wanted is here or refused
        self._manifests: Final[dict[int, Manifest]] = {}
        self._manifest_not_before_s = 0.0
        self._pending: Final[dict[str, int]] = {}  # document → revision, obeyed with the next pass
        self._effective: Final[dict[str, int]] = {}  # document → revision, to be acknowledged
        self._tasks: list[asyncio.Task[None]] = []
        self._drained = False

    @property
    def methods(self) -> tuple[Method, ...]:
        """Return the handlers for a dispatcher; both answer without waiting."""
        service = "/hongbao.v1.Access/"
        return (
            Method(
                f"{service}OpenSession", OpenSessionRequest, OpenSessionReply, self.open_session
            ),
            Method(
                f"{service}Shake",
                ShakeRequest,
                ShakeReply,
                self.shake,
                priority=1,
                user_of=self.service.user_of,
            ),
        )

    @property
    def shake(self) -> Callable[[ShakeRequest], ShakeReply]:
        """Return the handler itself, so that no call of ours stands before it."""
        return self.service.shake

    def open_session(self, request: OpenSessionRequest) -> OpenSessionReply:
        """Exchange a JWT for a session. Raises Unauthenticated, NotFound."""
        if request.campaign != self._identity.campaign:
            raise NotFound(f"no campaign {request.campaign!r} is served here", field="campaign")
        session, expires_at_s = self._desk.open(request.jwt)
        return OpenSessionReply(
            session=session, expires_at_s=expires_at_s, tuning=self.service.tuning
        )

    @property
    def superseded(self) -> bool:
        """Say whether a later start of this pod is known."""
        return self._orders.pod_epoch > self._identity.epoch

    def counts(self) -> PodCounts:
        outcomes, shelf = self.service.outcomes, self.shelf
        return PodCounts(
            issued=self.service.issued,
            outcomes={
                name.lower(): outcomes[number]
                for name, number in ShakeOutcome.items()
                if number != SHAKE_OUTCOME_UNSPECIFIED
            },
            shakes_refused=outcomes[0],
            residue=shelf.residue,
            remaining=sum(cursor.remaining for cursor in shelf.cursors.values()),
            files_here=len(shelf.files),
            files_active=len(shelf.cursors),
            files_refused=len(shelf.refused),
        )

    async def start(self) -> None:
        """Begin to follow the orders; return when the pod is ready, or on time-out."""
        await self._watch.recall()
        for loop in (
            self._watch.run,
            self._follow_orders,
            self._fetch_ahead,
            self._reserve,
            self._acknowledge,
        ):
            self._tasks.append(asyncio.create_task(self._guard(loop)))
        try:
            async with asyncio.timeout(self._limits.start_wait_s):
                await self._ready.wait()
        except TimeoutError:
            _log.warning("started_before_ready", files=len(self.shelf.files))

    async def drain(self) -> None:
        """Stop issuing at once, then free what was reserved: nothing is left as residue.

        Unless the log takes nothing for `drain_s`: then that is residue, as after a crash.
        """
        self._drained = True
        self.service.stop()
        self.shelf.keep_serving(())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.drain_s):
                while True:
                    if await self.shelf.give_back():
                        break
                    await asyncio.sleep(self._limits.retry_s)
        self.service.set_files({}, {})
        self.shelf.close()

    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop for ever; what it did not expect is shown and does not end it."""
        while True:
            try:
                await loop()
            except (Transient, TimeoutError) as error:
                _log.warning("access_loop_interrupted", loop=loop.__name__, error=str(error))
            except Exception:
                _log.exception("access_loop_failed", loop=loop.__name__)
            await asyncio.sleep(self._limits.retry_s)

    def _on_change(self, fact: Versioned) -> None:
        """Obey one changed document at once, as far as that needs no waiting."""
        identity = self._identity
        try:
            if fact.key.startswith(switches.PREFIX):
                if self._board.apply(fact.key, fact.value) and _ours(fact.key):
                    self._acknowledge_soon({fact.key: fact.revision})
            else:
                before = self._orders
                self._orders = orders.apply_document(
                    before, identity.campaign, identity.pod, fact.key, fact.value
                )
                if self._orders is not before and orders.wants_ack(fact.key):
                    self._pending[fact.key] = fact.revision
        except Corrupt as error:
            _log.error("document_refused", document=fact.key, reason=str(error))
            return
        self._version += 1
        self._enforce()
        self._changed.set()
        self._fetch_due.set()

    def _enforce(self) -> list[Wanted]:
        """Bring what is served to what the orders say of this moment; return the files wanted."""
        now_ms, told, manifests = self._wall_ms(), self._orders, self._manifests
        wanted = orders.plan_files(told, manifests, self._identity.pod, now_ms)
        if self.superseded or self._drained:
            self.service.stop()
            self.shelf.keep_serving(())
            return []
        self.shelf.keep_serving({each.minted.file for each in wanted if each.served})
        if told.timeline is not None:
            self.service.set_timeline(told.timeline)
        by_slot: dict[int, list[FileCursor]] = {}
        for _, cursor in sorted(self.shelf.cursors.items()):
            by_slot.setdefault(cursor.file.slot, []).append(cursor)
        self.service.set_files(by_slot, orders.plan_exposures(told, manifests, self._weights))
        self.service.apply_controls(self._controls(now_ms))
        return wanted

    def _controls(self, now_ms: int) -> Controls:
        limits, told = self._limits, self._orders

        def value(name: str) -> Any:
            return self._board.value(name, now_ms)

        timeline = told.timeline
        slot = timeline and (timeline.slot_at(now_ms) or timeline.next_slot(now_ms))
        quota_per_s = None
        if slot:
            opens_per_s = orders.quota_now(
                told,
                now_ms,
                life_ms=limits.quota_life_ms,
                floor_per_s=limits.quota_floor_per_s,
            )
            quota_per_s = orders.share_of_quota(
                told, self._manifests, self._identity.pod, slot.slot, opens_per_s
            )
        return Controls(
            shake_interval_ms=value("shake_interval_ms") or limits.shake_interval_ms,
            backoff_ms_max=value("backoff_ms_max") or limits.backoff_ms_max,
            open_delay_ms_max=value("open_delay_ms_max") or limits.open_delay_ms_max,
            speed=value("issue_speed"),
            exposure_only=value("exposure_only"),
            paused=value("shake_pause"),
            quota_per_s=quota_per_s,
        )

    async def _follow_orders(self) -> None:
        """Bring cursors to what the orders say, again and again; never waits for a download."""
        while True:
            self._changed.clear()
            version, pending = self._version, dict(self._pending)
            wanted = self._enforce()
            await self.shelf.give_back()
            await self.shelf.take_over([each.minted.file for each in wanted if self._opens(each)])
            self._enforce()
            self._low.set()
            if self._fetched_version == version:
                self._acknowledge_soon(pending)
                if self._orders.timeline is not None and self._watch.complete:
                    self._ready.set()
            await self._wait(self._changed)

    async def _fetch_ahead(self) -> None:
        """Fetch what the orders will need, the most urgent first."""
        while True:
            self._fetch_due.clear()
            version = self._version
            worked = await self._fetch_manifest() or await self.shelf.fetch_next(self._enforce())
            if worked:
                self._changed.set()
                continue
            complete = self._manifests.keys() >= set(self._orders.active.values())
            if complete and self._fetched_version != version:
                self._fetched_version = version
                self._changed.set()
            await self._wait(self._fetch_due)

    async def _wait(self, event: asyncio.Event) -> None:
        """Wait for an event, or for the clock to have moved on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.pass_ms / 1000):
                await event.wait()

    def _acknowledge_soon(self, obeyed: Mapping[str, int]) -> None:
        for document, revision in obeyed.items():
            self._effective[document] = revision
            if self._pending.get(document) == revision:
                del self._pending[document]
            self._acks_due.set()

    def _opens(self, each: Wanted) -> bool:
        """Say whether a file is this pod's to issue, now or in a moment."""
        soon_ms = self._wall_ms() + self._limits.open_ahead_ms
        timeline = self._orders.timeline
        opened = timeline is not None and each.minted.slot in timeline.opened(soon_ms)
        return each.served and opened

    async def _fetch_manifest(self) -> bool:
        """Fetch one manifest of an active scheme that is not here yet."""
        missing = sorted(set(self._orders.active.values()) - set(self._manifests))
        due = self._monotonic_s() >= self._manifest_not_before_s
        if not missing or not due or len(self._manifests) >= self._limits.manifests_max:
            return False
        identity = self._identity
        try:
            async with asyncio.timeout(self._limits.fetch_timeout_s):
                self._manifests[missing[0]] = await deploy.fetch_manifest(
                    self._stores.objects, identity.campaign, missing[0], self._verify_key
                )
        except (HongbaoError, OSError) as error:
            self._manifest_not_before_s = self._monotonic_s() + self._limits.refetch_s
            _log.error("manifest_refused", scheme_number=missing[0], reason=str(error))
            return False
        return True

    async def _reserve(self) -> None:
        """Keep the first files of a slot reserved ahead."""
        while True:
            await self._low.wait()
            self._low.clear()
            if not await self.shelf.top_up(self._first_files()):
                await asyncio.sleep(self._limits.retry_s)
                self._low.set()

    def _first_files(self) -> list[int]:
        """Return the files of each slot that are issued next, in order."""
        first: list[int] = []
        taken: Counter[int] = Counter()
        for file, cursor in sorted(self.shelf.cursors.items()):
            if cursor.remaining and taken[cursor.file.slot] < self._limits.reserve_files:
                taken[cursor.file.slot] += 1
                first.append(file)
        return first

    async def _acknowledge(self) -> None:
        """Tell which revisions of documents this process has made effective.

        A failed write ends the loop; `_guard` starts it again with what is left.
        """
        if self._effective:
            self._acks_due.set()
        while True:
            await self._acks_due.wait()
            self._acks_due.clear()
            for document, revision in list(self._effective.items()):
                ack: dict[str, Any] = {"revision": revision}
                if document.endswith("/assignment"):
                    ack["refused"] = {str(file): why for file, why in self.shelf.refused.items()}
                key = f"acks/{document}/{self._identity.process}"
                value = json.dumps(ack, sort_keys=True).encode()
                async with asyncio.timeout(self._limits.store_timeout_s):
                    await self._stores.coordination.put(key, value)
                if self._effective.get(document) == revision:
                    del self._effective[document]


def _ours(key: str) -> bool:
    """Say whether this role obeys and acknowledges a switch."""
    return switches.find_switch(key.removeprefix(switches.PREFIX)).role == ROLE
