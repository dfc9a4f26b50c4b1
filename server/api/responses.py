"""The bodies that go out, as /docs describes them; response_bodies.py builds them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from server.engine.messages import Timings


class ResponseModel(BaseModel):
    """A JSON object that this server sends; the text below a field is its description."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class HeadScore(ResponseModel):
    """The attention of one specialist head to the audio."""

    layer: int
    """layer of the decoder, from 0"""
    head: int
    """head of the layer, from 0"""
    score: float
    """share of the head's attention that lies on the audio, from 0 to 1"""


class ClipListening(ResponseModel):
    """One clip's part of the listening; influence and rank come with include clips."""

    index: int
    """position of the clip in the request, from 0"""
    score: float
    """the clip's part of the listening score"""
    influence: float | None = None
    """log-probability that the answer loses when this clip is silenced, in nats a token"""
    rank: int | None = None
    """1: the clip with the most influence"""
    timeline: list[float] = []
    """with include timeline: the clip's part of the timeline"""


class WordListening(ResponseModel):
    """One word of the answer."""

    text: str
    """the word: punctuation and spaces are none"""
    start: int
    """its begin in the answer's text, in Unicode characters"""
    end: int
    """its end"""
    score: float | None
    """mean listening score of its tokens, each as the token was about to be written; null where
    this deployment has no profile"""
    effect_bits: float
    """effect of the sound on the word in the bare model, in bits: the sum over its tokens, each
    behind the answer's own words before it"""


class WindowListening(ResponseModel):
    """One window of a clip that is longer than the model's own."""

    clip: int
    """position of the clip in the request, from 0"""
    start_seconds: float
    """begin of the window in the clip"""
    end_seconds: float
    """end of the window in the clip"""
    score: float | None
    """listening score of the window alone"""
    verdict: str
    """verdict of the window alone"""
    strength: float
    """steering strength of the window's answer"""
    answer: str
    """answer to the window alone"""
    effect_bits: float | None
    """effect of the window's sound on its bare answer, in bits; as that of the answer"""


class Listening(ResponseModel):
    """How far the audio decided; null where this deployment has no profile."""

    score: float | None
    """listening score: mean attention of the profile's heads to the audio, from 0 to 1"""
    percentile: float | None
    """share of the calibration set with a lower score, from 0 to 1"""
    verdict: Literal["not_listening", "partly_listening", "listening", "unknown"]
    """the score in a word; unknown without a profile"""
    silence_score: float | None
    """score of the same question about silence; with steering or include silence"""
    effect_bits: float | None
    """what the sound did to the bare answer: KL divergence, in bits, of the first answer token, or
    of the choices, on the audio from that on silence of the same length; with
    include effect, and where the silent twin runs through all layers anyway"""
    threshold: float | None
    """score from which the verdict is listening"""
    hop_seconds: float
    """seconds of audio between two entries of the timeline"""
    timeline: list[float] = []
    """with include timeline: attention to each stretch of audio; the sum is the score"""
    heads: list[HeadScore] = []
    """with include heads: the score of each head"""
    clips: list[ClipListening] = []
    """of several clips, or with include clips: the part of each clip"""
    words: list[WordListening] = []
    """with include words: each word of the answer; of a clip heard in windows, as the window that
    listened most heard it"""


class Steering(ResponseModel):
    """What was done to the answer; `reason` says why nothing was."""

    applied: bool
    """whether the answer was steered"""
    direction: str | None
    """source of the direction: request or calibrated"""
    strength: float
    """multiple of the direction that was added; 0: not steered"""
    relative_norm: float
    """length of what was added, relative to the hidden state that it was added to"""
    reason: str | None
    """why the answer was not steered"""
    answer_changed: bool = False
    """with include unsteered: whether steering changed the answer"""
    unsteered_answer: str = ""
    """with include unsteered: the answer without steering"""


class ChoiceProbability(ResponseModel):
    """One of the request's choices."""

    text: str
    """the choice, as sent"""
    probability: float
    """probability of the choice among all choices"""


class AudioHeard(ResponseModel):
    """One clip: what was sent, and how much of it the model heard."""

    submitted_seconds: float
    """length of the clip as sent"""
    heard_seconds: float
    """length of the part that the model heard"""
    truncated: bool
    """whether the end of the clip was cut off"""
    sample_rate_hz: int
    """sample rate of the file"""
    channels: int
    """channels of the file; the model hears their mean"""


class Usage(ResponseModel):
    """Tokens of the request."""

    prompt_tokens: int
    """tokens of the prompt, with those of the audio"""
    completion_tokens: int
    """tokens of the answer"""
    total_tokens: int
    """tokens of prompt and answer"""
    audio_tokens: int
    """tokens of the audio, part of the prompt's"""


class AudioChat(ResponseModel):
    """The answer of POST /v1/audio-chat."""

    id: str
    """id of the answer, and of its record in the listening log"""
    object: Literal["audio.chat", "audio.chat.chunk"]
    """the chunk in an event of a stream"""
    created: int
    """time of the request, in seconds since 1970"""
    model: str
    """name of the model"""
    answer: str
    """text of the answer"""
    finish_reason: Literal["stop", "length"]
    """length: cut off at max_tokens"""
    choices: list[ChoiceProbability]
    """probabilities of the request's choices, in their order"""
    listening: Listening | None
    """how far the audio decided; null where the conversation has no audio"""
    steering: Steering
    """what was done to the answer"""
    silent_answer: str = ""
    """with include silence: the answer to the same question about silence"""
    windows: list[WindowListening] = []
    """of a clip heard in windows: each window"""
    audio: list[AudioHeard]
    """each clip"""
    usage: Usage
    """tokens"""
    timings: Timings
    """durations"""
    warnings: list[str]
    """sentences about clips that are cut off, silent or did not reach the model, or of no clip"""


class ListeningReport(ResponseModel):
    """The answer of POST /v1/listening-score."""

    id: str
    """id of the report, and of its record in the listening log"""
    object: Literal["listening"]
    """the kind of this body"""
    created: int
    """time of the request, in seconds since 1970"""
    model: str
    """name of the model"""
    listening: Listening
    """how far the audio would decide the answer"""
    audio: list[AudioHeard]
    """each clip"""
    timings: Timings
    """durations"""
    warnings: list[str]
    """sentences about clips that are cut off, silent or did not reach the model"""
    windows: list[WindowListening] = []
    """of a clip heard in windows: each window"""


class ErrorDetails(ResponseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    """what was wrong, the value seen, what is allowed, what to do"""
    type: str
    """kind of error: invalid_request_error, authentication_error, rate_limit_error, server_error"""
    param: str | None
    """the field that was wrong"""
    code: str
    """the error in one word, for programs"""


class ErrorReport(ResponseModel):
    """The body of every error."""

    error: ErrorDetails
    """the error"""
