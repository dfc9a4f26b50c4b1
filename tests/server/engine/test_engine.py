"""The engine without HTTP: many questions at once, each as if it were alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import aclosing, contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from server.engine.engine import Engine
from server.engine.events import AnswerEvent, Finished, NeedsTurn, Piece, Started
from server.engine.mailbox import Mailbox
from server.engine.messages import Answer, Question
from server.engine.runtime import Runtime
from server.engine.spare_cores import SpareCores
from server.engine.torch_errors import is_out_of_memory
from server.errors import EngineStopped, RequestTimeout
from steering import generation
from steering import prefill as prefills
from steering.audio.clip import Clip
from steering.decision import SteeringRequest
from steering.errors import RequestError
from steering.generation import Sampling
from steering.model.merging import merge_and_pack
from steering.prompt import Message
from steering.silence_cache import SilenceKey
from steering.strength import Gate
from steering.words import effects

RATE_HZ = 16_000
LONG = Sampling(max_tokens=400, ignore_end=True)
STEERED = SteeringRequest(steer=True)


@pytest.fixture
def small(tiny_model: Any, tiny_profile: Any) -> Runtime:
    """A listener of one's own, with few rows."""
    return Runtime.of(tiny_model, tiny_profile, rows=6, tokens=1200)


@contextmanager
def running(runtime: Runtime) -> Iterator[Engine]:
    engine = Engine(runtime, queue_limit_requests=500, queue_timeout_seconds=60)
    try:
        yield engine
    finally:
        engine.close()
        assert not engine.alive
        assert not runtime.slots.active


