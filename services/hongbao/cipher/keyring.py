"""Owns the secrets of a campaign and the encrypted files they rest in; prints none of them.

A key file is JSON: scrypt salt and cost, a nonce, and the secrets under AES-256-GCM, with
everything outside the ciphertext authenticated. Each role's file holds only what that role may
have (R44): no role but mint can sign, and access gets no ticket key at all. Each is sealed with a
passphrase of its own, derived from the operator's, so a role can open no other role's file.
"""

import base64
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hongbao.cipher.derive import KEY_BYTES
from hongbao.domain.errors import NotFound, Rejected
from hongbao.domain.ids import CampaignId, KeyId
from hongbao.domain.ticket import KEY_ID_MAX

FORMAT: Final = "hongbao-keys-2"
SCRYPT_LOG2_COST: Final = 15  # 32 MiB and about 0.1 s: OWASP's floor for interactive use
SCRYPT_LOG2_COST_MAX: Final = 20  # a foreign file must not make us take all memory
PASSPHRASE_CHARS_MIN: Final = 12
KEY_FILE_BYTES_MAX: Final = 4 << 20

Role = Literal["mint", "redeem", "access"]
ROLE_SECRETS: Final[Mapping[Role, tuple[str, ...]]] = {
    "mint": ("ticket_masters", "mint_seed", "signing_key"),
    "redeem": ("ticket_masters", "token_root", "session_key"),
    "access": ("session_key",),
}


@dataclass(frozen=True)
class Keyring:
    """Is the secrets of one campaign; what a role may not have is empty.

    `verify_key` is the public half of `signing_key` (both raw Ed25519). Masters are by key id.
    """

    campaign: CampaignId
    ticket_masters: Mapping[KeyId, bytes] = field(repr=False)
    mint_seed: bytes = field(repr=False)
    token_root: bytes = field(repr=False)
    session_key: bytes = field(repr=False)
    signing_key: bytes = field(repr=False)
    verify_key: bytes

    def for_role(self, role: Role) -> "Keyring":
        """Return the keyring with only what `role` may have."""
        kept = ROLE_SECRETS[role]
        return dataclasses.replace(
            self,
            ticket_masters=self.ticket_masters if "ticket_masters" in kept else {},
            mint_seed=self.mint_seed if "mint_seed" in kept else b"",
            token_root=self.token_root if "token_root" in kept else b"",
            session_key=self.session_key if "session_key" in kept else b"",
            signing_key=self.signing_key if "signing_key" in kept else b"",
        )

    def only_keys(self, key_ids: Iterable[KeyId]) -> "Keyring":
        """Return the keyring with only these ticket masters. Raises NotFound for a missing one."""
        wanted = sorted(set(key_ids))
        missing = [key_id for key_id in wanted if key_id not in self.ticket_masters]
        if missing:
            raise NotFound(f"the keyring of {self.campaign} has no key {missing[0]}")
        masters = {key_id: self.ticket_masters[key_id] for key_id in wanted}
        return dataclasses.replace(self, ticket_masters=masters)


_PLAIN_SECRETS: Final = ("mint_seed", "token_root", "session_key", "signing_key")


def new_keyring(
    campaign: CampaignId, key_ids: Iterable[KeyId], entropy: Callable[[int], bytes]
) -> Keyring:
    """Draw a keyring; `entropy` is `os.urandom`, or a fixed stream in tests."""
    masters = {key_id: entropy(KEY_BYTES) for key_id in key_ids}
    signing_key = entropy(KEY_BYTES)
    keyring = Keyring(
        campaign=campaign,
        ticket_masters=masters,
        mint_seed=entropy(KEY_BYTES),
        token_root=entropy(KEY_BYTES),
        session_key=entropy(KEY_BYTES),
        signing_key=signing_key,
        verify_key=_public_half(signing_key),
    )
    check_keyring(keyring)
    return keyring


def check_keyring(keyring: Keyring) -> None:
    """Refuse short, all-zero and doubled secrets and key ids out of range. Raises Rejected.

    The message names the secret, never its value.
    """
    named = {name: getattr(keyring, name) for name in _PLAIN_SECRETS if getattr(keyring, name)}
    for key_id, master in keyring.ticket_masters.items():
        if not 1 <= key_id <= KEY_ID_MAX:
            raise Rejected(f"key id {key_id} is not within 1 to {KEY_ID_MAX}")
        named[f"key {key_id}"] = master
    owners: dict[bytes, str] = {}
    for name, secret in named.items():
        if len(secret) != KEY_BYTES:
            raise Rejected(f"{name} has {len(secret)} bytes instead of {KEY_BYTES}")
        if not any(secret):
            raise Rejected(f"{name} is all zero")
        if secret in owners:
            raise Rejected(f"{name} is the same secret as {owners[secret]}")
        owners[secret] = name
    if len(keyring.verify_key) != KEY_BYTES:
        raise Rejected(f"the verify key has {len(keyring.verify_key)} bytes instead of {KEY_BYTES}")
    if keyring.signing_key and _public_half(keyring.signing_key) != keyring.verify_key:
        raise Rejected("the verify key does not belong to the signing key")


def role_passphrase(operator_passphrase: str, role: Role) -> str:
    """Derive what seals a role's key file: HKDF-SHA256 with the role as info, 64 hex digits.

    It leads to no other role's, as long as the operator's cannot be guessed: HKDF is fast, so
    whoever has one role's can try guesses. Take at least 128 random bits (`openssl rand -hex 16`).
    """
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=role.encode())
    return derived.derive(operator_passphrase.encode()).hex()


