"""Owns the layout of a run's folder and the list of its processes."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from hongbao.cli.settings import UpSettings
from hongbao.domain.assignment import AccessPod
from hongbao.domain.errors import NotFound, Rejected

LOCK_NAME: Final = "up.lock"
SOCKET_BYTES_MAX: Final = 107
"""Of a Unix socket's path (unix(7), with the 0 behind it)."""
SOCKETS: Final = ("admin", "internal")
"""What a gateway or redeem process listens on besides its ports."""


@dataclass(frozen=True)
class ProcessSpec:
    """Is one process of a run: its name, place and ports (loopback)."""

    process: str
    role: str  # store | access | redeem | settle
    zone: str
    pod: int = 0  # access processes only, from 1
    ports: dict[str, int] = field(default_factory=dict)  # public, admin, internal, metrics


@dataclass(frozen=True)
class RunDir:
    """Is a run's folder."""

    path: Path

    @property
    def objects(self) -> Path:
        return self.path / "objects"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def socket(self) -> Path:
        return self.path / "store.sock"

    def socket_of(self, process: str, purpose: str) -> Path:
        """Return where a process listens: for `admin` (Envoy's), or `internal` (its own grpcio)."""
        return self.path / "sock" / f"{process}.{purpose}"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def jwks(self) -> Path:
        return self.keys / "jwks.json"

    def ledger_url(self, settings: UpSettings) -> str:
        """Return where the money is: the settings' database, else a file of this folder."""
        return settings.ledger_url or f"sqlite:///{quote(str(self.path / 'ledger.db'))}"

    def cache(self, process: str) -> Path:
        return self.path / "cache" / process

    @contextlib.contextmanager
    def supervised(self) -> Iterator[None]:
        """Hold the run for one supervisor, before it changes anything here.

        Raises Rejected that names who holds it: a second one would raise the pods' epochs and put
        its timeline under the first one's feet. The kernel lets go with the holder, however that
        ends; the file stays, because two could else hold a lock of its name.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK_NAME).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                message = f"{self.path}: another `hongbao up` is already running, pid {holder}"
                raise Rejected(message, field="run_dir") from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def write_specs(self, settings: UpSettings, specs: Iterable[ProcessSpec]) -> None:
        """Record what runs here, for the processes themselves and for other commands."""
        document = {
            "settings": settings.model_dump(mode="json"),
            "processes": [asdict(spec) for spec in specs],
        }
        partial = self.path / ".run.json"
        partial.write_text(json.dumps(document, indent=1))
        os.replace(partial, self.path / "run.json")

    def read_specs(self) -> tuple[UpSettings, list[ProcessSpec]]:
        """Return what runs here. Raises NotFound with what to do."""
        try:
            document = json.loads((self.path / "run.json").read_text())
        except FileNotFoundError as error:
            raise NotFound(
                f"{self.path} holds no run: start one with `hongbao up`, or name it with --run",
                field="run",
            ) from error
        settings = UpSettings.model_validate(document["settings"])
        return settings, [ProcessSpec(**spec) for spec in document["processes"]]


def plan_processes(settings: UpSettings) -> list[ProcessSpec]:
    """Name the processes of a run and give them ports, in the order in which they start."""
    roles = [
        ("redeem", settings.redeem_per_zone, ("public", "admin", "internal", "metrics")),
        ("settle", settings.settle_per_zone, ("metrics",)),
        ("access", settings.access_per_zone, ("public", "admin", "internal", "metrics")),
    ]
    free = _free_ports(64 * len(settings.zones) * 4)
    specs = []
    if settings.embedded:
        specs.append(ProcessSpec("store", "store", "", 0, {"metrics": next(free)}))
    pod = 0
    for role, count, names in roles:
        for zone in settings.zones:
            for index in range(count):
                ports = {name: next(free) for name in names}
                pod += role == "access"
                if role == "access" and settings.gateway_port:
                    ports["public"] = settings.gateway_port + pod - 1
                number = pod if role == "access" else 0
                specs.append(ProcessSpec(f"{role}-{zone}-{index}", role, zone, number, ports))
    return specs


def check_sockets(settings: UpSettings) -> None:
    """Raise Rejected where no process could listen in the run's folder, or none be reached."""
    run = RunDir(settings.run_dir)
    if "," in str(run.path):
        raise Rejected(f"{run.path}: gRPC reaches no socket behind a comma", field="run_dir")
    names = [spec.process for spec in plan_processes(settings)]
    paths = [run.socket_of(process, each) for process in names for each in SOCKETS]
    longest = max([run.socket, *paths], key=lambda path: len(os.fsencode(path)))
    if (over := len(os.fsencode(longest)) - SOCKET_BYTES_MAX) > 0:
        raise Rejected(
            f"{run.path}: {over} bytes too long for the sockets in it "
            f"({longest.relative_to(run.path)}): choose a shorter run_dir",
            field="run_dir",
        )


def access_pods(specs: Iterable[ProcessSpec]) -> list[AccessPod]:
    """Return the access pods of a run, by number."""
    return [AccessPod(spec.pod, spec.process, spec.zone) for spec in specs if spec.pod]


def hold_ports(specs: Iterable[ProcessSpec]) -> contextlib.ExitStack:
    """Keep the ports of a run from being lent to strangers while their processes are down.

    Bound and not listened on: connections are refused, and who reuses addresses may bind them too.
    """
    with contextlib.ExitStack() as held:
        for port in sorted({port for spec in specs for port in spec.ports.values()}):
            holder = held.enter_context(socket.socket())
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                holder.setsockopt(socket.SOL_SOCKET, option, 1)
            with contextlib.suppress(OSError):  # taken: its process will say so
                holder.bind(("127.0.0.1", port))
        return held.pop_all()


def _free_ports(most: int) -> Iterator[int]:
    """Yield ports that nobody listens on now."""
    held = []
    try:
        for _ in range(most):
            probe = socket.socket()
            probe.bind(("127.0.0.1", 0))
            held.append(probe)
            yield probe.getsockname()[1]
    finally:
        for probe in held:
            probe.close()
