"""Is the application that Envoy embeds: `hongbao.cli.embedded:app`, for access and redeem.

Which process it is comes from the environment, because Envoy starts it, not we.
"""

import os
from pathlib import Path

from hongbao.cli.process import Process, find_process, set_up_logs
from hongbao.cli.role_access import start_access
from hongbao.cli.role_redeem import start_redeem
from hongbao.cli.serving import Serving
from hongbao.transport.asgi import App, make_app

RUN_VARIABLE = "HONGBAO_RUN"
PROCESS_VARIABLE = "HONGBAO_PROCESS"
ROLES = {"access": start_access, "redeem": start_redeem}


def serving_of(process: Process) -> Serving:
    """Return what serves this process's role."""
    return Serving(process, ROLES[process.spec.role])


def make() -> App:
    """Build the application from the environment."""
    process = find_process(Path(os.environ[RUN_VARIABLE]), os.environ[PROCESS_VARIABLE])
    set_up_logs(process.name)
    serving = serving_of(process)
    return make_app(serving.dispatcher, serving.start, serving.stop)


def __getattr__(name: str) -> App:
    """Build `app` when Envoy asks for it, so that importing this module has no effect."""
    if name == "app":
        return make()
    raise AttributeError(name)
