"""Late edits on a run that plays: minted first, then placed, then active, then remembered."""

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.cli.activation import Activation, Deployment, activate_scheme, check_minted
from hongbao.cli.campaign import app
from hongbao.cli.documents import plan_timeline
from hongbao.cli.late_edit import read_late_edit, run_campaign
from hongbao.cli.run_dir import ProcessSpec, RunDir
from hongbao.cli.run_objects import minted_here, upload_scheme
from hongbao.cli.settings import UpSettings
from hongbao.domain.assignment import AccessPod, Assignment, plan_assignment
from hongbao.domain.campaign import Campaign
from hongbao.domain.ids import SlotNumber
from hongbao.domain.manifest import Manifest, manifest_name, signature_name
from hongbao.domain.plan import MintPlan
from hongbao.domain.script import plan_campaign, record_plans, replan
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Versioned
from typer.testing import CliRunner

from tests.funding.files import (
    CAMPAIGN,
    MAIN,
    SPARE,
    SPONSORS,
    small_campaign,
    small_files,
    swapped,
)
from tests.funding.minted_run import mint_into, minted_run, small_keyring

ONE, TWO = SlotNumber(1), SlotNumber(2)
PODS = (AccessPod(1, "access-a-0", "a"), AccessPod(2, "access-b-0", "b"))
PREFIX = "campaigns/small-eve/"
LATE = {
    "campaign": swapped(CAMPAIGN, "3000.00", "3100.00"),
    "sponsors": SPONSORS + "berry,浆果,100.00,5\n",
    "main": MAIN + "berry,2,image,20,100.00,0.50,20.00,lucky,image/berry.webp\n",
    "spare": SPARE + "berry,2,image,20,100.00,0.50,20.00,lucky,image/berry.webp\n",
}
BEFORE = small_campaign()
EDITED = small_campaign(**LATE)
PLANS = plan_campaign(BEFORE, ticket_shards=2, claims_shards=2)
NEW = replan(
    EDITED,
    record_plans(BEFORE, PLANS),
    scheme="main",
    issued={ONE: 1},
    ticket_shards=2,
    claims_shards=2,
)
NOW_MS = BEFORE.slots[0].starts_at_ms + 1


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return mint_into(tmp_path_factory.mktemp("objects"), (*PLANS, NEW))


async def deployed() -> MemoryStore:
    """Return the documents of a run that plays plan 1 in both slots; its slot 1 is open."""
    store = MemoryStore()
    files = [(one.file, one.slot, one.ticket_shard) for plan in PLANS for one in plan.files]
    await store.put(f"{PREFIX}assignment", plan_assignment(files, PODS).to_json())
    await store.put(f"{PREFIX}active", b'{"1": 1, "2": 1}')
    await store.put(f"{PREFIX}timeline", Timeline(BEFORE.slots).to_json())
    return store


async def activate(
    store: MemoryStore, manifest: Manifest, campaign: Campaign = EDITED, now_ms: int = NOW_MS
) -> Activation:
    return await activate_scheme(
        store,
        campaign,
        (*PLANS, NEW),
        manifest.scheme_number,
        [],
        wall_ms=lambda: now_ms,
        deployment=Deployment(manifest, PODS, BEFORE.slots, "campaign.yaml"),
    )


async def documents(store: MemoryStore) -> dict[str, bytes]:
    return {one.key.removeprefix(PREFIX): one.value for one in await store.read_prefix(PREFIX)}


async def test_a_late_sponsor_s_files_get_pods_and_no_other_file_moves(
    manifests: list[Manifest],
) -> None:
    """R35: placements that exist may have moved to a backup; they stay there."""
    store = await deployed()
    before = Assignment.from_json((await documents(store))["assignment"]).files
    moved = {0: dataclasses.replace(before[0], serving=2)}
    await store.put(f"{PREFIX}assignment", Assignment({**before, **moved}).to_json())
    done = await activate(store, manifests[2])
    assert (done.problems, done.after) == ((), {ONE: 1, TWO: 3})
    after = Assignment.from_json((await documents(store))["assignment"]).files
    assert {file: after[file] for file in before} == {**before, **moved}
    assert after.keys() - before.keys() == {one.file for one in NEW.files}
    assert {after[one.file].serving for one in NEW.files} == {1, 2}


class WatchedStore(MemoryStore):
    """Dies at one of the writes; remembers in what order documents were written."""

    dies_at = 0

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        self.written.append(key.removeprefix(PREFIX))
        if len(self.written) == self.dies_at:
            raise KeyboardInterrupt
        return await super().compare_and_put(key, value, revision=revision)


