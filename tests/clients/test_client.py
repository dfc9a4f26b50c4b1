"""The client against a real server, and against what is none."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from allears_client import (
    AllEars,
    AllEarsHTTPError,
    AsyncAllEars,
    Busy,
    Interrupted,
    InvalidAudio,
    InvalidRequest,
    NoServer,
    NotFound,
    Samples,
    ServerFailed,
    Sound,
    TooLarge,
    Unauthorized,
    UnreadableAudio,
)

QUESTION = "What animal is this?"


@pytest.fixture
def ears(running_url: str) -> Iterator[AllEars]:
    with AllEars(running_url) as ears:
        yield ears


@pytest.fixture
def file(tmp_path: Path, sound: bytes) -> Path:
    path = tmp_path / "x.wav"
    path.write_bytes(sound)
    return path


def test_an_answer_is_a_dataclass(ears: AllEars, sound: bytes) -> None:
    answer = ears.ask(
        sound,
        QUESTION,
        choices=["dog", "cat"],
        steer=True,
        strength=0.5,
        include=["timeline", "heads", "unsteered", "silence"],
    )
    assert answer.text in answer.probabilities
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.steering.applied
    assert answer.steering.strength == 0.5
    assert answer.steering.unsteered_answer in ("dog", "cat")
    assert answer.silent_answer in ("dog", "cat")
    effect = ears.listen(sound, QUESTION, choices=["dog", "cat"], include=["effect"])
    assert answer.listening.effect_bits == effect.listening.effect_bits is not None
    assert len(answer.listening.timeline) == 25
    assert answer.raw["id"] == answer.id
    assert ears.listening_score(answer.id)["id"] == answer.id
    assert ears.listening_score()["count"] >= 1


def test_audio_may_be_bytes_a_path_or_several(ears: AllEars, sound: bytes, file: Path) -> None:
    sounds: list[bytes | Path | str] = [sound, file, str(file)]
    scores = [ears.listen(sound, QUESTION).listening.score for sound in sounds]
    assert len(set(scores)) == 1
    assert len(ears.listen(sounds, QUESTION).raw["audio"]) == 3


def test_each_clip_has_its_part(ears: AllEars, sound: bytes) -> None:
    first, second = ears.ask(
        [sound, sound], QUESTION, choices=["dog", "cat"], steer=True, clip=1, include=["clips"]
    ).listening.clips
    assert (first.index, second.index) == (0, 1)
    assert {first.rank, second.rank} == {1, 2}
    assert first.influence is not None


def test_a_long_clip_is_heard_in_windows(
    ears: AllEars, make_sound: Callable[..., bytes], sound: bytes
) -> None:
    long = make_sound(5.0)
    answer = ears.ask(long, QUESTION, max_tokens=2, long_audio="window")
    heard = ears.listen(long, QUESTION, long_audio="window")
    for windows in (answer.windows, heard.windows):
        assert (windows[0].start_seconds, windows[-1].end_seconds) == (0, 5)
    assert answer.text in {window.answer for window in answer.windows}
    assert ears.listen(long, QUESTION, long_audio="cut").windows == ()
    with pytest.raises(TooLarge, match="window is 3 s"):
        ears.ask(long, QUESTION, long_audio="refuse")


def test_messages_go_as_they_are(ears: AllEars, sound: bytes) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    assert ears.ask(sound, messages=messages, max_tokens=1).text is not None


def test_a_refusal_is_an_error_with_the_servers_words(ears: AllEars, sound: bytes) -> None:
    with pytest.raises(AllEarsHTTPError) as caught:
        ears.ask(sound, QUESTION, temperature=5)
    error = caught.value
    assert (error.status, error.code, error.param) == (422, "invalid_request", "temperature")
    assert error.message in str(error)


def test_an_unreadable_file_is_found_here(ears: AllEars) -> None:
    with pytest.raises(UnreadableAudio, match=r"nowhere\.wav"):
        ears.ask("nowhere.wav", QUESTION)


def test_no_server_says_how_to_start_one(sound: bytes) -> None:
    with AllEars("http://127.0.0.1:1") as ears:
        assert not ears.ready()
        with pytest.raises(NoServer, match="allears serve"):
            ears.ask(sound, QUESTION)


def test_keys_retries_and_strangers(sound: bytes) -> None:
    seen: list[httpx.Request] = []

    def busy(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        error = {"message": "full", "type": "x", "param": None, "code": "queue_full"}
        return httpx.Response(429, json={"error": error}, headers={"retry-after": "3"})

    ears = AllEars(api_key="key", max_retries=0, transport=httpx.MockTransport(busy))
    with ears, pytest.raises(AllEarsHTTPError) as caught:
        ears.ask(sound, QUESTION)
    assert caught.value.retry_after_seconds == 3
    assert seen[0].headers["authorization"] == "Bearer key"
    stranger = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    with AllEars(transport=stranger) as ears, pytest.raises(AllEarsHTTPError, match="allears"):
        ears.listening_score()


def test_no_option_is_passed_on_unknown(ears: AllEars, sound: bytes) -> None:
    with pytest.raises(TypeError, match=r"'steering'.*allowed.*strength"):
        ears.ask(sound, QUESTION, steering={})  # type: ignore[call-arg]


# ---- sounds


def test_samples_are_heard_like_their_file(ears: AllEars, sound: bytes, tmp_path: Path) -> None:
    samples, rate_hz = soundfile.read(io.BytesIO(sound), dtype="int16")
    floats = soundfile.read(io.BytesIO(sound), dtype="float32")[0]
    stereo = np.stack([samples, samples], axis=1)
    path = tmp_path / "x.wav"
    path.write_bytes(sound)
    with path.open("rb") as file:
        sounds: list[Sound] = [sound, Samples(samples, rate_hz), Samples(stereo, rate_hz), file]
        scores = [ears.listen(each, QUESTION).listening.score for each in sounds]
    assert len(set(scores)) == 1
    near = ears.listen(Samples(floats, rate_hz), QUESTION).listening.score
    assert near == pytest.approx(scores[0], abs=1e-3)
    assert ears.listen(Samples(stereo, rate_hz), QUESTION).audio[0].channels == 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Samples(np.zeros((2, 16_000), np.float32), 16_000), "transpose"),
        (Samples(np.full(100, 20_000.0), 16_000), "20000"),
        (Samples(np.array([0.0, np.nan]), 16_000), "nan"),
        (Samples(np.zeros(10, np.int32), 16_000), "int32"),
        (Samples(np.zeros(0), 16_000), "shape"),
        (io.StringIO("text"), "binary"),
        (3, "int"),
    ],
)
def test_what_is_no_sound_is_found_here(ears: AllEars, wrong: Any, words: str) -> None:
    with pytest.raises(UnreadableAudio, match=words):
        ears.listen(wrong, QUESTION)


# ---- streaming


def test_a_stream_gives_pieces_and_then_the_answer(ears: AllEars, sound: bytes) -> None:
    whole = ears.ask(sound, QUESTION, max_tokens=8)
    with ears.stream(sound, QUESTION, max_tokens=8, include=["timeline"]) as stream:
        with pytest.raises(Interrupted):
            _ = stream.answer
        pieces, scores = list[str](), list[float]()
        for piece in stream:
            pieces.append(piece)
            scores += stream.token_scores
    assert "".join(pieces) == whole.text == stream.answer.text
    assert scores[0] == whole.listening.score
    assert 0 <= whole.usage.completion_tokens - len(scores) <= 1, "an end token at most"
    assert len(pieces) > 1
    assert stream.answer.listening.score == whole.listening.score
    assert len(stream.answer.listening.timeline) == 25
    with pytest.raises(InvalidRequest), ears.stream(sound, QUESTION, max_tokens=0):
        pass


def test_everything_asynchronously(running_url: str, sound: bytes) -> None:
    async def use() -> None:
        async with AsyncAllEars(running_url) as ears:
            assert await ears.ready()
            asking = [ears.ask(sound, QUESTION, max_tokens=4) for _ in range(3)]
            first, *others = await asyncio.gather(*asking)
            assert {answer.text for answer in others} == {first.text}
            async with ears.stream(sound, QUESTION, max_tokens=4) as stream:
                text = "".join([piece async for piece in stream])
            assert text == stream.answer.text == first.text
            heard = await ears.listen(sound, QUESTION)
            assert heard.listening.score == first.listening.score
            assert (await ears.listening_score(first.id))["id"] == first.id
            with pytest.raises(InvalidRequest):
                await ears.ask(sound, " ")
        async with AsyncAllEars("http://127.0.0.1:1") as nobody:
            assert not await nobody.ready()
            with pytest.raises(NoServer):
                await nobody.ask(sound, QUESTION)

    asyncio.run(use())


class Scripted(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A server that says one thing after another; what a real one says only in trouble."""

    def __init__(self, *script: httpx.Response | Exception) -> None:
        self.script = list(script)
        self.requests = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        response = self.script.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


