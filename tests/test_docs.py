"""Files that the documentation names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FILES = [
    f"/{path.relative_to(ROOT)}"
    for folder in ("src", "csrc", "tests", "docs", "benchmarks", "examples", ".github", "findings")
    for path in (ROOT / folder).rglob("*")
]
_CODE = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|h|cpp|md|sh|jinja|toml|yml))`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page: Path) -> None:
    names = set(_CODE.findall(page.read_text(encoding="utf-8")))
    # A checklist writes NAME for what is to be made.
    wanted = [name for name in names if "NAME" not in name]
    assert not [name for name in wanted if not any(path.endswith(f"/{name}") for path in FILES)]


def test_prose_is_narrow() -> None:
    """Lines of at most 120 characters, but for tables and addresses."""
    wide = [
        f"{page.name}:{number}"
        for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120 and not line.startswith("|") and "://" not in line
    ]
    assert not wide
