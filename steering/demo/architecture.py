"""The embedded model before training: a small Qwen2-Audio with its tokenizer and processor."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from steering.synthetic import questions, sounds, speech, world
from steering.synthetic.synthesis import SAMPLE_RATE_HZ

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_bos|>",
    "<|AUDIO|>",
    "<|audio_eos|>",
)
MEL_BINS = 64
MEL_FRAMES = int(world.MAX_SECONDS * world.HOPS_A_SECOND)
# Qwen2's own split: a word with the character before it, single digits, punctuation, spaces.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _corpus() -> Iterator[str]:
    """Every sentence of the world, so that its words become whole tokens."""
    answers = sorted({value for values in world.VALUES.values() for value in values} | {"silence"})
    yield "system\nYou are a helpful assistant.\nuser\nassistant\nAudio 1: 2: 3:\n"
    yield "\n".join(f"{x}\n {x}\n({letter}) {x}" for x, letter in product(answers, "ABCD"))
    asked = [q for group in questions.QUESTIONS.values() for q in group]
    yield "\n".join([*asked, *questions.OPEN_QUESTIONS, *questions.DESCRIBE_QUESTIONS])
    for group in questions.CUES.values():
        yield "\n".join(template.format(x=x, name="") for template in group for x in answers)
    yield "\n".join([*sounds.ACTIONS.values(), "There is only noise.", "There is only silence."])
    for instrument, contour in product(world.VALUES["instrument"], world.VALUES["contour"]):
        facts = world.Facts("music", {"instrument": instrument, "contour": contour})
        yield questions.describe(facts)
    for speaker, word in product(speech.SEXES, world.VALUES["word"]):
        yield questions.describe(world.Facts("speech", {"word": word}, speaker=speaker))
    for sound, count in product(sounds.COUNTED, world.COUNTS):
        yield questions.describe(world.Facts("sound", {"sound": sound, "count": count}))
    for source in world.KIND_OF:
        for pair in ({"first": source, "last": "dog"}, {"first": "dog", "last": source}):
            yield questions.describe(world.Facts("sound", pair))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word of the world is one token.

    Unknown words fall back to bytes; every answer is one token with and without a leading space.
    """
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than the corpus can use: merging ends at whole words
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> Qwen2AudioProcessor:
    """The processor of the embedded model: 64 mel bands, clips of 3 s, Qwen2-Audio's template."""
    extractor = WhisperFeatureExtractor(
        feature_size=MEL_BINS,
        sampling_rate=SAMPLE_RATE_HZ,
        hop_length=SAMPLE_RATE_HZ // world.HOPS_A_SECOND,
        chunk_length=int(world.MAX_SECONDS),
        n_fft=400,
        return_attention_mask=True,
    )
    return Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=build_tokenizer())


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2AudioForConditionalGeneration:
    """An untrained Qwen2-Audio of about 4 M parameters: encoder 4 x 128, decoder 8 x 160."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    sizes: dict[str, Any] = dict(
        audio_config={
            "d_model": 128,
            "encoder_layers": 4,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 512,
            "num_mel_bins": MEL_BINS,
            "max_source_positions": MEL_FRAMES // 2,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 160,
            "intermediate_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "vocab_size": -(-len(tokenizer) // 16) * 16,
            "max_position_embeddings": 2048,
            "initializer_range": 0.04,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "bos_token_id": None,
        },
        audio_token_id=ids["<|AUDIO|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    model = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(**sizes))
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    _fill_positions(model.model.audio_tower.embed_positions.weight.data)
    return model


def _fill_positions(table: torch.Tensor) -> None:
    """Write Whisper's sinusoids into the encoder's (positions, width) table, in place.

    transformers leaves the table random and frozen when a model is made from a config.
    """
    positions, width = table.shape
    scale = torch.exp(-torch.arange(width // 2) * (9.21034 / (width // 2 - 1)))
    angles = torch.arange(positions)[:, None] * scale[None, :]
    table.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))
