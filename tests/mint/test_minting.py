"""Facts about minting: exact, the same bytes again, whole or not at all (R6, R40, R42, R45)."""

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hongbao.cipher.decipher import Decipherer
from hongbao.domain import manifest as manifests
from hongbao.domain.errors import Corrupt, Rejected
from hongbao.domain.ids import CampaignId, Fen, KeyId
from hongbao.domain.manifest import PacketIndex, merkle_root, parse_manifest
from hongbao.domain.plan import Batch, FilePlan, MintPlan
from hongbao.domain.ticket import FILE_RECORDS_AT, RECORD_BYTES
from hongbao.mint import file as mint_file
from hongbao.mint.scheme import WORK_FOLDER, mint_scheme
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.minted import MintedCampaign, tiny_campaign, tiny_keyring, tiny_plan
from tests.waiting import LIMIT_S


@pytest.fixture(scope="module")
def minted(tmp_path_factory: pytest.TempPathFactory) -> MintedCampaign:
    return tiny_campaign(tmp_path_factory.mktemp("minted"))


def tree(root: Path) -> dict[str, str]:
    """Return the hash of every object under a root."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def opened_packets(minted: MintedCampaign) -> Iterator[tuple[int, int, int]]:
    """Yield (batch, serial, fen) of every ticket, in the order of the files."""
    decipherer = Decipherer(minted.keyring.ticket_masters, minted.plan.campaign)
    for file in minted.manifest.files:
        data = (minted.folder / file.name).read_bytes()[FILE_RECORDS_AT:]
        opened = decipherer.open_records(np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES))
        assert opened.good.all()
        columns = (opened.batch, opened.serial, opened.amount_fen)
        yield from zip(*(column.tolist() for column in columns), strict=True)


def test_every_packet_is_in_one_file_once_and_sums_are_exact(minted: MintedCampaign) -> None:
    plan = minted.plan
    packets = list(opened_packets(minted))
    assert sorted(serial for _, serial, _ in packets) == list(
        range(plan.serial_base, plan.serial_base + plan.packets)
    )
    for batch in plan.batches:
        amounts = [fen for number, _, fen in packets if number == batch.batch]
        assert (len(amounts), sum(amounts)) == (batch.count, batch.total_fen)
        assert batch.min_fen <= min(amounts) <= max(amounts) <= batch.max_fen


def test_the_table_of_amounts_says_what_the_tickets_say(minted: MintedCampaign) -> None:
    table = np.fromfile(minted.folder / minted.manifest.amounts.name, ">u4")
    for _, serial, fen in opened_packets(minted):
        assert table[serial - minted.plan.serial_base] == fen


def test_sponsors_and_serials_are_shuffled_within_a_chunk(tmp_path: Path) -> None:
    plan = tiny_plan(packets_a_batch=400, chunks_a_file=1)
    manifest = mint_scheme(plan, tiny_keyring(), tmp_path)
    packets = list(opened_packets(MintedCampaign(plan, manifest, tiny_keyring(), tmp_path)))
    first = [serial for _, serial, _ in packets[: manifest.files[0].count]]
    ranks = np.argsort(np.argsort(first))
    correlation = float(np.corrcoef(ranks, np.arange(len(first)))[0, 1])
    assert abs(correlation) < 4 / len(first) ** 0.5
    batches = [batch for batch, _, _ in packets[: manifest.files[0].count]]
    changes = sum(a != b for a, b in pairwise(batches))
    assert changes > 0.75 * len(batches)


def test_no_key_guards_more_than_its_cap_and_the_manifest_says_what_each_guards(
    minted: MintedCampaign,
) -> None:
    uses = {use.key_id: use for use in minted.manifest.keys}
    assert sum(use.fen for use in uses.values()) == minted.plan.total_fen
    assert sum(use.packets for use in uses.values()) == minted.plan.packets
    assert max(use.fen for use in uses.values()) <= minted.plan.key_cap_fen


def test_the_same_plan_and_keys_give_the_same_bytes_on_one_core_and_on_two(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    mint_scheme(minted.plan, minted.keyring, tmp_path, workers=2)
    assert tree(tmp_path) == tree(minted.folder)
    assert not any((tmp_path / WORK_FOLDER).rglob("*.partial"))


def test_another_seed_gives_other_amounts_and_the_same_sums(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    other = replace(minted.keyring, mint_seed=bytes([8]) * 32)
    manifest = mint_scheme(minted.plan, other, tmp_path)
    assert manifest.amounts.sha256 != minted.manifest.amounts.sha256
    assert manifest.total_fen == minted.manifest.total_fen


def test_minting_a_minted_scheme_again_changes_nothing(tmp_path: Path) -> None:
    first = tiny_campaign(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    assert mint_scheme(first.plan, first.keyring, first.folder) == first.manifest
    assert {path: path.stat().st_mtime_ns for path in times} == times


class Killed(BaseException):
    """Stands for a kill at a chosen packet."""


def killed_after(packets: int) -> Callable[[int, int], None]:
    def progress(done: int, whole: int) -> None:
        if done >= packets:
            raise Killed

    return progress


@pytest.mark.parametrize("packets", [1, 100, 150, 300, 500, 516])
def test_a_minting_that_was_stopped_anywhere_goes_on_to_the_same_bytes(
    minted: MintedCampaign, tmp_path: Path, packets: int
) -> None:
    with pytest.raises(Killed):
        mint_scheme(minted.plan, minted.keyring, tmp_path, progress=killed_after(packets))
    assert not (tmp_path / manifests.manifest_name(minted.plan.campaign, 1)).exists()
    mint_scheme(minted.plan, minted.keyring, tmp_path)
    assert tree(tmp_path) == tree(minted.folder)


def test_a_resumed_minting_keeps_the_finished_files(minted: MintedCampaign, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        mint_scheme(minted.plan, minted.keyring, tmp_path, progress=killed_after(300))
    kept = {path: path.stat().st_ino for path in tmp_path.rglob("*.hbt")}
    assert len(kept) == 2
    mint_scheme(minted.plan, minted.keyring, tmp_path)
    assert {path: path.stat().st_ino for path in kept} == kept


def test_a_damaged_file_of_a_stopped_minting_is_minted_again(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    """F19: what lies there is checked before it counts as finished."""
    with pytest.raises(Killed):
        mint_scheme(minted.plan, minted.keyring, tmp_path, progress=killed_after(400))
    files = sorted(tmp_path.rglob("*.hbt"))
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"\0")
    files[1].write_bytes(files[1].read_bytes()[:-26])
    files[2].write_bytes(b"HBTF")
    mint_scheme(minted.plan, minted.keyring, tmp_path)
    assert tree(tmp_path) == tree(minted.folder)


def test_a_lost_table_is_made_again_with_the_files_it_belongs_to(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        mint_scheme(minted.plan, minted.keyring, tmp_path, progress=killed_after(300))
    (tmp_path / WORK_FOLDER / "tiny/1/amounts.bin").unlink()
    mint_scheme(minted.plan, minted.keyring, tmp_path)
    assert tree(tmp_path) == tree(minted.folder)


def test_a_kill_between_table_and_manifest_is_survived(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    tiny = tiny_campaign(tmp_path)
    for suffix in ("json", "sig"):
        (tiny.folder / f"tiny/1/manifest.{suffix}").unlink()
    mint_scheme(minted.plan, minted.keyring, tiny.folder)
    assert tree(tiny.folder) == tree(minted.folder)


SLOW_MINT = """
import sys
from pathlib import Path
from hongbao.mint.scheme import mint_scheme
from tests.minted import tiny_keyring, tiny_plan
if __name__ == "__main__":
    plan = tiny_plan(packets_a_batch=60_000, chunks_a_file=4)
    print("started", flush=True)
    mint_scheme(plan, tiny_keyring(), Path(sys.argv[1]), workers=2)
