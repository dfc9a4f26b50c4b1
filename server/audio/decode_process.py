"""A process that decodes audio for a server, one clip after the other, and knows nothing else.

What breaks here, breaks here: a damaged decoder ends this process, not the server. A job comes on
stdin as a line of JSON and the file's bytes; the reply goes to stdout as a line of JSON and the
samples. No pickle: whoever took this process over by a forged file could run code in the server.

Bounds on itself: memory (RLIMIT_AS), and an alarm that ends it in the middle of any loop, so that
it does not outlive its server even then. Otherwise it ends when stdin does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from steering.audio import pyav_reader
from steering.audio.clip import Clip
from steering.audio.decode import decode
from steering.audio.limits import AudioLimits
from steering.errors import AudioError, AudioTooLarge, UnsupportedAudio

DecodeFunction = Callable[[bytes, int, AudioLimits], Clip]
_SPARE_BYTES = 128_000_000  # for what decoders hold beside the file and its samples
_GRACE_SECONDS = 2.0  # the server looks at the clock first


def serve(decode_job: DecodeFunction) -> None:
    """Answer jobs until stdin ends. The first line of output says that it is ready."""
    jobs, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    _silence_libraries()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the server, which drains
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _warm_up()
    own_bytes = _address_space_bytes()
    reply: dict[str, Any] = {"kind": "ready"}
    samples = b""
    while True:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.write(samples)
        replies.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)
        line = jobs.readline()
        if not line:
            return
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"] + _GRACE_SECONDS)
        data = jobs.read(job["bytes"])
        limits = AudioLimits(**job["limits"])
        _limit_memory(own_bytes + 3 * (len(data) + limits.max_decoded_bytes) + _SPARE_BYTES)
        reply, samples = _reply(decode_job, data, job["rate_hz"], limits)


def _reply(
    decode_job: DecodeFunction, data: bytes, rate_hz: int, limits: AudioLimits
) -> tuple[dict[str, Any], bytes]:
    """The reply's line, and the samples of a clip."""
    try:
        clip = decode_job(data, rate_hz, limits)
    except AudioTooLarge as error:
        return {"kind": "too_large", "message": str(error)}, b""
    except UnsupportedAudio as error:
        return {"kind": "unsupported", "message": str(error)}, b""
    except AudioError as error:
        return {"kind": "refused", "message": str(error)}, b""
    except MemoryError:
        return {"kind": "memory"}, b""
    except Exception as error:  # its text may hold addresses
        return {"kind": "failed", "message": type(error).__name__}, b""
    reply = {
        "kind": "clip",
        "samples": len(clip.samples),
        "submitted_seconds": clip.submitted_seconds,
        "submitted_rate_hz": clip.submitted_rate_hz,
        "channels": clip.channels,
        "warnings": clip.warnings,
    }
    return reply, clip.samples.tobytes()


def _decode(data: bytes, rate_hz: int, limits: AudioLimits) -> Clip:
    return decode(data, rate_hz=rate_hz, limits=limits)


def _silence_libraries() -> None:
    """Let nothing but replies leave this process: decoders print what they think of a file."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _warm_up() -> None:
    """Decode and resample a tenth of a second of silence, which loads all libraries.

    PyAV is loaded where it is installed: FFmpeg's libraries are no part of a clip's memory.
    """
    header = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + 1600, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16
    )
    wav = header + struct.pack("<4sI", b"data", 1600) + bytes(1600)
    decode(wav, rate_hz=16_000, limits=AudioLimits())
    np.ones((64, 64), np.float32).mean(axis=1)
    pyav_reader.is_installed()


def _address_space_bytes() -> int:
    """Address space of this process now."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text(encoding="ascii").split()[0]) if statm.exists() else 0
    return pages * resource.getpagesize()


def _limit_memory(limit_bytes: int) -> None:
    if (
        sys.platform == "linux"
    ):  # elsewhere the limit does not hold, or the address space is not known
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))


if __name__ == "__main__":
    serve(_decode)
