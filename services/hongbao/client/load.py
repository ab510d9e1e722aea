"""Owns the open-loop load generator: shakes arrive by the plan, packets are opened until answered.

Latency counts from the time a call was due, not from when it was sent, so that a stalled server
or a stalled generator cannot hide the wait (coordinated omission). Sources: R29, R32 and R33
(load tests against expectations). Refuses to speak HTTP/2 (client/wire.py) or to plot (report/).
"""

import asyncio
import heapq
from collections.abc import Callable
from functools import partial
from typing import Final

from hongbao.client.acknowledged import AcknowledgedFile
from hongbao.client.draws import seeded_draw
from hongbao.client.gateways import GatewayPool
from hongbao.client.plan import LoadPlan
from hongbao.client.stats import LoadStats, Sample
from hongbao.client.status import ANSWER_LOST, OK, REPEATABLE, SHED, UNAUTHENTICATED, Answer
from hongbao.client.wire import frame_message, request_headers
from hongbao.domain.errors import Transient
from hongbao.proto.v1 import access_pb2, redeem_pb2

_TICK_S: Final = 0.002
_BACKOFF_S: Final = 0.1  # first wait after a failure, doubled up to the server's tuning
_BACKOFF_MS_MAX: Final = 5_000  # until the server has said otherwise
_SESSIONS_AT_ONCE: Final = 64
_SESSION_TIMEOUT_S: Final = 5.0
_SHAKE_NAMES: Final = {number: name for name, number in access_pb2.ShakeOutcome.items()}
_OPEN_NAMES: Final = {number: name for name, number in redeem_pb2.OpenOutcome.items()}


class _User:
    __slots__ = (
        "failures",
        "home",
        "next_at",
        "queued_at",
        "rude",
        "running",
        "session",
        "shake",
        "user",
    )

    def __init__(self, user: int, home: int, *, rude: bool) -> None:
        self.user = user
        self.home = home
        self.rude = rude
        self.session = b""
        self.shake = b""  # the framed request; empty while there is no session
        self.next_at = 0.0  # the server's order: not before
        self.running = False
        self.queued_at: float | None = None  # a shake that became due while one was running
        self.failures = 0


class _Open:
    __slots__ = ("attempts", "due_at", "message", "user")

    def __init__(self, user: _User, message: bytes, due_at: float) -> None:
        self.user = user
        self.message = message
        self.due_at = due_at
        self.attempts = 0


async def run_load(
    plan: LoadPlan,
    on_sample: Callable[[Sample], None],
    *,
    jwt_of: Callable[[int], str],
    wall_ms: Callable[[], int],
    stats: LoadStats | None = None,
) -> LoadStats:
    """Play the plan, then go on with opens until all are answered or `drain_s` is over.

    Raises Transient when no gateway gives sessions. Cancelling it stops at once.
    """
    run = LoadRun(plan, on_sample, jwt_of=jwt_of, wall_ms=wall_ms, stats=stats)
    return await run.run()


