"""What is where. Routes hold no rules: they read, ask the engine, and answer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute

from server import history, listening_log, metrics, reports, stream, tracing
from server.completion_reports import ChatCompletion, chunk, completion, last_chunks
from server.completions import ChatCompletionRequest, UnknownModel, asked_for, json_choice
from server.deployment import Deployment, describe_profile, model_name, names
from server.engine import Engine
from server.errors import UnknownMedia
from server.exchange import Answer, Heeded, Question
from server.links import Fetcher
from server.listener import refusal
from server.pages import DOCS, PLAYGROUND, pages
from server.question import Submitted, decoded, for_long_audio, links, make_question, sound_files
from server.reports import AudioChat, ErrorReport, ListeningReport
from server.schemas import AudioChatRequest, ListeningRequest, Wire, parse_form, parse_json

router = APIRouter()
PAGES = pages()
Asked = TypeVar("Asked", ListeningRequest, AudioChatRequest)
Body = TypeVar("Body", bound=Wire)


def _deployment(request: Request) -> Deployment:
    found: Deployment = request.app.state.deployment
    return found


async def _closing() -> AsyncIterator[AsyncExitStack]:
    """What is put on this is closed when the response was sent, or the client is gone."""
    async with AsyncExitStack() as stack:
        yield stack


Here = Annotated[Deployment, Depends(_deployment)]
Closing = Annotated[AsyncExitStack, Depends(_closing)]


def _body(kind: type[Wire], *, form: bool = True) -> dict[str, Any]:
    """What /docs says of a body: document.py writes the schemas of these among the others."""
    ref = f"#/components/schemas/{kind.__name__}"
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": ref}}}
    if form:
        files = {"audio": {"contentType": "audio/*"}}
        content["multipart/form-data"] = {"schema": {"$ref": f"{ref}Form"}, "encoding": files}
    return {"requestBody": {"required": True, "content": content}}


_ANSWER_HEADERS = {
    name: {"description": says, "required": True, "schema": {"type": "string"}}
    for name, says in (
        ("x-request-id", "the request's own id, or a fresh one"),
        ("x-listening-score", "as `listening.score`; `unknown` without a profile"),
        ("x-steering-strength", "as `steering.strength`"),
    )
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReport} for status in (401, *statuses)}


_ASKING = {**_errors(400, 408, 413, 415, 422, 429, 503, 504), 200: {"headers": _ANSWER_HEADERS}}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_STREAMED = {"content": {stream.MEDIA_TYPE: {"schema": _EVENT}}}
_ANSWERING = {**_ASKING, 200: {**_ASKING[200], **_STREAMED}}


@router.post(
    "/v1/audio-chat",
    response_model=AudioChat,
    responses=_ANSWERING,
    openapi_extra=_body(AudioChatRequest),
)
async def audio_chat(request: Request, here: Here, closing: Closing) -> Response:
    """Answer a question about audio, and say how far the audio decided."""
    engine = here.admit()
    created = int(time.time())
    wish, question = await _question(request, here, engine, AudioChatRequest)
    events = await closing.enter_async_context(aclosing(engine.run(question, pieces=wish.stream)))
    heeded = await _heeded(events)
    finish = partial(_finish, request, here, engine, wish, question, created)
    headers = reports.headers(heeded.listening, heeded.steering)
    if not wish.stream:
        return JSONResponse(finish(await _answer(events)), headers=headers)
    start = reports.chunk_start(question.id, created, model_name(engine.listener))
    wording = stream.Wording(
        begin=(),
        piece=lambda text: {**start, "delta": text},
        finish=lambda answer: [{**start, "delta": "", **finish(answer), "object": start["object"]}],
    )
    return _streamed(stream.pieces(events, wording, request.scope), headers)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={**_ANSWERING, **_errors(404)},
    openapi_extra=_body(ChatCompletionRequest, form=False),
)
async def chat_completions(request: Request, here: Here, closing: Closing) -> Response:
    """OpenAI's chat completions, with audio in; `listening` and `steering` come beside its keys."""
    engine = here.admit()
    created, name = int(time.time()), model_name(engine.listener)
    wanted = await _json(request, ChatCompletionRequest)
    _check_model(wanted.model, name)
    wish, form = asked_for(wanted), json_choice(wanted)
    question = await _decoded(request, here, engine, Submitted(wish), "chatcmpl")
    events = await closing.enter_async_context(aclosing(engine.run(question, pieces=wish.stream)))
    heeded = await _heeded(events)
    headers = reports.headers(heeded.listening, heeded.steering)
    finish = partial(_finish, request, here, engine, wish, question, created)
    content = form.write if form else str
    if not wish.stream:
        native = finish(await _answer(events))
        return JSONResponse(completion(native, content(native["answer"])), headers=headers)
    with_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
    start = {"id": question.id, "object": "chat.completion.chunk", "created": created}
    start |= {"model": name, **({"usage": None} if with_usage else {})}
    wording = stream.Wording(
        begin=(chunk(start, {"role": "assistant", "content": ""}, None),),
        piece=lambda text: chunk(start, {"content": content(text)}, None),
        finish=lambda answer: last_chunks(start, finish(answer), with_usage=with_usage),
    )
    return _streamed(stream.pieces(events, wording, request.scope), headers)


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
    events = await closing.enter_async_context(aclosing(engine.run(question, pieces=False)))
    heeded = await _heeded(events)
    request.state.answer = answer = await _answer(events)
    here.note(question, answer, created)
    body = reports.listening_report(model_name(engine.listener), created, answer, wish.include)
    return JSONResponse(body, headers=reports.headers(heeded.listening, heeded.steering))


