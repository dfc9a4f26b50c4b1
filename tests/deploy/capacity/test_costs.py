"""The cost model counts what torch counts, and bytes that are really held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from deploy.capacity import costs
from deploy.capacity.costs import Machine, ModelSizes, Work
from server.bench.models import MID, REAL, random_model
from steering.audio.clip import Clip
from steering.generation import UNSTEERED, Sampling
from steering.kv_slots import KVSlots, Row
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.prompt import Prompt, build_question
from steering.silence import contrast_with_silence
from steering.silence_cache import Ladder, SilenceCache

DEPTH = 3  # layers that the twin runs
ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The formula that torch's counter lacks, for the kernel of a CPU."""
    return int(sdpa_flop_count(query, key, value))


def counted(work: Callable[[], Any]) -> tuple[Any, int]:
    """The result of the work, and the operations that torch counted."""
    with FlopCounterMode(display=False, custom_mapping={ON_CPU: _attention}) as counter:
        result = work()
    return result, counter.get_total_flops()


@pytest.fixture(scope="module", params=["tiny", "mid"])
def model(request: pytest.FixtureRequest) -> AudioModel:
    if request.param == "tiny":
        tiny: AudioModel = request.getfixturevalue("tiny_model")
        return tiny
    return random_model("mid", MID, torch.device("cpu"), torch.float32)


@pytest.fixture
def prompt(model: AudioModel) -> Prompt:
    noise = torch.randn(model.sample_rate_hz, generator=torch.Generator().manual_seed(0)).numpy()
    return build_question(
        model,
        [Clip(noise, model.sample_rate_hz, 1.0, model.sample_rate_hz, 1)],
        "What do you hear?",
    )


@pytest.mark.parametrize("seconds", [0.5, 0.97, 1.01, 3.0, 30.0])
def test_an_encoder_is_as_many_operations_as_torch_counts(
    model: AudioModel, seconds: float
) -> None:
    """Of clips with an even and an odd number of positions, and as long as the window."""
    length = round(min(seconds, model.max_clip_seconds) * model.sample_rate_hz)
    noise = torch.randn(length, generator=torch.Generator().manual_seed(0)).numpy()
    clip = Clip(noise, model.sample_rate_hz, length / model.sample_rate_hz, model.sample_rate_hz, 1)
    prompt = build_question(model, [clip], "What do you hear?")
    hear = torch.inference_mode()(model.family.hear)
    _, counted_operations = counted(lambda: hear(model.network, prompt.log_mels, prompt.mel_frames))
    sizes = ModelSizes.of(model, DEPTH)
    positions = sizes.positions_of(int(prompt.mel_frames[0]))
    assert positions // 2 == int(prompt.audio_mask.sum())
    assert costs.encoder(sizes, positions).operations == counted_operations


def test_a_prefill_is_as_many_operations_as_torch_counts(model: AudioModel, prompt: Prompt) -> None:
    _, counted_operations = counted(lambda: prefill(model, prompt))
    sizes = ModelSizes.of(model, DEPTH)
    positions = sizes.positions_of(int(prompt.mel_frames[0]))
    predicted = costs.prefill(sizes, len(prompt.tokens), positions).operations
    assert predicted - costs.readout(sizes).operations == counted_operations  # logits come later


def test_a_twin_is_as_many_operations_as_torch_counts(model: AudioModel, prompt: Prompt) -> None:
    sizes, end = ModelSizes.of(model, DEPTH), prompt.audio_end
    heard, cache = prefill(model, prompt, layers=(DEPTH - 1,)), SilenceCache(10**9, Ladder(0))

    def twin() -> Any:
        return contrast_with_silence(
            model, prompt, heard, heads=(), layers=(DEPTH - 1,), silence_cache=cache
        )

    cold, cold_operations = counted(twin)
    hit, hit_operations = counted(twin)
    assert (cold.from_cache, hit.from_cache) == (False, True)
    question = costs.question(sizes, len(prompt.tokens), end)
    assert question.operations == hit_operations
    positions = sizes.positions_of(int(prompt.mel_frames[0]))
    miss = question + costs.silent_prefix(sizes, end) + costs.encoder(sizes, positions)
    window = prompt.log_mels.shape[-1]
    mel_filters = 2 * sizes.mel_bins * 201 * window  # of the silence: torch's, of 400 samples
    assert miss.operations + mel_filters == cold_operations
    assert mel_filters < 0.05 * cold_operations


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_is_as_many_operations_as_torch_counts(
    model: AudioModel, prompt: Prompt, rows: int
) -> None:
    heard = prefill(model, prompt)
    slots = KVSlots(model, 4, len(prompt.tokens) + 70, None)
    for _ in range(rows):
        slots.admit(Row(UNSTEERED, Sampling(), token=1), heard)
    _, counted_operations = counted(slots.step)
    kv_length = min(16 * -(-(len(prompt.tokens) + 1) // 16), slots.tokens)
    assert costs.step(ModelSizes.of(model, DEPTH), rows, kv_length).operations == counted_operations


def test_held_bytes_are_those_that_are_held(model: AudioModel, prompt: Prompt) -> None:
    sizes, cache = ModelSizes.of(model, DEPTH), SilenceCache(10**9, Ladder(0))
    heard = prefill(model, prompt, layers=(DEPTH - 1,))
    contrast_with_silence(model, prompt, heard, heads=(), layers=(DEPTH - 1,), silence_cache=cache)
    entry = sizes.entry_bytes(prompt.audio_end) + sizes.feature_bytes(int(prompt.audio_mask.sum()))
    assert entry == cache.held_bytes
    assert 4 * sizes.row_bytes(100) == KVSlots.bytes_of(model, 4, 100)


def test_bytes_of_the_true_size_are_those_of_its_tensors() -> None:
    model = random_model("real", REAL, torch.device("meta"), torch.bfloat16)
    sizes = ModelSizes.of(model, 21)
    tensors: list[Tensor] = list(model.network.parameters())
    assert sizes.weight_bytes == pytest.approx(sum(tensor.nbytes for tensor in tensors), rel=1e-3)
    assert sizes.row_bytes(2048) == KVSlots.bytes_of(model, 1, 2048) == 2**30


def test_a_pass_is_as_slow_as_the_machines_scarcest_rate() -> None:
    machine = Machine(100.0, 10.0)
    assert machine.seconds(Work(500.0, 20.0, 4)) == 5.0
    assert machine.seconds(Work(500.0, 80.0, 4)) == 8.0
    slow = Machine(100.0, 10.0, layer_seconds=3.0)
    assert slow.seconds(Work(500.0, 20.0, 4)) == 17.0
    assert slow.seconds(Work(500.0, 20.0, 4), graph=True) == 5.0
    assert Machine(100.0, 10.0, 3.0, overlapped=True).seconds(Work(500.0, 20.0, 4)) == 12.0
