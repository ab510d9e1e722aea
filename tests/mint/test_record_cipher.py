"""Facts about records: CMAC, redundancy, header binding (R44, R49, R50, R55)."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.cmac import CMAC
from hongbao.cipher.decipher import CACHED_HEADERS_MAX, Decipherer
from hongbao.cipher.derive import binding_key, cmac_subkey, ticket_keys
from hongbao.cipher.encipher import encipher_span
from hongbao.domain.ids import CampaignId, KeyId
from hongbao.domain.ticket import AMOUNT_FEN_MAX, RECORD, RECORD_BYTES, SERIAL_MAX, Packet
from hypothesis import given
from hypothesis import strategies as st

CAMPAIGN = CampaignId("eve")
MASTER = bytes(range(32))
PACKET = Packet(key_id=7, slot=3, sponsor=2, batch=900, serial=68_000_000_001, amount_fen=888)
DECIPHERER = Decipherer({KeyId(7): MASTER, KeyId(8): bytes([9]) * 32}, CAMPAIGN)


def make_record(packet: Packet = PACKET, master: bytes = MASTER) -> bytes:
    keys = ticket_keys(master, CAMPAIGN, packet.key_id, packet.slot, packet.sponsor)
    return encipher_span(
        keys,
        packet.key_id,
        packet.slot,
        packet.sponsor,
        packet.batch,
        np.array([packet.serial], dtype=np.uint64),
        np.array([packet.amount_fen], dtype=np.uint32),
    ).tobytes()


def flip(data: bytes, bit: int) -> bytes:
    return bytes(b ^ (0x80 >> bit % 8) if at == bit // 8 else b for at, b in enumerate(data))


def bulk_good(records: list[bytes]) -> list[bool]:
    rows = np.frombuffer(b"".join(records), np.uint8).reshape(-1, RECORD_BYTES)
    good: list[bool] = DECIPHERER.open_records(rows).good.tolist()
    return good


def test_a_record_has_26_bytes_and_opens_to_its_packet() -> None:
    record = make_record()
    assert len(record) == 26
    assert DECIPHERER.open_record(record) == PACKET


@given(
    serial=st.integers(0, SERIAL_MAX),
    amount=st.integers(0, AMOUNT_FEN_MAX),
    batch=st.integers(0, 0xFFFF),
    slot=st.integers(0, 0xFFFF),
    sponsor=st.integers(0, 0xFFFF),
)
def test_every_packet_survives_the_round_trip_alone_and_in_bulk(
    serial: int, amount: int, batch: int, slot: int, sponsor: int
) -> None:
    packet = Packet(7, slot, sponsor, batch, serial, amount)
    record = make_record(packet)
    assert DECIPHERER.open_record(record) == packet
    bulk = DECIPHERER.open_records(np.frombuffer(record, np.uint8).reshape(1, -1))
    fields = (bulk.key_id, bulk.slot, bulk.sponsor, bulk.batch, bulk.serial, bulk.amount_fen)
    assert bulk.good.tolist() == [True]
    assert Packet(*(int(column[0]) for column in fields)) == packet


def test_the_cmac_subkey_is_that_of_rfc_4493() -> None:
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    assert cmac_subkey(key).hex() == "f7ddac306ae266ccf90bc11ee46d513b"


@given(st.binary(min_size=32, max_size=32), st.integers(0, SERIAL_MAX))
def test_the_bulk_mac_is_the_library_s_cmac_cut_to_32_bits(master: bytes, serial: int) -> None:
    packet = Packet(7, 3, 2, 900, serial, 1)
    record = make_record(packet, master)
    keys = ticket_keys(master, CAMPAIGN, 7, 3, 2)
    peer = CMAC(algorithms.AES(keys.mac))
    peer.update(record[:6] + record[10:])
    assert peer.finalize()[:4] == record[6:10]


def test_records_of_many_tiles_carry_the_library_s_cmac() -> None:
    count = 20_011
    keys = ticket_keys(MASTER, CAMPAIGN, 7, 3, 2)
    serials = np.arange(count, dtype=np.uint64)
    records = encipher_span(keys, 7, 3, 2, 900, serials, np.ones(count, np.uint32))
    for at in (0, 8191, 8192, count - 1):
        record = records[at].tobytes()
        peer = CMAC(algorithms.AES(keys.mac))
        peer.update(record[:6] + record[10:])
        assert peer.finalize()[:4] == record[6:10]
    assert DECIPHERER.open_records(records).serial.tolist() == serials.tolist()


def test_all_208_single_bit_flips_of_a_record_are_rejected() -> None:
    flipped = [flip(make_record(), bit) for bit in range(208)]
    assert [DECIPHERER.open_record(record) for record in flipped] == [None] * 208
    assert bulk_good(flipped) == [False] * 208


def test_all_128_bit_flips_of_a_ticket_are_rejected_even_with_a_mac_made_anew() -> None:
    """R51 a: a flip randomises the block, so the 52 fixed bits alone reject it."""
    record = make_record()
    keys = ticket_keys(MASTER, CAMPAIGN, 7, 3, 2)
    forged = []
    for bit in range(128):
        ticket = flip(record[10:], bit)
        mac = CMAC(algorithms.AES(keys.mac))
        mac.update(record[:6] + ticket)
        forged.append(record[:6] + mac.finalize()[:4] + ticket)
    assert [DECIPHERER.open_record(one) for one in forged] == [None] * 128
    assert bulk_good(forged) == [False] * 128


@pytest.mark.parametrize("change", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_a_record_under_another_key_id_slot_or_sponsor_is_rejected(
    change: tuple[int, int, int],
) -> None:
    key_id, slot, sponsor, mac, ticket = RECORD.unpack(make_record())
    moved = (key_id + change[0], slot + change[1], sponsor + change[2])
    assert DECIPHERER.open_record(RECORD.pack(*moved, mac, ticket)) is None


def test_a_record_of_another_campaign_is_rejected() -> None:
    other = Decipherer({KeyId(7): MASTER}, CampaignId("other"))
    assert other.open_record(make_record()) is None


def test_a_record_under_another_master_is_rejected() -> None:
    assert DECIPHERER.open_record(make_record(master=bytes([3]) * 32)) is None


def test_a_record_of_an_unknown_key_id_is_rejected() -> None:
    unknown = make_record(Packet(9, 3, 2, 900, 1, 1))
    assert DECIPHERER.open_record(unknown) is None
    assert bulk_good([unknown, make_record()]) == [False, True]


@given(st.binary(max_size=60))
def test_random_bytes_are_rejected_and_never_raise(data: bytes) -> None:
    assert DECIPHERER.open_record(data) is None


@pytest.mark.parametrize("length", [0, 6, 25, 27])
def test_a_record_of_another_length_is_rejected(length: int) -> None:
    assert DECIPHERER.open_record((make_record() * 2)[:length]) is None


def test_opening_no_records_gives_no_rows() -> None:
    assert len(DECIPHERER.open_records(np.empty((0, RECORD_BYTES), np.uint8)).good) == 0


def test_forged_headers_cannot_grow_the_cache_without_bound() -> None:
    decipherer = Decipherer({KeyId(7): MASTER}, CAMPAIGN)
    for sponsor in range(0, CACHED_HEADERS_MAX + 200):
        decipherer.open_record(RECORD.pack(7, 1, sponsor % 0x10000, 0, bytes(16)))
    assert len(decipherer._openers) <= CACHED_HEADERS_MAX
    assert decipherer.open_record(make_record()) == PACKET


@pytest.mark.parametrize(("serial", "amount"), [(SERIAL_MAX + 1, 1), (1, AMOUNT_FEN_MAX + 1)])
def test_a_serial_or_amount_that_does_not_fit_is_refused(serial: int, amount: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        make_record(Packet(7, 3, 2, 900, serial, amount))


def test_bound_keys_differ_by_pod_and_epoch_and_refuse_a_short_root() -> None:
    root = bytes([5]) * 32
    keys = {binding_key(root, pod, epoch) for pod in (1, 2) for epoch in (1, 2)}
    assert len(keys) == 4
    with pytest.raises(ValueError, match="32 bytes"):
        binding_key(root[:-1], 1, 1)


def test_neither_keys_nor_decipherer_print_a_secret() -> None:
    keys = ticket_keys(MASTER, CAMPAIGN, 7, 3, 2)
    assert repr(keys) == "TicketKeys()"
    assert MASTER.hex() not in repr(DECIPHERER)