@router.get("/listening-score", responses=_errors(404, 422, 503))
@router.get("/v1/listening-score", responses=_errors(404, 422, 503))
async def listening_score(
    here: Here, request_id: Annotated[str | None, Query(max_length=128)] = None
) -> dict[str, Any]:
    """What this deployment heard lately, or the record of one request.

    `log` says of what: the memory of this process, the database of all replicas, or, while that is
    away, what this process knows.
    """
    engine = here.ready()
    if request_id is not None:
        return asdict(await history.find(here.records, request_id))
    records, log = await history.recent(here.records, *names(engine.listener))
    profile = describe_profile(engine.listener)
    return {**listening_log.summary(records), "log": log, "profile": profile}


@router.get("/v1/models", responses=_errors(503))
async def models(here: Here) -> dict[str, Any]:
    """The model that is served, as OpenAI lists models."""
    return {"object": "list", "data": [_model(here)]}


@router.get("/v1/models/{model:path}", responses=_errors(404, 503))
async def model(here: Here, model: str) -> dict[str, Any]:
    """The model that is served, by its name."""
    found = _model(here)
    _check_model(model, found["id"])
    return found


def _model(here: Deployment) -> dict[str, Any]:
    name = model_name(here.ready().listener)
    return {"id": name, "object": "model", "created": here.loaded_at, "owned_by": "allears"}


def _check_model(asked: str, served: str) -> None:
    if asked != served:
        raise UnknownModel(f"model {asked[:100]!r} is not served here; ask for {served!r}")


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


@router.get("/metrics", response_class=PlainTextResponse, responses=_errors())
async def metrics_page(here: Here) -> Response:
    """Prometheus' text format."""
    others = await here.replicas() if here.replicas else ()
    return Response(metrics.page(here.metrics, others), media_type=CONTENT_TYPE_LATEST)


# ---- pages


@router.get("/", include_in_schema=False)
@router.get("/playground", include_in_schema=False)
async def to_the_playground(request: Request) -> Response:
    """People who come with a browser get the playground."""
    return RedirectResponse("playground/")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Swagger UI over /openapi.json."""
    return _file(DOCS)


@router.get("/playground/{name:path}", include_in_schema=False)
async def playground(name: str) -> Response:
    """A file of the playground."""
    return _file(name or PLAYGROUND)


def forwarded_routes() -> list[BaseRoute]:
    """The routes that a front asks its replicas: all but pages and what it knows of itself."""
    own = {"/livez", "/metrics", "/docs", "/", "/playground", "/playground/{name:path}"}
    return [route for route in router.routes if getattr(route, "path", None) not in own]


def _file(name: str) -> Response:
    found = PAGES.get(name)
    if found is None:
        raise HTTPException(404)
    return FileResponse(found.path, media_type=found.kind, headers=found.headers)


# ---- what the routes share


async def _question(
    request: Request, here: Deployment, engine: Engine, kind: type[Asked]
) -> tuple[Asked, Question]:
    """The fields and the question of a body; parsed and decoded off the event loop."""
    if _media(request) == "multipart/form-data":
        fields, files = await _form(request)
        submitted = Submitted(await asyncio.to_thread(parse_form, kind, fields), files)
    else:
        submitted = Submitted(await _json(request, kind, " with the clips as files named audio"))
    question = await _decoded(request, here, engine, submitted, "achat")
    assert isinstance(submitted.wish, kind)
    return submitted.wish, question


def _media(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _json(request: Request, kind: type[Body], form: str = "") -> Body:
    """The fields of a JSON body; UnknownMedia for another kind."""
    media = _media(request)
    if media != "application/json":
        other = f", or multipart/form-data{form}" if form else ""
        raise UnknownMedia(
            f"the content-type is {media[:60] or 'missing'!r}; send application/json{other}"
        )
    return await asyncio.to_thread(parse_json, kind, await request.body())


async def _decoded(
    request: Request, here: Deployment, engine: Engine, submitted: Submitted, prefix: str
) -> Question:
    """The question of checked fields: its links fetched, its audio decoded."""
    request.state.answer_id = f"{prefix}-{uuid.uuid4().hex}"
    settings = here.settings
    hearing = for_long_audio(here.hearing(engine), submitted.wish.long_audio)
    if urls := links(submitted.wish, hearing):
        traced = tracing.headers(getattr(request.state, "span", None))
        fetcher = Fetcher(
            frozenset(settings.allowed_audio_hosts), settings.max_audio_bytes, headers=traced
        )
        submitted = replace(submitted, fetched=await fetcher.fetch_all(urls))
    begun = time.time_ns()
    files = await asyncio.to_thread(sound_files, submitted, hearing)
    clips = {name: await decoded(here.decoder, name, files[name], hearing) for name in files}
    question = make_question(request.state.answer_id, submitted.wish, hearing, clips)
    request.state.question, ended = question, time.time_ns()
    request.state.taken = tracing.Taken((begun, ended), ended)
    return question


def _streamed(events: AsyncIterator[bytes], headers: dict[str, str]) -> StreamingResponse:
    return StreamingResponse(
        events, media_type=stream.MEDIA_TYPE, headers={**headers, **stream.HEADERS}
    )


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
    request: Request,
    here: Deployment,
    engine: Engine,
    wish: AudioChatRequest,
    question: Question,
    created: int,
    answer: Answer,
) -> dict[str, Any]:
    """The body of an answer, after it was recorded."""
    request.state.answer = answer
    here.note(question, answer, created)
    return reports.audio_chat(model_name(engine.listener), created, question, answer, wish.include)
