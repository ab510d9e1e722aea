"""Header blocks, percentiles and draws: the parts of the lean wire without a network."""

import contextlib

import pytest
from hongbao.client import hpack
from hongbao.client.draws import seeded_draw
from hongbao.client.histogram import Histogram
from hongbao.client.status import Answer, answer_of
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=300)
NAME = st.from_regex(r":?[a-z][a-z-]{0,30}", fullmatch=True)


@given(st.dictionaries(NAME, TEXT, max_size=8))
def test_a_written_block_reads_back(headers: dict[str, str]) -> None:
    assert hpack.decode_block(hpack.encode_block(headers.items())) == headers


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        ("828684418cf1e3c2e5f23a6ba0ab90f4ff", {":authority": "www.example.com"}),
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", {"custom-key": "custom-header"}),
        ("4803333032", {":status": "302"}),
        ("4882640258", None),
        ("088264 02".replace(" ", ""), {":status": "302"}),
        ("20 88".replace(" ", ""), {":status": "200"}),
    ],
)
def test_examples_of_rfc_7541_appendix_c(block: str, headers: dict[str, str] | None) -> None:
    if headers is None:
        with pytest.raises(hpack.BadBlock):
            hpack.decode_block(bytes.fromhex(block))
        return
    assert headers.items() <= hpack.decode_block(bytes.fromhex(block)).items()


@given(st.binary(max_size=60))
def test_random_blocks_are_read_or_refused_plainly(block: bytes) -> None:
    with contextlib.suppress(hpack.BadBlock):
        hpack.decode_block(block)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.floats(1, 100))
def test_a_percentile_is_within_two_percent_of_the_exact_one(
    durations_s: list[float], percent: float
) -> None:
    histogram = Histogram()
    for duration_s in durations_s:
        histogram.record(duration_s)
    ordered = sorted(durations_s)
    rank = min(len(ordered), max(1, -int(-len(ordered) * percent // 100)))
    exact_ms = ordered[rank - 1] * 1000
    assert exact_ms * 0.98 - 0.01 <= histogram.percentile_ms(percent) <= exact_ms * 1.02 + 0.01


def test_draws_repeat_for_the_same_seed_and_are_uniform() -> None:
    one, two = seeded_draw(7), seeded_draw(7)
    values = [one() for _ in range(10_000)]
    assert values == [two() for _ in range(10_000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / len(values) - 0.5) < 0.01


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({":status": "200"}, None),
        ({":status": "200", "grpc-status": "8"}, 8),
        ({":status": "429", "retry-after": "2"}, 14),
        ({":status": "404"}, 12),
        ({"grpc-status": "0"}, 0),
    ],
)
def test_http_and_grpc_statuses_become_one_answer(
    headers: dict[str, str], code: int | None
) -> None:
    answer = answer_of(headers)
    assert (answer.code if isinstance(answer, Answer) else None) == code
