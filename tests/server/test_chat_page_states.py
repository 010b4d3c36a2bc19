"""The chat page in chromium in unusual conditions: sizes, keys, other tabs, a server that restarts."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from oracles import chromium
from oracles.chat_page import ChatPage
from oracles.scripted_server import Script, ScriptedServer, call, finish, text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

WORD = "immeasurable" * 30
USAGE = {"prompt_tokens": 10**9, "completion_tokens": 10**9, "prompt_tokens_details": {"cached_tokens": 10**8}}
STRAINED = Script(
    [
        text(f"{WORD}\n\n```\n{'code = ' * 60}\n{WORD}\n```\nשלום\n"),
        call(0, WORD, f'{{"{WORD}": "{WORD}"}}'),
        finish("tool_calls"),
    ],
    USAGE,
)
COUNT_WRITTEN = """
const append = CharacterData.prototype.appendData;
window.written = 0;
CharacterData.prototype.appendData = function (text) { window.written += text.length; append.call(this, text); };"""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def page(browser: Any, server: ScriptedServer) -> ChatPage:
    chromium.resize(browser, 1440, 900)
    return ChatPage(browser, server.url).ready("scripted")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 640), (375, 812), (768, 1024), (1440, 900)])
def test_nothing_is_wider_than_the_window(
    page: ChatPage, server: ScriptedServer, width: int, height: int, scheme: str
) -> None:
    chromium.resize(page.browser, width, height, scheme)
    assert page.too_wide() == []
    server.scripts = [STRAINED, Script(status=400, error=WORD)]
    page.ask(f"{WORD} {WORD}")
    page.one(".results button").click()
    page.until(lambda: page.one("#notice").is_displayed() and not page.running)
    page.fill("input", WORD)
    assert page.too_wide() == []
    assert page.browser.execute_script("return [innerWidth, document.documentElement.scrollHeight]") == [width, height]
    for part in ("#input", "#send", "#new", "#cache-bar"):
        assert page.one(part).is_displayed()
    if width < 1024:
        assert not page.one("#settings").is_displayed()
        page.one("#settings-toggle").click()
    assert page.one("#settings").is_displayed()
    assert page.too_wide() == []
    paper = page.one("html").value_of_css_property("background-color")
    assert (int(paper.split("(")[1].split(",")[0]) < 128) == (scheme == "dark")


def test_the_cache_is_shown(page: ChatPage) -> None:
    page.until(lambda: page.one("#cache").is_displayed())
    bar = page.one("#cache-bar")
    assert bar.get_attribute("aria-valuenow") == "25"
    assert bar.get_attribute("title") == "25 % in use, 10 % kept for prompts that begin alike, of 2,560 tokens"
    total = bar.size["width"]
    assert [round(100 * each.size["width"] / total) for each in page.all("#cache-bar > div")] == [25, 10]
    assert page.text("#cache p") == "Cache 25 %, kept 10 % · 1 running, 2 waiting"
    assert page.text("#context") == "2,560 tokens of context"


def test_everything_can_be_done_by_keys(page: ChatPage, server: ScriptedServer) -> None:
    assert page.focused() == "input"
    unnamed = (
        "return [...document.querySelectorAll('input, textarea, select')].filter(each => !each.labels.length).length"
    )
    assert page.browser.execute_script(unnamed) == 0
    page.send("   ")
    assert server.asked == []
    chromium.resize(page.browser, 375, 812)
    page.one("#settings-toggle").send_keys("\ue007")
    assert page.focused() == "system"
    assert page.one("main").get_property("inert")
    page.one("#system").send_keys("\ue00c")
    assert page.focused() == "settings-toggle"
    assert not page.one("main").get_property("inert")
    server.scripts = [Script([text("Well, "), finish("stop")], held=threading.Event())]
    page.send("One")
    page.until(lambda: page.answers() == ["Well, "])
    page.one("#input").send_keys("Two\ue007")  # waits until the answer has ended
    assert page.one("#input").get_property("value") == "Two"
    assert len(server.asked) == 1
    page.one("#stop").send_keys("\ue007")
    page.until(lambda: not page.running)
    assert page.focused() == "input"
    assert page.complaints() == []


def test_ten_thousand_tokens_are_written_once_each(page: ChatPage, server: ScriptedServer) -> None:
    added = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": COUNT_WRITTEN})
    try:
        page = ChatPage(page.browser, server.url).ready("scripted")
    finally:
        page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    pieces = [f" word{i}\n" if i % 16 == 15 else f" word{i}" for i in range(10_000)]
    server.scripts = [Script([*map(text, pieces), finish("stop")])]
    page.ask("Go on for long")
    whole = "".join(pieces)
    body = page.one("article.assistant .body")
    assert body.get_property("textContent") == whole.replace("\n", "")
    assert body.get_property("childElementCount") == whole.count("\n") + 1
    assert page.browser.execute_script("return written") == len(whole.replace("\n", "")) + len("Go on for long")
    bottom = "const log = document.getElementById('log'); return log.scrollHeight - log.scrollTop - log.clientHeight"
    page.until(lambda: page.browser.execute_script(bottom) < 2)


def test_the_scroll_position_of_a_reader_is_kept(page: ChatPage, server: ScriptedServer) -> None:
    release = threading.Event()
    server.scripts = [Script([text("line\n" * 200), text("end")], held=release)]
    page.send("Go on for long")
    page.until(lambda: page.answers() and len(page.answers()[0]) > 900)
    page.browser.execute_script("document.getElementById('log').scrollTop = 50")
    page.until(lambda: page.browser.execute_script("return new Promise(done => requestAnimationFrame(() => done(1)))"))
    release.set()
    page.until(lambda: not page.running)
    assert page.one("#log").get_property("scrollTop") == 50


def test_lines_and_code_stay_as_they_were_written(page: ChatPage, server: ScriptedServer) -> None:
    written = "One\n\n\n  two\n```python\nif x:\n\n    y()\n```\nlast `z` ``` no fence\n"
    server.scripts = [Script([*(text(letter) for letter in written), finish("stop")])]
    page.ask("Go on")
    assert page.copied("article.assistant .body").rstrip("\n") == written.rstrip("\n")
    code = [each.get_property("textContent") for each in page.all(".body .code")]
    assert code == ["```python", "if x:", "", "    y()", "```"]


def test_an_answer_is_complete_though_its_tab_was_in_the_background(page: ChatPage, server: ScriptedServer) -> None:
    release = threading.Event()
    server.scripts = [Script([text("Half. "), text("Whole.")], held=release), Script([text("Another.")])]
    first = page.browser.current_window_handle
    page.send("One")
    page.until(lambda: page.answers() == ["Half. "])
    page.browser.switch_to.new_window("tab")
    second = ChatPage(page.browser, server.url).ready("scripted")
    release.set()
    second.ask("Two")
    assert second.answers() == ["Another."]
    assert server.asked[1]["messages"] == [{"role": "user", "content": "Two"}]
    page.browser.close()
    page.browser.switch_to.window(first)
    page.until(lambda: not page.running)
    assert page.answers() == ["Half. Whole."]


def test_a_server_that_ends_and_comes_back_with_another_model(browser: Any) -> None:
    with ScriptedServer() as first:
        page = ChatPage(browser, first.url).ready("scripted")
        first.scripts = [Script([text("Well, "), text("never")], held=threading.Event())]
        page.send("One")
        page.until(lambda: page.answers() == ["Well, "])
    page.until(lambda: not page.running)
    assert "connection was lost" in page.text("#notice")
    page.send("Two")
    page.until(lambda: "cannot be reached" in page.text("#notice"))
    assert page.one("#input").get_property("value") == "Two"
    page.until(lambda: "cannot be reached" in page.text("#context"))
    assert not page.one("#cache").is_displayed()
    with ScriptedServer(first.port, "other") as second:
        page.ready("other")
        page.until(lambda: page.one("#cache").is_displayed())
        second.scripts = [Script([text("Here.")])]
        page.one("#send").click()
        page.until(lambda: page.answers() == ["Well, ", "Here."] and not page.running)
        assert second.asked[0]["model"] == "other"
        assert [each["content"] for each in second.asked[0]["messages"]] == ["One", "Well, ", "Two"]
    with ScriptedServer(first.port, "third") as third:  # too soon for the page to have seen it
        third.scripts = [Script(status=404, error="The model 'other' does not exist here.")]
        page.send("Three")
        page.until(lambda: "does not exist" in page.text("#notice"))
        page.ready("third")
