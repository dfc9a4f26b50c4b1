"""The effect of the sound on every token of an answer, from one pass with it and one without.

An answer's tokens are known, so that all of them are read in parallel: behind the prompt's own keys
and values, and behind those of its kept silence, where the question is run again before them. The
distributions are the bare model's, however the answer came about. Both passes go in chunks.
Source: arXiv 2603.06854, audio-silence direction; the effect of a token is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from steering.attention.taps import AnswerTaps, Follower, Head, TappedHeads
from steering.decision import divergence_bits
from steering.generation import crop_to_prompt
from steering.model.audio_model import AudioModel
from steering.model.memory_plan import COMPARED_TOKENS
from steering.model.passes import Passes, at_once
from steering.prefill import PrefillResult, run_layers
from steering.prompt import Prompt
from steering.readout import logits
from steering.silence import SilentPrefix

CHUNK_TOKENS = 128  # run at once: as much as may hold up the answers of others


@dataclass(frozen=True, slots=True, eq=False)
class HeardAnswer:
    """An answer of T tokens, and what each was read from in the pass with the sound.

    Of an empty answer that is the prompt's end alone: one place, as if T were 1.
    """

    ids: Sequence[int]
    states: Tensor  # (T, D) final residuals, the first of them the prompt's
    mass: Tensor  # (T, N) float32 audio mass of the tapped heads, or (T, 1) their mean

    @property
    def scores(self) -> list[float]:
        """(T,) listening score of each token; none where no head was tapped."""
        return self.mass.mean(-1).tolist() if self.mass.numel() else []


@torch.inference_mode()
def hear(
    model: AudioModel,
    prompt: Prompt,
    prefilled: PrefillResult,
    ids: Sequence[int],
    heads: Sequence[Head],
) -> HeardAnswer:
    """Run an answer behind its prompt, with taps on every token.

    Args:
        model: the model.
        prompt: of P tokens.
        prefilled: its prefill, tapped at `heads`; the answer's keys and values join its cache.
        ids: of the answer's T tokens.
        heads: whose attention on the audio is read.
    """
    return at_once(hear_in_passes(model, prompt, prefilled, ids, heads, CHUNK_TOKENS))


@torch.inference_mode()
def hear_in_passes(
    model: AudioModel,
    prompt: Prompt,
    prefilled: PrefillResult,
    ids: Sequence[int],
    heads: Sequence[Head],
    chunk_tokens: int,
) -> Passes[HeardAnswer]:
    """The same in passes of at most so many tokens."""
    crop_to_prompt(prefilled)
    audio = prompt.audio_mask.to(model.device)  # (P,)
    heads = heads if prompt.audio_mask.any() else ()
    states, mass = [prefilled.final[None]], [prefilled.attention[: len(heads)].sum(-1)[None]]
    inputs = torch.tensor(ids[:-1], dtype=torch.int64, device=model.device)  # (T - 1,)
    for chunk in inputs.split(chunk_tokens) if len(inputs) else ():
        yield len(chunk)
        taps = AnswerTaps(TappedHeads.on(tuple(heads), audio.device), audio) if heads else None
        start = prefilled.cache.get_seq_length()
        places = torch.arange(start, start + len(chunk), device=model.device)  # (C,)
        seen = torch.arange(start + len(chunk), device=model.device) <= places[:, None]
        embedded = model.decoder.embed_tokens(chunk)[None]
        ran, _ = run_layers(
            model, embedded, places[None], seen[None, None], prefilled.cache, taps=taps
        )
        states.append(ran[0])
        mass.append(taps.rows(heads) if taps else ran.new_empty(len(chunk), 0))
    return HeardAnswer(ids, torch.cat(states), torch.cat(mass))


@torch.inference_mode()
def token_effects(
    model: AudioModel,
    prompt: Prompt,
    prefix: SilentPrefix,
    heard: HeardAnswer,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Iterator[list[float]]:
    """Measure the effect of the sound on each token: KL(heard || silent) / ln 2.

    Args:
        model: the model.
        prompt: the prompt with its clips.
        prefix: keys and values of its silence, of all layers.
        heard: the answer, of T tokens.
        chunk_tokens: run at once, at most.

    Returns:
        T bits in the parts that the chunks make, so that others may go between them; maybe none of
        a first one, of the question alone. Each is as `effect_bits`, behind the answer's own tokens
        before it.
    """
    if not prefix.pairs:  # no audio token: heard and silent are the same
        yield [0.0] * len(heard.states)
        return
    question = prompt.tokens[prompt.audio_end :]  # (Q,)
    inputs = torch.cat([question, torch.tensor(heard.ids[:-1], dtype=torch.int64)])
    inputs = inputs.to(model.device)
    cache = DynamicCache()  # of question and answer only
    done, first = 0, len(question) - 1  # the input that the first token is read from
    for start in range(0, len(inputs), chunk_tokens):
        chunk = inputs[start : start + chunk_tokens]
        places = torch.arange(start, start + len(chunk), device=model.device)
        embedded = model.decoder.embed_tokens(chunk)[None]
        positions = (prompt.audio_end + places)[None]
        follower = Follower(len(chunk), prefix.pairs)
        ran, _ = run_layers(model, embedded, positions, None, cache, follower=follower)
        silent = ran[0, max(0, first - start) :]  # (C', D) of the inputs that tokens are read from
        yield _divergences(model, heard.states[done : done + len(silent)], silent)
        done += len(silent)


def _divergences(model: AudioModel, heard: Tensor, silent: Tensor) -> list[float]:
    """(T,) bits of final residuals (T, D), few at a time: vocabularies are large."""
    bits: list[float] = []
    if not len(silent):
        return bits
    pairs = zip(heard.split(COMPARED_TOKENS), silent.split(COMPARED_TOKENS), strict=True)
    for some, others in pairs:
        both = logits(model, torch.cat([some, others])).log_softmax(-1)  # (2 T', V)
        bits += divergence_bits(*both.split(len(some))).tolist()
    return bits