class LoadRun:
    """Is one run of a plan; `stop` ends its phases early."""

    def __init__(
        self,
        plan: LoadPlan,
        on_sample: Callable[[Sample], None],
        *,
        jwt_of: Callable[[int], str],
        wall_ms: Callable[[], int],
        stats: LoadStats | None = None,
    ) -> None:
        self._plan = plan
        self._on_sample = on_sample
        self._jwt_of = jwt_of
        self._wall_ms = wall_ms
        self.stats = stats or LoadStats()
        self._draw = seeded_draw(plan.seed)
        self._pool = GatewayPool(plan.gateways, connections=plan.connections, draw=self._draw)
        homes = self._pool.count
        self._users = [
            _User(plan.first_user + i, i % homes, rude=self._draw() < plan.rude_share)
            for i in range(plan.users)
        ]
        self._acknowledged = AcknowledgedFile(plan.acknowledged) if plan.acknowledged else None
        self._opens: list[tuple[float, int, _Open]] = []  # heap of opens that wait for their time
        self._open_number = 0
        self._unanswered = 0  # opens without a definite answer yet, waiting or running
        self._in_flight = 0
        self._turn = 0
        self._tuning = access_pb2.Tuning(backoff_ms_max=_BACKOFF_MS_MAX)
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        authority = "hongbao"
        self._session_block = request_headers(
            "/hongbao.v1.Access/OpenSession", authority, _SESSION_TIMEOUT_S
        )
        self._shake_block = request_headers(
            "/hongbao.v1.Access/Shake", authority, plan.shake_timeout_s
        )
        self._open_block = request_headers(
            "/hongbao.v1.Redeem/Open", authority, plan.open_timeout_s
        )

    def stop(self) -> None:
        self._stopped = True

    async def run(self) -> LoadStats:
        self._loop = asyncio.get_running_loop()
        try:
            await self._pool.start(wait_s=self._plan.session_give_up_s)
            await self._open_sessions()
            await self._play()
        finally:
            for task in self._tasks:
                task.cancel()
            await self._pool.stop()
            if self._acknowledged is not None:
                self._acknowledged.close()
        return self.stats

    # -- the clock of the run ------------------------------------------------------------------

    async def _play(self) -> None:
        plan, stats = self._plan, self.stats
        start = before = sampled = self._loop.time()
        over_at: float | None = None
        arrived = 0
        while True:
            await asyncio.sleep(_TICK_S)
            now = self._loop.time()
            stats.interval.late_s_max = max(stats.interval.late_s_max, now - before - _TICK_S)
            elapsed = min(now - start, plan.duration_s)
            stats.phase = plan.phases[plan.phase_at(elapsed)[0]].name
            wanted = arrived if self._stopped else plan.arrivals_until(elapsed)
            self._arrive(wanted - arrived, before, now)
            arrived, before = wanted, now
            self._start_opens(now)
            self._pool.expire(now)
            if over_at is None and (self._stopped or now - start >= plan.duration_s):
                over_at = now
            ended = over_at is not None and self._drained(now - over_at)
            if ended or now - sampled >= plan.sample_every_s:
                self._sample(now - start, now - sampled)
                sampled = now
            if ended:
                return

    def _drained(self, over_s: float) -> bool:
        """Say whether nothing is awaited any more, or has been for too long."""
        if self._unanswered == 0 and self._in_flight == 0:
            return True
        if over_s < self._plan.drain_s:
            return False
        self.stats.interval.opens["UNRESOLVED"] += self._unanswered
        return True

    def _sample(self, elapsed_s: float, interval_s: float) -> None:
        stats = self.stats
        stats.shakes_in_flight = self._in_flight
        stats.opens_waiting = self._unanswered
        stats.gateways_up = self._pool.up
        if self._acknowledged is not None:
            self._acknowledged.flush()
        self._on_sample(
            stats.cut(at_ms=self._wall_ms(), elapsed_s=elapsed_s, interval_s=interval_s)
        )

    # -- sessions ------------------------------------------------------------------------------

    async def _open_sessions(self) -> None:
        slots = asyncio.Semaphore(_SESSIONS_AT_ONCE)
        give_up = self._loop.time() + self._plan.session_give_up_s

        async def open_one(user: _User) -> None:
            async with slots:
                await self._open_session(user, give_up)

        expirer = self._loop.create_task(self._expire_calls())
        try:
            async with asyncio.TaskGroup() as group:
                for user in self._users:
                    group.create_task(open_one(user))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled by it
        finally:
            expirer.cancel()

    async def _expire_calls(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self._pool.expire(self._loop.time())

    async def _open_session(self, user: _User, give_up: float) -> None:
        request = access_pb2.OpenSessionRequest(
            campaign=self._plan.campaign, jwt=self._jwt_of(user.user)
        )
        message = frame_message(request.SerializeToString())
        failures = 0
        while True:
            answer, body = await self._call(user.home, self._session_block, message)
            if answer.code == OK:
                break
            if answer.code not in REPEATABLE or self._loop.time() > give_up:
                raise Transient(f"no session for user {user.user}: {answer.name} {answer.message}")
            failures += 1
            await asyncio.sleep(self._backoff_s(answer, failures))
        reply = access_pb2.OpenSessionReply.FromString(body)
        self._tuning = reply.tuning if reply.HasField("tuning") else self._tuning
        user.session = reply.session
        shake = access_pb2.ShakeRequest(campaign=self._plan.campaign, session=reply.session)
        user.shake = frame_message(shake.SerializeToString())
        self.stats.sessions += 1

    async def _call(self, home: int, block: bytes, message: bytes) -> tuple[Answer, bytes]:
        wire = self._pool.pick(home)
        if wire is None:
            return ANSWER_LOST, b""
        future: asyncio.Future[tuple[Answer, bytes]] = self._loop.create_future()

        def done(answer: Answer, body: bytes) -> None:
            if not future.done():
                future.set_result((answer, body))

        wire.call(block, message, _SESSION_TIMEOUT_S, done)
        return await future

    def _backoff_s(self, answer: Answer, failures: int) -> float:
        """Return the server's order if it gave one, else full jitter under a doubling limit."""
        if answer.retry_after_s is not None:
            return answer.retry_after_s * (1 + 0.2 * self._draw())
        limit_s = (self._tuning.backoff_ms_max or _BACKOFF_MS_MAX) / 1000
        return float(min(limit_s, _BACKOFF_S * 2 ** min(failures, 16))) * self._draw()

    # -- shakes --------------------------------------------------------------------------------

    def _arrive(self, count: int, since: float, now: float) -> None:
        """Let `count` shakes become due, evenly between the last tick and now."""
        users, stats = self._users, self.stats.interval
        stats.wanted += count
        for number in range(count):
            user = users[self._turn]
            self._turn = (self._turn + 1) % len(users)
            due_at = since + (now - since) * (number + 1) / count
            if user.rude:
                self._shake(user, due_at)
            elif due_at < user.next_at or not user.shake or user.queued_at is not None:
                stats.held_back += 1
            elif user.running:
                user.queued_at = due_at
            else:
                self._shake(user, due_at)

    def _shake(self, user: _User, due_at: float) -> None:
        wire = self._pool.pick(user.home)
        if wire is None or not user.shake:
            self.stats.interval.shakes["NO_GATEWAY" if user.shake else "NO_SESSION"] += 1
            user.failures += 1
            user.next_at = due_at + self._backoff_s(ANSWER_LOST, user.failures)
            return
        user.running = True
        self._in_flight += 1
        wire.call(
            self._shake_block,
            user.shake,
            self._plan.shake_timeout_s,
            partial(self._on_shaken, user, due_at),
        )

    def _on_shaken(self, user: _User, due_at: float, answer: Answer, body: bytes) -> None:
        now = self._loop.time()
        stats = self.stats.interval
        user.running = False
        self._in_flight -= 1
        stats.shake_latency.record(now - due_at)
        if answer.code == OK:
            self._on_reply(user, access_pb2.ShakeReply.FromString(body), now)
        else:
            stats.shakes[answer.name] += 1
            stats.shed += answer.code in SHED
            user.failures += 1
            user.next_at = now + self._backoff_s(answer, user.failures)
            if answer.code == UNAUTHENTICATED and user.shake:
                user.shake = b""
                self._renew_session(user)
        if user.queued_at is not None:
            due_at, user.queued_at = user.queued_at, None
            if due_at < user.next_at:
                stats.held_back += 1
            else:
                self._shake(user, due_at)

    def _on_reply(self, user: _User, reply: access_pb2.ShakeReply, now: float) -> None:
        self.stats.interval.shakes[_SHAKE_NAMES.get(reply.outcome, "UNKNOWN")] += 1
        user.failures = 0
        if reply.HasField("tuning"):
            self._tuning = reply.tuning
        wait_ms = max(reply.retry_after_ms, self._tuning.shake_interval_ms)
        user.next_at = now + wait_ms / 1000
        if reply.claim_token and self._plan.open_packets:
            self._plan_open(user, reply.claim_token, now)

    def _renew_session(self, user: _User) -> None:
        give_up = self._loop.time() + self._plan.session_give_up_s

        async def renew() -> None:
            try:
                await self._open_session(user, give_up)
            except Transient:
                self.stats.interval.shakes["NO_SESSION"] += 1

        task = self._loop.create_task(renew())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- opens ---------------------------------------------------------------------------------

    def _plan_open(self, user: _User, token: bytes, now: float) -> None:
        request = redeem_pb2.OpenRequest(
            campaign=self._plan.campaign, session=user.session, claim_token=token
        )
        due_at = now + self._tuning.open_delay_ms_max / 1000 * self._draw()
        self._unanswered += 1
        self._await_open(_Open(user, frame_message(request.SerializeToString()), due_at), due_at)

    def _await_open(self, open_: _Open, at: float) -> None:
        self._open_number += 1
        heapq.heappush(self._opens, (at, self._open_number, open_))

    def _start_opens(self, now: float) -> None:
        opens = self._opens
        while opens and opens[0][0] <= now:
            open_ = heapq.heappop(opens)[2]
            wire = self._pool.pick(open_.user.home)
            if wire is None:
                self._repeat_open(open_, ANSWER_LOST, now)
                continue
            wire.call(
                self._open_block,
                open_.message,
                self._plan.open_timeout_s,
                partial(self._on_opened, open_),
            )

    def _repeat_open(self, open_: _Open, answer: Answer, now: float) -> None:
        """Ask again later: the same user gets the same answer, so repeating is safe (F3)."""
        self.stats.interval.open_repeats[answer.name] += 1
        open_.attempts += 1
        self._await_open(open_, now + self._backoff_s(answer, open_.attempts))

    def _on_opened(self, open_: _Open, answer: Answer, body: bytes) -> None:
        now = self._loop.time()
        stats = self.stats.interval
        stats.shed += answer.code in SHED
        if answer.code in REPEATABLE:
            self._repeat_open(open_, answer, now)
            return
        self._unanswered -= 1
        stats.open_latency.record(now - open_.due_at)
        if answer.code != OK:
            stats.opens[answer.name] += 1
            return
        reply = redeem_pb2.OpenReply.FromString(body)
        stats.opens[_OPEN_NAMES.get(reply.outcome, "UNKNOWN")] += 1
        if reply.outcome == redeem_pb2.OPENED:
            stats.opened_fen += reply.amount_fen
            if self._acknowledged is not None:
                self._acknowledged.add(
                    reply.packet, open_.user.user, reply.amount_fen, self._wall_ms()
                )
