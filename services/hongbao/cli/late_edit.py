"""Owns what a run remembers of a late edit: the edited campaign's files and its record of plans.

One file, written whole, once the edit is in force. From then on the run plays this campaign and
not the one of its settings, also when it is started again (R35, R37).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hongbao.cli.campaign_input import require_campaign
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.domain.campaign import Campaign
from hongbao.domain.campaign_file import read_campaign
from hongbao.domain.errors import Corrupt, Rejected
from hongbao.domain.plan_file import read_record, write_record
from hongbao.domain.script import PlanRecord, plan_campaign, record_plans

NAME: Final = "late-edit.json"


@dataclass(frozen=True)
class LateEdit:
    """Is the campaign that a run plays since it was edited, with all plans so far."""

    campaign: Campaign
    record: PlanRecord


def run_campaign(run: RunDir, settings: UpSettings) -> Campaign:
    """Return the campaign that a run plays. Raises Rejected, or Corrupt for a broken edit."""
    edit = read_late_edit(run)
    return require_campaign(settings.campaign) if edit is None else edit.campaign


def read_late_edit(run: RunDir) -> LateEdit | None:
    """Return the edit that is in force; None when the run plays what its settings name."""
    path = run.path / NAME
    try:
        shape = json.loads(path.read_bytes())
        files = {str(name): _to_bytes(text) for name, text in shape["files"].items()}
        entry, plans = str(shape["entry"]), _to_bytes(shape["plans"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{path} is no record of a late edit: {error!r}") from error
    campaign, problems = read_campaign(files, entry=entry)
    if campaign is None:
        raise Corrupt(f"{path}: {problems[0]}")
    return LateEdit(campaign, read_record(plans))


def write_late_edit(
    run: RunDir, entry: str, files: Mapping[str, bytes], record: PlanRecord
) -> None:
    """Remember an edit, whole or not at all; safe to repeat."""
    shape = {
        "entry": entry,
        "files": {name: _to_text(data) for name, data in files.items()},
        "plans": _to_text(write_record(record)),
    }
    partial = run.path / f".{NAME}.partial"
    with partial.open("w") as file:
        json.dump(shape, file, sort_keys=True, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, run.path / NAME)


def played_record(run: RunDir, campaign: Campaign) -> PlanRecord:
    """Return the plans that a run knows without being told. Raises Rejected for another edit."""
    edit = read_late_edit(run)
    if edit is None:  # totals and slots do not depend on how many shards there are
        return record_plans(campaign, plan_campaign(campaign, ticket_shards=1, claims_shards=1))
    if edit.campaign != campaign:
        raise Rejected("the run plays an edited campaign: name that one", field="FILE")
    return edit.record


def check_record(run: RunDir, played: Campaign, campaign: Campaign, record: PlanRecord) -> None:
    """Raise Rejected unless a record of plans is the campaign's and goes on behind the run's."""
    if {played.campaign, record.campaign} != {campaign.campaign}:
        raise Rejected(
            f"the run plays {played.campaign}, FILE is {campaign.campaign}, "
            f"the plans are of {record.campaign}",
            field="campaign",
        )
    if record.sponsors != tuple(one.sponsor for one in campaign.sponsors):
        raise Rejected("the plans are of other sponsors than FILE", field="plans")
    edit = read_late_edit(run)
    for plan in edit.record.plans if edit else ():
        if record.find_plan(plan.scheme_number) != plan:
            raise Rejected(
                f"the record of plans lacks plan {plan.scheme_number} as this run plays it: "
                "plan the edit --after the run's newest record",
                field="plans",
            )


def _to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
