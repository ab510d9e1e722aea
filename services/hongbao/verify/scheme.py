"""Owns the verification of a whole scheme: every total is derived again, every ticket opened.

Shares formats, plan and key derivation with mint, and no line that draws, enciphers or writes
(R54, R55): what mint promised in the manifest is compared with what the bytes say.
"""

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Final

from hongbao.cipher.decipher import Decipherer
from hongbao.cipher.keyring import Keyring
from hongbao.domain import manifest as manifests
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Rejected
from hongbao.domain.manifest import Manifest
from hongbao.domain.plan import FilePlan, MintPlan
from hongbao.verify.file import FileVerifier, VerifiedFile
from hongbao.verify.plan import check_budget, check_plan_disjoint, check_table, read_manifest
from hongbao.verify.report import Findings, VerifyReport

PROGRESS_PERIOD_S: Final = 0.2
Progress = Callable[[int, int], None]


def verify_scheme(
    plan: MintPlan,
    root: Path,
    keyring: Keyring,
    *,
    campaign: Campaign | None = None,
    workers: int = 1,
    progress: Progress = lambda done, whole: None,
) -> VerifyReport:
    """Verify what lies under `root` against the plan, and the plan against the campaign.

    Never raises for what it finds in the objects. Raises Rejected when the keyring is of another
    campaign and NotFound when it lacks a key of the plan.
    """
    if keyring.campaign != plan.campaign:
        raise Rejected(f"the keyring is of campaign {keyring.campaign}, not {plan.campaign}")
    keyring = keyring.only_keys(key for batch in plan.batches for key in batch.key_ids)
    whole = Findings(manifests.scheme_prefix(plan.campaign, plan.scheme_number))
    if campaign is not None:
        check_budget(campaign, plan, whole)
    check_plan_disjoint(plan, whole)
    named = Findings(manifests.manifest_name(plan.campaign, plan.scheme_number))
    manifest = read_manifest(plan, root, keyring.verify_key, named)
    table = Findings(manifests.amounts_name(plan.campaign, plan.scheme_number))
    check_table(plan, manifest, root, table)
    files = _verify_files(plan, manifest, root, keyring, workers, progress)
    packets, total_fen = _check_totals(plan, files, whole)
    findings = [finding for part in (whole, named, table) for finding in part.told()]
    findings += [finding for file in files for finding in file.findings]
    return VerifyReport(packets, total_fen, len(files), tuple(findings))


def _check_totals(
    plan: MintPlan, files: Iterable[VerifiedFile], findings: Findings
) -> tuple[int, int]:
    """Add up what the tickets say, by batch and by key; return packets and money."""
    by_batch: Counter[int] = Counter()
    by_key: Counter[int] = Counter()
    packets = 0
    for file in files:
        by_batch.update(file.fen_by_batch)
        by_key.update(file.fen_by_key)
        packets += file.packets
    for batch in plan.batches:
        if by_batch[batch.batch] != batch.total_fen:
            findings.add(
                "sum",
                f"batch {batch.batch}: {by_batch[batch.batch]} fen in tickets, "
                f"not {batch.total_fen}",
            )
    for key_id, fen in sorted(by_key.items()):
        if fen > plan.key_cap_fen:
            findings.add("key_cap", f"key {key_id} guards {fen} of {plan.key_cap_fen} fen")
    if packets != plan.packets:
        findings.add("sum", f"{packets} good packets, not {plan.packets}")
    return packets, by_batch.total()


def _verify_files(
    plan: MintPlan,
    manifest: Manifest | None,
    root: Path,
    keyring: Keyring,
    workers: int,
    progress: Progress,
) -> list[VerifiedFile]:
    start = (plan, manifest, root, keyring)
    if workers <= 1:
        done = 0

        def read(packets: int) -> None:
            nonlocal done
            done += packets
            progress(done, plan.packets)

        verifier = _file_verifier(*start)
        return [verifier.verify_file(file, read) for file in plan.files]
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    with ProcessPoolExecutor(workers, context, _start_worker, (counter, *start)) as pool:
        futures = [pool.submit(_verify_in_worker, file) for file in plan.files]
        waiting = set(futures)
        while waiting:
            _, waiting = wait(waiting, timeout=PROGRESS_PERIOD_S)
            progress(counter.value, plan.packets)
        return [future.result() for future in futures]


def _file_verifier(
    plan: MintPlan, manifest: Manifest | None, root: Path, keyring: Keyring
) -> FileVerifier:
    decipherer = Decipherer(keyring.ticket_masters, keyring.campaign)
    return FileVerifier(plan, manifest, root, decipherer, keyring.verify_key)


class _Worker:
    """Keeps what a worker process was started with; set once, before its first file."""

    verifier: FileVerifier
    counter: "Synchronized[int]"


def _start_worker(
    counter: "Synchronized[int]",
    plan: MintPlan,
    manifest: Manifest | None,
    root: Path,
    keyring: Keyring,
) -> None:
    _Worker.counter = counter
    _Worker.verifier = _file_verifier(plan, manifest, root, keyring)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _verify_in_worker(file: FilePlan) -> VerifiedFile:
    def read(packets: int) -> None:
        with _Worker.counter.get_lock():
            _Worker.counter.value += packets

    return _Worker.verifier.verify_file(file, read)
