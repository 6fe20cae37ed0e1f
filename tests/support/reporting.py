"""A pytest plugin: a failed test shows the logs of the processes that it used."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

__all__ = ["show_log_on_failure"]

LOGS = pytest.StashKey[dict[str, Callable[[], str]]]()
SHOWN_CHARACTERS = 8000


def show_log_on_failure(node: pytest.Item, title: str, read: Callable[[], str]) -> None:
    """Let the report of a failure of that test end with the tail of what `read` returns then."""
    node.stash.setdefault(LOGS, {})[title] = read


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for title, read in item.stash.get(LOGS, {}).items():
            report.sections.append((f"the end of the log of {title}", read()[-SHOWN_CHARACTERS:]))
    return report
