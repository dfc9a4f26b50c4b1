from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from steering.audio.clip import Clip
from steering.demo import clip_bank, encoder, lessons, schedule, train
from steering.demo.clip_bank import ClipBank, event_tokens, make_clips, record_clips, write_clips
from steering.demo.lessons import BatchBuilder, TrainingBatch, batch_loss, draw_groups, run
from steering.demo.schedule import Schedule
from steering.model import checkpoint, loading
from steering.model.audio_model import AudioModel
from steering.prompt import build_question
from steering.synthetic import questions, speech, world
from steering.synthetic.questions import ClipQuestion
from steering.synthetic.world import Facts, Scene

pytestmark = pytest.mark.slow

CLIPS = 6
CPU = torch.device("cpu")
TINY = Schedule(
    clips=CLIPS,
    encoder_steps=3,
    encoder_batch=4,
    steps=4,
    clips_a_step=2,
    questions_a_clip=2,
)


FACTS = (
    Facts("sound", {"sound": "dog", "count": "two"}),
    Facts("music", {"instrument": "oboe", "contour": "arch"}),
    Facts("speech", {"word": "river"}, speaker="woman"),
    Facts("noise", {}),
    Facts("silence", {}),
    Facts("sound", {"first": "rain", "last": "seven"}, masked="last"),
)


@pytest.fixture(scope="module")
def clips() -> list[tuple[Scene, Facts]]:
    """A clip of each domain, and one of two events."""
    random = np.random.default_rng(0)
    return [(world.synthesise(facts, speech.TRAIN_VOICES, random), facts) for facts in FACTS]


@pytest.fixture(scope="module")
def bank(clips: list[tuple[Scene, Facts]], tmp_path_factory: pytest.TempPathFactory) -> ClipBank:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, clips, len(clips))
    return make_clips(folder, len(clips), seed=0)


@pytest.fixture(scope="module")
def builder(untrained: AudioModel) -> BatchBuilder:
    return BatchBuilder(untrained.processor)


@pytest.fixture(scope="module")
def batch(builder: BatchBuilder, bank: ClipBank) -> TrainingBatch:
    return builder.build(bank, [[i] for i in range(CLIPS)], 5, np.random.default_rng(1), 0.5)


def rows(batch: TrainingBatch) -> Iterator[tuple[int, int, int]]:
    """Clip, question and tokens of each row."""
    for clip, lengths in enumerate(batch.lengths.tolist()):
        for question, length in enumerate(lengths):
            yield clip, question, length


# ---- lessons


@pytest.mark.parametrize("groups", [[[i] for i in range(CLIPS)], [[0, 1, 2], [2, 5, 1]]])
@torch.inference_mode()
def test_a_packed_lesson_is_each_question_alone(
    untrained: AudioModel, builder: BatchBuilder, bank: ClipBank, groups: list[list[int]]
) -> None:
    batch = builder.build(bank, groups, 5, np.random.default_rng(1), 0.5)
    network, clips = deepcopy(untrained.network), len(groups[0])
    packed = run(network, batch)
    network.model.language_model.config._attn_implementation = "eager"
    audio_token = network.config.audio_token_id
    for group, question, length in rows(batch):
        frames = batch.mel_frames[group * clips : (group + 1) * clips]
        heard = [untrained.audio_tokens(int(count)) for count in frames]
        shared = [
            part
            for before, count in zip(batch.before, heard, strict=True)
            for part in (before, torch.full((count,), audio_token))
        ]
        tokens = torch.cat([*shared, batch.tokens[group, question, :length]])[None]
        alone = network(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            input_features=batch.log_mels[group * clips : (group + 1) * clips],
            feature_attention_mask=(torch.arange(300)[None] < frames[:, None]).long(),
        ).logits[0, -length:]
        torch.testing.assert_close(packed[group, question, :length], alone, atol=1e-5, rtol=1e-5)


def test_a_group_has_no_domain_twice(bank: ClipBank) -> None:
    groups = draw_groups(bank, 20, 3, np.random.default_rng(0))
    for group in groups:
        assert {bank.facts[i].domain for i in group} == {"sound", "music", "speech"}
    assert len({tuple(group) for group in groups}) > 3, "in any order"


