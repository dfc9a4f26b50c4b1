"""Talking to an allears server: HTTP only, no torch.

with AllEars() as ears:
    answer = ears.ask("dog.wav", "What animal is this?", choices=["dog", "cat"], steer=True)
    print(answer.text, answer.listening.score, answer.listening.verdict)
"""

from allears_client.answers import Answer, Audio, Heard, Listening, Steering, Timings, Usage
from allears_client.audio_input import Samples, Sound
from allears_client.client import DEFAULT_URL, AllEars, AsyncAllEars, AsyncStream, Stream
from allears_client.errors import (
    AllEarsClientError,
    AllEarsHTTPError,
    Busy,
    Interrupted,
    InvalidAudio,
    InvalidRequest,
    NoServer,
    NotFound,
    ServerFailed,
    TooLarge,
    Unauthorized,
    UnreadableAudio,
)
from allears_client.request_body import Options

__all__ = [
    "DEFAULT_URL",
    "AllEars",
    "AllEarsClientError",
    "AllEarsHTTPError",
    "Answer",
    "AsyncAllEars",
    "AsyncStream",
    "Audio",
    "Busy",
    "Heard",
    "Interrupted",
    "InvalidAudio",
    "InvalidRequest",
    "Listening",
    "NoServer",
    "NotFound",
    "Options",
    "Samples",
    "ServerFailed",
    "Sound",
    "Steering",
    "Stream",
    "Timings",
    "TooLarge",
    "Unauthorized",
    "UnreadableAudio",
    "Usage",
]
