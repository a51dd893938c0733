"""Runs pytest on files and writes what came out of every check: `python -m ross3d.tests.suites.outcomes OUT FILES`."""

import json
import sys
from pathlib import Path

import pytest


class Outcomes:
    """A pytest plugin that keeps every report of every check, those of its subtests included."""

    def __init__(self):
        self.reports: dict[str, list[tuple[bool, str, str]]] = {}

    def pytest_runtest_logreport(self, report):
        check = report.nodeid.split("::", 1)[1]
        is_subtest = type(report) is not pytest.TestReport
        if report.when == "call" or report.outcome != "passed":
            self.reports.setdefault(check, []).append((is_subtest, report.outcome, get_reason(report)))


def get_reason(report) -> str:
    """Why a check failed or was skipped, in one line."""
    if report.outcome == "passed" or report.longrepr is None:
        return ""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).strip().splitlines()[0]


def judge(reports: list[tuple[bool, str, str]]) -> tuple[str, str]:
    """What came out of one check, from its reports (of a subtest or not, outcome, reason).

    It failed when any part did, and was skipped when it says so itself or all its subtests do.
    """
    for _, outcome, reason in reports:
        if outcome == "failed":
            return "failed", reason
    own = [(outcome, reason) for is_subtest, outcome, reason in reports if not is_subtest]
    parts = [(outcome, reason) for is_subtest, outcome, reason in reports if is_subtest]
    for found in (own, parts):
        if found and all(outcome == "skipped" for outcome, _ in found):
            return found[0]
    return "passed", ""


def main() -> None:
    out, *files = sys.argv[1:]
    collected = Outcomes()
    # The settings of this checkout are for its own tests: marks of the library are unknown to it.
    settings = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=", "-W", "ignore"]
    pytest.main([*settings, "--import-mode=importlib", "--tb=short", *files], plugins=[collected])
    judged = {check: judge(reports) for check, reports in collected.reports.items()}
    Path(out).write_text(json.dumps(judged, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
