"""The record of an answer for the listening log."""

from __future__ import annotations

import time

from server.engine.messages import Answer, Question
from server.engine.runtime import Runtime
from server.listening_log.records import Record
from server.telemetry.served_model import model_and_profile_names


def make_record(question: Question, answer: Answer, created: int, runtime: Runtime) -> Record:
    """The record of a question, asked at `created` seconds since 1970 and answered just now."""
    listening, steering = answer.listening, answer.steering
    model, profile = model_and_profile_names(runtime)
    return Record(
        id=answer.id,
        created=created,
        generated=question.generate,
        score=listening.score,
        percentile=listening.percentile,
        verdict=listening.verdict,
        silence_score=listening.silence_score,
        steered=steering.applied,
        direction=steering.direction if steering.applied else None,
        strength=steering.strength,
        audio_seconds=sum(answer.prompt.heard_seconds),
        answered=time.time(),
        answer_changed=None if answer.unsteered is None else answer.unsteered != answer.text,
        **answer.timings.seconds(),
        model=model,
        profile=profile,
        effect_bits=listening.effect_bits,
    )