"""


def test_kill_9_of_the_mint_and_a_second_run_give_the_same_bytes(tmp_path: Path) -> None:
    script = tmp_path / "slow_mint.py"
    script.write_text(SLOW_MINT)
    root, peer = tmp_path / "killed", tmp_path / "peer"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def published() -> set[str]:
        """Bear that the mint takes folders away meanwhile, as `rglob` does not."""
        found = (name for _, _, names in os.walk(root) for name in names)
        return {name for name in found if name.endswith(".hbt")}

    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, str(script), str(root)], env=environment, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            kept = published()
            deadline = time.monotonic() + LIMIT_S
            while published() == kept and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
    plan = tiny_plan(packets_a_batch=60_000, chunks_a_file=4)
    mint_scheme(plan, tiny_keyring(), root)
    mint_scheme(plan, tiny_keyring(), peer)
    assert tree(root) == tree(peer)


def test_a_file_that_an_orphan_still_mints_is_minted_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orphan of a killed run ends while we wait for its file: ours is another, and whole."""
    plan, keyring = tiny_plan(), tiny_keyring()
    file, publish, may = plan.files[0], mint_file.publish, threading.Event()
    minter = mint_file.FileMinter(plan, keyring, tmp_path, tmp_path / "work")
    minter.work_folder.mkdir()
    (minter.work_folder / "amounts.bin").touch()

    def publish_late(partial: Path, final: Path) -> None:
        may.set()
        time.sleep(0.2)  # the other one begins
        publish(partial, final)

    monkeypatch.setattr(mint_file, "publish", publish_late)
    with ThreadPoolExecutor(2) as threads:
        orphan = threads.submit(minter.mint_file, file, lambda packets: None)
        assert may.wait(LIMIT_S)
        ours = threads.submit(minter.mint_file, file, lambda packets: None)
        assert ours.result() == orphan.result()
    final = tmp_path / ours.result().name
    assert hashlib.sha256(final.read_bytes()[FILE_RECORDS_AT:]).hexdigest() == ours.result().sha256


