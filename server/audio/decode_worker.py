"""One process that decodes: started, sent jobs, and ended when it hangs or dies.

The other side is decode_process.py. It is not trusted: a hostile file may have taken it over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.errors import DecodeFailed, EngineStopped, WorkerDied
from steering.audio.clip import Clip
from steering.audio.limits import AudioLimits
from steering.errors import AudioError, AudioTooLarge, UnsupportedAudio

log = logging.getLogger("allears")

_ROOT = Path(__file__).parents[2]
# As little of the environment as Python needs to start: a decoder needs no keys and addresses.
_PASSED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "PYTHONHOME", "TMPDIR")
_START_SECONDS = 60.0
_DEATH_SECONDS = 1.0  # from the end of a process's output to its own
_PIPE_BYTES = 2**20  # read at once
_MESSAGE_CHARACTERS = 2_000
_WARNINGS = 16  # of a clip
_REFUSALS = {
    "refused": AudioError,
    "too_large": AudioTooLarge,
    "unsupported": UnsupportedAudio,
}
CHECK = "check that the file plays, or convert it to WAV"


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """A file to decode."""

    data: bytes
    rate_hz: int
    limits: AudioLimits

    def header(self, seconds: float) -> bytes:
        """The line before the file's bytes."""
        fields = {"bytes": len(self.data), "rate_hz": self.rate_hz, "seconds": seconds}
        return json.dumps({**fields, "limits": asdict(self.limits)}).encode() + b"\n"

    def sample_bytes(self, reply: Mapping[str, Any]) -> int:
        """Bytes of the samples that a reply announces; ValueError for more than possible."""
        max_samples = math.ceil(self.limits.decoded_seconds * self.rate_hz) + 1
        if not 0 < int(reply["samples"]) <= max_samples:
            raise ValueError("too many samples")
        return int(reply["samples"]) * np.dtype(np.float32).itemsize


@dataclass(slots=True, eq=False)
class DecodeWorker:
    """Holds one process, which is started when it is needed, if not before."""

    program: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None

    async def decode(self, job: DecodeJob, timeout_seconds: float) -> Clip:
        """The clip, or the error, of the process's reply. Without a reply the process is ended."""
        process = await self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(timeout_seconds):
                process.stdin.write(job.header(timeout_seconds))
                process.stdin.write(job.data)
                await process.stdin.drain()
                reply = json.loads(await process.stdout.readline())
                _raise_refusal(reply, job)
                samples = await process.stdout.readexactly(job.sample_bytes(reply))
                return _clip(reply, samples, job)
        except TimeoutError:
            await self.end()
            raise DecodeFailed(
                "timeout",
                f"decoding the audio's {len(job.data):,} bytes took longer than"
                f" {timeout_seconds:g} s and was stopped; {CHECK}",
            ) from None
        except (OSError, EOFError, ValueError, KeyError, TypeError):  # no reply, or no sense in it
            raise WorkerDied(await self.end()) from None

    async def start(self) -> asyncio.subprocess.Process:
        """The process, started if there is none. Raises EngineStopped if that fails."""
        if self.process is not None and self.process.returncode is None:
            return self.process
        await self.end()
        try:
            process = self.process = await asyncio.create_subprocess_exec(
                *self.program,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # libraries print there what they think of files
                env=_environment(),
                limit=_PIPE_BYTES,
            )
            assert process.stdout is not None
            async with asyncio.timeout(_START_SECONDS):
                if json.loads(await process.stdout.readline()) == {"kind": "ready"}:
                    return process
        except (OSError, ValueError, TimeoutError) as error:
            log.error("a decoder can't be started: %s", type(error).__name__)
        await self.end()
        command = " ".join(self.program)
        log.error("audio can't be decoded; `%s </dev/null` on the server says why", command)
        raise EngineStopped(
            "the process that decodes audio can't be started; see the server's log", 30
        )

    def kill(self) -> None:
        """End the process without waiting; `decode` then raises WorkerDied."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()

    async def end(self) -> int:
        """End the process, if there is one, and return its exit status; 0 for none."""
        process, self.process = self.process, None
        if process is None:
            return 0
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.at_eof() or process.stdin.is_closing():  # it has died by itself
            with suppress(TimeoutError):  # kill() would race asyncio for its status, and lose it
                async with asyncio.timeout(_DEATH_SECONDS):
                    await process.wait()
        with suppress(ProcessLookupError):
            process.kill()
        process.stdin.close()
        await process.stdout.read()  # to its end: else the pipe stays open
        return await process.wait()


def _environment() -> dict[str, str]:
    """The decoder's environment: Python's module paths, and one thread for its arithmetic."""
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**passed, **threads, "PYTHONPATH": os.pathsep.join(paths)}


def _raise_refusal(reply: Mapping[str, Any], job: DecodeJob) -> None:
    """Raise the error of a reply that holds no clip."""
    kind, size = reply["kind"], f"{len(job.data):,} bytes"
    if kind in _REFUSALS:
        raise _REFUSALS[kind](str(reply["message"])[:_MESSAGE_CHARACTERS])
    if kind == "memory":
        raise DecodeFailed("memory", f"decoding the audio's {size} takes too much memory; {CHECK}")
    if kind == "failed":
        log.error("a decoder failed with %s over %s", str(reply["message"])[:100], size)
        raise DecodeFailed("failed", f"the audio's {size} can't be decoded; {CHECK}")


def _clip(reply: Mapping[str, Any], samples: bytes, job: DecodeJob) -> Clip:
    """The clip of a reply. Raises ValueError if it is none: the process is not trusted."""
    waveform = np.frombuffer(bytearray(samples), np.float32)  # (S,) mono
    if not np.isfinite(waveform).all():
        raise ValueError("not finite")
    return Clip(
        samples=waveform,
        sample_rate_hz=job.rate_hz,
        submitted_seconds=float(reply["submitted_seconds"]),
        submitted_rate_hz=int(reply["submitted_rate_hz"]),
        channels=int(reply["channels"]),
        warnings=tuple(str(w)[:_MESSAGE_CHARACTERS] for w in list(reply["warnings"])[:_WARNINGS]),
    )
