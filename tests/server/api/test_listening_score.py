"""GET and POST of listening scores."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import soundfile
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from server.errors import UnknownRecord
from server.listening_log.records import MemoryLog, Record, summary
from steering import listening

QUESTION = "What is this?"


def test_listening_only_gives_the_same_score(server: Any, audio: dict[str, str]) -> None:
    whole = server.chat(audio=audio, question=QUESTION, max_tokens=1).json()
    include = ["timeline", "heads", "silence"]
    body = {"audio": audio, "question": QUESTION, "include": include}
    response = server.post("/v1/listening-score", json=body)
    heard = response.json()
    assert heard.keys() == {
        "id",
        "object",
        "created",
        "model",
        "listening",
        "audio",
        "timings",
        "warnings",
    }
    assert heard["listening"]["score"] == whole["listening"]["score"]
    assert heard["audio"] == whole["audio"]
    assert len(heard["listening"]["timeline"]) == 25
    assert len(heard["listening"]["heads"]) == 3
    assert heard["listening"]["silence_score"] > 0
    assert float(response.headers["x-listening-score"]) == heard["listening"]["score"]
    assert response.headers["x-steering-strength"] == "0"
    choices = server.post(
        "/v1/listening-score", json={**body, "choices": ["a", "b"], "include": []}
    ).json()
    assert choices["listening"]["score"] != heard["listening"]["score"]


@pytest.mark.parametrize("key", ["steer", "max_tokens", "stream"])
def test_listening_only_takes_nothing_that_needs_an_answer(
    server: Any, audio: dict[str, str], key: str
) -> None:
    body = {"audio": audio, "question": QUESTION, key: 1}
    response = server.post("/v1/listening-score", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == key


def test_a_form_may_be_listened_to(server: Any, sound: bytes) -> None:
    files = [("audio", ("x.wav", sound))]
    response = server.post("/v1/listening-score", files=files, data={"question": QUESTION})
    assert response.status_code == 200


def test_the_summary_covers_all_kinds_of_requests(start: Any, audio: dict[str, str]) -> None:
    with start() as server:
        empty = server.get("/listening-score").json()
        ask = {"audio": audio, "question": QUESTION, "max_tokens": 1}
        bare = server.chat(**ask).json()
        steered = server.chat(**ask, steer=True, steering={"strength": 0.5}).json()
        heard = server.post(
            "/v1/listening-score", json={"audio": audio, "question": "And this one?"}
        ).json()
        full = server.get("/listening-score").json()
        assert server.get("/v1/listening-score").json() == full
        one = server.get("/listening-score", params={"request_id": steered["id"]}).json()
        unknown = server.get("/listening-score", params={"request_id": "achat-x"})
    assert empty["count"] == 0
    assert empty["mean"] is empty["p50"] is empty["last"] is None
    assert (full["window"], full["count"]) == (1000, 3)
    scores = [body["listening"]["score"] for body in (bare, steered, heard)]
    assert full["mean"] == pytest.approx(sum(scores) / 3, abs=1e-5)
    assert min(scores) <= full["p10"] <= full["p50"] <= full["p90"] <= max(scores) + 1e-5
    assert full["steered_fraction"] == 0.5
    assert full["mean_strength"] == 0.5
    assert full["last"]["id"] == heard["id"]
    assert full["last"].keys() == {"id", "score", "verdict", "strength", "created"}
    assert full["profile"]["name"] == "tiny-profile"
    assert full["profile"]["model"] == "tiny"
    assert full["profile"]["layers"] == [7]
    assert full["profile"]["heads"][0] == {"layer": 3, "head": 0, "r": 0.5}
    assert one["id"] == steered["id"]
    assert one["strength"] == 0.5
    assert one["steered"] is True
    assert unknown.status_code == 404
    assert unknown.json()["error"]["param"] == "request_id"


@pytest.mark.parametrize("steer", [True, False])
def test_a_researchers_own_model_hears_and_says_the_same(
    server: Any,
    audio: dict[str, str],
    sound: bytes,
    checkpoint_folder: Path,
    profile_folder: Path,
    steer: bool,
) -> None:
    served = server.chat(
        audio=audio, question=QUESTION, max_tokens=8, steer=steer, include=["timeline"]
    ).json()
    model = Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint_folder)
    processor = AutoProcessor.from_pretrained(checkpoint_folder)
    parts = [{"type": "audio", "audio": ""}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    samples, rate_hz = soundfile.read(io.BytesIO(sound), dtype="float32")
    inputs = processor(text=text, audio=samples, sampling_rate=rate_hz, return_tensors="pt")
    with listening(model, processor, profile_folder, steer=steer) as ears:
        out = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    answer = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ears.score == pytest.approx(served["listening"]["score"], abs=2e-6)
    assert ears.timeline.tolist() == pytest.approx(served["listening"]["timeline"], abs=2e-6)
    assert ears.strength == pytest.approx(served["steering"]["strength"], abs=1e-5)
    assert (ears.strength > 0) == steer
    assert answer.strip() == served["answer"].strip()


def record(name: str, score: float | None = 0.5) -> Record:
    return Record(name, 0, True, score, None, "listening", None, False, None, 0.0, 1.0)


def test_the_oldest_record_goes() -> None:
    log = MemoryLog(window=2)
    for name in "abc":
        log.add(record(name))
    assert [record.id for record in log.of_this_process()] == ["b", "c"]
    assert log.find("c").id == "c"
    with pytest.raises(UnknownRecord):
        log.find("a")


def test_records_may_come_while_others_are_read() -> None:
    log = MemoryLog()

    class Watched:
        """A record beside whose reading another one comes."""

        profile = "none"

        @property
        def model(self) -> str:
            log.add(record("late"))
            return ""

    watched: Any = Watched()
    log.add(watched)
    assert list(log.recent("", "none")) == [watched]


def test_records_without_a_score_count_but_do_not_weigh() -> None:
    found = summary([record("a", None), record("b", 0.25)])
    assert (found["count"], found["mean"]) == (2, 0.25)
