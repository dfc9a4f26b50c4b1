"""POST /v1/audio-chat where all is well."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from server.engine.runtime import Runtime

QUESTION = "What animal is this?"
CHOICES = ["dog", "cat", "cow", "bird"]


def chat(server: Any, audio: object, **more: Any) -> dict[str, Any]:
    """The body of an answer."""
    response = server.chat(audio=audio, **{"question": QUESTION, "max_tokens": 4, **more})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def as_json(sound: bytes) -> dict[str, str]:
    return {"data": base64.b64encode(sound).decode()}


def send_form(server: Any, files: list[bytes], fields: dict[str, Any]) -> httpx.Response:
    parts = [("audio", (f"{i}.wav", data)) for i, data in enumerate(files)]
    response: httpx.Response = server.post("/v1/audio-chat", files=parts, data=fields)
    return response


def timeless(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what differs between two answers to the same question."""
    gone = {"id", "created", "timings"}
    return {key: value for key, value in body.items() if key not in gone}


def test_the_answer_has_every_field_of_the_contract(server: Any, audio: dict[str, str]) -> None:
    response = server.chat(audio=audio, question=QUESTION, max_tokens=3)
    body = response.json()
    assert body["id"].startswith("achat-")
    assert body["object"] == "audio.chat"
    assert body["model"] == "tiny"
    assert body["choices"] == body["warnings"] == []
    assert body["finish_reason"] in ("stop", "length")
    assert body["usage"]["audio_tokens"] == 25
    assert body["usage"]["completion_tokens"] == 3
    total = body["usage"]["prompt_tokens"] + 3
    assert body["usage"]["total_tokens"] == total
    assert body["steering"] == {
        "applied": False,
        "direction": None,
        "strength": 0,
        "relative_norm": 0,
        "reason": "steer is false",
    }
    listening = body["listening"]
    assert 0 < listening["score"] < 1
    assert 0 <= listening["percentile"] <= 1
    assert listening["verdict"] in ("not_listening", "partly_listening", "listening")
    assert listening["silence_score"] is listening["effect_bits"] is None
    assert listening["threshold"] == 0.6
    assert listening["hop_seconds"] == pytest.approx(0.04)
    assert not {"timeline", "heads"} & listening.keys()
    assert body["timings"].keys() == {
        "queue_seconds",
        "prefill_seconds",
        "silence_seconds",
        "decode_seconds",
        "silence_cache",
    }
    assert float(response.headers["x-listening-score"]) == listening["score"]
    assert response.headers["x-steering-strength"] == "0"


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_format_is_heard(
    server: Any, make_sound: Callable[..., bytes], container: str
) -> None:
    data = make_sound(1.5, rate_hz=44_100, channels=2, container=container)
    body = chat(server, {"data": base64.b64encode(data).decode()})
    assert body["audio"] == [
        {
            "submitted_seconds": pytest.approx(1.5, abs=0.05),
            "heard_seconds": pytest.approx(1.5, abs=0.05),
            "truncated": False,
            "sample_rate_hz": 44_100,
            "channels": 2,
        }
    ]


def test_choices_get_probabilities(server: Any, audio: dict[str, str]) -> None:
    body = chat(server, audio, choices=CHOICES)
    assert [one["text"] for one in body["choices"]] == CHOICES
    probabilities = {one["text"]: one["probability"] for one in body["choices"]}
    assert sum(probabilities.values()) == pytest.approx(1)
    assert body["answer"] == max(probabilities, key=lambda text: probabilities[text])


def test_a_form_is_answered_like_json(server: Any, audio: dict[str, str], sound: bytes) -> None:
    wanted = {
        "choices": CHOICES,
        "steer": True,
        "steering": {"strength": 0.25},
        "include": ["timeline", "unsteered"],
    }
    as_json = chat(server, [audio, audio], **wanted)
    fields = {
        "question": QUESTION,
        "max_tokens": "4",
        "choices": CHOICES,
        "steer": "true",
        "steering": json.dumps({"strength": 0.25}),
        "include": "timeline, unsteered",
    }
    repeated = send_form(server, [sound, sound], fields)
    arrays = send_form(
        server,
        [sound, sound],
        {**fields, "choices": json.dumps(CHOICES), "include": ["timeline", "unsteered"]},
    )
    assert len(as_json["audio"]) == 2
    assert timeless(repeated.json()) == timeless(as_json)
    assert timeless(arrays.json()) == timeless(as_json)


