"""Is the `hongbao` command: one typer application per area, errors rendered once, here."""

import sys

import typer

from hongbao.cli import audit, campaign, fund, keys, load, mint, play, report, role, switch, up, verify
from hongbao.domain.errors import HongbaoError, NotFound, Rejected, Transient

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


def main() -> None:
    """Run the command line; exit 2 for wrong input, 75 for "try again", 1 for all else."""
    try:
        app()
    except HongbaoError as error:
        where = getattr(error, "field", "")
        typer.echo(f"error: {where + ': ' if where else ''}{error}", err=True)
        if isinstance(error, Rejected | NotFound):
            sys.exit(EXIT_REJECTED)
        sys.exit(EXIT_TRY_AGAIN if isinstance(error, Transient) else EXIT_FAILED)


if __name__ == "__main__":
    main()
