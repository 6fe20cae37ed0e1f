"""The table that comes out."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from celery_canceltoken import __version__

__all__ = ["Row", "as_markdown", "show"]

LEGEND = """\
- *token check*: `token.cancel_requested` in a loop, less the empty loop.
- *raw wake-up*: from just before an XADD in one process to the return of XREAD in another.
- *revoke() to observed*: from just before the call in one process to the return of `token.wait()` in the
  worker; every round has a raw one beside it. Several processes have to wake one after the other, so the
  figure grows on a machine without a free core.
- *raw signal*: from just before `kill()` to the return of `recv()` in a thread that a signal handler woke.
- *SIGTERM to observed*: from just before the signal to the body's knowing, one worker for each figure. A body
  that is *waiting* is in `token.wait()`; one that is *computing* asks `token.cancel_requested` in a loop.
- *commands*: what reaches the server over the worker's connections, as MONITOR shows it. *Its worker's* are
  those that no body waits for; *by difference* counts everything, less the same for a plain task.
- *connections*: the open ones of a worker that has used all four bodies and has stopped a task.
"""


@dataclass(frozen=True)
class Row:
    """One figure, beside the limit that the project has set itself."""

    what: str
    measured: str
    limit: str = ""
    within: bool = True

    @property
    def verdict(self) -> str:
        """A word for it; nothing where there is no limit."""
        if not self.limit:
            return ""
        return "ok" if self.within else "over"


def show(rows: Sequence[Row], server: str) -> None:
    """Print the table."""
    table = Table(
        "",
        "measured (times: medians)",
        "limit",
        "",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        caption=_facts(server),
    )
    for row in rows:
        table.add_row(row.what, row.measured, row.limit, row.verdict, style="" if row.within else "red")
    Console().print(table)


def as_markdown(rows: Sequence[Row], server: str) -> str:
    """The same for a file."""
    lines = ["| | measured (times: medians) | limit | |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.measured} | {row.limit} | {row.verdict} |" for row in rows]
    head = f"# Figures\n\nAs measured by `python -m benchmarks`: {_facts(server)}.\n\n"
    return head + "\n".join(lines) + f"\n\n{LEGEND}"


def _facts(server: str) -> str:
    today = datetime.now(timezone.utc).date().isoformat()
    packages = f"celery_canceltoken {__version__}, celery {version('celery')}, redis-py {version('redis')}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    return f"{today}; {packages}, {python}, {server}; {machine}"