def test_two_mints_of_one_scheme_never_run_at_once(minted: MintedCampaign, tmp_path: Path) -> None:
    def second_mint(done: int, whole: int) -> None:
        with pytest.raises(Rejected, match="another process is minting"):
            mint_scheme(minted.plan, minted.keyring, tmp_path)

    mint_scheme(minted.plan, minted.keyring, tmp_path, progress=second_mint)


@pytest.mark.parametrize("change", ["seed", "plan"])
def test_a_begun_minting_is_not_continued_with_another_seed_or_plan(
    minted: MintedCampaign, tmp_path: Path, change: str
) -> None:
    with pytest.raises(Killed):
        mint_scheme(minted.plan, minted.keyring, tmp_path, progress=killed_after(200))
    plan, keyring = minted.plan, minted.keyring
    if change == "seed":
        keyring = replace(keyring, mint_seed=bytes([8]) * 32)
    else:
        plan = tiny_plan(packets_a_batch=50)
    with pytest.raises(Rejected, match="another plan or other keys"):
        mint_scheme(plan, keyring, tmp_path)


def test_another_plan_under_a_minted_number_is_refused(tmp_path: Path) -> None:
    minted = tiny_campaign(tmp_path)
    with pytest.raises(Rejected, match="another plan was minted"):
        mint_scheme(tiny_plan(packets_a_batch=50), minted.keyring, minted.folder)


def test_two_schemes_of_one_budget_stand_side_by_side(tmp_path: Path) -> None:
    """R42: their serials, keys and files are disjoint, and one index finds packets of both."""
    first, second = (tiny_campaign(tmp_path, scheme_number=number) for number in (1, 2))
    index = PacketIndex([first.manifest, second.manifest])
    for minted in (first, second):
        batch = minted.plan.batches[0]
        found = index.locate(batch.batch, batch.serial_base)
        assert found is not None
        assert found.file == minted.plan.files[0].file


