"""Keeps the tree tidy: sizes, generated files, the architecture table, checklist ids."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for folder in ("services", "tests", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if "hongbao/proto/" not in path.as_posix()
)
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
IDS_OF_THIS_ISSUE = [
    "R1",
    *(f"R{n}" for n in [*range(3, 10), *range(14, 22), *range(24, 31), *range(34, 57)]),
    "M8",
]


def tracked_text(*patterns: str) -> dict[str, str]:
    """Return the text of tracked files."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return {name: (ROOT / name).read_text("utf-8") for name in names if (ROOT / name).is_file()}


def test_no_module_is_longer_than_500_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in SOURCES
        if (n := p.read_text().count("\n")) > MODULE_LINES_MAX
    }
    assert long == {}


def test_no_function_is_longer_than_70_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = re.compile(r"(utils?|helpers?|common|base|managers?|misc)\.py$")
    assert [str(p) for p in SOURCES if empty.search(p.name)] == []


def test_nothing_that_serves_can_lose_a_cancellation() -> None:
    """Python 3.11's `wait_for` swallows one that comes with the answer: use `asyncio.timeout`."""
    folders = (ROOT / "services", ROOT / "tests" / "sim")
    served = [path for path in SOURCES if any(path.is_relative_to(one) for one in folders)]
    assert [str(one) for one in served if "asyncio.wait_for(" in one.read_text()] == []


def test_every_module_says_what_it_owns() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_generated_protos_are_fresh() -> None:
    command = [sys.executable, "tools/generate_protos.py", "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_the_architecture_table_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    table = text[text.index("## Component → file") :]
    missing = [
        name
        for path in sorted((ROOT / "services/hongbao").rglob("*.py"))
        if path.name != "__init__.py" and "hongbao/proto/" not in path.as_posix()
        if (name := path.relative_to(ROOT / "services/hongbao").as_posix()) not in table
    ]
    assert missing == []


def test_every_file_the_architecture_table_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    table = text[text.index("## Component → file") :]
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", table)
    assert named
    assert [name for name in named if not (ROOT / "services/hongbao" / name).exists()] == []


@pytest.mark.parametrize("checklist_id", IDS_OF_THIS_ISSUE)
def test_every_checklist_id_is_named_by_a_test(checklist_id: str) -> None:
    cited = re.compile(rf"\b{checklist_id}\b")
    for name, text in tracked_text("tests/*").items():
        if name.endswith("test_tidy.py"):
            continue
        if cited.search(text):
            return
    pytest.fail(f"no test cites {checklist_id}")


def test_no_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    host = re.compile(
        r"https?://[^\s\"'<>]*(pypi|pythonhosted|crates\.io|goproxy|npmjs|maven|deb\.debian)", re.I
    )
    home = re.compile(r"(?<![\w.])/(root|work|farm)/[a-z]")
    bad = [
        f"{name}:{number}"
        for name, text in tracked_text(
            "*.py", "*.md", "*.toml", "*.txt", "*.yaml", "Makefile", ".ci/run"
        ).items()
        if not name.endswith("test_tidy.py")
        for number, line in enumerate(text.splitlines(), 1)
        if host.search(line) or home.search(line)
    ]
    assert bad == []


def test_locks_carry_hashes_and_no_index() -> None:
    for name, text in tracked_text("requirements/*.txt").items():
        assert "--hash=sha256:" in text, name
        assert "index-url" not in text, name
