"""Outcome of a part of the run: checks with their bounds, figures, and failures to repeat."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    says: str
    seen: str
    bound: str  # empty: a figure without one
    held: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """A part of the run."""

    part: str
    seconds: float
    seed: int
    checks: tuple[Check, ...]
    failures: tuple[str, ...] = ()  # request, answer, and the way to repeat it

    @property
    def held(self) -> bool:
        """Whether every check held and nothing failed."""
        return not self.failures and all(check.held for check in self.checks)


def at_least(says: str, seen: int, bound: int) -> Check:
    """A count with a lower bound."""
    return Check(says, f"{seen:,}", f">= {bound:,}", seen >= bound)


def none_of(says: str, seen: int) -> Check:
    """A count that must be 0."""
    return Check(says, f"{seen:,}", "0", seen == 0)


def at_most(says: str, seen: float, bound: float, unit: str = "") -> Check:
    """A figure with an upper bound."""
    return Check(says, f"{_short(seen)}{unit}", f"<= {_short(bound)}{unit}", seen <= bound)


def figure(says: str, seen: float, unit: str = "") -> Check:
    """A figure without a bound."""
    return Check(says, f"{_short(seen)}{unit}", "")


def _short(number: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
