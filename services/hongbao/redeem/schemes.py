"""Owns learning of schemes that were minted after this process began (R35, R37, R42).

Refuses to judge what it loads: a set that contradicts itself is not used, and what is known stays
in force. Opens of a slot whose scheme is unknown wait meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from hongbao.domain.errors import HongbaoError
from hongbao.domain.manifest import Manifest
from hongbao.redeem.facts import Facts

LoadManifests = Callable[[], Awaitable[Sequence[Manifest]]]
"""Return every minted scheme of the campaign, verified."""

log = structlog.get_logger()


class SchemeReload:
    """Loads the manifests anew while a slot plays a scheme that is not known."""

    def __init__(
        self,
        facts: Facts,
        load: LoadManifests,
        use: Callable[[Sequence[Manifest]], None],
        *,
        retry_s: float,
    ) -> None:
        self._facts: Final = facts
        self._load: Final = load
        self._use: Final = use
        self._retry_s: Final = retry_s

    async def follow(self) -> None:
        """Look after each pause, for ever."""
        while True:
            if self._facts.unknown_slots:
                await self._reload()
            await asyncio.sleep(self._retry_s)

    async def _reload(self) -> None:
        try:
            manifests = await self._load()
            self._use(manifests)
        except HongbaoError as error:
            log.error("schemes_not_loaded", reason=str(error))
            return
        except Exception:  # outermost level of a loop: it must never end
            log.exception("schemes_not_loaded")
            return
        if missing := sorted(self._facts.unknown_slots):
            log.error("scheme_not_minted", slots=missing)
        else:
            log.info("schemes_loaded", schemes=[one.scheme_number for one in manifests])
