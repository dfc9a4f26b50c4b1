"""The metrics of several replicas as those of one server, so that rules and dashboards fit both.

Counters and histograms are added up, and so are gauges of what each replica has for itself. Of all
other gauges the largest value counts, which is the worst: an alert must see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class MergedFamilies:
    """Families in the form that Prometheus' own writer takes."""

    families: Samples

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self.families


def text(pages: Sequence[Samples]) -> bytes:
    """Prometheus' text format of several pages as one."""
    return generate_latest(MergedFamilies(added(pages)))


def counts(page: Samples) -> Samples:
    """The counters and histograms, kept of a replica that ended: without them sums would fall."""
    return [family for family in page if family.type in ("counter", "histogram")]


def added(pages: Sequence[Samples]) -> Samples:
    """The families of all pages, each once, with one sample for equal labels."""
    families: dict[str, list[Metric]] = {}
    for page in pages:
        for family in page:
            families.setdefault(family.name, []).append(family)
    return [_merged(same) for same in families.values()]


def _merged(same: list[Metric]) -> Metric:
    """One family of several with the same name."""
    first = same[0]
    merged = Metric(first.name, first.documentation, first.type)
    by_labels: dict[tuple[str, frozenset[tuple[str, str]]], list[Sample]] = {}
    for family in same:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            by_labels.setdefault(key, []).append(sample)
    for samples in by_labels.values():
        values = [sample.value for sample in samples]
        total = _total(first, samples[0].name, values)
        merged.add_sample(samples[0].name, samples[0].labels, total)
    return merged


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
