"""One thread while a model on a CPU works, and as many as before when it is done."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import pytest
import torch

from steering.model.audio_model import AudioModel
from steering.model.one_thread import one_thread


@pytest.fixture
def two_threads() -> Generator[None, None, None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_cpu_works_in_one_thread_and_has_its_own_back(untrained: AudioModel) -> None:
    with pytest.raises(ZeroDivisionError), one_thread(untrained):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_gpu_s_host_keeps_its_threads(untrained: AudioModel) -> None:
    with one_thread(replace(untrained, device=torch.device("cuda"))):
        assert torch.get_num_threads() == 2
