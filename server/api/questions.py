"""A request's body becomes a Question: audio decoded, clips put where the model hears them.

Three steps, for each has its own place: `sound_files` in a worker thread, for base64 takes its
time; `decoded` in a process of its own; `make_question` anywhere.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.api.requests import (
    MAX_TEXT_CHARACTERS,
    AudioChatRequest,
    AudioFile,
    AudioUrlPart,
    ChatMessage,
    InputAudioPart,
    ListeningRequest,
    SteeringOptions,
    TextPart,
)
from server.audio.decode_pool import DecodePool
from server.audio.policy import AudioPolicy
from server.engine.messages import Question
from steering.audio.clip import Clip
from steering.decision import SteeringRequest
from steering.errors import AudioError, AudioTooLarge, RequestError
from steering.generation import Sampling
from steering.prompt import Message


@dataclass(frozen=True, slots=True, eq=False)
class RequestBody:
    """A request's body: the checked fields, the files of a form, and what its links led to."""

    request: ListeningRequest | AudioChatRequest
    files: tuple[bytes, ...] = ()
    fetched: Mapping[str, bytes] = field(default_factory=dict)  # by URL


def audio_urls(wish: ListeningRequest, hearing: AudioPolicy) -> tuple[str, ...]:
    """The URLs of clips that have to be fetched; RequestError for more clips than allowed."""
    parts = [part for _, part in _audio_parts(wish.messages or ())]
    if len(parts) > hearing.max_clips:
        raise _too_many(len(parts), "messages", hearing)
    urls = [part.audio_url.url for part in parts if isinstance(part, AudioUrlPart)]
    return tuple(dict.fromkeys(url for url in urls if not _is_data(url)))


def audio_files(submitted: RequestBody, hearing: AudioPolicy) -> dict[str, bytes]:
    """The audio files of a body by the names of their fields, those of `audio` first.

    Raises RequestError for fields that clash and for too many clips, AudioError for what is no
    base64.
    """
    wish = submitted.request
    if (wish.question is None) == (wish.messages is None):
        count = "neither" if wish.question is None else "both"
        raise RequestError(
            f"{count} of question and messages was sent; send one of them",
            "question" if wish.question is None else "messages",
        )
    files = dict(_files_of_audio(submitted, hearing))
    for name, part in _audio_parts(wish.messages or ()):
        if isinstance(part, InputAudioPart):
            files[name] = _base64_bytes(name, part.input_audio)
        else:
            files[name] = _url_bytes(name, part.audio_url.url, submitted)
    return files


async def decode_clip(decoder: DecodePool, name: str, data: bytes, hearing: AudioPolicy) -> Clip:
    """The clip of a file; the error of one that can't be heard names its field."""
    try:
        clip = await decoder.decode(data, rate_hz=hearing.rate_hz, limits=hearing.limits)
    except AudioTooLarge as error:
        hint = ', or long_audio "window"' * (hearing.long_audio != "window")
        raise AudioTooLarge(f"{name}: {error}{hint}") from None
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from None
    if hearing.long_audio == "refuse" and clip.seconds > hearing.window_seconds:
        raise AudioTooLarge(
            f"{name}: the audio is {clip.seconds:,.2f} s long and the model's window is"
            f' {hearing.window_seconds:g} s: send a shorter clip, or long_audio "window" or "cut"'
        )
    return clip


def make_question(
    id: str,
    wish: ListeningRequest | AudioChatRequest,
    hearing: AudioPolicy,
    clips: Mapping[str, Clip],
) -> Question:
    """The question of a body whose `clips`, by the names of their fields, were decoded."""
    before = tuple(clip for name, clip in clips.items() if name.startswith("audio."))
    if wish.messages is None:
        messages: tuple[Message, ...] = (Message("user", (*before, str(wish.question))),)
    else:
        messages = _conversation(wish.messages, before, clips)
    question = Question(
        id=id,
        messages=messages,
        choices=tuple(choice.strip() for choice in wish.choices or ()),
        with_silence="silence" in wish.include,
        windowed=hearing.long_audio == "window",
        generate=False,
    )
    return _with_answer(question, wish) if isinstance(wish, AudioChatRequest) else question


