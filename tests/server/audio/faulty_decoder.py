"""A decoder that does what a broken one might, where a file asks for it: `FAULT:name` in its bytes.

Everything else is the real program: `server/audio/decode_process.py`.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from server.audio.decode_process import serve
from steering.audio.clip import Clip
from steering.audio.decode import decode
from steering.audio.limits import AudioLimits


def faulty(data: bytes, rate_hz: int, limits: AudioLimits) -> Clip:
    """The clip, after or instead of a fault."""
    fault = re.search(rb"FAULT:(\w+)", data)
    clip = decode(data, rate_hz=rate_hz, limits=limits)
    match fault and fault[1].decode():
        case None:
            return clip
        case "hang":
            while True:
                pass
        case "hang_in_c":  # and let no other thread run
            if sys.argv[1:]:
                Path(sys.argv[1]).touch()  # says that it hangs
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "slow":
            time.sleep(0.5)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit":
            os._exit(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "huge":
            np.empty(2**34)
        case "runaway":
            held = []
            while True:
                held.append(np.empty(2**20))
        case "not_finite":
            return replace(clip, samples=np.full_like(clip.samples, np.nan))
        case "too_long":
            return replace(clip, samples=np.zeros(10_000_000, np.float32))
        case "bug":
            raise ValueError("at 0x7ffe12345678 in /etc/decoder/secret.c")
        case "loud":
            os.write(1, b'{"kind": "clip"}\n')
            os.write(2, b"at 0x7ffe12345678 in mpg123.c\n")
    return clip


if __name__ == "__main__":
    serve(faulty)
