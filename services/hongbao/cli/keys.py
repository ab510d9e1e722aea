"""Is `hongbao keys`: draw the secrets of a campaign, list its ticket keys, deny and allow them.

Exit codes: 0 done, 2 refused, 75 somebody else changed the lists at the same time.
"""

import asyncio
import json
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from hongbao.cipher.key_lists import (
    KeyLists,
    allow_keys,
    deny_keys,
    document_name,
    pack_key_lists,
    parse_key_ids,
    parse_key_lists,
)
from hongbao.cipher.keyring import ROLE_SECRETS, new_keyring, read_public_key, write_role_keyring
from hongbao.cli import minting
from hongbao.cli.acks import wait_acked
from hongbao.cli.campaign_input import require_campaign
from hongbao.domain.errors import Transient
from hongbao.domain.ids import CampaignId, KeyId
from hongbao.domain.manifest import Manifest, parse_manifest
from hongbao.domain.money import format_yuan
from hongbao.domain.ticket import KEY_ID_MAX
from hongbao.shards.ports import Coordination

if TYPE_CHECKING:
    from hongbao.cli.stores import Stores

TRIES_MAX = 5
WAIT_S = 10.0

Run = Annotated[Path, typer.Option(help="The folder of the run to talk to.")]
KeyIds = Annotated[list[str], typer.Argument(metavar="KEY...", help="Key ids: 7, or 20-30.")]

WaitS = Annotated[
    float, typer.Option(min=0, help="Wait so long until every redeem process obeys; 0: do not.")
]

app = typer.Typer(
    name="keys",
    help="Draw a campaign's secrets; list, deny and allow its ticket keys.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command()
def new(
    file: minting.CampaignFile,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the key files go.")],
    passphrase: minting.Passphrase,
    count: Annotated[
        int, typer.Option(min=1, max=KEY_ID_MAX, help="Ticket keys; spare ones serve edits.")
    ] = KEY_ID_MAX,
    as_json: minting.AsJson = False,
) -> None:
    """Draw new secrets and write one encrypted key file per role. Never overwrites one.

    mint.keys signs and enciphers, redeem.keys deciphers, access.keys only knows sessions;
    verify.pub is public and checks signatures.

    Examples:

        hongbao keys new examples/new-year keys

        HONGBAO_KEYS_PASSPHRASE="$(pass show hongbao)" hongbao keys new my/campaign.yaml keys
    """
    campaign = require_campaign(file).campaign
    keyring = new_keyring(campaign, map(KeyId, range(1, count + 1)), os.urandom)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    for role in ROLE_SECRETS:
        write_role_keyring(out / f"{role}.keys", keyring, role, passphrase)
    (out / "verify.pub").write_text(keyring.verify_key.hex() + "\n")
    if as_json:
        document = {
            "campaign": campaign,
            "folder": str(out),
            "ticket_keys": count,
            "verify_key": keyring.verify_key.hex(),
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"{count} ticket keys of {campaign} in {out}")


@app.command("list")
def list_keys(
    run: Run = Path("out/run"),
    slot: Annotated[int | None, typer.Option(min=1, help="Only keys of this slot.")] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only keys that may not open.")] = False,
    as_json: minting.AsJson = False,
) -> None:
    """List the ticket keys in use: what each guards, and whether it may be opened.

    Examples:

        hongbao keys list --slot 3

        hongbao keys list --denied --json | jq '.keys[].key_id'
    """
    rows, lists = asyncio.run(_read_run(run))
    rows = [row for row in rows if slot in (None, row.slot) and not (denied and row.permitted)]
    if as_json:
        document = json.loads(pack_key_lists(lists)) | {"keys": [asdict(row) for row in rows]}
        typer.echo(json.dumps(document, indent=2))
        return
    table = Table("key", "plan", "slot", "sponsor", "packets", "yuan", "may open")
    for row in rows:
        cells = (row.key_id, row.scheme_number, row.slot, row.sponsor, row.packets)
        may_open = "yes" if row.permitted else "[red]no[/]"
        table.add_row(*map(str, cells), format_yuan(row.fen), may_open)
    Console().print(table)


@app.command()
def deny(
    key: KeyIds,
    run: Run = Path("out/run"),
    wait_s: WaitS = WAIT_S,
    as_json: minting.AsJson = False,
) -> None:
    """Stop every opening with these keys, and wait until no process opens with them.

    Examples:

        hongbao keys deny 7

        hongbao keys deny 20-30 41 --run out/run --json | jq .deny
    """
    ids = parse_key_ids(key)
    lists = asyncio.run(_change_run(run, ids, lambda lists: deny_keys(lists, ids), wait_s))
    _show_lists(lists, as_json)


@app.command()
def allow(
    key: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY...]", help="Key ids: 7, or 20-30.")
    ] = None,
    only: Annotated[
        bool, typer.Option("--only", help="Allow these keys and no others from now on.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Drop the allow list; denied keys stay denied.")
    ] = False,
    run: Run = Path("out/run"),
    wait_s: WaitS = WAIT_S,
    as_json: minting.AsJson = False,
) -> None:
    """Take keys off the deny list (and put them on the allow list where there is one).

    Examples:

        hongbao keys allow 7

        hongbao keys allow --only 1-160

        hongbao keys allow --all
    """
    if every == bool(key) or (every and only):
        raise typer.BadParameter("name keys, or say --all")
    ids = parse_key_ids(key or [])
    lists = asyncio.run(
        _change_run(run, ids, lambda lists: allow_keys(lists, ids, only=only), wait_s)
    )
    _show_lists(lists, as_json)


