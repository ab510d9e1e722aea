"""Owns the exchange of a JWT for a compact session; refuses to know any user.

Every bad token gets the same answer: what was wrong with it is nobody's business.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import jwt

from hongbao.access.limits import AccessLimits
from hongbao.domain import ticket, token
from hongbao.domain.errors import Rejected, Unauthenticated
from hongbao.domain.ids import CampaignId

ALGORITHM: Final = "EdDSA"
KEYS_MAX: Final = 100
REFUSED: Final = "the session or token is not valid"
_SUBJECT: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


class SessionDesk:
    """Opens sessions of one campaign for users whom the JWKS vouches for."""

    def __init__(
        self,
        campaign: CampaignId,
        session_key: bytes,
        jwks: Mapping[str, Any],
        limits: AccessLimits,
        wall_ms: Callable[[], int],
    ) -> None:
        self._campaign: Final = campaign
        self._campaign_hash: Final = ticket.campaign_hash(campaign)
        self._session_key: Final = session_key
        self._keys: Final = _read_jwks(jwks)
        self._limits: Final = limits
        self._wall_ms: Final = wall_ms

    def open(self, encoded: str) -> tuple[bytes, int]:
        """Return the session and when it ends (unix s). Raises Unauthenticated, one for all."""
        now_s = self._wall_ms() // 1000
        user = self._user_of(encoded, now_s)
        if user is None:
            raise Unauthenticated(REFUSED)
        expiry_s = now_s + self._limits.session_ttl_s
        session = token.seal_session(
            self._session_key,
            self._campaign_hash,
            user,
            user_priority(self._campaign_hash, user),
            expiry_s,
        )
        return session, expiry_s

    def _user_of(self, encoded: str, now_s: int) -> int | None:
        if len(encoded) > self._limits.jwt_bytes_max:
            return None
        try:
            key = self._keys[jwt.get_unverified_header(encoded)["kid"]]
            claims = jwt.decode(
                encoded,
                key,
                algorithms=[ALGORITHM],
                audience=self._campaign,
                # Times are judged below, by the clock that was passed in.
                options={
                    "require": ["exp", "sub", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            return None
        return self._subject(claims, now_s)

    def _subject(self, claims: Mapping[str, Any], now_s: int) -> int | None:
        skew_s = self._limits.clock_skew_s
        expiry, not_before, subject = claims["exp"], claims.get("nbf", 0), claims["sub"]
        for moment in (expiry, not_before):
            if isinstance(moment, bool) or not isinstance(moment, int | float):
                return None
        if not (not_before - skew_s <= now_s < expiry + skew_s):
            return None
        if not isinstance(subject, str) or _SUBJECT.fullmatch(subject) is None:
            return None
        user = int(subject)
        return user if user <= token.USER_MAX else None


def user_priority(campaign_hash: bytes, user: int) -> int:
    """Return 0 to 255, the same for all of a user's calls of a campaign.

    It is sealed into the session for whoever sheds and does not know users. Our own processes
    shed by the proved user itself, which spreads evenly over their levels (R25, Zhou et al.
    2018, DAGOR; transport/admission.py).
    """
    return hashlib.blake2b(user.to_bytes(8, "big") + campaign_hash, digest_size=1).digest()[0]


def _read_jwks(jwks: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
    """Return the Ed25519 keys by id. Raises Rejected when there is none or one is unnamed."""
    try:
        keys = [jwt.PyJWK(key, algorithm=ALGORITHM) for key in jwks["keys"]]
    except (jwt.PyJWTError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Rejected(f"the JWKS is not a set of EdDSA keys: {error}", field="jwks") from error
    by_id = {key.key_id: key for key in keys if key.key_id}
    if not 0 < len(keys) <= KEYS_MAX or len(by_id) != len(keys):
        raise Rejected(
            f"the JWKS holds {len(keys)} keys, {len(by_id)} with an id of their own", field="jwks"
        )
    return by_id