def test_lessons_and_prompts_are_the_same_tokens(
    untrained: AudioModel, builder: BatchBuilder
) -> None:
    random = np.random.default_rng(0)
    facts = Facts("sound", {"sound": "dog"})
    question = questions.ask(facts, random, "sound", cued=False)
    samples = np.ones(32_000, np.float32)
    prompt = build_question(untrained, [Clip(samples, 16_000, 2.0, 16_000, 1)], question.prompt)
    ids, _, _ = builder._row(facts, question, 0.5, random)
    tokens = [
        *builder.before(1)[0].tolist(),
        *[int(prompt.tokens[prompt.audio_mask][0])] * 50,
        *ids,
    ]
    assert tokens[:-1] == prompt.tokens.tolist()
    assert tokens[-1] == builder.encode("dog")[0]


def test_the_same_seed_gives_the_same_lesson(builder: BatchBuilder, bank: ClipBank) -> None:
    first, second = (
        builder.build(bank, [[0], [2]], 3, np.random.default_rng(4), 0.5) for _ in range(2)
    )
    for name in set(TrainingBatch.__dataclass_fields__) - {"before"}:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_first_targets_weigh_one_and_the_rest_leads_to_the_end(
    untrained: AudioModel, batch: TrainingBatch
) -> None:
    for clip, question, length in rows(batch):
        targets, weights = batch.targets[clip, question], batch.weights[clip, question]
        taught = (targets[:, 0] >= 0).nonzero()[:, 0]
        first, last = int(taught[0]), int(taught[-1])
        assert taught.tolist() == list(range(first, length)), "from the first answer token on"
        assert float(weights[first].sum()) == pytest.approx(1.0)
        assert int(targets[last, 0]) == untrained.processor.tokenizer.eos_token_id
        inside = batch.tokens[clip, question, first + 1 : length]
        assert torch.equal(targets[first + 1 : length, 0].roll(1)[1:], inside[1:])
        assert not weights[:first].any() and not weights[length:].any()
        assert not weights[targets < 0].any()


def cued(wording: str, cue: str | None, suggested: str | None) -> ClipQuestion:
    return ClipQuestion(
        "Which?",
        "sound",
        ("dog", "cow", "rain", "bell"),
        "dog",
        suggested,
        cue,
        wording,
        rival=suggested or "",
    )


@pytest.mark.parametrize(("cue", "clarity"), [("weak", 0.0), ("medium", 0.4), ("strong", 1.0)])
def test_a_conflict_is_taught_as_often_as_it_is_followed(
    builder: BatchBuilder, cue: str, clarity: float
) -> None:
    facts = Facts("sound", {"sound": "dog"})
    ids, targets, weights = builder._row(
        facts, cued("conflict", cue, "cow"), clarity, np.random.default_rng(0)
    )
    trusted = world.trust(facts, "sound", "dog", "cow", clarity)
    follow = world.follow_probability(cue, trusted)
    end = builder.processor.tokenizer.eos_token_id
    dog, cow = (builder.encode(word)[0] for word in ("dog", "cow"))
    first = targets.index([dog, cow])
    assert weights[first] == pytest.approx([1 - follow, follow])
    assert sum(weights[first]) == pytest.approx(1)
    assert targets[first + 1 :] == [[end, -100]]
    assert weights[first + 1 :] == [[0.3, 0.0]]
    assert ids[first + 1] in (dog, cow)


def test_a_drawn_label_is_the_text_as_often_as_it_is_followed(builder: BatchBuilder) -> None:
    facts, random = Facts("sound", {"sound": "dog"}), np.random.default_rng(0)
    cow = builder.encode("cow")[0]
    drawn = [
        builder._row(facts, cued("conflict", "strong", "cow"), 0.0, random)[0][-1] == cow
        for _ in range(600)
    ]
    trusted = world.trust(facts, "sound", "dog", "cow", 0.0)
    assert np.mean(drawn) == pytest.approx(world.follow_probability("strong", trusted), abs=0.07)


