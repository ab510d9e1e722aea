"""Owns a made-up identity provider: signs users' JWTs for load runs and the demo.

In production the JWTs come from the company's own provider; only its JWKS reaches access.
"""

import json

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import OKPAlgorithm

from hongbao.domain.errors import Rejected

_KEY_ID = "load"
_LIFETIME_S = 24 * 3600


class TestIdentity:
    """Signs JWTs with one Ed25519 key: `sub` is the user, `aud` the campaign."""

    __test__ = False  # not a pytest class

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "TestIdentity":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> "TestIdentity":
        """Read a private key. Raises Rejected if it is not an unencrypted Ed25519 key."""
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise Rejected(f"the identity key cannot be read: {error}", field="identity") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Rejected("the identity key is not an Ed25519 key", field="identity")
        return cls(key)

    def pem(self) -> bytes:
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def jwks(self) -> bytes:
        """Return the public half as a JWKS document, for access."""
        public = json.loads(OKPAlgorithm.to_jwk(self._key.public_key()))
        return json.dumps({"keys": [{**public, "kid": _KEY_ID, "use": "sig"}]}).encode()

    def jwt_of(self, user: int, campaign: str, now_s: int) -> str:
        claims = {"sub": str(user), "aud": campaign, "iat": now_s, "exp": now_s + _LIFETIME_S}
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": _KEY_ID})
