"""Owns whether a claim token may ask for its packet; refuses to wait, to answer, to change state.

Checks run from cheap to dear, and nothing that a stranger can choose costs more than a MAC
(threat model: token flood). Refusals carry a cause for counters and alarms; callers outside see
one answer for all of them.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from hongbao.domain import token
from hongbao.domain.claim import CLAIM, CLAIM_VERSION
from hongbao.domain.ids import CampaignId
from hongbao.domain.manifest import Location, Manifest, PacketIndex
from hongbao.domain.ticket import Packet, campaign_hash
from hongbao.domain.token import ClaimHead
from hongbao.redeem.facts import Facts
from hongbao.redeem.keys import BindingKeys, SlotKeys

_pack_claim = CLAIM.pack
_verify_claim = token.verify_claim


class Cause(StrEnum):
    """Says why an open was refused; never told to the caller."""

    SESSION = "session"
    MALFORMED = "malformed"
    EPOCH = "epoch"
    MAC = "mac"
    EXPIRED = "expired"
    SLOT = "slot"
    SCHEME = "scheme"
    KEY = "key"
    TICKET = "ticket"
    PACKET = "packet"
    AMOUNT = "amount"
    SHARD = "shard"
    ASSIGNMENT = "assignment"


class Refusal(NamedTuple):
    """Is a refused token; `key_id` and `pod` are set once the MAC proved who sealed it."""

    cause: Cause
    key_id: int = 0
    pod: int = 0


class Early(NamedTuple):
    """Is a token that our keys sealed for a slot which has not started by this clock."""

    wait_ms: int


class Admitted(NamedTuple):
    """Is a good token: what to ask the owner of which shard."""

    claims_shard: int
    operation: bytes  # a packed claim
    serial: int
    sponsor: int
    key_id: int
    pod: int


class Judge:
    """Checks claim tokens of one campaign against keys, manifests and facts."""

    def __init__(
        self,
        campaign: CampaignId,
        facts: Facts,
        slot_keys: SlotKeys,
        binding_keys: BindingKeys,
        manifests: Iterable[Manifest],
    ) -> None:
        self._campaign_hash: Final = campaign_hash(campaign)
        self._facts: Final = facts
        self._slot_keys: Final = slot_keys
        self._binding_key: Final = binding_keys.of
        self._fresh_key: Final = binding_keys.derive
        self._locate: Callable[[int, int], Location | None] = PacketIndex(manifests).locate

    def use_manifests(self, manifests: Iterable[Manifest]) -> None:
        """Take another set of schemes."""
        self._locate = PacketIndex(manifests).locate

    def sealed(self, claim_token: bytes, head: ClaimHead, user: int) -> bool:
        """Say whether our keys sealed a token of an epoch that nobody has heard of yet."""
        binding_key = self._fresh_key(head.pod, head.epoch)
        return _verify_claim(claim_token, binding_key, self._campaign_hash, user)

    def judge(
        self, claim_token: bytes, head: ClaimHead, user: int, now_ms: int
    ) -> Admitted | Early | Refusal:
        """Check a token whose head names an epoch that exists.

        The record is deciphered only for tokens that a pod of ours sealed for this user.
        """
        pod, epoch, claims_shard, expiry_s, record = head
        binding_key = self._binding_key(pod, epoch)
        if not _verify_claim(claim_token, binding_key, self._campaign_hash, user):
            return Refusal(Cause.MAC)
        if expiry_s * 1000 <= now_ms:
            return Refusal(Cause.EXPIRED)
        facts = self._facts
        key_id, slot = record[0] << 8 | record[1], record[2] << 8 | record[3]
        window_ms = facts.windows_ms.get(slot)
        if window_ms is None or now_ms >= window_ms[1]:
            return Refusal(Cause.SLOT, key_id, pod)
        if slot in facts.unknown_slots:
            return Refusal(Cause.SCHEME, key_id, pod)
        decipherer = self._slot_keys.open_at(slot, window_ms[0], now_ms)
        if decipherer is None:
            if now_ms < window_ms[0]:
                return Early(window_ms[0] - now_ms)
            return Refusal(Cause.SLOT, key_id, pod)
        if not facts.key_lists.permits(key_id):
            return Refusal(Cause.KEY, key_id, pod)
        packet = decipherer.open_record(record)
        if packet is None:
            return Refusal(Cause.TICKET, key_id, pod)
        location = self._locate(packet.batch, packet.serial)
        if location is None or packet.batch not in facts.active_batches:
            return Refusal(Cause.PACKET, key_id, pod)
        cause = self._contradiction(packet, location)
        if cause is not None:
            return Refusal(cause, key_id, pod)
        if location.claims_shard != claims_shard:
            return Refusal(Cause.SHARD, key_id, pod)
        if pod not in facts.pods_of_file.get(location.file, ()):
            return Refusal(Cause.ASSIGNMENT, key_id, pod)
        operation = _pack_claim(
            CLAIM_VERSION,
            packet.batch,
            key_id,
            slot,
            packet.sponsor,
            pod,
            epoch,
            location.file,
            location.bit,
            packet.amount_fen,
            packet.serial,
            user,
            now_ms,
        )
        return Admitted(claims_shard, operation, packet.serial, packet.sponsor, key_id, pod)

    def _contradiction(self, packet: Packet, location: Location) -> Cause | None:
        """Return what a deciphered packet has that its batch does not: an insider's minting."""
        batch = location.batch
        if packet.slot != batch.slot or packet.sponsor != batch.sponsor:
            return Cause.PACKET
        if not batch.min_fen <= packet.amount_fen <= batch.max_fen:
            return Cause.AMOUNT
        if batch.key_of(packet.serial - batch.serial_base) != packet.key_id:
            return Cause.KEY
        return None