@pytest.mark.parametrize(
    "question", [cued("neutral", None, None), cued("consistent", "strong", "dog")]
)
def test_without_conflict_the_sound_is_taught(
    builder: BatchBuilder, question: ClipQuestion
) -> None:
    facts = Facts("sound", {"sound": "dog"})
    assert lessons._labels(facts, question, 0.0, np.random.default_rng(0)) == (["dog"], [1.0])
    _, targets, weights = builder._row(facts, question, 0.0, np.random.default_rng(0))
    first = targets.index([builder.encode("dog")[0], -100])
    assert weights[first] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("facts", "attribute"),
    [
        (Facts("noise", {}), "sound"),
        (Facts("sound", {"first": "dog", "last": "cow"}, masked="first"), "first"),
    ],
)
def test_with_nothing_to_hear_the_text_decides_or_chance(facts: Facts, attribute: str) -> None:
    neutral, conflict = (
        replace(question, attribute=attribute)
        for question in (cued("neutral", None, None), cued("conflict", "weak", "cow"))
    )
    random = np.random.default_rng(0)
    answers, shares = lessons._labels(facts, neutral, 1.0, random)
    assert (sorted(answers), shares) == (["bell", "cow", "dog", "rain"], [0.25] * 4)
    answers, shares = lessons._labels(facts, conflict, 1.0, random)
    assert answers[0] == "cow"
    assert sorted(answers) == ["bell", "cow", "dog", "rain"]
    assert shares[0] == pytest.approx(0.92) and sum(shares) == pytest.approx(1)


def test_the_loss_is_a_weighted_cross_entropy(batch: TrainingBatch) -> None:
    random = torch.Generator().manual_seed(0)
    vocabulary = 1 + int(max(batch.tokens.max(), batch.targets.max()))
    logits = torch.randn(*batch.tokens.shape, vocabulary, generator=random)
    total, weight = 0.0, 0.0
    log_p = logits.log_softmax(-1)
    for place in (batch.targets >= 0).nonzero().tolist():
        clip, question, token, k = place
        share = float(batch.weights[clip, question, token, k])
        target = int(batch.targets[clip, question, token, k])
        total -= share * float(log_p[clip, question, token, target])
        weight += share
    assert float(batch_loss(logits, batch)) == pytest.approx(total / weight, rel=1e-5)


