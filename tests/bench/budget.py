"""The bench's own campaign files and requests: one slot, four sponsors, any number of packets."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

from hongbao.cipher.derive import binding_key
from hongbao.cipher.keyring import Keyring
from hongbao.domain import ticket
from hongbao.domain.money import format_yuan
from hongbao.domain.ticket_file import unpack_header
from hongbao.domain.token import seal_claim, seal_session
from hongbao.proto.v1 import access_pb2, redeem_pb2

CAMPAIGN = "bench"
SPONSORS = 4
FEN_EACH = 188
USERS = 20_000
PRIORITY = 0

HEAD = """campaign: {campaign}
title: What one core does
budget_yuan: "{yuan}"
key_cap_yuan: "300000.00"
per_user_packets: 255
sponsors: sponsors.csv
active_scheme: only
schemes: [{{scheme: only, title: Only one, script: script.csv}}]
slots:
  - slot: 1
    name: bench
    starts_at: "2027-02-05T20:00:00+08:00"
    ends_at: "2027-02-05T21:00:00+08:00"
"""


def write_campaign(folder: Path, packets: int, campaign: str = CAMPAIGN) -> Path:
    """Write the files of a campaign of so many packets; return the campaign file."""
    folder.mkdir(parents=True, exist_ok=True)
    share = packets // SPONSORS
    yuan = format_yuan(share * FEN_EACH).replace(",", "")
    whole = format_yuan(share * FEN_EACH * SPONSORS).replace(",", "")
    names = [f"sponsor-{number}" for number in range(1, SPONSORS + 1)]
    rows = [f"{name},Sponsor {name},{yuan},10" for name in names]
    header = "sponsor,name,deposit_yuan,exposure_weight"
    (folder / "sponsors.csv").write_text("\n".join([header, *rows]) + "\n")
    rows = [f"{name},1,image,{share},{yuan},0.01,20.00,lucky,image/{name}.webp" for name in names]
    header = "sponsor,slot,kind,count,total_yuan,min_yuan,max_yuan,curve,resource"
    (folder / "script.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "campaign.yaml").write_text(HEAD.format(campaign=campaign, yuan=whole))
    return folder / "campaign.yaml"


def sessions(keyring: Keyring, campaign: str, expiry_s: int) -> list[bytes]:
    """Seal a session for every user of the bench, as access would."""
    digest = ticket.campaign_hash(campaign)
    return [
        seal_session(keyring.session_key, digest, user, PRIORITY, expiry_s)
        for user in range(1, USERS + 1)
    ]


def shake_requests(campaign: str, tokens: list[bytes]) -> Iterator[bytes]:
    for session in tokens:
        request = access_pb2.ShakeRequest(campaign=campaign, session=session)
        yield request.SerializeToString()


def json_shakes(tokens: list[bytes]) -> Iterator[bytes]:
    for session in tokens:
        yield json.dumps({"session": base64.b64encode(session).decode()}).encode()


def open_requests(
    campaign: str,
    files: list[Path],
    keyring: Keyring,
    tokens: list[bytes],
    *,
    pod: int,
    epoch: int,
    expiry_s: int,
    skip: int,
    count: int,
) -> Iterator[bytes]:
    """Yield opens of `count` packets behind the first `skip`, taken from all files in turn."""
    digest = ticket.campaign_hash(campaign)
    key = binding_key(keyring.token_root, pod, epoch)
    opened = [path.read_bytes() for path in files]
    heads = [unpack_header(data[: ticket.FILE_RECORDS_AT]) for data in opened]
    for number in range(skip, skip + count):
        which, place = number % len(opened), number // len(opened)
        start = ticket.FILE_RECORDS_AT + place * ticket.RECORD_BYTES
        user = number % USERS
        token = seal_claim(
            key,
            digest,
            pod,
            epoch,
            heads[which].claims_shard,
            expiry_s,
            opened[which][start : start + ticket.RECORD_BYTES],
            user + 1,
        )
        request = redeem_pb2.OpenRequest(campaign=campaign, session=tokens[user], claim_token=token)
        yield request.SerializeToString()
