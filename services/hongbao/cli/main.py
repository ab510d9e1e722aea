"""Is the `hongbao` command: one area per module, errors rendered once, here."""

import sys

import typer

from hongbao.cli import campaign, keys, mint, role, switch, up, verify
from hongbao.cli.load import load
from hongbao.cli.open import open_packets
from hongbao.cli.report import report
from hongbao.cli.shake import shake
from hongbao.domain.errors import HongbaoError, Rejected, Transient

EXIT_FAILED = 1
EXIT_REJECTED = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h

app = typer.Typer(
    name="hongbao",
    help="Red-packet rain: mint, verify, deploy, shake, open, settle, audit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(campaign.app, name="campaign")
app.command("mint")(mint.mint)
app.command("verify")(verify.verify)
app.add_typer(keys.app, name="keys")
app.command("up")(up.up)
app.command("shake")(shake)
app.command("open")(open_packets)
app.command("load")(load)
app.command("report")(report)
app.add_typer(switch.app, name="switch")
app.command("role", hidden=True)(role.role)


def main() -> None:
    """Run the command line; exit 2 for wrong input, 75 for "try again", 1 for all else."""
    try:
        app()
    except HongbaoError as error:
        where = getattr(error, "field", "")
        typer.echo(f"error: {where + ': ' if where else ''}{error}", err=True)
        if isinstance(error, Rejected):
            sys.exit(EXIT_REJECTED)
        sys.exit(EXIT_TRY_AGAIN if isinstance(error, Transient) else EXIT_FAILED)


if __name__ == "__main__":
    main()
