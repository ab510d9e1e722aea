"""Owns the record of plans as canonical JSON: what a later re-plan must number behind."""

import json
from dataclasses import asdict
from typing import Any

from hongbao.domain.errors import Corrupt
from hongbao.domain.plan import Batch, FilePlan, MintPlan
from hongbao.domain.script import PlanRecord


def write_record(record: PlanRecord) -> bytes:
    """Return the record as JSON; the same record gives the same bytes."""
    text = json.dumps(asdict(record), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode() + b"\n"


def read_record(document: bytes) -> PlanRecord:
    """Read a record back. Raises Corrupt when it is none."""
    try:
        fields = json.loads(document)
        return PlanRecord(
            campaign=str(fields["campaign"]),
            sponsors=tuple(str(sponsor) for sponsor in fields["sponsors"]),
            plans=tuple(_read_plan(plan) for plan in fields["plans"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"this is no record of plans: {error!r}") from error


def _read_plan(fields: dict[str, Any]) -> MintPlan:
    batches = tuple(
        Batch(**{**batch, "key_ids": tuple(batch["key_ids"])}) for batch in fields["batches"]
    )
    files = tuple(FilePlan(**file) for file in fields["files"])
    return MintPlan(**{**fields, "batches": batches, "files": files})
