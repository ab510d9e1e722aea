"""Facts about how the flows of seed 000 are kept apart, and what travels in a ticket."""

import ast
from pathlib import Path

import pytest
from hongbao.cipher.decipher import Decipherer
from hongbao.domain.ids import CampaignId
from hongbao.domain.manifest import PacketIndex, scheme_prefix
from hongbao.domain.ticket import FILE_RECORDS_AT, RECORD_BYTES, TICKET_BYTES

from tests.minted import tiny_campaign

SOURCES = Path(__file__).resolve().parents[2] / "services/hongbao"


def imports_of(folder: str) -> set[str]:
    """Return every module of ours that a folder imports, directly."""
    found: set[str] = set()
    for path in (SOURCES / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("hongbao.")}


@pytest.mark.parametrize("flow", ["access", "redeem", "shards"])
@pytest.mark.parametrize("money", ["settle", "audit", "adapters", "report"])
def test_grabbing_and_opening_know_nothing_of_the_flow_of_funds(flow: str, money: str) -> None:
    """R1, R28: three modules are the critical path; settlement only reads the log (R9)."""
    assert not [name for name in imports_of(flow) if name.startswith(f"hongbao.{money}")]


def test_settlement_reads_the_log_and_is_called_by_nobody() -> None:
    """R9: nothing is enqueued for it, so nothing can be acknowledged and then not queued."""
    callers = [
        folder
        for folder in ("access", "redeem", "shards", "transport", "client")
        if any(name.startswith("hongbao.settle") for name in imports_of(folder))
    ]
    assert callers == []
    assert "hongbao.shards.replay" in imports_of("settle")


def test_a_ticket_carries_a_batch_number_and_the_batch_table_the_rest(tmp_path: Path) -> None:
    """R47, R48: sponsor, kind and resource are looked up by batch, 16 bytes hold the ids."""
    tiny = tiny_campaign(tmp_path)
    file = tiny.manifest.files[0]
    data = (tiny.folder / file.name).read_bytes()
    record = data[FILE_RECORDS_AT : FILE_RECORDS_AT + RECORD_BYTES]
    opened = Decipherer(tiny.keyring.ticket_masters, tiny.plan.campaign).open_record(record)
    assert opened is not None
    found = PacketIndex([tiny.manifest]).locate(opened.batch, opened.serial)
    assert found is not None
    assert (found.batch.sponsor, found.batch.slot) == (opened.sponsor, opened.slot)
    assert found.batch.kind in ("image", "video", "logo")
    assert found.batch.resource.encode() not in data
    assert TICKET_BYTES == 16


def test_the_next_event_reuses_everything_and_shares_nothing(tmp_path: Path) -> None:
    """R56: another event is another campaign id; even under the same masters nothing opens."""
    tiny = tiny_campaign(tmp_path)
    file = tiny.manifest.files[0]
    data = (tiny.folder / file.name).read_bytes()
    record = data[FILE_RECORDS_AT : FILE_RECORDS_AT + RECORD_BYTES]
    next_event = CampaignId("next-event")
    assert Decipherer(tiny.keyring.ticket_masters, next_event).open_record(record) is None
    prefixes = {scheme_prefix(event, 1) for event in (tiny.plan.campaign, next_event)}
    assert len(prefixes) == 2
