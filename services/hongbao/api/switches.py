"""Owns the catalogue of switches: what can be degraded by hand, and how its values are written.

Refuses to store or watch anything. Processes ask a `SwitchBoard` that they feed from
`switches/`; CLI, docs/switches.md and later the CRD are made from `CATALOGUE`, so a switch that
is not in this table does not exist (R30, R31).
"""

import json
import math
from dataclasses import dataclass
from typing import Any, Final

from hongbao.domain.errors import Corrupt, NotFound, Rejected

SwitchValue = bool | int | float

PREFIX: Final = "switches/"
ACKS: Final = "acks/switches/"
TEXT_CHARS_MAX: Final = 200
TTL_S_MAX: Final = 7 * 86_400
_ON: Final = ("on", "true", "yes", "1")
_OFF: Final = ("off", "false", "no", "0")


@dataclass(frozen=True, slots=True)
class SwitchSpec:
    """Is one row of the catalogue; numbers allow [lowest, highest]."""

    name: str
    kind: type[bool] | type[int] | type[float]
    default: SwitchValue
    role: str  # the role that obeys and acknowledges it
    effect: str
    lowest: float = 0
    highest: float = 1

    @property
    def allowed(self) -> str:
        """Return what a value may be, for people."""
        if self.kind is bool:
            return "on or off"
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {self.lowest:g} to {self.highest:g}"


# Ordered: pull from the top. The first rows nobody feels, the last one stops the core.
CATALOGUE: Final = (
    SwitchSpec(
        "settle_pause",
        bool,
        False,
        "settle",
        "Claims are no longer credited; they stay durable in the log and are credited later.",
    ),
    SwitchSpec(
        "open_delay_ms_max",
        int,
        0,
        "access",
        "Clients spread their opens over this time; 0 leaves the configured tuning.",
        highest=60_000,
    ),
    SwitchSpec(
        "backoff_ms_max",
        int,
        0,
        "access",
        "Clients back off up to this long after failures; 0 leaves the configured tuning.",
        highest=300_000,
    ),
    SwitchSpec(
        "shake_interval_ms",
        int,
        0,
        "access",
        "Clients wait at least this long between two shakes; 0 leaves the configured tuning.",
        highest=60_000,
    ),
    SwitchSpec(
        "issue_speed",
        float,
        1.0,
        "access",
        "Packets are issued at the planned rate times this: 0.5 is half as fast, 0 issues none.",
        highest=10,
    ),
    SwitchSpec(
        "exposure_only",
        bool,
        False,
        "access",
        "Shakes win nothing and only show sponsors; packets already won can be opened.",
    ),
    SwitchSpec(
        "shake_pause",
        bool,
        False,
        "access",
        "Every shake answers slow_down at once; packets already won can be opened.",
    ),
    SwitchSpec(
        "open_pause",
        bool,
        False,
        "redeem",
        "Opens answer `try again later`; claim tokens stay good until they expire.",
    ),
)
_BY_NAME: Final = {spec.name: spec for spec in CATALOGUE}


@dataclass(frozen=True, slots=True)
class Setting:
    """Is what somebody set a switch to: the document `switches/<name>`."""

    value: SwitchValue
    by: str
    why: str
    set_at_ms: int
    expires_at_ms: int | None = None

    def expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms


def find_switch(name: str) -> SwitchSpec:
    """Return the catalogue's row. Raises NotFound with all the names there are."""
    spec = _BY_NAME.get(name)
    if spec is None:
        names = ", ".join(_BY_NAME)
        raise NotFound(f"no switch is called {name!r}; there are: {names}", field="switch")
    return spec


def parse_value(spec: SwitchSpec, text: str) -> SwitchValue:
    """Read a value as people type it. Raises Rejected with what is allowed."""
    word = text.strip().lower()
    if spec.kind is bool and word in _ON + _OFF:
        return word in _ON
    if spec.kind is not bool and word.isascii():
        try:
            return check_value(spec, spec.kind(word))
        except (ValueError, Rejected):
            pass  # said below, with what is allowed
    raise _not_allowed(spec, text)


