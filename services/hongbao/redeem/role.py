"""Owns the assembly of the redeem role from what its entry point hands in; reads no settings."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from hongbao.domain.errors import HongbaoError, Rejected
from hongbao.domain.ids import CampaignId, KeyId
from hongbao.domain.manifest import Manifest
from hongbao.redeem.alarms import FailureAlarms
from hongbao.redeem.barrier import BlockBarrier
from hongbao.redeem.epochs import EpochReader
from hongbao.redeem.facts import Facts
from hongbao.redeem.flights import Flights
from hongbao.redeem.judge import Judge
from hongbao.redeem.keys import BindingKeys, SlotKeys
from hongbao.redeem.limits import RedeemLimits
from hongbao.redeem.machine import ClaimsMachine
from hongbao.redeem.quota import QuotaMeter
from hongbao.redeem.schemes import LoadManifests, SchemeReload
from hongbao.redeem.service import PLANE, OpenService, Submit
from hongbao.redeem.watch import FactsWatch
from hongbao.shards.block import ShardKey
from hongbao.shards.ports import Coordination

log = structlog.get_logger()


@dataclass(frozen=True)
class RedeemSecrets:
    """Is what opening needs of a keyring; never printed."""

    ticket_masters: Mapping[KeyId, bytes] = field(repr=False)
    token_root: bytes = field(repr=False)
    session_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not (self.ticket_masters and self.token_root and self.session_key):
            raise Rejected("redeem needs ticket masters, token root and session key", field="keys")


class RedeemRole:
    """Answers Open for one campaign in one process."""

    def __init__(
        self,
        *,
        campaign: CampaignId,
        process: str,
        secrets: RedeemSecrets,
        manifests: Sequence[Manifest],
        submit: Submit,
        coordination: Coordination,
        wall_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
        limits: RedeemLimits | None = None,
        load_manifests: LoadManifests | None = None,
    ) -> None:
        """Take all that the role uses; nothing is read or started before `start`.

        Without `load_manifests` no scheme is ever minted after this.
        """
        self._limits: Final = limits or RedeemLimits()
        limits = self._limits
        self.facts: Final = Facts(campaign, manifests, limits)
        self._slot_keys: Final = SlotKeys(campaign, secrets.ticket_masters, manifests)
        binding_keys = BindingKeys(secrets.token_root, limits.binding_keys_max)
        self._judge: Final = Judge(campaign, self.facts, self._slot_keys, binding_keys, manifests)
        self._flights: Final = Flights()
        self._barrier: Final = BlockBarrier(submit, PLANE, manifests, limits.transient_retry_s)
        self._alarms: Final = FailureAlarms(
            failures_alarm=limits.failures_alarm,
            window_s=limits.failures_window_s,
            monotonic_s=monotonic_s,
        )
        self._service: Final = OpenService(
            campaign=campaign,
            session_key=secrets.session_key,
            facts=self.facts,
            judge=self._judge,
            epochs=EpochReader(
                coordination,
                self.facts,
                reads_per_s=limits.epoch_reads_per_s,
                monotonic_s=monotonic_s,
            ),
            flights=self._flights,
            alarms=self._alarms,
            submit=submit,
            wall_ms=wall_ms,
            monotonic_s=monotonic_s,
            limits=limits,
        )
        self.open: Final = self._service.open  # itself: a wrapper is a frame more for each open
        self.user_of: Final = self._service.user_of
        self._watch: Final = FactsWatch(
            coordination,
            self.facts,
            self._flights,
            self._barrier,
            campaign=campaign,
            process=process,
            retry_s=limits.watch_retry_s,
        )
        self._load_manifests: Final = load_manifests
        self._quota: Final = QuotaMeter(
            coordination,
            self._service.counts,
            campaign=campaign,
            process=process,
            wall_ms=wall_ms,
            monotonic_s=monotonic_s,
            limits=limits,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Return whether opens are answered: started, not draining, all documents known."""
        return bool(self._tasks) and self._service.accepting and not self.facts.missing

    async def start(self) -> None:
        """Read the documents and follow them. Raises Corrupt or Rejected for a broken one."""
        await self._watch.load()
        self._tasks = [
            asyncio.create_task(self._watch.follow(), name="redeem-watch"),
            asyncio.create_task(self._publish_quota(), name="redeem-quota"),
        ]
        if self._load_manifests is not None:
            reload = SchemeReload(
                self.facts,
                self._load_manifests,
                self.use_manifests,
                retry_s=self._limits.watch_retry_s,
            )
            self._tasks.append(asyncio.create_task(reload.follow(), name="redeem-schemes"))

    async def drain(self) -> None:
        """Refuse new opens, finish those under way, stop following. Safe to repeat."""
        self._service.accepting = False
        await self._flights.settled()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # each has told what broke it

    def new_machine(self, shard: int) -> ClaimsMachine:
        """Return the empty state of a claims shard, for the ShardHost of this process."""
        return ClaimsMachine(ShardKey(PLANE, shard), key_allowed=self.facts.key_allowed)

    def use_manifests(self, manifests: Sequence[Manifest]) -> None:
        """Take another set of schemes of the campaign, for instance after a re-plan."""
        self._judge.use_manifests(manifests)  # first: it refuses contradictory schemes
        self.facts.use_manifests(manifests)
        self._slot_keys.use_manifests(manifests)
        self._barrier.use_manifests(manifests)

    def counters(self) -> dict[str, int]:
        """Return what happened since the start, by metric name (R29)."""
        counts = self._service.counts
        refused = {f"refused_{cause}": number for cause, number in counts.refused.items()}
        return refused | {
            "opened": counts.opened,
            "opened_fen": counts.opened_fen,
            "repeated": counts.repeated,
            "already_opened": counts.already_opened,
            "refused": counts.refused.total(),
            "early": counts.early,
            "shed": counts.shed,
            "failed": counts.failed,
            "in_flight": self._flights.count,
            "alarms": self._alarms.raised,
            "opens_per_s_capacity": round(self._quota.opens_per_s),
        }

    async def _publish_quota(self) -> None:
        while True:  # at once: until somebody says more, access keeps to a floor
            try:
                await self._quota.publish()
            except HongbaoError as error:
                log.warning("quota_not_published", error=str(error))
            except Exception:  # outermost level of a loop: without it access keeps to a floor
                log.exception("quota_broken")
            await asyncio.sleep(self._limits.quota_period_s)
