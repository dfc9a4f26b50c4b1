"""A plain transformers model that listens and is steered in its own `generate`.

The oracle is our own path (`prefill`, `contrast`, `generate`), one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor, LogitsProcessor, Qwen2AudioForConditionalGeneration

from steering import listening
from steering.audio.clip import Clip
from steering.decision import effect_bits
from steering.errors import AllEarsError, ModelError, ProfileError, RequestError
from steering.generation import (
    UNSTEERED,
    Sampling,
    SteeringPlan,
    generate,
    generate_scored,
    steered_logits,
)
from steering.heads import Verdicts, listening_score, timeline
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill, run_layers
from steering.profile import Profile, save
from steering.prompt import build_question
from steering.readout import Intervention, pool
from steering.silence import contrast_with_silence, new_silence_cache
from steering.silence_cache import Ladder
from steering.strength import Gate
from steering.transformers_hooks.hooks import ListeningHooks
from tests.steering.examples import clip

TEXTS = ("Which sound is this?", "It may be cow. Which sound is this? Say it.", "What is it?")
SECONDS = (0.6, 1.7, 1.1)
HOWS = {
    "before_norm": Intervention(layers=(1, 2)),
    "after_norm": Intervention(layers=(1, 2), place="after_norm", scale="raw", pool="sum"),
    "first": Intervention(layers=(0, 2), tokens="first"),
    "keep_norm": Intervention(layers=(1,), keep_norm=True),
}
TOKENS = 8


@pytest.fixture
def plain(model: AudioModel) -> Any:
    """The weights of each model as a researcher has them: transformers alone, nothing of ours."""
    return plain_network(model)


@pytest.fixture(params=["sdpa", "eager"])
def any_plain(model: AudioModel, request: pytest.FixtureRequest) -> Any:
    """The same, with either kind of attention."""
    return plain_network(model, request.param)


def plain_network(model: AudioModel, attention: str = "sdpa") -> Any:
    network = Qwen2AudioForConditionalGeneration._from_config(
        type(model.network.config).from_dict(model.network.config.to_dict()),
        attn_implementation=attention,
    )
    network.load_state_dict(model.network.state_dict())
    network.generation_config = model.network.generation_config
    network.config._name_or_path = str(model.folder)
    return network.eval()


def profile_for(model: AudioModel, intervention: Intervention, *, top: float = 2.0) -> Profile:
    """A profile whose gate gives every prompt another strength."""
    return Profile(
        name="mine",
        model=model.name,
        revision=None,
        fingerprint=model.fingerprint,
        family=model.family.name,
        heads=((2, 1), (0, 7), (1, 4)),
        correlations=(0.5, 0.4, 0.3),
        intervention=intervention,
        gate=Gate(top, 0.35, 0.05),
        fixed_strength=top / 2,
        verdicts=Verdicts(0.3, 0.5),
        calibration={},
        held_out={},
        versions={},
        direction=torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(5)),
        quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        head_mean=np.zeros(3, np.float32),
        head_std=np.ones(3, np.float32),
    )


def clips() -> list[Clip]:
    return [clip(seconds, seed=i) for i, seconds in enumerate(SECONDS)]


def inputs(model: AudioModel, *rows: int) -> dict[str, Tensor]:
    """What the processor makes of some of the questions, as one batch padded on the left."""
    processor = model.processor
    processor.tokenizer.padding_side = "left"
    sounds = clips()
    texts = []
    for row in rows:
        parts = [{"type": "audio", "audio": ""}, {"type": "text", "text": TEXTS[row]}]
        chat = [{"role": "user", "content": parts}]
        texts.append(
            processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        )
    made = processor(
        text=texts,
        audio=[sounds[row].samples for row in rows],
        sampling_rate=16_000,
        return_tensors="pt",
        padding=True,
    )
    return dict(made)


@dataclass(frozen=True, slots=True, eq=False)
class Own:
    """What our own path says of one question."""

    heard: PrefillResult
    score: float
    timeline: Any
    plan: SteeringPlan
    effect_bits: float


def own(model: AudioModel, profile: Profile, row: int, strength: float | None = None) -> Own:
    prompt = build_question(model, [clips()[row]], TEXTS[row])
    heard = prefill(model, prompt, heads=profile.heads, layers=profile.layers)
    prefixes = new_silence_cache(model, Ladder())
    twin = contrast_with_silence(
        model,
        prompt,
        heard,
        heads=profile.heads,
        layers=profile.layers,
        silence_cache=prefixes,
        to_readout=True,
    )
    assert twin.silent is not None
    read = heard.attention.numpy()
    score = listening_score(read)
    strength = profile.gate.strength(score) if strength is None else strength
    plan = SteeringPlan(
        pool(twin.differences, profile.intervention), strength, profile.intervention
    )
    return Own(heard, score, timeline(read), plan, effect_bits(model, heard, twin.silent))


def own_tokens(model: AudioModel, one: Own, plan: SteeringPlan | None = None) -> list[int]:
    return list(generate(model, one.heard, plan or one.plan, Sampling(max_tokens=TOKENS)))


def new_tokens(network: Any, given: dict[str, Tensor], **options: Any) -> list[list[int]]:
    """The answer's tokens of each row, by transformers' generate."""
    options = {"do_sample": False, "max_new_tokens": TOKENS, **options}
    out = network.generate(**given, **options)
    token_rows: list[list[int]] = out[:, given["input_ids"].shape[1] :].tolist()
    return token_rows


def same(tokens: list[int], expected: list[int]) -> bool:
    """Whether the tokens agree; a row that ended is padded."""
    return tokens[: len(expected)] == expected


@pytest.fixture(params=HOWS.values(), ids=list(HOWS))
def profile(model: AudioModel, request: pytest.FixtureRequest) -> Profile:
    return profile_for(model, request.param)


# ---- what is heard and said


def test_one_prompt_is_heard_and_steered_as_on_our_own_path(
    model: AudioModel, any_plain: Any, profile: Profile
) -> None:
    expected = own(model, profile, 0)
    with listening(any_plain, model.processor, profile, steer=True) as ears:
        token_rows = new_tokens(any_plain, inputs(model, 0))
    assert ears.score == pytest.approx(expected.score, abs=1e-6)
    assert ears.strength == pytest.approx(expected.plan.strength, abs=1e-5)
    np.testing.assert_allclose(ears.timeline, expected.timeline, atol=1e-6)
    assert ears.timeline.sum() == pytest.approx(ears.score, abs=1e-6)
    assert ears.verdict == profile.verdicts.of(expected.score)
    assert ears.reason is None
    assert ears.effect_bits == pytest.approx(expected.effect_bits, rel=1e-3)
    assert expected.effect_bits > 1e-4
    assert same(token_rows[0], own_tokens(model, expected))
    assert not same(token_rows[0], own_tokens(model, expected, UNSTEERED)), (
        "the strength must do something"
    )


def test_each_row_of_a_batch_is_heard_and_steered_as_alone(
    model: AudioModel, plain: Any, profile: Profile
) -> None:
    with listening(plain, model.processor, profile, steer=True) as ears:
        token_rows = new_tokens(plain, inputs(model, 0, 1, 2))
    assert len(ears.rows) == 3
    assert len({round(row.strength, 4) for row in ears.rows}) == 3
    for row, heard in enumerate(ears.rows):
        alone = own(model, profile, row)
        assert heard.score == pytest.approx(alone.score, abs=1e-6)
        np.testing.assert_allclose(heard.timeline, alone.timeline, atol=1e-6)
        assert heard.silence_score is not None
        assert heard.effect_bits == pytest.approx(alone.effect_bits, rel=1e-3)
        assert same(token_rows[row], own_tokens(model, alone))
        scored = generate_scored(
            model, alone.heard, alone.plan, Sampling(max_tokens=TOKENS), profile.heads
        )
        scores = [score for _, score in scored]
        assert ears.token_scores[row, : len(scores)] == pytest.approx(scores, abs=2e-6)
    assert ears.token_scores.shape == (3, len(token_rows[0]))
    with pytest.raises(RequestError, match=r"ears\.rows"):
        _ = ears.score


def test_without_steering_it_only_listens(model: AudioModel, plain: Any, profile: Profile) -> None:
    given = inputs(model, 1, 0)
    bare = new_tokens(plain, given)
    with listening(plain, model.processor, profile) as ears:
        token_rows = new_tokens(plain, given)
    assert token_rows == bare
    for row, heard in zip((1, 0), ears.rows, strict=True):
        assert heard.score == pytest.approx(own(model, profile, row).score, abs=1e-6)
        assert (heard.strength, heard.silence_score) == (0.0, None)
        assert heard.reason


def test_a_profile_that_refuses_to_steer_is_told_in_its_words(
    model: AudioModel, plain: Any
) -> None:
    profile = replace(profile_for(model, HOWS["first"], top=0.0), refusal="nothing was gained")
    given = inputs(model, 0)
    bare = new_tokens(plain, given)
    with listening(plain, model.processor, profile, steer=True) as ears:
        assert new_tokens(plain, given) == bare
    assert (ears.strength, ears.reason) == (0.0, "nothing was gained: strength 0")


def test_a_fixed_strength_and_the_calibrated_direction(
    model: AudioModel, plain: Any, profile: Profile
) -> None:
    expected = own(model, profile, 2, strength=1.5)
    plan = replace(expected.plan, direction=profile.direction)
    for direction, wanted in (("request", expected.plan), ("calibrated", plan)):
        with listening(
            plain,
            model.processor,
            profile,
            steer=True,
            strength=1.5,
            direction=direction,  # type: ignore[arg-type]
        ) as ears:
            token_rows = new_tokens(plain, inputs(model, 2))
        assert ears.strength == 1.5
        assert same(token_rows[0], own_tokens(model, expected, wanted))
        assert (ears.rows[0].silence_score is None) == (direction == "calibrated")


# ---- logits: of the prefill, and of a cached step


class Kept(LogitsProcessor):
    """Keeps the logits of every step as they come."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.steps.append(scores.clone())
        return scores


