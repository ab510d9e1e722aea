"""Facts about key files and key lists (R44, R45, R46, F20; faults.md bad input, row Keys)."""

import dataclasses
import json
import logging
import stat
from pathlib import Path

import pytest
from hongbao.cipher.key_lists import (
    KeyLists,
    allow_keys,
    build_key_lists,
    deny_keys,
    pack_key_lists,
    parse_key_ids,
    parse_key_lists,
)
from hongbao.cipher.keyring import (
    Keyring,
    check_keyring,
    new_keyring,
    read_keyring,
    read_public_key,
    write_keyring,
)
from hongbao.domain.errors import NotFound, Rejected
from hongbao.domain.ids import CampaignId, KeyId

from tests.minted import FixedEntropy

PASSPHRASE = "four words are better"


def make_keyring() -> Keyring:
    return new_keyring(CampaignId("eve"), map(KeyId, (1, 2, 3)), FixedEntropy())


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "all.keys"
    write_keyring(path, make_keyring(), PASSPHRASE)
    return path


def test_a_key_file_gives_back_the_keyring(key_file: Path) -> None:
    assert read_keyring(key_file, PASSPHRASE) == make_keyring()
    assert read_public_key(key_file) == make_keyring().verify_key


def test_a_key_file_is_for_its_owner_only_and_hides_every_secret(key_file: Path) -> None:
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    data, keyring = key_file.read_text(), make_keyring()
    assert not any(secret.hex() in data for secret in secrets_of(keyring))


def secrets_of(keyring: Keyring) -> list[bytes]:
    plain = (keyring.mint_seed, keyring.token_root, keyring.session_key, keyring.signing_key)
    return [*keyring.ticket_masters.values(), *plain]


def test_no_secret_is_printed_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    keyring = make_keyring()
    logging.getLogger("any").error("%r %s", keyring, keyring)
    shown = repr(keyring) + caplog.text
    for secret in secrets_of(keyring):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def test_a_wrong_passphrase_is_refused_without_a_secret(key_file: Path) -> None:
    with pytest.raises(Rejected, match="wrong passphrase") as caught:
        read_keyring(key_file, PASSPHRASE + "!")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["campaign", "verify_key", "nonce", "salt"])
def test_a_key_file_with_a_changed_head_is_refused(
    key_file: Path, tmp_path: Path, name: str
) -> None:
    shape = json.loads(key_file.read_text())
    shape[name] = ("f" if shape[name][0] != "f" else "e") + shape[name][1:]
    changed = tmp_path / "changed.keys"
    changed.write_text(json.dumps(shape))
    with pytest.raises(Rejected):
        read_keyring(changed, PASSPHRASE)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": "hongbao-keys-1"}', '{"format": "other"}', "\xff"]
)
def test_a_malformed_key_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.keys"
    path.write_text(text, "latin-1")
    with pytest.raises(Rejected):
        read_keyring(path, PASSPHRASE)


def test_a_key_file_that_asks_for_all_memory_is_refused(key_file: Path, tmp_path: Path) -> None:
    shape = json.loads(key_file.read_text()) | {"scrypt_log2_cost": 40}
    path = tmp_path / "greedy.keys"
    path.write_text(json.dumps(shape))
    with pytest.raises(Rejected):
        read_keyring(path, PASSPHRASE)


def test_a_missing_key_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_keyring(tmp_path / "none.keys", PASSPHRASE)


def test_keys_are_never_overwritten(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(Rejected, match="exists already"):
        write_keyring(key_file, make_keyring(), PASSPHRASE)
    assert key_file.read_bytes() == before


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="passphrase"):
        write_keyring(tmp_path / "short.keys", make_keyring(), "short")
    assert not (tmp_path / "short.keys").exists()


@pytest.mark.parametrize(
    ("masters", "reason"),
    [
        ({1: bytes([1]) * 31}, "31 bytes instead of 32"),
        ({1: b""}, "0 bytes"),
        ({1: bytes(32)}, "all zero"),
        ({1: bytes([1]) * 32, 2: bytes([1]) * 32}, "same secret"),
        ({0: bytes([1]) * 32}, "key id 0"),
        ({4096: bytes([1]) * 32}, "key id 4096"),
    ],
)
def test_a_bad_master_is_refused_by_name_and_not_by_value(
    masters: dict[int, bytes], reason: str, tmp_path: Path
) -> None:
    keys = {KeyId(key_id): master for key_id, master in masters.items()}
    bad = dataclasses.replace(make_keyring(), ticket_masters=keys)
    with pytest.raises(Rejected, match=reason) as caught:
        write_keyring(tmp_path / "bad.keys", bad, PASSPHRASE)
    assert (b"\x01" * 31).hex() not in str(caught.value)


