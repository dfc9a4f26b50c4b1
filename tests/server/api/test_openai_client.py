"""The unmodified openai package against a server: what its users rely on holds."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx2
import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI

QUESTION = "What animal is this?"


class Animal(pydantic.BaseModel):
    animal: Literal["dog", "cat", "cow"]


@pytest.fixture
def messages(sound: bytes) -> Any:
    clip = {"data": base64.b64encode(sound).decode(), "format": "wav"}
    parts = [{"type": "input_audio", "input_audio": clip}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


@pytest.fixture
def client(running_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_chat_bare_and_steered(client: OpenAI, messages: Any) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    bare = client.chat.completions.create(model=model.id, messages=messages, max_tokens=4)
    steered = client.chat.completions.create(
        model=model.id,
        messages=messages,
        max_tokens=4,
        extra_body={"steer": True, "steering": {"strength": 0.5}, "include": ["timeline"]},
    )
    for one in (bare, steered):
        assert one.choices[0].message.role == "assistant"
        assert one.choices[0].message.content is not None
        assert one.usage and one.usage.prompt_tokens_details
        assert one.usage.prompt_tokens_details.audio_tokens == 25
        assert one._request_id
    extra: dict[str, Any] = steered.model_extra or {}
    assert extra["steering"]["applied"] is True
    assert len(extra["listening"]["timeline"]) == 25
    assert (bare.model_extra or {})["steering"]["reason"] == "steer is false"


def test_headers_come_through(client: OpenAI, messages: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny",
        messages=messages,
        max_tokens=1,
        extra_body={"steer": True, "steering": {"strength": 0.25}},
        extra_headers={"x-request-id": "mine-1"},
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert 0 < float(raw.headers["x-listening-score"]) < 1
    assert float(raw.headers["x-steering-strength"]) == 0.25
    assert raw.parse().choices[0].finish_reason in ("stop", "length")


def test_streaming_with_usage(client: OpenAI, messages: Any) -> None:
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    stream = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"steer": False, "include": ["effect"]},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    extra: dict[str, Any] = chunks[-1].model_extra or {}
    assert extra["listening"]["score"] == (whole.model_extra or {})["listening"]["score"]
    assert extra["listening"]["effect_bits"] > 0


def test_the_stream_helper_and_parse(client: OpenAI, messages: Any) -> None:
    choices = {"choices": ["dog", "cat"]}  # so that it ends with stop: the helper raises for length
    with client.chat.completions.stream(
        model="tiny", messages=messages, extra_body=choices
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content
    parsed = client.chat.completions.parse(model="tiny", messages=messages, response_format=Animal)
    assert parsed.choices[0].message.parsed is not None
    assert parsed.choices[0].message.parsed.animal in ("dog", "cat", "cow")


def test_async(running_url: str, messages: Any) -> None:
    async def ask() -> tuple[Any, list[Any]]:
        async with AsyncOpenAI(base_url=f"{running_url}/v1", api_key="unused") as client:
            create = client.chat.completions.create
            whole, stream = await asyncio.gather(
                create(model="tiny", messages=messages, max_tokens=4),
                create(model="tiny", messages=messages, max_tokens=4, stream=True),
            )
            return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(ask())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert "listening" in (chunks[-1].model_extra or {})


# ---- errors


def test_errors_are_its_exceptions(client: OpenAI, messages: Any, sound: bytes) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        create(model="tiny", messages=messages, n=2)
    assert (refused.value.param, refused.value.code) == ("n", "invalid_request")
    with pytest.raises(openai.NotFoundError):
        create(model="gpt-4o-audio-preview", messages=messages)
    with pytest.raises(openai.BadRequestError) as unheard:
        messages[0]["content"][0]["input_audio"]["data"] = "AAAA"
        create(model="tiny", messages=messages)
    assert unheard.value.code == "invalid_audio"
    messages[0]["content"][0]["input_audio"]["data"] = "A" * 40_000_000
    with pytest.raises(openai.APIStatusError) as large:
        create(model="tiny", messages=messages)
    assert large.value.status_code == 413


def test_a_key_is_asked_for(start: Callable[..., Any], messages: Any) -> None:
    with start(api_keys="right-key") as server, server.on_a_port() as url:
        with (
            OpenAI(base_url=f"{url}/v1", api_key="wrong-key", max_retries=0) as wrong,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            wrong.models.list()
        assert caught.value.code == "invalid_api_key"
        with OpenAI(base_url=f"{url}/v1", api_key="right-key", max_retries=0) as right:
            answer = right.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
            assert answer.choices


class Patient:
    """An openai client in the event loop of a server, and the statuses it saw."""

    def __init__(self, server: Any, max_retries: int) -> None:
        self.statuses: list[int] = []
        self._server, self._retries = server, max_retries

    def begin(self, messages: Any, **more: Any) -> Any:
        return self._server.run(self._ask(messages, more))

    async def _ask(self, messages: Any, more: dict[str, Any]) -> Any:
        async def note(response: httpx2.Response) -> None:
            self.statuses.append(response.status_code)

        http = openai.DefaultAsyncHttpxClient(
            transport=httpx2.ASGITransport(self._server.app), event_hooks={"response": [note]}
        )
        async with AsyncOpenAI(
            base_url="http://test/v1", api_key="x", http_client=http, max_retries=self._retries
        ) as client:
            return await client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=2, **more
            )


def test_a_full_queue_is_waited_out(start: Callable[..., Any], gate: Any, messages: Any) -> None:
    with start(queue_limit_requests=1, max_batch_rows=1) as server:
        gate.close()
        running = Patient(server, 0).begin(messages)
        server.wait_until(lambda: gate.held == 1)
        waiting = Patient(server, 0).begin(messages)
        server.wait_until(lambda: server.deployment.engine.waiting == 1)
        with pytest.raises(openai.RateLimitError) as full:
            Patient(server, 0).begin(messages).result(10)
        assert int(full.value.response.headers["retry-after"]) >= 1
        patient = Patient(server, 3)
        retried = patient.begin(messages)
        server.wait_until(lambda: patient.statuses == [429])
        gate.open()
        assert retried.result(20).choices
        assert patient.statuses == [429, 200]
        assert running.result(10).choices and waiting.result(10).choices


def test_a_draining_server_is_an_internal_server_error(
    start: Callable[..., Any], messages: Any
) -> None:
    with start() as server:
        server.run(server.deployment.drain(1)).result(5)
        with pytest.raises(openai.InternalServerError) as caught:
            Patient(server, 0).begin(messages).result(10)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"]


def test_an_error_inside_a_stream_is_raised(
    start: Callable[..., Any], messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.engine import engine
    from server.engine.answering import answer_question
    from server.engine.events import Piece

    def broken(*given: Any) -> Iterator[Any]:
        for event in answer_question(*given):
            yield event
            if isinstance(event, Piece):
                raise MemoryError

    async def read(stream: Any) -> list[Any]:
        return [chunk async for chunk in stream]

    with start() as server:
        monkeypatch.setattr(engine, "answer_question", broken)
        stream = Patient(server, 0).begin(messages, stream=True).result(10)
        with pytest.raises(openai.APIError, match="memory"):
            server.run(read(stream)).result(10)
