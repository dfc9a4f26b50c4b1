"""The playground and /docs in a real Chromium: asked, looked at, and asking nobody else."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from operator import sub
from pathlib import Path
from typing import Any

import pytest
import soundfile
from playwright.sync_api import Browser, Page, expect

from tests.server.playground.conftest import CLIPS, SIZES, needs_browser, visit

ROOT = Path(__file__).parents[3]
SCREENSHOTS = ROOT / "build" / "screenshots"
VERDICTS = json.loads((ROOT / "steering" / "demo" / "profile" / "profile.json").read_text())[
    "verdicts"
]


# ---- without a browser


def test_pages_are_files_of_this_server_under_a_strict_policy(server: Any) -> None:
    assert server.get("/").headers["location"] == "playground/"
    for path in ("/playground/", "/docs"):
        page = server.get(path)
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "connect-src 'self'" in policy
        assert "http" not in policy and "*" not in policy
        for source in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
            assert not re.match(r"\w+:|//", source), f"{source} stands on another host"
            if not source.startswith(".."):
                there = path.rsplit("/", 1)[0] + "/" + source
                assert server.get(there).status_code == 200, there
    assert "unsafe" not in server.get("/playground/").headers["content-security-policy"]
    assert server.get("/playground/clips/dog.wav").content == (CLIPS / "dog.wav").read_bytes()


@pytest.mark.parametrize(
    "name", ["../app.py", "..%2fapp.py", "clips/%2e%2e/../app.py", "nope", "x/"]
)
def test_nothing_else_is_served(server: Any, name: str) -> None:
    assert server.get(f"/playground/{name}").status_code == 404


def test_pages_need_no_key_and_what_they_ask_does(start: Any) -> None:
    with start(api_keys="a-key") as server:
        for path in ("/", "/playground", "/playground/", "/playground/playground.js"):
            assert server.get(path).status_code in (200, 307)
        for path in (
            "/docs",
            "/openapi.json",
            "/listening-score",
            "/playground2",
            "/playgrounds/x",
        ):
            assert server.get(path).status_code == 401


# ---- in a browser


def shown_text(page: Page, card: str) -> str:
    text = page.locator(f"#{card} .text")
    expect(text).to_have_text(re.compile(r"\w"))
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    return text.inner_text()


def ask(page: Page, question: str, choices: str) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Choices").fill(choices)
    page.get_by_role("button", name="Ask bare and steered").click()
    expect(page.locator("#code")).to_be_visible(timeout=20_000)


def take_screenshot(page: Page, name: str) -> None:
    page.wait_for_timeout(400)  # the bars have grown
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"playground-{name}.png", full_page=True)


def encode(wav: Path, file: Path, codec: str) -> None:
    """Write a WAV file's sound as another container and codec."""
    av = pytest.importorskip("av", reason="needs the extra `av`")
    samples, rate_hz = soundfile.read(wav, dtype="int16")
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate, frame.pts = rate_hz, 0
    with av.open(file, "w") as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        for part in (frame, None):
            output.mux(stream.encode(part))


def heat(page: Page, columns: int = 10) -> list[int]:
    """How much more red than blue so many columns of the picture's first row are."""
    redness: list[int] = page.evaluate(
        """(n) => { const c = document.getElementById("wave"), p = c.getContext("2d");
        return [...Array(n).keys()].map((i) => {
          const [r, , b, a] = p.getImageData((i + .5) * c.width / n, 2, 1, 1).data;
          return Math.round((r - b) * a / 255); }); }""",
        columns,
    )
    return redness


# Colours as they are seen, as lists of red, green and blue: behind each word, of the text, of
# the card.
SHADES = """() => {
  const list = (text) => text.match(/[\\d.]+/g).map(Number);
  const style = (element) => getComputedStyle(element);
  const card = list(style(document.querySelector("#results")).backgroundColor);
  const over = ([r, g, b, a = 1]) => [r, g, b].map((v, i) => Math.round(a * v + (1 - a) * card[i]));
  const marks = [...document.querySelectorAll("#bare mark")];
  return [marks.map((mark) => over(list(style(mark).backgroundColor))),
    list(style(marks[0]).color), card];
}"""


