"""Sessions: a good JWT gets one, every bad one gets the same answer."""

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hongbao.access.session import REFUSED, SessionDesk, user_priority
from hongbao.domain.errors import Rejected, Unauthenticated
from hongbao.domain.token import verify_session

from tests.access.rain import (
    CAMPAIGN,
    CAMPAIGN_HASH,
    ISSUER_KEY,
    JWKS,
    SESSION_KEY,
    SMALL,
    START_MS,
    Clock,
)

NOW_S = START_MS // 1000
GOOD: dict[str, Any] = {"sub": "42", "aud": CAMPAIGN, "exp": NOW_S + 600}


def desk(jwks: Any = JWKS) -> SessionDesk:
    return SessionDesk(CAMPAIGN, SESSION_KEY, jwks, SMALL, Clock().wall_ms)


def signed(
    claims: dict[str, Any], key: Any = ISSUER_KEY, algorithm: str = "EdDSA", kid: Any = "one"
) -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else {})


def test_a_good_jwt_gets_a_session_of_its_user() -> None:
    session, expires_at_s = desk().open(signed(GOOD))
    assert expires_at_s == NOW_S + SMALL.session_ttl_s
    assert verify_session(session, SESSION_KEY, CAMPAIGN_HASH) == (
        42,
        user_priority(CAMPAIGN_HASH, 42),
        expires_at_s,
    )


@pytest.mark.parametrize("user", [1, 2**63 - 1])
def test_user_ids_go_to_the_last_bit(user: int) -> None:
    session, _ = desk().open(signed(GOOD | {"sub": str(user)}))
    head = verify_session(session, SESSION_KEY, CAMPAIGN_HASH)
    assert head is not None
    assert head.user == user


STRANGER = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
BAD_TOKENS = {
    "not a JWT": "x",
    "empty": "",
    "dots": "..",
    "not ASCII": "红包.红包.红包",
    "other key": signed(GOOD, STRANGER),
    "unknown kid": signed(GOOD, kid="two"),
    "no kid": signed(GOOD, kid=None),
    "other algorithm": signed(GOOD, "s" * 64, "HS256"),
    "no signature": signed(GOOD, None, "none"),
    "expired": signed(GOOD | {"exp": NOW_S - 31}),
    "not yet": signed(GOOD | {"nbf": NOW_S + 31}),
    "other campaign": signed(GOOD | {"aud": "snow"}),
    "too long": signed(GOOD | {"pad": "x" * 4096}),
    **{f"without {name}": signed({k: v for k, v in GOOD.items() if k != name}) for name in GOOD},
    **{
        f"user {user!r}": signed(GOOD | {"sub": user})
        for user in ("0", "-1", "01", "+1", "1.0", "1e3", " 1", "", "4２", "9" * 19, "9" * 40)
    },
    **{
        f"exp {value!r}": jwt.api_jws.encode(
            json.dumps(GOOD | {"exp": value}).encode(), ISSUER_KEY, "EdDSA", {"kid": "one"}
        )
        for value in ("soon", None, True, [], float("nan"))
    },
    "sub is a number": jwt.api_jws.encode(
        json.dumps(GOOD | {"sub": 42}).encode(), ISSUER_KEY, "EdDSA", {"kid": "one"}
    ),
    "a list": jwt.api_jws.encode(b"[]", ISSUER_KEY, "EdDSA", {"kid": "one"}),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_every_bad_jwt_gets_the_same_answer(name: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        desk().open(BAD_TOKENS[name])
    assert (str(refused.value), refused.value.field) == (REFUSED, "")


def test_every_cut_and_every_changed_character_of_a_jwt_is_refused() -> None:
    good, target = signed(GOOD), desk()
    cut = [good[:length] for length in range(len(good))]
    changed = [good[:at] + ("A" if good[at] != "A" else "Q") + good[at + 1 :] for at in range(80)]
    for bad in cut + changed:
        with pytest.raises(Unauthenticated, match=REFUSED):
            target.open(bad)


@pytest.mark.parametrize(
    "jwks",
    [
        {},
        {"keys": []},
        {"keys": [{"kty": "oct", "k": "AAAA", "kid": "one"}]},
        {"keys": JWKS["keys"] * 2},
        {"keys": [{k: v for k, v in JWKS["keys"][0].items() if k != "kid"}]},
    ],
)
def test_a_jwks_that_cannot_be_used_is_refused_at_the_start(jwks: Any) -> None:
    with pytest.raises(Rejected, match="JWKS"):
        desk(jwks)
