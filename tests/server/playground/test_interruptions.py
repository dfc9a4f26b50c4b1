"""The playground while a server loads, an answer runs, a limit is met, or the microphone fails."""

from __future__ import annotations

import json
import re
from typing import Any

from playwright.sync_api import Browser, Page, Route, expect

from tests.server.playground.conftest import needs_browser, visit
from tests.server.playground.test_playground import heat

pytestmark = needs_browser

# Streams that the page got, in a list; a recorder that can't start.
BROKEN_RECORDER = """() => {
  window.streams = [];
  const media = navigator.mediaDevices, get = media.getUserMedia.bind(media);
  media.getUserMedia = async (wish) => { streams.push(await get(wish)); return streams.at(-1); };
  MediaRecorder.prototype.start = () => { throw new Error("no start"); };
}"""


def click_ask(page: Page) -> None:
    expect(page.locator("#sound-name")).to_have_text(re.compile("dog.wav"))
    page.get_by_role("button", name="Ask bare and steered").click()


def test_a_server_that_loads_is_asked_for_its_probe_only(browser: Browser, start: Any) -> None:
    with start() as server, server.on_a_port() as url:
        server.deployment.state = "loading"
        server.deployment.progress.stage = "3 of 9 are recorded"
        with visit(browser, f"{url}/") as page:
            state = page.locator("#state")
            expect(state).not_to_have_text("connecting")
            errors = {"route": "/listening-score", "status": "503"}
            assert server.metric("allears_requests_total", **errors) == 0
            expect(state).to_have_text("3 of 9 are recorded")
            server.deployment.state = "ready"
            expect(state).to_have_text("tiny, ready")


def test_a_sound_that_is_chosen_meanwhile_keeps_its_own_picture(
    browser: Browser, start: Any, gate: Any
) -> None:
    with start() as server, server.on_a_port() as url, visit(browser, f"{url}/") as page:
        gate.close()
        click_ask(page)
        server.wait_until(lambda: gate.held)
        page.get_by_role("button", name="seven").click()
        expect(page.locator("#sound-name")).to_have_text(re.compile("seven.wav"))
        expect(page.get_by_role("button", name="Ask about silence")).to_be_disabled()
        gate.open()
        expect(page.locator("#code")).to_be_visible()
        assert "dog.wav" in page.locator("#curl").inner_text()
        expect(page.locator("#gauge-words")).to_have_text(re.compile("^About dog.wav"))
        assert not any(heat(page))
        expect(page.locator("#legend")).to_be_hidden()


def test_requests_whose_answers_nobody_reads_end(browser: Browser, start: Any, gate: Any) -> None:
    asked = []

    def refuse_the_second(route: Route) -> None:
        asked.append(route)
        error = {"message": "the queue is full", "code": "queue_full"}
        if len(asked) == 2:
            route.fulfill(status=429, body=json.dumps({"error": error}))
        else:
            route.continue_()

    with start() as server, server.on_a_port() as url, visit(browser, f"{url}/") as page:
        gate.close()
        page.route("**/v1/audio-chat", refuse_the_second)
        with page.expect_event("requestfailed", timeout=5_000):
            click_ask(page)
        expect(page.get_by_role("alert")).to_have_text("the queue is full")
        click_ask(page)
        expect(page.get_by_role("alert")).to_be_hidden()
        with page.expect_event("requestfailed", timeout=5_000):
            page.get_by_label("Question", exact=True).press("Control+Enter")
        expect(page.get_by_role("button", name="Ask bare and steered")).to_be_disabled()
        gate.open()
        expect(page.locator("#code")).to_be_visible()
        server.wait_until(lambda: server.deployment.in_flight == 0)


def test_a_recorder_that_fails_leaves_the_microphone(browser: Browser, running_url: str) -> None:
    with visit(browser, f"{running_url}/", permissions=["microphone"]) as page:
        page.evaluate(BROKEN_RECORDER)
        page.evaluate("for (let i = 0; i < 2; i++) document.getElementById('record').click()")
        expect(page.get_by_role("alert")).to_have_text(re.compile("no start"))
        assert page.evaluate("streams.map((stream) => stream.active)") == [False]
        page.get_by_role("button", name="Record").click()
        page.wait_for_function("streams.length === 2")
