"""The chat page in chromium, with scripted answers."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from oracles import chromium
from oracles.chat_page import ChatPage
from oracles.scripted_server import Script, ScriptedServer, call, finish, text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
HOSTILE = "<script>document.title='hostile'</script><img src=x onerror=\"document.title='hostile'\">"
USAGE = {"prompt_tokens": 1234, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1024}}
PLAIN = Script([text("Fine, "), text("thanks."), finish("stop")], USAGE)
TWO_CALLS = Script(
    [
        text("Let me look."),
        call(0, "get_weather", '{"ci'),
        call(0, arguments='ty": "Ulm", "days": [1, 2]}'),
        call(1, "get_time", "{}"),
        finish("tool_calls"),
    ]
)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def page(browser: Any, server: ScriptedServer) -> Iterator[ChatPage]:
    chromium.resize(browser, 1440, 900)
    page = ChatPage(browser, server.url).ready("scripted")
    yield page
    assert browser.title == "scripted – faquant"  # and not what a message made of it


def user(content: str) -> Any:
    return {"role": "user", "content": content}


def assistant(content: str) -> Any:
    return {"role": "assistant", "content": content}


def test_reasoning_is_shown_apart_and_not_sent_back(page: ChatPage, server: ScriptedServer) -> None:
    thought = [{"delta": {"reasoning_content": part}} for part in ("Hm, <b>", "two.")]
    server.scripts = [Script([*thought, text("Fine."), finish("stop")]), PLAIN]
    page.ask("How are you?")
    details = page.one("article.assistant details.reasoning")
    assert details.get_property("textContent") == "ReasoningHm, <b>two."
    assert not details.get_property("open")
    page.ask("Really?")
    assert server.asked[1]["messages"] == [user("How are you?"), assistant("Fine."), user("Really?")]


def test_the_settings_reach_the_request(page: ChatPage, server: ScriptedServer) -> None:
    server.scripts = [PLAIN, PLAIN]
    page.ask("How are you?")
    bare = {"model": "scripted", "stream": True, "stream_options": {"include_usage": True}}
    assert server.asked[0] == {**bare, "messages": [user("How are you?")]}
    settings = {
        "temperature": "0.25",
        "top_p": "0.9",
        "max_tokens": "77",
        "seed": "-5",
        "system": "Be brief.",
        "tools": json.dumps([TOOL]),
    }
    for name, value in settings.items():
        page.fill(name, value)
    page.one("#tool_choice option:last-child").click()
    page.ask("And now?")
    assert server.asked[1] == {
        **bare,
        "messages": [
            {"role": "system", "content": "Be brief."},
            *(user("How are you?"), assistant("Fine, thanks."), user("And now?")),
        ],
        "temperature": 0.25,
        "top_p": 0.9,
        "max_tokens": 77,
        "seed": -5,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }
    assert "prompt 1,234 tokens (1,024 cached) · answer 2 tokens" in page.text(".stats")
    assert page.complaints() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "3"),
        ("top_p", "1.5"),
        ("max_tokens", "1.5"),
        ("seed", "1e300"),
        ("tools", "[{"),
        ("tools", "{}"),
    ],
)
@pytest.mark.parametrize("width", [375, 1440])
def test_a_wrong_setting_is_not_sent(
    page: ChatPage, server: ScriptedServer, width: int, field: str, value: str
) -> None:
    chromium.resize(page.browser, width, 812)
    if width == 375:
        page.one("#settings-toggle").click()
    page.fill(field, value)
    if width == 375:
        page.one("#settings-close").click()
        assert page.focused() == "settings-toggle"
    page.send("Hello")
    page.until(lambda: page.one("#settings-problem").is_displayed())
    assert page.text("#settings-problem").startswith(page.text(f"label[for={field}]"))
    assert page.focused() == field
    assert server.asked == []
    assert page.one("#input").get_property("value") == "Hello"


def test_calls_are_shown_and_their_results_sent(page: ChatPage, server: ScriptedServer) -> None:
    server.scripts = [TWO_CALLS, Script(status=503, error="Ending."), PLAIN, PLAIN]
    page.ask("Weather in Ulm?")
    assert [name.text for name in page.all(".call code")] == ["get_weather", "get_time"]
    pretty = '{\n  "city": "Ulm",\n  "days": [\n    1,\n    2\n  ]\n}'
    assert [each.get_property("textContent") for each in page.all(".call pre")] == [pretty, "{}"]
    assert page.browser.switch_to.active_element == page.all(".call textarea")[0]
    page.send("Well?")
    assert len(server.asked) == 1  # the calls wait for their results
    assert "result" in page.text("#notice")
    page.one("#input").clear()
    results = page.all(".call textarea")
    assert [each.get_property("labels")[0].text for each in results] == ["Result of get_weather", "Result of get_time"]
    results[0].send_keys("rain")
    page.one(".results button").click()
    page.until(lambda: "Ending." in page.text("#notice"))
    assert results[0].get_property("value") == "rain"
    page.one(".results button").click()
    page.until(lambda: len(page.answers()) == 2 and not page.running)
    calls = [("call_0", "get_weather", '{"city": "Ulm", "days": [1, 2]}'), ("call_1", "get_time", "{}")]
    conversation = [
        user("Weather in Ulm?"),
        {
            **assistant("Let me look."),
            "tool_calls": [
                {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id_, name, arguments in calls
            ],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ]
    assert server.asked[1]["messages"] == server.asked[2]["messages"] == conversation
    assert page.all(".call textarea") == []
    assert page.text(".result") == "rain"
    page.ask("Thanks")
    assert server.asked[3]["messages"] == [*conversation, assistant("Fine, thanks."), user("Thanks")]


@pytest.mark.parametrize(
    "script",
    [
        Script([text("Hm."), call(0, "get_weather", '{"ci'), finish("length")]),
        Script([text("Hm."), call(0, "get_weather", "{}")], done=False),
    ],
)
def test_a_call_that_is_cut_off_is_shown_but_not_sent(page: ChatPage, server: ScriptedServer, script: Script) -> None:
    server.scripts = [script, PLAIN]
    page.ask("Weather?")
    assert page.text(".call code") == "get_weather"
    assert page.all(".call textarea") == []
    assert "not complete" in page.text(".stats")
    page.ask("Again")
    assert server.asked[1]["messages"] == [user("Weather?"), assistant("Hm."), user("Again")]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(status=429, headers={"Retry-After": "1"}), "busy. Try again in 1 second."),
        (Script(status=429, headers={"Retry-After": "20"}), "Try again in 20 seconds."),
        (Script(status=400, error="The prompt has 9 tokens."), "The prompt has 9 tokens."),
        (Script(status=503, error="The server is shutting down."), "shutting down. Try again later."),
        (Script(error="Out of luck."), "Out of luck."),
        (Script(done=False), "connection was lost"),
    ],
)
def test_an_answer_that_fails_leaves_the_message(
    page: ChatPage, server: ScriptedServer, script: Script, words: str
) -> None:
    server.scripts = [PLAIN, script, PLAIN]
    page.ask("One")
    page.send("Two\ue008\ue007\ue000lines")
    page.until(lambda: not page.running and page.one("#notice").is_displayed())
    assert words in page.text("#notice")
    assert page.one("#input").get_property("value") == "Two\nlines"
    assert len(page.answers()) == 1
    page.one("#send").click()
    page.until(lambda: len(page.answers()) == 2 and not page.running)
    assert server.asked[2]["messages"] == [user("One"), assistant("Fine, thanks."), user("Two\nlines")]
    assert not page.one("#notice").is_displayed()


def test_text_received_before_the_connection_was_lost_is_kept(page: ChatPage, server: ScriptedServer) -> None:
    server.scripts = [Script([text("Half an ")], done=False), PLAIN]
    page.ask("One")
    assert "connection was lost" in page.text("#notice")
    assert "broken off" in page.text(".stats")
    page.ask("Two")
    assert server.asked[1]["messages"] == [user("One"), assistant("Half an "), user("Two")]


def test_an_empty_answer_is_reported(page: ChatPage, server: ScriptedServer) -> None:
    server.scripts = [Script([finish("stop")]), PLAIN]
    page.ask("One")
    assert page.answers() == ["An empty answer."]
    page.ask("Two")
    assert server.asked[1]["messages"] == [user("One"), assistant(""), user("Two")]
    assert page.complaints() == []


def test_a_new_conversation_ends_the_answer_and_forgets(page: ChatPage, server: ScriptedServer) -> None:
    server.scripts = [Script([text("Well, "), finish("stop")], held=threading.Event()), PLAIN]
    page.send("One")
    page.until(lambda: page.answers() == ["Well, "])
    page.one("#new").click()
    assert page.all("article") == []
    assert page.one("#empty").is_displayed()
    assert page.focused() == "input"
    page.ask("Two")
    assert server.asked[1]["messages"] == [user("Two")]
    assert page.answers() == ["Fine, thanks."]
    assert page.complaints() == []


def test_markup_shows_as_text(page: ChatPage, server: ScriptedServer) -> None:
    server.scripts = [Script([text(HOSTILE), call(0, HOSTILE, f'"{HOSTILE[:41]}"'), finish("tool_calls")])]
    page.ask(HOSTILE)
    assert page.text(".user .body") == page.text(".assistant .body") == page.text(".call code") == HOSTILE
    assert page.all("article script, article img") == []
    assert page.complaints() == []
