"""Cost of a request from a model's sizes alone: operations, bytes, and the least seconds for them.

An operation is a multiplication or an addition, so a weight that meets a position is two. Norms,
biases and softmax are left out: together they are under a hundredth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steering.model.audio_model import AudioModel
from steering.model.families import POSITIONS_STEP


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a Qwen2-Audio, as its config has them, and how deep its profile looks."""

    mel_bins: int
    positions: int  # of the encoder's window; a clip takes as many as it is long
    encoder_width: int
    encoder_layers: int
    encoder_feed_forward: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    depth: int  # layers that a silent twin runs
    item_bytes: int  # of a weight, key or value

    @classmethod
    def of(cls, model: AudioModel, depth: int) -> ModelSizes:
        """The sizes of a model; no weight is read, so it may be on the meta device."""
        ears, text = model.network.config.audio_config, model.text_config
        return cls(
            mel_bins=int(ears.num_mel_bins),
            positions=int(ears.max_source_positions),
            encoder_width=int(ears.d_model),
            encoder_layers=int(ears.encoder_layers),
            encoder_feed_forward=int(ears.encoder_ffn_dim),
            layers=model.num_layers,
            width=model.hidden_size,
            feed_forward=int(text.intermediate_size),
            heads=model.num_heads,
            kv_heads=model.num_kv_heads,
            head_width=model.head_dim,
            vocabulary=int(text.vocab_size),
            depth=depth,
            item_bytes=torch.empty(0, dtype=model.dtype).element_size(),
        )

    @property
    def attention_weights(self) -> int:
        """Of the four projections of one decoder layer."""
        return 2 * self.width * self.head_width * (self.heads + self.kv_heads)

    @property
    def feed_forward_weights(self) -> int:
        """Of the three matrices of one decoder layer."""
        return 3 * self.width * self.feed_forward

    @property
    def layer_weights(self) -> int:
        """Of one decoder layer."""
        return self.attention_weights + self.feed_forward_weights

    @property
    def encoder_layer_weights(self) -> int:
        """Of one encoder layer."""
        return 4 * self.encoder_width**2 + 2 * self.encoder_width * self.encoder_feed_forward

    @property
    def encoder_weights(self) -> int:
        """Of the encoder and the projector behind it: two convolutions, layers, one matrix."""
        convolutions = 3 * self.encoder_width * (self.mel_bins + self.encoder_width)
        layers = self.encoder_layers * self.encoder_layer_weights
        return convolutions + layers + self.encoder_width * self.width

    @property
    def readout_weights(self) -> int:
        """Of the matrix from the last state to logits; the embedding is as large."""
        return self.width * self.vocabulary

    @property
    def weight_bytes(self) -> int:
        """All matrices: biases, norms and places of the encoder are under a thousandth."""
        decoder = self.layers * self.layer_weights + 2 * self.readout_weights
        return (self.encoder_weights + decoder) * self.item_bytes

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_width * self.item_bytes

    def positions_of(self, mel_frames: int) -> int:
        """Encoder positions of a clip: every second of its mel frames."""
        return (mel_frames - 1) // 2 + 1

    def row_bytes(self, tokens: int) -> int:
        """Keys and values of one answer's row."""
        return self.layers * tokens * self.kv_token_bytes

    def entry_bytes(self, prefix_tokens: int) -> int:
        """One entry of the silence cache: `depth` layers of all up to the end of the audio."""
        return self.depth * prefix_tokens * self.kv_token_bytes

    def feature_bytes(self, audio_tokens: int) -> int:
        """The encoder's silence of one duration, as the cache keeps it."""
        return audio_tokens * self.width * self.item_bytes


@dataclass(frozen=True, slots=True)
class Work:
    """The operations and bytes of a pass."""

    operations: float = 0.0
    bytes: float = 0.0  # weights, keys and values that must be read
    layers: int = 0  # whose operators must be started

    def __add__(self, other: Work) -> Work:
        return Work(
            self.operations + other.operations,
            self.bytes + other.bytes,
            self.layers + other.layers,
        )