def write_role_keyring(path: Path, keyring: Keyring, role: Role, operator_passphrase: str) -> None:
    """Write what a role may have, sealed with the role's own passphrase; see `write_keyring`."""
    if len(operator_passphrase) < PASSPHRASE_CHARS_MIN:
        raise Rejected(f"the passphrase is shorter than {PASSPHRASE_CHARS_MIN} characters")
    secret = role_passphrase(operator_passphrase, role)
    write_keyring(path, keyring.for_role(role), secret, role=role)


def read_role_keyring(path: Path, operator_passphrase: str) -> Keyring:
    """Read a key file of whatever role as the operator. Raises NotFound or Rejected."""
    try:
        role = json.loads(_read_limited(path))["role"]
    except (KeyError, TypeError, ValueError):
        raise Rejected(f"{path}: not a well-formed key file of a role") from None
    if role not in ROLE_SECRETS:
        raise Rejected(f"{path}: of no role that is known")
    return read_keyring(path, role_passphrase(operator_passphrase, role))


def write_keyring(
    path: Path,
    keyring: Keyring,
    passphrase: str,
    entropy: Callable[[int], bytes] = os.urandom,
    *,
    role: Role | None = None,
) -> None:
    """Write the keyring encrypted, readable by its owner only; never over an existing file.

    Raises Rejected when the file exists, the keyring is bad or the passphrase is too short.
    """
    check_keyring(keyring)
    if len(passphrase) < PASSPHRASE_CHARS_MIN:
        raise Rejected(f"the passphrase is shorter than {PASSPHRASE_CHARS_MIN} characters")
    nonce = entropy(12)
    head = {
        "format": FORMAT,
        "campaign": keyring.campaign,
        "verify_key": keyring.verify_key.hex(),
        "scrypt_log2_cost": SCRYPT_LOG2_COST,
        "salt": entropy(16).hex(),
        "nonce": nonce.hex(),
    }
    if role is not None:
        head["role"] = role
    sealed = _sealer(head, passphrase).encrypt(nonce, _secrets(keyring), _canonical(head))
    data = _canonical(head | {"sealed": base64.b64encode(sealed).decode("ascii")}) + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise Rejected(f"{path}: exists already; keys are never overwritten") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_keyring(path: Path, passphrase: str) -> Keyring:
    """Read and check a key file. Raises NotFound or Rejected; says nothing of any secret."""
    data = _read_limited(path)
    try:
        head = json.loads(data, object_pairs_hook=_unrepeated)
        if head["format"] != FORMAT:
            raise Rejected(f"{path}: not a key file of this version")
        sealed = base64.b64decode(head.pop("sealed"), validate=True)
        opened = _sealer(head, passphrase).decrypt(
            bytes.fromhex(head["nonce"]), sealed, _canonical(head)
        )
        keyring = _keyring(head, json.loads(opened, object_pairs_hook=_unrepeated))
    except InvalidTag:
        raise Rejected(f"{path}: wrong passphrase, or the file was changed") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Rejected(f"{path}: not a well-formed key file") from None
    check_keyring(keyring)
    return keyring


def read_public_key(path: Path) -> bytes:
    """Return the verify key that a key file states; without the passphrase nobody vouches for it.

    Raises NotFound or Rejected.
    """
    try:
        return bytes.fromhex(json.loads(_read_limited(path))["verify_key"])
    except (KeyError, TypeError, ValueError):
        raise Rejected(f"{path}: not a well-formed key file") from None


def _read_limited(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(KEY_FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: there is no such key file") from error
    if len(data) > KEY_FILE_BYTES_MAX:
        raise Rejected(f"{path}: longer than {KEY_FILE_BYTES_MAX} bytes")
    return data


def _secrets(keyring: Keyring) -> bytes:
    masters = {str(key_id): key.hex() for key_id, key in keyring.ticket_masters.items()}
    plain = {name: getattr(keyring, name).hex() for name in _PLAIN_SECRETS}
    return _canonical(plain | {"ticket_masters": masters})


def _keyring(head: Mapping[str, Any], secrets: Mapping[str, Any]) -> Keyring:
    masters = secrets["ticket_masters"]
    return Keyring(
        campaign=CampaignId(head["campaign"]),
        verify_key=bytes.fromhex(head["verify_key"]),
        ticket_masters={KeyId(int(key)): bytes.fromhex(masters[key]) for key in masters},
        **{name: bytes.fromhex(secrets[name]) for name in _PLAIN_SECRETS},
    )


def _sealer(head: Mapping[str, Any], passphrase: str) -> AESGCM:
    log2_cost = int(head["scrypt_log2_cost"])
    if not SCRYPT_LOG2_COST <= log2_cost <= SCRYPT_LOG2_COST_MAX:
        raise ValueError("the scrypt cost is out of range")
    salt = bytes.fromhex(head["salt"])
    return AESGCM(
        Scrypt(salt=salt, length=32, n=1 << log2_cost, r=8, p=1).derive(passphrase.encode())
    )


def _public_half(signing_key: bytes) -> bytes:
    public = Ed25519PrivateKey.from_private_bytes(signing_key).public_key()
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key file that names one key id twice, where JSON would keep the last."""
    shape = dict(pairs)
    if len(shape) != len(pairs):
        raise ValueError("a name stands twice")
    return shape
