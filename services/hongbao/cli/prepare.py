"""Owns what `hongbao up` does before anything serves: keys, mint, verify, a test issuer of JWTs.

Every step is skipped when its result is there, so a second start is quick.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hongbao.cipher.keyring import (
    Keyring,
    Role,
    new_keyring,
    read_keyring,
    role_passphrase,
    write_role_keyring,
)
from hongbao.cli.late_edit import read_late_edit
from hongbao.cli.run_dir import RunDir
from hongbao.cli.run_objects import any_minted, upload_scheme
from hongbao.cli.settings import UpSettings
from hongbao.client.identity import TestIdentity
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Rejected
from hongbao.domain.ids import KeyId
from hongbao.domain.manifest import Manifest
from hongbao.domain.plan import MintPlan
from hongbao.domain.script import plan_campaign
from hongbao.domain.ticket import KEY_ID_MAX
from hongbao.mint.durable import sync_folder
from hongbao.mint.scheme import finished_scheme, mint_scheme
from hongbao.verify.scheme import verify_scheme

PASSPHRASE_VARIABLE = "HONGBAO_KEYS_PASSPHRASE"
ROLE_PASSPHRASE_VARIABLE = "HONGBAO_ROLE_PASSPHRASE"
NEW_KEYS = ".new"
PARTIAL_KEYS = ".partial"
ROLES: tuple[Role, ...] = ("mint", "redeem", "access")

Step = Callable[[str, int, int], None]  # (what, done, whole)


@dataclass(frozen=True)
class Prepared:
    """Is a campaign that is ready to be served."""

    plans: tuple[MintPlan, ...]
    manifests: tuple[Manifest, ...]
    active_scheme_number: int
    token_root: bytes


def passphrase(run: RunDir) -> str:
    """Return the operator's passphrase: from the environment, else one made for this run.

    The made one lies beside the keys (mode 0600): good for a rehearsal, not for money. Processes
    of one user on one machine can read it and each other's key files, whatever their role: there,
    passphrases by role keep secrets apart in memory and environment, not in the file system. For
    that, give every role a user or a machine of its own, and only its own key file.
    """
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given
    path = run.keys / "passphrase"
    if not path.exists():
        run.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(os.urandom(24).hex())
    return path.read_text().strip()


def role_keyring(run: RunDir, role: Role) -> Keyring:
    """Read what a role may know: by the passphrase that the supervisor handed to this process.

    It is taken out of the environment, so call this once. Without it (the operator's own commands)
    the role's passphrase is derived from the operator's.
    """
    handed = os.environ.pop(ROLE_PASSPHRASE_VARIABLE, "")
    secret = handed or role_passphrase(passphrase(run), role)
    return read_keyring(run.keys / f"{role}.keys", secret)


def prepare(run: RunDir, settings: UpSettings, campaign: Campaign, step: Step) -> Prepared:
    """Make keys, mint, verify and upload every scheme, unless that is done. Raises Rejected.

    Blocks, and runs an event loop of its own for the upload. Raises Transient when a remote object
    store cannot be reached: a second start goes on behind what is there.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    edit = read_late_edit(run)
    plans = edit.record.plans if edit else _plan(settings, campaign)
    unminted = [plan for plan in plans if not _verified_stamp(run, plan).exists()]
    settle_keys(run, settings, campaign, unminted)
    _make_issuer(run, settings)
    can_mint = (run.keys / "mint.keys").exists()  # it may lie offline once all is minted
    keyring = role_keyring(run, "mint" if can_mint else "redeem")
    manifests = []
    for plan in plans:
        name = f"mint {plan.scheme}"
        manifest = finished_scheme(plan, keyring.verify_key, run.objects) or mint_scheme(
            plan,
            keyring,
            run.objects,
            workers=os.cpu_count() or 1,
            progress=lambda done, whole, name=name: step(name, done, whole),  # type: ignore[misc]
        )
        budgeted = edit is None or plan is plans[-1]  # older plans had an older budget
        _verify(run, campaign if budgeted else None, plan, keyring, step)
        _upload(run, settings, manifest, step)
        manifests.append(manifest)
    active = next(plan for plan in plans if plan.scheme == campaign.active_scheme)
    return Prepared(
        plans=plans,
        manifests=tuple(manifests),
        active_scheme_number=active.scheme_number,
        token_root=role_keyring(run, "redeem").token_root,
    )


def _plan(settings: UpSettings, campaign: Campaign) -> tuple[MintPlan, ...]:
    return plan_campaign(
        campaign, ticket_shards=settings.ticket_shards, claims_shards=settings.claims_shards
    )


def settle_keys(
    run: RunDir, settings: UpSettings, campaign: Campaign, unminted: Sequence[MintPlan]
) -> None:
    """Have every key file that this start needs; make them only where nothing is minted yet.

    Raises Rejected that names what is missing: keys made anew could open nothing that is minted.
    """
    run.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    _finish_making(run)
    missing = [role for role in ROLES if not (run.keys / f"{role}.keys").exists()]
    if not missing or (missing == ["mint"] and not unminted):
        return
    if len(missing) < len(ROLES) or asyncio.run(any_minted(run, settings, campaign.campaign)):
        names = ", ".join(f"{role}.keys" for role in missing)
        raise Rejected(f"{run.keys} lacks {names}: bring back what was made with the rest")
    _make_keys(run, campaign)


def _make_keys(run: RunDir, campaign: Campaign) -> None:
    """Make a set of key files, all or none: killed on the way, the next start begins anew."""
    every_id = map(KeyId, range(1, KEY_ID_MAX + 1))  # a later re-plan needs keys of its own
    keyring = new_keyring(campaign.campaign, every_id, os.urandom)
    secret = passphrase(run)
    partial = run.keys / PARTIAL_KEYS
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    for role in ROLES:
        write_role_keyring(partial / f"{role}.keys", keyring, role, secret)
    sync_folder(partial)
    partial.rename(run.keys / NEW_KEYS)  # from here on the set is whole
    _finish_making(run)


def _finish_making(run: RunDir) -> None:
    """Put a whole set of new key files into place; goes on where it was stopped."""
    whole = run.keys / NEW_KEYS
    if not whole.exists():
        return
    for path in sorted(whole.iterdir()):
        path.rename(run.keys / path.name)
    whole.rmdir()
    sync_folder(run.keys)


def _verified_stamp(run: RunDir, plan: MintPlan) -> Path:
    return run.objects / plan.campaign / str(plan.scheme_number) / ".verified"


def _verify(
    run: RunDir, campaign: Campaign | None, plan: MintPlan, keyring: Keyring, step: Step
) -> None:
    stamp = _verified_stamp(run, plan)
    if stamp.exists():
        return
    name = f"verify {plan.scheme}"
    report = verify_scheme(
        plan,
        run.objects,
        keyring,
        campaign=campaign,
        workers=os.cpu_count() or 1,
        progress=lambda done, whole: step(name, done, whole),
    )
    if report.problems:
        raise Rejected("\n".join(map(str, report.problems)), field=f"scheme {plan.scheme}")
    stamp.touch()


def _upload(run: RunDir, settings: UpSettings, manifest: Manifest, step: Step) -> None:
    name = f"upload {manifest.scheme}"
    asyncio.run(upload_scheme(run, settings, manifest, lambda done, whole: step(name, done, whole)))


def _make_issuer(run: RunDir, settings: UpSettings) -> None:
    """Give the run the public keys of whoever signs the users' JWTs, or a signer of its own."""
    if settings.jwks is not None:
        run.jwks.write_bytes(settings.jwks.read_bytes())
        return
    private = issuer_key(run)
    if private.exists():
        return
    identity = TestIdentity.generate()
    with os.fdopen(os.open(private, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(identity.pem())
    run.jwks.write_bytes(identity.jwks())


def issuer_key(run: RunDir) -> Path:
    """Return the private key that signs JWTs of this run's own test users."""
    return run.keys / "issuer.pem"
