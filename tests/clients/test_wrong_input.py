"""What can't be sent is found here, as an error of the client that says what to do."""

from __future__ import annotations

import asyncio
import io
import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from allears_client import (
    AllEars,
    AllEarsClientError,
    AllEarsHTTPError,
    AsyncAllEars,
    NoServer,
    Samples,
    UnreadableAudio,
    Unsendable,
)
from allears_client.audio_input import wav
from server.cli import app

LONE = "a \udc80"  # half of a surrogate pair: what Python makes of a byte that is no UTF-8


def answering(body: Any) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(200, json=body))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"strength": math.nan}, "strength"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": np.float32(0.5)}, "top_p"),
        ({"choices": ["a", LONE]}, "choices"),
        ({"choices": {"a"}}, "choices"),
        ({"messages": [{"role": "user", "content": b"x"}]}, "messages"),
    ],
)
def test_an_option_that_json_has_not(options: dict[str, Any], name: str) -> None:
    with AllEars(transport=answering({})) as ears:
        with pytest.raises(Unsendable, match=f"^{name} .*finite"):
            ears.ask(b"x", "?", **options)
        with pytest.raises(Unsendable, match=f"^{name} "), ears.stream(b"x", "?", **options):
            pass

    async def ask() -> None:
        async with AsyncAllEars(transport=answering({})) as ears:
            await ears.ask(b"x", "?", **options)

    with pytest.raises(Unsendable, match=f"^{name} "):
        asyncio.run(ask())


def test_text_that_utf8_has_not() -> None:
    with AllEars(transport=answering({})) as ears:
        with pytest.raises(Unsendable, match=r"^question .*surrogates"):
            ears.listen(b"x", LONE)
        with pytest.raises(Unsendable, match="request_id"):
            ears.listening_score(LONE)


def test_an_option_that_can_not_be_sent_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"x")
    nobody = ["--url", "http://127.0.0.1:1"]
    words = ["ask", str(path), "?", *nobody]
    for wrong in (
        [*words, "--strength", "nan"],
        [*words, "--temperature", "inf"],
        [*words, "--api-key", "schlüssel"],
        ["ask", str(path), LONE, *nobody],
        ["ask", str(path), "?", "--url", "http://x:port"],
    ):
        result = CliRunner().invoke(app, wrong, catch_exceptions=False)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr


# ---- sounds


def test_every_float_has_its_full_scale() -> None:
    whole = np.array([1.0, -1.0, 0.5, 1.2])
    files = {wav(Samples(whole.astype(kind), 8000)) for kind in ("f2", "f4", "f8")}
    (file,) = files
    assert np.frombuffer(file[44:], "<i2").tolist() == [32767, -32767, 16384, 32767]


@pytest.mark.parametrize("rate", [0, -1, 0.4, 10**10, math.nan, math.inf, "16000", None])
def test_a_sample_rate_that_is_none(rate: Any) -> None:
    with pytest.raises(UnreadableAudio, match="sample_rate_hz"):
        wav(Samples(np.zeros(8, np.int16), rate))


def test_a_sample_rate_may_be_numpys() -> None:
    zeros = np.zeros(8, np.int16)
    rates = [16_000, np.int64(16_000), np.float32(16_000)]
    assert len({wav(Samples(zeros, rate)) for rate in rates}) == 1  # type: ignore[arg-type]


class OnACard:
    """Samples that numpy can't reach, as those of a tensor on a card."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a cuda tensor")


@pytest.mark.parametrize("samples", [[[0.1], [0.1, 0.2]], OnACard()])
def test_samples_that_are_no_array(samples: Any) -> None:
    with pytest.raises(UnreadableAudio, match="array"):
        wav(Samples(samples, 16_000))


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"RIFF\xff\xfe")
    closed = io.BytesIO(b"x")
    closed.close()
    with (
        path.open(encoding="utf-8") as text,
        (tmp_path / "y.wav").open("wb") as written,
        AllEars(transport=answering({})) as ears,
    ):
        for file in (text, closed, written):
            with pytest.raises(UnreadableAudio, match="binary"):
                ears.ask(file, "?")  # type: ignore[arg-type]
        for name in ("a\0b", "a\ud800b", str(tmp_path)):
            with pytest.raises(UnreadableAudio, match="check the path"):
                ears.ask(name, "?")


# ---- servers and keys


@pytest.mark.parametrize("body", [{"count": 1}, {"id": 1, "created": 2, "model": []}, [], "x"])
def test_another_servers_answer_is_said(body: Any) -> None:
    with AllEars(transport=answering(body)) as ears:
        with pytest.raises(AllEarsHTTPError, match="is this an allears server"):
            ears.ask(b"x", "?")
        with pytest.raises(AllEarsHTTPError, match="is this an allears server"):
            ears.listen(b"x", "?")

    async def ask() -> None:
        async with AsyncAllEars(transport=answering(body)) as ears:
            await ears.listen(b"x", "?")

    with pytest.raises(AllEarsHTTPError, match="is this an allears server"):
        asyncio.run(ask())


@pytest.mark.parametrize("kind", [AllEars, AsyncAllEars])
@pytest.mark.parametrize("url", ["http://x:port", "http://[::1", "http://a\0b"])
def test_a_url_that_is_none(kind: Any, url: str) -> None:
    with pytest.raises(NoServer, match="http"):
        kind(url)


@pytest.mark.parametrize("key", ["secret\n", " secret\r\n"])
def test_a_key_may_come_from_a_file(key: str) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={})

    with AllEars(api_key=key, transport=httpx.MockTransport(answer)) as ears:
        ears.listening_score()
    assert seen == ["Bearer secret"]


@pytest.mark.parametrize("kind", [AllEars, AsyncAllEars])
@pytest.mark.parametrize("key", ["secret\nsecret", "secrét", "secret\x7f", "secret\0"])
def test_a_key_that_can_not_be_sent_is_not_shown(kind: Any, key: str) -> None:
    with pytest.raises(AllEarsClientError, match="ASCII") as caught:
        kind(api_key=key)
    assert type(caught.value) is Unsendable
    assert "secr" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