def _with_answer(question: Question, wish: AudioChatRequest) -> Question:
    """The question, with how it is to be answered."""
    steering = wish.steering or SteeringOptions(strength="adaptive")
    strength = None if steering.strength == "adaptive" else float(steering.strength)
    return Question(
        id=question.id,
        messages=question.messages,
        choices=question.choices,
        steering=SteeringRequest(wish.steer, strength, steering.direction),
        sampling=Sampling(wish.max_tokens, wish.temperature, wish.top_p, wish.seed),
        stop=tuple(wish.stop),
        with_unsteered="unsteered" in wish.include,
        with_silence=question.with_silence,
        with_clips="clips" in wish.include,
        contrast_clip=steering.clip,
        windowed=question.windowed,
    )


def _files_of_audio(submitted: RequestBody, hearing: AudioPolicy) -> Iterator[tuple[str, bytes]]:
    """The files of `audio`; their clips go before the question."""
    audio, messages = submitted.request.audio, submitted.request.messages
    carried = sum(1 for _ in _audio_parts(messages or ()))
    sent: Sequence[AudioFile] = audio if isinstance(audio, list) else [audio] if audio else []
    here = len(sent) + len(submitted.files)
    if here and carried:
        raise RequestError(
            f"{here} clips came as audio and {carried} inside messages; send them in one place",
            "audio",
        )
    if here + carried == 0:
        raise RequestError(
            "there is no audio; send at least one clip, as audio or as an input_audio part of the"
            " user's message",
            "audio" if messages is None else "messages",
        )
    if here + carried > hearing.max_clips:
        raise _too_many(here + carried, "audio" if here else "messages", hearing)
    yield from ((f"audio.{i}", data) for i, data in enumerate(submitted.files))
    for i, file in enumerate(sent, len(submitted.files)):
        yield f"audio.{i}", _base64_bytes(f"audio.{i}", file)


def _too_many(count: int, param: str, hearing: AudioPolicy) -> RequestError:
    return RequestError(
        f"{count} clips were sent; at most {hearing.max_clips} are allowed here", param
    )


def _conversation(
    messages: Sequence[ChatMessage], before: tuple[Clip, ...], clips: Mapping[str, Clip]
) -> tuple[Message, ...]:
    """The messages, with the clips `before` the first text of the last one."""
    if messages[-1].role != "user":
        raise RequestError(
            f"the last message is of role {messages[-1].role!r}; it must be the user's",
            f"messages.{len(messages) - 1}.role",
        )
    found = [
        Message(message.role, tuple(_message_parts(i, message, clips)))
        for i, message in enumerate(messages)
    ]
    size = sum(len(part) for m in found for part in m.parts if isinstance(part, str))
    if size > MAX_TEXT_CHARACTERS:
        raise RequestError(
            f"the messages hold {size:,} characters; at most {MAX_TEXT_CHARACTERS:,} are allowed",
            "messages",
        )
    return (*found[:-1], Message(found[-1].role, (*before, *found[-1].parts)))


def _message_parts(
    index: int, message: ChatMessage, clips: Mapping[str, Clip]
) -> Iterator[str | Clip]:
    if isinstance(message.content, str):
        yield message.content
        return
    for k, part in enumerate(message.content):
        yield part.text if isinstance(part, TextPart) else clips[_part_name(index, k)]


def _part_name(message: int, part: int) -> str:
    return f"messages.{message}.content.{part}"


def _audio_parts(
    messages: Sequence[ChatMessage],
) -> Iterator[tuple[str, InputAudioPart | AudioUrlPart]]:
    """The clips that stand inside messages, with the names of their fields."""
    for i, message in enumerate(messages):
        for k, part in enumerate(() if isinstance(message.content, str) else message.content):
            if isinstance(part, TextPart):
                continue
            if message.role != "user":
                raise RequestError(
                    f"audio stands in a message of role {message.role!r}", _part_name(i, k)
                )
            yield _part_name(i, k), part


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _url_bytes(name: str, url: str, submitted: RequestBody) -> bytes:
    """The bytes of a clip's URL: inside it, or fetched before."""
    if not _is_data(url):
        return submitted.fetched[url]
    kind, comma, data = url.partition(",")
    if not comma or not kind.lower().endswith(";base64"):
        raise AudioError(
            f"{name}: the data: URI starts with {url[:40]!r}; send data:audio/wav;base64, and the"
            " file in base64"
        )
    return _base64_bytes(name, AudioFile.model_construct(data=data))


def _base64_bytes(name: str, file: AudioFile) -> bytes:
    try:
        return base64.b64decode("".join(file.data.split()), validate=True)
    except (binascii.Error, ValueError):
        hint = ": it is a data: URI; send what follows its comma" * file.data.startswith("data:")
        raise AudioError(
            f"{name}: {len(file.data):,} characters are not base64{hint or '; encode the file'}"
        ) from None
