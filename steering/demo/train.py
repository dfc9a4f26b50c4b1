"""Trains the embedded model from nothing: `python -m steering.demo.train`, about 50 minutes.

0. Synthesise the training clips once.        build/demo/clips.npy
1. Teach the encoder to name what it hears.   build/demo/encoder.pt
2. Teach the whole model to answer, with a bias towards what the text suggests.
3. Save weights and processor.                steering/demo/weights/

Every step draws its own batch from (seed, step), so a run that was stopped continues where it
was, and the same seed gives the same lessons.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    AttentionInterface,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from steering.demo import sounds, speech, world
from steering.demo.checkpoint import build_model, build_processor

MIX = {"sound": 0.31, "music": 0.35, "speech": 0.28, "noise": 0.04, "silence": 0.02}
MAX_SAMPLES = int(world.MAX_SECONDS * world.SAMPLE_RATE_HZ)
MAX_AUDIO_TOKENS = world.AUDIO_TOKENS
ENCODER_HEADS = {name: len(values) for name, values in world.VALUES.items()}
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much is trained: the published model used the defaults."""

    clips: int = 12_000
    encoder_steps: int = 700
    encoder_batch: int = 64
    steps: int = 2_000
    clips_a_step: int = 16
    questions_a_clip: int = 6
    encoder_rate: float = 1e-3
    rate: float = 2e-3


@dataclass(frozen=True, slots=True)
class ClipBank:
    """Clean training sounds and what is true of them."""

    samples: NDArray[np.int16]  # (N, S) full scale 32767, zeros after the end
    lengths: NDArray[np.int64]  # (N,) samples
    facts: list[world.Facts]


# ---- 0. clips --------------------------------------------------------------------------------


def _clean_clip(task: tuple[int, int, str]) -> tuple[NDArray[np.int16], world.Facts]:
    seed, index, domain = task
    rng = np.random.default_rng([seed, 0, index])
    facts = world.draw_facts(rng, domain)
    clean = world.synthesise(facts, speech.TRAIN_VOICES, rng)
    return (clean * 32767).astype(np.int16), facts


def make_clips(folder: Path, count: int, seed: int) -> ClipBank:
    """The clip bank of a seed, made by all cores and kept in `folder`."""
    samples_file, facts_file = folder / "clips.npy", folder / "clips.json"
    if not facts_file.exists():
        domains = np.random.default_rng([seed, 1]).choice(list(MIX), count, p=list(MIX.values()))
        tasks = [(seed, i, str(domain)) for i, domain in enumerate(domains)]
        bank = np.zeros((count, MAX_SAMPLES), np.int16)
        records = []
        with ProcessPoolExecutor() as pool:
            made = pool.map(_clean_clip, tasks, chunksize=64)
            for i, (samples, facts) in enumerate(tqdm(made, "clips", count)):
                bank[i, : len(samples)] = samples
                records.append([len(samples), facts.domain, dict(facts.attributes)])
        np.save(samples_file, bank)
        facts_file.write_text(json.dumps(records))
    records = json.loads(facts_file.read_text())
    facts = [world.Facts(domain, attributes) for _, domain, attributes in records]
    lengths = np.array([length for length, *_ in records])
    return ClipBank(np.load(samples_file, mmap_mode="r"), lengths, facts)