def kept_logits(network: Any, given: dict[str, Tensor]) -> list[Tensor]:
    """(B, V) of the prefill and of three cached steps."""
    kept = Kept()
    new_tokens(network, given, max_new_tokens=4, logits_processor=[kept])
    return kept.steps


def test_strength_0_leaves_all_logits_bit_identical(model: AudioModel, profile: Profile) -> None:
    network, given = plain_network(model), inputs(model, 0, 1)
    before = kept_logits(network, given)
    with listening(network, model.processor, profile, steer=True, strength=0.0) as ears:
        inside = kept_logits(network, given)
    assert [row.strength for row in ears.rows] == [0.0, 0.0]
    assert all(torch.equal(a, b) for a, b in zip(before, inside, strict=True))


def test_a_row_of_strength_0_among_steered_ones_is_bit_identical(
    model: AudioModel, profile: Profile
) -> None:
    network, given = plain_network(model), inputs(model, 0, 1)
    scores = sorted(own(model, profile, row).score for row in (0, 1))
    split = replace(profile, gate=Gate(2.0, sum(scores) / 2, 1e-6))  # one row at 0, one at 2
    before = kept_logits(network, given)
    with listening(network, model.processor, split, steer=True) as ears:
        inside = kept_logits(network, given)
    strengths = [row.strength for row in ears.rows]
    assert sorted(strengths) == [0.0, 2.0]
    bare = strengths.index(0.0)
    for step, (a, b) in enumerate(zip(before, inside, strict=True)):
        assert torch.equal(a[bare], b[bare])
        if step == 0 or profile.intervention.tokens == "every":
            assert not torch.equal(a[1 - bare], b[1 - bare])