def test_include_brings_what_it_names(server: Any, audio: dict[str, str]) -> None:
    body = chat(server, audio, include=["timeline", "heads", "unsteered", "silence"])
    listening = body["listening"]
    assert len(listening["timeline"]) == body["usage"]["audio_tokens"]
    assert sum(listening["timeline"]) == pytest.approx(listening["score"], abs=1e-4)
    assert [(one["layer"], one["head"]) for one in listening["heads"]] == [(3, 0), (5, 4), (6, 7)]
    assert 0 < listening["silence_score"] < 1
    assert isinstance(body["silent_answer"], str)
    assert body["steering"]["unsteered_answer"] == body["answer"]
    assert body["steering"]["answer_changed"] is False


@pytest.mark.parametrize("direction", ["request", "calibrated"])
def test_steering_is_applied_and_reported(
    server: Any, audio: dict[str, str], direction: str
) -> None:
    bare = chat(server, audio, choices=CHOICES)
    wish = {"direction": direction, "strength": 0.9}
    body = chat(server, audio, choices=CHOICES, steer=True, steering=wish, include=["unsteered"])
    steering = body["steering"]
    assert steering["applied"] is True
    assert steering["direction"] == direction
    assert steering["strength"] == 0.9
    assert steering["relative_norm"] == pytest.approx(0.9)
    assert steering["reason"] is None
    assert steering["unsteered_answer"] == bare["answer"]
    assert steering["answer_changed"] == (body["answer"] != bare["answer"])
    assert body["choices"] != bare["choices"]
    of_the_twin = {name: body["listening"][name] for name in ("silence_score", "effect_bits")}
    assert body["listening"] == bare["listening"] | of_the_twin
    assert (of_the_twin["effect_bits"] is None) == (direction == "calibrated")
    assert (body["timings"]["silence_cache"] is None) == (direction == "calibrated")


def test_the_adaptive_strength_is_the_gates(server: Any, runtime: Runtime, audio: Any) -> None:
    response = server.chat(audio=audio, question=QUESTION, steer=True, max_tokens=1)
    body = response.json()
    assert runtime.profile is not None
    wanted = runtime.profile.gate.strength(body["listening"]["score"])
    assert body["steering"]["strength"] == pytest.approx(wanted, abs=1e-4)
    assert float(response.headers["x-steering-strength"]) == pytest.approx(wanted, abs=1e-4)


def test_strength_zero_is_the_bare_answer(server: Any, audio: dict[str, str]) -> None:
    bare = chat(server, audio, choices=CHOICES)
    zero = chat(server, audio, choices=CHOICES, steer=True, steering={"strength": 0})
    assert zero["choices"] == bare["choices"]
    assert zero["steering"]["applied"] is False
    assert zero["steering"]["reason"] == "strength is 0"


def test_clips_of_audio_stand_before_the_text_of_the_last_message(
    server: Any, audio: dict[str, str]
) -> None:
    plain = chat(server, audio)
    text = [{"role": "user", "content": QUESTION}]
    parts = [
        {
            "role": "user",
            "content": [
                {"type": "input_audio", "input_audio": audio},
                {"type": "text", "text": QUESTION},
            ],
        }
    ]
    as_text = chat(server, audio, question=None, messages=text)
    as_parts = chat(server, None, question=None, messages=parts)
    assert timeless(as_text) == timeless(as_parts) == timeless(plain)


def test_a_conversation_of_several_turns_is_answered(server: Any, audio: dict[str, str]) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Are you sure?"},
    ]
    body = chat(server, None, question=None, messages=messages)
    assert len(body["audio"]) == 1
    assert chat(server, audio)["usage"]["prompt_tokens"] < body["usage"]["prompt_tokens"]


