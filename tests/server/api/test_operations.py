"""Probes, keys, headers, logs, metrics and documents."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from server.app import create_app
from server.engine import engine
from server.engine.answering import answer_question
from server.settings import NO_LOG, Settings
from steering.errors import ModelError
from steering.kv_slots import KVSlots
from steering.model.checkpoint import public_name
from tests.server.conftest import Server
from tests.steering.verification.planted_faults import FAULTS

QUESTION = "Who sings?"


def test_a_loading_server_lives_and_is_not_ready(
    start: Any, audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()

    def slow(*given: Any) -> Iterator[Any]:
        assert loaded.wait(10)
        yield from answer_question(*given)

    monkeypatch.setattr(engine, "answer_question", slow)
    with start(ready=False) as server:
        assert server.get("/livez").status_code == 200
        assert server.get("/metrics").status_code == 200
        bodies = [
            server.get("/readyz"),
            server.chat(audio=audio, question=QUESTION),
            server.get("/listening-score"),
            server.get("/v1/models"),
        ]
        for response in bodies:
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "loading"
            assert int(response.headers["retry-after"]) > 0
        loaded.set()
        server.wait_until(lambda: server.get("/readyz").status_code == 200)
        answered = server.chat(audio=audio, question=QUESTION, max_tokens=1)
        assert answered.status_code == 200


def test_a_server_that_could_not_load_says_so(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Iterator[Any]:
        yield from ()
        raise ModelError("no weights in /secret/folder")

    monkeypatch.setattr(engine, "answer_question", fail)
    with start(ready=False) as server:
        server.wait_until(lambda: server.deployment.failed.is_set())
        response = server.get("/readyz")
        assert server.get("/livez").status_code == 200
    assert response.status_code == 503
    assert "secret" not in response.text


SWITCHED_OFF = {
    "stale recorded step": "recorded_steps",
    "score by other keys": "live_score",
    "silence cut at the wrong end": "cut_silence",
    "prompt and twin mixed up": "one_pass",
}


@pytest.mark.parametrize("fault", [*SWITCHED_OFF, "tap on another head"])
def test_a_model_is_held_against_transformers_before_it_is_ready(
    checkpoint_folder: Path,
    profile_folder: Path,
    server: Any,
    audio: dict[str, str],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Steps are of rounded sizes, as where they are recorded; the fault stays planted."""
    asked = {"audio": audio, "question": QUESTION, "max_tokens": 3, "steer": True}
    expected = server.chat(**asked).json()
    monkeypatch.setattr(KVSlots.__init__, "__kwdefaults__", {"rounded": True})
    (planted,) = (known for known in FAULTS if known.name == fault)
    planted.plant(monkeypatch)
    model, profile = str(checkpoint_folder), str(profile_folder)
    settings = Settings(model=model, profile=profile, listening_log_url=SecretStr(NO_LOG))
    with Server(create_app(settings)).started(ready=False) as own:
        own.wait_until(lambda: own.deployment.failed.is_set() or own.deployment.state == "ready")
        ready = own.get("/readyz")
        if planted.start == "refused":
            assert ready.status_code == 503
            assert "other than plain transformers, taps" in caplog.text
            return
        answer = own.chat(**asked).json()
        feature = SWITCHED_OFF[fault]
        assert own.metric("allears_switched_off", feature=feature) == 1
    assert list(ready.json()["switched_off"]) == [feature]
    assert ready.json()["switched_off"][feature] in caplog.text
    assert answer["answer"] == expected["answer"]
    strength = expected["steering"]["strength"]
    assert answer["steering"]["strength"] == pytest.approx(strength, rel=1e-3)


def test_nothing_is_switched_off_where_nothing_is_wrong(server: Any) -> None:
    assert "switched_off" not in server.get("/readyz").json()
    assert 'allears_switched_off{feature="recorded_steps"} 0.0' in server.get("/metrics").text


def test_models_are_listed_as_openai_lists_them(server: Any) -> None:
    (model,) = server.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert model["object"] == "model"
    assert model["created"] > 0
    assert model["generation_defaults"] == {}, "its generation_config.json has none"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("demo", "demo"), ("org/name", "org/name"), ("/srv/models/mine", "mine"), ("/tmp", "tmp")],
)
def test_a_path_is_not_shown(name: str, shown: str) -> None:
    assert public_name(name) == shown


# ---- keys


