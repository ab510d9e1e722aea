"""The client that people use, against a real grpc.aio server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import jwt
import pytest
import stamina
from hongbao.client.client import HongbaoClient
from hongbao.client.gateways import Gateway
from hongbao.client.identity import TestIdentity
from hongbao.client.tokens import TokenBox
from hongbao.domain.errors import Rejected, Transient, Unauthenticated
from hongbao.domain.ids import CampaignId
from hongbao.proto.v1 import access_pb2, redeem_pb2
from jwt import PyJWKSet

from tests.client import server as toy_server

NEW_YEAR = CampaignId("new-year")


@pytest.fixture(autouse=True)
def short_backoff() -> Iterator[None]:
    with stamina.set_testing(True, attempts=8, cap=True):
        yield


def client_of(*gateways: Gateway, tokens: TokenBox | None = None) -> HongbaoClient:
    return HongbaoClient(
        gateways, NEW_YEAR, lambda: toy_server.jwt_of(7), tokens=tokens, give_up_s=5
    )


async def test_a_shake_that_wins_keeps_its_token_until_the_open_is_answered(
    tmp_path: Path,
) -> None:
    toy = toy_server.ToyCampaign()
    box = TokenBox(tmp_path / "tokens")
    async with toy_server.serving(toy) as gateway, client_of(gateway, tokens=box) as client:
        reply = await client.shake()
        assert TokenBox(tmp_path / "tokens").waiting == [reply.claim_token]
        opened = await client.open(reply.claim_token)
    assert (opened.outcome, opened.amount_fen) == (redeem_pb2.OPENED, 101)
    assert TokenBox(tmp_path / "tokens").waiting == []


async def test_an_open_is_repeated_until_its_lost_answer_comes_f3() -> None:
    toy = toy_server.ToyCampaign()
    toy.open_fault = lambda attempt: grpc.StatusCode.UNAVAILABLE if attempt < 4 else None
    async with toy_server.serving(toy) as gateway, client_of(gateway) as client:
        reply = await client.open(b"1")
    assert (toy.opens, reply.amount_fen) == (4, 101)


async def test_a_bad_token_is_refused_once_and_forgotten() -> None:
    toy = toy_server.ToyCampaign()
    toy.open_fault = lambda attempt: grpc.StatusCode.UNAUTHENTICATED
    async with toy_server.serving(toy) as gateway, client_of(gateway) as client:
        client.tokens.won(b"9")
        with pytest.raises(Unauthenticated):
            await client.open(b"9")
    assert client.tokens.waiting == []
    assert len(toy.jwts) == 2  # the session might have been the cause: renewed once


async def test_a_token_without_an_answer_stays_in_the_box() -> None:
    toy = toy_server.ToyCampaign()
    toy.open_fault = lambda attempt: grpc.StatusCode.UNAVAILABLE
    async with toy_server.serving(toy) as gateway, client_of(gateway) as client:
        client.tokens.won(b"9")
        with pytest.raises(Transient):
            await client.open(b"9")
    assert client.tokens.waiting == [b"9"]


async def test_the_next_gateway_is_asked_when_one_is_gone() -> None:
    toy = toy_server.ToyCampaign()
    gone = Gateway("b", "127.0.0.1", 9)
    async with toy_server.serving(toy) as gateway, client_of(gone, gateway) as client:
        reply = await client.shake()
    assert reply.outcome == access_pb2.PACKET


async def test_a_shake_waits_as_long_as_the_server_said() -> None:
    toy = toy_server.ToyCampaign()
    toy.retry_after_ms = 150
    async with toy_server.serving(toy) as gateway, client_of(gateway) as client:
        await client.shake()
        before = asyncio.get_running_loop().time()
        await client.shake()
        assert asyncio.get_running_loop().time() - before >= 0.14


def test_a_token_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    TokenBox(path).won(b"whole")
    with path.open("ab") as file:
        file.write(b'{"won": "ab')
    assert TokenBox(path).waiting == [b"whole"]


def test_the_test_identity_signs_what_its_jwks_verifies() -> None:
    identity = TestIdentity.from_pem(TestIdentity.generate().pem())
    token = identity.jwt_of(7, NEW_YEAR, now_s=4_000_000_000)
    key = PyJWKSet.from_json(identity.jwks().decode()).keys[0]
    claims = jwt.decode(
        token, key.key, algorithms=["EdDSA"], audience=NEW_YEAR, options={"verify_iat": False}
    )
    assert claims["sub"] == "7"


def test_an_identity_key_that_is_no_key_is_rejected() -> None:
    with pytest.raises(Rejected, match="identity key"):
        TestIdentity.from_pem(b"-----BEGIN NOTHING-----")
