"""The chat page in chromium, with a server of a tiny model."""

from collections.abc import Iterator
from typing import Any

import pytest

from oracles import chromium
from oracles.chat_page import ChatPage
from oracles.tiny_server import NAME, BytesEngine, TinyServer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def slow_server() -> Iterator[TinyServer]:
    """A server with slow tokens, so that tests can watch answers."""
    with TinyServer(BytesEngine(slow=0.02, pages=20)) as server:
        yield server


@pytest.fixture
def page(browser: Any, slow_server: TinyServer) -> Iterator[ChatPage]:
    chromium.resize(browser, 1440, 900)
    yield ChatPage(browser, slow_server.url).ready(NAME)
    slow_server.wait_until_nothing_is_held()


def test_an_answer_streams_in(page: ChatPage, slow_server: TinyServer) -> None:
    page.fill("temperature", "0")
    page.fill("max_tokens", "60")
    asked: Any = {"model": NAME, "temperature": 0, "max_tokens": 60}
    messages: Any = [{"role": "user", "content": "One day"}]
    expected = slow_server.client().chat.completions.create(messages=messages, **asked)
    page.send("One day")
    part = page.until(lambda: page.answers() and page.answers()[0])
    assert page.running
    assert page.text("article.user .body") == "One day"
    assert page.one("#input").get_property("value") == ""
    page.until(lambda: not page.running)
    answer = expected.choices[0].message.content
    shown = page.one("article.assistant .body").get_property("textContent")
    assert len(part) < len(answer)
    assert shown == answer.replace("\n", "")
    stats = page.text(".stats")
    assert "tokens/s" in stats
    assert "first token after" in stats
    assert f"prompt {expected.usage.prompt_tokens} tokens" in stats
    assert f"answer {expected.usage.completion_tokens} tokens" in stats
    assert page.complaints() == []
    assert all(path.startswith("/") for path in page.requested())


def test_the_next_question_follows_the_conversation(page: ChatPage, slow_server: TinyServer) -> None:
    page.fill("max_tokens", "8")
    page.fill("system", "x" * 100)
    page.ask("First")
    page.ask("Second")
    assert [user.text for user in page.all("article.user")] == ["First", "Second"]
    assert "cached)" in page.all(".stats")[1].text
    assert page.complaints() == []


@pytest.mark.parametrize("by_key", [False, True])
def test_stop_keeps_the_text_and_frees_the_pages(page: ChatPage, slow_server: TinyServer, by_key: bool) -> None:
    steps = slow_server.engine.stats().steps
    page.fill("seed", "1")
    page.send("Tell me everything")
    page.until(lambda: page.answers() and page.answers()[0])
    page.until(lambda: int(page.one("#cache-bar").get_attribute("aria-valuenow")) > 0)
    assert "1 running" in page.text("#load-text")
    if by_key:
        page.one("#input").send_keys("\ue00c")
    else:
        page.one("#stop").click()
    slow_server.wait_until_nothing_is_held(5)
    assert slow_server.engine.stats().steps - steps < 600  # of 1,200 that fit into the cache
    page.until(lambda: not page.running)
    assert "stopped" in page.text(".stats")
    assert page.answers()[0]
    assert page.focused() == "input"
    page.until(lambda: "0 running" in page.text("#load-text"))
    page.fill("max_tokens", "4")
    page.ask("Go on")
    assert "tokens" in page.all(".stats")[1].text
    assert page.complaints() == []


def test_an_error_is_shown_in_words_and_the_message_kept(page: ChatPage) -> None:
    page.fill("max_tokens", "2000000")
    page.send("One day")
    page.until(lambda: "max_tokens is 2000000" in page.text("#notice"))
    assert page.one("#input").get_property("value") == "One day"
    assert page.all("article") == []
    assert page.one("#empty").is_displayed()
    page.fill("max_tokens", "4")
    page.one("#send").click()
    page.until(lambda: page.all(".stats") and "answer" in page.text(".stats"))
    assert not page.one("#notice").is_displayed()


def test_the_key_is_asked_for_and_kept_for_this_tab_only(browser: Any) -> None:
    with TinyServer(api_key="secret") as server:
        page = ChatPage(browser, server.url)
        page.until(lambda: page.one("#key-dialog").is_displayed())
        assert page.focused() == "key"
        page.fill("key", "wrong\ue007")
        page.until(lambda: page.one("#key-problem").is_displayed())
        page.fill("key", "secret\ue007")
        page.ready(NAME)
        assert not page.one("#key-dialog").is_displayed()
        page.fill("max_tokens", "4")
        page.ask("One day")
        assert "answer" in page.text(".stats")
        kept = browser.execute_script("return [{...sessionStorage}, localStorage.length, document.cookie]")
        assert kept == [{"faquant-api-key": "secret"}, 0, ""]
        browser.refresh()
        page.ready(NAME)


def test_without_the_key_a_message_is_kept(browser: Any) -> None:
    with TinyServer(api_key="secret") as server:
        page = ChatPage(browser, server.url)
        page.until(lambda: page.one("#key-dialog").is_displayed())
        page.one("#key-cancel").click()
        page.send("One day")
        page.until(lambda: page.one("#key-dialog").is_displayed())
        assert page.one("#input").get_property("value") == "One day"
        assert "key" in page.text("#notice")


def test_a_tab_that_is_closed_frees_its_pages(browser: Any, slow_server: TinyServer) -> None:
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    page = ChatPage(browser, slow_server.url).ready(NAME)
    page.send("Tell me everything")
    page.until(lambda: slow_server.engine.state().used_pages)
    steps = slow_server.engine.stats().steps
    browser.close()
    browser.switch_to.window(first)
    slow_server.wait_until_nothing_is_held(5)
    assert slow_server.engine.stats().steps - steps < 600
