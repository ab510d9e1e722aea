"""Puts etcd behind the face of the contract suites: clusters started here, or one that is given.

On a user's machine HONGBAO_TEST_ETCD names the endpoints of a real cluster (comma between), and
HONGBAO_TEST_ETCD_CA, _CERT and _KEY its certificates; that one is never restarted nor compacted.
"""

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hongbao.adapters.etcd import EtcdCoordination
from hongbao.adapters.etcd_members import EtcdSettings, EtcdTls

from tests.contracts.store_contracts import Contract
from tests.servers import binaries
from tests.servers.etcd import EtcdCluster

GIVEN_VARIABLE = "HONGBAO_TEST_ETCD"
MEMBERS = {"etcd": 1, "etcd-three": 3, "etcd-tls": 1}
GIVEN = "etcd-given"
ETCD = [
    pytest.param(name, marks=pytest.mark.xdist_group(name))
    for name in (*MEMBERS, *([GIVEN] if GIVEN_VARIABLE in os.environ else []))
]
TTL_S = 2.0
"""etcd grants no less with its default election timeout."""


class EtcdContract(Contract):
    ttl_s = TTL_S

    def __init__(self, settings: EtcdSettings, prefix: str, cluster: EtcdCluster | None) -> None:
        super().__init__(EtcdCoordination(settings), prefix)
        self.gives_early = len(settings.endpoints) > 1
        self._cluster = cluster

    async def restart(self) -> None:
        """Kill every member, then start them all again."""
        cluster = self._owned_cluster()
        for index in cluster.running():
            cluster.kill(index)
        for index in range(len(cluster.endpoints)):
            cluster.start(index)  # not in a thread, whose end would be theirs
        await asyncio.to_thread(cluster.wait_until_serving)

    async def forget_history(self) -> None:
        await asyncio.to_thread(self._owned_cluster().compact)

    async def close(self) -> None:
        """Let go of the store; in a cluster that is not ours nothing of the test stays."""
        try:
            if self._cluster is None:
                for fact in await self.store.read_prefix(""):
                    await self.store.delete(fact.key)
        finally:
            await self.store.close()

    def _owned_cluster(self) -> EtcdCluster:
        if self._cluster is None:
            pytest.skip(f"the cluster of {GIVEN_VARIABLE} is not ours to restart or compact")
        return self._cluster


@contextmanager
def start_cluster(name: str, folder: Path) -> Iterator[EtcdCluster | None]:
    """Start the cluster of that name; None for the one that is given. Skips where it cannot."""
    if name == GIVEN:
        yield None
        return
    if reason := binaries.why_not():
        pytest.skip(reason)
    with EtcdCluster(folder, MEMBERS[name], tls=name == "etcd-tls") as cluster:
        yield cluster


def make_contract(cluster: EtcdCluster | None, test: str) -> EtcdContract:
    """Give a store with a namespace of its own."""
    namespace = f"test-{secrets.token_hex(6)}/"
    if cluster is not None:
        return EtcdContract(cluster.settings(namespace), test, cluster)
    return EtcdContract(given_settings(namespace), test, None)


def given_settings(namespace: str) -> EtcdSettings:
    """Return the settings of the cluster that the environment names."""
    files = [os.environ.get(f"{GIVEN_VARIABLE}_{part}") for part in ("CA", "CERT", "KEY")]
    ca, cert, key = (Path(file) if file else None for file in files)
    tls = None if ca is None else EtcdTls(ca, cert, key)
    return EtcdSettings(tuple(os.environ[GIVEN_VARIABLE].split(",")), namespace, tls)
