"""Is the `hongbao` command: one area per module, errors rendered once, here."""

import importlib
import sys
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from hongbao.domain.errors import HongbaoError, Rejected, Transient

EXIT_FAILED: Final = 1
EXIT_REJECTED: Final = 2
EXIT_TRY_AGAIN: Final = 75  # EX_TEMPFAIL of sysexits.h

COMMANDS: Final = {
    "campaign": "campaign:app",
    "keys": "keys:app",
    "mint": "mint:mint",
    "verify": "verify:verify",
    "up": "up:up",
    "shake": "shake:shake",
    "open": "open:open_packets",
    "load": "load:load",
    "switch": "switch:app",
    "audit": "audit:audit",
    "fund": "fund:app",
    "quarantine": "quarantine:app",
    "report": "report:report",
    "demo": "demo:demo",
    "role": "role:role",
}
HIDDEN: Final = ("role",)


class LazyGroup(TyperGroup):
    """Imports a command's module when it is asked for: every process of a run starts with this."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order in which a campaign needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one command; None when there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        found = getattr(importlib.import_module(f"hongbao.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(
                pretty_exceptions_enable=False, rich_markup_mode="markdown", add_completion=False
            )
            single.command(cmd_name, hidden=cmd_name in HIDDEN)(found)
            found = single
        command = get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="hongbao",
    cls=LazyGroup,
    help="Red-packet rain: mint, verify, deploy, shake, open, settle, audit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def root() -> None:
    """Red-packet rain: mint, verify, deploy, shake, open, settle, audit."""


def main() -> None:
    """Run the command line; exit 2 for wrong input, 75 for "try again", 1 for all else."""
    try:
        app()
    except OSError as error:
        if sys.argv[1:2] == ["role"]:
            raise  # nobody sits there: the trace belongs into the process's log
        what = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {what}{error.strerror or error}", err=True)
        sys.exit(EXIT_FAILED)
    except HongbaoError as error:
        where = getattr(error, "field", "")
        typer.echo(f"error: {where + ': ' if where else ''}{error}", err=True)
        if isinstance(error, Rejected):
            sys.exit(EXIT_REJECTED)
        sys.exit(EXIT_TRY_AGAIN if isinstance(error, Transient) else EXIT_FAILED)


if __name__ == "__main__":
    main()
