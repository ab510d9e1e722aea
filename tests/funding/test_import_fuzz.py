"""Whatever bytes stand in the files: problems with a place, or a campaign that keeps its rules."""

from hongbao.domain.campaign_file import read_campaign
from hongbao.domain.ids import SlotNumber
from hongbao.domain.script import plan_campaign, spent_fen
from hongbao.domain.timeline import Timeline
from hongbao.domain.yaml_file import NODES_MAX
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.funding.files import problems_of, small_files

NAMES = st.sampled_from(sorted(small_files()))
PASSAGES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b"0", b"9", b".", b",", b"\n", b'"', b"-", b": ", b"- ", b"{", b"\xef\xbb\xbf"]
    ),
    st.sampled_from([b"dairy", b"tea", b"image", b"400.00", b"20.00", b"main.csv", b"slot: 1"]),
)


def assert_told_or_true(files: dict[str, bytes]) -> None:
    campaign, problems = read_campaign(files)
    assert (campaign is None) == bool(problems)
    for problem in problems:
        assert problem.message
        assert "\n" not in str(problem)
        assert str(problem).isprintable()
    if campaign is None:
        return
    Timeline(campaign.slots)
    for plan in plan_campaign(campaign, ticket_shards=3, claims_shards=2):
        active = {SlotNumber(batch.slot): plan.scheme_number for batch in plan.batches}
        spent = spent_fen([plan], active)
        assert spent == {index: fen for index, fen in campaign.deposits.items() if fen}


@settings(deadline=None, max_examples=150)
@given(NAMES, st.binary(max_size=300))
def test_no_bytes_make_the_import_stumble(name: str, data: bytes) -> None:
    assert_told_or_true({**small_files(), name: data})


@settings(deadline=None, max_examples=400)
@given(NAMES, st.floats(0, 1), st.integers(0, 12), PASSAGES)
def test_no_edit_of_a_good_file_makes_the_import_stumble_or_lie(
    name: str, place: float, removed: int, passage: bytes
) -> None:
    files = small_files()
    at = int(place * len(files[name]))
    files[name] = files[name][:at] + passage + files[name][at + removed :]
    assert_told_or_true(files)


def test_a_header_cannot_drive_a_terminal() -> None:
    told = problems_of(sponsors="sponsor,name,deposit_yuan,\x1b[2Jweight\ndairy,a,1.00,1\n")
    assert all(str(one).isprintable() for one in told)


def test_yaml_of_too_many_values_is_refused_before_a_tree_is_built() -> None:
    (problem,) = problems_of(campaign="- a\n" * (NODES_MAX + 1))
    assert "write large tables as CSV" in problem.message
