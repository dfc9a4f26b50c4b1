"""One CPU thread for torch: quicker for passes of one row, and the same numbers everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from steering.model.audio_model import AudioModel


@contextmanager
def one_thread(model: AudioModel) -> Iterator[None]:
    """Run torch in one thread while a model on a CPU works; a model on a GPU changes nothing.

    Passes of one row gain nothing from more threads and lose most of their time to them on a busy
    machine, and the numbers are the same, to the last bit, on any number of cores.
    """
    before = torch.get_num_threads()
    if model.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