def test_the_logits_are_those_of_our_own_readout(
    model: AudioModel, plain: Any, profile: Profile
) -> None:
    expected = own(model, profile, 0)
    with listening(plain, model.processor, profile, steer=True):
        step_logits = kept_logits(plain, inputs(model, 0))
    final, heard = expected.heard.final[None], expected.heard
    for step, scores in enumerate(step_logits):
        row = steered_logits(model, final, expected.plan, step)
        torch.testing.assert_close(scores.float(), row, atol=2e-4, rtol=1e-4)
        states = model.decoder.embed_tokens(row.argmax(-1)[:, None])
        position = torch.tensor([[heard.length + step]])
        with torch.inference_mode():
            final = run_layers(model, states, position, None, heard.cache)[0][:, -1]


# ---- other ways to generate


def test_sampling_draws_the_same_as_from_our_logits(model: AudioModel) -> None:
    profile = profile_for(model, HOWS["before_norm"])
    network, given = plain_network(model), inputs(model, 0)
    sampling = {"do_sample": True, "temperature": 0.9, "top_k": 0}
    with listening(network, model.processor, profile, steer=True):
        torch.manual_seed(11)
        tokens = new_tokens(network, given, **sampling)[0]
    torch.manual_seed(11)
    expected = own(model, profile, 0)
    final, drawn = expected.heard.final[None], []
    with torch.inference_mode():
        for step in range(TOKENS):
            row = steered_logits(model, final, expected.plan, step)
            drawn.append(int(torch.multinomial((row / 0.9).softmax(-1), 1)))
            if drawn[-1] in model.eos_token_ids:
                break
            states = model.decoder.embed_tokens(torch.tensor([[drawn[-1]]]))
            position = torch.tensor([[expected.heard.length + step]])
            final = run_layers(model, states, position, None, expected.heard.cache)[0][:, -1]
    assert same(tokens, drawn)


