"""The report: drawn from files, whole in itself, escaping what sponsors call themselves."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hongbao.domain.errors import NotFound, Rejected
from hongbao.report.chart import Series, TimeChart, nice_step, short
from hongbao.report.data import ReportData, read_report_data
from hongbao.report.page import build_page
from hongbao.report.plots import build_plots, plan_curve

from tests.report.samples import write_sample_run


@pytest.fixture
def run(tmp_path: Path) -> ReportData:
    write_sample_run(tmp_path)
    return read_report_data(tmp_path)


def test_the_page_needs_nothing_beside_itself(run: ReportData) -> None:
    page = build_page(run)
    assert not re.search(r"""(src|href)\s*=|@import|url\(|<script|https?://""", page)


def test_the_page_is_well_formed_and_names_are_escaped(run: ReportData) -> None:
    opened: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta",):
                opened.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    page = build_page(run)
    Checker().feed(page)
    assert opened == []
    assert "Eight Treasures &lt;Bank&gt;" in page
    assert "<Bank>" not in page


def test_every_plot_of_the_issue_is_there_and_is_valid_xml(run: ReportData) -> None:
    plots = build_plots(run)
    titles = []
    for plot in plots:
        figure = ElementTree.fromstring(plot)
        titles.append(figure.findtext("figcaption/b"))
    assert titles == [
        "Issue against plan",
        "Shakes and opens",
        "Latency, from the time the call was due",
        "Credit latency, open → credited",
        "Money by sponsor",
        "Packets by slot",
    ]


def test_faults_stand_on_the_time_axis_of_every_time_chart(run: ReportData) -> None:
    for plot in build_plots(run)[:4]:
        assert plot.count('class="mark"') == len(run.faults)
        assert "zone c lost for slot 3" in plot


def test_the_plan_curve_issues_each_slot_evenly_and_pauses_between(run: ReportData) -> None:
    curve = plan_curve(run)
    assert curve[:4] == [(0, 0), (0, 0), (10.5, 18_500), (12, 18_500)]
    assert curve[-1] == (62, 5 * 18_500)


def test_a_broken_equation_is_the_first_thing_the_page_says(run: ReportData) -> None:
    run.audit["equations"] = ["opened = credited + pending + quarantined"]
    assert 'class="verdict broken">broken: opened = credited' in build_page(run)


def test_a_run_without_series_is_drawn_without_their_plots(tmp_path: Path) -> None:
    write_sample_run(tmp_path)
    for name in ("samples", "settle", "faults"):
        (tmp_path / f"{name}.jsonl").unlink()
    assert len(build_plots(read_report_data(tmp_path))) == 2


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"report\.json"):
        read_report_data(tmp_path)
    write_sample_run(tmp_path)
    (tmp_path / "settle.jsonl").write_text("{}\n{\n")
    with pytest.raises(Rejected, match=r"settle\.jsonl:2"):
        read_report_data(tmp_path)


def test_a_field_that_is_missing_is_named(run: ReportData) -> None:
    del run.audit["minted_fen"]
    with pytest.raises(Rejected, match="minted_fen"):
        build_page(run)


@pytest.mark.parametrize("values", [[], [0.0], [1e-9, 1e9], [5.0]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_chart_of_any_values_stays_inside_its_frame(
    values: list[float], logarithmic: bool
) -> None:
    points = [(float(index), value) for index, value in enumerate(values)]
    chart = TimeChart("t", "u", 10, [Series("s", "c1", points)], logarithmic=logarithmic)
    svg = ElementTree.fromstring(chart.draw()).find("svg")
    assert svg is not None
    for line in svg.iter("polyline"):
        for spot in line.attrib["points"].split():
            x, y = map(float, spot.split(","))
            assert 0 <= x <= 920
            assert 0 <= y <= 260


def test_steps_and_numbers_are_round() -> None:
    assert [nice_step(most, 5) for most in (1, 7, 62, 4_000)] == [0.2, 2, 20, 1_000]
    assert [short(v) for v in (0, 0.5, 950, 1_200, 3_400_000)] == [
        "0",
        "0.5",
        "950",
        "1.2k",
        "3.4M",
    ]
