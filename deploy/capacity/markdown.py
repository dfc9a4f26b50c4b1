"""How figures stand in a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms(seconds: float) -> str:
    """Milliseconds, three digits."""
    return f"{1000 * seconds:.3g}"


def mb(size: float) -> str:
    """Millions of bytes."""
    return f"{size / 1e6:.1f}"
