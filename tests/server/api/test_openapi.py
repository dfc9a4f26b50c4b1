"""The OpenAPI document allows what the server answers, and nothing else."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from server.engine.runtime import Runtime

PLACE = "#/components/schemas/"


def allowed(document: dict[str, Any], name: str, body: dict[str, Any]) -> bool:
    """Whether a body keeps to a schema of the document."""
    schema = {"$ref": PLACE + name, "components": document["components"]}
    return bool(jsonschema_rs.validator_for(schema).is_valid(body))


def message(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


TEXT = {"type": "text", "text": "What is this?"}
CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("a question about a clip", {"audio": 1, "question": "What?"}, True),
    ("a list of clips", {"audio": [1, 1], "question": "What?"}, True),
    ("no clip", {"question": "What?"}, False),
    ("null for a clip", {"audio": None, "question": "What?"}, False),
    ("a clip alone", {"audio": 1}, False),
    ("messages beside a clip", {"audio": 1, "messages": [message(TEXT)]}, True),
    ("messages with a clip", {"messages": [message(2, TEXT)]}, True),
    ("messages without a clip", {"messages": [message(TEXT)]}, True),
    ("both", {"audio": 1, "question": "What?", "messages": [message(TEXT)]}, False),
    ("a blank question", {"audio": 1, "question": " "}, False),
    ("one choice", {"audio": 1, "question": "What?", "choices": ["a"]}, False),
    ("a choice twice", {"audio": 1, "question": "What?", "choices": ["a", "a"]}, False),
    ("a whole number with a point", {"audio": 1, "question": "What?", "seed": 7.0}, True),
    ("half a seed", {"audio": 1, "question": "What?", "seed": 7.5}, False),
    ("a seed below 0", {"audio": 1, "question": "What?", "seed": -1}, False),
    ("no tokens", {"audio": 1, "question": "What?", "max_tokens": 0}, False),
]


@pytest.mark.parametrize(("body", "fine"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_the_document_and_the_server_agree(
    server: Any, audio: dict[str, str], body: dict[str, Any], fine: bool
) -> None:
    """In the cases 1 stands for a clip, and 2 for a part with one."""

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(one) if key != "max_tokens" else one for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        places: dict[Any, Any] = {1: audio, 2: {"type": "input_audio", "input_audio": audio}}
        return places.get(value, value)

    sent = {"max_tokens": 1, **filled(body)}
    document = server.get("/openapi.json").json()
    assert allowed(document, "AudioChatRequest", sent) is fine
    assert (server.chat(**sent).status_code == 200) is fine


def test_a_form_holds_files_and_no_null(server: Any) -> None:
    document = server.get("/openapi.json").json()
    for name in ("AudioChatRequestForm", "ListeningRequestForm"):
        assert allowed(document, name, {"audio": ["bytes"], "question": "What?"})
        assert not allowed(document, name, {"audio": [], "question": "What?"})
        assert not allowed(document, name, {"audio": ["bytes"], "question": None})
        assert not allowed(document, name, {"question": "What?"})


def test_streams_and_headers_are_in_the_document(server: Any) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    for path in ("/v1/audio-chat", "/v1/chat/completions"):
        answer = paths[path]["post"]["responses"]["200"]
        assert answer["content"].keys() == {"application/json", "text/event-stream"}
        assert {"x-request-id", "x-listening-score"} <= answer["headers"].keys()
    metrics = paths["/metrics"]["get"]["responses"]
    assert [list(metrics[status]["content"]) for status in ("200", "401")] == [
        ["text/plain"],
        ["application/json"],
    ]


def test_a_key_is_asked_for_where_there_are_keys(server: Any, start: Any) -> None:
    openly = server.get("/openapi.json").json()["paths"]
    assert openly["/v1/models"]["get"]["security"] == [{"key": []}, {}]
    with start(api_keys="the-key") as own:
        headers = {"authorization": "Bearer the-key"}
        paths = own.get("/openapi.json", headers=headers).json()["paths"]
    asking = {
        path for path, methods in paths.items() for one in methods.values() if "security" in one
    }
    assert asking == paths.keys() - {"/livez", "/readyz"}
    assert paths["/v1/models"]["get"]["security"] == [{"key": []}]


def test_every_example_runs_as_it_stands(start: Any, runtime: Runtime) -> None:
    with start(model=runtime.model.name) as server:
        paths = server.get("/openapi.json").json()["paths"]
        bodies = {
            path: operations["post"]["requestBody"]["content"]
            for path, operations in paths.items()
            if "post" in operations
        }
        assert len(bodies) == 4
        for path, content in bodies.items():
            if "application/json" in content:  # a file can't stand in the document
                response = server.post(path, json=content["application/json"]["example"])
                assert response.status_code == 200, response.text
                assert not response.json()["warnings"]
            else:
                assert "example" not in content["multipart/form-data"]


def test_every_operation_and_object_is_described(server: Any) -> None:
    document = server.get("/openapi.json").json()
    tags = {tag["name"] for tag in document["tags"]}
    assert tags == {"ask", "listening", "OpenAI", "operations"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert set(operation["tags"]) < tags, path
            assert operation["description"], path
    for name, schema in document["components"]["schemas"].items():
        if name not in ("HTTPValidationError", "ValidationError"):  # fastapi's, never sent
            assert schema["description"], name
            for field, described in schema["properties"].items():
                assert described["description"], f"{name}.{field}"
