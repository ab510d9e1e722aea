"""Facts about whose logs a namespace holds: those of one run, whatever becomes of its folder."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hongbao.adapters.clock import SystemClock
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.memory import MemoryStore
from hongbao.cli import demo
from hongbao.cli.rain import prepare_run, rain
from hongbao.cli.run_claim import ID_NAME, claim_ledger, claim_stores
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import EtcdSettings, TikvSettings, UpSettings
from hongbao.cli.stores import SharedState
from hongbao.domain.errors import Ambiguous, Rejected
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Versioned

from tests.processes.rainy import Plot, write_campaign


def settings_of(folder: Path, **stores: object) -> UpSettings:
    return UpSettings(campaign=folder / "campaign.yaml", run_dir=folder, **stores)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


TIKV = TikvSettings(pd=("pd:2379",), namespace="evening")
ETCD = EtcdSettings(endpoints=("etcd:2379",), namespace="evening")


async def claim(run: RunDir, logs: MemoryStore, facts: MemoryStore) -> None:
    await claim_stores(run, settings_of(run.path, tikv=TIKV, etcd=ETCD), logs, facts)


async def test_a_run_starts_again_on_its_own_namespace(run: RunDir) -> None:
    logs, facts = MemoryStore(), MemoryStore()
    await claim(run, logs, facts)
    await claim(RunDir(run.path), logs, facts)
    own = (run.path / ID_NAME).read_bytes()
    assert await logs.get(b"run") == (await facts.read("run")).value == own
    assert len(own) == 32


@pytest.mark.parametrize("lost", ["tikv", "etcd"])
async def test_an_emptied_folder_is_refused_and_told_to_choose_another_namespace(
    run: RunDir, lost: str
) -> None:
    old, new = (MemoryStore(), MemoryStore()), (MemoryStore(), MemoryStore())
    await claim(run, *old)
    (run.path / "run.json").write_text("{}")
    demo._empty(run.path)
    logs, facts = (old[0], new[1]) if lost == "tikv" else (new[0], old[1])
    with pytest.raises(Rejected, match=rf"choose another {lost}\.namespace") as refused:
        await claim(run, logs, facts)
    assert refused.value.field == f"{lost}.namespace"
    fresh = facts if lost == "tikv" else logs  # it looks before it writes
    assert await fresh.get(b"run") is None
    assert not (await fresh.read("run")).value


class LosesReplies(MemoryStore):
    """Does what it is asked and says that nobody knows."""

    async def create(self, key: bytes, value: bytes) -> bool:
        await super().create(key, value)
        raise Ambiguous("lost")

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        await super().compare_and_put(key, value, revision=revision)
        raise Ambiguous("lost")


async def test_a_lost_reply_is_read_back(run: RunDir) -> None:
    logs, facts = LosesReplies(), LosesReplies()
    await claim(run, logs, facts)
    await claim(run, logs, facts)


async def test_of_two_folders_that_start_at_once_one_is_refused(tmp_path: Path) -> None:
    logs, facts = MemoryStore(), MemoryStore()
    runs = [RunDir(tmp_path / name) for name in "ab"]
    for one in runs:
        one.path.mkdir()
    told: Sequence[object] = await asyncio.gather(
        *(claim(one, logs, facts) for one in runs), return_exceptions=True
    )
    assert sorted(str(type(one).__name__) for one in told) == ["NoneType", "Rejected"]


async def test_nothing_is_deployed_onto_the_store_of_another_run(tmp_path: Path) -> None:
    campaign_file = write_campaign(tmp_path / "c", Plot(seed=1, slots=1, packets_a_slot=40))
    settings = UpSettings(
        campaign=campaign_file, run_dir=tmp_path / "run", claims_shards=1, ticket_shards=1
    )
    run, campaign, prepared = await asyncio.to_thread(prepare_run, settings, lambda *_: None)
    store = LmdbStore(run.store, monotonic_s=SystemClock().monotonic_s)
    await store.start()
    await store.put("run", b"another")
    await store.close()
    with pytest.raises(Rejected, match="holds another run"):
        async with rain(settings, run, campaign, prepared, Timeline(campaign.slots)):
            raise AssertionError("it serves another run's facts")
    store = LmdbStore(run.store, monotonic_s=SystemClock().monotonic_s)
    await store.start()
    assert await store.read_prefix("campaigns/") == []
    await store.close()


class IsSlowToAnswer(MemoryStore):
    """Takes its first writes late, behind the caller's patience: nothing is to be read back yet."""

    late = 2

    async def create(self, key: bytes, value: bytes) -> bool:
        if self.late:
            self.late -= 1
            raise Ambiguous("no answer")
        return await super().create(key, value)


async def test_a_start_asks_again_while_a_store_gives_no_definite_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As found on a machine under load: a store that had just started let the whole start fail."""
    campaign_file = write_campaign(tmp_path / "c", Plot(seed=1, slots=1, packets_a_slot=40))
    settings = UpSettings(
        campaign=campaign_file, run_dir=tmp_path / "run", claims_shards=1, ticket_shards=1
    )
    run, campaign, prepared = await asyncio.to_thread(prepare_run, settings, lambda *_: None)
    logs, facts = IsSlowToAnswer(), MemoryStore()

    async def nothing(*_: object) -> None:
        pass

    async def connected(*_: object) -> SharedState:
        return SharedState(logs, facts, nothing)

    monkeypatch.setattr("hongbao.cli.rain.connect_stores", connected)
    monkeypatch.setattr("hongbao.cli.rain.Supervisor.start", nothing)
    async with rain(settings, run, campaign, prepared, Timeline(campaign.slots)):
        assert logs.late == 0
        assert await logs.get(b"run") == (await facts.read("run")).value
        assert (await facts.read(f"campaigns/{campaign.campaign}/timeline")).value


def test_nothing_is_minted_for_a_ledger_of_another_run(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    settings = UpSettings(
        campaign=write_campaign(tmp_path / "c", Plot(seed=1, slots=1, packets_a_slot=40)),
        run_dir=tmp_path / "mine",
        ledger_url=url,
    )
    stranger, own = RunDir(tmp_path / "other"), RunDir(settings.run_dir)
    for run in (stranger, own):
        run.path.mkdir()
    claim_ledger(stranger, url, "stormy").dispose()
    with pytest.raises(Rejected, match="another database") as refused:
        prepare_run(settings, lambda *_: None)
    assert refused.value.field == "ledger_url"
    assert list(own.path.iterdir()) == []
    (own.path / ID_NAME).write_bytes((stranger.path / ID_NAME).read_bytes())  # it goes on
    prepare_run(settings, lambda *_: None)
    assert own.objects.is_dir()