def question(seed: int = 0, **fields: Any) -> Question:
    """A question about noise; fields of Question may be given."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal(round(rng.uniform(0.2, 3.0) * RATE_HZ)).astype(np.float32)
    clip = Clip(samples * 0.2, RATE_HZ, len(samples) / RATE_HZ, RATE_HZ, 1)
    message = Message("user", (clip, "What is this?" + " And then?" * (seed % 4)))
    return Question(f"question-{seed}", (message,), **fields)


def too_long_question(seed: int) -> Question:
    """A question whose prompt fits no slot."""
    asked = question(seed)
    (message,) = asked.messages
    return replace(asked, messages=(replace(message, parts=(*message.parts, "And then? " * 400)),))


def random_question(seed: int) -> Question:
    rng = np.random.default_rng([seed, 8])

    def one_of(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    steer = bool(rng.random() < 0.6)
    sampling = Sampling(
        max_tokens=int(rng.integers(1, 24)),
        temperature=one_of(0.0, 0.0, 0.7, 1.6),
        top_p=one_of(1.0, 0.8),
        seed=seed,
        ignore_end=bool(rng.random() < 0.3),
    )
    return question(
        seed,
        steering=SteeringRequest(
            steer,
            direction=one_of("request", "calibrated"),
            strength=one_of(None, 0.0, 0.4, 1.0),
        ),
        choices=one_of((), (), (), ("dog", "a glass bell", "rain")),
        sampling=sampling,
        stop=one_of((), (), ("e",), ("the", " a")),
        with_unsteered=bool(rng.random() < 0.3),
        with_silence=bool(rng.random() < 0.3),
        generate=bool(rng.random() < 0.9),
    )


def assert_same(answers: list[Answer], expected: list[Answer]) -> None:
    """The answers are the same but for their times; scores are float32, summed in any order."""
    for answer, other in zip(answers, expected, strict=True):
        assert words(answer) == words(other)
        assert figures(answer) == pytest.approx(figures(other), abs=1e-5)


def words(answer: Answer) -> list[Any]:
    steering = answer.steering
    return [
        answer.id,
        answer.text,
        answer.finish_reason,
        answer.unsteered,
        answer.silent,
        answer.completion_tokens,
        answer.listening.verdict,
        steering.applied,
        steering.reason,
    ]


def figures(answer: Answer) -> list[float]:
    listening = answer.listening
    scores = [listening.score or 0.0, listening.silence_score or 0.0, answer.steering.strength]
    timeline = listening.timeline.tolist()
    return [*answer.probabilities, *scores, *timeline, *answer.token_scores]


async def all_of(engine: Engine, questions: list[Question]) -> list[Answer | BaseException]:
    return await asyncio.gather(*(engine.answer(q) for q in questions), return_exceptions=True)


def answered(outcome: Answer | BaseException) -> Answer:
    assert isinstance(outcome, Answer), repr(outcome)
    return outcome


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.002)


@pytest.mark.slow
def test_two_hundred_mixed_questions_at_once_are_answered_as_alone(small: Runtime) -> None:
    questions = [random_question(seed) for seed in range(200)]

    async def ask() -> None:
        alone = [await engine.answer(query) for query in questions]
        together = [answered(outcome) for outcome in await all_of(engine, questions)]
        assert_same(together, alone)
        assert len({answer.text for answer in alone}) > 60, "they say different things"
        assert sum(answer.steering.applied for answer in alone) > 50

    with running(small) as engine:
        asyncio.run(ask())


def test_a_gate_of_the_effect_steers_by_what_is_reported(
    tiny_model: Any, tiny_profile: Any
) -> None:
    bits = answer_of(tiny_model, tiny_profile, with_effect=True).listening.effect_bits
    assert bits is not None and bits > 0
    gate = Gate(1.0, float(np.log2(bits + 0.1)) + 0.3, 0.5, "effect")
    profile = replace(tiny_profile, gate=gate)
    expected = pytest.approx(gate.strength(bits), abs=1e-3)
    assert gate.strength(bits) > 0.5
    for request in (STEERED, SteeringRequest(True, direction="calibrated")):
        steered = answer_of(tiny_model, profile, steering=request)
        assert steered.steering.strength == expected
        assert steered.listening.effect_bits == pytest.approx(bits, abs=1e-4)
    fixed = answer_of(tiny_model, profile, steering=SteeringRequest(True, 0.25))
    assert fixed.steering.strength == 0.25
    chosen = answer_of(tiny_model, profile, steering=STEERED, choices=("a dog", "a cow"))
    assert chosen.steering.applied
    one_clip = answer_of(tiny_model, profile, steering=STEERED, contrast_clip=0)
    assert one_clip.steering.strength == expected, "its only clip"


def answer_of(model: Any, profile: Any, **fields: Any) -> Answer:
    async def asking() -> Answer:
        with running(Runtime.of(model, profile, rows=2, tokens=600)) as engine:
            return await engine.answer(question(3, **fields))

    return asyncio.run(asking())


@pytest.mark.parametrize("chunk_tokens", [16, 64])
@pytest.mark.parametrize(
    "asks, passes",
    [
        ({"with_silence": True, "with_clips": True}, 3),  # prompt, without its clip, of silence
        ({"choices": ("a dog " * 20, "a cow " * 20), "with_effect": True, "with_clips": True}, 3),
        ({"given_answer": "a dog " * 20, "generate": False, "with_words": True}, 2),
    ],
)
def test_a_prompt_enters_in_chunks_between_the_tokens_of_others(
    tiny_model: Any,
    tiny_profile: Any,
    asks: dict[str, Any],
    passes: int,
    chunk_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompt, twin, its silence where it is not at hand, choices, and what is asked for after the
    answer.
    """
    runtime = Runtime.of(tiny_model, tiny_profile, rows=3, tokens=1200, chunk_tokens=chunk_tokens)
    entered = [0]  # tokens before each step
    walk, step = prefills.run_layers, runtime.slots.step

    def counted(model: Any, states: Any, *rest: Any, **options: Any) -> Any:
        entered[-1] += 0 if options.get("first") else states.shape[1]
        return walk(model, states, *rest, **options)

    def stepped() -> Any:
        entered.append(0)
        return step()

    for module in (prefills, generation, effects):
        monkeypatch.setattr(module, "run_layers", counted)
    monkeypatch.setattr(runtime.slots, "step", stepped)
    few = Sampling(max_tokens=150 if "given_answer" in asks else 3, ignore_end=True)
    asked = question(1, steering=STEERED, sampling=few, **asks)

    async def ask(engine: Engine) -> tuple[Answer, list[int]]:
        async with aclosing(engine.run(question(0, sampling=LONG))) as events:
            async for event in events:
                if isinstance(event, Piece):
                    break
            entered[:] = [0]
            answer = await engine.answer(asked)
            assert runtime.slots.active, "the other answer is being written still"
            return answer, list(entered)  # later nobody waits: it makes silence ahead

    with running(runtime) as engine:
        beside, entered_between = asyncio.run(ask(engine))
    with running(Runtime.of(tiny_model, tiny_profile, rows=1, tokens=1200)) as engine:
        alone = asyncio.run(engine.answer(asked))
    assert chunk_tokens // 2 < max(entered_between) <= chunk_tokens
    assert sum(entered_between) > passes * len(alone.prompt.tokens)
    assert_same([beside], [alone])
    assert beside.token_ids == alone.token_ids
    assert beside.listening.effect_bits == pytest.approx(alone.listening.effect_bits, rel=1e-3)
    (clip,), (other,) = beside.listening.clips, alone.listening.clips
    np.testing.assert_allclose(clip.timeline, other.timeline, atol=1e-5)
    assert clip.influence == pytest.approx(other.influence, abs=1e-5)
    bits, bits_alone = (
        [word.effect_bits for word in answer.listening.words] for answer in (beside, alone)
    )
    assert bits == pytest.approx(bits_alone, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("asked", [{}, {"with_silence": True}, {"with_effect": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_exactly_the_bare_answer_of_merged_products(
    tiny_model: Any, tiny_profile: Any, dtype: torch.dtype, asked: dict[str, Any]
) -> None:
    network = deepcopy(tiny_model.network).to(dtype)
    model = replace(tiny_model, network=network, dtype=dtype)
    assert merge_and_pack(model)[0]
    zero, choices = SteeringRequest(True, strength=0.0), ("a dog", "a cow")
    with running(Runtime.of(model, tiny_profile, rows=1, tokens=600)) as engine:
        for seed in range(3):
            bare = asyncio.run(engine.answer(question(seed, choices=choices, **asked)))
            steered = question(seed, choices=choices, steering=zero, **asked)
            answer = asyncio.run(engine.answer(steered))
            assert answer.probabilities == bare.probabilities
            assert answer.listening.score == bare.listening.score
            assert answer.listening.silence_score is not None


def test_an_engine_gives_way_to_other_processes_and_comes_back(
    small: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare, used, step = [2], [], small.slots.step

    def watched() -> Any:
        used.append(torch.get_num_threads())
        return step()

    monkeypatch.setattr(SpareCores, "count", lambda self: spare[0])
    monkeypatch.setattr(small.slots, "step", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with running(small) as engine:
            for spare[0] in (2, 1, 8):
                asyncio.run(engine.answer(question(sampling=Sampling(2, ignore_end=True))))
    finally:
        torch.set_num_threads(before)
    assert used == [2, 1, 2]


def test_what_never_fits_is_refused_while_all_rows_are_taken(tiny_model: Any) -> None:
    runtime = Runtime.of(tiny_model, None, rows=1, tokens=500)

    async def ask() -> None:
        async with aclosing(engine.run(replace(question(), sampling=LONG))) as events:
            await anext(events)  # the only row is taken, and nobody reads on
            too_long = too_long_question(1)
            with pytest.raises(RequestError, match=r"a row of 500 holds 0\.0 s"):
                await engine.answer(too_long)
            assert engine.running == 1 and engine.waiting == 0

    with running(runtime) as engine:
        asyncio.run(ask())


def test_an_answer_ends_where_its_slot_does(tiny_model: Any) -> None:
    runtime = Runtime.of(tiny_model, None, rows=1, tokens=100)

    async def ask() -> None:
        endless = Sampling(max_tokens=4000, ignore_end=True)
        answer = await engine.answer(replace(question(), sampling=endless))
        room = 100 - len(answer.prompt.tokens)
        assert (answer.completion_tokens, answer.finish_reason) == (room, "length")
        exact = await engine.answer(
            replace(question(), sampling=replace(endless, max_tokens=room - 1))
        )
        assert answer.text.startswith(exact.text)

    with running(runtime) as engine:
        asyncio.run(ask())


def test_a_question_that_fails_disturbs_nobody(small: Runtime) -> None:
    good = [question(seed, steering=STEERED, sampling=Sampling(max_tokens=20)) for seed in range(5)]
    wrong = question(9, steering=SteeringRequest(True, 50.0))
    too_long = too_long_question(8)

    async def ask() -> None:
        alone = [await engine.answer(query) for query in good]
        outcomes = await all_of(engine, [good[0], wrong, *good[1:4], too_long, good[4]])
        assert isinstance(outcomes[1], RequestError) and isinstance(outcomes[5], RequestError)
        rest = [answered(outcome) for i, outcome in enumerate(outcomes) if i not in (1, 5)]
        assert_same(rest, alone)

    with running(small) as engine:
        asyncio.run(ask())


def test_a_step_that_fails_ends_those_in_it_and_nobody_after(
    small: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [question(seed, sampling=Sampling(max_tokens=30, ignore_end=True)) for seed in range(9)]
    sizes: list[int] = []
    step = small.slots.step

    def failing() -> None:
        sizes.append(len(small.slots.active))
        if len(sizes) == 4:
            raise RuntimeError("no memory")
        step()

    monkeypatch.setattr(small.slots, "step", failing)

    async def ask() -> None:
        outcomes = await all_of(engine, asked)
        failed = [outcome for outcome in outcomes if isinstance(outcome, RuntimeError)]
        assert len(failed) == sizes[3] > 0
        assert sum(isinstance(outcome, Answer) for outcome in outcomes) == len(asked) - len(failed)
        assert engine.alive
        assert (await engine.answer(asked[0])).completion_tokens == 30

    with running(small) as engine:
        asyncio.run(ask())


def test_memory_that_runs_out_in_a_step_frees_what_is_kept_and_the_engine_goes_on(
    small: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        question(seed, steering=STEERED, sampling=Sampling(max_tokens=20)) for seed in range(5)
    ]
    step = small.slots.step
    held: list[int] = []

    def greedy() -> None:
        if not held:
            held.append(small.silence_cache.held_bytes)
            torch.empty(1 << 46, dtype=torch.uint8)
        step()

    async def ask() -> None:
        alone = [await engine.answer(query) for query in asked]
        monkeypatch.setattr(small.slots, "step", greedy)
        outcomes = await all_of(engine, asked)
        failed = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Answer)]
        assert failed and all(is_out_of_memory(cast(BaseException, outcomes[i])) for i in failed)
        assert held[0] > 0
        rest = [i for i in range(len(asked)) if i not in failed]
        assert_same([answered(outcomes[i]) for i in rest], [alone[i] for i in rest])
        assert_same([answered(outcome) for outcome in await all_of(engine, asked)], alone)

    with running(small) as engine:
        asyncio.run(ask())


def test_who_reads_no_further_holds_no_row_over_the_time_limit(small: Runtime) -> None:
    engine = Engine(
        small, queue_limit_requests=5, queue_timeout_seconds=60, request_timeout_seconds=0.5
    )
    step = small.slots.step

    def slow() -> None:
        time.sleep(0.01)
        step()

    async def ask() -> None:
        async with aclosing(engine.run(question(1, sampling=LONG))) as events:
            await anext(events)
            await until(lambda: len(small.slots.active) == 1)
            await until(lambda: not small.slots.active)
            with pytest.raises(RequestTimeout):
                async for _ in events:
                    pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small.slots, "step", slow)
        asyncio.run(ask())
    engine.close()


def test_a_timeout_is_told_though_the_thread_ends_the_job_at_once(small: Runtime) -> None:
    class Watched:
        """A job whose cancelling the torch thread sees before anything else happens."""

        def __init__(self) -> None:
            self.mailbox = Mailbox()

        def __setattr__(self, name: str, value: Any) -> None:
            object.__setattr__(self, name, value)
            if name == "cancelled":
                self.mailbox.end()

    async def ask() -> None:
        watched: Any = Watched()
        engine._time_out(watched)
        assert watched.cancelled
        with pytest.raises(RequestTimeout):
            await watched.mailbox.next_event()

    with running(small) as engine:
        asyncio.run(ask())


def test_passes_go_on_while_nobody_waits_for_a_token(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.engine import engine as module

    runtime = Runtime.of(tiny_model, None, rows=2, tokens=1200, chunk_tokens=100)
    done: list[str] = []
    looks: list[int] = []
    left: list[int] = []

    def passes(*asked: Any) -> Generator[Any, None, None]:
        for tokens in (0, 80, 80, 80):
            yield NeedsTurn(tokens)
            done.append("pass")
            runtime.silence_cache.ahead = [(SilenceKey(b"", (1,)), 1)]

    def ahead() -> None:
        runtime.silence_cache.ahead = []
        done.append("silence")

    def turns() -> None:
        Engine._take_turns(engine)
        left.append(len(engine._turns))

    async def ask() -> None:
        monkeypatch.setattr(module, "answer_question", passes)
        monkeypatch.setattr(engine, "_take_turns", turns)
        monkeypatch.setattr(engine, "_make_ahead", ahead)
        monkeypatch.setattr(engine, "_give_way", lambda: looks.append(len(done)))
        assert [event async for event in engine.run(question())] == []
        await until(lambda: "silence" in done)

    with running(runtime) as engine:
        asyncio.run(ask())
    assert done == ["pass"] * 4 + ["silence"]
    assert not any(left), "no turn waits for a step that nobody needs"
    assert {1, 2, 3} <= set(looks), "other processes are looked for before each pass"


def test_a_lost_device_ends_the_engine_and_all_that_ask(
    small: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    async def ask() -> None:
        outcomes = await all_of(engine, [question(seed, sampling=LONG) for seed in range(9)])
        assert [type(outcome) for outcome in outcomes] == [EngineStopped] * 9
        assert isinstance(engine.fault, torch.AcceleratorError)
        assert engine.dead and not engine.alive

    with running(small) as engine:
        monkeypatch.setattr(small.slots, "step", lost)
        asyncio.run(ask())


def test_who_leaves_after_the_first_piece_frees_the_row_within_one_step(
    small: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    step = small.slots.step

    def counted() -> None:
        rows.append(len(small.slots.active))
        step()

    monkeypatch.setattr(small.slots, "step", counted)

    async def ask() -> None:
        async with aclosing(engine.run(question(1, steering=STEERED, sampling=LONG))) as events:
            async for event in events:
                if isinstance(event, Piece):
                    break
        steps = len(rows)
        await until(lambda: engine.running == 0)
        assert len(rows) <= steps + 1
        assert not small.slots.active
        assert len(rows) < 300, "the answer was cut"

        # and beside one that stays
        stays = asyncio.create_task(engine.answer(question(2, sampling=LONG)))
        await until(lambda: engine.running == 1)
        async with aclosing(engine.run(question(3, sampling=LONG))) as events:
            async for event in events:
                if isinstance(event, Piece):
                    break
        steps = len(rows)
        await until(lambda: len(small.slots.active) == 1)
        assert 2 not in rows[steps + 1 :]
        assert (await stays).completion_tokens == LONG.max_tokens

    with running(small) as engine:
        asyncio.run(ask())


def test_a_row_that_somebody_left_goes_to_the_next_who_waits(tiny_model: Any) -> None:
    runtime = Runtime.of(tiny_model, None, rows=1, tokens=1200)

    async def ask() -> None:
        async with aclosing(engine.run(question(1, sampling=LONG))) as events:
            await anext(events)
            waits = asyncio.create_task(engine.answer(question(2)))
            await until(lambda: engine.waiting == 1)
        assert (await waits).timings.queue_seconds > 0
        await until(lambda: engine.waiting == engine.running == 0)

    with running(runtime) as engine:
        asyncio.run(ask())


def test_closing_ends_what_runs_and_what_waits(tiny_model: Any) -> None:
    runtime = Runtime.of(tiny_model, None, rows=1, tokens=1200)

    async def ask() -> None:
        asked = [asyncio.create_task(engine.answer(question(i, sampling=LONG))) for i in range(4)]
        await until(lambda: engine.running == 1 and engine.waiting == 3)
        await asyncio.to_thread(engine.close)
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineStopped] * 4
        assert not runtime.slots.active
        with pytest.raises(EngineStopped):
            await engine.answer(question(5))

    with running(runtime) as engine:
        asyncio.run(ask())


def test_a_loop_that_is_gone_stops_nobody(small: Runtime) -> None:
    async def leave() -> None:
        await anext(engine.run(question(1, sampling=LONG)))

    async def ask() -> Answer:
        return await engine.answer(question(2))

    with running(small) as engine:
        asyncio.run(leave())
        assert asyncio.run(ask()).completion_tokens > 0
        assert engine.alive


def test_an_answers_first_token_comes_before_its_last(small: Runtime) -> None:
    async def ask() -> None:
        begun = time.perf_counter()
        events: list[AnswerEvent] = []
        arrived: list[float] = []
        async for event in engine.run(question(4, sampling=Sampling(200, ignore_end=True))):
            events.append(event)
            arrived.append(time.perf_counter() - begun)
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        answer = events[-1].answer
        assert "".join(event.text for event in events if isinstance(event, Piece)) == answer.text
        timings, first_token = answer.timings, answer.first_token_seconds
        assert timings.prefill_seconds < first_token < arrived[1]
        assert first_token < timings.prefill_seconds + 0.5 * timings.decode_seconds

    with running(small) as engine:
        asyncio.run(ask())


# ---- a thread that died


class Death(BaseException):
    """What no handler of Exception catches."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_noticed_by_all_and_by_readyz(
    start: Any, tiny_model: Any, audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime.of(tiny_model, None)
    with start(heard_by=runtime, profile="none") as server:
        engine = server.deployment.engine
        assert engine.alive
        assert server.get("/readyz").status_code == 200

        def die() -> None:
            raise Death

        monkeypatch.setattr(runtime.slots, "step", die)
        body = {"audio": audio, "question": "What is this?", "max_tokens": 5}
        assert server.chat(**body).status_code == 503
        server.wait_until(lambda: not engine.alive)
        ready = server.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["error"]["code"] == "stopped"
        assert server.chat(**body).status_code == 503
        assert server.get("/livez").status_code == 200


def test_a_question_whose_end_fails_frees_its_row(
    small: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error on the way out is told to the one who asked, and the engine goes on."""
    from server.engine import engine as module
    from server.engine.answering import answer_question

    def faulty(small: Runtime, asked: Question, prompt: Any) -> Generator[Any, None, None]:
        try:
            yield from answer_question(small, asked, prompt)
        finally:
            if asked.id == "question-1":
                raise ValueError("on the way out")

    monkeypatch.setattr(module, "answer_question", faulty)

    async def ask() -> None:
        outcomes = await all_of(engine, [question(seed) for seed in range(4)])
        assert isinstance(outcomes[1], Answer | ValueError)
        assert [isinstance(outcome, Answer) for outcome in (outcomes[0], *outcomes[2:])] == [
            True
        ] * 3
        async with aclosing(engine.run(replace(question(1), sampling=LONG))) as events:
            await anext(events)
        await until(lambda: engine.running == 0)
        assert engine.alive

    with running(small) as engine:
        asyncio.run(ask())
