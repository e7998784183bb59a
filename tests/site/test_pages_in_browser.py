"""Test every page of the site in headless Chromium, on a wide screen and on a telephone's.

One browser loads each page into a frame of 1280 and of 400 pixels and measures its DOM; `measure.html` says how. No
driver is needed: the browser fetches the pages from a server of this process, and posts what it measured.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.servers import need_program

ROOT = Path(__file__).parents[2]
WIDTHS = (1280, 400)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_S = 600
# Every other item of a result lists what is wrong.
_ABOUT = ("page", "width", "snippets", "cells")


def build(folder: Path) -> Path:
    """Return the folder of the site: the one that `make docs` has just built, or a new one."""
    if built := os.environ.get("HUTCH_SITE"):
        return Path(built)
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, check=True, cwd=ROOT, timeout=_PATIENCE_S, env=environ)
    return folder


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serve the site, and take the results under `/-/`."""

    server: _Site

    def do_GET(self) -> None:
        if self.path == "/-/measure.html":
            self._answer("text/html", (Path(__file__).parent / "measure.html").read_bytes())
        elif self.path == "/-/pages.json":
            self._answer("application/json", json.dumps({"pages": self.server.pages, "widths": WIDTHS}).encode())
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self.server.results = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer("text/plain", b"")
        self.server.done.set()

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


class _Site(http.server.ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.pages = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("index.html"))
        self.results: list[dict[str, Any]] = []
        self.done = threading.Event()

    def __enter__(self) -> _Site:
        threading.Thread(target=self.serve_forever, name="site").start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return one dict per page and width: what is wrong with it, by kind."""
    program = need_program(next(filter(shutil.which, _BROWSERS), _BROWSERS[0]))
    folder = tmp_path_factory.mktemp("site")
    log = folder / "chromium.log"
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-background-networking", f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    with _Site(build(folder / "built")) as site, log.open("wb") as output:
        url = f"http://127.0.0.1:{site.server_port}/-/measure.html"
        browser = subprocess.Popen(
            [*command, "--remote-debugging-port=0", url], stdout=output, stderr=output, start_new_session=True
        )
        try:
            assert site.done.wait(_PATIENCE_S), f"no results after {_PATIENCE_S} s\n{log.read_text()[-3000:]}"
        finally:
            browser.terminate()
            browser.wait(30)
    return site.results


@pytest.mark.timeout(900)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_snippet_overflows_no_word_of_a_table_breaks_and_plots_are_readable(
    width: int, measured: list[dict[str, Any]]
) -> None:
    pages = [page for page in measured if page["width"] == width]
    sources = list((ROOT / "docs").rglob("*.md"))
    assert len(pages) == len(sources), sorted(page["page"] for page in pages)
    wrong = [
        f"{page['page']}: {kind}: {item}"
        for page in pages
        for kind, items in page.items()
        if kind not in _ABOUT
        for item in items
    ]
    assert not wrong, "\n".join(wrong)
    # The measurement saw what it was made for.
    assert sum(page["snippets"] for page in pages) > 50
    assert sum(page["cells"] for page in pages) > 500
