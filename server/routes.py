"""What is where. Routes hold no rules: they read, ask the engine, and answer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse

from server import listening_log, metrics, reports, stream
from server.deployment import Deployment, describe_profile, model_name
from server.engine import Engine
from server.errors import UnknownMedia
from server.listen import Answer, Heeded, Question, refusal
from server.question import Submitted, make_question
from server.reports import AudioChat, ErrorReport, ListeningReport
from server.schemas import AudioChatRequest, ListeningRequest, parse_form, parse_json

router = APIRouter()
Asked = TypeVar("Asked", ListeningRequest, AudioChatRequest)


def _deployment(request: Request) -> Deployment:
    found: Deployment = request.app.state.deployment
    return found


async def _closing() -> AsyncIterator[AsyncExitStack]:
    """What is put on this is closed when the response was sent, or the client is gone."""
    async with AsyncExitStack() as stack:
        yield stack


Here = Annotated[Deployment, Depends(_deployment)]
Closing = Annotated[AsyncExitStack, Depends(_closing)]


def _body(kind: type[ListeningRequest]) -> dict[str, Any]:
    """What /docs says of a body: app.py writes the schemas of these two among the others."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    form = {"$ref": f"#/components/schemas/{kind.__name__}Form"}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReport} for status in (401, *statuses)}


_ASKING = _errors(400, 413, 415, 422, 429, 503)


@router.post(
    "/v1/audio-chat",
    response_model=AudioChat,
    responses=_ASKING,
    openapi_extra=_body(AudioChatRequest),
)
async def audio_chat(request: Request, here: Here, closing: Closing) -> Response:
    """Answer a question about audio, and say how far the audio decided."""
    engine = here.admit()
    created = int(time.time())
    wish, question = await _question(request, here, engine, AudioChatRequest)
    events = await closing.enter_async_context(aclosing(engine.run(question)))
    heeded = await _heeded(events)
    finish = partial(_finish, here, engine, wish, question, created)
    headers = reports.headers(heeded.listening, heeded.steering)
    if not wish.stream:
        return JSONResponse(finish(await _answer(events)), headers=headers)
    start = reports.chunk_start(question.id, created, model_name(engine.listener))
    return StreamingResponse(
        stream.pieces(events, start, finish, request.scope),
        media_type=stream.MEDIA_TYPE,
        headers={**headers, **stream.HEADERS},
    )


@router.post(
    "/v1/listening-score",
    response_model=ListeningReport,
    responses=_ASKING,
    openapi_extra=_body(ListeningRequest),
)
async def listening_score_of(request: Request, here: Here, closing: Closing) -> Response:
    """Say how far the audio would decide the answer, without answering."""
    engine = here.admit()
    created = int(time.time())
    wish, question = await _question(request, here, engine, ListeningRequest)
    events = await closing.enter_async_context(aclosing(engine.run(question)))
    heeded = await _heeded(events)
    answer = await _answer(events)
    here.note(question, answer, created)
    body = reports.listening_report(model_name(engine.listener), created, answer, wish.include)
    return JSONResponse(body, headers=reports.headers(heeded.listening, heeded.steering))


@router.get("/listening-score", responses=_errors(404, 422, 503))
@router.get("/v1/listening-score", responses=_errors(404, 422, 503))
async def listening_score(
    here: Here, request_id: Annotated[str | None, Query(max_length=128)] = None
) -> dict[str, Any]:
    """What this deployment heard lately, or the record of one request."""
    engine = here.ready()
    if request_id is not None:
        return asdict(here.records.find(request_id))
    profile = describe_profile(engine.listener)
    return {**listening_log.summary(here.records.recent()), "profile": profile}


@router.get("/v1/models", responses=_errors(503))
async def models(here: Here) -> dict[str, Any]:
    """The model that is served, as OpenAI lists models."""
    name = model_name(here.ready().listener)
    model = {"id": name, "object": "model", "created": here.loaded_at, "owned_by": "allears"}
    return {"object": "list", "data": [model]}


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": ErrorReport}})
async def readyz(here: Here) -> dict[str, str]:
    """The model has answered a question, and more may be asked; `reason` says why answers stay bare
    where they do.
    """
    why = refusal(here.ready().listener)
    return {"status": "ready"} if why is None else {"status": "ready", "reason": why}


@router.get("/metrics", responses=_errors())
async def metrics_page(here: Here) -> Response:
    """Prometheus' text format."""
    return Response(metrics.page(here.metrics), media_type=CONTENT_TYPE_LATEST)


async def _question(
    request: Request, here: Deployment, engine: Engine, kind: type[Asked]
) -> tuple[Asked, Question]:
    """The fields and the question of a body; parsed and decoded off the event loop."""
    identity = f"achat-{uuid.uuid4().hex}"
    request.state.answer_id = identity
    hearing = here.hearing(engine)
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    files: tuple[bytes, ...] = ()
    if media == "multipart/form-data":
        fields, files = await _form(request)
        wish = await asyncio.to_thread(parse_form, kind, fields)
    elif media == "application/json":
        wish = await asyncio.to_thread(parse_json, kind, await request.body())
    else:
        raise UnknownMedia(
            f"the content-type is {media[:60] or 'missing'!r}; send application/json, or"
            " multipart/form-data with the clips as files named audio"
        )
    submitted = Submitted(wish, files)
    return wish, await asyncio.to_thread(make_question, identity, submitted, hearing)


async def _form(request: Request) -> tuple[list[tuple[str, str]], tuple[bytes, ...]]:
    """The text fields and the files named audio, in their order."""
    fields: list[tuple[str, str]] = []
    files: list[bytes] = []
    async with request.form(max_files=64, max_fields=256) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields.append((name, value))
            elif name == "audio":
                files.append(await value.read())
            else:
                fields.append((name, (await value.read()).decode("utf-8", "replace")))
    return fields, tuple(files)


async def _heeded(events: AsyncGenerator[Heeded | str | Answer, None]) -> Heeded:
    """The engine's first event: what goes wrong before it is still an HTTP status."""
    first = await anext(events)
    assert isinstance(first, Heeded), first
    return first


async def _answer(events: AsyncGenerator[Heeded | str | Answer, None]) -> Answer:
    """The engine's last event."""
    answers = [event async for event in events if isinstance(event, Answer)]
    assert len(answers) == 1, answers
    return answers[0]


def _finish(
    here: Deployment,
    engine: Engine,
    wish: AudioChatRequest,
    question: Question,
    created: int,
    answer: Answer,
) -> dict[str, Any]:
    """The body of an answer, after it was recorded."""
    here.note(question, answer, created)
    return reports.audio_chat(model_name(engine.listener), created, question, answer, wish.include)
