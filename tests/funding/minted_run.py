"""Mints plans of the small campaign into the folder of a run, for tests of activation."""

import json
from collections.abc import Iterable
from pathlib import Path

from hongbao.cipher.keyring import Keyring, new_keyring
from hongbao.cli.run_dir import RunDir
from hongbao.domain.ids import KeyId
from hongbao.domain.manifest import Manifest
from hongbao.domain.plan import MintPlan
from hongbao.mint.scheme import mint_scheme

from tests.funding.files import small_campaign
from tests.minted import FixedEntropy

KEY_IDS = 128


def small_keyring(seed: bytes = b"small") -> Keyring:
    key_ids = [KeyId(key_id) for key_id in range(1, KEY_IDS)]
    return new_keyring(small_campaign().campaign, key_ids, FixedEntropy(seed))


def minted_run(run: RunDir, plans: Iterable[MintPlan]) -> list[Manifest]:
    """Mint plans into a run's objects, and leave the key that proves who minted them."""
    run.keys.mkdir(exist_ok=True)
    (run.keys / "access.keys").write_text(
        json.dumps({"verify_key": small_keyring().verify_key.hex()})
    )
    return mint_into(run.objects, plans)


def mint_into(objects: Path, plans: Iterable[MintPlan], seed: bytes = b"small") -> list[Manifest]:
    objects.mkdir(exist_ok=True)
    return [mint_scheme(plan, small_keyring(seed), objects) for plan in plans]
