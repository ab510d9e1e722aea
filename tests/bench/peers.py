"""Peers that run beside ours on the server core: nginx, and Redis and TiKV behind grpcio."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.pinned import (
    LOAD_CORE,
    SERVER_CORE,
    Unavailable,
    require_program,
    running,
    wait_listening,
)
from tests.servers.started import free_port

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} http2;
    http2_max_concurrent_streams 512;
    location / {{ default_type application/octet-stream; return 200 "{body}"; }}
  }}
}}
"""
FIXED_BODY_BYTES = 80  # about a shake's reply with a token


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """Serve a fixed answer; gives the port."""
    program = require_program("nginx")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, body="x" * FIXED_BODY_BYTES))
    log = folder / "nginx.log"
    with running([program, "-c", str(config)], core=SERVER_CORE, log=log) as process:
        wait_listening(port, process, log)
        yield port


@contextmanager
def redis_grab(folder: Path, packets: int) -> Iterator[tuple[int, list[int]]]:
    """Serve opens by Redis behind grpcio; gives the port and the pids."""
    program = require_program("redis-server")
    redis_port, port = free_port(), free_port()
    data = folder / "redis"
    data.mkdir(exist_ok=True)
    command = [program, "--port", str(redis_port), "--dir", str(data), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always"]
    command += ["--auto-aof-rewrite-percentage", "0"]
    log, front_log = folder / "redis.log", folder / "peer_open.log"
    with running(command, core=SERVER_CORE, log=log) as redis:
        wait_listening(redis_port, redis, log)
        front = [sys.executable, "-m", "tests.bench.peer_open"]
        front += [str(redis_port), str(port), str(packets)]
        with running(front, core=SERVER_CORE, log=front_log) as server:
            wait_listening(port, server, front_log)
            yield port, [redis.pid, server.pid]


@contextmanager
def cas_service(folder: Path, pd: str) -> Iterator[int]:
    """Serve opens by one compare-and-swap on TiKV each, behind grpcio; gives the port."""
    port, log = free_port(), folder / "peer_cas.log"
    command = [sys.executable, "-m", "tests.bench.peer_cas", "serve", pd, str(port)]
    with running(command, core=SERVER_CORE, log=log) as server:
        wait_listening(port, server, log)
        yield port


def h2load(port: int, path: str, body: Path, *, seconds: int, headers: dict[str, str]) -> float:
    """Return the answers per second that h2load counts: 8 connections, 16 calls on each."""
    command = ["taskset", "-c", str(LOAD_CORE), require_program("h2load")]
    command += ["-c", "8", "-m", "16", "-D", str(seconds), "--warm-up-time", "1"]
    command += ["-d", str(body)]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    command.append(f"http://127.0.0.1:{port}{path}")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", ended.stdout)
    if found is None:
        raise Unavailable(f"h2load failed: {ended.stderr[-200:]} {ended.stdout[-400:]}")
    return float(found[1])