@pytest.mark.parametrize("dies_at", [1, 2])
async def test_files_have_pods_before_a_scheme_is_active_and_a_broken_off_call_goes_on(
    manifests: list[Manifest], dies_at: int
) -> None:
    store = WatchedStore()
    for key, value in (await documents(await deployed())).items():
        await store.put(PREFIX + key, value)
    store.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        await activate(store, manifests[2])
    assert json.loads((await documents(store))["active"]) == {"1": 1, "2": 1}
    assert (await activate(store, manifests[2])).after == {ONE: 1, TWO: 3}
    again = ["assignment", "active"] if dies_at == 1 else ["active"]
    assert store.written == [*["assignment", "active"][:dies_at], *again]
    assert (await activate(store, manifests[2], now_ms=NOW_MS + 10**9)).problems == ()


def test_what_is_not_minted_or_minted_otherwise_is_refused(manifests: list[Manifest]) -> None:
    plans = (*PLANS, NEW)
    assert check_minted(manifests, plans, 3, 2) == []
    assert "not minted" in str(check_minted(manifests[:2], plans, 3, 2)[0])
    other = dataclasses.replace(NEW, batches=NEW.batches[:-1])
    assert "not what was minted" in str(check_minted(manifests, (*PLANS, other), 3, 2)[0])
    assert "2 claims shards, the run has 1" in str(check_minted(manifests, plans, 3, 1)[0])


def moved_slots(*, second_by_ms: int, first_by_ms: int = 0) -> Campaign:
    """Return the edited campaign with slots moved in time."""
    slots = [
        dataclasses.replace(
            slot, starts_at_ms=slot.starts_at_ms + by, ends_at_ms=slot.ends_at_ms + by
        )
        for slot, by in zip(EDITED.slots, (first_by_ms, second_by_ms), strict=True)
    ]
    return dataclasses.replace(EDITED, slots=tuple(slots))


async def test_changed_slot_times_are_deployed_before_the_scheme(manifests: list[Manifest]) -> None:
    """R37."""
    store, campaign = await deployed(), moved_slots(second_by_ms=600_000)
    assert (await activate(store, manifests[2], campaign)).problems == ()
    assert Timeline.from_json((await documents(store))["timeline"]).slots == campaign.slots


@pytest.mark.parametrize(
    ("campaign", "why"),
    [
        (moved_slots(second_by_ms=0, first_by_ms=1), "its times cannot change"),
        (moved_slots(second_by_ms=NOW_MS - BEFORE.slots[1].starts_at_ms + 660_000), ""),
        (dataclasses.replace(EDITED, slots=EDITED.slots[:1]), "cannot be removed"),
    ],
)
async def test_times_of_open_slots_stay(
    manifests: list[Manifest], campaign: Campaign, why: str
) -> None:
    store = await deployed()
    before = await documents(store)
    done = await activate(store, manifests[2], campaign)
    assert bool(done.problems) == bool(why)
    assert why in " ".join(map(str, done.problems))
    assert all(one.file == "campaign.yaml" for one in done.problems)
    assert (await documents(store) == before) == bool(why)


async def test_a_rehearsal_keeps_its_times_and_takes_no_edited_ones(
    manifests: list[Manifest],
) -> None:
    store = await deployed()
    rehearsed = Timeline(BEFORE.slots).rehearsed(NOW_MS, 60_000)
    document = plan_timeline(b"", rehearsed, rehearsal=True, now_ms=NOW_MS) or b""
    await store.put(f"{PREFIX}timeline", document)
    campaign = moved_slots(second_by_ms=600_000)
    refused = await activate(store, manifests[2], campaign)
    assert str(refused.problems[0]).startswith("campaign.yaml: slots: the run is a rehearsal")
    assert (await activate(store, manifests[2])).problems == ()
    assert (await documents(store))["timeline"] == document


def write_files(folder: Path, **tables: str) -> Path:
    folder.mkdir(exist_ok=True)
    tables["campaign"] = tables.get("campaign", CAMPAIGN).replace("2027-", "2199-")
    for name, data in small_files(**tables).items():
        (folder / name).write_bytes(data)
    return folder


run = CliRunner().invoke


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A stopped run of the small campaign, both schemes minted."""
    folder = write_files(tmp_path / "before")
    made = RunDir(tmp_path / "run")
    made.path.mkdir()
    specs = [ProcessSpec(one.process, "access", one.zone, one.pod) for one in PODS]
    settings = UpSettings(
        campaign=folder / "campaign.yaml", claims_shards=2, ticket_shards=2, run_dir=made.path
    )
    made.write_specs(settings, specs)
    minted_run(made, PLANS)
    return made


def planned(run_dir: RunDir, folder: Path) -> Path:
    """Plan the run's campaign, then the edit behind it; return the record."""
    before, after = run_dir.path / "plans.json", run_dir.path / "plans-2.json"
    shards = ["--ticket-shards", "2", "--claims-shards", "2"]
    source = run_dir.path.parent / "before"
    assert run(app, ["plan", str(source), "--out", str(before), *shards]).exit_code == 0
    edit = ["plan", str(folder), "--after", str(before), "--issued", "1=1", "--out", str(after)]
    assert run(app, edit).exit_code == 0
    return after


