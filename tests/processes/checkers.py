"""Judges what an evening left behind; each checker raises AssertionError with an example.

They read the log of claims, the ledger and the promises to clients by themselves and share no
code with settle or audit. test_checkers.py shows that each can fail.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hongbao.client.acknowledged import AcknowledgedOpen
from hongbao.domain.claim import Claim
from hongbao.redeem.machine import ClaimOutcome

from tests.processes.rainy import Transfer


@dataclass(frozen=True)
class Answered:
    """Is an answer that a caller got when it asked for a packet."""

    serial: int
    user: int
    outcome: ClaimOutcome
    amount_fen: int

    @property
    def won(self) -> bool:
        return self.outcome in (ClaimOutcome.OPENED, ClaimOutcome.REPEATED)


def check_issued_once(records: Iterable[bytes]) -> None:
    """F1: no record of a ticket file is in two claim tokens."""
    twice = [record.hex() for record, times in Counter(records).items() if times > 1]
    assert not twice, f"{len(twice)} records were issued twice, as {twice[0]}"


def check_residue(residue_packets: int, crashes: int, window_packets: int) -> None:
    """F1: a crash loses at most what was reserved ahead."""
    bound = crashes * window_packets
    assert residue_packets <= bound, f"{residue_packets} lost by {crashes} crashes, over {bound}"


def check_claimed_once(claims: Iterable[Claim]) -> None:
    """F4: a packet has one claim in all logs, so one winner."""
    twice = [serial for serial, times in Counter(c.serial for c in claims).items() if times > 1]
    assert not twice, f"{len(twice)} packets have two claims, as {twice[0]}"


def check_one_winner(answers: Iterable[Answered]) -> None:
    """F3, F4: one user has the packet, with one amount; it was opened once, then repeated."""
    wins: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
    opened: Counter[int] = Counter()
    asked = set()
    for one in answers:
        asked.add(one.serial)
        opened[one.serial] += one.outcome == ClaimOutcome.OPENED
        if one.won:
            wins[one.serial].add((one.user, one.amount_fen))
    wrong = [serial for serial in asked if len(wins[serial]) != 1 or opened[serial] > 1]
    assert not wrong, f"{len(wrong)} packets, as {wrong[0]}: winners {wins[wrong[0]]}"


def check_answers_logged(answers: Iterable[Answered], claims: Iterable[Claim]) -> None:
    """F2: who won is in the log; who heard that another had won, another is in the log."""
    logged = {claim.serial: (claim.user, claim.amount_fen) for claim in claims}
    for one in answers:
        user, amount_fen = logged.get(one.serial, (None, None))
        right = one.amount_fen == amount_fen if one.user == user else user is not None
        right &= one.won == (one.user == user)
        assert right, f"{one}; the log has {user}, {amount_fen}"


def check_promises_kept(acknowledged: Iterable[AcknowledgedOpen], claims: Iterable[Claim]) -> None:
    """F2, F3, F18: what a client was told is in the log, for that client, with that amount."""
    logged = {claim.serial: (claim.user, claim.amount_fen) for claim in claims}
    for one in acknowledged:
        found = logged.get(one.packet)
        assert found == (one.user, one.amount_fen), f"{one} was acknowledged; the log has {found}"


def check_settled_once(claims: Sequence[Claim], transfers: Sequence[Transfer]) -> None:
    """F2, F5, F6: credited = opened, packet by packet and in sum."""
    opened = {claim.serial: (claim.user, claim.amount_fen) for claim in claims}
    credited = {one.serial: (one.user, one.amount_fen) for one in transfers if one.credited}
    wrong = {serial for serial in opened.keys() | credited.keys()
             if opened.get(serial) != credited.get(serial)}  # fmt: skip
    assert not wrong, (
        f"{len(wrong)} packets differ, as {min(wrong)}: {_both(wrong, opened, credited)}"
    )
    assert len(opened) == len(claims), "a packet has two claims"
    assert len(credited) == len(transfers), "a transfer is not credited, or is there twice"


def _both(
    wrong: Collection[int], opened: Mapping[int, object], credited: Mapping[int, object]
) -> str:
    return f"opened {opened.get(min(wrong))}, credited {credited.get(min(wrong))}"


def check_paid_once(
    payments: Iterable[tuple[str, int]], claims: Iterable[Claim], campaign: str
) -> None:
    """F6: the pay backend booked each claim once, with its amount, under one key."""
    paid: defaultdict[str, list[int]] = defaultdict(list)
    for key, amount_fen in payments:
        paid[key].append(amount_fen)
    wanted = {f"{campaign}/{claim.serial}": [claim.amount_fen] for claim in claims}
    wrong = [key for key in wanted.keys() | paid.keys() if wanted.get(key) != paid.get(key)]
    assert not wrong, (
        f"{len(wrong)} payments differ, as {wrong[0]}: "
        f"claimed {wanted.get(wrong[0])}, paid {paid.get(wrong[0])}"
    )


def check_one_pod_a_file(claims: Iterable[Claim]) -> None:
    """R22, F13: no ticket file was served by two pods."""
    pods: defaultdict[int, set[int]] = defaultdict(set)
    for claim in claims:
        pods[claim.file].add(claim.pod)
    shared = {file: found for file, found in pods.items() if len(found) > 1}
    assert not shared, f"served by two pods: {shared}"


def check_no_open_after(claims: Iterable[Claim], key_ids: Collection[int], at_ms: int) -> None:
    """F20: nothing was opened with a denied key once the denial was acknowledged."""
    late = [one for one in claims if one.key_id in key_ids and one.opened_at_ms > at_ms]
    assert not late, f"{len(late)} opened with a denied key after {at_ms}, as {late[0]}"


def check_silence(
    acknowledged: Iterable[AcknowledgedOpen],
    claims: Iterable[Claim],
    from_ms: int,
    until_ms: int,
) -> None:
    """F18: nothing is opened and acknowledged while nothing can become durable."""
    opened_at = {claim.serial: claim.opened_at_ms for claim in claims}
    lied = [
        one
        for one in acknowledged
        if opened_at.get(one.packet, until_ms) > from_ms and from_ms < one.at_ms < until_ms
    ]
    assert not lied, f"{len(lied)} acknowledged while the disk refused, as {lied[0]}"
