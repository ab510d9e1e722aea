"""Owns the limits of the redeem role, each with its unit and the reason for its default."""

from dataclasses import dataclass

from hongbao.domain.timeline import OPEN_GRACE_MS


@dataclass(frozen=True)
class RedeemLimits:
    """Bounds waits, caches and alarms of one redeem process."""

    slot_lead_ms: int = 2000
    """A slot's keys load this long before it starts: clocks of access may run so far ahead."""

    early_retry_s_max: float = 5.0
    """Longest wait told to a good token of a slot that has not started by our clock."""

    open_grace_ms: int = OPEN_GRACE_MS
    """Tokens of a slot are good this long after its end, whatever expiry a pod wrote into them."""

    binding_keys_max: int = 4096
    """Cached keys of (pod, epoch), 32 bytes each; one more drops the oldest."""

    epoch_reads_per_s: int = 20
    """Reads for epochs that the watch has not brought yet; the first one brings them for all."""

    in_flight_max: int = 4096
    """Opens that wait for their claims shard; one more is refused as Overloaded."""

    transient_retry_s: float = 0.2
    """What a caller waits when its shard has no owner: about the time of a take-over."""

    failures_alarm: int = 20
    """Failed checks of one key, or lost races of one pod, in a window before a person is called."""

    failures_window_s: float = 10.0
    """The window in which failures are counted."""

    watch_retry_s: float = 0.5
    """Pause before Coordination is read anew after a failed watch."""

    quota_period_s: float = 2.0
    """How often the measured open rate is published."""

    opens_per_s_initial: float = 5_000.0
    """Capacity taken for granted before anything was measured: half of what one core did."""

    opens_per_s_lowest: float = 200.0
    """Capacity never falls below this, so that a stall does not end a slot."""

    opens_per_s_highest: float = 20_000.0
    """Capacity never grows past this: one process is one core."""

    open_ms_target: float = 250.0
    """Mean time of an open above which the process counts as overloaded."""
