"""Owns loading a campaign's files from disk; refuses to judge them: the domain does."""

from pathlib import Path

from hongbao.domain.campaign import Campaign
from hongbao.domain.campaign_file import ENTRY, Problem, named_files, read_campaign
from hongbao.domain.errors import Rejected
from hongbao.domain.yaml_file import FILE_BYTES_MAX

PROBLEMS_SHOWN_MAX = 20


def load_campaign(path: Path) -> tuple[Campaign | None, list[Problem]]:
    """Read a campaign file (or the folder that holds campaign.yaml) and the tables it names."""
    entry, files = read_files(path)
    return read_campaign(files, entry=entry)


def read_files(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the campaign file's name, and by name the bytes of it and the tables it names."""
    entry = path / ENTRY if path.is_dir() else path
    files = {entry.name: _read_limited(entry)} if entry.is_file() else {}
    if files:
        for name in named_files(entry.name, files[entry.name]):
            if (entry.parent / name).is_file():
                files[name] = _read_limited(entry.parent / name)
    return entry.name, files


def require_campaign(path: Path) -> Campaign:
    """Return the campaign. Raises Rejected that tells the problems, one a line."""
    campaign, problems = load_campaign(path)
    if campaign is None:
        lines = [str(problem) for problem in problems[:PROBLEMS_SHOWN_MAX]]
        left = len(problems) - len(lines)
        more = [f"and {left} more: `hongbao campaign check {path}` tells them"] if left else []
        raise Rejected("\n".join([f"{path} has problems:", *lines, *more]), field="campaign")
    return campaign


def _read_limited(path: Path) -> bytes:
    """Read one byte more than may be there, so that the domain sees that it is too much."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Rejected(f"{path} cannot be read: {error.strerror}", field="campaign") from error