@pytest.mark.parametrize("name", ["mint_seed", "token_root", "session_key", "signing_key"])
@pytest.mark.parametrize("value", [b"short", bytes(32)])
def test_a_bad_secret_of_any_other_kind_is_refused(name: str, value: bytes) -> None:
    with pytest.raises(Rejected, match=name):
        check_keyring(dataclasses.replace(make_keyring(), **{name: value}))


def test_a_secret_used_for_two_purposes_is_refused() -> None:
    keyring = make_keyring()
    with pytest.raises(Rejected, match="same secret"):
        check_keyring(dataclasses.replace(keyring, token_root=keyring.mint_seed))


def test_a_foreign_verify_key_is_refused() -> None:
    with pytest.raises(Rejected, match="does not belong"):
        check_keyring(dataclasses.replace(make_keyring(), verify_key=bytes([7]) * 32))


def test_a_key_id_named_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    """JSON would silently keep the last of two."""
    path = tmp_path / "twice.keys"
    path.write_text('{"format": "hongbao-keys-1", "salt": "00", "salt": "01"}')
    with pytest.raises(Rejected):
        read_keyring(path, PASSPHRASE)


def test_no_role_holds_more_than_it_needs() -> None:
    """R44: only mint signs, only redeem binds users, access holds no ticket key."""
    keyring = make_keyring()
    mint, redeem, access = (keyring.for_role(role) for role in ("mint", "redeem", "access"))
    assert (mint.token_root, mint.session_key) == (b"", b"")
    assert (redeem.mint_seed, redeem.signing_key) == (b"", b"")
    assert secrets_of(access) == [b"", b"", keyring.session_key, b""]
    assert {role.verify_key for role in (mint, redeem, access)} == {keyring.verify_key}


def test_only_the_named_keys_are_kept() -> None:
    keyring = make_keyring()
    assert keyring.only_keys([KeyId(3)]).ticket_masters == {3: keyring.ticket_masters[KeyId(3)]}
    with pytest.raises(NotFound, match="no key 9"):
        keyring.only_keys([KeyId(9)])


def test_an_id_on_both_lists_is_refused() -> None:
    with pytest.raises(Rejected, match="key 2 is on the deny list and on the allow list"):
        parse_key_lists(b'{"deny": [2], "allow": [1, 2]}')


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"[]",
        b"null",
        b'{"deny": [1]}',
        b'{"deny": 1, "allow": null}',
        b'{"deny": "12", "allow": null}',
        b'{"deny": [0], "allow": null}',
        b'{"deny": [4096], "allow": null}',
        b'{"deny": [true], "allow": null}',
        b'{"deny": [1.0], "allow": null}',
        b'{"deny": [1, 1], "allow": null}',
        b'{"deny": null, "allow": null}',
    ],
)
def test_malformed_key_lists_are_refused(document: bytes) -> None:
    with pytest.raises(Rejected, match="key lists"):
        parse_key_lists(document)


def test_the_deny_list_stops_a_key_and_the_allow_list_stops_all_others() -> None:
    lists = build_key_lists([3], [1, 2])
    assert [lists.permits(key_id) for key_id in (1, 2, 3, 4)] == [True, True, False, False]
    assert parse_key_lists(b"").permits(4)
    assert parse_key_lists(pack_key_lists(lists)) == lists


def test_denying_takes_a_key_off_the_allow_list_and_allowing_puts_it_back() -> None:
    lists = deny_keys(build_key_lists([], [1, 2]), [2])
    assert lists == build_key_lists([2], [1])
    assert allow_keys(lists, [2]) == build_key_lists([], [1, 2])
    assert allow_keys(lists, [5], only=True) == build_key_lists([2], [5])
    assert allow_keys(lists, []) == build_key_lists([2], None)
    assert allow_keys(deny_keys(KeyLists(), [7]), [7]) == KeyLists()


def test_key_ids_are_read_as_people_write_them() -> None:
    assert parse_key_ids(["7", "20-22", "7"]) == [7, 20, 21, 22]


@pytest.mark.parametrize(
    "text", ["", "-", "x", "0", "4096", "9-7", "1-", "-1", "１", "1-2-3", "12345"]
)
def test_a_malformed_key_id_is_refused(text: str) -> None:
    with pytest.raises(Rejected):
        parse_key_ids([text])
