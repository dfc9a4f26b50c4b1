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
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute

from server.api import responses, sse
from server.api.openai_requests import ChatCompletionRequest, json_choice, to_audio_chat
from server.api.openai_responses import ChatCompletion, chunk, completion, last_chunks
from server.api.questions import RequestBody, audio_files, audio_urls, decode_clip, make_question
from server.api.requests import (
    AudioChatRequest,
    ListeningRequest,
    StrictModel,
    parse_form,
    parse_json,
)
from server.api.responses import AudioChat, ErrorReport, ListeningReport
from server.api.static_pages import DOCS, PLAYGROUND, static_files
from server.audio.policy import for_long_audio
from server.audio.url_fetch import UrlFetcher
from server.deployment import Deployment
from server.engine.engine import Engine
from server.engine.events import AnswerEvent, Finished, Started
from server.engine.messages import Answer, Question
from server.engine.runtime import steering_refusal
from server.errors import UnknownModel, UnsupportedMediaType
from server.listening_log import reading
from server.listening_log.records import summary
from server.telemetry import metrics, tracing
from server.telemetry.request_record import StageTimes, request_record
from server.telemetry.served_model import describe_profile, model_and_profile_names, model_name

router = APIRouter()
PAGES = static_files()
Asked = TypeVar("Asked", ListeningRequest, AudioChatRequest)
Body = TypeVar("Body", bound=StrictModel)


def _deployment(request: Request) -> Deployment:
    found: Deployment = request.app.state.deployment
    return found


async def _closing() -> AsyncIterator[AsyncExitStack]:
    """What is put on this is closed when the response was sent, or the client is gone."""
    async with AsyncExitStack() as stack:
        yield stack


CurrentDeployment = Annotated[Deployment, Depends(_deployment)]
ResponseScope = Annotated[AsyncExitStack, Depends(_closing)]


def _body(kind: type[StrictModel], *, form: bool = True) -> dict[str, Any]:
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
_STREAMED = {"content": {sse.MEDIA_TYPE: {"schema": _EVENT}}}
_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
_ANSWERING = {**_ASKING, 200: {**_ASKING[200], **_STREAMED}}


@router.post(
    "/v1/audio-chat",
    response_model=AudioChat,
    responses=_ANSWERING,
    openapi_extra=_body(AudioChatRequest),
)
async def audio_chat(request: Request, here: CurrentDeployment, closing: ResponseScope) -> Response:
    """Answer a question about audio, and say how far the audio decided."""
    engine = here.admit()
    created = int(time.time())
    wish, question = await _question(request, here, engine, AudioChatRequest)
    events = await closing.enter_async_context(aclosing(engine.run(question, pieces=wish.stream)))
    started = await _started(events)
    finish = partial(_finish, request, here, engine, wish, question, created)
    headers = responses.headers(started.listening, started.steering)
    if not wish.stream:
        return JSONResponse(finish(await _answer(events)), headers=headers)
    start = responses.chunk_start(question.id, created, model_name(engine.runtime))
    wording = sse.StreamFormat(
        begin=(),
        piece=lambda text: {**start, "delta": text},
        finish=lambda answer: [{**start, "delta": "", **finish(answer), "object": start["object"]}],
    )
    return _streamed(sse.event_stream(events, wording, request.scope), headers)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={**_ANSWERING, **_errors(404)},
    openapi_extra=_body(ChatCompletionRequest, form=False),
)
async def chat_completions(
    request: Request, here: CurrentDeployment, closing: ResponseScope
) -> Response:
    """OpenAI's chat completions, with audio in; `listening` and `steering` come beside its keys."""
    engine = here.admit()
    created, name = int(time.time()), model_name(engine.runtime)
    wanted = await _json(request, ChatCompletionRequest)
    _check_model(wanted.model, name)
    wish, form = to_audio_chat(wanted), json_choice(wanted)
    question = await _decoded(request, here, engine, RequestBody(wish), "chatcmpl")
    events = await closing.enter_async_context(aclosing(engine.run(question, pieces=wish.stream)))
    started = await _started(events)
    headers = responses.headers(started.listening, started.steering)
    finish = partial(_finish, request, here, engine, wish, question, created)
    content = form.write if form else str
    if not wish.stream:
        native = finish(await _answer(events))
        return JSONResponse(completion(native, content(native["answer"])), headers=headers)
    with_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
    start = {"id": question.id, "object": "chat.completion.chunk", "created": created}
    start |= {"model": name, **({"usage": None} if with_usage else {})}
    wording = sse.StreamFormat(
        begin=(chunk(start, {"role": "assistant", "content": ""}, None),),
        piece=lambda text: chunk(start, {"content": content(text)}, None),
        finish=lambda answer: last_chunks(start, finish(answer), with_usage=with_usage),
    )
    return _streamed(sse.event_stream(events, wording, request.scope), headers)


@router.post(
    "/v1/listening-score",
    response_model=ListeningReport,
    responses=_ASKING,
    openapi_extra=_body(ListeningRequest),
)
async def score_listening(
    request: Request, here: CurrentDeployment, closing: ResponseScope
) -> Response:
    """Say how far the audio would decide the answer, without answering."""
    engine = here.admit()
    created = int(time.time())
    wish, question = await _question(request, here, engine, ListeningRequest)
    events = await closing.enter_async_context(aclosing(engine.run(question, pieces=False)))
    started = await _started(events)
    request_record(request.scope).answer = answer = await _answer(events)
    here.record_answer(question, answer, created)
    body = responses.listening_report(model_name(engine.runtime), created, answer, wish.include)
    return JSONResponse(body, headers=responses.headers(started.listening, started.steering))


