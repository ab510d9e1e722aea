"""Is `hongbao open`: open claim tokens; safe to repeat."""

import asyncio
import json
from typing import Annotated

import typer

from hongbao.cli.shake import TokensOption, describe_open, describe_open_in_words
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
from hongbao.domain.errors import Rejected


def open_packets(
    token: Annotated[
        list[str] | None, typer.Argument(help="Claim tokens in hex, as `shake` prints them.")
    ] = None,
    user: Annotated[int, typer.Option("--user", min=1, help="User id that won them.")] = 1,
    tokens: TokensOption = None,
    run: RunOption = RUN_DIR,
    gateway: GatewayOption = None,
    campaign: CampaignOption = "",
    issuer: IssuerOption = None,
    as_json: AsJson = False,
) -> None:
    """Open packets: the tokens given, else all that wait in the token file.

    Repeating is safe: the same user gets the same answer.

    Examples:

        hongbao open --user 42 0100030000…

        hongbao open --user 42 --tokens my.tokens
    """
    box = TokenBox(tokens)
    try:
        wanted = [bytes.fromhex(text) for text in token or ()] or box.waiting
    except ValueError as error:
        raise Rejected(f"a token is not hex: {error}", field="token") from error
    if not wanted:
        raise Rejected("no token is given and none waits in a token file", field="token")
    target = find_target(run, gateway, campaign, issuer)
    asyncio.run(_open(target, user, wanted, box, as_json=as_json))


async def _open(
    target: Target, user: int, wanted: list[bytes], box: TokenBox, *, as_json: bool
) -> None:
    async with target.client(user, tokens=box) as client:
        for token in wanted:
            answer = describe_open(await client.open(token))
            typer.echo(json.dumps(answer) if as_json else describe_open_in_words(answer))
