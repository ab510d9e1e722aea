"""Is `hongbao mint`: make the ticket files of a campaign's schemes.

Exit codes: 0 minted (or was minted before), 2 refused.
"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hongbao.cipher.keyring import read_role_keyring
from hongbao.cli import minting
from hongbao.domain.manifest import Manifest
from hongbao.domain.money import format_yuan
from hongbao.mint.scheme import mint_scheme

SPAWN_PACKETS_MIN = 2_000_000  # below, starting processes costs more than it saves

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def mint(
    file: minting.CampaignFile,
    keys: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The mint's key file: mint.keys.")
    ],
    passphrase: minting.Passphrase,
    out: minting.Objects = Path("out/objects"),
    scheme: minting.Schemes = None,
    plans: minting.Plans = None,
    ticket_shards: minting.TicketShards = 6,
    claims_shards: minting.ClaimsShards = 6,
    workers: minting.Workers = None,
    as_json: minting.AsJson = False,
) -> None:
    """Split the budget into packets, encipher them, cut them into signed ticket files.

    The same plan and keys give the same bytes. Killed in the middle, the same command goes on
    behind the finished files; what is minted already is left as it is.

    Examples:

        hongbao mint examples/new-year --keys keys/mint.keys --out out/objects

        hongbao mint examples/new-year --keys keys/mint.keys --scheme main --json | jq .schemes
    """
    _, chosen = minting.choose_plans(file, plans, scheme, ticket_shards, claims_shards)
    keyring = read_role_keyring(keys, passphrase)
    out.mkdir(parents=True, exist_ok=True)
    manifests = []
    for plan in chosen:
        cores = workers or (os.cpu_count() or 1 if plan.packets >= SPAWN_PACKETS_MIN else 1)
        with minting.packet_progress(f"mint {plan.scheme}", quiet=as_json) as progress:
            manifests.append(mint_scheme(plan, keyring, out, workers=cores, progress=progress))
    if as_json:
        typer.echo(json.dumps({"schemes": [_document(one) for one in manifests]}, indent=2))
    else:
        Console().print(_table(manifests))


def _document(manifest: Manifest) -> dict[str, object]:
    return {
        "scheme": manifest.scheme,
        "scheme_number": manifest.scheme_number,
        "packets": manifest.packets,
        "total_fen": manifest.total_fen,
        "files": len(manifest.files),
        "keys": len(manifest.keys),
        "prefix": manifest.prefix,
        "merkle_root": manifest.merkle_root,
    }


def _table(manifests: list[Manifest]) -> Table:
    table = Table(title="minted")
    for name in ("scheme", "number", "packets", "yuan", "files", "keys", "merkle root"):
        left = name in ("scheme", "merkle root")
        table.add_column(name, justify="left" if left else "right")
    for one in manifests:
        table.add_row(
            one.scheme,
            str(one.scheme_number),
            f"{one.packets:,}",
            format_yuan(one.total_fen),
            str(len(one.files)),
            str(len(one.keys)),
            one.merkle_root[:16] + "…",
        )
    return table
