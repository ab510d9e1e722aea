"""Owns how campaigns, plans and problems look: tables for people, dictionaries for scripts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from hongbao.domain.campaign import Allocation, Campaign, Scheme
from hongbao.domain.money import format_yuan
from hongbao.domain.plan import MintPlan
from hongbao.domain.problem import Problem


def campaign_document(campaign: Campaign) -> dict[str, Any]:
    """Return the sums of a campaign, in fen, per scheme and sponsor, slot and kind."""
    return {
        "campaign": campaign.campaign,
        "title": campaign.title,
        "active_scheme": campaign.active_scheme,
        "budget_fen": campaign.budget_fen,
        "schemes": [
            {
                "scheme": scheme.scheme,
                "title": scheme.title,
                "packets": scheme.packets,
                "total_fen": scheme.total_fen,
                "sponsors": _sums(scheme, lambda one: one.sponsor),
                "slots": _sums(scheme, lambda one: str(one.slot)),
                "kinds": _sums(scheme, lambda one: one.kind),
            }
            for scheme in campaign.schemes
        ],
    }


def plan_document(plan: MintPlan) -> dict[str, Any]:
    """Return the numbers and sums of a plan."""
    return {
        "scheme": plan.scheme,
        "scheme_number": plan.scheme_number,
        "packets": plan.packets,
        "total_fen": plan.total_fen,
        "serial_base": plan.serial_base,
        "batches": len(plan.batches),
        "keys": sum(len(batch.key_ids) for batch in plan.batches),
        "files": len(plan.files),
        "slots": [
            {
                "slot": slot,
                "packets": sum(batch.count for batch in plan.slot_batches(slot)),
                "total_fen": sum(batch.total_fen for batch in plan.slot_batches(slot)),
                "files": len(plan.slot_files(slot)),
                "chunks": plan.slot_chunks(slot),
                "keys": sum(len(batch.key_ids) for batch in plan.slot_batches(slot)),
            }
            for slot in sorted({batch.slot for batch in plan.batches})
        ],
    }


def problem_documents(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [asdict(problem) for problem in problems]


def show_campaign(console: Console, campaign: Campaign) -> None:
    """Print the sums of every scheme side by side."""
    console.print(
        f"[bold]{campaign.campaign}[/] {campaign.title}: {len(campaign.sponsors)} sponsors, "
        f"{len(campaign.slots)} slots, budget {format_yuan(campaign.budget_fen)} yuan"
    )
    names = {sponsor.sponsor: sponsor.name for sponsor in campaign.sponsors}
    slots = {str(slot.slot): slot.name for slot in campaign.slots}
    for title, key, labels in (
        ("sponsor", lambda one: one.sponsor, names),
        ("slot", lambda one: str(one.slot), slots),
        ("kind", lambda one: one.kind, {}),
    ):
        console.print(_sums_table(campaign, title, key, labels))


def show_plans(console: Console, plans: Sequence[MintPlan]) -> None:
    """Print each plan's numbers, slot by slot."""
    for plan in plans:
        document = plan_document(plan)
        last = plan.serial_base + plan.packets - 1
        table = Table(
            title=f"plan {plan.scheme_number}: {plan.scheme}, serials {plan.serial_base}-{last}",
            title_justify="left",
        )
        for column in ("slot", "packets", "yuan", "files", "chunks", "keys"):
            table.add_column(column, justify="right")
        for slot in document["slots"]:
            table.add_row(
                str(slot["slot"]),
                f"{slot['packets']:,}",
                format_yuan(slot["total_fen"]),
                str(slot["files"]),
                str(slot["chunks"]),
                str(slot["keys"]),
            )
        table.add_section()
        chunks = sum(slot["chunks"] for slot in document["slots"])
        sums = f"{plan.packets:,}", format_yuan(plan.total_fen), str(document["files"])
        table.add_row("all", *sums, str(chunks), str(document["keys"]))
        console.print(table)


def show_problems(console: Console, problems: Sequence[Problem]) -> None:
    """Print one problem a line, as compilers do, so that editors can jump to it."""
    for problem in problems:
        console.print(str(problem), style="red", markup=False, highlight=False, soft_wrap=True)
    count = len(problems)
    console.print(f"{count} problem{'s' if count > 1 else ''}", style="bold red", highlight=False)


def _sums(scheme: Scheme, key: Callable[[Allocation], str]) -> dict[str, dict[str, int]]:
    packets: Counter[str] = Counter()
    total_fen: Counter[str] = Counter()
    for one in scheme.allocations:
        packets[key(one)] += one.count
        total_fen[key(one)] += one.total_fen
    return {name: {"packets": packets[name], "total_fen": total_fen[name]} for name in packets}


def _sums_table(
    campaign: Campaign, title: str, key: Callable[[Allocation], str], labels: dict[str, str]
) -> Table:
    table = Table()
    table.add_column(f"by {title}")
    by_scheme = [_sums(scheme, key) for scheme in campaign.schemes]
    for scheme in campaign.schemes:
        table.add_column(f"{scheme.scheme}\npackets", justify="right")
        table.add_column("\nyuan", justify="right")
    used = {name for sums in by_scheme for name in sums}
    for name in [name for name in labels if name in used] or sorted(used):
        found = [sums.get(name, {"packets": 0, "total_fen": 0}) for sums in by_scheme]
        texts = [(f"{one['packets']:,}", format_yuan(one["total_fen"])) for one in found]
        label = f"{name} {labels[name]}" if name in labels else name
        table.add_row(label, *(text for pair in texts for text in pair))
    table.add_section()
    totals = [(f"{s.packets:,}", format_yuan(s.total_fen)) for s in campaign.schemes]
    table.add_row("all", *(text for pair in totals for text in pair))
    return table
