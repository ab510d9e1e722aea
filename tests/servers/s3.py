"""Runs a real S3 server on loopback for tests: VersityGW over a folder; kills and restarts it.

Objects and their metadata lie in the folder (extended attributes), so they outlive the process. On
a user's machine a real bucket may be named instead: then no test may kill what serves it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.servers.binaries import s3_binary, why_no_s3
from tests.servers.started import free_port, pause, resume, start

URL_VARIABLE: Final = "HONGBAO_TEST_S3"
"""Names a real bucket, s3://bucket/prefix; the standard AWS_* variables say how to reach it."""
START_S_MAX: Final = 60.0
STOP_S_MAX: Final = 60.0
REGION: Final = "us-east-1"
ACCESS_KEY: Final = "hongbao-test"
SECRET_KEY: Final = "only-for-loopback"


@dataclass
class S3Server:
    """Is one server on a folder, with a port that it keeps over restarts."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environ(self) -> Mapping[str, str]:
        """Return the standard variables that lead a client here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    def start(self) -> None:
        """Serve; returns once it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        address = ("--port", f"127.0.0.1:{self.port}", "--region", REGION)
        log = self.folder.parent / f"{self.folder.name}.log"
        self._process = start(
            [str(s3_binary()), *address, "--quiet", "--keep-alive", "posix", str(self.folder)],
            log,
            environ={"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
        )
        give_up_s = time.monotonic() + START_S_MAX
        while not self._listens():
            died = self._process.poll()
            assert died is None, f"the S3 server ended with {died}: see {log}"
            assert time.monotonic() < give_up_s, f"no S3 server after {START_S_MAX} s: {log}"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as kill -9 does; what it acknowledged lies in the folder."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Let it take connections and answer nothing, until `resume`."""
        assert self._process is not None
        pause(self._process)

    def resume(self) -> None:
        assert self._process is not None
        resume(self._process)

    def create_bucket(self, name: str) -> None:
        """Create a bucket: to this server, a folder."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)

    def stored(self, bucket: str, key: str) -> Path:
        """Return where an object's bytes lie, for tests that spoil them."""
        return self.folder / bucket / key

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextlib.contextmanager
def running_s3(folder: Path, *buckets: str) -> Iterator[S3Server]:
    """Yield a server with these buckets; it ends with the block, the folder stays."""
    server = S3Server(folder)
    for bucket in buckets:
        server.create_bucket(bucket)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def why_not() -> str | None:
    """Return why there is no S3 server of our own, one that a test may kill."""
    return why_no_s3()


def named_url() -> str | None:
    """Return the real bucket that the environment names."""
    return os.environ.get(URL_VARIABLE)
