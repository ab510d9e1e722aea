"""Owns every bound of an access pod; refuses to read settings."""

from dataclasses import dataclass

from hongbao.domain.timeline import OPEN_GRACE_MS
from hongbao.domain.user_cap import CAP_MAX


@dataclass(frozen=True, slots=True)
class AccessLimits:
    """Bounds of one access process; the defaults suit a core of its own."""

    user_packets_max: int = 10
    """Packets one user may win at this process since it started, 255 at most.

    Shaking asks no one else, so it is neither a cap over all processes nor over restarts: it
    spreads packets over users (R4), and is no promise that nobody ever gets more.
    """

    user_cap_columns_log2: int = 23
    """Counters a row of the user cap: 2^23 × 4 rows of one byte = 32 MiB for 10M winners."""

    claim_ttl_s: int = OPEN_GRACE_MS // 1000
    """How long a won packet may be opened: long enough for a full backlog and a bad network.

    No token lives longer than the grace after its slot, when money goes back to the sponsors.
    """

    session_ttl_s: int = 4 * 3600
    """How long a session lasts: an evening, so that nobody signs in again between slots."""

    jwt_bytes_max: int = 4096
    """Longest JWT that is parsed at all."""

    clock_skew_s: int = 30
    """How far the clock of the JWT's issuer may be off."""

    reserve_records: int = 2048
    """Records reserved and not yet known as issued, per file: the residue of a crash at most.

    Half of it must last for one write to the log: 1,024 records at 10,000/s are 100 ms.
    """

    reserve_files: int = 2
    """Files of the open slot with a reserved window: the one being issued and the next one."""

    cursor_entries_max: int = 1 << 20
    """Entries of one file's cursor log that a take-over reads; beyond, the file is refused."""

    take_over_timeout_s: float = 30.0
    """How long reading one cursor log may take."""

    cursor_page: int = 1000
    """Entries read at once in a take-over."""

    store_timeout_s: float = 2.0
    """How long one write to the log or coordination may take before it is tried again."""

    retry_s: float = 0.2
    """Pause before the same write, read or watch is tried again."""

    drain_s: float = 5.0
    """How long a pod that ends tries to give back what it had reserved."""

    fetch_timeout_s: float = 120.0
    """How long one object may take to arrive, before the next one has its turn."""

    refetch_s: float = 5.0
    """Pause before a refused or missing ticket file is fetched again."""

    open_ahead_ms: int = 250
    """Windows of a slot's files are reserved this long before it opens.

    Shorter than placement's lead, within which files move no more: a move leaves no residue.
    """

    pass_ms: int = 200
    """Longest time between two looks at the clock, for slots that open and switches that end."""

    start_wait_s: float = 10.0
    """How long `start` waits for the files of the open slot before the pod serves anyway."""

    files_max: int = 4096
    """Ticket files mapped at once."""

    manifests_max: int = 100
    """Schemes of the campaign known at once."""

    shake_interval_ms: int = 1000
    """Shortest time between two shakes that clients are told."""

    backoff_ms_max: int = 30_000
    """Longest wait after failures that clients are told."""

    open_delay_ms_max: int = 2000
    """Clients spread their opens over this time."""

    slow_down_ms: int = 2000
    """Shortest wait told with slow_down."""

    thanks_ms: int = 60_000
    """Shortest wait told to a user who may win no more."""

    wait_ms_max: int = 60_000
    """Longest wait for a slot that is told at once, so that an edited timeline reaches all."""

    start_spread_ms: int = 3000
    """First shakes of a slot are spread over this time."""

    quota_life_ms: int = 10_000
    """What a redeem process measured counts this long: five of its periods of telling it anew."""

    quota_floor_per_s: float = 200.0
    """Opens per second taken for granted while no redeem process says anything, over all pods:
    what one that just came back can surely take, so that a lost document does not end a slot."""

    pacing_weights: tuple[float, ...] = (1.0,)
    """How much each equal part of a slot issues relative to the others; one weight: evenly."""

    def __post_init__(self) -> None:
        assert self.reserve_records >= 2
        assert 1 <= self.user_packets_max <= CAP_MAX
        assert self.reserve_files >= 1
