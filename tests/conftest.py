from __future__ import annotations

import os
from collections.abc import Generator

import pytest

# ---- skips: where everything a test may use is installed, a skip hides a failure


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure where ALLEARS_REQUIRE_SYSTEM is 1."""
    if os.environ.get("ALLEARS_REQUIRE_SYSTEM") == "1" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, though ALLEARS_REQUIRE_SYSTEM is 1: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("gpu") is None and not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report