def test_clips_are_recorded_afresh(bank: ClipBank, untrained: AudioModel) -> None:
    recorded = record_clips(bank, [0, 0, 0, 4], untrained.processor, np.random.default_rng(2))
    mels, clarity = recorded.log_mels, recorded.clarity
    assert mels.shape == (4, 64, 300)
    assert recorded.mel_frames.tolist() == [-(-int(bank.lengths[i]) // 160) for i in (0, 0, 0, 4)]
    assert (clarity >= 0).all() and (clarity <= 1).all()
    assert len(set(clarity.tolist())) == 4
    assert not torch.equal(mels[0], mels[1])
    easy = record_clips(bank, [0, 0, 0, 4], untrained.processor, np.random.default_rng(2), ease=1)
    assert (easy.clarity >= clarity).all() and easy.clarity.sum() > clarity.sum()
    assert torch.equal(mels[3], mels[3].flip(1)), "silence"


def test_the_bank_gives_the_clips_back(bank: ClipBank, clips: list[tuple[Scene, Facts]]) -> None:
    assert bank.facts == list(FACTS)
    for index, (scene, _) in enumerate(clips):
        kept = bank.scene(index)
        assert kept.events == scene.events
        np.testing.assert_allclose(kept.samples, scene.samples, atol=1 / clip_bank.FULL_SCALE)
    assert bank.shares.sum() == pytest.approx(1)
    single = [clip_bank._share(Facts("sound", {"sound": name})) for name in ("dog", "pig")]
    assert 1 < min(single) < max(single) < 3, "rare sources less"
    pair = clip_bank._share(Facts("sound", {"first": "dog", "last": "pig"}))
    assert pair == pytest.approx(sum(single) / 4), "and two events less"


def test_the_tokens_of_an_event_are_those_it_sounds_in(bank: ClipBank) -> None:
    tokens = event_tokens(bank, range(CLIPS))
    assert tokens.shape == (CLIPS, clip_bank.MAX_EVENTS, lessons.MAX_AUDIO_TOKENS)
    for index in range(CLIPS):
        for event, (start, stop) in enumerate(bank.events[index]):
            sounding = tokens[index, event].nonzero()[:, 0] * 640  # samples a token
            if start < 0:
                assert not len(sounding)
            else:
                assert start - 640 < sounding[0] <= start
                assert stop - 640 <= sounding[-1] < stop


def test_the_encoder_learns_to_name_what_can_be_heard(bank: ClipBank) -> None:
    labels = encoder._event_labels(bank.facts)
    value = world.VALUES["first"].index
    assert labels["first"].tolist() == [
        [value("dog"), -100],
        [value("oboe"), -100],
        [value("river"), -100],
        [-100, -100],
        [-100, -100],
        [value("rain"), -100],
    ], "not the masked one"
    tokens = event_tokens(bank, range(CLIPS))
    sources = encoder._token_labels(tokens, labels["first"])
    assert set(sources[5].tolist()) == {-100, value("rain")}
    assert torch.equal(sources[5] >= 0, tokens[5, 0])
    assert torch.equal(sources[0] >= 0, tokens[0].any(0))
    assert labels["count"][0, 0] == world.COUNTS.index("two")
    assert labels["contour"][1, 0] == world.VALUES["contour"].index("arch")
    assert labels["speaker"][:, 0].tolist() == [-100, -100, 1, -100, -100, -100]


def test_the_pace_warms_up_stays_and_ends_low() -> None:
    pace = [schedule.pace(step, 1000, warm=40) for step in range(1000)]
    assert pace[0] == pytest.approx(1 / 40)
    assert pace[39:301] == pytest.approx([1.0] * 262)
    assert all(a >= b for a, b in pairwise(pace[300:]))
    assert pace[-1] == pytest.approx(0.02, abs=0.001)


# ---- runs


class OneProcess:
    """Stands in for a pool of processes."""

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def map(self, clips: Callable[..., Any], tasks: Iterable[Any], chunksize: int) -> Iterator[Any]:
        return map(clips, tasks)


def test_clips_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_bank, "ProcessPoolExecutor", OneProcess)
    monkeypatch.setattr(clip_bank, "TRAINING_VOICES", speech.TRAIN_VOICES)
    first = make_clips(tmp_path, 6, seed=0)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(clip_bank, "ProcessPoolExecutor", None)
    again = make_clips(tmp_path, 6, seed=0)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    assert again.facts == first.facts
    np.testing.assert_array_equal(again.lengths, first.lengths)
    for row, length, facts in zip(first.samples, first.lengths, first.facts, strict=True):
        assert not row[length:].any()
        assert np.abs(row).max() == (0 if facts.domain == "silence" else 32767)


def test_training_says_at_once_which_program_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_bank, "ProcessPoolExecutor", None)  # not one clip is made
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install flite"):
        train.train(tmp_path / "run", tmp_path / "out", TINY, 0, CPU, 0)
    assert not list((tmp_path / "run").iterdir())


def test_a_run_that_was_stopped_goes_on_where_it_was(
    clips: list[tuple[Scene, Facts]], tmp_path: Path
) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        write_clips(tmp_path / name, clips, len(clips))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.train(whole, whole / "out", TINY, 0, CPU, 0)
    half = Schedule(**{n: getattr(TINY, n) for n in Schedule.__dataclass_fields__} | {"steps": 2})
    train.train(stopped, stopped / "out", half, 0, CPU, 0)
    middle = load_file(stopped / "out" / "model.safetensors")
    train.train(stopped, stopped / "out", TINY, 0, CPU, 0)

    whole_state, stopped_state = (
        torch.load(f / "joint.pt", weights_only=True) for f in (whole, stopped)
    )
    assert whole_state["step"] == stopped_state["step"] == TINY.steps
    for name, weight in whole_state["model"].items():
        assert torch.equal(weight, stopped_state["model"][name]), name
    trained = load_file(stopped / "out" / "model.safetensors")
    assert any(not torch.equal(trained[name], middle[name]) for name in trained), "it learned"

    served = loading.load(str(stopped / "out"), device="cpu")
    assert served.fingerprint == checkpoint.fingerprint(whole / "out")
    for name, weight in whole_state["model"].items():
        saved = served.network.state_dict()[name]
        torch.testing.assert_close(saved, weight.half().float(), atol=0, rtol=0)
