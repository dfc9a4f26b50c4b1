"""The routes. They hold no rules: each reads a request, asks the engine or the log, and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import (
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute

from server.api import openai_responses, openapi, response_bodies, sse, static_pages
from server.api.open_question import OpenQuestion, deployment_of, open_question
from server.api.openai_requests import ChatCompletionRequest, json_choice, to_audio_chat
from server.api.openai_responses import ChatCompletion, Transcription
from server.api.request_bodies import read_body, read_json, read_upload
from server.api.requests import AudioChatRequest, ListeningRequest
from server.api.responses import AudioChat, ErrorReport, ListeningReport
from server.api.transcriptions import (
    FIELDS,
    TranscriptionRequest,
    to_question,
    transcript,
    transcription,
)
from server.deployment import Deployment
from server.engine.runtime import steering_refusal
from server.errors import UnknownModel
from server.listening_log import reading
from server.listening_log.records import summary
from server.telemetry import metrics
from server.telemetry.served_model import describe_profile, model_and_profile_names, model_name

router = APIRouter()


async def _deployment(request: Request) -> Deployment:
    return deployment_of(request)


async def _until_answered() -> AsyncIterator[AsyncExitStack]:
    """A stack that is closed when the response was sent, or the client is gone."""
    async with AsyncExitStack() as stack:
        yield stack


CurrentDeployment = Annotated[Deployment, Depends(_deployment)]
ResponseScope = Annotated[AsyncExitStack, Depends(_until_answered)]


@router.post(
    "/v1/audio-chat",
    tags=["ask"],
    summary="Ask about audio",
    response_model=AudioChat,
    responses=openapi.ANSWERING,
    openapi_extra=openapi.body_of(AudioChatRequest),
)
async def audio_chat(
    request: Request, deployment: CurrentDeployment, scope: ResponseScope
) -> Response:
    """Answer a question about audio, and say how far the audio decided."""
    engine = deployment.admit()
    body, files = await read_body(request, AudioChatRequest)
    opened = await scope.enter_async_context(open_question(request, engine, body, files))
    if not body.stream:
        chat = response_bodies.audio_chat(opened, await opened.answer())
        return _answered(opened, response_bodies.dump(chat))
    return _streamed(request, opened, response_bodies.audio_chat_stream(opened))


@router.post(
    "/v1/chat/completions",
    tags=["OpenAI"],
    summary="Ask about audio, as OpenAI's clients do",
    response_model=ChatCompletion,
    responses={**openapi.ANSWERING, **openapi.errors(404)},
    openapi_extra=openapi.body_of(ChatCompletionRequest, form=False),
)
async def chat_completions(
    request: Request, deployment: CurrentDeployment, scope: ResponseScope
) -> Response:
    """OpenAI's chat completions, with audio in; `listening` and `steering` come beside its keys."""
    engine = deployment.admit()
    body = await read_json(request, ChatCompletionRequest)
    _check_model(body.model, model_name(engine.runtime))
    chat, form = to_audio_chat(body), json_choice(body)
    content = form.write if form else str
    opened = await scope.enter_async_context(
        open_question(request, engine, chat, prefix="chatcmpl")
    )
    if not chat.stream:
        answer = await opened.answer()
        return _answered(opened, openai_responses.completion(opened, answer, content))
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    chunks = openai_responses.completion_stream(opened, content, with_usage=with_usage)
    return _streamed(request, opened, chunks)


@router.post(
    "/v1/audio/transcriptions",
    tags=["OpenAI"],
    summary="Ask for a transcript, as OpenAI's clients do",
    response_model=Transcription,
    responses={**openapi.ASKING, **openapi.errors(404), 200: openapi.TRANSCRIPT},
    openapi_extra=openapi.upload_of(TranscriptionRequest),
)
async def transcriptions(
    request: Request, deployment: CurrentDeployment, scope: ResponseScope
) -> Response:
    """Ask the model to write down what is said. It is a prompt to an audio-language model, not a
    recogniser of its own; `listening` says how far the audio decided.
    """
    engine = deployment.admit()
    body, files = await read_upload(request, TranscriptionRequest)
    _check_model(body.model, model_name(engine.runtime))
    opened = await scope.enter_async_context(
        open_question(request, engine, to_question(body), files, prefix="transcr", fields=FIELDS)
    )
    answer = await opened.answer()
    if body.response_format == "json":
        return _answered(opened, transcription(opened, answer))
    return PlainTextResponse(transcript(answer), headers=response_bodies.headers(opened.started))


@router.post(
    "/v1/listening-score",
    tags=["listening"],
    operation_id="listening_score_of_v1_listening_score_post",  # of generated clients
    summary="Score the listening without an answer",
    response_model=ListeningReport,
    responses=openapi.ASKING,
    openapi_extra=openapi.body_of(ListeningRequest),
)
async def score_listening(
    request: Request, deployment: CurrentDeployment, scope: ResponseScope
) -> Response:
    """Say how far the audio would decide the answer, without answering."""
    engine = deployment.admit()
    body, files = await read_body(request, ListeningRequest)
    opened = await scope.enter_async_context(open_question(request, engine, body, files))
    report = response_bodies.listening_report(opened, await opened.answer())
    return _answered(opened, response_bodies.dump(report))


