"""Money: what is written is what is meant, to the fen."""

import pytest
from hongbao.domain.money import MONEY_FEN_MAX, format_yuan, parse_yuan
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, MONEY_FEN_MAX))
def test_every_amount_comes_back_from_its_text(amount_fen: int) -> None:
    assert parse_yuan(f"{amount_fen // 100}.{amount_fen % 100:02d}") == amount_fen
    assert parse_yuan(format_yuan(amount_fen).replace(",", "")) == amount_fen


@given(st.text(max_size=12))
def test_whatever_is_parsed_is_written_in_plain_digits(text: str) -> None:
    try:
        amount_fen = parse_yuan(text)
    except ValueError:
        return
    assert text == f"{amount_fen // 100}.{amount_fen % 100:02d}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("12", "exactly two decimals"),
        ("12.", "exactly two decimals"),
        ("12.3", "exactly two decimals"),
        ("12.345", "never rounded"),
        ("1,234.00", "thousands separator"),
        ("1e5", "exponent"),
        ("-1.00", "sign"),
        ("+1.00", "sign"),
        ("=1.00", "write it as"),
        ("00.50", "leading zeros"),
        (".50", "write it as"),
        ("１２.００", "full-width"),
        ("١٢.٠٠", "non-ASCII digits"),
        ("12。00", "write it as"),
        ("12.00 ", "write it as"),
        ("12.00\n", "write it as"),
        ("¥12.00", "write it as"),
        ("nan", "write it as"),
        ("10000000000000.01", "above the largest"),
        ("9" * 5000 + ".00", "above the largest"),
    ],
)
def test_an_amount_that_could_be_misread_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_yuan(text)


def test_amounts_are_shown_with_separators_and_sign() -> None:
    assert [format_yuan(fen) for fen in (0, 5, 123_456, -7, 10**9)] == [
        "0.00",
        "0.05",
        "1,234.56",
        "-0.07",
        "10,000,000.00",
    ]
