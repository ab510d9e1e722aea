"""Builds small campaign files for tests, and reads them."""

from hongbao.domain.campaign import Campaign
from hongbao.domain.campaign_file import Problem, read_campaign

CAMPAIGN = """\
campaign: small-eve
title: 小年夜
budget_yuan: "3000.00"
key_cap_yuan: "500.00"
per_user_packets: 5
sponsors: sponsors.csv
active_scheme: main
schemes:
  - scheme: main
    title: 主方案
    script: main.csv
  - scheme: spare
    title: 备用方案
    script: spare.csv
slots:
  - slot: 1
    name: 开场
    starts_at: "2027-02-05T20:00:00+08:00"
    ends_at: "2027-02-05T20:10:00+08:00"
  - slot: 2
    name: 跨年
    starts_at: "2027-02-05T23:55:00+08:00"
    ends_at: "2027-02-06T00:05:00+08:00"
"""
SPONSORS = """\
sponsor,name,deposit_yuan,exposure_weight
dairy,云顶乳业,1000.00,10
tea,绿野茶饮,2000.00,30
"""
SCRIPT_HEADER = "sponsor,slot,kind,count,total_yuan,min_yuan,max_yuan,curve,resource\n"
MAIN = (
    SCRIPT_HEADER
    + """\
dairy,1,image,100,400.00,0.50,20.00,lucky,image/dairy.webp
dairy,2,video,150,600.00,0.50,20.00,uniform,video/dairy.mp4
tea,1,image,300,800.00,0.50,20.00,lucky,image/tea.webp
tea,2,logo,400,1200.00,0.50,20.00,lucky,logo/tea.svg
"""
)
SPARE = (
    SCRIPT_HEADER
    + """\
dairy,1,image,80,400.00,0.50,20.00,lucky,image/dairy.webp
dairy,2,image,120,600.00,0.50,20.00,lucky,image/dairy.webp
tea,1,image,200,800.00,0.50,20.00,lucky,image/tea.webp
tea,2,image,300,1200.00,0.50,20.00,lucky,image/tea.webp
"""
)


def small_files(**tables: str) -> dict[str, bytes]:
    """Return good files, or with whole texts replaced: campaign=, sponsors=, main=, spare=."""
    texts = {"campaign": CAMPAIGN, "sponsors": SPONSORS, "main": MAIN, "spare": SPARE, **tables}
    names = {"campaign": "campaign.yaml"}
    return {names.get(name, f"{name}.csv"): text.encode() for name, text in texts.items()}


def swapped(text: str, old: str, new: str) -> str:
    """Return the text with one passage replaced; it must be there exactly once."""
    assert text.count(old) == 1, (old, text.count(old))
    return text.replace(old, new)


def small_campaign(**tables: str) -> Campaign:
    campaign, problems = read_campaign(small_files(**tables))
    assert problems == []
    assert campaign is not None
    return campaign


def problems_of(**tables: str) -> list[Problem]:
    campaign, problems = read_campaign(small_files(**tables))
    assert (campaign is None) == bool(problems)
    return problems


def only_problem(**tables: str) -> Problem:
    problems = problems_of(**tables)
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]
