"""From a request's body to the first event of its answer: fetch, decode, ask the engine."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from starlette.requests import Request

from server.api.questions import audio_files, audio_urls, decode_clip, in_field, make_question
from server.api.requests import AudioChatRequest, AudioQuestion, ListeningRequest
from server.audio.policy import for_long_audio
from server.audio.url_fetch import UrlFetcher
from server.deployment import Deployment
from server.engine.engine import Engine
from server.engine.events import AnswerEvent, Finished, Started
from server.engine.messages import Answer, Question
from server.telemetry import tracing
from server.telemetry.request_record import RequestRecord, StageTimes, request_record
from server.telemetry.served_model import model_name
from steering.errors import AudioError, RequestError

_NO_NAMES: Mapping[str, str] = {}
Body = TypeVar("Body", ListeningRequest, AudioChatRequest)


@dataclass(frozen=True, slots=True, eq=False)
class OpenQuestion(Generic[Body]):
    """A question that the engine has begun to answer."""

    body: Body
    question: Question
    model: str  # public name
    created: int  # seconds since 1970
    started: Started
    events: AsyncIterator[AnswerEvent]  # all after Started; the answer is recorded on its way

    async def answer(self) -> Answer:
        """The answer, when its row is free again."""
        answer: Answer | None = None
        async for event in self.events:
            match event:
                case Finished(finished):
                    answer = finished
        assert answer is not None, "an answer ended without its Finished"
        return answer


def deployment_of(request: Request) -> Deployment:
    """The deployment of the request's app."""
    deployment: Deployment = request.app.state.deployment
    return deployment


@asynccontextmanager
async def open_question(
    request: Request,
    engine: Engine,
    body: Body,
    files: Sequence[bytes] = (),
    *,
    prefix: str = "achat",
    fields: Mapping[str, str] = _NO_NAMES,
) -> AsyncIterator[OpenQuestion[Body]]:
    """Ask the engine and wait for its first event: an error until then is still an HTTP status.

    `files` are those of a form, `prefix` is that of the answer's id, `fields` are the names of
    our fields in a body of another form. Closing frees the row.
    """
    deployment, record = deployment_of(request), request_record(request.scope)
    created = int(time.time())
    record.answer_id = f"{prefix}-{uuid.uuid4().hex}"
    with _own_fields(body, fields, in_audio=bool(body.audio or files)):
        question = await _decode(deployment, engine, record, body, files)
    wants_text = isinstance(body, AudioChatRequest) and body.stream
    async with aclosing(engine.run(question, pieces=wants_text)) as events:
        with _own_fields(body, fields, in_audio=bool(body.audio or files)):
            started = await anext(events)
        assert isinstance(started, Started), "an answer began without its Started"
        async with aclosing(_recorded(events, deployment, record, question, created)) as rest:
            yield OpenQuestion(body, question, model_name(engine.runtime), created, started, rest)


@contextmanager
def _own_fields(
    body: AudioQuestion, fields: Mapping[str, str], *, in_audio: bool
) -> Iterator[None]:
    """Let errors name the field that the request has: its words and clips may be in messages, or
    in the `fields` of another form.
    """
    try:
        yield
    except (RequestError, AudioError) as error:
        default = "audio" if isinstance(error, AudioError) else None
        moved = {"question": body.messages is not None, "audio": not in_audio}
        param = error.param or default
        error.param = "messages" if body.messages and moved.get(str(param)) else param
        error.param = fields.get(str(error.param), error.param)
        name, colon, rest = str(error).partition(":")
        if colon and name in fields:
            error.args = (f"{fields[name]}:{rest}", *error.args[1:])
        raise


async def _recorded(
    events: AsyncIterator[AnswerEvent],
    deployment: Deployment,
    record: RequestRecord,
    question: Question,
    created: int,
) -> AsyncGenerator[AnswerEvent, None]:
    async for event in events:
        match event:
            case Finished(answer):
                record.answer = answer
                deployment.record_answer(question, answer, created)
        yield event


async def _decode(
    deployment: Deployment,
    engine: Engine,
    record: RequestRecord,
    body: AudioQuestion,
    files: Sequence[bytes],
) -> Question:
    """The question of a body: its URLs fetched, its audio decoded off the event loop."""
    settings = deployment.settings
    policy = for_long_audio(deployment.audio_policy(engine), body.long_audio)
    fetched: Mapping[str, bytes] = {}
    if urls := audio_urls(body, policy):
        hosts, headers = frozenset(settings.allowed_audio_hosts), tracing.headers(record.span)
        fetcher = UrlFetcher(hosts, settings.max_audio_bytes, headers=headers)
        try:
            fetched = await fetcher.fetch_all(tuple(urls))
        except AudioError as error:  # it tells the URL, which may stand behind a redirect
            name, *others = urls.values()
            in_field(error, "messages" if others else name)
            raise
    began = time.time_ns()
    encoded = await asyncio.to_thread(audio_files, body, policy, files, fetched)
    clips = {
        name: await decode_clip(deployment.decode_pool, name, data, policy)
        for name, data in encoded.items()
    }
    question = make_question(record.answer_id, body, policy, clips)
    asked = math.inf if question.given_answer else question.sampling.max_tokens
    tokens = int(min(asked, settings.max_tokens))
    question = replace(question, sampling=replace(question.sampling, max_tokens=tokens))
    record.question, record.stage_times = question, StageTimes(began, time.time_ns())
    return question
