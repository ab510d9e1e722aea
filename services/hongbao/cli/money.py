"""Owns what `hongbao audit` and `hongbao fund` read of a run: schemes, rules, who is alive."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from hongbao.cipher.keyring import read_public_key
from hongbao.cli.acks import read_living
from hongbao.cli.process import read_manifests
from hongbao.cli.run_claim import claim_ledger
from hongbao.cli.run_dir import access_pods
from hongbao.cli.run_objects import local_amounts
from hongbao.cli.stores import Stores
from hongbao.domain.errors import Rejected, Transient
from hongbao.domain.manifest import Manifest
from hongbao.settle.rules import parse_active


@dataclass(frozen=True)
class Minted:
    """Is the minted schemes of a run and which one each slot plays."""

    schemes: list[tuple[Manifest, Path]]
    active: dict[int, int]

    @property
    def claims_shards(self) -> list[int]:
        return sorted({int(file.claims_shard) for one, _ in self.schemes for file in one.files})

    def fen_by_sponsor(self) -> dict[int, int]:
        """Return what the active scheme of each slot minted, per sponsor."""
        fen: dict[int, int] = {}
        for manifest, _ in self.schemes:
            for batch in manifest.batches:
                if self.active.get(batch.slot) == manifest.scheme_number:
                    fen[batch.sponsor] = fen.get(batch.sponsor, 0) + batch.total_fen
        return fen


async def read_minted(stores: Stores) -> Minted:
    """Read and verify the manifests of a run. Raises Corrupt for a bad signature.

    Raises Transient where an active scheme is not among them, because the list of names may be an
    old one while the object store is down; money goes back only by the whole list.
    """
    campaign = stores.campaign.campaign
    verify_key = read_public_key(stores.run.keys / "access.keys")
    manifests = await read_manifests(stores.objects, campaign, verify_key)
    active = parse_active(await stores.coordination.read(f"campaigns/{campaign}/active"))
    minted = {manifest.scheme_number for manifest in manifests}
    if unseen := sorted(set(active.values()) - minted):
        raise Transient(f"schemes {unseen} are active and not seen in the object store: try again")
    amounts = [await local_amounts(stores.run, stores.settings, one) for one in manifests]
    return Minted(list(zip(manifests, amounts, strict=True)), active)


async def open_ledger(stores: Stores) -> sa.Engine:
    """Return the run's ledger, its schema made when it is missing. Raises Rejected."""
    return await asyncio.to_thread(
        claim_ledger, stores.run, stores.ledger_url, stores.campaign.campaign
    )


async def read_alive(stores: Stores) -> set[tuple[int, int]]:
    """Return (pod, epoch) of the access processes that hold their member lease."""
    _, specs = stores.run.read_specs()
    living = await read_living(stores.coordination)
    alive = set()
    for pod in access_pods(specs):
        if pod.process in living:
            epoch = await stores.coordination.read(f"pods/{pod.pod}/epoch")
            alive.add((pod.pod, int(epoch.value or 0)))
    return alive


def read_serials(path: Path) -> Iterable[int]:
    """Read packet serials, one a line. Raises Rejected with the line's number."""
    serials = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not (line.isascii() and line.isdigit()):
            raise Rejected(f"{path}, line {number}: {line[:40]!r} is no packet", field="claims")
        serials.append(int(line))
    return serials
