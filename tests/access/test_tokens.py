"""Claim and session tokens: what is sealed comes back, and nothing else passes (R7, R55)."""

import pytest
from hongbao.domain import ticket, token
from hypothesis import given
from hypothesis import strategies as st

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
CAMPAIGN, OTHER_CAMPAIGN = ticket.campaign_hash("rain"), ticket.campaign_hash("snow")
USER = 42
RECORD = bytes(range(26))


def sealed(user: int = USER) -> bytes:
    return token.seal_claim(KEY, CAMPAIGN, 3, 9, 5, 2_000_000_000, RECORD, user)


@given(
    pod=st.integers(0, 2**16 - 1),
    epoch=st.integers(0, 2**32 - 1),
    shard=st.integers(0, 2**16 - 1),
    expiry_s=st.integers(0, 2**32 - 1),
    record=st.binary(min_size=26, max_size=26),
    user=st.integers(1, token.USER_MAX),
)
def test_a_claim_comes_back_as_it_was_sealed(
    pod: int, epoch: int, shard: int, expiry_s: int, record: bytes, user: int
) -> None:
    claim = token.seal_claim(KEY, CAMPAIGN, pod, epoch, shard, expiry_s, record, user)
    assert len(claim) == ticket.TOKEN_BYTES == 55
    assert token.verify_claim(claim, KEY, CAMPAIGN, user)
    assert token.parse_claim_head(claim) == (pod, epoch, shard, expiry_s, record)


def test_every_flipped_bit_of_a_claim_is_refused() -> None:
    claim = sealed()
    for bit in range(len(claim) * 8):
        bad = bytearray(claim)
        bad[bit // 8] ^= 1 << bit % 8
        assert not token.verify_claim(bytes(bad), KEY, CAMPAIGN, USER), bit


@pytest.mark.parametrize("length", [*range(55), 56, 110])
def test_a_claim_of_another_length_is_refused(length: int) -> None:
    bad = (sealed() * 2)[:length]
    assert not token.verify_claim(bad, KEY, CAMPAIGN, USER)
    assert token.parse_claim_head(bad) is None


@pytest.mark.parametrize(
    ("key", "campaign", "user"),
    [
        (KEY, CAMPAIGN, USER + 1),
        (KEY, CAMPAIGN, -1),
        (KEY, CAMPAIGN, 1 << 64),
        (KEY, OTHER_CAMPAIGN, USER),
        (OTHER_KEY, CAMPAIGN, USER),
    ],
)
def test_a_claim_of_another_user_campaign_or_pod_is_refused(
    key: bytes, campaign: bytes, user: int
) -> None:
    assert not token.verify_claim(sealed(), key, campaign, user)


@given(st.binary(max_size=80))
def test_random_bytes_are_neither_claim_nor_session(noise: bytes) -> None:
    assert not token.verify_claim(noise, KEY, CAMPAIGN, USER)
    assert token.verify_session(noise, KEY, CAMPAIGN) is None


@given(
    user=st.integers(1, token.USER_MAX),
    priority=st.integers(0, 255),
    expiry_s=st.integers(0, 2**32 - 1),
)
def test_a_session_comes_back_as_it_was_sealed(user: int, priority: int, expiry_s: int) -> None:
    session = token.seal_session(KEY, CAMPAIGN, user, priority, expiry_s)
    assert len(session) == ticket.SESSION_BYTES
    assert token.verify_session(session, KEY, CAMPAIGN) == (user, priority, expiry_s)
    assert token.verify_session(session, KEY, OTHER_CAMPAIGN) is None
    assert token.verify_session(session, OTHER_KEY, CAMPAIGN) is None


def test_every_flipped_bit_of_a_session_is_refused() -> None:
    session = token.seal_session(KEY, CAMPAIGN, USER, 1, 2_000_000_000)
    for bit in range(len(session) * 8):
        bad = bytearray(session)
        bad[bit // 8] ^= 1 << bit % 8
        assert token.verify_session(bytes(bad), KEY, CAMPAIGN) is None, bit


def test_another_version_is_refused_even_with_a_good_mac() -> None:
    head = bytes([2]) + sealed()[1 : ticket.TOKEN_HEAD.size]
    assert token.parse_claim_head(head + bytes(16)) is None