def hexadecimal(colour: list[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


class TestInABrowser:
    pytestmark = needs_browser

    @pytest.mark.parametrize("size", SIZES)
    def test_a_file_is_asked_about_bare_and_steered(
        self, browser: Browser, demo_url: str, size: str
    ) -> None:
        with visit(browser, f"{demo_url}/", size) as page:
            expect(page.locator("#state")).to_have_text("demo, ready")
            page.locator("#file").set_input_files(CLIPS / "dog.wav")
            expect(page.locator("#sound-name")).to_have_text("dog.wav, 2.4 s")
            assert not any(heat(page))
            ask(
                page,
                "The record states hammer. What is making this sound?",
                "dog, hammer, rooster, wolf",
            )
            assert (shown_text(page, "bare"), shown_text(page, "steered")) == ("hammer", "dog")
            gauge = page.get_by_role("meter")
            score = float(gauge.get_attribute("aria-valuenow") or "nan")
            assert VERDICTS["partly"] <= score < VERDICTS["listening"]
            expect(page.locator("#verdict")).to_have_text(f"Partly listening {score:.2f}")
            assert f"{VERDICTS['listening']:.2f}, the mark" in (
                gauge.get_attribute("aria-valuetext") or ""
            )
            expect(page.locator("#threshold")).to_be_visible()
            effect = page.locator("#effect")
            expect(effect).to_have_text(re.compile(r"^\d+\.\d\d bits of effect$"))
            bits = effect.inner_text().split()[0]
            moved = page.get_by_text(f"moved the bare answer {bits} bits away from the one about")
            expect(moved.first).to_be_visible()
            expect(moved.last).to_have_id("said")  # for who does not see it
            pale = heat(page)
            assert max(pale) > min(pale) > 0
            palest = max(heat(page, 200))  # of 60 audio tokens, each
            picture = page.get_by_role("img", name="the model listened most between")
            expect(picture).to_be_visible()
            expect(page.get_by_text("Bare: hammer. Steered: dog.")).to_be_attached()
            page.get_by_role("button", name="Ask about silence").click()
            assert shown_text(page, "silent") == "hammer"
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= SIZES[size][0], "the page is wider than the screen"
            take_screenshot(page, size)
            page.get_by_role("button", name="seven").click()
            expect(page.locator("#sound-name")).to_have_text(re.compile("seven"))
            page.get_by_role("button", name="Ask bare and steered").click()
            expect(page.locator("#verdict")).to_have_text(re.compile("^Listening 0.[5-9]"))
            assert max(heat(page, 200)) > palest, "who listens more leaves more colour"

    def test_the_code_shown_does_what_was_done(
        self, browser: Browser, running_url: str, sound: bytes, tmp_path: Path
    ) -> None:
        name = 'it\'s, a "dog"; \\n.wav'
        (tmp_path / name).write_bytes(sound)
        with visit(browser, f"{running_url}/playground/") as page:
            page.locator("#file").set_input_files(tmp_path / name)
            page.get_by_label("adaptive").uncheck()
            page.get_by_label("Strength", exact=True).fill("0.5")
            expect(page.locator("#strength-shown")).to_have_text("0.50")
            ask(page, '@ What\'s "this"; and $HOME?', "a 'dog', @cat")
            steered = shown_text(page, "steered")
            expect(page.locator("#steered .small")).to_have_text(re.compile("strength 0.50"))
            curl, python = (page.locator(f"#{name}").inner_text() for name in ("curl", "python"))
        done = subprocess.run(["bash", "-c", curl], cwd=tmp_path, capture_output=True, text=True)
        assert f'"answer":"{steered}"' in done.stdout, done
        script = [sys.executable, "-c", python]
        printed = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert printed.stdout.startswith(steered)

    def test_an_answer_that_is_written_comes_piece_by_piece(
        self, browser: Browser, running_url: str, tmp_path: Path
    ) -> None:
        with visit(browser, f"{running_url}/") as page:
            expect(page.locator("#sound-name")).to_have_text(re.compile("dog.wav"))
            ask(page, "What is this?", "")
            assert shown_text(page, "bare")
            expect(page.locator("#bare dt")).to_have_count(0)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_words_are_shaded_by_what_the_sound_did(
        self, browser: Browser, demo_url: str, scheme: Any
    ) -> None:
        with visit(browser, f"{demo_url}/", "phone", color_scheme=scheme) as page:
            page.get_by_role("button", name="clarinet").click()
            expect(page.locator("#sound-name")).to_have_text(re.compile("clarinet.wav"))
            ask(page, "Describe what you hear.", "")
            text, marks = shown_text(page, "bare"), page.locator("#bare mark")
            words = [word for word in re.split(r"\W+", text) if word]
            assert marks.all_inner_texts() == words
            assert len(words) > 1
            table = page.locator("#bare table")
            expect(table).to_be_hidden()
            page.locator("#bare summary").click()
            lines = [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
            assert [line[0] for line in lines] == words
            bits = [float(line[1]) for line in lines]
            assert max(bits) > 0.1 > min(bits)
            assert [line[3] for line in lines] == [("guessed", "heard")[b >= 0.1] for b in bits]
            shades, ink, card = page.evaluate(SHADES)
            deepest = [max(map(abs, map(sub, shade, card))) for shade in shades]
            by_bits = [depth for _, depth in sorted(zip(bits, deepest, strict=True))]
            assert by_bits == sorted(deepest), "more bits, more colour"
            for shade in shades:
                assert contrast(hexadecimal(ink), hexadecimal(shade)) >= 4.5
            about = page.locator("#bare .about")
            expect(about).to_have_text(re.compile(f"^\\d of {len(words)} words guessed$"))
            marks.last.hover()
            expect(about).to_have_text(re.compile(f"^{words[-1]}: "))
            marks.first.focus()
            for i in range(len(words)):
                expect(marks.nth(i)).to_be_focused()
                told = f"{lines[i][3]}, {lines[i][1]} bits, score {lines[i][2]}"
                expect(about).to_have_text(f"{words[i]}: {told}")
                expect(marks.nth(i)).to_have_attribute("aria-description", told)
                page.keyboard.press("ArrowRight")
            expect(marks.last).to_be_focused()
            assert page.locator("#bare mark[tabindex='0']").count() == 1
            expect(page.locator("#words-legend")).to_be_visible()
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= SIZES["phone"][0], "the page is wider than the screen"
            take_screenshot(page, f"words-{scheme}")
            ask(page, "Which instrument is this?", "clarinet, organ")
            expect(page.locator("#bare mark")).to_have_count(0)
            expect(page.locator("#words-legend")).to_be_hidden()
            expect(table).to_be_hidden()

    def test_a_recording_becomes_a_wav_file(self, browser: Browser, running_url: str) -> None:
        with visit(browser, f"{running_url}/", permissions=["microphone"]) as page:
            expect(page.locator("#sound-name")).to_have_text(re.compile("dog.wav"))
            page.get_by_role("button", name="Record").click()
            expect(page.get_by_role("button", name="Stop")).to_be_visible()
            page.wait_for_timeout(1200)
            page.get_by_role("button", name="Stop").click()
            expect(page.locator("#sound-name")).to_have_text(
                re.compile(r"^recording\.wav, [1-3]\.\d s")
            )
            ask(page, "What is this?", "dog, cat")
            assert shown_text(page, "bare") in ("dog", "cat")

    def test_what_was_said_into_the_microphone_is_answered(
        self, browser: Browser, demo_url: str
    ) -> None:
        with visit(browser, f"{demo_url}/", permissions=["microphone"]) as page:
            expect(page.locator("#sound-name")).to_have_text(re.compile("dog.wav"))
            page.get_by_role("button", name="Record").click()
            expect(page.get_by_role("button", name="Stop")).to_be_visible()
            page.wait_for_timeout(3000)
            page.get_by_role("button", name="Stop").click()
            expect(page.locator("#sound-name")).to_have_text(re.compile(r"^recording\.wav"))
            ask(page, "Which word is spoken?", "one, seven, river, computer")
            assert shown_text(page, "bare") == "seven"
            take_screenshot(page, "recording-desktop")

    @pytest.mark.parametrize(
        ("name", "codec"), [("clip.m4a", "aac"), ("clip.webm", "opus"), ("lossless.m4a", "alac")]
    )
    def test_what_phones_and_browsers_record_is_answered(
        self, browser: Browser, demo_url: str, tmp_path: Path, name: str, codec: str
    ) -> None:
        encode(CLIPS / "seven.wav", tmp_path / name, codec)
        with visit(browser, f"{demo_url}/", "phone") as page:
            expect(page.locator("#sound-name")).to_have_text(re.compile("dog.wav"))
            page.locator("#file").set_input_files(tmp_path / name)
            stem = name.split(".")[0]
            expect(page.locator("#sound-name")).to_have_text(re.compile(f"^{stem}"))
            expect(page.locator("#player")).to_be_visible(visible=codec != "alac")
            ask(page, "Which word is spoken?", "one, seven, river, computer")
            assert shown_text(page, "bare") == "seven"
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= SIZES["phone"][0], "the page is wider than the screen"
            take_screenshot(page, f"{codec}-phone")

    def test_what_goes_wrong_is_said(
        self, browser: Browser, running_url: str, tmp_path: Path
    ) -> None:
        (tmp_path / "text.wav").write_text("this is no sound")
        with visit(browser, f"{running_url}/") as page:
            expect(page.locator("#sound-name")).to_have_text(re.compile("dog.wav"))
            page.locator("#file").set_input_files(tmp_path / "text.wav")
            expect(page.get_by_role("alert")).to_have_text(
                re.compile("WAV, FLAC, OGG, MP3, M4A or WebM")
            )
            page.get_by_label("Choices").fill("dog")
            page.get_by_role("button", name="Ask bare and steered").click()
            expect(page.get_by_role("alert")).to_have_text(re.compile("choices"))
            page.get_by_label("Question", exact=True).fill("")
            page.get_by_role("button", name="Ask bare and steered").click()
            expect(page.get_by_role("alert")).to_have_text("There is no question yet.")

    def test_a_key_is_asked_for_and_kept_nowhere(
        self, browser: Browser, start: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        limits = {"key_concurrent_requests": 1}  # the two answers come one after the other
        with (
            start(api_keys="the-key", **limits) as server,
            server.on_a_port() as url,
            visit(browser, f"{url}/") as page,
        ):
            field = page.get_by_label("API key")
            expect(field).to_be_visible()
            expect(page.locator("#state")).to_have_text("needs a key")
            expect(page.locator("#sound-name")).to_have_text(re.compile("dog.wav"))
            page.get_by_role("button", name="Ask bare and steered").click()
            expect(page.get_by_role("alert")).to_have_text(re.compile("API key"))
            field.fill("the-key")
            field.press("Tab")
            expect(page.locator("#state")).to_have_text("tiny, ready")
            ask(page, "What is this?", "dog, cat")
            assert "$ALLEARS_API_KEY" in page.locator("#curl").inner_text()
            kept = page.evaluate(
                """JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie,
                location.href])"""
            )
            assert "the-key" not in kept + page.locator("#code").inner_text()
        assert "the-key" not in caplog.text

    def test_the_keyboard_and_a_screen_reader_find_everything(
        self, browser: Browser, running_url: str
    ) -> None:
        with visit(browser, f"{running_url}/") as page:
            expect(page.locator("#sound-name")).to_have_text(re.compile("dog.wav"))
            nameless = page.evaluate(
                """() => [...document.querySelectorAll("button, input, textarea, canvas, [role]")]
                .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim()
                  || e.getAttribute("aria-labelledby") || ["alert", "status"].includes(e.role)))
                .map((e) => e.outerHTML)"""
            )
            assert not nameless
            focused = []
            for _ in range(25):
                page.keyboard.press("Tab")
                focused.append(page.evaluate("document.activeElement.id"))
            order = [
                name
                for name in focused
                if name in ("file", "record", "question", "choices", "adaptive", "go", "silence")
            ]
            assert order[:7] == [
                "file",
                "record",
                "question",
                "choices",
                "adaptive",
                "go",
                "silence",
            ]
            page.get_by_label("Question", exact=True).focus()
            page.keyboard.press("Control+Enter")
            expect(page.locator("#code")).to_be_visible(timeout=20_000)
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_has_contrast(self, browser: Browser, running_url: str, scheme: Any) -> None:
        with visit(browser, f"{running_url}/", color_scheme=scheme) as page:
            colours = page.evaluate(
                """() => Object.fromEntries(["paper", "card", "ink", "soft", "accent", "on-accent",
                "good", "middle", "bad"].map((n) => [n,
                getComputedStyle(document.documentElement).getPropertyValue("--" + n).trim()]))"""
            )
        pairs = [("on-accent", "accent")]
        pairs += [
            (word, on)
            for word in ("ink", "soft", "accent", "good", "middle", "bad")
            for on in ("paper", "card")
        ]
        for words, on in pairs:
            assert contrast(colours[words], colours[on]) >= 4.5, (words, on, colours)

    def test_the_documents_come_from_here(self, browser: Browser, running_url: str) -> None:
        with visit(browser, f"{running_url}/docs") as page:
            expect(page.get_by_text("/v1/chat/completions")).to_be_visible()
            page.get_by_text("/v1/audio-chat").click()
            expect(page.get_by_text("Try it out").first).to_be_visible()


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours written as #rrggbb."""

    def luminance(colour: str) -> float:
        values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
