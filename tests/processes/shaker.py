"""Is a gateway without its Envoy: an access pod that shakes by itself and prints what it issued.

A child of the nursery, made to be killed. A record counts as issued when its token was returned.
"""

import asyncio
import json
import logging
import signal
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import structlog
from hongbao.access.limits import AccessLimits
from hongbao.access.pod import AccessPod, PodIdentity, PodKeys, PodStores
from hongbao.adapters.clock import SystemClock
from hongbao.adapters.folder_objects import FolderObjects
from hongbao.adapters.store_client import StoreClient
from hongbao.cipher.derive import binding_key
from hongbao.client.identity import TestIdentity
from hongbao.domain.ids import CampaignId
from hongbao.domain.ticket import campaign_hash
from hongbao.domain.token import parse_claim_head, seal_session
from hongbao.proto.v1.access_pb2 import ShakeRequest

from tests.minted import CAMPAIGN, tiny_keyring
from tests.processes.nursery import say

POD = 1
LIMITS = AccessLimits(
    user_cap_columns_log2=12,
    user_packets_max=255,
    reserve_records=64,
    reserve_files=2,
    retry_s=0.01,
    refetch_s=0.05,
    pass_ms=20,
    quota_floor_per_s=1e9,  # nobody opens here
)
USERS = 400
SHAKES_A_TURN = 8
TURN_S = 0.001


def main(argument: dict[str, Any]) -> None:
    """Shake until killed; on SIGTERM drain."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(_shake(argument["epoch"], Path(argument["folder"])))


async def _shake(epoch: int, folder: Path) -> None:
    keyring, clock = tiny_keyring(), SystemClock()
    store = StoreClient(folder / "store.sock", folder / "store")
    pod = AccessPod(
        PodIdentity(CampaignId(CAMPAIGN), "access-a-0", POD, epoch),
        PodKeys(
            binding_key(keyring.token_root, POD, epoch),
            keyring.session_key,
            keyring.verify_key,
            json.loads(TestIdentity.generate().jwks()),
        ),
        PodStores(FolderObjects(folder / "objects"), store, store, folder / "cache"),
        wall_ms=clock.wall_ms,
        monotonic_s=clock.monotonic_s,
        limits=LIMITS,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    hashed, expiry_s = campaign_hash(CAMPAIGN), clock.wall_ms() // 1000 + 3600
    sessions = [
        seal_session(keyring.session_key, hashed, user, 0, expiry_s) for user in range(USERS)
    ]
    requests = cycle([ShakeRequest(campaign=CAMPAIGN, session=one) for one in sessions])
    await pod.start()
    while not stop.is_set():
        for _ in range(SHAKES_A_TURN):
            token = pod.shake(next(requests)).claim_token
            if token:
                head = parse_claim_head(token)
                assert head is not None
                say("issued", epoch, head.record.hex())
        await asyncio.sleep(TURN_S)
    await pod.drain()
    await store.close()
