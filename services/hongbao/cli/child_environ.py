"""Owns what a process of a run finds in its environment: no secret but its own role's."""

from collections.abc import Mapping, MutableMapping

from hongbao.cipher.keyring import Role, role_passphrase
from hongbao.cli.prepare import ROLE_PASSPHRASE_VARIABLE, passphrase
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.domain.errors import Rejected

KEY_FILES: Mapping[str, Role] = {"redeem": "redeem", "access": "access", "settle": "access"}
"""Whose key file each role reads; settle needs only the public key in it, the store needs none."""

WEBHOOK_AUTHORIZATION_VARIABLE = "HONGBAO_WEBHOOK_AUTHORIZATION"
NAMES = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR"})
PREFIXES = ("PYTHON", "LC_", "HONGBAO_RUN", "HONGBAO_LOG", "HONGBAO_FAULTS")
ROLE_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "settle": (
        "PG",
        "SSL_CERT_",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        WEBHOOK_AUTHORIZATION_VARIABLE,
    )
}
"""What only one role needs: settle reaches the ledger and the payment backend."""
OBJECTS_PREFIXES = ("AWS_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
OBJECTS_ROLES = frozenset({"access", "redeem", "settle"})


def child_environ(environ: Mapping[str, str], run: RunDir, role: str) -> dict[str, str]:
    """Return what a role needs of the supervisor's environment, and its own passphrase.

    The operator's passphrase stays behind, and so does whatever else lies there.
    """
    prefixes = PREFIXES + ROLE_PREFIXES.get(role, ())
    kept = {
        name: value for name, value in environ.items() if name in NAMES or name.startswith(prefixes)
    }
    if role in KEY_FILES:
        kept[ROLE_PASSPHRASE_VARIABLE] = role_passphrase(passphrase(run), KEY_FILES[role])
    return kept


def objects_environ(environ: Mapping[str, str], settings: UpSettings, role: str) -> dict[str, str]:
    """Return what a role needs to read objects in S3; nothing where they are in a folder.

    On one machine these are the operator's own credentials, which may write; in a cluster each role
    has its own, and all but the mint's only read.
    """
    remote = (settings.objects_url or "").startswith("s3://")
    if not remote or role not in OBJECTS_ROLES:
        return {}
    return {name: value for name, value in environ.items() if name.startswith(OBJECTS_PREFIXES)}


def take_webhook_headers(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Take the payment backend's credentials out of the environment, as headers of every call.

    Raises Rejected, without the value, when it can be no header: every payment would fail.
    """
    value = environ.pop(WEBHOOK_AUTHORIZATION_VARIABLE, "").strip()
    if not (value.isascii() and value.isprintable()):
        name = WEBHOOK_AUTHORIZATION_VARIABLE
        raise Rejected(f"{name}: a header has printable ASCII alone", field=name)
    return {"Authorization": value} if value else {}
