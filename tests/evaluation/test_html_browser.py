"""The report's page as chromium shows it: at a phone's and a desktop's width, light and dark."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faquant.evaluation.html import render
from oracles import chromium

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SAMPLE = Path(__file__).parents[1] / "data" / "report.json"
TEXT_OUTSIDE = """
return [...document.querySelectorAll("svg")].flatMap(svg => {
    const box = svg.viewBox.baseVal;
    return [...svg.querySelectorAll("text")].filter(text => {
        const {x, y, width, height} = text.getBBox();
        const [right, bottom] = [box.x + box.width, box.y + box.height];
        return x < box.x - 1 || y < box.y - 1 || x + width > right + 1 || y + height > bottom + 1;
    }).map(text => `${svg.getAttribute("aria-label")}: ${text.textContent}`);
});"""
TEXT_OVERLAPPING = """
return [...document.querySelectorAll("svg")].flatMap(svg => {
    const texts = [...svg.querySelectorAll("text")].map(text => [text.getBBox(), text.textContent]);
    return texts.flatMap(([a, first], i) => texts.slice(i + 1).filter(([b]) =>
        Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x) > 1 &&
        Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y) > 4
    ).map(([, second]) => `${svg.getAttribute("aria-label")}: ${first} | ${second}`));
});"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = chromium.start()
    yield driver
    driver.quit()


def _report(kind: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(SAMPLE.read_text(encoding="utf-8"))
    if kind == "strained":
        report["model"]["directory"] = f"/{'long' * 60}/<script>document.title = 'hostile'</script>{'name' * 60}"
        report["texts"] = {name * 20: text for name, text in report["texts"].items()}
        report["texts"]["enormous"] = {"tokens": 9, "variants": {"both": {"kl_mean": 1e300, "kl_error": 1e308}}}
        report["offsets"]["offsets"] = [0, 4096, 1e6, 8e6]
        report["offsets"]["variants"] = {"variant" * 20: [6e2, 2e-1, None, 1e9]}
        report["long"]["variants"] = {"both": [3e-9 * i for i in range(8)]}
        report["search"]["candidates"][0]["change"] = "change" * 50
        wide = {
            "q": [20.0] * 64,
            "k": [31.0] * 64,
            "linears": {f"a_linear_of_a_long_name_{i}": 30.0 for i in range(9)},
            "stream": 12345.6,
        }
        report["layers"] = [wide] * 80
    return report


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)])
@pytest.mark.parametrize("kind", ["sample", "strained"])
def test_the_page_fits_and_is_quiet(
    browser: Any, tmp_path: Path, kind: str, width: int, height: int, scheme: str
) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(_report(kind)), encoding="utf-8")
    chromium.resize(browser, width, height, scheme)
    browser.get_log("performance")
    browser.get(page.as_uri())

    assert browser.title.endswith("quantization loss")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    assert not [event for event in events if event["method"] == "Network.loadingFailed"]
    requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert requests == [page.as_uri()]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return innerWidth") == width
    paper = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (int(paper.removeprefix("rgb(").split(",")[0]) < 128) == (scheme == "dark")
    assert browser.execute_script(TEXT_OUTSIDE) == []
    assert browser.execute_script(TEXT_OVERLAPPING) == []
