"""Owns the minting of a whole scheme on all cores: files, table of amounts, signed manifest.

The manifest is written last: where it stands, everything it names stands too. Killed in the
middle, the same call goes on behind the finished files and ends with the same bytes.
"""

import fcntl
import hashlib
import hmac
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hongbao.cipher.keyring import Keyring, check_keyring
from hongbao.domain import manifest as manifests
from hongbao.domain.errors import Exhausted, Rejected
from hongbao.domain.ids import Fen
from hongbao.domain.manifest import AmountsTable, Manifest, MintedFile
from hongbao.domain.plan import FilePlan, MintPlan
from hongbao.domain.ticket import FILE_RECORDS_AT, RECORD_BYTES
from hongbao.mint.durable import publish, publish_bytes, sync_folder
from hongbao.mint.file import AMOUNT_BYTES, READ_BYTES, FileMinter
from hongbao.mint.plan_check import check_plan

WORK_FOLDER: Final = ".minting"  # beside the campaigns, on the same file system
PROGRESS_PERIOD_S: Final = 0.2

# Receives (packets done, packets in all), now and then.
Progress = Callable[[int, int], None]


def mint_scheme(
    plan: MintPlan,
    keyring: Keyring,
    root: Path,
    *,
    workers: int = 1,
    progress: Progress = lambda done, whole: None,
) -> Manifest:
    """Mint a scheme into the object folder `root` and return its manifest.

    Repeats safely: finished files are checked and kept, a finished scheme is returned as it is.
    Raises Rejected for a bad plan or keyring, for a folder that another plan or seed has begun,
    and while another process mints here; Exhausted when the disk is too small.
    """
    check_plan(plan)
    keyring = _needed_keys(plan, keyring)
    done = finished_scheme(plan, keyring.verify_key, root)
    if done is not None:
        progress(plan.packets, plan.packets)
        return done
    work_folder = root / WORK_FOLDER / manifests.scheme_prefix(plan.campaign, plan.scheme_number)
    work_folder.mkdir(parents=True, exist_ok=True)
    with _claimed(work_folder, plan, keyring):
        _prepare_amounts(plan, root, work_folder)
        minter = FileMinter(plan, keyring, root, work_folder)
        files = _mint_files(minter, workers, progress)
        manifest = _publish_scheme(minter, files)
    shutil.rmtree(work_folder)
    return manifest


def _needed_keys(plan: MintPlan, keyring: Keyring) -> Keyring:
    if keyring.campaign != plan.campaign:
        raise Rejected(f"the keyring is of campaign {keyring.campaign}, not {plan.campaign}")
    if not keyring.signing_key or not keyring.mint_seed:
        raise Rejected("minting needs the key file of the mint: no seed or signing key here")
    check_keyring(keyring)
    needed = keyring.only_keys(key_id for batch in plan.batches for key_id in batch.key_ids)
    return needed.for_role("mint")


def finished_scheme(plan: MintPlan, verify_key: bytes, root: Path) -> Manifest | None:
    """Return the manifest of a scheme that is minted, None before that.

    Raises Rejected when another plan was minted under its number, Corrupt for a bad signature.
    """
    name = manifests.manifest_name(plan.campaign, plan.scheme_number)
    if not (root / name).exists():
        return None
    signature = root / manifests.signature_name(plan.campaign, plan.scheme_number)
    manifest = manifests.parse_manifest(
        (root / name).read_bytes(), signature.read_bytes(), verify_key
    )
    layout = [(file.file, file.slot, file.ticket_shard, file.claims_shard) for file in plan.files]
    if manifest.batches != plan.batches or layout != [
        (file.file, file.slot, file.ticket_shard, file.claims_shard) for file in manifest.files
    ]:
        raise Rejected(f"{name}: another plan was minted under this number already")
    return manifest


@contextmanager
def _claimed(work_folder: Path, plan: MintPlan, keyring: Keyring) -> Iterator[None]:
    """Hold the work folder for this process, this plan and this seed."""
    shape = json.dumps(asdict(plan), sort_keys=True).encode()
    stamp = hmac.digest(keyring.mint_seed, shape + keyring.verify_key, "sha256").hex().encode()
    with (work_folder / "stamp").open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Rejected(f"{work_folder}: another process is minting here") from error
        file.seek(0)
        found = file.read()
        if found and found != stamp:
            raise Rejected(
                f"{work_folder}: begun with another plan or other keys; remove it and the "
                "files of this scheme to start anew"
            )
        if not found:
            file.write(stamp)
            file.flush()
            os.fsync(file.fileno())
        yield


