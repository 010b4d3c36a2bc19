"""The files of the chat page: how they are served, and that the wheel contains them."""

import re
import zipfile
from pathlib import Path

import httpx
import pytest
from scikit_build_core.build import build_wheel

from faquant.server.page import files as chat_page
from oracles.tiny_server import TinyServer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "src" / "faquant" / "server" / "page"
FILES = [path for path in PAGE.iterdir() if path.suffix not in ("", ".py")]
"""The files for the browser; the folder also has a Python module and a cache."""


def test_every_file_is_served_with_its_media_type(server: TinyServer) -> None:
    assert {f"/page/{path.name}" for path in FILES} | {"/"} == chat_page.PATHS
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for path in FILES:
        response = httpx.get(f"{server.url}/page/{path.name}")
        assert response.content == path.read_bytes()
        assert response.headers["content-type"].split(";")[0] == types[path.suffix]
        assert response.headers["x-content-type-options"] == "nosniff"
    index = httpx.get(f"{server.url}/")
    assert index.content == (PAGE / "index.html").read_bytes()
    assert httpx.head(f"{server.url}/").headers["content-length"] == str(len(index.content))


def test_the_policy_allows_its_own_files_only(server: TinyServer) -> None:
    policy = httpx.get(f"{server.url}/").headers["content-security-policy"]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["frame-ancestors"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_a_cached_file_is_revalidated(server: TinyServer) -> None:
    first = httpx.get(f"{server.url}/page/page.js")
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = httpx.get(f"{server.url}/page/page.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert httpx.get(f"{server.url}/page/page.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/page/", "/page/other.js", "/page/..%2Fapp.py", "/page/%2e%2e/app.py", "/page"])
def test_nothing_else_is_served(server: TinyServer, path: str) -> None:
    response = httpx.get(server.url + path, follow_redirects=False)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"


def test_the_page_needs_no_key_and_reveals_none() -> None:
    with TinyServer(api_key="secret") as server:
        for path in chat_page.PATHS:
            response = httpx.get(server.url + path)
            assert response.status_code == 200
            assert "secret" not in response.text
        assert httpx.get(f"{server.url}/page/other.js").status_code == 401
        assert httpx.post(f"{server.url}/").status_code == 405


def test_the_files_are_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wheel = build_wheel(str(tmp_path), {"wheel.cmake": "false", "wheel.py-api": ""})  # without the C++ extension
    packed = set(zipfile.ZipFile(tmp_path / wheel).namelist())
    assert {f"faquant/server/page/{path.name}" for path in FILES} <= packed
