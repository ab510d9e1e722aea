"""Is `hongbao shake`: shake as one user, optionally opening what is won."""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hongbao.cli.target import (
    RUN_DIR,
    AsJson,
    CampaignOption,
    GatewayOption,
    IssuerOption,
    RunOption,
    Target,
    find_target,
)
from hongbao.client.tokens import TokenBox
from hongbao.domain.money import format_yuan
from hongbao.proto.v1 import access_pb2, redeem_pb2

TokensOption = Annotated[
    Path | None, typer.Option("--tokens", help="Keep won tokens in this file until opened.")
]


def shake(
    user: Annotated[int, typer.Option("--user", min=1, help="User id.")] = 1,
    times: Annotated[int, typer.Option("--times", "-n", min=1, help="How many shakes.")] = 1,
    open_: Annotated[bool, typer.Option("--open", help="Open what is won.")] = False,
    tokens: TokensOption = None,
    run: RunOption = RUN_DIR,
    gateway: GatewayOption = None,
    campaign: CampaignOption = "",
    issuer: IssuerOption = None,
    as_json: AsJson = False,
) -> None:
    """Shake as one user; waits between shakes as long as the server says.

    Examples:

        hongbao shake

        hongbao shake --user 42 --times 10 --open

        hongbao shake --tokens my.tokens --json | jq -r .claim_token
    """
    target = find_target(run, gateway, campaign, issuer)
    asyncio.run(_shake(target, user, times, TokenBox(tokens), with_open=open_, as_json=as_json))


async def _shake(
    target: Target, user: int, times: int, box: TokenBox, *, with_open: bool, as_json: bool
) -> None:
    async with target.client(user, tokens=box) as client:
        for _ in range(times):
            reply = await client.shake()
            _show(describe_shake(reply), as_json=as_json)
            if reply.claim_token and with_open:
                opened = await client.spread_open(reply.claim_token)
                _show(describe_open(opened), as_json=as_json)


def describe_shake(reply: access_pb2.ShakeReply) -> dict[str, Any]:
    """Return a shake's answer as JSON values."""
    return {
        "outcome": access_pb2.ShakeOutcome.Name(reply.outcome),
        "sponsor": reply.sponsor,
        "resource": reply.resource,
        "retry_after_ms": reply.retry_after_ms,
        "claim_token": reply.claim_token.hex(),
    }


def describe_open(reply: redeem_pb2.OpenReply) -> dict[str, Any]:
    """Return an open's answer as JSON values."""
    return {
        "outcome": redeem_pb2.OpenOutcome.Name(reply.outcome),
        "amount_fen": reply.amount_fen,
        "packet": reply.packet,
        "sponsor": reply.sponsor,
    }


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer))
        return
    if "amount_fen" in answer:
        typer.echo(describe_open_in_words(answer))
        return
    words = answer["outcome"].lower().replace("_", " ")
    sponsor = f" from sponsor {answer['sponsor']}" if answer["sponsor"] else ""
    token = f", token {answer['claim_token']}" if answer["claim_token"] else ""
    typer.echo(f"{words}{sponsor}{token}, next shake in {answer['retry_after_ms']} ms")


def describe_open_in_words(answer: dict[str, Any]) -> str:
    """Return an open's answer as a sentence."""
    if answer["outcome"] == "OPENED":
        return f"opened packet {answer['packet']}: {format_yuan(answer['amount_fen'])} yuan"
    return f"packet {answer['packet']} was already opened by somebody else"