def test_several_samples_of_a_prompt_share_its_strength(model: AudioModel) -> None:
    profile = profile_for(model, HOWS["before_norm"])
    network = plain_network(model)
    with listening(network, model.processor, profile, steer=True) as ears:
        new_tokens(network, inputs(model, 0), do_sample=True, num_return_sequences=3)
    assert len(ears.rows) == 3
    assert ears.strength == pytest.approx(own(model, profile, 0).plan.strength, abs=1e-5)


def test_beams_are_scored_by_steered_logits(model: AudioModel) -> None:
    profile = profile_for(model, HOWS["first"])
    network, given = plain_network(model), inputs(model, 0, 1)
    with listening(network, model.processor, profile, steer=True) as ears:
        out = network.generate(
            **given,
            do_sample=False,
            num_beams=3,
            max_new_tokens=5,
            min_new_tokens=5,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    assert len(ears.rows) == 6
    for row in range(2):
        tokens = out.sequences[row, given["input_ids"].shape[1] :].tolist()
        one = own(model, profile, row)
        total = own_log_probability(model, one, tokens)
        assert float(out.sequences_scores[row]) == pytest.approx(total, abs=2e-3)


@torch.inference_mode()
def own_log_probability(model: AudioModel, one: Own, tokens: list[int]) -> float:
    """Log-probability of five tokens under the steered readout, no end token allowed."""
    final, total = one.heard.final[None], 0.0
    for step, token in enumerate(tokens):
        row = steered_logits(model, final, one.plan, step)[0].log_softmax(-1)
        total += float(row[token])
        states = model.decoder.embed_tokens(torch.tensor([[token]]))
        position = torch.tensor([[one.heard.length + step]])
        final = run_layers(model, states, position, None, one.heard.cache)[0][:, -1]
    return total


def test_the_newest_prompt_counts(model: AudioModel) -> None:
    network, profile = plain_network(model), profile_for(model, HOWS["before_norm"])
    with listening(network, model.processor, profile, steer=True) as ears:
        for row in (0, 1, 0):
            token_rows = new_tokens(network, inputs(model, row))
            alone = own(model, profile, row)
            assert ears.score == pytest.approx(alone.score, abs=1e-6)
            assert same(token_rows[0], own_tokens(model, alone))


# ---- the model afterwards


def condition(network: Any, given: dict[str, Tensor]) -> dict[str, Any]:
    """Everything that a block could leave behind."""
    with torch.no_grad():
        logits = network(**given).logits
    return {
        "attention": network.model.language_model.config._attn_implementation,
        "others": [
            m.config._attn_implementation for m in network.modules() if hasattr(m, "config")
        ],
        "config": network.config.to_dict(),
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in network.named_modules()
        },
        "with_kwargs": sum(
            len(m._forward_pre_hooks_with_kwargs) + len(m._forward_hooks_with_kwargs)
            for m in network.modules()
        ),
        "own attributes": {name: sorted(m.__dict__) for name, m in network.named_modules()},
        "weights": {name: value.clone() for name, value in network.state_dict().items()},
        "logits": logits,
    }


def assert_unchanged(network: Any, given: dict[str, Tensor], before: dict[str, Any]) -> None:
    after = condition(network, given)
    then, now = before.pop("weights"), after.pop("weights")
    assert then.keys() == now.keys()
    assert all(torch.equal(then[key], now[key]) for key in then)
    assert torch.equal(before.pop("logits"), after.pop("logits"))
    assert after == before