def test_a_keyring_of_another_campaign_or_role_is_refused(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    foreign = replace(minted.keyring, campaign=CampaignId("other"))
    for keyring, reason in ((foreign, "other"), (minted.keyring.for_role("redeem"), "key file")):
        with pytest.raises(Rejected, match=reason):
            mint_scheme(minted.plan, keyring, tmp_path)


def change_batch(plan: MintPlan, **changes: object) -> MintPlan:
    return replace(plan, batches=(replace(plan.batches[0], **changes), *plan.batches[1:]))  # type: ignore[arg-type]


def change_file(plan: MintPlan, **changes: object) -> MintPlan:
    return replace(plan, files=(replace(plan.files[0], **changes), *plan.files[1:]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: replace(p, key_cap_fen=Fen(5000)), "over its cap of 5000 fen"),
        (lambda p: change_batch(p, total_fen=Fen(10**7)), "do not go into"),
        (lambda p: change_batch(p, total_fen=Fen(39)), "do not go into"),
        (lambda p: change_batch(p, max_fen=Fen(1 << 24)), "amounts from 1 to 16777216"),
        (lambda p: change_batch(p, min_fen=Fen(0)), "amounts from 0"),
        (lambda p: change_batch(p, count=0), "0 packets"),
        (lambda p: change_batch(p, curve="flat"), "unknown curve 'flat'"),
        (lambda p: change_batch(p, key_ids=()), "no keys"),
        (lambda p: change_batch(p, key_ids=(KeyId(2),)), "key 2 guards batch 1 and batch 2"),
        (lambda p: change_batch(p, key_ids=(KeyId(4096),)), "key id"),
        (lambda p: change_batch(p, serial_base=999_999), "serials start at 999999"),
        (lambda p: change_batch(p, batch=2), "a batch number stands twice"),
        (lambda p: change_batch(p, batch=65_536), "16 bits"),
        (lambda p: change_batch(p, sponsor=65_536), "16 bits"),
        (lambda p: replace(p, serial_base=1 << 36), "serials"),
        (lambda p: replace(p, scheme_number=0), "scheme number 0"),
        (lambda p: replace(p, batches=()), "no batches"),
        (lambda p: replace(p, files=()), "packets but no files"),
        (lambda p: change_file(p, chunk_end=1), "do not cover every chunk once"),
        (lambda p: change_file(p, chunk_start=1), "do not cover every chunk once"),
        (lambda p: change_file(p, chunk_end=3), "do not cover every chunk once"),
        (lambda p: change_file(p, ticket_shard=1), "ticket shard stands twice"),
    ],
)
def test_a_bad_plan_is_refused_before_anything_is_drawn(
    change: Callable[[MintPlan], MintPlan], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(Rejected, match=reason):
        mint_scheme(change(tiny_plan()), tiny_keyring(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_without_packets_and_a_file_without_packets_are_minted(tmp_path: Path) -> None:
    plan = tiny_plan(packets_a_batch=1, chunks_a_file=40)
    manifest = mint_scheme(plan, tiny_keyring(), tmp_path)
    assert sum(file.count for file in manifest.files) == plan.packets


@st.composite
def plans(draw: st.DrawFn) -> MintPlan:
    """Draw plans of one to four batches in one slot, any keys, chunks and files."""
    plan = tiny_plan()
    batches: list[Batch] = []
    serial, key_id = draw(st.integers(0, 10**9)), 1
    for number in range(1, draw(st.integers(1, 4)) + 1):
        count = draw(st.integers(1, 120))
        low = draw(st.integers(1, 50))
        high = draw(st.integers(low, 3000))
        keys = draw(st.integers(1, min(count, 5)))
        batches.append(
            replace(
                plan.batches[0],
                batch=number,  # type: ignore[arg-type]
                sponsor=draw(st.integers(1, 9)),
                curve=draw(st.sampled_from(["uniform", "lucky"])),
                count=count,
                total_fen=Fen(draw(st.integers(count * low, count * high))),
                min_fen=Fen(low),
                max_fen=Fen(high),
                serial_base=serial,
                key_ids=tuple(KeyId(key) for key in range(key_id, key_id + keys)),
            )
        )
        serial, key_id = serial + count, key_id + keys
    cuts = sorted(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True)))
    files = tuple(
        FilePlan(plan.files[0].file + at, plan.files[0].slot, at, plan.files[0].claims_shard, *cut)  # type: ignore[arg-type]
        for at, cut in enumerate(zip([0, *cuts], cuts, strict=False))
    )
    return replace(plan, serial_base=batches[0].serial_base, batches=tuple(batches), files=files)


@settings(max_examples=40, deadline=None)
@given(plan=plans())
def test_any_plan_mints_every_serial_once_with_exact_sums(
    plan: MintPlan, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    keyring = tiny_keyring()
    manifest = mint_scheme(plan, keyring, folder)
    packets = list(opened_packets(MintedCampaign(plan, manifest, keyring, folder)))
    assert sorted(serial for _, serial, _ in packets) == list(
        range(plan.serial_base, plan.serial_base + plan.packets)
    )
    for batch in plan.batches:
        assert sum(f for number, _, f in packets if number == batch.batch) == batch.total_fen


def test_the_manifest_survives_the_round_trip_and_a_flipped_bit_does_not(
    minted: MintedCampaign,
) -> None:
    data, signature = signed_manifest(minted)
    assert parse_manifest(data, signature, minted.keyring.verify_key) == minted.manifest
    assert manifests.pack_manifest(minted.manifest) == data
    for octets, sealed in ((data[:-2] + b"]\n", signature), (data, bytes(64)), (data, b"")):
        with pytest.raises(Corrupt, match="signature"):
            parse_manifest(octets, sealed, minted.keyring.verify_key)


def signed_manifest(minted: MintedCampaign) -> tuple[bytes, bytes]:
    prefix = minted.folder / "tiny" / "1"
    return (prefix / "manifest.json").read_bytes(), (prefix / "manifest.sig").read_bytes()


def test_the_merkle_root_depends_on_every_hash_and_its_place() -> None:
    leaves = [hashlib.sha256(bytes([n])).hexdigest() for n in range(7)]
    roots = {merkle_root(leaves[:n]) for n in range(8)}
    roots |= {merkle_root([*leaves[:n], leaves[0], *leaves[n + 1 :]]) for n in range(1, 7)}
    assert len(roots) == 14


def test_the_index_finds_every_packet_at_a_bit_of_its_own(minted: MintedCampaign) -> None:
    index = PacketIndex([minted.manifest])
    bits: dict[int, list[int]] = {file.file: [] for file in minted.manifest.files}
    for batch in minted.plan.batches:
        for serial in range(batch.serial_base, batch.serial_base + batch.count):
            found = index.locate(batch.batch, serial)
            assert found is not None
            assert found.batch == batch
            bits[found.file].append(found.bit)
    for file in minted.manifest.files:
        assert sorted(bits[file.file]) == list(range(file.count))


def test_the_index_knows_no_packet_of_another_batch_or_beyond_the_scheme(
    minted: MintedCampaign,
) -> None:
    index, plan = PacketIndex([minted.manifest]), minted.plan
    first, last = plan.serial_base, plan.serial_base + plan.packets - 1
    assert index.locate(2, first) is None
    assert index.locate(1, first - 1) is None
    assert index.locate(plan.batches[-1].batch, last) is not None
    assert index.locate(plan.batches[-1].batch, last + 1) is None
    assert PacketIndex([]).locate(1, first) is None


def test_the_index_finds_columns_as_it_finds_single_packets(minted: MintedCampaign) -> None:
    index, plan = PacketIndex([minted.manifest]), minted.plan
    serials = np.arange(plan.serial_base - 5, plan.serial_base + plan.packets + 5)
    batches = np.full(len(serials), 3)
    many = index.locate_many(batches, serials)
    for at, serial in enumerate(serials.tolist()):
        one = index.locate(3, serial)
        assert bool(many.known[at]) == (one is not None)
        if one is not None:
            found = (many.file[at], many.bit[at], many.claims_shard[at], many.sponsor[at])
            assert found == (one.file, one.bit, one.claims_shard, one.batch.sponsor)
    assert not PacketIndex([]).locate_many(batches, serials).known.any()


def test_manifests_that_claim_one_serial_twice_are_refused(minted: MintedCampaign) -> None:
    with pytest.raises(Corrupt, match="stand in file"):
        PacketIndex([minted.manifest, minted.manifest])


def test_no_worker_outlives_a_failed_minting(minted: MintedCampaign, tmp_path: Path) -> None:
    blocked = tmp_path / "tiny/1/slot-01/tickets-0000.hbt"
    blocked.mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        mint_scheme(minted.plan, minted.keyring, tmp_path, workers=2)
    assert multiprocessing.active_children() == []
