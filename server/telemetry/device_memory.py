"""Memory of the model's device: used, and in all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, where there is one


def device_bytes(device: torch.device, kind: Literal["used", "total"]) -> float:
    """Bytes used, or in all; on a CPU those of this process, and its limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return float(total - free if kind == "used" else total)
    return _resident_bytes() if kind == "used" else _limit_bytes()


def _resident_bytes() -> float:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return float(pages) * os.sysconf("SC_PAGE_SIZE")


def _limit_bytes() -> float:
    """The machine's memory, or the container's limit if that is lower."""
    machine = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = _GROUP_LIMIT.read_text(encoding="ascii").strip() if _GROUP_LIMIT.exists() else "max"
    return machine if limit == "max" else min(machine, float(limit))
