"""A process of a run can read its own role's key file and no other, by what it is handed (R44)."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hongbao.cipher.keyring import (
    Keyring,
    Role,
    new_keyring,
    read_keyring,
    read_role_keyring,
    role_passphrase,
    write_role_keyring,
)
from hongbao.cli import prepare
from hongbao.cli.child_environ import (
    KEY_FILES,
    child_environ,
    objects_environ,
    take_webhook_headers,
)
from hongbao.cli.run_dir import ProcessSpec, RunDir
from hongbao.cli.settings import UpSettings
from hongbao.cli.supervisor import Supervisor
from hongbao.domain.errors import Rejected
from hongbao.domain.ids import CampaignId, KeyId

from tests.waiting import LIMIT_S

OPERATORS = "an operator's long passphrase"
ROLES: tuple[Role, ...] = ("mint", "redeem", "access")
OUTSIDE = {
    "PATH": "/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONPATH": "/src",
    "HONGBAO_LOG": "DEBUG",
    "HONGBAO_KEYS_PASSPHRASE": OPERATORS,
    "HONGBAO_BINDING_KEY": "of another process",
    "PGPASSWORD": "the ledger's",
    "HONGBAO_WEBHOOK_AUTHORIZATION": "Bearer sesame",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "LD_PRELOAD": "/lib/anything.so",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Give a run whose key files are there, made with the operator's passphrase."""
    monkeypatch.setenv(prepare.PASSPHRASE_VARIABLE, OPERATORS)
    run = RunDir(tmp_path)
    run.keys.mkdir(parents=True)
    for role in ROLES:
        write_role_keyring(run.keys / f"{role}.keys", keyring(), role, OPERATORS)
    return run


def keyring() -> Keyring:
    drawn = iter(range(1, 100))
    return new_keyring(CampaignId("rain"), [KeyId(1)], lambda count: bytes([next(drawn)]) * count)


@pytest.mark.parametrize("role", ROLES)
def test_the_passphrase_of_a_role_opens_its_own_key_file_alone(run: RunDir, role: Role) -> None:
    secret = role_passphrase(OPERATORS, role)
    for other in ROLES:
        path = run.keys / f"{other}.keys"
        if other == role:
            assert read_keyring(path, secret) == keyring().for_role(role)
        else:
            with pytest.raises(Rejected, match="wrong passphrase"):
                read_keyring(path, secret)
        with pytest.raises(Rejected, match="wrong passphrase"):
            read_keyring(path, OPERATORS)


def test_the_operator_reads_every_key_file_whatever_its_name(run: RunDir) -> None:
    for role in ROLES:
        path = (run.keys / f"{role}.keys").rename(run.keys / f"copy-{role}")
        assert read_role_keyring(path, OPERATORS) == keyring().for_role(role)


def test_a_key_file_that_was_given_another_role_is_refused(run: RunDir) -> None:
    path = run.keys / "access.keys"
    path.write_bytes(path.read_bytes().replace(b'"role":"access"', b'"role":"redeem"'))
    with pytest.raises(Rejected, match="wrong passphrase, or the file was changed"):
        read_role_keyring(path, OPERATORS)


@pytest.mark.parametrize("role", ["store", "access", "redeem", "settle"])
def test_a_process_is_handed_its_own_secret_and_no_other(run: RunDir, role: str) -> None:
    environ = child_environ(OUTSIDE, run, role)
    wanted = {name: OUTSIDE[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH", "HONGBAO_LOG")}
    if role == "settle":
        settles = ("PGPASSWORD", "HONGBAO_WEBHOOK_AUTHORIZATION")
        wanted |= {name: OUTSIDE[name] for name in settles}
    if role != "store":
        wanted["HONGBAO_ROLE_PASSPHRASE"] = role_passphrase(OPERATORS, KEY_FILES[role])
    assert environ == wanted


@pytest.mark.parametrize("role", ["store", "access", "redeem", "settle"])
def test_only_who_reads_objects_in_s3_is_handed_the_credentials_for_it(role: str) -> None:
    aws = {name: value for name, value in OUTSIDE.items() if name.startswith("AWS_")}
    assert aws
    here = UpSettings(campaign=Path("campaign.yaml"))
    assert objects_environ(OUTSIDE, here, role) == {}
    there = here.model_copy(update={"objects_url": "s3://rain/evening"})
    assert objects_environ(OUTSIDE, there, role) == ({} if role == "store" else aws)


def test_credentials_of_the_payment_backend_are_taken_out_of_the_environment() -> None:
    environ = {"HONGBAO_WEBHOOK_AUTHORIZATION": "Bearer sesame\n", "LANG": "C"}
    assert take_webhook_headers(environ) == {"Authorization": "Bearer sesame"}
    assert environ == {"LANG": "C"}
    assert take_webhook_headers(environ) == {}


@pytest.mark.parametrize("value", ["Bearer a\nHost: b", "Bearer ü", "a\tb"])
def test_credentials_that_are_no_header_are_refused_and_not_shown(value: str) -> None:
    with pytest.raises(Rejected, match="HONGBAO_WEBHOOK_AUTHORIZATION") as caught:
        take_webhook_headers({"HONGBAO_WEBHOOK_AUTHORIZATION": value})
    assert value not in str(caught.value)


async def test_the_operators_passphrase_does_not_reach_a_process(run: RunDir) -> None:
    async def added(_spec: ProcessSpec) -> Mapping[str, str]:
        return {"LD_PRELOAD": ""}

    async def told(_spec: ProcessSpec) -> bool:
        return (run.path / "environ").exists()

    async def nothing(_spec: ProcessSpec) -> None:
        return None

    tell = (
        "import os, pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "(folder / 'new').write_text('\\n'.join(f'{k}={v}' for k, v in os.environ.items()))\n"
        "(folder / 'new').rename(folder / 'environ')\n"
        "time.sleep(600)\n"
    )
    supervisor = Supervisor(
        run,
        environ=added,
        ready=told,
        drain=nothing,
        monotonic_s=time.monotonic,
        command=lambda run, _spec: [sys.executable, "-c", tell, str(run.path)],
    )
    spec = ProcessSpec("access-a-0", "access", "a")
    async with asyncio.timeout(LIMIT_S):
        await supervisor.start([spec])
        await supervisor.drain([spec])
    environ = dict(line.split("=", 1) for line in (run.path / "environ").read_text().splitlines())
    assert OPERATORS not in environ.values()
    assert environ["HONGBAO_ROLE_PASSPHRASE"] == role_passphrase(OPERATORS, "access")
    assert environ["LD_PRELOAD"] == ""


def test_a_role_reads_its_keys_by_what_it_was_handed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(prepare.PASSPHRASE_VARIABLE)
    name = prepare.ROLE_PASSPHRASE_VARIABLE
    monkeypatch.setenv(name, role_passphrase(OPERATORS, "access"))
    assert prepare.role_keyring(run, "access") == keyring().for_role("access")
    assert name not in os.environ
    monkeypatch.setenv(name, role_passphrase(OPERATORS, "access"))
    with pytest.raises(Rejected, match="wrong passphrase"):
        prepare.role_keyring(run, "redeem")


def test_a_passphrase_made_for_a_rehearsal_is_its_owners_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(prepare.PASSPHRASE_VARIABLE, raising=False)
    made = prepare.passphrase(RunDir(tmp_path))
    path = RunDir(tmp_path).keys / "passphrase"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert prepare.passphrase(RunDir(tmp_path)) == made