@router.get("/listening-score", responses=_errors(404, 422, 503))
@router.get("/v1/listening-score", responses=_errors(404, 422, 503))
async def listening_score(
    here: CurrentDeployment, request_id: Annotated[str | None, Query(max_length=128)] = None
) -> dict[str, Any]:
    """What this deployment heard lately, or the record of one request.

    `log` says of what: the memory of this process, the database of all replicas, or, while that is
    away, what this process knows.
    """
    engine = here.ready()
    if request_id is not None:
        return asdict(await reading.find(here.records, request_id))
    records, log = await reading.recent(here.records, *model_and_profile_names(engine.runtime))
    profile = describe_profile(engine.runtime)
    return {**summary(records), "log": log, "profile": profile}


@router.get("/v1/models", responses=_errors(503))
async def models(here: CurrentDeployment) -> dict[str, Any]:
    """The model that is served, as OpenAI lists models."""
    return {"object": "list", "data": [_model(here)]}


@router.get("/v1/models/{model:path}", responses=_errors(404, 503))
async def model(here: CurrentDeployment, model: str) -> dict[str, Any]:
    """The model that is served, by its name."""
    found = _model(here)
    _check_model(model, found["id"])
    return found


def _model(here: Deployment) -> dict[str, Any]:
    name = model_name(here.ready().runtime)
    return {"id": name, "object": "model", "created": here.loaded_at, "owned_by": "allears"}


def _check_model(asked: str, served: str) -> None:
    if asked != served:
        raise UnknownModel(f"model {asked[:100]!r} is not served here; ask for {served!r}")


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": ErrorReport}})
async def readyz(here: CurrentDeployment) -> dict[str, str]:
    """The model has answered a question, and more may be asked; `reason` says why answers stay bare
    where they do.
    """
    why = steering_refusal(here.ready().runtime)
    return {"status": "ready"} if why is None else {"status": "ready", "reason": why}


@router.get("/metrics", response_class=Response, responses={**_errors(), 200: _TEXT})
async def metrics_page(here: CurrentDeployment) -> Response:
    """Prometheus' text format."""
    others = await here.replica_samples()
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
        submitted = RequestBody(await asyncio.to_thread(parse_form, kind, fields), files)
    else:
        submitted = RequestBody(await _json(request, kind, " with the clips as files named audio"))
    question = await _decoded(request, here, engine, submitted, "achat")
    assert isinstance(submitted.request, kind)
    return submitted.request, question


def _media(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _json(request: Request, kind: type[Body], form: str = "") -> Body:
    """The fields of a JSON body; UnknownMedia for another kind."""
    media = _media(request)
    if media != "application/json":
        other = f", or multipart/form-data{form}" if form else ""
        raise UnsupportedMediaType(
            f"the content-type is {media[:60] or 'missing'!r}; send application/json{other}"
        )
    return await asyncio.to_thread(parse_json, kind, await request.body())


async def _decoded(
    request: Request, here: Deployment, engine: Engine, submitted: RequestBody, prefix: str
) -> Question:
    """The question of checked fields: its links fetched, its audio decoded."""
    record = request_record(request.scope)
    record.answer_id = f"{prefix}-{uuid.uuid4().hex}"
    settings = here.settings
    hearing = for_long_audio(here.audio_policy(engine), submitted.request.long_audio)
    if urls := audio_urls(submitted.request, hearing):
        traced = tracing.headers(record.span)
        fetcher = UrlFetcher(
            frozenset(settings.allowed_audio_hosts), settings.max_audio_bytes, headers=traced
        )
        submitted = replace(submitted, fetched=await fetcher.fetch_all(urls))
    begun = time.time_ns()
    files = await asyncio.to_thread(audio_files, submitted, hearing)
    clips = {
        name: await decode_clip(here.decode_pool, name, files[name], hearing) for name in files
    }
    question = make_question(record.answer_id, submitted.request, hearing, clips)
    record.question, record.stage_times = question, StageTimes(begun, time.time_ns())
    return question


def _streamed(events: AsyncIterator[bytes], headers: dict[str, str]) -> StreamingResponse:
    return StreamingResponse(events, media_type=sse.MEDIA_TYPE, headers={**headers, **sse.HEADERS})


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


async def _started(events: AsyncGenerator[AnswerEvent, None]) -> Started:
    """The engine's first event: what goes wrong before it is still an HTTP status."""
    match await anext(events):
        case Started() as started:
            return started
    raise AssertionError("an answer began without its Started")


async def _answer(events: AsyncGenerator[AnswerEvent, None]) -> Answer:
    """The answer of the engine's last event, when its row is free again."""
    answer: Answer | None = None
    async for event in events:
        match event:
            case Finished(finished):
                answer = finished
    assert answer is not None, "an answer ended without its Finished"
    return answer


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
    request_record(request.scope).answer = answer
    here.record_answer(question, answer, created)
    return responses.audio_chat(model_name(engine.runtime), created, question, answer, wish.include)
