"""Facts about the connections of one process: all of them are let go of, whatever fails."""

import gc
from pathlib import Path

import pytest
from hongbao.adapters.clock import SystemClock
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.tikv import TikvStore
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import TikvSettings, UpSettings
from hongbao.cli.stores import connect_stores
from hongbao.domain.errors import Rejected, Transient


async def test_what_was_open_is_closed_when_the_next_store_does_not_open(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    pd = "127.0.0.1:1"
    settings = UpSettings(campaign=tmp_path / "c.yaml", tikv=TikvSettings(pd=(pd,)))
    holder = LmdbStore(run.store, monotonic_s=SystemClock().monotonic_s)
    await holder.start()
    known = [one for one in gc.get_objects() if isinstance(one, TikvStore)]  # kept: ids stay theirs
    with pytest.raises(Rejected, match="another process") as refused:
        await connect_stores(run, settings, "toy", offline=True)
    assert refused.tb is not None  # it keeps what the call had opened
    stores = [one for one in gc.get_objects() if isinstance(one, TikvStore)]
    opened = [one for one in stores if not any(one is old for old in known)]
    assert len(opened) == 1
    with pytest.raises(Transient, match="client is closed"):
        await opened[0].get(b"key")
    await holder.close()
