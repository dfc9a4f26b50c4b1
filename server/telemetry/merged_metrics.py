"""The metrics of several replicas as those of one server, so that rules and dashboards fit both.

Counters and histograms are added up. So are gauges of what each replica has for itself; of the
others, which say how things stand, the worst counts: an alert must see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

Samples = list[Metric]
_ADDED_GAUGES = frozenset(
    {
        "allears_queue_depth",
        "allears_queue_limit_requests",
        "allears_batch_rows",
        "allears_silence_cache_bytes",
        "allears_listening_log_waiting",
    }
)


class Totals:
    """What Prometheus' own writer asks for its families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._families


def text(pages: Sequence[Samples]) -> bytes:
    """Prometheus' text format of several pages as one."""
    return generate_latest(Totals(added(pages)))


def counts(page: Samples) -> Samples:
    """What stays true of a replica that ended: without it, sums would fall."""
    return [family for family in page if family.type in ("counter", "histogram")]


def added(pages: Sequence[Samples]) -> Samples:
    """The families of all pages, each once; of a family's samples those of equal labels are one."""
    families: dict[str, list[Metric]] = {}
    for page in pages:
        for family in page:
            families.setdefault(family.name, []).append(family)
    return [_one(same) for same in families.values()]


def _one(same: list[Metric]) -> Metric:
    first = same[0]
    whole = Metric(first.name, first.documentation, first.type)
    found: dict[tuple[str, frozenset[tuple[str, str]]], list[Sample]] = {}
    for family in same:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            found.setdefault(key, []).append(sample)
    for samples in found.values():
        values = [sample.value for sample in samples]
        total = _total(first, samples[0].name, values)
        whole.add_sample(samples[0].name, samples[0].labels, total)
    return whole


def _total(family: Metric, name: str, values: Sequence[float]) -> float:
    """One value of a sample's values; NaN only if all are."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    if name.endswith("_created") or name == "allears_listening_log_up":
        return min(known)
    if family.type == "gauge" and family.name not in _ADDED_GAUGES:
        return max(known)
    return math.fsum(known)
