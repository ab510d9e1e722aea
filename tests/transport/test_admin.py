"""What is asked of Envoy's admin when nobody answers."""

from pathlib import Path

import pytest
from hongbao.domain.errors import Transient
from hongbao.transport.admin import DrainTimes, EnvoyAdmin


async def test_an_envoy_that_is_gone_is_a_transient_failure(tmp_path: Path) -> None:
    admin = EnvoyAdmin(str(tmp_path / "admin"))
    with pytest.raises(Transient, match="statistics"):
        await admin.calls_in_flight()
    with pytest.raises(Transient, match="healthcheck"):
        await admin.drain(DrainTimes())
    await admin.close()