def refusing(status: int, code: str = "x", **headers: str) -> httpx.Response:
    error = {"message": "no", "type": "x", "param": None, "code": code}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={"error": error}, headers=named)


@pytest.mark.parametrize("kind", [AllEars, AsyncAllEars])
def test_a_busy_server_is_asked_again_when_it_says(kind: Any) -> None:
    fine = httpx.Response(200, json={"count": 1})
    script = Scripted(refusing(429, retry_after="1"), httpx.RemoteProtocolError("gone"), fine)

    async def ask() -> Any:
        async with kind(transport=script, max_retries=3) as ears:
            return await ears.listening_score()

    started = time.monotonic()
    if kind is AllEars:
        with AllEars(transport=script, max_retries=3) as ears:
            summary = ears.listening_score()
    else:
        summary = asyncio.run(ask())
    assert summary == {"count": 1}
    assert script.requests == 3
    assert time.monotonic() - started > 1, "Retry-After was not waited for"


def test_the_last_refusal_is_raised_with_what_it_says() -> None:
    script = Scripted(refusing(429), refusing(429, "queue_full", retry_after="7", x_request_id="r"))
    with AllEars(transport=script, max_retries=1) as ears, pytest.raises(Busy) as caught:
        ears.listening_score()
    error = caught.value
    assert (error.code, error.retry_after_seconds, error.request_id) == ("queue_full", 7, "r")


