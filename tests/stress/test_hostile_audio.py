"""A short run of the audio part, and that its checks can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stress.hostile_audio import fault, send_files
from tests.stress.mutations import FORMATS, MADE, MUTATIONS, files

pytestmark = pytest.mark.slow


def test_the_files_are_the_same_for_a_seed() -> None:
    first, again, other = (list(files(seed, 20)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_format_and_mutation_is_sent() -> None:
    names = [name.split("/") for name, _ in files(1, 3_000)]
    assert {parts[-1] for parts in names} == {*MUTATIONS, *MADE}
    assert {tuple(parts[:2]) for parts in names if len(parts) == 3} == {
        (container.lower(), subtype) for container, subtype in FORMATS
    }


def test_some_files_are_answered_or_refused(
    serve_process: Callable[..., Any], checkpoint_folder: Path, profile_folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serve_process(checkpoint_folder, profile_folder, log) as (process, url):
        results = asyncio.run(send_files(url, 400, 3, pid=process.pid))
        assert process.poll() is None
    assert results.failures == [], results.table()
    assert results.sent == sum(results.answers.values()) == 400
    statuses = {status for _, status in results.answers}
    assert {200, 400, 413} <= statuses
    assert results.slowest_seconds < 12
    assert "Xing" not in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (500, {"error": {}}, "status 500"),
        (200, {"detail": "x"}, "not the contract's"),
        (400, {"detail": "x"}, "not the contract's"),
        (400, {"error": {"message": "m", "type": "t", "param": None, "code": "other"}}, "error"),
        (
            400,
            {
                "error": {
                    "message": "Error in <_io.BytesIO object at 0x7f00>",
                    "type": "t",
                    "param": "audio",
                    "code": "invalid_audio",
                }
            },
            "inside",
        ),
    ],
)
def test_a_wrong_answer_is_seen(status: int, body: dict[str, Any], word: str) -> None:
    assert word in fault(httpx.Response(status, json=body))