def test_everything_but_probes_needs_a_key(start: Any, audio: dict[str, str]) -> None:
    with start(api_keys="first-key,second-key") as server:
        paths = ["/metrics", "/docs", "/openapi.json", "/listening-score", "/v1/models", "/nope"]
        for path in paths:
            response = server.get(path)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for key in ("Bearer first", "Bearer", "first-key", "Basic first-key", "Bearer ключ"):
            wrong = {b"authorization": key.encode()}
            assert server.get("/v1/models", headers=wrong).status_code == 401
        body = {"audio": audio, "question": QUESTION, "max_tokens": 1}
        assert server.post("/v1/audio-chat", json=body).status_code == 401
        for key in ("first-key", "second-key"):
            headers = {"authorization": f"Bearer {key}"}
            assert server.post("/v1/audio-chat", json=body, headers=headers).status_code == 200
        assert server.get("/livez").status_code == server.get("/readyz").status_code == 200


# ---- headers and logs


def test_request_ids_come_back(server: Any) -> None:
    sane = server.get("/livez", headers={"x-request-id": "My_id-1.2"})
    assert sane.headers["x-request-id"] == "My_id-1.2"
    for wrong in ("", "x" * 65, "a b", "<b>", "a\tb"):
        made = server.get("/livez", headers={"x-request-id": wrong}).headers["x-request-id"]
        assert made.startswith("req-")


def test_security_headers_are_on_everything(server: Any) -> None:
    for path in ("/livez", "/nope", "/docs", "/metrics"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "content-security-policy" in headers


def test_a_request_is_one_line_of_json_without_user_text(
    server: Any, audio: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "allears.requests")
    chatted = server.chat(audio=audio, question="my secret", max_tokens=1, stream=True)
    server.get("/my-secret?q=secret")
    lines = [vars(r) for r in caplog.records if r.name == "allears.requests"]
    assert [line["route"] for line in lines] == ["/v1/audio-chat", "unmatched"]
    assert [line["status"] for line in lines] == [200, 404]
    assert lines[0]["request_id"] == chatted.headers["x-request-id"]
    assert lines[0]["answer_id"].startswith("achat-")
    assert lines[1]["error_code"] == "not_found"
    assert "secret" not in caplog.text


# ---- metrics


def test_metrics_count_what_happens(start: Any, audio: dict[str, str]) -> None:
    with start() as server:
        ask = {"audio": audio, "question": QUESTION, "max_tokens": 3}
        first = server.chat(**ask, steer=True, steering={"strength": 0.5}).json()
        second = server.chat(**ask, stream=True, steer=True, steering={"direction": "calibrated"})
        server.chat(**ask, temperature=9)
        server.get("/nope")
        page = server.get("/metrics").text
        route = {"route": "/v1/audio-chat"}
        assert second.status_code == 200
        assert server.metric("allears_requests_total", **route, status="200") == 2
        assert server.metric("allears_requests_total", **route, status="422") == 1
        assert server.metric("allears_requests_total", route="unmatched", status="404") == 1
        assert server.metric("allears_errors_total", code="invalid_request") == 1
        assert server.metric("allears_request_seconds_count", **route) == 3
        assert server.metric("allears_time_to_first_token_seconds_count") == 2
        assert server.metric("allears_tokens_total", kind="completion") == 6
        tokens = 2 * first["usage"]["prompt_tokens"]
        assert server.metric("allears_tokens_total", kind="prompt") == tokens
        assert server.metric("allears_tokens_total", kind="audio") == 50
        assert server.metric("allears_audio_seconds_total") == 2
        assert server.metric("allears_listening_score_count") == 2
        assert server.metric("allears_steering_strength_count") == 2
        assert server.metric("allears_steered_total", direction="request") == 1
        assert server.metric("allears_steered_total", direction="calibrated") == 1
        hits = [server.metric("allears_silence_cache_total", result=x) for x in ("hit", "miss")]
        assert sum(hits) == 1
        assert server.metric("allears_silence_cache_bytes") > 0
    for name in ("not_listening_total", "queue_depth", "batch_rows", 'model_info{device="cpu"'):
        assert f"\nallears_{name}" in page


# ---- documents


def test_openapi_describes_both_kinds_of_bodies(server: Any) -> None:
    document = server.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    content = document["paths"]["/v1/audio-chat"]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    request = schemas["AudioChatRequest"]
    assert request["additionalProperties"] == {"type": "null"}  # which is as left out
    assert "steering" in request["properties"]
    assert schemas["AudioChatRequestForm"]["properties"]["audio"]["type"] == "array"
    text = json.dumps(document)
    used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= schemas.keys()
    assert server.get("/docs").status_code == 200
