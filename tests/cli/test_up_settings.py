"""Facts about the one settings file of `hongbao up`, and the processes that follow from it."""

import re
import socket
from pathlib import Path

import pytest
from hongbao.cli.fund import pay_in_run
from hongbao.cli.rain import prepare_run
from hongbao.cli.run_claim import claim_ledger
from hongbao.cli.run_dir import RunDir, access_pods, hold_ports, plan_processes
from hongbao.cli.settings import UpSettings, read_settings
from hongbao.domain.errors import NotFound, Rejected

from tests.processes.rainy import Plot, write_campaign


def write(folder: Path, text: str) -> Path:
    path = folder / "up.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_settings_file(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "campaign: my/campaign.yaml\n"))
    assert settings.campaign == tmp_path / "my/campaign.yaml"
    assert settings.run_dir.is_absolute()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("campaign: a.yaml\nzone: [a]\n", "zone: Extra inputs are not permitted"),
        ("zones: [a]\n", "campaign: Field required"),
        ("campaign: a.yaml\nzones: [a, a]\n", "each named once"),
        ("campaign: a.yaml\nzones: [A-1]\n", "'A-1' is not a zone name"),
        ("campaign: a.yaml\naccess_per_zone: 0\n", "access_per_zone"),
        ("campaign: a.yaml\nlease_ttl_s: 0.01\n", "lease_ttl_s"),
        ("campaign: a.yaml\ngateway_port: 70000\n", "gateway_port"),
        (
            "campaign: a.yaml\naccess_per_zone: 60\nzones: [a, b, c, d, e, f, g, h, i]\n"
            "gateway_port: 64997\n",
            "gateway_port: Value error, the last of 540 gateways would listen on port 65536",
        ),
        ("campaign: a.yaml\nledger_url: postgresql://h:x/n\n", "ledger_url: Value error, its port"),
        ("campaign: a.yaml\nledger_url: postgresql://h:5#1/n\n", "its port is no number"),
        ("campaign: a.yaml\nledger_url: postgresql://a:1,b:2/n\n", "its port is no number"),
        ("campaign: a.yaml\nledger_url: mysql://db/hongbao\n", "ledger_url"),
        ("campaign: a.yaml\nledger_url: sqlite:///here.db\n", "needs an absolute path"),
        ("campaign: a.yaml\nledger_url: postgresql://me:pw@db/hongbao\n", "hold no secrets"),
        ("campaign: a.yaml\ntikv: {pd: []}\n", "tikv.pd: Tuple should have at least 1 item"),
        ("campaign: a.yaml\ntikv: {pd: [pd]}\n", "tikv.pd.0: String should match"),
        ("campaign: a.yaml\ntikv: {pd: ['pd:1'], api: both}\n", "tikv.api"),
        ("campaign: a.yaml\ntikv: {pd: ['pd:1'], api: txn, ca: ca.pem}\n", "has no TLS"),
        ("campaign: a.yaml\netcd: {endpoints: ['e:1'], cert: c.pem}\n", "cert and key go together"),
        ("campaign: a.yaml\netcd: {endpoints: ['e:1'], ca: gone.pem}\n", "gone.pem: no such file"),
        ("campaign: a.yaml\netcd: {endpoints: ['e:1'], namespace: A/b}\n", "etcd.namespace"),
        ("campaign: a.yaml\nobjects_url: here/objects\n", "needs an absolute path"),
        ("campaign: a.yaml\nobjects_url: gs://bucket\n", "s3://bucket/prefix or a folder"),
        ("campaign: a.yaml\nobjects_url: s3://key:secret@bucket/a\n", "hold no secrets"),
        ("campaign: a.yaml\nobjects_endpoint: https://k:s@s3.example.org\n", "hold no secrets"),
        ("campaign: a.yaml\nobjects_endpoint: s3.example.org\n", "objects_endpoint"),
        ("- a\n", "must be a mapping"),
        ("campaign: [\n", ":2: not YAML"),
        ("", "the file is empty"),
        ("campaign: " + "[" * 3000, ":1: nested deeper than"),
        ("campaign: c\nzones: &a [a]\n", ":2: YAML anchors and aliases are not taken"),
        (
            "campaign: c\nlease_ttl_s: 2\nlease_ttl_s: 5\n",
            ":3: lease_ttl_s: the key is there twice",
        ),
        ("campaign: c\ntikv: {pd: ['p:1'], pd: ['q:1']}\n", ":2: tikv.pd: the key is there twice"),
        ("campaign: c\n? [a]\n: b\n", ":2: a key must be a single value"),
        ("campaign: c\nlease_ttl_s: " + "1" * 5000, ":2: lease_ttl_s: no value that can be read"),
        ("campaign: c\nzones: [2026-13-01]\n", ":2: zones.0: no value that can be read"),
        ('campaign: c\nrun_dir: "a\\0b"\n', ":2: run_dir: a NUL byte cannot be in it"),
        ('campaign: "a\\0b"\n', ":1: campaign: a NUL byte cannot be in it"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Rejected, match=r"up\.yaml") as refused:
        read_settings(write(tmp_path, text))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("field", "url", "belongs"),
    [
        ("webhook_url", "https://me:hush@pay.example/x", "HONGBAO_WEBHOOK_AUTHORIZATION"),
        ("webhook_url", "https://hush@pay.example/x", "HONGBAO_WEBHOOK_AUTHORIZATION"),
        ("ledger_url", "postgresql://me:hush@db/run", "PGPASSFILE or PGPASSWORD"),
        ("ledger_url", "postgresql://me:hu?sh@db/run", "PGPASSFILE or PGPASSWORD"),
        ("ledger_url", "postgresql://db/run#?password=hush", "PGPASSFILE or PGPASSWORD"),
        ("ledger_url", "postgresql://me:hu℀sh@db/run", "PGPASSFILE or PGPASSWORD"),
        ("ledger_url", "postgresql://db/run?password=hush", "PGPASSFILE or PGPASSWORD"),
        ("ledger_url", "postgresql://db/run?%70assword=hush", "PGPASSFILE or PGPASSWORD"),
        ("ledger_url", "postgresql://db/run?sslkey=k&sslpassword=hush", "PGPASSFILE or PGPASSWORD"),
    ],
)
def test_a_secret_in_an_address_is_refused_unrepeated_and_told_where_it_belongs(
    tmp_path: Path, field: str, url: str, belongs: str
) -> None:
    with pytest.raises(Rejected) as refused:
        read_settings(write(tmp_path, f"campaign: a.yaml\n{field}: '{url}'\n"))
    said = str(refused.value)
    assert f"{field}: " in said
    assert belongs in said
    assert not {"hush", "hu", "sh"} & set(re.findall(r"[a-z]+", said))


