"""Facts about ports that a test server keeps while it is down: the kernel lends them to nobody."""

from pathlib import Path

from tests import postgres
from tests.servers import s3, started


def test_no_server_that_restarts_has_a_port_that_the_kernel_lends(tmp_path: Path) -> None:
    lends = range(*map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()))
    assert lends.start >= started.PORTS.stop
    ports = [s3.S3Server(tmp_path).port, postgres.Cluster(tmp_path, None).port]
    assert not [port for port in ports if port in lends]


def test_no_port_is_given_twice() -> None:
    ports = [started.free_port() for _ in range(500)]
    assert len(set(ports)) == len(ports)
