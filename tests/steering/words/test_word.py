"""Words of texts in several scripts, from tokens that are bytes of characters or runs of them."""

from __future__ import annotations

import pytest

from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.words.word import TokenizedText, placed, tokenize, words_of
from tests.steering import tiny

TEXTS = {
    "Someone plays the clarinet, it's rising.": "Someone plays the clarinet it's rising",
    "well-known: 3.14 (or $5)": "well-known 3.14 or $ 5",
    "这是狗。abc狗": "这 是 狗 abc 狗",
    "カタカナー と": "カタカナー と",
    "हिन्दी में, 안녕 하세요, مرحبا": "हिन्दी में 안녕 하세요 مرحبا",
    "été e\u0301te\u0301": "été e\u0301te\u0301",
    "🐶 or 👩\u200d👩\u200d👧!": "🐶 or 👩\u200d👩\u200d👧",
    " \n?!": "",
}


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    """A model whose tokens are bytes."""
    return load(
        str(tiny.save(tiny.qwen2_audio, tmp_path_factory.mktemp("bytes") / "tiny")), device="cpu"
    )


@pytest.mark.parametrize(("text", "words"), TEXTS.items())
def test_bytes_are_put_together_to_words(of_bytes: AudioModel, text: str, words: str) -> None:
    answer = tokenize(of_bytes, text)
    assert placed(of_bytes, answer.ids, text) == answer, "generated or given, the same"
    joined = words_of(answer, [0.25] * len(answer.ids), [1.0] * len(answer.ids))
    assert [word.text for word in joined] == words.split()
    assert all(text[word.start : word.end] == word.text for word in joined)
    assert [word.effect_bits for word in joined] == [len(word.text.encode()) for word in joined], (
        "a word has all its tokens, and no token is of two"
    )
    assert {word.score for word in joined} <= {0.25}


def test_what_stands_behind_the_text_is_left_out(of_bytes: AudioModel) -> None:
    (end,) = of_bytes.eos_token_ids & set(of_bytes.processor.tokenizer.all_special_ids)
    ids = tokenize(of_bytes, "été, né").ids
    cut = placed(of_bytes, (*ids, end), "été, ")  # at a stop string
    assert cut.ids == ids[: len("été, ".encode())]
    half = placed(of_bytes, (*ids[:-1], end), "été, n")  # at max_tokens, within a character
    assert [word.text for word in words_of(half, [], [1.0] * len(half.ids))] == ["été", "n"]
    assert not placed(of_bytes, [end], "").ids


def test_a_token_of_several_characters_joins_them() -> None:
    """As in vocabularies that know a word of Han, or a word with its mark."""
    answer = TokenizedText("小狗 叫. ok", (1, 2, 3, 4), ((0, 2), (2, 5), (5, 7), (7, 8)))
    words = words_of(answer, [0.1, 0.2, 0.4, 0.8], [1.0, 2.0, 4.0, 8.0])
    assert [(word.text, word.start, word.end, word.effect_bits) for word in words] == [
        ("小狗", 0, 2, 1.0),
        ("叫", 3, 4, 2.0),
        ("ok", 6, 8, 12.0),
    ]
    assert [word.score for word in words] == pytest.approx([0.1, 0.2, 0.6])
    assert words_of(answer, [], [0.0] * 4)[0].score is None
