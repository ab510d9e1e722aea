"""Owns the one settings file of `hongbao up`; refuses to hold secrets."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hongbao.cli.yaml_settings import read_yaml
from hongbao.domain.errors import Rejected

Count = Annotated[int, Field(ge=1, le=64)]
Address = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")]
"""host:port"""

PORT_MAX: Final = 65535

_URL_PASSWORD: Final = re.compile(r"[^:/]+://[^:/]*:[^@]*@")
"""As SQLAlchemy reads it: a password may hold `?`, where urlsplit ends the host."""

_SECRET_OPTIONS: Final = frozenset(("password", "sslpassword", "oauth_client_secret"))
"""Connection options of libpq that are secrets themselves; a passfile is only where one lies."""


class ClusterStore(BaseModel):
    """Says what TiKV and etcd have in common: how they are reached and whose names are ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")] | None = None
    """In front of every key, so that runs can share a cluster; absent: the campaign's id."""

    ca: Path | None = None
    """Certificates (PEM) of whoever signed the servers' own; absent: plain text."""

    cert: Path | None = None
    """This side's certificate (PEM), where servers ask for one."""

    key: Path | None = None
    """Its private key (PEM)."""

    @model_validator(mode="after")
    def _certificates_are_whole(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")
        if self.cert is not None and self.ca is None:
            raise ValueError("cert and key need ca: without it nothing is encrypted")
        return self


class TikvSettings(ClusterStore):
    """Says which TiKV cluster keeps the logs."""

    pd: Annotated[tuple[Address, ...], Field(min_length=1, max_length=9)]
    """Placement drivers, host:port each."""

    api: Literal["raw", "txn"] = "raw"
    """raw: compare-and-swap. txn: for a cluster that runs the transactional API already, in which
    raw keys must not be mixed; needs the extra tikv-txn (Python 3.11) and has no TLS."""

    @model_validator(mode="after")
    def _txn_has_no_tls(self) -> Self:
        if self.api == "txn" and self.ca is not None:
            raise ValueError("the client of the transactional API has no TLS: leave ca out")
        return self


class EtcdSettings(ClusterStore):
    """Says which etcd keeps leases, placement, switches and quotas."""

    endpoints: Annotated[tuple[Address, ...], Field(min_length=1, max_length=9)]
    """Members, host:port each; all of them, so that one may be lost."""


class UpSettings(BaseModel):
    """Says what runs on this machine. Paths are relative to the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    campaign: Path
    """The campaign file (YAML); its CSV files lie beside it."""

    run_dir: Path = Path("out/run")
    """Where stores, objects, keys, logs and the ledger live; relative to the working directory."""

    zones: tuple[str, ...] = ("a",)
    """Zones to simulate, each a set of processes that can be lost together."""

    access_per_zone: Count = 1
    """Gateways of a zone; each is one process on one core and one public port."""

    redeem_per_zone: Count = 1
    """Processes of a zone that open packets and own claims shards."""

    settle_per_zone: Count = 1
    """Processes of a zone that credit claims."""

    claims_shards: Annotated[int, Field(ge=1, le=1024)] = 6
    """Shards of claims; fixed once a campaign is minted, because ticket files name theirs."""

    ticket_shards: Annotated[int, Field(ge=1, le=1024)] = 6
    """Ticket files of a slot; two for each gateway let a lost zone's files spread."""

    gateway_port: Annotated[int, Field(ge=0, le=65000)] = 0
    """Public port of the first gateway, the next ones follow; 0 picks free ports."""

    @field_validator("gateway_port")
    @classmethod
    def _all_gateways_have_a_port(cls, port: int, info: ValidationInfo) -> int:
        gateways = info.data.get("access_per_zone", 1) * len(info.data.get("zones", ("a",)))
        if port and (last := port + gateways - 1) > PORT_MAX:
            raise ValueError(f"the last of {gateways} gateways would listen on port {last}")
        return port

    listen: str = "127.0.0.1"
    """Address of the gateways; everything else stays on loopback and Unix sockets."""

    lease_ttl_s: Annotated[float, Field(ge=0.5, le=30)] = 2.0
    """How long a silent owner keeps its shard: shorter fails over sooner, longer bears stalls."""

    tikv: TikvSettings | None = None
    """Where logs live; absent: LMDB in the run's folder, written by one process."""

    etcd: EtcdSettings | None = None
    """Where leases and shared facts live; absent: LMDB in the run's folder too."""

    @property
    def embedded(self) -> bool:
        """Return whether the run needs a store process of its own."""
        return self.tikv is None or self.etcd is None

    jwks: Path | None = None
    """Public keys (JWKS) of whoever issues the users' JWTs; absent: a key made for this run."""

    webhook_url: str | None = None
    """Where to pay; absent: the built-in ledger is the payment. HONGBAO_WEBHOOK_AUTHORIZATION in
    the environment of `up` brings credentials, for example `Bearer …`: settle alone is handed it
    and sends it as the header Authorization."""

    @field_validator("webhook_url")
    @classmethod
    def _webhook_is_a_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parsed = TypeAdapter(HttpUrl).validate_python(url)
        if parsed.username is not None or parsed.password is not None:
            raise ValueError("settings hold no secrets: leave it to HONGBAO_WEBHOOK_AUTHORIZATION")
        return url

    ledger_url: str | None = None
    """Ledger database: `postgresql://host/name` or `sqlite:////absolute/path`; absent: SQLite in
    the run's folder. A database holds one run; a rehearsal needs one of its own. Without a
    password: PGPASSFILE or PGPASSWORD bring it."""

    @field_validator("ledger_url")
    @classmethod
    def _ledger_is_a_database(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if _URL_PASSWORD.match(url):  # first, because what urlsplit refuses it also repeats
            raise ValueError("settings hold no secrets: leave it to PGPASSFILE or PGPASSWORD")
        parts = urlsplit(url.replace("#", "%23"))  # SQLAlchemy knows no fragments
        backend = parts.scheme.partition("+")[0]
        if backend not in ("sqlite", "postgresql"):
            raise ValueError("a ledger lives in sqlite:////path or postgresql://host/name")
        if backend == "sqlite" and not parts.path.startswith("//"):
            raise ValueError("needs an absolute path: sqlite:////path, with four slashes")
        if _SECRET_OPTIONS & {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}:
            raise ValueError("settings hold no secrets: leave it to PGPASSFILE or PGPASSWORD")
        try:
            parts.port  # noqa: B018  (reading it is the check)
        except ValueError as error:
            raise ValueError("its port is no number from 0 to 65535") from error
        return url

    objects_url: str | None = None
    """Where ticket files, tables and manifests are: `s3://bucket/prefix`, or a folder that every
    machine sees; absent: the run's folder. AWS_* variables bring credentials, region, endpoint."""

    objects_endpoint: str | None = None
    """Endpoint of an S3-compatible store, such as `https://s3.example.org`; absent: what
    AWS_ENDPOINT_URL says, else Amazon's."""

    @field_validator("objects_url")
    @classmethod
    def _objects_are_in_s3_or_a_folder(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query:
            raise ValueError("settings hold no secrets: leave them to AWS_* variables")
        if parts.scheme and (parts.scheme != "s3" or not parts.netloc):
            raise ValueError("objects lie in s3://bucket/prefix or a folder")
        if not parts.scheme and not url.startswith("/"):
            raise ValueError("a folder of objects needs an absolute path")
        return url

    @field_validator("objects_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, url: str | None) -> str | None:
        if url is not None and "@" in TypeAdapter(HttpUrl).validate_python(url).unicode_string():
            raise ValueError("settings hold no secrets: leave them to AWS_* variables")
        return url

    @field_validator("zones")
    @classmethod
    def _zones_are_names(cls, zones: tuple[str, ...]) -> tuple[str, ...]:
        if not zones or len(set(zones)) != len(zones):
            raise ValueError("needs at least one zone, each named once")
        for zone in zones:
            if not (zone.isascii() and zone.isalnum() and zone.islower() and len(zone) <= 20):
                raise ValueError(f"{zone!r} is not a zone name: use a-z and 0-9, at most 20")
        return zones


def read_settings(path: Path) -> UpSettings:
    """Parse a settings file. Raises Rejected with every problem, field by field."""
    document = read_yaml(path, field="settings")
    if not isinstance(document, dict):
        raise Rejected(f"{path}: must be a mapping of settings", field="settings")
    try:
        settings = UpSettings.model_validate(document)
    except ValidationError as error:
        rows = [
            f"{path}: {'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise Rejected("\n".join(rows), field="settings") from error
    return settings.model_copy(
        update={
            "campaign": (path.parent / settings.campaign).resolve(),
            "run_dir": settings.run_dir.resolve(),
            "jwks": (path.parent / settings.jwks).resolve() if settings.jwks else None,
            "tikv": _from_folder("tikv", settings.tikv, path),
            "etcd": _from_folder("etcd", settings.etcd, path),
        }
    )


def _from_folder(field: str, store: ClusterStore | None, settings: Path) -> ClusterStore | None:
    """Return a cluster's settings with certificates found from the settings file's folder."""
    if store is None:
        return None
    named = {name: getattr(store, name) for name in ("ca", "cert", "key")}
    found = {name: (settings.parent / path).resolve() for name, path in named.items() if path}
    for name, path in found.items():
        if not path.is_file():
            raise Rejected(f"{settings}: {field}.{name}: {path}: no such file", field=field)
    return store.model_copy(update=found)
