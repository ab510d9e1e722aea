"""Facts about verify: every planted fault is found, and nothing else (R54, R55, F19)."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hongbao.cipher.decipher import Decipherer
from hongbao.cipher.derive import ticket_keys
from hongbao.cipher.encipher import encipher_span
from hongbao.domain import manifest as manifests
from hongbao.domain.campaign import Allocation, Campaign, Scheme, Sponsor
from hongbao.domain.errors import NotFound, Rejected
from hongbao.domain.ids import CampaignId, Fen, KeyId, SponsorIndex
from hongbao.domain.manifest import Manifest
from hongbao.domain.plan import MintPlan
from hongbao.domain.ticket import FILE_HEADER, FILE_RECORDS_AT, RECORD_BYTES, Packet
from hongbao.domain.ticket_file import unpack_header
from hongbao.verify.report import FINDINGS_TOLD_MAX, VerifyReport
from hongbao.verify.scheme import verify_scheme

from tests.minted import MintedCampaign, tiny_campaign, tiny_plan

FIRST = "tiny/1/slot-01/tickets-0000.hbt"
SECOND = "tiny/1/slot-01/tickets-0001.hbt"
MANIFEST = "tiny/1/manifest.json"
SIGNATURE = "tiny/1/manifest.sig"
AMOUNTS = "tiny/1/amounts.bin"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> MintedCampaign:
    return tiny_campaign(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def minted(pristine: MintedCampaign, tmp_path: Path) -> MintedCampaign:
    """A copy to damage."""
    folder = tmp_path / "objects"
    shutil.copytree(pristine.folder, folder)
    return replace(pristine, folder=folder)


def verify(minted: MintedCampaign) -> VerifyReport:
    return verify_scheme(minted.plan, minted.folder, minted.keyring)


def kinds(report: VerifyReport, where: str = "") -> set[str]:
    return {one.kind for one in report.problems if where in one.where}


def records_of(minted: MintedCampaign, name: str) -> list[bytes]:
    data = (minted.folder / name).read_bytes()
    return [data[at : at + RECORD_BYTES] for at in range(FILE_RECORDS_AT, len(data), RECORD_BYTES)]


def write_signed(minted: MintedCampaign, name: str, records: list[bytes]) -> None:
    """Write a file as an insider with the signing key would: hash, count and signatures right."""
    path = minted.folder / name
    octets = b"".join(records)
    header = replace(
        unpack_header(path.read_bytes()), count=len(records), sha256=hashlib.sha256(octets).digest()
    ).pack()
    signer = Ed25519PrivateKey.from_private_bytes(minted.keyring.signing_key)
    path.write_bytes(header + signer.sign(header) + octets)
    files = tuple(
        replace(file, sha256=hashlib.sha256(octets).hexdigest()) if file.name == name else file
        for file in minted.manifest.files
    )
    leaves = [*(file.sha256 for file in files), minted.manifest.amounts.sha256]
    root = manifests.merkle_root(leaves)
    sign_manifest(minted, replace(minted.manifest, files=files, merkle_root=root))


def sign_manifest(minted: MintedCampaign, manifest: Manifest) -> None:
    data = manifests.pack_manifest(manifest)
    signer = Ed25519PrivateKey.from_private_bytes(minted.keyring.signing_key)
    (minted.folder / MANIFEST).write_bytes(data)
    (minted.folder / SIGNATURE).write_bytes(signer.sign(data))


def make_record(minted: MintedCampaign, packet: Packet) -> bytes:
    master = minted.keyring.ticket_masters[KeyId(packet.key_id)]
    header = (packet.key_id, packet.slot, packet.sponsor)
    return encipher_span(
        ticket_keys(master, minted.plan.campaign, *header),
        *header,
        packet.batch,
        np.array([packet.serial], dtype=np.uint64),
        np.array([packet.amount_fen], dtype=np.uint32),
    ).tobytes()


def first_packet(minted: MintedCampaign) -> Packet:
    decipherer = Decipherer(minted.keyring.ticket_masters, minted.plan.campaign)
    packet = decipherer.open_record(records_of(minted, FIRST)[0])
    assert packet is not None
    return packet


def test_what_mint_made_has_no_problem(pristine: MintedCampaign) -> None:
    report = verify(pristine)
    assert report.problems == ()
    assert report.passed
    assert (report.packets, report.total_fen) == (pristine.plan.packets, pristine.plan.total_fen)


def test_two_processes_find_what_one_finds(minted: MintedCampaign) -> None:
    write_signed(minted, FIRST, records_of(minted, FIRST)[::-1])
    one, two = (
        verify_scheme(minted.plan, minted.folder, minted.keyring, workers=workers)
        for workers in (1, 2)
    )
    assert one == two


def test_it_needs_no_more_than_the_redeem_role_s_keys(pristine: MintedCampaign) -> None:
    """R44: whoever verifies cannot sign."""
    keyring = pristine.keyring.for_role("redeem")
    assert verify_scheme(pristine.plan, pristine.folder, keyring).passed


def test_progress_ends_at_all_packets(pristine: MintedCampaign) -> None:
    told: list[tuple[int, int]] = []
    verify_scheme(
        pristine.plan,
        pristine.folder,
        pristine.keyring,
        progress=lambda done, whole: told.append((done, whole)),
    )
    assert told[-1] == (pristine.plan.packets, pristine.plan.packets)


def damage_flip(data: bytearray) -> bytearray:
    data[FILE_RECORDS_AT + 12] ^= 1
    return data


def damage_swap_chunks(data: bytearray) -> bytearray:
    records = data[FILE_RECORDS_AT:]
    half = len(records) // RECORD_BYTES // 2 * RECORD_BYTES
    data[FILE_RECORDS_AT:] = records[half:] + records[:half]
    return data


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (damage_flip, {"hash", "ticket", "absent"}),
        (damage_swap_chunks, {"hash", "foreign", "absent"}),
        (lambda data: data[:-RECORD_BYTES], {"size", "hash", "absent"}),
        (lambda data: data[:-1], {"size", "hash", "absent"}),
        (lambda data: data[:10], {"header", "hash", "absent"}),
        (lambda data: data[:0], {"header", "hash", "absent"}),
        (lambda data: data + b"\0", {"size", "hash"}),
        (lambda data: data + data[-RECORD_BYTES:], {"size", "hash"}),
        (lambda data: b"XXXX" + data[4:], {"header"}),
        (lambda data: data[:4] + b"\0\2" + data[6:], {"header"}),
        (lambda data: data[:6] + bytes(16) + data[22:], {"header", "signature"}),
        (lambda data: data[:41] + b"\xff" + data[42:], {"header", "signature"}),
        (
            lambda data: data[: FILE_HEADER.size] + bytes(64) + data[FILE_RECORDS_AT:],
            {"signature"},
        ),
    ],
    ids=[
        "flipped bit",
        "swapped chunks",
        "a record short",
        "a byte short",
        "cut in the header",
        "empty",
        "a trailing byte",
        "a trailing record",
        "wrong magic",
        "wrong version",
        "another campaign",
        "count is not the records'",
        "wrong signature",
    ],
)
def test_a_damaged_file_is_found(
    minted: MintedCampaign, damage: Callable[[bytearray], bytes], wanted: set[str]
) -> None:
    path = minted.folder / FIRST
    path.write_bytes(bytes(damage(bytearray(path.read_bytes()))))
    report = verify(minted)
    assert wanted <= kinds(report, FIRST)
    assert kinds(report, SECOND) == set()


def test_a_swapped_file_is_found(minted: MintedCampaign) -> None:
    first, second = minted.folder / FIRST, minted.folder / SECOND
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    report = verify(minted)
    assert {"header", "hash", "foreign", "absent"} <= kinds(report, FIRST)
    assert {"header", "hash", "foreign", "absent"} <= kinds(report, SECOND)


@pytest.mark.parametrize("name", [FIRST, MANIFEST, SIGNATURE, AMOUNTS])
def test_a_missing_object_is_found(minted: MintedCampaign, name: str) -> None:
    (minted.folder / name).unlink()
    assert "missing" in kinds(verify(minted))


def test_a_changed_amount_is_found_even_with_the_right_keys_and_signatures(
    minted: MintedCampaign,
) -> None:
    """R51 a, from inside."""
    packet = first_packet(minted)
    changed = replace(packet, amount_fen=packet.amount_fen + 1)
    records = records_of(minted, FIRST)
    write_signed(minted, FIRST, [make_record(minted, changed), *records[1:]])
    report = verify(minted)
    assert {(one.where, one.kind) for one in report.problems} == {
        (FIRST, "amount"),
        ("tiny/1", "sum"),
    }
    assert str(packet.serial) in str(report.problems)


def test_an_amount_moved_from_one_packet_to_another_is_found(minted: MintedCampaign) -> None:
    """Sums stay right; ticket and table differ."""
    packet = first_packet(minted)
    table = np.fromfile(minted.folder / AMOUNTS, ">u4")
    at = packet.serial - minted.plan.serial_base
    neighbour = at + 1 if at + 1 < minted.plan.batches[packet.batch - 1].count else at - 1
    table[at], table[neighbour] = table[at] + 1, table[neighbour] - 1
    table.tofile(minted.folder / AMOUNTS)
    digest = hashlib.sha256((minted.folder / AMOUNTS).read_bytes()).hexdigest()
    amounts = replace(minted.manifest.amounts, sha256=digest)
    root = manifests.merkle_root([*(file.sha256 for file in minted.manifest.files), digest])
    sign_manifest(minted, replace(minted.manifest, amounts=amounts, merkle_root=root))
    assert kinds(verify(minted)) == {"amount"}


def test_a_packet_minted_twice_is_found(minted: MintedCampaign) -> None:
    """R51 d, e: the duplicate displaces another packet of the same chunk."""
    records = records_of(minted, FIRST)
    write_signed(minted, FIRST, [records[0], records[0], *records[2:]])
    assert {"duplicate", "absent", "sum"} <= kinds(verify(minted))


def test_a_packet_of_another_file_is_found(minted: MintedCampaign) -> None:
    records = records_of(minted, FIRST)
    write_signed(minted, FIRST, [records_of(minted, SECOND)[0], *records[1:]])
    assert {"foreign", "absent", "sum"} <= kinds(verify(minted))


@pytest.mark.parametrize(
    "change", [{"batch": 2}, {"sponsor": 2}, {"key_id": 2}, {"key_id": 40}, {"serial": 5_000_000}]
)
def test_a_packet_of_the_wrong_batch_sponsor_key_or_serial_is_found(
    minted: MintedCampaign, change: dict[str, int]
) -> None:
    packet = next_packet_of_batch_one(minted)
    at = records_of(minted, FIRST).index(make_record(minted, packet))
    records = records_of(minted, FIRST)
    records[at] = make_record(minted, replace(packet, **change))
    write_signed(minted, FIRST, records)
    # a key outside the plan does not open at all
    wanted = "mismatch"
    if change.get("key_id") == 40:
        wanted = "ticket"
    elif "serial" in change:
        wanted = "foreign"
    assert wanted in kinds(verify(minted), FIRST)


def next_packet_of_batch_one(minted: MintedCampaign) -> Packet:
    decipherer = Decipherer(minted.keyring.ticket_masters, minted.plan.campaign)
    packets = [decipherer.open_record(record) for record in records_of(minted, FIRST)]
    return next(packet for packet in packets if packet is not None and packet.batch == 1)


def test_an_amount_outside_its_bounds_is_found(minted: MintedCampaign) -> None:
    packet = replace(first_packet(minted), amount_fen=2001)
    records = records_of(minted, FIRST)
    write_signed(minted, FIRST, [make_record(minted, packet), *records[1:]])
    assert {"bounds", "amount", "sum"} == kinds(verify(minted))


def test_a_key_over_its_cap_is_found(minted: MintedCampaign) -> None:
    """R45."""
    lower = replace(minted.plan, key_cap_fen=Fen(6000))
    report = verify_scheme(lower, minted.folder, minted.keyring)
    assert "key_cap" in kinds(report)
    assert "key_cap_fen is not the plan's" in str(report.problems)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda data: data[:-4], "size"),
        (lambda data: data + bytes(4), "size"),
        (lambda data: bytes(4) + data[4:], "sum"),
        (lambda data: data[4:8] + data[:4] + data[8:], "hash"),
    ],
)
def test_a_damaged_table_is_found(
    minted: MintedCampaign, damage: Callable[[bytes], bytes], kind: str
) -> None:
    path = minted.folder / AMOUNTS
    path.write_bytes(damage(path.read_bytes()))
    assert {kind, "hash"} <= kinds(verify(minted), AMOUNTS)


def test_a_manifest_that_was_not_signed_by_us_is_found(minted: MintedCampaign) -> None:
    path = minted.folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"slot":1', b'"slot":2', 1))
    assert "signature" in kinds(verify(minted), MANIFEST)


@pytest.mark.parametrize(
    "change",
    [
        {"total_fen": 1},
        {"packets": 1},
        {"scheme": "other"},
        {"serial_base": 7},
        {"keys": ()},
        {"files": ()},
        {"batches": ()},
        {"merkle_root": "00"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_signed_manifest_that_is_not_the_plan_s_is_found(
    minted: MintedCampaign, change: dict[str, object]
) -> None:
    sign_manifest(minted, replace(minted.manifest, **change))  # type: ignore[arg-type]
    assert "manifest" in kinds(verify(minted), MANIFEST)


@pytest.mark.parametrize("field", ["claims_shard", "ticket_shard", "total_fen", "ranges"])
def test_a_signed_manifest_that_moves_a_file_is_found(minted: MintedCampaign, field: str) -> None:
    value: object = () if field == "ranges" else 9
    first = replace(minted.manifest.files[0], **{field: value})  # type: ignore[arg-type]
    sign_manifest(minted, replace(minted.manifest, files=(first, *minted.manifest.files[1:])))
    assert "manifest" in kinds(verify(minted), MANIFEST)


def test_many_faults_of_a_kind_are_counted_and_not_all_told(minted: MintedCampaign) -> None:
    path = minted.folder / FIRST
    head = path.read_bytes()[:FILE_RECORDS_AT]
    count = len(records_of(minted, FIRST))
    path.write_bytes(head + bytes(count * RECORD_BYTES))
    tickets = [one for one in verify(minted).problems if one.kind == "ticket"]
    assert len(tickets) == FINDINGS_TOLD_MAX + 1
    assert tickets[-1].message == f"and {count - FINDINGS_TOLD_MAX} more"


def make_campaign(plan: MintPlan) -> Campaign:
    """Build the model that the tiny plan follows from."""
    sponsors = tuple(
        Sponsor(SponsorIndex(index), f"s{index}", f"S{index}", Fen(0), 1) for index in (1, 2)
    )
    allocations = tuple(
        Allocation(
            sponsor=f"s{batch.sponsor}",
            slot=batch.slot,
            kind=batch.kind,
            count=batch.count,
            total_fen=batch.total_fen,
            min_fen=batch.min_fen,
            max_fen=batch.max_fen,
            curve=batch.curve,
            resource=batch.resource,
        )
        for batch in plan.batches
    )
    schemes = (Scheme(plan.scheme, "", allocations),)
    return Campaign(plan.campaign, "", sponsors, (), schemes, plan.scheme, 3)


def test_a_plan_that_is_not_the_budget_s_is_found(pristine: MintedCampaign) -> None:
    """R54: config against budget, then files against script."""
    plan = pristine.plan
    campaign = make_campaign(plan)
    args = (plan, pristine.folder, pristine.keyring)
    assert verify_scheme(*args, campaign=campaign).passed
    first, *others = campaign.schemes[0].allocations
    richer = dataclasses.replace(first, total_fen=Fen(first.total_fen + 1))
    scheme = dataclasses.replace(campaign.schemes[0], allocations=(richer, *others))
    report = verify_scheme(*args, campaign=dataclasses.replace(campaign, schemes=(scheme,)))
    assert [one.kind for one in report.problems] == ["budget", "budget"]
    nothing = dataclasses.replace(campaign, schemes=())
    assert kinds(verify_scheme(*args, campaign=nothing)) == {"budget"}


def test_a_plan_with_doubled_serials_or_keys_or_chunks_is_found(pristine: MintedCampaign) -> None:
    plan = tiny_plan()
    second = replace(plan.batches[1], serial_base=plan.batches[0].serial_base)
    doubled = replace(second, key_ids=plan.batches[0].key_ids)
    file = replace(plan.files[1], chunk_start=1)
    bad = replace(
        plan,
        batches=(plan.batches[0], doubled, *plan.batches[2:]),
        files=(plan.files[0], file, *plan.files[2:]),
    )
    report = verify_scheme(bad, pristine.folder, pristine.keyring)
    messages = " ".join(one.message for one in report.problems if one.kind == "plan")
    assert "serials do not follow" in messages
    assert "guards more than one batch" in messages
    assert "every chunk once" in messages


def test_a_keyring_that_cannot_open_the_scheme_is_refused(pristine: MintedCampaign) -> None:
    foreign = replace(pristine.keyring, campaign=CampaignId("other"))
    with pytest.raises(Rejected):
        verify_scheme(pristine.plan, pristine.folder, foreign)
    with pytest.raises(NotFound):
        verify_scheme(pristine.plan, pristine.folder, pristine.keyring.for_role("access"))
