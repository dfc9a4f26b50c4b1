"""Which errors pass, which are the end: by those that torch and numpy really raise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from server.api import error_responses
from server.engine.torch_errors import is_lost_device, is_out_of_memory

TOO_MUCH = 1 << 46


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
        lambda: torch.ones(1).expand(TOO_MUCH).contiguous(),
        lambda: np.zeros(TOO_MUCH, dtype=np.uint8) + 1,
        lambda: bytearray(TOO_MUCH),
    ],
    ids=["torch", "torch copy", "numpy", "python"],
)
def test_an_allocation_that_fails_is_503_whoever_says_so(allocate: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    error = raised.value
    assert is_out_of_memory(error) and not is_lost_device(error)
    assert error_responses.spec_of(error).status == 503
    assert error_responses.body(error, "")["error"]["code"] == "out_of_memory"
    assert "allocate" not in error_responses.body(error, "")["error"]["message"]
    assert int(error_responses.headers(error)["retry-after"]) > 0


@pytest.mark.parametrize(
    ("error", "no_room", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True, False),
        (torch.AcceleratorError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), 1, 0),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False, True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), 0, 1),
        (RuntimeError("CUDA error: unspecified launch failure"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"), False, True),
        (RuntimeError("shape '[3]' is invalid for input of size 2"), False, False),
        (ValueError("CUDA error: is what somebody wrote"), False, False),
    ],
    ids=str,
)
def test_what_an_error_means(error: Exception, no_room: bool, lost: bool) -> None:
    assert is_out_of_memory(error) == bool(no_room)
    assert is_lost_device(error) == bool(lost)
