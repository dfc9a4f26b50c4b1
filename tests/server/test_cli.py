"""The command line, in this process and as a real server."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

from server import cli, demo_command
from server.settings import Settings, option
from steering.model import checkpoint, memory_plan
from steering.model.merging import packs
from tests.hub import running_hub
from tests.steering.examples import write_items
from tests.steering.verification.planted_faults import FAULTS

runner = CliRunner()


def run(*words: str) -> Any:
    """The result of a command; an exception that is not an exit fails the test."""
    return runner.invoke(cli.app, words, catch_exceptions=False, env={"COLUMNS": "200"})


COMMANDS = ["serve", "demo", "ask", "listen", "doctor", "bench"]
COMMANDS += ["profile show", "profile verify", "profile push", "profile pull"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example: allears {command}", result.output)


def test_serve_has_an_option_for_every_setting() -> None:
    text = run("serve", "--help").output
    options = set(re.findall(r"--[a-z][a-z-]+", text)) - {"--help"}
    assert options == {option(field) for field in Settings.model_fields}


@pytest.mark.parametrize(
    "words",
    [["serve", "--port", "x"], ["serve", "--nonsense"], ["nonsense"], ["ask"]],
    ids=" ".join,
)
def test_wrong_use_exits_with_2(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr


def test_a_port_in_use_is_said_before_the_model_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("serve", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "--port" in result.stderr


def test_a_model_that_is_not_there_is_one_line_and_1(caplog: pytest.LogCaptureFixture) -> None:
    result = run("serve", "--port", "0", "--model", "./nowhere")
    assert result.exit_code == 1
    assert "loading failed: model './nowhere'" in caplog.text
    assert "Traceback" not in caplog.text + result.stderr


def refusal_of(url: str) -> httpx.Response:
    """The first answer that is not 200; the signal takes a moment to arrive."""
    deadline = time.monotonic() + 30
    while (response := httpx.get(url)).status_code == 200:
        assert time.monotonic() < deadline, "never refused"
        time.sleep(0.01)
    assert response.status_code == 503
    return response


@pytest.mark.slow
def test_ctrl_c_lets_a_request_end(
    serve_process: Callable[..., Any],
    checkpoint_folder: Path,
    profile_folder: Path,
    tmp_path: Path,
    sound: bytes,
) -> None:
    log = tmp_path / "log"
    with serve_process(checkpoint_folder, profile_folder, log) as (process, url):
        files = [("audio", ("x.wav", sound))]
        fields = {"question": "What is this?", "max_tokens": "500", "stream": "true"}
        with (
            httpx.stream("POST", f"{url}/v1/audio-chat", files=files, data=fields) as stream,
            ThreadPoolExecutor(1) as pool,
        ):
            lines = stream.iter_lines()
            assert "delta" in next(lines)
            process.send_signal(signal.SIGINT)
            refused = pool.submit(refusal_of, f"{url}/readyz").result(60)
            assert refused.json()["error"]["code"] == "draining"
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(60) == 0
    text = log.read_text()
    assert "Traceback" not in text
    assert '"route": "/v1/audio-chat"' in text


def test_demo_prints_a_table(
    running_url: str, sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def running() -> Iterator[str]:
        yield running_url

    monkeypatch.setattr(demo_command, "server_process", running)
    item = {"file": "a.wav", "question": "What is this?", "choices": ["x", "y"], "answer": "x"}
    (tmp_path / "a.wav").write_bytes(sound)
    (tmp_path / "clips.json").write_text(json.dumps([item, {**item, "note": "a note"}]))
    result = run("demo", "--clips", str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout.count("What is this?") == 2
    assert "listening" in result.stdout


def test_demo_without_clips_is_one_line_and_1(tmp_path: Path) -> None:
    result = run("demo", "--clips", str(tmp_path))
    assert result.exit_code == 1
    assert "clips.json" in result.stderr


def test_demo_says_what_an_item_of_its_lacks(tmp_path: Path) -> None:
    (tmp_path / "clips.json").write_text('[{"question": "What?"}]')
    result = run("demo", "--clips", str(tmp_path))
    assert result.exit_code == 1
    assert "needs answer, file, question" in result.stderr


def test_demo_shows_the_log_of_a_server_that_did_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clips.json").write_text("[]")
    monkeypatch.setattr(demo_command, "SERVE", ["-c", "import sys; sys.exit('it broke')"])
    result = run("demo", "--clips", str(tmp_path))
    assert result.exit_code == 1
    assert "it broke" in result.stderr


# ---- profile and doctor


def test_profile_show_and_verify(profile_folder: Path, checkpoint_folder: Path) -> None:
    shown = run("profile", "show", str(profile_folder))
    assert "tiny-profile" in shown.stdout
    record = json.loads(run("profile", "show", "--json", str(profile_folder)).stdout)
    assert record["name"] == "tiny-profile"
    fits = run("profile", "verify", str(profile_folder), "--model", str(checkpoint_folder))
    assert fits.exit_code == 0


def test_a_profile_is_pushed_and_pulled(
    profile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_hub() as hub:
        hub.instead_of_the_real_one(monkeypatch, tmp_path)
        pushed = run("profile", "push", str(profile_folder), "me/mine", "--public")
        assert pushed.stdout == f"pushed to {hub.url}/me/mine\n"
        pulled = run("profile", "pull", "me/mine", str(tmp_path / "pulled"))
    assert "tiny-profile" in pulled.stdout
    assert run("profile", "show", str(tmp_path / "pulled")).exit_code == 0
    refused = run("profile", "pull", "me/mine", str(tmp_path))
    assert refused.exit_code == 1
    assert "not a profile folder" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["demo-data", "--split", "test", "--items", "1", "--seed", "1", "--out", "FILE/items"],
        ["demo-data", "--split", "test", "--items", "1", "--seed", "1", "--out", "FILE"],
        ["calibrate", "--data", "ITEMS", "--out", "FILE/profile"],
        ["evaluate", "--data", "ITEMS", "--out", "FILE"],
        ["calibrate", "--data", "ITEMS", "--out", "."],
    ],
)
def test_a_path_that_can_not_be_written_is_one_line_and_1(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    paths = {"FILE": str(tmp_path / "file"), "ITEMS": str(write_items(tmp_path, 40))}
    given = [
        functools.reduce(lambda w, name: w.replace(name, paths[name]), paths, w) for w in words
    ]
    result = run(*given)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("allears: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_profile_verify_refuses_a_damaged_one(tmp_path: Path) -> None:
    result = run("profile", "verify", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("allears: ")
    assert len(result.stderr.splitlines()) == 1


def test_doctor_finds_what_is_there(checkpoint_folder: Path, profile_folder: Path) -> None:
    words = ["doctor", "--model", str(checkpoint_folder), "--profile", str(profile_folder)]
    assert run(*words).exit_code == 0
    checks = json.loads(run(*words, "--json").stdout)
    assert all(check["ok"] for check in checks)
    assert {"python", "torch", "libsndfile", "model", "profile"} <= {c["name"] for c in checks}


def test_doctor_fails_where_a_check_does(checkpoint_folder: Path, tmp_path: Path) -> None:
    words = ["doctor", "--model", str(checkpoint_folder), "--profile", str(tmp_path)]
    result = run(*words)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout


def test_doctor_holds_a_model_against_transformers(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["doctor", "--model", str(checkpoint_folder), "--profile", "none", "--verify"]
    result = run(*words, "--json")
    checks = [c for c in json.loads(result.stdout) if c["name"].startswith("verify: ")]
    assert result.exit_code == 0
    assert len(checks) == 14
    assert all(check["ok"] and check["measured"] <= check["allowed"] for check in checks)
    (tap,) = (fault for fault in FAULTS if fault.caught[0] == "taps")
    tap.plant(monkeypatch)
    result = run(*words)
    assert result.exit_code == 1
    failed = [line for line in result.stdout.splitlines() if "FAILED" in line]
    assert failed and all(
        re.search(r"verify: (taps|(kept )?twin|cut silence|one pass|live score)", line)
        for line in failed
    )


def test_doctor_verifies_no_model_without_weights(checkpoint_folder: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint_folder / "config.json", tmp_path)
    result = run("doctor", "--model", str(tmp_path), "--verify")
    assert result.exit_code == 1
    assert "no weights were loaded" in result.stdout


def test_doctor_plans_memory_from_a_config_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes of Qwen2-Audio-7B: nothing of it is here, and nothing is allocated."""
    text = {
        "model_type": "qwen2",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 156032,
    }
    config = {"model_type": "qwen2_audio", "text_config": text, "audio_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["doctor", "--model", str(tmp_path), "--dtype", "bfloat16", "--device", "cpu", "--json"]
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 40_000_000_000)
    result = run(*words)
    assert result.exit_code == 0
    findings = {check["name"]: check["found"] for check in json.loads(result.stdout)}
    assert findings["memory: weights"].startswith("8,397.1 M parameters: float32 33.59 GB")
    assert "bfloat16 16.79 GB" in findings["memory: weights"]
    assert "524,288 bytes a token in bfloat16" in findings["memory: keys and values"]
    silences = findings["memory: silence cache"]
    assert silences.startswith(
        "7 lengths up to 30 s, each 2.00 times the next shorter: 1488 tokens"
    )
    assert "at most 780.1 MB" in silences
    assert "nothing was loaded" in findings["model"]
    assert "rows 17.18 GB" in findings["memory: plan"]
    kernels = packs(torch.device("cpu"), torch.bfloat16)  # which such a CPU keeps compiled
    whole = "37.81" if kernels else "37.31"
    assert f"{whole} GB at most, of 40.00 GB free on cpu" in findings["memory: plan"]
    assert ("kernels 499.0 MB" in findings["memory: plan"]) is kernels
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 24_000_000_000)
    short = run(*words)
    assert short.exit_code == 1
    failed = {c["name"]: c["found"] for c in json.loads(short.stdout) if not c["ok"]}
    short_of = "short of 13.81 GB" if kernels else "short of 13.31 GB"
    assert failed["memory: plan"].startswith(f"{short_of} of memory: weights 16.79 GB")
    assert "3 rows of 2048 tokens or 16 rows of" in failed["memory: plan"]
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    assert run("doctor", "--model", str(tmp_path)).exit_code == 1