def _answered(opened: OpenQuestion[Any], body: dict[str, Any]) -> Response:
    return JSONResponse(body, headers=response_bodies.headers(opened.started))


def _streamed(
    request: Request, opened: OpenQuestion[Any], stream_format: sse.StreamFormat
) -> Response:
    events = sse.event_stream(opened.events, stream_format, request.scope)
    headers = {**response_bodies.headers(opened.started), **sse.HEADERS}
    return StreamingResponse(events, media_type=sse.MEDIA_TYPE, headers=headers)


@router.get(
    "/listening-score",
    tags=["listening"],
    summary="Recent listening of this deployment",
    responses=openapi.errors(404, 422, 503),
)
@router.get(
    "/v1/listening-score",
    tags=["listening"],
    summary="Recent listening of this deployment",
    responses=openapi.errors(404, 422, 503),
)
async def listening_score(
    deployment: CurrentDeployment,
    request_id: Annotated[
        str | None, Query(max_length=128, description="`id` of an answer; null: a summary")
    ] = None,
) -> dict[str, Any]:
    """A summary of this deployment's last answers, or the record of one request.

    `log` is the source: the memory of this process, the database of all replicas, or `away` while
    that is unavailable, and then the records of this process.
    """
    runtime = deployment.ready().runtime
    if request_id is not None:
        return asdict(await reading.find(deployment.records, request_id))
    records, log = await reading.recent(deployment.records, *model_and_profile_names(runtime))
    return {**summary(records), "log": log, "profile": describe_profile(runtime)}


@router.get(
    "/v1/models", tags=["OpenAI"], summary="List the served model", responses=openapi.errors(503)
)
async def models(deployment: CurrentDeployment) -> dict[str, Any]:
    """The model that is served, as OpenAI lists models, with its checkpoint's sampling defaults."""
    return {"object": "list", "data": [_model(deployment)]}


@router.get(
    "/v1/models/{model:path}",
    tags=["OpenAI"],
    summary="Describe the served model",
    responses=openapi.errors(404, 503),
)
async def model(deployment: CurrentDeployment, model: str) -> dict[str, Any]:
    """The model that is served, by its name."""
    served = _model(deployment)
    _check_model(model, served["id"])
    return served


def _model(deployment: Deployment) -> dict[str, Any]:
    runtime = deployment.ready().runtime
    return {
        "id": model_name(runtime),
        "object": "model",
        "created": deployment.loaded_at,
        "owned_by": "allears",
        "generation_defaults": runtime.model.generation_defaults,
    }


def _check_model(name: str, served: str) -> None:
    if name != served:
        raise UnknownModel(f"model {name[:100]!r} is not served here; ask for {served!r}")


@router.get("/livez", tags=["operations"], summary="Is the process alive?")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    tags=["operations"],
    summary="Is the model ready?",
    responses={503: {"model": ErrorReport}},
)
async def readyz(deployment: CurrentDeployment) -> dict[str, str | dict[str, str]]:
    """The model has answered a question, and more may be asked; `reason` says why answers stay bare
    where they do, `switched_off` which features were found wrong and are done in a slower way.
    """
    runtime = deployment.ready().runtime
    notices = {"reason": steering_refusal(runtime), "switched_off": runtime.switched_off}
    return {"status": "ready"} | {name: value for name, value in notices.items() if value}


@router.get(
    "/metrics",
    tags=["operations"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={**openapi.errors(), 200: openapi.TEXT},
)
async def metrics_page(deployment: CurrentDeployment) -> Response:
    """Prometheus' text format."""
    others = await deployment.replica_samples()
    return Response(metrics.page(deployment.metrics, others), media_type=CONTENT_TYPE_LATEST)


# ---- pages


@router.get("/", include_in_schema=False)
@router.get("/playground", include_in_schema=False)
async def to_the_playground(deployment: CurrentDeployment) -> Response:
    """Send browsers to the playground."""
    root = deployment.settings.root_path
    return RedirectResponse(f"{root}/playground/" if root else "playground/")


@router.get("/docs/", include_in_schema=False)
async def to_the_docs() -> Response:
    """Send browsers to /docs: the links of that page count from there."""
    return RedirectResponse("../docs")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Swagger UI over /openapi.json."""
    return static_pages.response(static_pages.DOCS)


@router.get("/playground/{name:path}", include_in_schema=False)
async def playground(name: str) -> Response:
    """A file of the playground."""
    return static_pages.response(name or static_pages.PLAYGROUND)


def forwarded_routes() -> list[BaseRoute]:
    """The routes that a router forwards: all but pages and its own probe and metrics."""
    own = {"/livez", "/metrics", "/docs", "/docs/", "/", "/playground", "/playground/{name:path}"}
    return [route for route in router.routes if getattr(route, "path", None) not in own]