def test_addresses_without_a_secret_are_taken(tmp_path: Path) -> None:
    ledger = "postgresql://me@db:5432/run?sslmode=verify-full&passfile=/etc/pass"
    webhook = "https://pay.example/x@y?campaign=1"
    text = f"campaign: a.yaml\nledger_url: {ledger}\nwebhook_url: {webhook}\n"
    settings = read_settings(write(tmp_path, text))
    assert (settings.ledger_url, settings.webhook_url) == (ledger, webhook)


@pytest.mark.parametrize("data", [b"\xff", None])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "up.yaml"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(Rejected, match=r"up\.yaml.*(cannot be read|not UTF-8)"):
        read_settings(path)


def test_all_wrong_settings_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as refused:
        read_settings(write(tmp_path, "claims_shards: 0\nticket_shards: x\n"))
    assert len(str(refused.value).splitlines()) == 3


def test_certificates_are_found_from_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("a certificate")
    text = "campaign: c.yaml\ntikv: {pd: ['pd-0.pd:2379'], ca: ca.pem}\n"
    settings = read_settings(write(tmp_path, text))
    assert settings.tikv is not None
    assert settings.tikv.ca == tmp_path / "ca.pem"
    assert UpSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_store_process_runs_unless_nothing_is_embedded() -> None:
    tikv, etcd = {"pd": ["pd:2379"]}, {"endpoints": ["etcd:2379"]}
    for stores, wanted in (
        ({}, True),
        ({"tikv": tikv}, True),
        ({"tikv": tikv, "etcd": etcd}, False),
    ):
        settings = UpSettings.model_validate({"campaign": "c.yaml", **stores})
        assert ("store" in {spec.role for spec in plan_processes(settings)}) is wanted


def settings_of(zones: tuple[str, ...], port: int = 0) -> UpSettings:
    return UpSettings(campaign=Path("c.yaml"), zones=zones, gateway_port=port)


def test_every_process_gets_ports_of_its_own() -> None:
    specs = plan_processes(settings_of(("a", "b", "c")))
    ports = [port for spec in specs for port in spec.ports.values()]
    assert len(set(ports)) == len(ports)
    assert [spec.process for spec in specs][:3] == ["store", "redeem-a-0", "redeem-b-0"]


