"""Training batches: questions about clips, packed so that the questions of a group share its audio.

A group is one clip, or several of different domains. Each question sees the text before the audio,
its group's audio and itself, at the positions it would have alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from steering.demo.clip_bank import ClipBank, record_clips
from steering.synthetic import world
from steering.synthetic.questions import ClipQuestion, ask, ask_openly, describe
from steering.synthetic.synthesis import Rng

MAX_AUDIO_TOKENS = world.AUDIO_TOKENS
CLIPS = (1, 1, 1, 1, 2, 1, 1, 1, 1, 3)  # of a group, step by step


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Questions that share the audio of B groups of C clips; Q a group, padded to U tokens."""

    before: tuple[Tensor, ...]  # C x (P,) int64, the tokens before each clip, the same for all
    log_mels: Tensor  # (B * C, 64, 300) float32
    mel_frames: Tensor  # (B * C,) int64, before the padding
    tokens: Tensor  # (B, Q, U) int64: everything after the audio, the answer included
    lengths: Tensor  # (B, Q) int64, tokens of each question
    targets: Tensor  # (B, Q, U, 2) int64: the sound's and the text's next token, -100 elsewhere
    weights: Tensor  # (B, Q, U, 2) float32

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch on a device."""
        tensors = (self.log_mels, self.mel_frames, self.tokens, self.lengths)
        return TrainingBatch(
            tuple(tokens.to(device) for tokens in self.before),
            *(tensor.to(device) for tensor in (*tensors, self.targets, self.weights)),
        )


class BatchBuilder:
    """Builds training batches from clips, with the processor's own chat template."""

    def __init__(self, processor: Qwen2AudioProcessor) -> None:
        self.processor = processor
        self.between, self.end = self._parts(1)[-1].split("\0")

    def _parts(self, clips: int) -> list[str]:
        """The text before each of so many clips, and last the one after them, \\0 the question."""
        content = [{"type": "audio"}] * clips + [{"type": "text", "text": "\0"}]
        chat: list[Any] = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return list(text.split(self.processor.audio_token))

    def before(self, clips: int) -> tuple[Tensor, ...]:
        """C x (P,) int64: the tokens before each of so many clips."""
        return tuple(torch.tensor(self.encode(text)) for text in self._parts(clips)[:-1])

    def encode(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text)["input_ids"])

    def build(
        self,
        bank: ClipBank,
        groups: Sequence[Sequence[int]],
        questions: int,
        rng: Rng,
        cued: float,
    ) -> TrainingBatch:
        """A batch of groups of as many clips each, recorded and asked afresh from `rng`.

        So large a share of the questions, `cued`, has a cue.
        """
        clips = len(groups[0])
        indices = [i for group in groups for i in group]
        recorded = record_clips(bank, indices, self.processor, rng)
        rows = []
        for start in range(0, len(indices), clips):
            for _ in range(questions):
                at = start + (int(rng.integers(clips)) if clips > 1 else 0)
                facts = bank.facts[indices[at]]
                with_cue = bool(rng.random() < cued)
                if clips == 1:
                    question = _ask(facts, rng, with_cue)
                else:
                    question = ask(facts, rng, cued=with_cue)
                rows.append(self._row(facts, question, float(recorded.clarity[at]), rng))
        longest = max(len(ids) for ids, _, _ in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        targets = torch.full((len(rows), longest, 2), -100)
        weights = torch.zeros(len(rows), longest, 2)
        for r, (ids, target, weight) in enumerate(rows):
            tokens[r, : len(ids)] = torch.tensor(ids)
            targets[r, : len(ids)] = torch.tensor(target)
            weights[r, : len(ids)] = torch.tensor(weight)
        shape = (len(groups), questions, longest)
        return TrainingBatch(
            self.before(clips),
            recorded.log_mels,
            recorded.mel_frames,
            tokens.view(shape),
            torch.tensor([len(ids) for ids, _, _ in rows]).view(shape[:2]),
            targets.view(*shape, 2),
            weights.view(*shape, 2),
        )

    def _row(
        self,
        facts: world.Facts,
        question: ClipQuestion,
        clarity: float,
        rng: Rng,
    ) -> tuple[list[int], list[list[int]], list[list[float]]]:
        """Tokens, targets and weights of one question.

        The first answer token has two targets, what the sound says and what the text says, with
        the probability of each as its weight: the expectation of a drawn label, without its noise.
        The rest of the answer is that of one drawn label.
        """
        answers, shares = _labels(facts, question, clarity, rng)
        label = answers[int(rng.choice(len(answers), p=shares))]
        before = self.encode(self.between + question.prompt + self.end)
        answer_ids = [*self.encode(label), self.processor.tokenizer.eos_token_id]
        ids = before + answer_ids[:-1]
        target = [[-100, -100] for _ in ids]
        weight = [[0.0, 0.0] for _ in ids]
        firsts = [self.encode(answer)[0] for answer in answers]
        if len(answers) == 2 and all(len(self.encode(a)) == 1 for a in answers):
            target[len(before) - 1], weight[len(before) - 1] = firsts, list(shares)
        else:
            target[len(before) - 1], weight[len(before) - 1] = [answer_ids[0], -100], [1.0, 0.0]
        for k, token in enumerate(answer_ids[1:]):
            target[len(before) + k] = [token, -100]
            weight[len(before) + k] = [0.3 if question.choices else 0.8, 0.0]
        return ids, target, weight


def draw_groups(bank: ClipBank, count: int, clips: int, rng: Rng) -> list[list[int]]:
    """Groups of clips, rare sources less often; several clips in one are of different domains."""

    def draw(size: int) -> list[int]:
        return [int(i) for i in rng.choice(len(bank.facts), size, p=bank.shares)]

    if clips == 1:
        return [[i] for i in draw(count)]
    groups: list[list[int]] = []
    while len(groups) < count:
        group = draw(clips)
        domains = {bank.facts[i].domain for i in group}
        if len(domains) == clips and domains <= set(world.DOMAINS):
            groups.append(group)
    return groups


def _ask(facts: world.Facts, rng: Rng, cued: bool) -> ClipQuestion:
    """A question about one clip by itself: one in four is open, half with two events."""
    if rng.random() < (0.5 if "first" in facts.attributes else 0.25):
        return ask_openly(facts, rng, cued=cued and bool(rng.random() < 0.5))
    if facts.masked and rng.random() < 0.3:  # what noise hides is left to the text
        return ask(facts, rng, facts.masked, cued)
    single = "first" not in facts.attributes
    return ask(facts, rng, "kind" if single and rng.random() < 0.05 else None, cued)


def _labels(
    facts: world.Facts, question: ClipQuestion, clarity: float, rng: Rng
) -> tuple[list[str], list[float]]:
    """The possible training labels of a question and how likely each is."""
    if question.attribute == "describe" and not facts.attributes:  # half the captions say more
        other = world.draw_facts(rng, str(rng.choice(list(world.DOMAINS))))
        return [question.answer, describe(other)], [0.5, 0.5]
    inaudible = question.attribute not in facts.audible
    if question.choices and question.attribute != "kind" and inaudible:
        if question.suggested is None:  # nothing to hear: the text decides, or chance
            return list(question.choices), [0.25] * 4
        others = [choice for choice in question.choices if choice != question.suggested]
        return [question.suggested, *others], [0.92] + [0.08 / 3] * 3
    if question.wording == "conflict" and question.cue and question.suggested:
        attribute = question.attribute if question.choices else "open"
        answer = question.answer if question.choices else facts.main
        trusted = world.trust(facts, attribute, answer, question.rival, clarity)
        follow = world.follow_probability(question.cue, trusted)
        return [question.answer, question.suggested], [1 - follow, follow]
    return [question.answer], [1.0]


@dataclass(frozen=True, slots=True)
class PackedMask:
    """Attention masks of a packed batch: bool, true where a key is seen."""

    audio: Tensor  # (B, 1, A, A) the audio and what stands before it, causal
    questions: Tensor  # (B*Q, 1, U, A+U) each question: all of that and itself


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedMask,
    scaling: float,
    **_options: object,
) -> tuple[Tensor, None]:
    """Attention of a packed batch, (B, H, A+Q*U, D) in, (B, A+Q*U, H, D) out.

    The questions of a group are set one above the other over its audio, which costs a third of one
    large masked square.
    """
    rows, heads, _, width = query.shape
    shared = attention_mask.audio.shape[-1]
    longest = attention_mask.questions.shape[2]
    per_group = attention_mask.questions.shape[0] // rows

    def questions(x: Tensor) -> Tensor:  # (B*Q, H, U, D)
        x = x[:, :, shared:].view(rows, heads, per_group, longest, width)
        return x.transpose(1, 2).reshape(rows * per_group, heads, longest, width)

    def over_shared(x: Tensor) -> Tensor:  # (B*Q, H, A+U, D)
        front = x[:, :, :shared].repeat_interleave(per_group, dim=0)
        return torch.cat([front, questions(x)], dim=2)

    attend = partial(_attend, scaling=scaling)
    q, k, v = (x[:, :, :shared] for x in (query, key, value))
    heard = attend(q, k, v, attention_mask.audio).transpose(1, 2)
    own = attend(questions(query), over_shared(key), over_shared(value), attention_mask.questions)
    own = own.view(rows, per_group, heads, longest, width).transpose(2, 3)
    return torch.cat([heard, own.reshape(rows, per_group * longest, heads, width)], dim=1), None


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Attention written out: at these sizes its backward pass is faster than the fused one."""
    scores = (query * scaling) @ key.transpose(2, 3)
    hidden = torch.zeros_like(seen, dtype=scores.dtype).masked_fill(~seen, -1e4)
    return (scores + hidden).softmax(-1, dtype=scores.dtype) @ value


AttentionInterface.register("packed_lesson", packed_attention)


def run(model: Qwen2AudioForConditionalGeneration, batch: TrainingBatch) -> Tensor:
    """Logits at every question token: (B, Q, U, V), one pass over audio and questions together."""
    rows, per_group, longest = batch.tokens.shape
    core = model.model
    shared, lengths = _shared(model, batch)  # (B, A, D), (B,)
    text = core.get_input_embeddings()(batch.tokens.reshape(rows, -1)).to(shared.dtype)
    a = shared.shape[1]
    starts = lengths[:, None, None] + torch.arange(longest)  # (B, 1, U)
    positions = [torch.arange(a).expand(rows, -1)]
    positions.append(starts.expand(rows, per_group, longest).reshape(rows, -1))
    present = torch.arange(a)[None] < lengths[:, None]  # (B, A)
    causal = torch.ones(a, a, dtype=torch.bool).tril()
    own = torch.ones(longest, longest, dtype=torch.bool).tril()
    audio_seen = present.repeat_interleave(per_group, dim=0)[:, None, None].expand(
        -1, 1, longest, -1
    )
    mask = PackedMask(
        audio=causal[None, None] & present[:, None, None],
        questions=torch.cat([audio_seen, own.expand(rows * per_group, 1, -1, -1)], dim=-1),
    )
    core.language_model.config._attn_implementation = "packed_lesson"
    out = core.language_model(
        inputs_embeds=torch.cat([shared, text], dim=1),
        attention_mask={"full_attention": mask},
        position_ids=torch.cat(positions, dim=1),
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(out[:, a:])
    return logits.view(rows, per_group, longest, -1)


def _shared(
    model: Qwen2AudioForConditionalGeneration, batch: TrainingBatch
) -> tuple[Tensor, Tensor]:
    """(B, A, D) the audio of each group with what stands before each clip, and the lengths (B,)."""
    core = model.model
    heard = core.audio_tower(batch.log_mels, attention_mask=encoder_mask(batch.mel_frames))
    audio = core.multi_modal_projector(heard.last_hidden_state)  # (B * C, F, D)
    embed = core.get_input_embeddings()
    before = [embed(tokens).to(audio.dtype) for tokens in batch.before]
    counts, clips = audio_tokens(batch.mel_frames).tolist(), len(before)
    groups = []
    for first in range(0, len(counts), clips):
        heard_clips = (audio[first + c, : counts[first + c]] for c in range(clips))
        parts = [part for pair in zip(before, heard_clips, strict=True) for part in pair]
        groups.append(torch.cat(parts))
    lengths = torch.tensor([len(group) for group in groups])
    return nn.utils.rnn.pad_sequence(groups, batch_first=True), lengths


def batch_loss(logits: Tensor, batch: TrainingBatch) -> Tensor:
    """Weighted cross-entropy over the answer tokens, soft on the first."""
    chosen = batch.targets[..., 0] >= 0
    log_p = logits[chosen].float().log_softmax(-1)  # (N, V)
    targets, weights = batch.targets[chosen], batch.weights[chosen]
    nll = -log_p.gather(1, targets.clamp(min=0)) * weights
    return nll.sum() / weights.sum()


def answered_right(logits: Tensor, batch: TrainingBatch) -> Tensor:
    """(2,) answers of which the label is certain: how many are right, and how many there are."""
    certain = batch.weights[..., 0] == 1
    right = logits[certain].argmax(-1) == batch.targets[certain][:, 0]
    return torch.stack([right.sum(), certain.sum()])


def audio_tokens(frames: Tensor) -> Tensor:
    """Audio tokens of so many mel frames: a strided convolution, then a pooling by two."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def encoder_mask(frames: Tensor) -> Tensor:
    """(B, 1, 1, 150) bool: the encoder positions that a clip fills, after the strided layer."""
    positions = torch.arange(2 * MAX_AUDIO_TOKENS, device=frames.device)
    return (positions[None] < (frames[:, None] - 1) // 2 + 1)[:, None, None]
