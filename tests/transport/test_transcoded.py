"""What the JSON transcoder lets through and we do not."""

from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hongbao.domain.errors import Rejected
from hongbao.proto.v1 import access_pb2, redeem_pb2, store_pb2
from hongbao.transport.transcoded import check_transcoded, field_numbers, singular_fields
from hypothesis import given
from hypothesis import strategies as st

SINGULAR = singular_fields(redeem_pb2.OpenReply)


@given(st.integers(0, 2), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_what_protobuf_writes_once_passes(outcome: int, amount: int, packet: int) -> None:
    reply = redeem_pb2.OpenReply(outcome=outcome, amount_fen=amount, packet=packet)  # type: ignore[arg-type]
    check_transcoded(b"/v1/x", reply.SerializeToString(), SINGULAR)
    assert list(field_numbers(reply.SerializeToString())) == [
        field.number for field, _ in reply.ListFields()
    ]


@given(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1))
def test_a_field_given_twice_is_refused_by_name(first: int, second: int) -> None:
    twice = b"".join(
        redeem_pb2.OpenReply(amount_fen=fen).SerializeToString() for fen in (first, second)
    )
    with pytest.raises(Rejected) as caught:
        check_transcoded(b"/v1/x", twice, SINGULAR)
    assert caught.value.field == "amountFen"


def test_a_repeated_field_may_stand_often() -> None:
    message = store_pb2.WriteItem(pairs=[store_pb2.Pair(key=b"a"), store_pb2.Pair(key=b"b")])
    check_transcoded(b"/v1/x", message.SerializeToString(), singular_fields(store_pb2.WriteItem))


def test_query_parameters_are_refused() -> None:
    with pytest.raises(Rejected):
        check_transcoded(b"/v1/x?session=cw", b"", singular_fields(access_pb2.ShakeRequest))


@given(st.binary(max_size=64))
def test_any_bytes_end_in_numbers_or_in_one_error(payload: bytes) -> None:
    with suppress(DecodeError):
        list(field_numbers(payload))
