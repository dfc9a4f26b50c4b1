"""Base64 as clients write it is read whole, or refused with the cause."""

from __future__ import annotations

import base64
import textwrap
from typing import Any

import numpy as np
import pytest

from server.api.base64_files import read_base64
from steering.errors import AudioError

QUESTION = "What is this?"


@pytest.mark.parametrize("length", [1, 2, 3, 100, 3001, 3002])
def test_every_way_of_writing_it_gives_the_same_bytes(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    plain = base64.b64encode(data).decode()
    ways = [
        plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        "\r\n".join(textwrap.wrap(plain, 76)),
        plain + "\n",
        plain + " \t\n",
        "data:;base64," + plain,
        "data:audio/wav;base64," + plain.rstrip("="),
        "DATA:audio/x-wav;charset=x;BASE64," + plain,
        "data:audio/wav;base64," + plain.replace("+", "%2B").replace("=", "%3D"),
    ]
    for text in ways:
        assert read_base64(text) == data, text[:40]


def test_a_plus_that_became_a_space_is_named() -> None:
    whole = base64.b64encode(b"\x00\xfb\xef\xbe\x00" * 50).decode()
    for text in (whole, "AAA+"):
        with pytest.raises(AudioError, match="a \\+ that was decoded as in a form"):
            read_base64(text.replace("+", " "))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("not-base64!", "not base64"),
        ("AAAAA", "end inside a byte"),
        ("=", "not base64"),
        ("AA=A", "not base64"),
        ("AAAA=", "not base64"),
        ("ÄÄÄÄ", "not base64"),
        ("AA\tAA", "not base64"),
        ("https://example.com/x.wav", "audio_url"),
        ("data:audio/wav,abc", "data: URI"),
        ("data:audio/wav;base64", "data: URI"),
        ("data:audio/wav;base64,%%%", "not base64"),
    ],
)
def test_what_is_not_base64_is_refused_with_the_cause(text: str, cause: str) -> None:
    with pytest.raises(AudioError, match=cause):
        read_base64(text)


@pytest.mark.parametrize("name", ["wav", "mpeg", "x-wav", "WAV", "audio/wav", "m4a", "", None])
def test_the_bytes_decide_whatever_the_format(
    server: Any, audio: dict[str, str], name: str | None
) -> None:
    clip = {**audio, "format": name}
    assert server.chat(audio=clip, question=QUESTION, max_tokens=1).status_code == 200


def test_an_error_names_the_field_of_its_route(server: Any, audio: dict[str, str]) -> None:
    nonsense = base64.b64encode(b"nonsense" * 9).decode()
    for data in (nonsense, "AA AA", "data:x", "!"):
        clip = {"type": "input_audio", "input_audio": {"data": data}}
        link = {"type": "audio_url", "audio_url": {"url": f"data:;base64,{data}"}}
        good = {"type": "input_audio", "input_audio": audio}
        for part in (clip, link):
            turn = {"role": "user", "content": [{"type": "text", "text": QUESTION}, good, part]}
            body = {"model": "tiny", "messages": [turn]}
            error = server.post("/v1/chat/completions", json=body).json()["error"]
            assert (error["code"], error["param"]) == ("invalid_audio", "messages.0.content.2")
            native = server.chat(messages=[turn]).json()["error"]
            assert native["param"] == "messages.0.content.2"
        error = server.chat(audio={"data": data}, question=QUESTION).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_audio", "audio")
