"""Is `hongbao switch`: list, set, clear and follow the manual degradations of a run.

Exit codes: 0 done, 2 wrong switch, value or usage, 75 set but not yet effective everywhere.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hongbao.adapters.clock import SystemClock
from hongbao.api.switches import (
    CATALOGUE,
    TTL_S_MAX,
    Setting,
    SwitchSpec,
    catalogue_page,
    check_text,
    find_switch,
    parse_value,
    show_value,
)
from hongbao.cli import switch_state
from hongbao.shards.ports import Coordination

RUN_DIR = Path("out/run")

app = typer.Typer(
    name="switch",
    help="Degrade by hand, in the catalogue's order, and see where it is effective.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Opener = Callable[[Path], AbstractAsyncContextManager[Any]]

Run = Annotated[Path, typer.Option("--run", metavar="DIR", help="The run's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="SWITCH", help="A name of `hongbao switch list`.")]
By = Annotated[str, typer.Option("--by", help="Who does it.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for those who look later.")]
WaitS = Annotated[
    float,
    typer.Option("--wait-s", min=0, max=600, help="Wait until it is effective everywhere."),
]


@app.command("list")
def list_switches(as_json: AsJson = False) -> None:
    """Show the catalogue in the order in which to pull the switches.

    Examples:

        hongbao switch list

        hongbao switch list --json | jq -r '.[].switch'
    """
    if as_json:
        _print_json([_catalogue_row(spec) for spec in CATALOGUE])
        return
    table = Table("order")
    table.add_column("switch", no_wrap=True)
    for column in ("value", "default", "role", "effect"):
        table.add_column(column)
    for rank, spec in enumerate(CATALOGUE, 1):
        table.add_row(
            str(rank), spec.name, spec.allowed, show_value(spec.default), spec.role, spec.effect
        )
    Console().print(table)


@app.command("set")
def set_switch(
    context: typer.Context,
    name: Name,
    value: Annotated[str, typer.Argument(help="on, off or a number; see `hongbao switch list`.")],
    by: By,
    why: Why,
    ttl_s: Annotated[
        float | None,
        typer.Option("--ttl-s", min=1, max=TTL_S_MAX, help="Fall back to the default after this."),
    ] = None,
    wait_s: WaitS = 0,
    run: Run = RUN_DIR,
    as_json: AsJson = False,
) -> None:
    """Set a switch, for good or for a time.

    Examples:

        hongbao switch set issue_speed 0.5 --by wang --why 'redeem is at 90 %' --ttl-s 600

        hongbao switch set exposure_only on --by wang --why 'bank is down' --wait-s 5
    """
    spec = find_switch(name)
    now_ms = SystemClock().wall_ms()
    setting = Setting(
        parse_value(spec, value),
        check_text("by", by),
        check_text("why", why),
        now_ms,
        None if ttl_s is None else now_ms + int(ttl_s * 1000),
    )
    _write(context, run, spec, setting, wait_s, as_json)


@app.command()
def clear(
    context: typer.Context,
    name: Name,
    by: By,
    why: Why,
    wait_s: WaitS = 0,
    run: Run = RUN_DIR,
    as_json: AsJson = False,
) -> None:
    """Set a switch back to its default.

    Examples:

        hongbao switch clear issue_speed --by wang --why 'load is back to normal'
    """
    spec = find_switch(name)
    now_ms = SystemClock().wall_ms()
    setting = Setting(spec.default, check_text("by", by), check_text("why", why), now_ms)
    _write(context, run, spec, setting, wait_s, as_json)


@app.command()
def status(context: typer.Context, run: Run = RUN_DIR, as_json: AsJson = False) -> None:
    """Show what every switch is, who set it, when and why, and which processes obey.

    Examples:

        hongbao switch status

        hongbao switch status --json | jq '.[] | select(.waiting != [])'
    """

    async def observe(coordination: Coordination) -> list[switch_state.SwitchState]:
        return await switch_state.observe_switches(coordination, SystemClock().wall_ms())

    states = _with_coordination(context, run, observe)
    if as_json:
        _print_json([state.to_json() for state in states])
        return
    table = Table("switch", "value", "by", "why", "set at", "until", "effective on", "waiting for")
    for state in states:
        table.add_row(*_status_row(state))
    Console().print(table)


@app.command()
def docs() -> None:
    """Print docs/switches.md, made from the catalogue."""
    typer.echo(catalogue_page(), nl=False)


def _write(
    context: typer.Context,
    run: Path,
    spec: SwitchSpec,
    setting: Setting,
    wait_s: float,
    as_json: bool,
) -> None:
    async def write(coordination: Coordination) -> tuple[int, list[str] | None]:
        revision = await switch_state.write_setting(coordination, spec, setting)
        if not wait_s:
            return revision, None
        return revision, await switch_state.wait_effective(coordination, spec, revision, wait_s)

    revision, effective_on = _with_coordination(context, run, write)
    if as_json:
        _print_json(
            {
                "switch": spec.name,
                "value": setting.value,
                "expires_at_ms": setting.expires_at_ms,
                "revision": revision,
                "effective_on": effective_on,
            }
        )
        return
    until = f" until {_moment(setting.expires_at_ms)}" if setting.expires_at_ms else ""
    where = "" if effective_on is None else f", effective on {len(effective_on)} processes"
    if effective_on == []:
        where = f"; no {spec.role} process lives: it holds as soon as one starts"
    typer.echo(f"{spec.name} is {show_value(setting.value)}{until}{where}")


def _with_coordination(context: typer.Context, run: Path, work: Callable[..., Any]) -> Any:
    """Run `work` on the run's Coordination; tests hand another opener in as the context's obj."""
    opener: Opener = context.obj or _open_stores

    async def open_and_work() -> Any:
        async with opener(run) as stores:
            return await work(stores.coordination)

    return asyncio.run(open_and_work())


def _open_stores(run: Path) -> AbstractAsyncContextManager[Any]:
    # Imported late: `switch list` and `--help` should not wait for stores and gRPC.
    from hongbao.cli import stores

    return stores.open_stores(run)


def _status_row(state: switch_state.SwitchState) -> tuple[str, ...]:
    value = show_value(state.value)
    shown = value if state.is_default else f"[bold yellow]{value}[/]"
    setting = state.setting
    if setting is None:
        return (state.spec.name, shown, "", "", "", "", "", "")
    total = len(state.acked) + len(state.waiting)
    return (
        state.spec.name,
        shown,
        escape(setting.by),
        escape(setting.why),
        _moment(setting.set_at_ms),
        _moment(setting.expires_at_ms) if setting.expires_at_ms else "",
        f"{len(state.acked)}/{total} {state.spec.role}",
        ", ".join(state.waiting),
    )


def _catalogue_row(spec: SwitchSpec) -> dict[str, Any]:
    return {
        "switch": spec.name,
        "type": spec.kind.__name__,
        "allowed": spec.allowed,
        "default": spec.default,
        "role": spec.role,
        "effect": spec.effect,
    }


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False))
