"""Made-up but realistic data of a minute of rain, in the form that the demo writes."""

import json
import math
from pathlib import Path
from typing import Any

START_MS = 1_770_480_000_000
SPONSORS = (
    ("Northwind Dairy 北风乳业", 412_350_00),
    ("Golden Carp Foods", 388_200_00),
    ("Lantern Mobile 灯笼移动", 301_990_50),
    ("Jade Rabbit Cosmetics", 276_400_00),
    ("Spring Airlines Club", 240_000_00),
    ("Plum Blossom Tea 梅花茶", 198_750_00),
    ("River & Sons Motors", 172_300_00),
    ("Eight Treasures <Bank>", 150_000_00),
    ("Bamboo Cloud", 120_808_80),
    ("Red Sorghum Spirits", 96_500_00),
    ("Paper Tiger Books", 54_250_00),
)
FAULTS = (
    (11.0, None, "kill", "access-a-0 killed with SIGKILL"),
    (18.5, None, "kill", "redeem-b-0, owner of claims shards 1 and 4, killed with SIGKILL"),
    (24.0, 36.0, "zone", "zone c lost for slot 3"),
    (38.0, None, "key", "key 17 put on the deny list"),
    (40.0, 44.0, "switch", "switch issue_speed set to 0.5 for 4 s"),
    (47.0, None, "scheme", "scheme 2 activated for slot 5"),
)


def build_samples(seconds: int = 62) -> list[dict[str, Any]]:
    samples = []
    for index in range(1, seconds * 2):
        t = index / 2
        inside = (t % 12) / 12
        rain = t < 60 and inside < 0.86
        wanted = (2600 + 1400 * math.sin(t / 4)) / 2 if t < 60 else 0
        wobble = 1 + 0.08 * math.sin(7 * t)
        packets = int(1700 / 2 * wobble * (0.62 if 24 < t < 36 else 1)) if rain else 0
        hit = 1 + 9 * math.exp(-((t - 18.9) ** 2) / 0.5) + 4 * math.exp(-((t - 11.2) ** 2) / 0.2)
        lost = int(
            300 * math.exp(-((t - 11.2) ** 2) / 0.2) + 500 * math.exp(-((t - 24.3) ** 2) / 0.2)
        )
        samples.append(
            {
                "at_ms": START_MS + int(t * 1000),
                "elapsed_s": t,
                "interval_s": 0.5,
                "phase": "rain",
                "wanted": int(wanted),
                "held_back": int(wanted * 0.1),
                "shakes": {
                    "PACKET": packets,
                    "NOTHING": int(max(0, wanted * 0.8 - packets)) if rain else 0,
                    "NOT_STARTED": 0 if rain else int(wanted * 0.2),
                    "LOST": lost,
                },
                "opens": {"OPENED": int(packets * 0.99)},
                "open_repeats": {"UNAVAILABLE": int((hit - 1) * 40)},
                "shed": 0,
                "opened_fen": packets * 212,
                "shake_latency": latency(int(wanted), 1.9 * hit**0.3, 7.5 * hit),
                "open_latency": latency(packets, 8.8 * hit**0.5, 31 * hit**1.6),
                "shakes_in_flight": 40,
                "opens_waiting": 300,
                "gateways_up": 3,
                "late_ms": 1.2,
            }
        )
    return samples


def latency(count: int, p50_ms: float, p99_ms: float) -> dict[str, float]:
    return {"count": count, "p50_ms": p50_ms, "p99_ms": p99_ms, "max_ms": p99_ms * 2}


def write_sample_run(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    samples = build_samples()
    opened = sum(sample["opens"].get("OPENED", 0) for sample in samples)
    minted_fen = sum(fen for _, fen in SPONSORS)
    credited_fen = sum(int(fen * 0.42) for _, fen in SPONSORS)
    settle, credited = [], 0.0
    for sample in samples:
        credited += sample["opens"].get("OPENED", 0)
        t = sample["elapsed_s"]
        p99 = 0.45 + 2.1 * math.exp(-((t - 19.5) ** 2) / 1.5)
        settle.append(
            {
                "at_ms": sample["at_ms"] + 400,
                "credited": int(credited * 0.998),
                "credited_fen": int(credited * 212),
                "lag": 200,
                "p50_s": p99 / 3,
                "p99_s": p99,
            }
        )
    write_lines(folder / "samples.jsonl", samples)
    write_lines(folder / "settle.jsonl", settle)
    write_lines(
        folder / "faults.jsonl",
        [
            {
                "at_ms": START_MS + int(at * 1000),
                "until_ms": START_MS + int(until * 1000) if until else None,
                "kind": kind,
                "text": text,
            }
            for at, until, kind, text in FAULTS
        ],
    )
    audit = {
        "minted_fen": minted_fen,
        "opened_fen": credited_fen,
        "credited_fen": credited_fen,
        "pending_fen": 0,
        "quarantined_fen": 0,
        "unclaimed_fen": minted_fen - credited_fen,
        "refunded_fen": minted_fen - credited_fen,
        "packets_minted": 1_200_000,
        "packets_opened": opened,
        "paid_twice": 0,
        "claims_lost": 0,
        "residue_packets": 412,
        "credit_p99_s": 1.74,
        "equations": "hold",
    }
    (folder / "audit.json").write_text(json.dumps(audit))
    (folder / "report.json").write_text(json.dumps(build_facts(), ensure_ascii=False))


def build_facts() -> dict[str, Any]:
    names = ("20:00 opening", "21:00 comedy", "22:00 songs", "23:00 magic", "00:00 bells")
    slots = [
        {
            "slot": number,
            "name": name,
            "scheme": 2 if number == 5 else 1,
            "starts_at_ms": START_MS + (number - 1) * 12_000,
            "ends_at_ms": START_MS + number * 12_000 - 1_500,
            "packets": 18_500,
            "issued": 11_600 if number == 3 else 18_050,
            "opened": 11_400 if number == 3 else 17_900,
            "residue_packets": 412 if number == 1 else 0,
        }
        for number, name in enumerate(names, 1)
    ]
    sponsors = [
        {
            "sponsor": name,
            "minted_fen": fen,
            "credited_fen": int(fen * 0.42),
            "pending_fen": int(fen * 0.01),
            "quarantined_fen": 0,
            "unclaimed_fen": fen - int(fen * 0.42) - int(fen * 0.01),
            "refunded_fen": int((fen - int(fen * 0.42)) * 0.7),
        }
        for name, fen in SPONSORS
    ]
    return {
        "title": "New Year's Eve 红包雨",
        "campaign": "new-year",
        "seed": 20160207,
        "started_at_ms": START_MS,
        "ended_at_ms": START_MS + 62_000,
        "machine": {"cores": 2, "model": "AMD EPYC", "memory": "23 GiB"},
        "figures": {"simulated users": 6_000, "claims shards": 6, "gateways": 3},
        "slots": slots,
        "sponsors": sponsors,
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
