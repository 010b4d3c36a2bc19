"""A browser without a window."""

import os
import shutil
from typing import Any

import pytest


def start() -> Any:
    """A driver of chromium, which logs what the page says and what it loads."""
    # These tests run only where they are asked for, and then a missing browser is no reason to pass.
    from selenium import webdriver

    paths = shutil.which("chromium"), shutil.which("chromedriver")
    if None in paths:
        pytest.fail("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # chromium refuses root otherwise
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))


def resize(browser: Any, width: int, height: int, scheme: str = "light") -> None:
    """Phones are those narrower than 600."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    # What listens to the width is told before the next frame.
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