def test_the_model_is_as_before_after_the_block(
    model: AudioModel, any_plain: Any, profile: Profile
) -> None:
    given = inputs(model, 0, 1)
    before = condition(any_plain, given)
    with listening(any_plain, model.processor, profile, steer=True):
        new_tokens(any_plain, given)
        assert any_plain.model.language_model.config._attn_implementation != before["attention"]
    assert_unchanged(any_plain, given, before)


def test_the_model_is_as_before_after_an_exception(model: AudioModel, plain: Any) -> None:
    given = inputs(model, 0)
    before = condition(plain, given)
    profile = profile_for(model, HOWS["before_norm"])
    with (
        pytest.raises(ZeroDivisionError),
        listening(plain, model.processor, profile, steer=True),
    ):
        new_tokens(plain, given)
        raise ZeroDivisionError
    assert_unchanged(plain, given, before)


@pytest.mark.parametrize("fails", ["layers", "norm"])
def test_the_model_is_as_before_where_entering_fails_half_way(
    model: AudioModel, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, given = plain_network(model), inputs(model, 0)
    before = condition(network, given)
    decoder = network.model.language_model
    part = decoder.layers[2] if fails == "layers" else decoder.norm

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no more hooks")

    with monkeypatch.context() as patched:
        for name in ("register_forward_hook", "register_forward_pre_hook"):
            patched.setattr(part, name, refuse)
        with pytest.raises(OSError, match="no more"):
            enter(network, model, profile_for(model, HOWS["before_norm"]))
    assert_unchanged(network, given, before)


def test_the_model_is_as_before_where_a_pass_fails_half_way(model: AudioModel) -> None:
    network, given = plain_network(model), inputs(model, 0)
    before = condition(network, given)
    decoder = network.model.language_model

    def fail(*_: Any) -> None:
        raise MemoryError

    hook = decoder.layers[1].mlp.register_forward_pre_hook(fail)
    with (
        pytest.raises(MemoryError),
        listening(network, model.processor, profile_for(model, HOWS["first"]), steer=True),
    ):
        new_tokens(network, given)
    hook.remove()
    assert_unchanged(network, given, before)


def test_gradients_still_flow_inside(model: AudioModel) -> None:
    network, given = plain_network(model), inputs(model, 0)
    network.requires_grad_(True)
    with listening(network, model.processor, profile_for(model, HOWS["before_norm"]), steer=True):
        network(**given).logits[0, -1].sum().backward()
    gradient = network.model.language_model.layers[0].self_attn.q_proj.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


# ---- refused


def enter(network: Any, model: AudioModel, profile: Any, **options: Any) -> ListeningHooks:
    with listening(network, model.processor, profile, **options) as ears:
        return ears


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"strength": 0.5}, "steer=True"),
        ({"steer": True, "strength": 2.1}, "2.1"),
        ({"steer": True, "strength": -0.1}, "-0.1"),
        ({"steer": True, "strength": float("nan")}, "nan"),
        ({"steer": True, "direction": "sideways"}, "sideways"),
    ],
)
def test_a_wrong_wish_is_refused(
    untrained: AudioModel, options: dict[str, Any], named: str
) -> None:
    profile = profile_for(untrained, HOWS["first"])
    with pytest.raises(RequestError, match=named):
        enter(plain_network(untrained), untrained, profile, **options)


def test_a_profile_without_gain_says_why_nothing_is_steered(untrained: AudioModel) -> None:
    network = plain_network(untrained)
    profile = profile_for(untrained, HOWS["first"], top=0.0)
    with listening(network, untrained.processor, profile, steer=True) as ears:
        new_tokens(network, inputs(untrained, 0))
    assert ears.strength == 0
    assert "no gain" in str(ears.reason)


def test_a_second_block_on_a_model_is_refused(untrained: AudioModel) -> None:
    network, profile = plain_network(untrained), profile_for(untrained, HOWS["first"])
    with (
        listening(network, untrained.processor, profile),
        pytest.raises(RequestError, match="already"),
    ):
        enter(network, untrained, profile)
    enter(network, untrained, profile)


def test_ears_that_heard_nothing_say_so(untrained: AudioModel) -> None:
    ears = enter(plain_network(untrained), untrained, profile_for(untrained, HOWS["first"]))
    with pytest.raises(RequestError, match="generate"):
        _ = ears.score


