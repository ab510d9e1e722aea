"""Runs a real etcd cluster of one or three members on free loopback ports, and harms it.

For fixtures and plain programs alike. Members die with the process that started them.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from hongbao.adapters.etcd_members import EtcdSettings, EtcdTls
from hongbao.proto.etcd import rpc_pb2 as pb

from tests.servers import binaries
from tests.servers.certificates import Certificates, make_certificates
from tests.servers.started import free_port, pause, resume, start

START_S_MAX = 60.0
PAUSE_S = 0.05
CALL_S_MAX = 2.0


class EtcdCluster:
    """Is a running cluster; members are numbered from 0."""

    def __init__(
        self,
        folder: Path,
        members: int = 1,
        *,
        tls: bool = False,
        environ: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        """Start it and wait until it has a leader; `environ` adds to a member's environment."""
        self._folder = folder
        self._environ = environ or {}
        self.certificates: Certificates | None = None
        if tls:
            self.certificates = make_certificates(folder / "tls")
        self._client_ports = [free_port() for _ in range(members)]
        self._peer_ports = [free_port() for _ in range(members)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for index in range(members):
                self._spawn(index)
            self.wait_until_serving()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "EtcdCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Return each member's `host:port` for clients."""
        return tuple(f"127.0.0.1:{port}" for port in self._client_ports)

    def settings(self, namespace: str = "hongbao/") -> EtcdSettings:
        """Return what an adapter needs to use this cluster."""
        tls = None
        if self.certificates is not None:
            made = self.certificates
            tls = EtcdTls(made.ca, made.cert, made.key)
        return EtcdSettings(self.endpoints, namespace, tls)

    def kill(self, index: int) -> None:
        """Kill a member with SIGKILL, paused or not."""
        process = self._processes.pop(index)
        process.kill()
        process.wait()

    def start(self, index: int) -> None:
        """Start a killed member on its old data; do not wait for it."""
        self._spawn(index)

    def pause(self, index: int) -> None:
        """Stop a member (SIGSTOP): it keeps its connections and answers nobody."""
        pause(self._processes[index])

    def resume(self, index: int) -> None:
        """Let a paused member go on."""
        resume(self._processes[index])

    def running(self) -> list[int]:
        """Return the members that were not killed."""
        return sorted(self._processes)

    def leader(self) -> int:
        """Return which member leads, as soon as one does."""
        ends_s = time.monotonic() + START_S_MAX
        while time.monotonic() < ends_s:
            for index in self.running():
                status = self._status(index)
                if status is not None and status.leader == status.header.member_id:
                    return index
            time.sleep(PAUSE_S)
        raise TimeoutError(f"no leader in {START_S_MAX} s: {self._logs()}")

    def compact(self) -> int:
        """Drop all history before the newest revision, and return that."""
        found = self._repeat("KV/Range", pb.RangeRequest(key=b"\0"), pb.RangeResponse)
        revision = int(found.header.revision)
        request = pb.CompactionRequest(revision=revision, physical=True)
        try:
            self._repeat("KV/Compact", request, pb.CompactionResponse)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.OUT_OF_RANGE:  # else an earlier try did it
                raise
        return revision

    def wait_until_serving(self) -> None:
        """Return when every running member answers and knows a leader."""
        ends_s = time.monotonic() + START_S_MAX
        waiting = self.running()
        while waiting := [index for index in waiting if not self._serves(index)]:
            if time.monotonic() > ends_s:
                raise TimeoutError(f"etcd members {waiting} do not serve: {self._logs()}")
            time.sleep(PAUSE_S)

    def stop(self) -> None:
        """Kill all members."""
        for index in self.running():
            self.kill(index)

    def _spawn(self, index: int) -> None:
        scheme = "http" if self.certificates is None else "https"
        clients = f"{scheme}://127.0.0.1:{self._client_ports[index]}"
        peers = [f"{scheme}://127.0.0.1:{port}" for port in self._peer_ports]
        cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
        options = {
            "name": f"m{index}",
            "data-dir": str(self._folder / f"m{index}"),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers[index],
            "initial-advertise-peer-urls": peers[index],
            "initial-cluster": cluster,
            "initial-cluster-token": self._folder.name,
            "log-level": "warn",
            **self._tls_options(),
        }
        command = [str(binaries.folder() / "etcd")]
        command += [f"--{name}={value}" for name, value in options.items()]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._processes[index] = start(
            command,
            self._folder / f"m{index}.log",
            environ={**os.environ, **self._environ.get(index, {})},
        )

    def _tls_options(self) -> dict[str, str]:
        made = self.certificates
        if made is None:
            return {}
        files = {"trusted-ca-file": made.ca, "cert-file": made.cert, "key-file": made.key}
        options = {name: str(path) for name, path in files.items()}
        options |= {f"peer-{name}": str(path) for name, path in files.items()}
        return options | {"client-cert-auth": "true", "peer-client-cert-auth": "true"}

    def _serves(self, index: int) -> bool:
        if self._processes[index].poll() is not None:
            raise RuntimeError(f"etcd member {index} ended: {self._logs()}")
        try:
            self._call(index, "KV/Range", pb.RangeRequest(key=b"\0"), pb.RangeResponse)
        except grpc.RpcError:
            return False
        return True

    def _status(self, index: int) -> pb.StatusResponse | None:
        try:
            reply: pb.StatusResponse = self._call(
                index, "Maintenance/Status", pb.StatusRequest(), pb.StatusResponse
            )
        except grpc.RpcError:
            return None
        return reply

    def _repeat(self, method: str, request: Any, reply: Any) -> Any:
        """Call the leader; again, whoever leads then, where a stall or an election took the time.

        Raises what etcd refused.
        """
        ends_s = time.monotonic() + START_S_MAX
        while True:
            try:
                return self._call(self.leader(), method, request, reply)
            except grpc.RpcError as error:
                refused = error.code() is grpc.StatusCode.OUT_OF_RANGE
                if refused or time.monotonic() > ends_s:
                    raise
            time.sleep(PAUSE_S)

    def _call(self, index: int, method: str, request: Any, reply: Any) -> Any:
        with self._channel(index) as channel:
            call = channel.unary_unary(
                f"/etcdserverpb.{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=reply.FromString,
            )
            return call(request, timeout=CALL_S_MAX)

    @contextlib.contextmanager
    def _channel(self, index: int) -> Iterator[grpc.Channel]:
        endpoint, made = self.endpoints[index], self.certificates
        if made is None:
            channel = grpc.insecure_channel(endpoint)
        else:
            credentials = grpc.ssl_channel_credentials(
                made.ca.read_bytes(), made.key.read_bytes(), made.cert.read_bytes()
            )
            channel = grpc.secure_channel(endpoint, credentials)
        with channel:
            yield channel

    def _logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")[-2000:] for path in sorted(self._folder.glob("*.log"))
        )
