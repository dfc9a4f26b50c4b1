"""A real Chromium, and pages in it that ask nobody else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

CLIPS = Path(__file__).parents[3] / "steering" / "demo" / "clips"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

expect.set_options(timeout=20_000)  # of a machine that is busy with other things

needs_browser = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; .ci/run installs Debian's"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = [
        "--no-sandbox",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={CLIPS / 'seven.wav'}",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser, url: str, size: str = "desktop", **more: Any) -> Iterator[Page]:
    """A page; fails for anything it asks of another host, and for errors in its console."""
    width, height = SIZES[size]
    own, strangers, complaints = urlsplit(url).netloc, [], []

    def note(request: Request) -> None:
        asked = urlsplit(request.url)
        if asked.scheme not in ("blob", "data") and asked.netloc != own:
            strangers.append(request.url)

    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    page = context.new_page()
    page.on("request", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    try:
        page.goto(url)
        yield page
        refused = re.compile("responded with a status of (4|503)")  # logged by Chromium, and shown
        assert not [text for text in complaints if not refused.search(text)]
        assert not strangers
    finally:
        context.close()
