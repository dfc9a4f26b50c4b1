"""The Python client of an allears server: HTTP only, no torch.

with AllEars() as ears:
    answer = ears.ask("dog.wav", "What animal is this?", choices=["dog", "cat"], steer=True)
    print(answer.text, answer.listening.score, answer.listening.verdict)
"""

from allears_client.answers import (
    Answer,
    Audio,
    ClipListening,
    Heard,
    Listening,
    Steering,
    Timings,
    Usage,
    WindowListening,
    WordListening,
)
from allears_client.audio_input import Samples, Sound
from allears_client.client import DEFAULT_URL, AllEars, AsyncAllEars
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
    Unsendable,
)
from allears_client.request_body import ListeningOptions, Options
from allears_client.stream import AsyncStream, Stream

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
    "ClipListening",
    "Heard",
    "Interrupted",
    "InvalidAudio",
    "InvalidRequest",
    "Listening",
    "ListeningOptions",
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
    "Unsendable",
    "Usage",
    "WindowListening",
    "WordListening",
]
