"""The report's page: it is complete, escaped, and self-contained."""

import copy
import json
import math
import random
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from faquant.evaluation.html import render

SAMPLE = Path(__file__).parents[1] / "data" / "report.json"
VOID = {"meta"}


@pytest.fixture
def report() -> dict[str, Any]:
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Elements and text of a page whose tags must be balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def headings(self) -> list[str]:
        return [tag for tag, _ in self.elements if re.fullmatch("h[1-6]", tag)]


def _sound(page: str) -> Page:
    """Check what every page must hold."""
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
    assert not {"script", "img", "link", "iframe", "object", "a"} & {tag for tag, _ in parsed.elements}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.partition("</style>")[2], re.IGNORECASE)
    headings = [int(tag[1]) for tag in parsed.headings()]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert parsed.attributes("html") == [{"lang": "en"}]
    assert all("scope" in attributes for attributes in parsed.attributes("th"))
    for attributes in parsed.attributes("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])
    return parsed


def test_the_sample_is_told_in_full(report: dict[str, Any]) -> None:
    page = _sound(render(report))
    assert [tag for tag in page.headings() if tag != "h3"] == ["h1"] + ["h2"] * 6
    for words in (
        "smollm2-fa8", "recipe default", "23,760", "1.94 times smaller", "163 MB", "worst: chinese, 2.89",
        "Clipped k:", "chinese", "167.97", "Needles found, of 3", "Lowest 20.0 in layer 0, head 1", "down_proj",
        "The first 16; 2 more", "default, lm_head float", "rotate_residual", "avx512vnni", "3f1c3f1c",
    ):  # fmt: skip
        assert words in page.text
    cells = [
        attributes for attributes in page.attributes("path") if re.fullmatch(r"c\d+", attributes.get("class") or "")
    ]
    assert len(cells) == 30 * (9 + 3 + 3 + 9 + 7) + 13
    assert sum(attributes.get("class") == "whisker" for attributes in page.attributes("path")) == 9
    assert len([key for key in page.elements if key == ("tr", {"class": "chosen"})]) == 1


def test_colors_can_be_read(report: dict[str, Any]) -> None:
    def luminance(color: str) -> float:
        shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    palettes = re.findall(r":root \{(.*?)\}", render(report), re.DOTALL)
    assert len(palettes) == 2
    for palette in palettes:
        colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", palette))
        assert len(colors) == 11
        for ground in ("paper", "wash", "warn"):
            for ink in ("ink", "soft", "noise", "attention", "linears", "both", "other"):
                bright, dark = sorted((luminance(colors[ground]), luminance(colors[ink])), reverse=True)
                assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ground, ink)


def test_the_verdict_is_the_mean_over_tokens(report: dict[str, Any]) -> None:
    both = [text["variants"]["both"] for text in report["texts"].values()]
    tokens = sum(result["tokens"] for result in both)
    kl = sum(result["kl_mean"] * result["tokens"] for result in both) / tokens
    assert f"moves by {kl * 1e3:.2f}" in Page(render(report)).text
    assert f"of {tokens:,} positions" in Page(render(report)).text


@pytest.mark.parametrize("value", [None, "missing"])
def test_any_section_may_be_missing(report: dict[str, Any], value: str | None) -> None:
    report["layers"] = report["layers"][:3]
    for section in list(report):
        part = copy.copy(report)
        part.pop(section) if value else part.update({section: None})
        _sound(render(part))
    page = _sound(render({}))
    assert page.headings() == ["h1"]


def test_any_value_may_be_null(report: dict[str, Any]) -> None:
    def emptied(value: Any, depth: int) -> Any:
        """`value` with everything at depth `depth` replaced by null."""
        if depth == 0:
            return None
        if isinstance(value, dict):
            return {key: emptied(item, depth - 1) for key, item in value.items()}
        return [emptied(item, depth - 1) for item in value] if isinstance(value, list) else value

    for depth in range(1, 7):
        _sound(render(emptied(report, depth)))


def test_text_is_never_markup(report: dict[str, Any]) -> None:
    hostile = "</title></style>\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"

    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            # Keep the keys of the schema; drop those that are names.
            return {
                hostile + key if key in ("prose", "both", "down_proj", "kv_scale") else key: spoiled(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        return hostile if isinstance(value, str) else value

    text = _sound(render(spoiled(report))).text
    assert "<script>alert(1)" in text
    assert "{{ 7 * 7 }}" in text


@pytest.mark.parametrize("extreme", [0, -1.0, 1e-300, 1e308, math.inf, -math.inf, math.nan, 10**400, True])
def test_extreme_numbers(report: dict[str, Any], extreme: float) -> None:
    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replaced(item) for item in value]
        return value if value is None or isinstance(value, str) else extreme

    _sound(render(replaced(report)))


def test_one_layer(report: dict[str, Any]) -> None:
    _sound(render({**report, "layers": report["layers"][:1]}))


def test_a_large_model_is_a_page_of_two_megabytes(report: dict[str, Any]) -> None:
    random_ = random.Random(1)

    def row(count: int) -> list[float]:
        return [random_.uniform(10, 50) for _ in range(count)]

    layer = report["layers"][0]
    report["layers"] = [{**layer, "q": row(64), "k": row(64), "v": row(64), "p": row(64)} for _ in range(80)]
    page = render(report)
    assert len(page.encode()) < 2_000_000