def check_value(spec: SwitchSpec, value: object) -> SwitchValue:
    """Return the value if the switch may have it. Raises Rejected with what is allowed."""
    if spec.kind is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        exact = spec.kind is float or isinstance(value, int)
        if exact and math.isfinite(value) and spec.lowest <= value <= spec.highest:
            return spec.kind(value)
    raise _not_allowed(spec, value)


def show_value(value: SwitchValue) -> str:
    """Return a value as people type it."""
    return ("on" if value else "off") if isinstance(value, bool) else f"{value:g}"


def check_text(field: str, text: str) -> str:
    """Return who or why, trimmed. Raises Rejected when it is empty or too long."""
    text = text.strip()
    if not text or len(text) > TEXT_CHARS_MAX or not text.isprintable():
        raise Rejected(f"{field} must be 1 to {TEXT_CHARS_MAX} printable characters", field=field)
    return text


def setting_to_json(setting: Setting) -> bytes:
    """Return the coordination document of a setting."""
    document = {
        "value": setting.value,
        "by": setting.by,
        "why": setting.why,
        "set_at_ms": setting.set_at_ms,
        "expires_at_ms": setting.expires_at_ms,
    }
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()


def setting_from_json(spec: SwitchSpec, document: bytes) -> Setting:
    """Read the document back. Raises Corrupt when it is none of this switch."""
    try:
        fields: dict[str, Any] = json.loads(document)
        expires_at_ms = fields["expires_at_ms"]
        return Setting(
            check_value(spec, fields["value"]),
            str(fields["by"]),
            str(fields["why"]),
            int(fields["set_at_ms"]),
            None if expires_at_ms is None else int(expires_at_ms),
        )
    except (ValueError, KeyError, TypeError, Rejected) as error:
        raise Corrupt(f"the document of switch {spec.name} is broken: {error}") from error


class SwitchBoard:
    """Is the switches as one process knows them; keeps the last known good of each."""

    def __init__(self) -> None:
        self._settings: dict[str, Setting] = {}

    def apply(self, key: str, document: bytes) -> bool:
        """Take in one change of `switches/<name>` (empty: deleted).

        False for a switch that this version does not know. Raises Corrupt for a broken
        document, and keeps what was.
        """
        name = key.removeprefix(PREFIX)
        spec = _BY_NAME.get(name)
        if spec is None:
            return False
        if document:
            self._settings[name] = setting_from_json(spec, document)
        else:
            self._settings.pop(name, None)
        return True

    def value(self, name: str, now_ms: int) -> SwitchValue:
        """Return what holds now: the setting, or the default when absent or expired."""
        setting = self._settings.get(name)
        if setting is None or setting.expired(now_ms):
            return _BY_NAME[name].default
        return setting.value


def catalogue_page() -> str:
    """Return docs/switches.md."""
    rows = [
        f"| {rank} | `{spec.name}` | {spec.allowed} | {show_value(spec.default)} | {spec.role} "
        f"| {spec.effect} |"
        for rank, spec in enumerate(CATALOGUE, 1)
    ]
    return "\n".join([*_PAGE_HEAD, *rows, *_PAGE_FOOT, ""])


_PAGE_HEAD: Final = (
    "# Switches",
    "",
    "Generated from `services/hongbao/api/switches.py` by `hongbao switch docs`; do not edit.",
    "",
    "Manual degradations, in the order in which to pull them: nobody feels the first, the last",
    "stops the core. A switch reaches every process of its role through Coordination, within a",
    "second as a rule; `hongbao switch status` shows which have made it effective.",
    "",
    "| order | switch | value | default | obeyed by | effect |",
    "|---|---|---|---|---|---|",
)
_PAGE_FOOT: Final = (
    "",
    "    hongbao switch set issue_speed 0.5 --by wang --why 'redeem is at 90 %' --ttl-s 600",
    "    hongbao switch status",
    "    hongbao switch clear issue_speed --by wang --why 'load is back to normal'",
    "",
    "With `--ttl-s` a switch falls back to its default by itself. Clearing writes the default with",
    "who and why, so that the processes acknowledge it like any other change.",
)


def _not_allowed(spec: SwitchSpec, value: object) -> Rejected:
    return Rejected(f"switch {spec.name}: {value!r} is not {spec.allowed}", field="value")