def _prepare_amounts(plan: MintPlan, root: Path, work_folder: Path) -> None:
    """Make the table that the workers fill; without it, no finished file counts as finished."""
    table = work_folder / "amounts.bin"
    final = root / manifests.amounts_name(plan.campaign, plan.scheme_number)
    table_bytes = plan.packets * AMOUNT_BYTES
    if final.exists() and not table.exists():
        os.replace(final, table)  # killed between the table and the manifest
    if table.exists() and table.stat().st_size == table_bytes:
        return
    whole_bytes = table_bytes + plan.packets * RECORD_BYTES + len(plan.files) * FILE_RECORDS_AT
    free_bytes = shutil.disk_usage(work_folder).free
    if free_bytes < whole_bytes:
        raise Exhausted(f"{root}: {whole_bytes} bytes are needed, {free_bytes} are free")
    for file in plan.files:
        name = manifests.file_name(plan.campaign, plan.scheme_number, file.slot, file.ticket_shard)
        (root / name).unlink(missing_ok=True)
    with table.open("wb") as stream:
        stream.truncate(table_bytes)
        os.fsync(stream.fileno())
    sync_folder(work_folder)


def _mint_files(minter: FileMinter, workers: int, progress: Progress) -> list[MintedFile]:
    whole = minter.plan.packets
    files = minter.plan.files
    if workers <= 1:
        done = 0

        def minted(packets: int) -> None:
            nonlocal done
            done += packets
            progress(done, whole)

        return [minter.mint_file(file, minted) for file in files]
    # Spawned, not forked: the caller may have threads (a progress bar has).
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    with ProcessPoolExecutor(
        min(workers, len(files)), context, _start_worker, (minter, counter)
    ) as pool:
        by_size = sorted(files, key=lambda file: file.chunk_start - file.chunk_end)
        futures = {pool.submit(_mint_in_worker, file): file for file in by_size}
        try:
            results = _collect(futures, lambda: progress(counter.value, whole))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress(whole, whole)
    return [results[file] for file in files]


def _collect(
    futures: dict[Future[MintedFile], FilePlan], tell: Callable[[], None]
) -> dict[FilePlan, MintedFile]:
    """Wait for every file; the first failure is raised at once."""
    waiting = set(futures)
    results: dict[FilePlan, MintedFile] = {}
    while waiting:
        ready, waiting = wait(waiting, timeout=PROGRESS_PERIOD_S)
        results |= {futures[future]: future.result() for future in ready}
        tell()
    return results


class _Worker:
    """Keeps what a worker process was started with; set once, before its first file."""

    minter: FileMinter
    counter: "Synchronized[int]"


def _start_worker(minter: FileMinter, counter: "Synchronized[int]") -> None:
    _Worker.minter, _Worker.counter = minter, counter
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent was killed: nobody would collect its file."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _mint_in_worker(file: FilePlan) -> MintedFile:
    def minted(packets: int) -> None:
        with _Worker.counter.get_lock():
            _Worker.counter.value += packets

    return _Worker.minter.mint_file(file, minted)


def _publish_scheme(minter: FileMinter, files: Sequence[MintedFile]) -> Manifest:
    plan, root, work_folder = minter.plan, minter.root, minter.work_folder
    table = work_folder / "amounts.bin"
    amounts = AmountsTable(
        name=manifests.amounts_name(plan.campaign, plan.scheme_number),
        sha256=_file_sha256(table),
        count=plan.packets,
    )
    manifest = Manifest(
        campaign=plan.campaign,
        scheme=plan.scheme,
        scheme_number=plan.scheme_number,
        serial_base=plan.serial_base,
        packets=plan.packets,
        total_fen=Fen(plan.total_fen),
        key_cap_fen=plan.key_cap_fen,
        batches=plan.batches,
        files=tuple(files),
        keys=manifests.plan_key_uses(plan),
        amounts=amounts,
        merkle_root=manifests.merkle_root([*(file.sha256 for file in files), amounts.sha256]),
    )
    data = manifests.pack_manifest(manifest)
    signature = Ed25519PrivateKey.from_private_bytes(minter.keyring.signing_key).sign(data)
    publish(table, root / amounts.name)
    for name, octets in (
        (manifests.signature_name(plan.campaign, plan.scheme_number), signature),
        (manifests.manifest_name(plan.campaign, plan.scheme_number), data),
    ):
        publish_bytes(octets, work_folder / "small.partial", root / name)
    return manifest


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while octets := stream.read(READ_BYTES):
            digest.update(octets)
    return digest.hexdigest()