@dataclass(frozen=True, slots=True)
class _KeyRow:
    key_id: int
    scheme_number: int
    slot: int
    sponsor: int
    packets: int
    fen: int
    permitted: bool


async def _read_run(run: Path) -> tuple[list[_KeyRow], KeyLists]:
    from hongbao.cli import stores

    async with stores.open_stores(run) as opened:
        campaign = opened.campaign.campaign
        lists = parse_key_lists((await opened.coordination.read(document_name(campaign))).value)
        rows = [row for one in await _read_manifests(opened) for row in _rows(one, lists)]
    return sorted(rows, key=lambda row: row.key_id), lists


async def _read_manifests(opened: "Stores") -> list[Manifest]:
    """Return the verified manifests of a run. Raises Corrupt for a bad signature."""
    verify_key = read_public_key(opened.run.keys / "access.keys")
    found = []
    for name in await opened.objects.names(opened.campaign.campaign):
        if name.endswith("/manifest.json"):
            signature = await opened.objects.get(name.removesuffix("json") + "sig")
            found.append(parse_manifest(await opened.objects.get(name), signature, verify_key))
    return found


def _rows(manifest: Manifest, lists: KeyLists) -> list[_KeyRow]:
    batches = {key_id: batch for batch in manifest.batches for key_id in batch.key_ids}
    return [
        _KeyRow(
            key_id=use.key_id,
            scheme_number=manifest.scheme_number,
            slot=batches[use.key_id].slot,
            sponsor=batches[use.key_id].sponsor,
            packets=use.packets,
            fen=use.fen,
            permitted=lists.permits(use.key_id),
        )
        for use in manifest.keys
    ]


async def _change_run(
    run: Path, ids: Iterable[KeyId], edit: Callable[[KeyLists], KeyLists], wait_s: float
) -> KeyLists:
    from hongbao.cli import stores

    async with stores.open_stores(run) as opened:
        campaign = opened.campaign.campaign
        used = {use.key_id for one in await _read_manifests(opened) for use in one.keys}
        _warn_unused(ids, used)
        lists, revision = await change_key_lists(opened.coordination, campaign, edit)
        if wait_s and opened.live:
            document = document_name(campaign)
            await wait_acked(
                opened.coordination, document, "redeem", revision, wait_s, expected=True
            )
        return lists


def _warn_unused(ids: Iterable[KeyId], used: Collection[KeyId]) -> None:
    """Tell of keys that guard nothing: mistyped, or a spare one denied before its use."""
    if unused := sorted(set(ids) - set(used)):
        numbers = " ".join(map(str, unused))
        typer.echo(f"warning: no packet of this run is under key {numbers}", err=True)


async def change_key_lists(
    coordination: Coordination, campaign: CampaignId, edit: Callable[[KeyLists], KeyLists]
) -> tuple[KeyLists, int]:
    """Edit the lists by compare and put, so that no other edit is lost; also tell the revision."""
    name = document_name(campaign)
    for _ in range(TRIES_MAX):
        found = await coordination.read(name)
        lists = edit(parse_key_lists(found.value))
        packed = pack_key_lists(lists)
        written = await coordination.compare_and_put(name, packed, revision=found.revision)
        if written:
            return lists, written.revision
    raise Transient(f"{name}: changed by others {TRIES_MAX} times in a row")


def _show_lists(lists: KeyLists, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(json.loads(pack_key_lists(lists)), indent=2))
        return
    denied = " ".join(map(str, sorted(lists.deny))) or "none"
    allowed = "all others" if lists.allow is None else " ".join(map(str, sorted(lists.allow)))
    typer.echo(f"denied: {denied}; allowed: {allowed}")
