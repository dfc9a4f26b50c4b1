"""Two meanings of torch's errors: memory ran out, which passes, or the device is lost for good."""

from __future__ import annotations

import torch

# Of errors that have no class of their own: on a CPU torch says RuntimeError.
_NO_ROOM = ("can't allocate memory", "out of memory", "_ALLOC_FAILED", "can't start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a request failed because there was no room; the next may fit."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_ROOM)


def is_lost_device(error: BaseException) -> bool:
    """Whether the device answers nothing any more: after one such error every call to it fails.

    A device-side assert, an illegal access, a launch that failed: only a new process helps.
    """
    if is_out_of_memory(error):
        return False
    by_message = isinstance(error, RuntimeError) and str(error).startswith("CUDA error")
    return by_message or isinstance(error, torch.AcceleratorError)
