"""OpenAI's transcriptions: a question to the audio-language model, not a recogniser of its own.

The model is asked to write down what is said. Of a clip heard in windows the transcript is that of
all windows, and what two of them both hear stands once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from server.api import response_bodies
from server.api.neutral_fields import TRANSCRIPTION
from server.api.open_question import OpenQuestion
from server.api.openai_responses import Transcription
from server.api.requests import AudioChatRequest, LongAudio, MaxTokens
from server.api.strict_model import Extra, StrictModel
from server.engine.messages import Answer

FIELDS = {"question": "prompt", "audio": "file", "audio.0": "file"}  # a question's, of this route
_INSTRUCTION = "Transcribe the speech in the audio word for word. Answer with these words alone."
_LANGUAGE = re.compile(r"[^\W\d_][\w -]{1,39}")
_MAX_SHARED_WORDS = 30  # at the border of two windows
_MAX_PROMPT_CHARACTERS = 10_000


def _known_language(text: str) -> str:
    if not _LANGUAGE.fullmatch(text):
        raise PydanticCustomError("language", 'must be a code such as "en", or a language\'s name')
    return text


class TranscriptionRequest(StrictModel):
    """POST /v1/audio/transcriptions."""

    extras: ClassVar[Mapping[str, Extra]] = TRANSCRIPTION
    model: str = Field(max_length=1000, description="the one that GET /v1/models names")
    language: Annotated[str, AfterValidator(_known_language)] | None = None
    """language of the speech, as a code or a name; told to the model"""
    prompt: Annotated[str, Field(max_length=_MAX_PROMPT_CHARACTERS)] | None = None
    """words about the clip that the model is told: names, spellings, what came before"""
    response_format: Literal["json", "text"] = "json"
    """text: the transcript alone; subtitles and times of words are not made"""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0: the most likely token each time; more: more random"""
    max_tokens: MaxTokens = 448
    """longest transcript, in tokens; of each window where a clip is heard in windows"""
    steer: bool = False
    """steer the transcript towards the audio"""
    long_audio: LongAudio | None = Field(
        default=None,
        description="what becomes of a clip longer than is heard as one; null: as deployed",
    )


def to_question(body: TranscriptionRequest) -> AudioChatRequest:
    """The question that asks for a transcript."""
    language = f" The language is {body.language}." if body.language else ""
    context = f" About the audio: {body.prompt.strip()}" if body.prompt else ""
    return AudioChatRequest(
        question=_INSTRUCTION + language + context,
        messages=None,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        steer=body.steer,
        long_audio=body.long_audio,
    )


def transcription(opened: OpenQuestion[AudioChatRequest], answer: Answer) -> dict[str, Any]:
    """The body of a transcript: OpenAI's keys, then this server's."""
    chat = response_bodies.audio_chat(opened, answer)
    body = response_bodies.dump(chat)
    shared = {key: body[key] for key in Transcription.model_fields if key in body}
    usage = chat.usage
    return {
        "text": transcript(answer),
        **shared,
        "usage": {
            "type": "tokens",
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "input_token_details": {
                "audio_tokens": usage.audio_tokens,
                "text_tokens": usage.prompt_tokens - usage.audio_tokens,
            },
        },
    }


def transcript(answer: Answer) -> str:
    """The text of an answer, or of those about all windows of a clip."""
    words: list[str] = []
    for window in answer.windows:
        new = window.answer.split()
        words += new[_shared_words(words, new) :]
    return " ".join(words) if answer.windows else answer.text.strip()


def _shared_words(before: list[str], after: list[str]) -> int:
    """The number of words that end one window's transcript and begin the next one's."""
    most = min(len(before), len(after), _MAX_SHARED_WORDS)
    ends, begins = [list(map(_bare, part)) for part in (before[len(before) - most :], after[:most])]
    return next((n for n in range(most, 0, -1) if ends[most - n :] == begins[:n]), 0)


def _bare(word: str) -> str:
    """A word without case and marks around it."""
    return word.strip(".,;:!?…\"'").casefold()