def test_an_edit_that_is_not_minted_or_wrongly_signed_is_refused_and_nothing_written(
    run_dir: RunDir, tmp_path: Path
) -> None:
    edited = write_files(tmp_path / "edited", **LATE)
    record = planned(run_dir, edited)
    at_run = ["--run", str(run_dir.path), "--plans", str(record), "--json"]
    assert (
        run(app, ["activate", str(tmp_path / "before"), "1", "--run", str(run_dir.path)]).exit_code
        == 0
    )
    for forged in (False, True):
        if forged:
            mint_into(run_dir.objects, [NEW], seed=b"a stranger's keys")
        result = run(app, ["activate", str(edited), "main", *at_run])
        assert result.exit_code == 1
        message = json.loads(result.stdout)["problems"][0]["message"]
        assert ("signature" if forged else "not minted") in message
        assert read_late_edit(run_dir) is None
    (run_dir.objects / manifest_name(BEFORE.campaign, 3)).unlink()
    (run_dir.objects / signature_name(BEFORE.campaign, 3)).unlink()
    listed = run(
        app, ["activate", str(tmp_path / "before"), "1", "--json", "--run", str(run_dir.path)]
    )
    assert json.loads(listed.stdout)["active"] == {"1": 1, "2": 1}


def test_an_edit_in_force_is_remembered_and_only_built_upon(
    run_dir: RunDir, tmp_path: Path
) -> None:
    """R37: `up`, `audit` and `fund` of this run know the late sponsor from now on."""
    edited = write_files(tmp_path / "edited", **LATE)
    record = planned(run_dir, edited)
    mint_into(run_dir.objects, [NEW])
    at_run = ["--run", str(run_dir.path)]
    assert run(app, ["activate", str(tmp_path / "before"), "1", *at_run]).exit_code == 0
    done = run(
        app, ["activate", str(edited), "main", "--plans", str(record), "--slot", "2", *at_run]
    )
    assert done.stdout.splitlines() == ["slot 1: plan 1 (unchanged)", "slot 2: plan 3 (was 1)"]
    settings, _ = run_dir.read_specs()
    assert [one.sponsor for one in run_campaign(run_dir, settings).sponsors][-1] == "berry"
    edit = read_late_edit(run_dir)
    assert edit is not None
    assert [plan.scheme_number for plan in edit.record.plans] == [1, 2, 3]
    assert run(app, ["activate", str(edited), "main", "--slot", "2", *at_run]).exit_code == 0
    for refused in (
        ["activate", str(tmp_path / "before"), "main", *at_run],
        ["activate", str(edited), "main", "--plans", str(run_dir.path / "plans.json"), *at_run],
    ):
        result = run(app, refused)
        assert type(result.exception).__name__ == "Rejected", result.output


def test_activation_brings_what_is_minted_to_a_remote_object_store(
    run_dir: RunDir, tmp_path: Path
) -> None:
    """What the run started with is there already: `up` brought it."""
    settings, specs = run_dir.read_specs()
    remote = tmp_path / "remote"
    there = settings.model_copy(update={"objects_url": str(remote)})
    run_dir.write_specs(there, specs)
    for plan in PLANS:
        key, number = small_keyring().verify_key, plan.scheme_number
        minted = asyncio.run(minted_here(run_dir, plan.campaign, number, key))
        assert minted is not None
        asyncio.run(upload_scheme(run_dir, there, minted))
    at_run = ["--run", str(run_dir.path)]
    assert run(app, ["activate", str(tmp_path / "before"), "1", *at_run]).exit_code == 0
    edited = write_files(tmp_path / "edited", **LATE)
    switch = ["activate", str(edited), "main", "--plans", str(planned(run_dir, edited)), *at_run]
    refused = run(app, [*switch, "--slot", "2", "--json"])
    assert "not minted" in json.loads(refused.stdout)["problems"][0]["message"]
    mint_into(run_dir.objects, [NEW])
    for _ in range(2):
        assert run(app, [*switch, "--slot", "2"]).exit_code == 0
        for file in ("manifest.json", "manifest.sig", "amounts.bin"):
            (name,) = (run_dir.objects / BEFORE.campaign / "3").glob(file)
            assert (remote / BEFORE.campaign / "3" / file).read_bytes() == name.read_bytes()
        minted = sorted((run_dir.objects / BEFORE.campaign / "3").rglob("*.hbt"))
        assert len(minted) == len(list((remote / BEFORE.campaign / "3").rglob("*.hbt"))) > 0


def test_plans_of_an_edit_have_the_shards_of_the_record(run_dir: RunDir, tmp_path: Path) -> None:
    """A claims shard that no process owns would take no claim."""
    record = json.loads(planned(run_dir, write_files(tmp_path / "edited", **LATE)).read_text())
    plan: MintPlan = record["plans"][-1]
    assert {file["claims_shard"] for file in plan["files"]} == {0, 1}  # type: ignore[index]