def test_gateways_follow_each_other_from_the_wanted_port() -> None:
    specs = plan_processes(settings_of(("a", "b"), port=18080))
    assert [one.ports["public"] for one in specs if one.role == "access"] == [18080, 18081]


def test_the_last_gateway_may_listen_on_the_last_port(tmp_path: Path) -> None:
    zones = "access_per_zone: 60\nzones: [a, b, c, d, e, f, g, h, i]\n"
    settings = read_settings(write(tmp_path, f"campaign: c.yaml\ngateway_port: 64996\n{zones}"))
    assert settings.gateway_port + 60 * 9 - 1 == 65535


def test_pods_are_numbered_over_all_zones() -> None:
    pods = access_pods(plan_processes(settings_of(("a", "b", "c"))))
    assert [(pod.pod, pod.process, pod.zone) for pod in pods] == [
        (1, "access-a-0", "a"),
        (2, "access-b-0", "b"),
        (3, "access-c-0", "c"),
    ]


def test_a_run_remembers_its_processes(tmp_path: Path) -> None:
    run, settings = RunDir(tmp_path), settings_of(("a",))
    specs = plan_processes(settings)
    run.write_specs(settings, specs)
    assert run.read_specs() == (settings, specs)


def test_a_folder_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="hongbao up"):
        RunDir(tmp_path).read_specs()


def test_the_ledger_lies_in_the_runs_folder_unless_the_settings_name_a_database() -> None:
    run, settings = RunDir(Path("/run/here")), settings_of(("a",))
    assert run.ledger_url(settings) == "sqlite:////run/here/ledger.db"
    elsewhere = settings.model_copy(update={"ledger_url": "postgresql://db/hongbao"})
    assert run.ledger_url(elsewhere) == "postgresql://db/hongbao"


async def test_money_commands_use_the_database_that_the_settings_name(tmp_path: Path) -> None:
    campaign = write_campaign(tmp_path / "campaign", Plot(seed=1, slots=1, packets_a_slot=40))
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    path = write(tmp_path, f"campaign: {campaign}\nledger_url: {url}\nrun_dir: {tmp_path}/run\n")
    settings = read_settings(path)
    run = RunDir(settings.run_dir)
    run.path.mkdir()
    run.write_specs(settings, plan_processes(settings))
    assert all(new for _, new in await pay_in_run(run.path))
    assert (tmp_path / "elsewhere.db").exists()
    assert not (run.path / "ledger.db").exists()


@pytest.mark.parametrize("name", ["a b", "50%23", "a#b", "a?b", "红包"])
def test_the_ledger_lies_in_the_runs_folder_whatever_that_is_called(
    tmp_path: Path, name: str
) -> None:
    """As found: behind a `?` or a percent it lay in another folder, which two runs might share."""
    run = RunDir(tmp_path / name)
    run.path.mkdir()
    url = run.ledger_url(UpSettings(campaign=tmp_path / "campaign.yaml"))
    claim_ledger(run, url, "campaign").dispose()
    assert (run.path / "ledger.db").is_file()
    assert list(tmp_path.iterdir()) == [run.path]


@pytest.mark.parametrize(
    ("name", "says"),
    [("a,b", "behind a comma"), ("x" * 100, "choose a shorter run_dir")],
)
def test_a_folder_whose_sockets_nobody_could_reach_is_refused_before_anything_is_minted(
    tmp_path: Path, name: str, says: str
) -> None:
    """As found: a start waited for a store that served, and could not say what was wrong."""
    settings = UpSettings(campaign=tmp_path / "campaign.yaml", run_dir=tmp_path / name)
    with pytest.raises(Rejected, match=says) as refused:
        prepare_run(settings, lambda *_: None)
    assert refused.value.field == "run_dir"
    assert not settings.run_dir.exists()


def test_ports_that_are_held_are_lent_to_nobody_and_free_for_their_processes(
    tmp_path: Path,
) -> None:
    """As found: a gateway that was killed came back to a port that another process had got."""
    (spec, *_) = plan_processes(settings_of(("a",)))
    port = next(iter(spec.ports.values()))
    with hold_ports([spec]):
        with pytest.raises(OSError, match="in use"), socket.socket() as stranger:
            stranger.bind(("127.0.0.1", port))
        with pytest.raises(ConnectionRefusedError), socket.socket() as caller:
            caller.connect(("127.0.0.1", port))
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with socket.socket() as server:  # as gRPC, Envoy and the metrics do
                server.setsockopt(socket.SOL_SOCKET, option, 1)
                server.bind(("127.0.0.1", port))
                server.listen()
                with socket.create_connection(("127.0.0.1", port)):
                    pass
