"""LangChain, LiteLLM and PydanticAI, unmodified, ask the embedded model about an MP3 file."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from pydantic import SecretStr

CLIPS = Path(__file__).parents[3] / "steering" / "demo" / "clips"
QUESTION = {"type": "text", "text": "Which word is spoken?"}

pytestmark = [
    pytest.mark.slow,  # they take seconds to import
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning"),  # LiteLLM's types
]


@pytest.fixture(scope="module")
def mp3() -> bytes:
    """The word seven."""
    samples, rate_hz = soundfile.read(CLIPS / "seven.wav")
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="MP3")
    return file.getvalue()


@pytest.fixture(scope="module")
def block(mp3: bytes) -> dict[str, Any]:
    """The clip as OpenAI writes it."""
    return {"type": "input_audio", "input_audio": {"data": encoded(mp3), "format": "mp3"}}


def encoded(file: bytes) -> str:
    return base64.b64encode(file).decode()


@pytest.fixture(autouse=True)
def _no_other_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No price list is fetched and nothing is reported, at import or later."""
    strangers: list[str] = []
    look_up = socket.getaddrinfo

    def note(host: Any, *more: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", b"127.0.0.1", "localhost"):
            strangers.append(str(host))
            raise socket.gaierror(f"{host} is not this machine")
        return look_up(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", note)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    yield
    assert not strangers


@pytest.fixture(autouse=True)
def _own_event_loop() -> Iterator[None]:
    """The thread's event loop, which LiteLLM asks for and would leave open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


# ---- LangChain


@pytest.fixture
def langchain(demo_url: str) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model="demo",
        base_url=f"{demo_url}/v1",
        api_key=SecretStr("unused"),
        include_response_headers=True,
    )


def langchain_blocks(mp3: bytes) -> dict[str, dict[str, Any]]:
    """The ways in which LangChain writes a clip."""
    data = encoded(mp3)
    return {
        "openai": {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}},
        "source_type": {
            "type": "audio", "source_type": "base64", "mime_type": "audio/mpeg", "data": data,
        },
        "base64": {"type": "audio", "mime_type": "audio/mpeg", "base64": data},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["openai", "source_type", "base64"])
def test_langchain(langchain: Any, mp3: bytes, kind: str) -> None:
    from langchain_core.messages import HumanMessage

    messages = [HumanMessage([langchain_blocks(mp3)[kind], QUESTION])]
    answer = langchain.invoke(messages)
    assert answer.content == "seven"
    assert float(answer.response_metadata["headers"]["x-listening-score"]) > 0.5
    assert answer.usage_metadata["input_token_details"]["audio"] > 0
    chunks = list(langchain.stream(messages))
    assert "".join(chunk.content for chunk in chunks) == "seven"
    assert float(chunks[0].response_metadata["headers"]["x-listening-score"]) > 0.5


def test_langchain_s_answer_goes_back_into_the_conversation(langchain: Any, mp3: bytes) -> None:
    from langchain_core.messages import HumanMessage, SystemMessage

    asked = [HumanMessage([langchain_blocks(mp3)["source_type"], QUESTION])]
    first = langchain.invoke([SystemMessage("Answer in one word."), *asked])
    again = langchain.invoke([*asked, first, HumanMessage("Which word is spoken?")])
    assert again.content


def test_langchain_steers_by_extra_body(langchain: Any, block: dict[str, Any]) -> None:
    from langchain_core.messages import HumanMessage

    steered = langchain.bind(extra_body={"steer": True, "steering": {"strength": 0.25}})
    answer = steered.invoke([HumanMessage([block, QUESTION])])
    assert float(answer.response_metadata["headers"]["x-steering-strength"]) == 0.25


# ---- LiteLLM


def complete(url: str, block: dict[str, Any], **options: Any) -> Any:
    import litellm

    return litellm.completion(
        model="openai/demo",
        api_base=f"{url}/v1",
        api_key="unused",
        messages=[{"role": "user", "content": [block, QUESTION]}],
        **options,
    )


def test_litellm(demo_url: str, block: dict[str, Any]) -> None:
    answer = complete(demo_url, block, extra_body={"steer": True})
    assert answer.choices[0].message.content == "seven"
    assert answer.listening["verdict"] == "listening"
    assert answer.steering["applied"] is True
    assert answer.usage.prompt_tokens_details.audio_tokens > 0


def test_litellm_streams(demo_url: str, block: dict[str, Any]) -> None:
    chunks = list(complete(demo_url, block, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "seven"
    assert chunks[-1].listening["verdict"] == "listening"


def test_litellm_refuses_with_the_server_s_words(demo_url: str, block: dict[str, Any]) -> None:
    from litellm.exceptions import BadRequestError

    with pytest.raises(BadRequestError, match=r"\bn\b.*\b2\b"):
        complete(demo_url, block, n=2)


# ---- PydanticAI


def test_pydantic_ai(demo_url: str, mp3: bytes) -> None:
    from openai import AsyncOpenAI
    from pydantic_ai import Agent, BinaryContent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    question: Any = [QUESTION["text"], BinaryContent(mp3, media_type="audio/mpeg")]

    async def ask() -> tuple[Any, list[str]]:
        async with AsyncOpenAI(base_url=f"{demo_url}/v1", api_key="unused") as client:
            agent = Agent(OpenAIChatModel("demo", provider=OpenAIProvider(openai_client=client)))
            whole = await agent.run(question)
            async with agent.run_stream(question) as stream:
                return whole, [piece async for piece in stream.stream_text(delta=True)]

    whole, pieces = asyncio.run(ask())
    assert whole.output == "".join(pieces) == "seven"
    assert whole.usage.input_audio_tokens > 0
