"""Owns which gateways, campaign and identity the client commands speak with.

Either a run on this machine (`--run`), which knows all three, or options that name them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from hongbao.adapters.clock import SystemClock
from hongbao.cli.campaign_input import require_campaign
from hongbao.cli.prepare import issuer_key
from hongbao.cli.run_dir import RunDir
from hongbao.client.client import HongbaoClient
from hongbao.client.draws import seeded_draw
from hongbao.client.gateways import Gateway
from hongbao.client.identity import TestIdentity
from hongbao.client.tokens import TokenBox
from hongbao.domain.errors import NotFound, Rejected
from hongbao.domain.ids import CampaignId

RUN_DIR = Path("out/run")
GIVE_UP_S = 10.0  # a person waits: long enough for a gateway that is started again

RunOption = Annotated[Path, typer.Option("--run", help="A run of `hongbao up` on this machine.")]
GatewayOption = Annotated[
    list[str] | None,
    typer.Option("--gateway", help="[zone=]host:port; may be repeated. Default: the run's."),
]
CampaignOption = Annotated[
    str, typer.Option("--campaign", help="Campaign id. Default: the run's campaign.")
]
IssuerOption = Annotated[
    Path | None,
    typer.Option("--issuer", help="Ed25519 key (PEM) that signs test JWTs. Default: the run's."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Target:
    """Is where a client command goes, and as whom."""

    gateways: tuple[Gateway, ...]
    campaign: CampaignId
    identity: TestIdentity
    clock: SystemClock

    def jwt_of(self, user: int) -> str:
        return self.identity.jwt_of(user, self.campaign, self.clock.wall_ms() // 1000)

    def client(
        self, user: int, *, jwt: str | None = None, tokens: TokenBox | None = None
    ) -> HongbaoClient:
        """Return a client of one user, who shows `jwt` or one signed here."""
        own: Callable[[], str] = (lambda: jwt) if jwt else (lambda: self.jwt_of(user))
        draw = seeded_draw(self.clock.wall_ms() ^ user)
        tell_waits(self.gateways)
        return HongbaoClient(
            self.gateways, self.campaign, own, tokens=tokens, give_up_s=GIVE_UP_S, draw=draw
        )


def tell_waits(gateways: Sequence[Gateway]) -> None:
    """Say once, in words, that calls are repeated; what ends it is said by the error."""
    said: list[str] = []

    def hook(details: RetryDetails) -> None:
        if not said:
            addresses = ", ".join(f"{one.host}:{one.port}" for one in gateways)
            said.append(f"no answer from {addresses} yet, trying for {GIVE_UP_S:g} s …")
            typer.echo(said[0], err=True)

    set_on_retry_hooks([hook])


def find_target(
    run_path: Path, gateways: list[str] | None, campaign: str, issuer: Path | None
) -> Target:
    """Return the target that the options describe. Raises Rejected or NotFound."""
    run = RunDir(run_path)
    found, named = _parse_gateways(gateways or []), campaign
    if not found or not named:
        settings, specs = run.read_specs()
        found = found or tuple(
            Gateway(spec.zone, "127.0.0.1", spec.ports["public"])
            for spec in specs
            if spec.role == "access"
        )
        named = named or require_campaign(settings.campaign).campaign
    pem = issuer or issuer_key(run)
    try:
        identity = TestIdentity.from_pem(pem.read_bytes())
    except OSError as error:
        raise NotFound(f"{pem} cannot be read: {error.strerror}", field="issuer") from error
    return Target(found, CampaignId(named), identity, SystemClock())


def _parse_gateways(texts: list[str]) -> tuple[Gateway, ...]:
    try:
        return tuple(Gateway.parse(text) for text in texts)
    except ValueError as error:
        raise Rejected(str(error), field="gateway") from error
