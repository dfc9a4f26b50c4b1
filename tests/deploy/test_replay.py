"""replay.py reads the Dockerfile as a builder does; running it takes root and minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy import replay

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def test_lines_are_joined_and_comments_dropped() -> None:
    text = '# a\nFROM x AS y\nRUN one \\\n    # between\n    && two\n\ncmd ["serve"]\n'
    words = [(word, " ".join(rest.split())) for word, rest in replay.instructions(text)]
    assert words == [("FROM", "x AS y"), ("RUN", "one && two"), ("CMD", '["serve"]')]


def test_options_are_taken_off() -> None:
    parsed = replay.options("--start-period=60s --retries=3   CMD [1]")
    assert parsed == ({"start-period": "60s", "retries": "3"}, "CMD [1]")
    assert replay.options("echo --not=one") == ({}, "echo --not=one")


def test_every_instruction_of_the_dockerfile_can_be_replayed() -> None:
    words = {word for word, _ in replay.instructions(DOCKERFILE)}
    assert {"FROM", "RUN", "COPY", "USER", "HEALTHCHECK", "ENTRYPOINT"} <= words
    methods = (name for name in vars(replay.Replay) if name.endswith("_instruction"))
    known = {name.removeprefix("_").removesuffix("_instruction").upper() for name in methods}
    assert words <= known | replay._IGNORED


def test_an_unknown_instruction_stops_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ONBUILD"):
        replay.Replay(tmp_path, tmp_path, (), {}).run("ONBUILD RUN x")


def test_what_needs_no_root_acts_as_in_a_builder(tmp_path: Path) -> None:
    base, work = tmp_path / "base", tmp_path / "work"
    base.mkdir()
    work.mkdir()
    text = (
        "ARG WHO=all\nFROM whatever AS first\nENV A=/a\nENV B=$A/b\nARG WHO\nWORKDIR /src\n"
        "COPY LICENSE ./\nCOPY docker docker\nENV C=$WHO\n"
        'FROM first AS second\nCOPY --from=first /src/LICENSE /copied\nUSER 1:1\nCMD ["x"]\n'
    )
    final = replay.Replay(base, work, (), {"WHO": "me"}).run(text)
    assert (final.root / "copied").read_text() == (ROOT / "LICENSE").read_text()
    assert (final.root / "src" / "docker" / "Dockerfile").read_text() == DOCKERFILE
    assert final.variables["B"] == "/a/b"
    assert final.variables["C"] == "me"
    assert "WHO" not in final.environment
    assert (final.user, final.command) == ("1:1", ["x"])