def deaf(given: dict[str, Tensor]) -> None:
    given["input_ids"][given["input_ids"] == 4] = 9  # 4: the audio token


def unfeatured(given: dict[str, Tensor]) -> None:
    del given["input_features"], given["feature_attention_mask"]


def padded_right(given: dict[str, Tensor]) -> None:
    given["attention_mask"][0, -1] = 0


def one_clip_short(given: dict[str, Tensor]) -> None:
    given["feature_attention_mask"][0, 40:] = 0


BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "no audio tokens": (deaf, "no audio"),
    "no features": (unfeatured, "no audio"),
    "right padding": (padded_right, "left"),
    "other clips": (one_clip_short, "audio tokens"),
}


@pytest.mark.parametrize(("damage", "named"), BROKEN.values(), ids=BROKEN)
def test_inputs_that_can_not_be_heard_are_refused(
    untrained: AudioModel, damage: Callable[[dict[str, Tensor]], None], named: str
) -> None:
    network, given = plain_network(untrained), inputs(untrained, 0)
    assert untrained.family.audio_token_id(network.config) == 4
    damage(given)
    with (
        pytest.raises(RequestError, match=named),
        listening(network, untrained.processor, profile_for(untrained, HOWS["first"])),
    ):
        new_tokens(network, given)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"use_cache": False}, "use_cache"), ({"prompt_lookup_num_tokens": 3}, "token by token")],
    ids=["no cache", "several tokens a step"],
)
def test_modes_that_would_be_steered_wrongly_are_refused(
    untrained: AudioModel, options: dict[str, Any], named: str
) -> None:
    network = plain_network(untrained)
    with (
        pytest.raises(RequestError, match=named),
        listening(network, untrained.processor, profile_for(untrained, HOWS["first"])),
    ):
        new_tokens(network, inputs(untrained, 0), **options)


# ---- whose profile


@pytest.fixture
def loaded(checkpoint: Path) -> Iterator[tuple[Any, Any]]:
    """A researcher's own two lines."""
    network = Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint)
    yield network.eval(), AutoProcessor.from_pretrained(checkpoint)


def test_a_profile_folder_is_held_against_the_folder_of_the_model(
    untrained: AudioModel, loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    network, processor = loaded
    profile = profile_for(untrained, HOWS["first"])
    save(profile, tmp_path / "mine")
    save(replace(profile, fingerprint="f00d"), tmp_path / "other")
    with listening(network, processor, str(tmp_path / "mine")) as ears:
        network.generate(**inputs(untrained, 0), max_new_tokens=1, do_sample=False)
    assert ears.score == pytest.approx(own(untrained, profile, 0).score, abs=1e-6)
    with (
        pytest.raises(ProfileError, match="f00d"),
        listening(network, processor, tmp_path / "other"),
    ):
        pass


def test_a_snapshot_of_the_hub_is_found(
    untrained: AudioModel, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, processor = loaded
    asked: list[tuple[str, Any]] = []

    def snapshot(name: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((name, revision))
        assert local_files_only
        return str(untrained.folder)

    monkeypatch.setattr("steering.transformers_hooks.wrapping.snapshot_download", snapshot)
    network.config._name_or_path, network.config._commit_hash = "org/name", "c0ffee"
    enter(network, replace(untrained, processor=processor), profile_for(untrained, HOWS["first"]))
    assert asked == [("org/name", "c0ffee")]


def test_a_model_from_nowhere_needs_a_word(untrained: AudioModel) -> None:
    network = plain_network(untrained)
    network.config._name_or_path = ""
    profile = profile_for(untrained, HOWS["first"])
    with pytest.raises(ModelError, match="trust_profile=True"):
        enter(network, untrained, profile)
    enter(network, untrained, profile, trust_profile=True)
    wide = replace(profile, heads=((2, 8),), correlations=(0.5,))
    with pytest.raises(ModelError, match=r"2\.8"):
        enter(network, untrained, wide, trust_profile=True)


def test_a_model_of_another_kind_is_refused(untrained: AudioModel) -> None:
    with pytest.raises(AllEarsError, match="Linear"):
        enter(torch.nn.Linear(2, 2), untrained, profile_for(untrained, HOWS["first"]))
