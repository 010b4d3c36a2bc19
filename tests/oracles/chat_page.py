"""The chat page in a browser, as a person uses it."""

import json
import time
from collections.abc import Callable
from typing import Any

# The right edge of whatever is wider than the window, and is no part of something that scrolls by itself.
_OUTSIDE = """
return [...document.querySelectorAll("body *")].filter(element => {
    const box = element.getBoundingClientRect();
    const seen = box.width > 1 && getComputedStyle(element).visibility === "visible";
    return seen && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(element => element.outerHTML.slice(0, 80));"""
_SCROLLERS = """
return [document.documentElement, document.getElementById("log"), document.getElementById("settings")]
    .filter(element => element.scrollWidth > element.clientWidth).map(element => element.id || element.tagName);"""


class ChatPage:
    """Opened anew, at a server."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        self.url = url
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(f"{url}/")
        browser.execute_script("sessionStorage.clear()")
        browser.get(f"{url}/")

    def until(self, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := condition():
                return result
            time.sleep(0.02)
        raise AssertionError(f"did not happen; the page says {self.text('body')!r}")

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def text(self, selector: str) -> str:
        return str(self.one(selector).get_property("innerText"))

    def copied(self, selector: str) -> str:
        """What a person gets who selects that and copies it."""
        script = "getSelection().selectAllChildren(arguments[0]); return getSelection().toString()"
        return str(self.browser.execute_script(script, self.one(selector)))

    def focused(self) -> str:
        return str(self.browser.execute_script("return document.activeElement.id"))

    def fill(self, identifier: str, value: str) -> None:
        field = self.one(f"#{identifier}")
        field.click()  # where a dialog gave the focus back, chromedriver's first keys get lost
        field.clear()
        if len(value) < 100:
            field.send_keys(value)
        else:  # typing takes chromedriver seconds
            self.browser.execute_script("arguments[0].value = arguments[1]", field, value)

    def ready(self, model: str) -> "ChatPage":
        self.until(lambda: self.text("#model") == model)
        return self

    def send(self, message: str) -> None:
        """Begin an answer. Enter sends."""
        self.fill("input", message)
        self.one("#input").send_keys("\ue007")

    @property
    def running(self) -> bool:
        return bool(self.one("#stop").is_displayed())

    def ask(self, message: str) -> None:
        """Send, and wait for the end of the answer."""
        before = len(self.all("article.assistant"))
        self.send(message)
        self.until(lambda: len(self.all("article.assistant")) > before and not self.running)

    def answers(self) -> list[str]:
        return [str(body.get_property("innerText")) for body in self.all("article.assistant .body")]

    def too_wide(self) -> list[str]:
        return [*self.browser.execute_script(_OUTSIDE), *self.browser.execute_script(_SCROLLERS)]

    def complaints(self) -> list[str]:
        """What the browser found wrong since the page was opened: errors, breaches of its policy, and the like."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requested(self) -> set[str]:
        """Paths of all requests since then, whole addresses where they are another server's."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
        return {url.removeprefix(self.url) for url in urls}