def test_doctor_reads_small_files_of_a_hub_id_and_weights_if_asked(
    checkpoint_folder: Path, profile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, fetched = tmp_path / "0123abc", list[bool]()
    small.mkdir()
    for file in checkpoint_folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, small)
    index = {"metadata": {"total_size": 16_790_000_000}, "weight_map": {"a": "1", "b": "2"}}
    (small / "model.safetensors.index.json").write_text(json.dumps(index))

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        fetched.append("*.safetensors" in allow_patterns)
        return str(checkpoint_folder if fetched[-1] else small)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    words = ["doctor", "--model", "org/name", "--device", "cpu", "--json"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    found = {check["name"]: check["found"] for check in json.loads(result.stdout)}
    assert not any(fetched)
    assert "revision 0123abc: qwen2_audio" in found["model"]
    assert "2 weight files of 16.79 GB are not fetched" in found["model"]
    assert "profile" not in found
    (small / "tokenizer.json").unlink()
    assert run(*words).exit_code == 1, "no tokenizer"
    loaded = run(*words, "--load", "--profile", str(profile_folder))
    assert any(fetched)
    assert {"model", "profile"} <= {check["name"] for check in json.loads(loaded.stdout)}


def test_an_answer_does_not_wait_for_the_client_s_acknowledgement() -> None:
    with (
        cli._listening_socket("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
