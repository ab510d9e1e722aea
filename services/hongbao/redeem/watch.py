"""Owns following Coordination: documents into `Facts`, and acks out of it.

A document that is broken is logged and not acknowledged; the last known good stays in force
(design §6). A change is acknowledged once every open that began before it has ended, and no
block that was decided before it is still on its way to the log (F20). Once the campaign is
closed, that means that every claims log is.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Final

import structlog

from hongbao.api.switches import PREFIX as SWITCHES
from hongbao.api.switches import find_switch
from hongbao.domain.claim import CLOSING
from hongbao.domain.errors import Corrupt, HongbaoError, Rejected
from hongbao.domain.ids import CampaignId
from hongbao.redeem.barrier import PROBE, BlockBarrier
from hongbao.redeem.facts import PODS, Facts
from hongbao.redeem.flights import Flights
from hongbao.shards.ports import Coordination, Versioned

ACKS: Final = "acks/"
ROLE: Final = "redeem"

log = structlog.get_logger()


class FactsWatch:
    """Keeps one process's facts as Coordination has them."""

    def __init__(
        self,
        coordination: Coordination,
        facts: Facts,
        flights: Flights,
        barrier: BlockBarrier,
        *,
        campaign: CampaignId,
        process: str,
        retry_s: float,
    ) -> None:
        self._coordination: Final = coordination
        self._facts: Final = facts
        self._flights: Final = flights
        self._barrier: Final = barrier
        self._process: Final = process
        self._retry_s: Final = retry_s
        self._campaign_prefix: Final = f"campaigns/{campaign}/"
        self._prefixes: Final = (self._campaign_prefix, SWITCHES, PODS)
        self._seen: dict[str, int] = {}
        self._to_ack: dict[str, int] = {}
        self._ack_wanted = asyncio.Event()

    async def load(self) -> None:
        """Read every document once.

        Raises Corrupt or Rejected for a broken document of the campaign: there is no last known
        good to go on with. A broken switch or epoch is left out.
        """
        for prefix in self._prefixes:
            for fact in await self._coordination.read_prefix(prefix):
                if prefix == self._campaign_prefix:
                    self._take(fact)
                else:
                    self._take_or_keep(fact)

    async def follow(self) -> None:
        """Apply changes and acknowledge them, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for prefix in self._prefixes:
                tasks.create_task(self._follow_prefix(prefix))
            tasks.create_task(self._acknowledge())

    async def _follow_prefix(self, prefix: str) -> None:
        """Watch from the newest revision that `_read_prefix` has shown; read anew after a gap."""
        while True:
            try:
                async for fact in await self._changes(prefix):
                    self._take_or_keep(fact)
            except HongbaoError as error:
                log.warning("watch_failed", prefix=prefix, error=str(error))
            except Exception:  # outermost level of a loop: a watch must never go silent
                log.exception("watch_broken", prefix=prefix)
            await asyncio.sleep(self._retry_s)

    async def _changes(self, prefix: str) -> AsyncIterator[Versioned]:
        """Catch up with a prefix, then return the changes behind that."""
        facts = await self._coordination.read_prefix(prefix)
        known = {key for key in self._seen if key.startswith(prefix)}
        for key in known - {fact.key for fact in facts}:
            self._take_or_keep(Versioned(key, b"", self._seen[key]))
        for fact in facts:
            if fact.revision > self._seen.get(fact.key, 0):
                self._take_or_keep(fact)
        newest = max((fact.revision for fact in facts), default=0)
        return self._coordination.watch(prefix, after_revision=newest)

    def _take_or_keep(self, fact: Versioned) -> None:
        try:
            self._take(fact)
        except (Corrupt, Rejected) as error:
            log.error("document_refused", key=fact.key, revision=fact.revision, error=str(error))

    def _take(self, fact: Versioned) -> None:
        """Apply one document; on success it is due for an ack."""
        if fact.value:
            self._seen[fact.key] = fact.revision
        else:
            self._seen.pop(fact.key, None)
        if not self._facts.apply(fact.key, fact.value):
            return
        if fact.value and _acknowledged(fact.key):
            self._to_ack[fact.key] = fact.revision
            self._ack_wanted.set()

    async def _acknowledge(self) -> None:
        """Write acks, each document's newest revision, after older opens have ended."""
        while True:
            await self._ack_wanted.wait()
            self._ack_wanted.clear()
            due, self._to_ack = self._to_ack, {}
            try:
                await self._flights.settled()
                await self._barrier.passed(CLOSING if self._facts.closed else PROBE)
                for key, revision in due.items():
                    await self._write_ack(key, revision)
            except Exception:  # outermost level of a loop: its end would end the watches as well
                log.exception("acks_broken", keys=sorted(due))
                self._to_ack = due | self._to_ack
                self._ack_wanted.set()
                await asyncio.sleep(self._retry_s)

    async def _write_ack(self, key: str, revision: int) -> None:
        document = json.dumps({"revision": revision}).encode()
        while key not in self._to_ack:  # else a newer ack follows anyway
            try:
                await self._coordination.put(f"{ACKS}{key}/{self._process}", document)
                return
            except HongbaoError as error:
                log.warning("ack_failed", key=key, revision=revision, error=str(error))
                await asyncio.sleep(self._retry_s)


def _acknowledged(key: str) -> bool:
    """Return whether this role acks the key: documents of the campaign, switches it obeys."""
    if key.startswith(SWITCHES):
        return find_switch(key.removeprefix(SWITCHES)).role == ROLE
    return not key.startswith(PODS)
