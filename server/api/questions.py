"""A request's body becomes a Question: audio decoded, clips put where the model hears them.

Three steps, each with its own place: `audio_files` in a worker thread, because base64 takes time;
`decode_clip` in a process of its own; `make_question` anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from server.api.base64_files import is_data_uri, read_base64
from server.api.requests import (
    MAX_TEXT_CHARACTERS,
    AudioChatRequest,
    AudioFile,
    AudioQuestion,
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
from steering.errors import AudioError, AudioTooLarge, RequestError, UnsupportedAudio
from steering.generation import Sampling
from steering.prompt import Message


def audio_urls(body: AudioQuestion, policy: AudioPolicy) -> Mapping[str, str]:
    """The URLs of clips that have to be fetched, with the name of a field of each.

    Raises RequestError for more clips than allowed.
    """
    parts = list(_audio_parts(body.messages or ()))
    if len(parts) > policy.max_clips:
        raise _too_many(len(parts), "messages", policy)
    urls = {p.audio_url.url: name for name, p in parts if isinstance(p, AudioUrlPart)}
    return {url: name for url, name in urls.items() if not is_data_uri(url)}


def audio_files(
    body: AudioQuestion,
    policy: AudioPolicy,
    files: Sequence[bytes] = (),
    fetched: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """The audio files of a body by the names of their fields, those of `audio` first.

    `files` are those of a form, `fetched` those of URLs. Raises RequestError for fields that clash
    and for too many clips, AudioError for data that is not base64.
    """
    if (body.question is None) == (body.messages is None):
        count = "neither" if body.question is None else "both"
        raise RequestError(
            f"{count} of question and messages was sent; send one of them",
            "question" if body.question is None else "messages",
        )
    if isinstance(body, ListeningRequest) and "words" in body.include and body.answer is None:
        raise RequestError(
            "include words: there is no answer; send `answer`, a text whose words are weighed, or"
            " ask POST /v1/audio-chat for one",
            "include",
        )
    by_name = dict(_files_of_audio(body, policy, files))
    for name, part in _audio_parts(body.messages or ()):
        if isinstance(part, InputAudioPart):
            by_name[name] = _file_bytes(name, part.input_audio.data)
        elif is_data_uri(url := part.audio_url.url):
            by_name[name] = _file_bytes(name, url)
        else:
            by_name[name] = (fetched or {})[url]
    return by_name


async def decode_clip(pool: DecodePool, name: str, data: bytes, policy: AudioPolicy) -> Clip:
    """The clip of a file; an error names its field."""
    try:
        clip = await pool.decode(data, rate_hz=policy.rate_hz, limits=policy.limits)
    except AudioTooLarge as error:
        hint = ', or long_audio "window"' * (policy.long_audio != "window")
        raise in_field(AudioTooLarge(f"{name}: {error}{hint}"), name) from None
    except UnsupportedAudio as error:
        raise in_field(UnsupportedAudio(f"{name}: {error}"), name) from None
    except AudioError as error:
        raise in_field(AudioError(f"{name}: {error}"), name) from None
    if policy.long_audio == "refuse" and clip.submitted_seconds > policy.window_seconds:
        too_long = AudioTooLarge(
            f"{name}: the audio is {clip.submitted_seconds:,.2f} s long and the window is"
            f" {policy.window_seconds:g} s (the model's, or what a row holds): send a shorter clip,"
            ' or long_audio "window" or "cut"'
        )
        raise in_field(too_long, name)
    return clip


def in_field(error: AudioError, name: str) -> AudioError:
    """The error, with the field of the request that it is about."""
    error.param = "audio" if name.startswith("audio.") else name
    return error


def make_question(
    id: str,
    body: AudioQuestion,
    policy: AudioPolicy,
    clips: Mapping[str, Clip],
) -> Question:
    """The question of a body and its decoded clips, by the names of their fields."""
    before = tuple(clip for name, clip in clips.items() if name.startswith("audio."))
    if body.messages is None:
        fields = (*("audio" for _ in before), "question")
        messages: tuple[Message, ...] = (Message("user", (*before, str(body.question)), fields),)
    else:
        messages = _conversation(body.messages, before, clips)
    question = Question(
        id=id,
        messages=messages,
        choices=tuple(choice.strip() for choice in body.choices or ()),
        with_silence="silence" in body.include,
        with_effect="effect" in body.include,
        with_words="words" in body.include,
        long_audio=policy.long_audio,
        generate=False,
    )
    if isinstance(body, ListeningRequest) and body.answer is not None:
        return replace(question, given_answer=body.answer, with_words=True)
    return _to_answer(question, body) if isinstance(body, AudioChatRequest) else question


def _to_answer(question: Question, body: AudioChatRequest) -> Question:
    """The question with the options of its answer."""
    steering = body.steering or SteeringOptions(strength="adaptive")
    strength = None if steering.strength == "adaptive" else float(steering.strength)
    return replace(
        question,
        generate=True,
        steering=SteeringRequest(body.steer, strength, steering.direction),
        sampling=Sampling(
            body.max_tokens,
            body.temperature,
            body.top_p,
            body.seed,
            top_k=body.top_k,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
        ),
        stop=tuple(body.stop),
        with_unsteered="unsteered" in body.include,
        with_clips="clips" in body.include,
        contrast_clip=steering.clip,
    )


def _files_of_audio(
    body: AudioQuestion, policy: AudioPolicy, files: Sequence[bytes]
) -> Iterator[tuple[str, bytes]]:
    """The files of `audio`; their clips go before the question."""
    audio, messages = body.audio, body.messages
    encoded: Sequence[AudioFile] = audio if isinstance(audio, list) else [audio] if audio else []
    in_audio = len(encoded) + len(files)
    in_messages = sum(1 for _ in _audio_parts(messages or ()))
    if in_audio and in_messages:
        raise RequestError(
            f"{in_audio} clips came as audio and {in_messages} inside messages; send them in one"
            " place",
            "audio",
        )
    text_only = isinstance(body, AudioChatRequest) and messages is not None
    if in_audio + in_messages == 0 and not text_only:
        raise RequestError(
            "there is no audio; send at least one clip, as audio or as an input_audio part of the"
            " user's message",
            "audio" if messages is None else "messages",
        )
    if in_audio + in_messages > policy.max_clips:
        raise _too_many(in_audio + in_messages, "audio" if in_audio else "messages", policy)
    yield from ((f"audio.{i}", data) for i, data in enumerate(files))
    for i, file in enumerate(encoded, len(files)):
        yield f"audio.{i}", _file_bytes(f"audio.{i}", file.data)


def _too_many(count: int, param: str, policy: AudioPolicy) -> RequestError:
    return RequestError(
        f"{count} clips were sent; at most {policy.max_clips} are allowed here", param
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
    if _is_empty(messages[-1]):
        raise RequestError(
            "the last message is empty; send a text or a clip in it",
            f"messages.{len(messages) - 1}.content",
        )
    *earlier, last = [
        Message(role, tuple(_message_parts(i, message, clips)), _part_fields(i, message))
        for i, message in enumerate(messages)
        for role in ["system" if message.role == "developer" else message.role]
        if role != "system" or not _is_empty(message)  # the template has a place for none
    ]
    parts = [part for message in (*earlier, last) for part in message.parts]
    size = sum(len(part) for part in parts if isinstance(part, str))
    if size > MAX_TEXT_CHARACTERS:
        raise RequestError(
            f"the messages hold {size:,} characters; at most {MAX_TEXT_CHARACTERS:,} are allowed",
            "messages",
        )
    fields = (*("audio" for _ in before), *last.fields)
    return (*earlier, Message(last.role, (*before, *last.parts), fields))


def _is_empty(message: ChatMessage) -> bool:
    """Whether a message holds no clip and no text but spaces."""
    if isinstance(message.content, str):
        return not message.content.strip()
    return all(isinstance(part, TextPart) and not part.text.strip() for part in message.content)


def _message_parts(
    index: int, message: ChatMessage, clips: Mapping[str, Clip]
) -> Iterator[str | Clip]:
    if isinstance(message.content, str):
        yield message.content
        return
    for k, part in enumerate(message.content):
        yield part.text if isinstance(part, TextPart) else clips[_part_name(index, k)]


def _part_fields(index: int, message: ChatMessage) -> tuple[str, ...]:
    if isinstance(message.content, str):
        return (f"messages.{index}.content",)
    return tuple(_part_name(index, k) for k in range(len(message.content)))


def _part_name(message: int, part: int) -> str:
    return f"messages.{message}.content.{part}"


def _audio_parts(
    messages: Sequence[ChatMessage],
) -> Iterator[tuple[str, InputAudioPart | AudioUrlPart]]:
    """The clips inside messages, with the names of their fields."""
    for i, message in enumerate(messages):
        for k, part in enumerate(() if isinstance(message.content, str) else message.content):
            if isinstance(part, TextPart):
                continue
            if message.role != "user":
                raise RequestError(
                    f"audio stands in a message of role {message.role!r}", _part_name(i, k)
                )
            yield _part_name(i, k), part


def _file_bytes(name: str, data: str) -> bytes:
    """The bytes of a field with base64."""
    try:
        return read_base64(data)
    except AudioError as error:
        raise in_field(AudioError(f"{name}: {error}"), name) from None
