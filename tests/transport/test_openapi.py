"""The OpenAPI document and the gateway agree."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from hongbao.transport import descriptors, openapi

from tests.transport.gateway import Gateway
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = openapi.build_openapi(descriptors.committed_descriptors())


def test_the_committed_document_is_fresh() -> None:
    tool = ROOT / "tools" / "generate_openapi.py"
    subprocess.run([sys.executable, str(tool), "--check"], check=True)


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    for kind, name in re.findall(r"#/components/(\w+)/(\w+)", text):
        assert name in DOCUMENT["components"][kind]


def test_every_operation_says_what_it_does_and_how_it_fails() -> None:
    for path in DOCUMENT["paths"].values():
        assert path["post"]["summary"]
        assert {"200", "400", "401", "429", "503"} <= set(path["post"]["responses"])


def test_services_of_the_inside_are_not_told() -> None:
    assert set(DOCUMENT["components"]["schemas"]) >= {"ShakeReply", "OpenReply", "Error"}
    assert not {"WriteRequest", "SubmitRequest"} & set(DOCUMENT["components"]["schemas"])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_real_answer_has_the_documented_fields_and_types(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = (await client.post("/v1/campaigns/new-year/sessions", json={"jwt": "x"})).json()
        error = (await client.post("/v1/campaigns/rejected:shake", json={})).json()
    schemas = DOCUMENT["components"]["schemas"]
    documented = schemas["OpenSessionReply"]["properties"]
    assert set(answer) <= set(documented)
    assert documented["expiresAtS"]["type"] == "string"
    assert isinstance(answer["expiresAtS"], str)
    assert set(error) == set(schemas["Error"]["required"])
