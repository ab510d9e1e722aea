"""Shows that each checker of the fault tests can fail: a planted bug each (mutation proof)."""

from dataclasses import replace

import pytest
from hongbao.client.acknowledged import AcknowledgedOpen
from hongbao.domain.claim import Claim
from hongbao.redeem.machine import ClaimOutcome

from tests.processes import checkers
from tests.processes.checkers import Answered
from tests.processes.rainy import Transfer

CLAIMS = [
    Claim(1, 7, 1, 1, pod, 1, file, 0, 100 + serial, serial, user, 5_000)
    for serial, user, pod, file in ((1, 11, 1, 3), (2, 12, 1, 3), (3, 13, 2, 4))
]
TRANSFERS = [Transfer(one.serial, one.user, one.amount_fen, True) for one in CLAIMS]
PROMISES = [AcknowledgedOpen(one.serial, one.user, one.amount_fen, 6_000) for one in CLAIMS]
ANSWERS = [
    *(Answered(c.serial, c.user, ClaimOutcome.OPENED, c.amount_fen) for c in CLAIMS),
    Answered(1, 11, ClaimOutcome.REPEATED, 101),
    Answered(2, 99, ClaimOutcome.ALREADY_OPENED, 0),
]
PAYMENTS = [(f"tiny/{one.serial}", one.amount_fen) for one in CLAIMS]


def test_a_history_without_faults_passes_every_checker() -> None:
    checkers.check_issued_once([b"a", b"b"])
    checkers.check_residue(8, 2, 4)
    checkers.check_claimed_once(CLAIMS)
    checkers.check_one_winner(ANSWERS)
    checkers.check_answers_logged(ANSWERS, CLAIMS)
    checkers.check_promises_kept(PROMISES, CLAIMS)
    checkers.check_settled_once(CLAIMS, TRANSFERS)
    checkers.check_paid_once(PAYMENTS, CLAIMS, "tiny")
    checkers.check_one_pod_a_file(CLAIMS)
    checkers.check_no_open_after(CLAIMS, {7}, 5_000)
    checkers.check_silence(PROMISES, CLAIMS, 5_000, 7_000)


def test_a_record_in_two_tokens_is_found() -> None:
    with pytest.raises(AssertionError, match="1 records were issued twice, as 62"):
        checkers.check_issued_once([b"a", b"b", b"b"])


def test_more_residue_than_the_windows_of_the_crashes_is_found() -> None:
    with pytest.raises(AssertionError, match="9 lost by 2 crashes, over 8"):
        checkers.check_residue(9, 2, 4)


def test_two_winners_of_one_packet_are_found() -> None:
    with pytest.raises(AssertionError, match="1 packets have two claims, as 2"):
        checkers.check_claimed_once([*CLAIMS, CLAIMS[1]._replace(user=99)])


@pytest.mark.parametrize(
    "answer",
    [
        Answered(1, 99, ClaimOutcome.REPEATED, 101),
        Answered(1, 11, ClaimOutcome.OPENED, 101),
        Answered(1, 11, ClaimOutcome.REPEATED, 7),
        Answered(4, 14, ClaimOutcome.ALREADY_OPENED, 0),
    ],
    ids=["another user", "opened again", "another amount", "nobody"],
)
def test_answers_without_exactly_one_winner_are_found(answer: Answered) -> None:
    with pytest.raises(AssertionError, match="1 packets, as"):
        checkers.check_one_winner([*ANSWERS, answer])


@pytest.mark.parametrize(
    "answer",
    [
        Answered(1, 11, ClaimOutcome.ALREADY_OPENED, 0),
        Answered(1, 11, ClaimOutcome.REPEATED, 7),
        Answered(1, 99, ClaimOutcome.OPENED, 101),
        Answered(4, 14, ClaimOutcome.OPENED, 104),
        Answered(4, 14, ClaimOutcome.ALREADY_OPENED, 0),
    ],
    ids=["denied to the winner", "another amount", "another user", "lost", "nobody"],
)
def test_an_answer_that_the_log_contradicts_is_found(answer: Answered) -> None:
    with pytest.raises(AssertionError, match="the log has"):
        checkers.check_answers_logged([*ANSWERS, answer], CLAIMS)


@pytest.mark.parametrize("change", [{"packet": 9}, {"user": 99}, {"amount_fen": 1}])
def test_a_broken_promise_is_found(change: dict[str, int]) -> None:
    with pytest.raises(AssertionError, match="was acknowledged; the log has"):
        checkers.check_promises_kept([replace(PROMISES[0], **change)], CLAIMS)


@pytest.mark.parametrize(
    "transfers",
    [
        TRANSFERS[1:],
        [replace(TRANSFERS[0], amount_fen=1), *TRANSFERS[1:]],
        [replace(TRANSFERS[0], user=99), *TRANSFERS[1:]],
        [replace(TRANSFERS[0], credited=False), *TRANSFERS[1:]],
        [*TRANSFERS, TRANSFERS[0]],
        [*TRANSFERS, Transfer(4, 14, 100, True)],
    ],
    ids=["lost", "amount", "user", "pending", "twice", "invented"],
)
def test_a_wrong_settlement_is_found(transfers: list[Transfer]) -> None:
    with pytest.raises(AssertionError, match=r"packets differ|not credited"):
        checkers.check_settled_once(CLAIMS, transfers)


@pytest.mark.parametrize(
    "payments",
    [PAYMENTS[1:], [*PAYMENTS, PAYMENTS[0]], [(PAYMENTS[0][0], 1), *PAYMENTS[1:]]],
    ids=["unpaid", "paid twice", "amount"],
)
def test_a_wrong_payment_is_found(payments: list[tuple[str, int]]) -> None:
    with pytest.raises(AssertionError, match="1 payments differ, as tiny/1"):
        checkers.check_paid_once(payments, CLAIMS, "tiny")


def test_a_file_served_by_two_pods_is_found() -> None:
    with pytest.raises(AssertionError, match="served by two pods"):
        checkers.check_one_pod_a_file([*CLAIMS, CLAIMS[0]._replace(serial=9, pod=2)])


def test_an_open_after_the_denial_is_found() -> None:
    with pytest.raises(AssertionError, match="3 opened with a denied key after 4999"):
        checkers.check_no_open_after(CLAIMS, {7}, 4_999)


def test_an_acknowledgement_that_nothing_stands_behind_is_found() -> None:
    with pytest.raises(AssertionError, match="3 acknowledged while the disk refused"):
        checkers.check_silence(PROMISES, CLAIMS, 4_999, 7_000)