def test_sampling_follows_its_seed(server: Any, audio: dict[str, str]) -> None:
    def sampled(seed: int) -> str:
        text: str = chat(server, audio, temperature=2.0, seed=seed, max_tokens=12)["answer"]
        return text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1
    assert (
        chat(server, audio, temperature=2.0, top_p=1e-6)["answer"] == chat(server, audio)["answer"]
    )


def test_filters_and_penalty_have_their_effect(server: Any, audio: dict[str, str]) -> None:
    for steering in ({}, {"steer": True, "steering": {"strength": 0.5}}):
        more: dict[str, Any] = {"max_tokens": 12, **steering}
        greedy = chat(server, audio, **more)["answer"]
        for sharp in ({"top_k": 1}, {"min_p": 1}):
            assert chat(server, audio, temperature=2, **sharp, **more)["answer"] == greedy
        assert chat(server, audio, repetition_penalty=1.8, **more)["answer"] != greedy
        choosing = {**more, "choices": CHOICES}
        penalised = chat(server, audio, repetition_penalty=1.8, **choosing)
        assert penalised["choices"] == chat(server, audio, **choosing)["choices"]


def test_a_stop_string_ends_the_answer(server: Any, audio: dict[str, str]) -> None:
    whole = chat(server, audio, max_tokens=12)["answer"]
    middle = whole[len(whole) // 2]
    body = chat(server, audio, max_tokens=12, stop=[middle])
    assert body["answer"] == whole[: whole.index(middle)]
    assert body["finish_reason"] == "stop"


def test_what_the_model_can_not_hear_is_said(server: Any, make_sound: Any) -> None:
    long, silent = make_sound(4.0), make_sound(1.0, amplitude=0.0)
    response = send_form(server, [long, silent], {"question": QUESTION, "max_tokens": "1"})
    body = response.json()
    assert [one["truncated"] for one in body["audio"]] == [True, False]
    assert body["audio"][0]["submitted_seconds"] == 4
    assert body["audio"][0]["heard_seconds"] == 3
    assert ["clip 0" in body["warnings"][0], "clip 1" in body["warnings"][1]] == [True, True]


def test_without_a_profile_nothing_is_known_and_nothing_steered(
    start: Any, runtime: Runtime, audio: dict[str, str]
) -> None:
    with start(heard_by=Runtime.of(runtime.model, None)) as server:
        response = server.chat(audio=audio, question=QUESTION, steer=True, max_tokens=1)
        summary = server.get("/listening-score").json()
    body = response.json()
    assert body["listening"] == {
        "score": None,
        "percentile": None,
        "verdict": "unknown",
        "silence_score": None,
        "effect_bits": None,
        "threshold": None,
        "hop_seconds": pytest.approx(0.04),
    }
    assert body["steering"]["applied"] is False
    assert "profile" in body["steering"]["reason"]
    assert response.headers["x-listening-score"] == "unknown"
    assert summary["count"] == 1
    assert summary["mean"] is None
    assert summary["profile"] is None


# ---- the effect


@pytest.fixture(scope="module")
def exact(start: Any, runtime: Runtime) -> Iterator[Any]:
    """A server whose silences are as long as the clips, as transformers' own would be."""
    assert runtime.profile is not None
    profile = replace(runtime.profile, silence="exact")
    with start(heard_by=Runtime.of(runtime.model, profile)) as server:
        yield server


def bits(heard: Any, silent: Any) -> float:
    """KL divergence of the probabilities of choices, as two answers report them."""
    p, q = ([float(c["probability"]) for c in body["choices"]] for body in (heard, silent))
    return sum(a * math.log2(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("choices", [CHOICES, ["a brown dog", "a brown cow", "rain"]])
def test_the_effect_of_choices_is_told_by_asking_about_silence(
    exact: Any, make_sound: Callable[..., bytes], choices: list[str]
) -> None:
    sound = make_sound(1.0)
    samples, rate_hz = soundfile.read(io.BytesIO(sound))
    zeros = io.BytesIO()
    soundfile.write(zeros, np.zeros_like(samples), rate_hz, format="WAV", subtype="PCM_16")
    clips = [as_json(sound), as_json(zeros.getvalue())]
    expected = bits(*(chat(exact, clip, choices=choices) for clip in clips))
    wishes: list[dict[str, Any]] = [
        {"steer": True, "steering": {"strength": 0.7}},
        {"steer": True, "steering": {"direction": "calibrated"}, "include": ["effect"]},
        {"include": ["effect"]},
        {"include": ["silence"]},
    ]
    for wish in wishes:
        found = chat(exact, clips[0], choices=choices, **wish)["listening"]["effect_bits"]
        assert found == pytest.approx(expected, rel=1e-3, abs=2e-6)
        assert chat(exact, clips[1], choices=choices, **wish)["listening"]["effect_bits"] == 0
    assert expected > 1e-5


@pytest.mark.parametrize("choices", [None, CHOICES])
def test_the_effect_needs_no_profile(
    exact: Any, start: Any, runtime: Runtime, audio: dict[str, str], choices: list[str] | None
) -> None:
    wish = {"choices": choices, "include": ["effect"], "max_tokens": 1}
    known = chat(exact, audio, **wish)["listening"]["effect_bits"]
    body = {"audio": audio, "question": QUESTION, "choices": choices, "include": ["effect"]}
    heard = exact.post("/v1/listening-score", json=body).json()["listening"]["effect_bits"]
    with start(heard_by=Runtime.of(runtime.model, None)) as deaf:
        bare = deaf.chat(audio=audio, question=QUESTION, **wish).json()
        summary = deaf.get("/listening-score").json()
        record = deaf.get("/listening-score", params={"request_id": bare["id"]}).json()
        assert deaf.metric("allears_effect_bits_count") == 1
        assert deaf.metric("allears_effect_bits_sum") == pytest.approx(known, abs=2e-6)
    assert bare["listening"]["score"] is None
    assert bare["timings"]["silence_cache"] == "miss"
    assert bare["listening"]["effect_bits"] == pytest.approx(known, abs=2e-6)
    assert heard == pytest.approx(known, abs=2e-6)
    assert record["effect_bits"] == pytest.approx(known, abs=2e-6)
    assert summary["mean_effect_bits"] == record["effect_bits"]
    assert known > 1e-5


def test_several_clips_have_one_effect_and_one_of_them_its_own(
    server: Any, make_sound: Callable[..., bytes]
) -> None:
    clips = [as_json(make_sound(1.0)), as_json(make_sound(2.0))]
    both, first = (
        chat(server, clips, steer=True, steering={"strength": 0.5, "clip": clip}, max_tokens=1)
        for clip in (None, 0)
    )
    assert both["listening"]["effect_bits"] > 0
    assert first["listening"]["effect_bits"] > 0
    assert both["listening"]["effect_bits"] != first["listening"]["effect_bits"]


# ---- streaming


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("more", [{}, {"choices": CHOICES}, {"steer": True, "stop": ["zzz"]}])
def test_a_stream_says_what_the_whole_answer_says(
    server: Any, audio: dict[str, str], more: dict[str, Any]
) -> None:
    more = {**more, "include": ["unsteered", "silence", "heads"], "max_tokens": 12}
    whole = chat(server, audio, **more)
    response = server.chat(audio=audio, question=QUESTION, stream=True, **more)
    *pieces, last = events(response)
    assert "".join(piece["delta"] for piece in pieces) == whole["answer"]
    assert {piece["object"] for piece in (*pieces, last)} == {"audio.chat.chunk"}
    assert {piece["id"] for piece in pieces} == {last["id"]}
    assert all("listening" not in piece for piece in pieces)
    assert last.pop("delta") == ""
    cached = {"object": "audio.chat"}
    assert timeless({**last, **cached}) == timeless(whole)
    assert float(response.headers["x-listening-score"]) == whole["listening"]["score"]
    assert "x-steering-strength" in response.headers
    scores = [score for piece in pieces for score in piece.get("token_scores", ())]
    if "choices" in more:
        assert scores == []
    else:
        assert scores[0] == whole["listening"]["score"]
        assert len(set(scores)) > 1 and 0 <= min(scores) <= max(scores) <= 1
        assert 0 <= whole["usage"]["completion_tokens"] - len(scores) <= 1, "an end token at most"
    assert "token_scores" not in last