@pytest.mark.parametrize("code", ["replica_lost", "draining"])
@pytest.mark.parametrize("kind", [AllEars, AsyncAllEars])
def test_a_request_that_ended_a_replica_is_not_sent_again(kind: Any, code: str) -> None:
    sent = 1 if code == "replica_lost" else 3
    script = Scripted(*[refusing(503, code) for _ in range(3)])

    async def ask() -> None:
        async with kind(transport=script) as ears, ears.stream(b"x", QUESTION):
            pass

    with pytest.raises(Busy, match=code):
        if kind is AllEars:
            with AllEars(transport=script) as ears:
                ears.ask(b"x", QUESTION)
        else:
            asyncio.run(ask())
    assert script.requests == sent


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidAudio),
        (401, Unauthorized),
        (404, NotFound),
        (413, TooLarge),
        (422, InvalidRequest),
        (429, Busy),
        (500, ServerFailed),
        (503, Busy),
        (418, AllEarsHTTPError),
    ],
)
def test_every_status_has_its_error(status: int, kind: type[AllEarsHTTPError]) -> None:
    with (
        AllEars(transport=Scripted(refusing(status)), max_retries=0) as ears,
        pytest.raises(AllEarsHTTPError) as caught,
    ):
        ears.listening_score()
    assert type(caught.value) is kind
    assert caught.value.status == status


def test_a_stream_that_breaks_is_said(sound: bytes) -> None:
    piece = b'data: {"delta": "a"}\n\n'
    error = b'data: {"error": {"message": "no memory", "code": "out_of_memory"}}\n\n'
    cases: list[tuple[bytes, type[Exception]]] = [(b"", Interrupted), (error, Busy)]
    for end, kind in cases:
        script = Scripted(httpx.Response(200, content=piece + end))
        with (
            AllEars(transport=script) as ears,
            ears.stream(sound, QUESTION) as stream,
            pytest.raises(kind),
        ):
            pieces = iter(stream)
            assert next(pieces) == "a"
            list(pieces)