def hear(
    bank: ClipBank, indices: Sequence[int], processor: Qwen2AudioProcessor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Clips recorded afresh: log-mels (B, 64, 300), mel frames (B,), trust (B,) in [0, 1]."""
    trusts = rng.random(len(indices))
    recorded = []
    for i, trust in zip(indices, trusts, strict=True):
        clean = bank.samples[i, : bank.lengths[i]].astype(np.float32) / np.float32(32767)
        background = sounds.noise(rng)
        recorded.append(world.record(clean, background, world.draw_snr_db(rng), float(trust)))
    features = processor.feature_extractor(
        recorded,
        sampling_rate=world.SAMPLE_RATE_HZ,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    return features["input_features"], features["attention_mask"].sum(-1), trusts


def _audio_tokens(frames: Tensor) -> Tensor:
    """Audio tokens of so many mel frames: a strided convolution, then a pooling by two."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


# ---- 1. encoder ------------------------------------------------------------------------------


class EncoderTask(nn.Module):
    """Names every attribute of a clip, and its level, from the mean of its audio tokens."""

    def __init__(self, model: Qwen2AudioForConditionalGeneration) -> None:
        super().__init__()
        width = model.model.audio_tower.config.d_model
        self.tower = model.model.audio_tower
        self.mixing = nn.Sequential(nn.Linear(2 * width, 256), nn.GELU())
        self.time = nn.Parameter(torch.randn(MAX_AUDIO_TOKENS, width) * 0.02)
        self.heads = nn.ModuleDict({k: nn.Linear(256, n) for k, n in ENCODER_HEADS.items()})
        self.level = nn.Linear(256, 1)

    def forward(self, mels: Tensor, frames: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        states = self.tower(mels, attention_mask=_encoder_mask(frames)).last_hidden_state
        counts = _audio_tokens(frames)
        present = (torch.arange(states.shape[1])[None] < counts[:, None])[..., None]
        mean = (states * present).sum(1) / counts[:, None]
        moment = (states * self.time * present).sum(1) / counts[:, None].sqrt()  # where in time
        mixed = self.mixing(torch.cat([mean, moment], -1))
        return {k: head(mixed) for k, head in self.heads.items()}, self.level(mixed)[:, 0]


def _encoder_mask(frames: Tensor) -> Tensor:
    """(B, 1, 1, 150) bool: the encoder positions that a clip fills, after the strided layer."""
    positions = torch.arange(2 * MAX_AUDIO_TOKENS)
    return (positions[None] < (frames[:, None] - 1) // 2 + 1)[:, None, None]


def train_encoder(
    model: Qwen2AudioForConditionalGeneration,
    processor: Qwen2AudioProcessor,
    bank: ClipBank,
    schedule: Schedule,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Stage 1, in place on `model`: yields the losses of every 50th step."""
    task = EncoderTask(model)
    optimiser = torch.optim.AdamW(task.parameters(), lr=schedule.encoder_rate, weight_decay=0.01)
    for step in tqdm(range(schedule.encoder_steps), "encoder"):
        rng = np.random.default_rng([seed, 2, step])
        indices = rng.integers(len(bank.facts), size=schedule.encoder_batch)
        mels, frames, trusts = hear(bank, indices.tolist(), processor, rng)
        for group in optimiser.param_groups:
            group["lr"] = schedule.encoder_rate * _pace(step, schedule.encoder_steps, warm=50)
        with torch.autocast("cpu", torch.bfloat16):
            named, level = task(mels, frames)
        facts = [bank.facts[i] for i in indices]
        losses = {"level": F.mse_loss(level.float(), torch.tensor(trusts, dtype=torch.float32))}
        right = {}
        for name, logits in named.items():
            labels = torch.tensor([_label(fact, name) for fact in facts])
            losses[name] = F.cross_entropy(logits.float(), labels, ignore_index=-100)
            known = labels >= 0
            right[name] = (logits.argmax(-1) == labels)[known].float().mean().item()
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            yield {"step": step + 1, "level_mse": losses["level"].item(), **right}


def _label(facts: world.Facts, attribute: str) -> int:
    kind = "noise" if facts.domain == "silence" else facts.domain
    value = kind if attribute == "kind" else facts.attributes.get(attribute)
    return world.VALUES[attribute].index(value) if value else -100


# ---- 2. the whole model ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lesson:
    """Questions that share the audio of B clips; Q questions a clip, padded to U tokens."""

    prefix: Tensor  # (P,) int64, the tokens before the audio, the same for all
    mels: Tensor  # (B, 64, 300)
    frames: Tensor  # (B,) mel frames before the padding
    tokens: Tensor  # (B, Q, U) int64: everything after the audio, the answer included
    lengths: Tensor  # (B, Q)
    targets: Tensor  # (B, Q, U, 2) int64: the sound's and the text's next token, -100 elsewhere
    weights: Tensor  # (B, Q, U, 2) float32


class Teacher:
    """Turns clips into lessons with the processor's own chat template."""

    def __init__(self, processor: Qwen2AudioProcessor) -> None:
        self.processor = processor
        content = [{"type": "audio"}, {"type": "text", "text": "\0"}]
        chat: list[Any] = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        before, after = text.split(processor.audio_token)
        self.between, self.end = after.split("\0")
        self.prefix = torch.tensor(self.encode(before))

    def encode(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text)["input_ids"])

    def lesson(
        self, bank: ClipBank, indices: Sequence[int], questions: int, rng: np.random.Generator
    ) -> Lesson:
        """A lesson on the clips `indices`, recorded and asked afresh from `rng`."""
        mels, frames, trusts = hear(bank, indices, self.processor, rng)
        rows = []
        for i, trust in zip(indices, trusts, strict=True):
            facts = bank.facts[i]
            for _ in range(questions):
                question = (
                    world.ask_openly(facts, rng)
                    if rng.random() < 0.12
                    else (world.ask(facts, rng, "kind" if rng.random() < 0.05 else None))
                )
                rows.append(self._row(facts, question, float(trust), rng))
        longest = max(len(ids) for ids, _, _ in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        targets = torch.full((len(rows), longest, 2), -100)
        weights = torch.zeros(len(rows), longest, 2)
        for r, (ids, target, weight) in enumerate(rows):
            tokens[r, : len(ids)] = torch.tensor(ids)
            targets[r, : len(ids)] = torch.tensor(target)
            weights[r, : len(ids)] = torch.tensor(weight)
        shape = (len(indices), questions, longest)
        return Lesson(
            self.prefix,
            mels,
            frames,
            tokens.view(shape),
            torch.tensor([len(ids) for ids, _, _ in rows]).view(shape[:2]),
            targets.view(*shape, 2),
            weights.view(*shape, 2),
        )

    def _row(
        self, facts: world.Facts, question: world.Question, trust: float, rng: np.random.Generator
    ) -> tuple[list[int], list[list[int]], list[list[float]]]:
        """Tokens, targets and weights of one question.

        The first answer token has two targets, what the sound says and what the text says, with
        the probability of each as its weight: the expectation of a drawn label, without its noise.
        The rest of the answer is that of one drawn label.
        """
        answers, shares = _labels(facts, question, trust)
        drawn = answers[int(rng.choice(len(answers), p=shares))]
        before = self.encode(self.between + question.prompt + self.end)
        said = [*self.encode(drawn), self.processor.tokenizer.eos_token_id]
        ids = before + said[:-1]
        target = [[-100, -100] for _ in ids]
        weight = [[0.0, 0.0] for _ in ids]
        firsts = [self.encode(answer)[0] for answer in answers]
        if len(answers) == 2 and all(len(self.encode(a)) == 1 for a in answers):
            target[len(before) - 1], weight[len(before) - 1] = firsts, list(shares)
        else:
            target[len(before) - 1], weight[len(before) - 1] = [said[0], -100], [1.0, 0.0]
        for k, token in enumerate(said[1:]):
            target[len(before) + k] = [token, -100]
            weight[len(before) + k] = [0.3 if question.choices else 0.6, 0.0]
        return ids, target, weight


def _labels(
    facts: world.Facts, question: world.Question, trust: float
) -> tuple[list[str], list[float]]:
    """The possible training labels of a question and how likely each is."""
    deaf = question.choices and question.attribute != "kind" and not facts.attributes
    if deaf:  # nothing to hear: the text decides, or chance
        if question.suggested is None:
            return list(question.choices), [0.25] * 4
        others = [choice for choice in question.choices if choice != question.suggested]
        return [question.suggested, *others], [0.92] + [0.08 / 3] * 3
    if question.wording == "conflict" and question.cue and question.suggested:
        follow = world.follow_probability(question.cue, trust)
        return [question.answer, question.suggested], [1 - follow, follow]
    return [question.answer], [1.0]


@dataclass(frozen=True, slots=True)
class LessonMask:
    """Who sees whom in a packed lesson: bool, true where a key is seen."""

    heard: Tensor  # (B, 1, P+F, P+F) the prefix and the audio, causal
    asked: Tensor  # (B*Q, 1, U, P+F+U) each question: the prefix, the audio and itself


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LessonMask,
    scaling: float,
    **_options: object,
) -> tuple[Tensor, None]:
    """Attention of a packed lesson, (B, H, P+F+Q*U, D) in, (B, P+F+Q*U, H, D) out.

    The questions of a clip are set one above the other over its prefix and audio, which costs a
    third of one large masked square.
    """
    rows, heads, _, width = query.shape
    shared = attention_mask.heard.shape[-1]
    longest = attention_mask.asked.shape[2]
    asked = attention_mask.asked.shape[0] // rows

    def questions(x: Tensor) -> Tensor:  # (B*Q, H, U, D)
        x = x[:, :, shared:].view(rows, heads, asked, longest, width)
        return x.transpose(1, 2).reshape(rows * asked, heads, longest, width)

    def over_shared(x: Tensor) -> Tensor:  # (B*Q, H, P+F+U, D)
        front = x[:, :, :shared].repeat_interleave(asked, dim=0)
        return torch.cat([front, questions(x)], dim=2)

    attend = partial(_attend, scaling=scaling)
    q, k, v = (x[:, :, :shared] for x in (query, key, value))
    heard = attend(q, k, v, attention_mask.heard).transpose(1, 2)
    own = attend(questions(query), over_shared(key), over_shared(value), attention_mask.asked)
    own = own.view(rows, asked, heads, longest, width).transpose(2, 3)
    return torch.cat([heard, own.reshape(rows, asked * longest, heads, width)], dim=1), None


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Attention written out: at these sizes its backward pass is faster than the fused one."""
    scores = (query * scaling) @ key.transpose(2, 3)
    hidden = torch.zeros_like(seen, dtype=scores.dtype).masked_fill(~seen, -1e4)
    return (scores + hidden).softmax(-1, dtype=scores.dtype) @ value


AttentionInterface.register("packed_lesson", packed_attention)


def run(model: Qwen2AudioForConditionalGeneration, lesson: Lesson) -> Tensor:
    """Logits at every question token: (B, Q, U, V), one pass over audio and questions together.

    Each question sees the prefix, its clip's audio and itself, at the positions it would have
    alone.
    """
    rows, asked, longest = lesson.tokens.shape
    core = model.model
    heard = core.audio_tower(lesson.mels, attention_mask=_encoder_mask(lesson.frames))
    audio = core.multi_modal_projector(heard.last_hidden_state)[:, :MAX_AUDIO_TOKENS]
    counts = _audio_tokens(lesson.frames)
    embed = core.get_input_embeddings()
    prefix = embed(lesson.prefix)[None].expand(rows, -1, -1)
    text = embed(lesson.tokens.reshape(rows, -1))
    states = torch.cat([prefix.to(audio.dtype), audio, text.to(audio.dtype)], dim=1)
    p, f = prefix.shape[1], audio.shape[1]
    starts = (p + counts)[:, None, None] + torch.arange(longest)  # (B, 1, U)
    positions = [torch.arange(p + f).expand(rows, -1)]
    positions.append(starts.expand(rows, asked, longest).reshape(rows, -1))
    present = torch.arange(p + f)[None] < (p + counts)[:, None]  # (B, P+F)
    causal = torch.ones(p + f, p + f, dtype=torch.bool).tril()
    own = torch.ones(longest, longest, dtype=torch.bool).tril()
    front = present.repeat_interleave(asked, dim=0)[:, None, None].expand(-1, 1, longest, -1)
    mask = LessonMask(
        heard=causal[None, None] & present[:, None, None],
        asked=torch.cat([front, own.expand(rows * asked, 1, -1, -1)], dim=-1),
    )
    core.language_model.config._attn_implementation = "packed_lesson"
    out = core.language_model(
        inputs_embeds=states,
        attention_mask={"full_attention": mask},
        position_ids=torch.cat(positions, dim=1),
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(out[:, p + f :])
    return logits.view(rows, asked, longest, -1)


def lesson_loss(logits: Tensor, lesson: Lesson) -> Tensor:
    """Weighted cross-entropy over the answer tokens, soft on the first."""
    chosen = lesson.targets[..., 0] >= 0
    log_p = logits[chosen].float().log_softmax(-1)  # (N, V)
    targets, weights = lesson.targets[chosen], lesson.weights[chosen]
    nll = -log_p.gather(1, targets.clamp(min=0)) * weights
    return nll.sum() / weights.sum()


def train_model(
    model: Qwen2AudioForConditionalGeneration,
    processor: Qwen2AudioProcessor,
    bank: ClipBank,
    schedule: Schedule,
    seed: int,
    folder: Path,
) -> Iterator[dict[str, float]]:
    """Stage 2, in place on `model`, resumed from `folder`: yields figures of every 50th step."""
    teacher = Teacher(processor)
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and ".layers." in name else others).append(parameter)
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=schedule.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=schedule.rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    first = _resume(model, optimisers, folder / "joint.pt")
    for step in tqdm(range(first, schedule.steps), "questions", schedule.steps, initial=first):
        rng = np.random.default_rng([seed, 3, step])
        indices = rng.integers(len(bank.facts), size=schedule.clips_a_step).tolist()
        lesson = teacher.lesson(bank, indices, schedule.questions_a_clip, rng)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate * _pace(step, schedule.steps, warm=40)
        with torch.autocast("cpu", torch.bfloat16):
            logits = run(model, lesson)
        loss = lesson_loss(logits, lesson)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 50 == 49:
            yield {"step": step + 1, "loss": loss.item()}
        if step % 200 == 199 or step + 1 == schedule.steps:
            _keep(model, optimisers, step + 1, folder / "joint.pt")


def _pace(step: int, steps: int, warm: int) -> float:
    """Learning rate share: warm-up, flat for 30 % of the run, then a cosine to 2 %."""
    if step < warm:
        return (step + 1) / warm
    done = max(0.0, (step / steps - 0.3) / 0.7)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _keep(
    model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], step: int, file: Path
) -> None:
    state: dict[str, Any] = {"step": step, "model": model.state_dict()}
    state["optimisers"] = [optimiser.state_dict() for optimiser in optimisers]
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def _resume(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], file: Path) -> int:
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(kept)
    return int(state["step"])


# ---- 3. the whole run ------------------------------------------------------------------------


def train(folder: Path, out: Path, schedule: Schedule, seed: int) -> None:
    """Run or resume all stages in `folder` and save weights and processor to `out`."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    torch.manual_seed(seed)
    processor = build_processor()
    model = build_model(processor.tokenizer).train()
    bank = make_clips(folder, schedule.clips, seed)

    def log(stage: str, figures: dict[str, float]) -> None:
        line = {"stage": stage, "minutes": round((time.monotonic() - started) / 60, 2), **figures}
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    encoder_file = folder / "encoder.pt"
    if not encoder_file.exists():
        for figures in train_encoder(model, processor, bank, schedule, seed):
            log("encoder", figures)
        torch.save(model.model.audio_tower.state_dict(), encoder_file)
    model.model.audio_tower.load_state_dict(torch.load(encoder_file, weights_only=True))
    for figures in train_model(model, processor, bank, schedule, seed, folder):
        log("questions", figures)
    model.eval().half().save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """Command line of the training run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    defaults = Schedule()
    parser.add_argument("--clips", type=int, default=defaults.clips)
    parser.add_argument("--encoder-steps", type=int, default=defaults.encoder_steps)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    given = parser.parse_args()
    schedule = Schedule(clips=given.clips, encoder_steps=given.encoder_steps, steps=given.steps)
    train(given.folder, given.out, schedule, given.seed)


if __name__ == "__main__":
    main()