def encoder(sizes: ModelSizes, positions: int) -> Work:
    """One clip, of so many positions: what is padded behind it up to the window is left out.

    The convolutions go on to a multiple of POSITIONS_STEP, and one further.
    """
    n, width = positions, sizes.encoder_width
    whole = -(-n // POSITIONS_STEP) * POSITIONS_STEP
    frames, strided = (min(2 * whole + 1, 2 * sizes.positions), min(whole + 1, sizes.positions))
    convolutions = 6 * width * (frames * sizes.mel_bins + strided * width)
    layers = sizes.encoder_layers * (2 * n * sizes.encoder_layer_weights + 4 * n * n * width)
    projector = 2 * (n // 2) * width * sizes.width
    weights = sizes.encoder_weights * sizes.item_bytes
    return Work(convolutions + layers + projector, weights, sizes.encoder_layers)


def decoder_layers(
    sizes: ModelSizes, tokens: int, seen: int, depth: int, *, last_feed_forward: int
) -> Work:
    """`tokens` new ones through `depth` layers, each attending to `seen` keys.

    So many of them, none or one or all, go through the last layer's feed-forward part.
    """
    attention = 2 * tokens * sizes.attention_weights
    attention += 4 * tokens * seen * sizes.heads * sizes.head_width
    whole = 2 * tokens * sizes.feed_forward_weights
    last = 2 * last_feed_forward * sizes.feed_forward_weights
    read = depth * sizes.layer_weights * sizes.item_bytes
    read += depth * (seen - tokens) * sizes.kv_token_bytes
    return Work(depth * attention + (depth - 1) * whole + last, read, depth)


def readout(sizes: ModelSizes, rows: int = 1) -> Work:
    """Logits of so many rows."""
    return Work(2 * rows * sizes.readout_weights, sizes.readout_weights * sizes.item_bytes)


def prefill(sizes: ModelSizes, tokens: int, positions: int) -> Work:
    """A prompt, with its clip of so many positions through the encoder, up to the first token."""
    decoder = decoder_layers(sizes, tokens, tokens, sizes.layers, last_feed_forward=1)
    return encoder(sizes, positions) + decoder + readout(sizes)


def question(sizes: ModelSizes, tokens: int, prefix: int) -> Work:
    """The silent twin's text after the audio, behind a prefix that is at hand: a hit."""
    return decoder_layers(sizes, tokens - prefix, tokens, sizes.depth, last_feed_forward=1)


def silent_prefix(sizes: ModelSizes, prefix: int) -> Work:
    """The extra cost of a miss: everything up to the end of the silent audio."""
    return decoder_layers(sizes, prefix, prefix, sizes.depth, last_feed_forward=0)


def step(sizes: ModelSizes, rows: int, kv_length: int) -> Work:
    """One token more for so many rows, all of which read `kv_length` keys."""
    per_row = decoder_layers(sizes, 1, kv_length, sizes.layers, last_feed_forward=1)
    weights = sizes.layers * sizes.layer_weights * sizes.item_bytes
    read = rows * sizes.row_bytes(kv_length)
    operations = rows * per_row.operations
    return Work(operations, weights + read, sizes.layers) + readout(sizes, rows)


@dataclass(frozen=True, slots=True)
class Machine:
    """The rates that a machine reaches."""

    operations_a_second: float
    bytes_a_second: float
    layer_seconds: float = 0.0  # to start the operators of one layer, from Python
    overlapped: bool = False  # they are started while the device works

    def seconds(self, work: Work, *, graph: bool = False) -> float:
        """The time of the work: the slower of operations and bytes, and starting the operators.

        A CUDA graph starts them at no cost.
        """
        floor = max(
            work.operations / self.operations_a_second,
            work.bytes / self.bytes_a_second,
        )
        if graph:
            return floor
        start = work.layers * self.layer_seconds
        return max(start, floor) if self.overlapped else start + floor


def max_answers_per_second(
    rows: int, tokens: float, entering: float, round_seconds: float
) -> float:
    """Answers a second of an engine that always has questions and refills free rows at once.

    Each answer takes the engine `entering` for itself and a row for `tokens` - 1 rounds; a round
    is shared by all rows, and while a question enters all rows wait.
    """
    return rows / ((tokens - 1) * round_seconds + rows * entering)
