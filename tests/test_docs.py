"""The documentation says what is so: its tables agree with the code, and its workers are real ones.

Its examples are run by sybil, see `conftest.py` at the top. `Page` gives them what their reader has at hand.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
from celery import Celery

import celery_canceltoken
from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending, decide
from celery_canceltoken.settings import SETTING_PREFIX, Settings
from tests.support.workers import ROOT, WorkerProcess

DOCS = ROOT / "docs"
PACKAGE = ROOT / "celery_canceltoken"
PAGES = sorted(DOCS.rglob("*.md"))

FILE = re.compile(
    r"^```\{code-block\} python\n:caption: (?P<name>\w+\.py)\b.*\n\n?(?P<text>(?s:.)*?)^```$", re.M
)
SERVER = re.compile(r"redis://localhost:6379/\d+")
PACKAGE_FILE = re.compile(r"`((?:control|store|task|worker)/[\w/.]+\.(?:py|lua)|[a-z_]+\.py)`")
FILES_OF_READERS = {"shop.py", "test_shop.py", "web.py"}
QUICK = ("--concurrency", "2", "--without-gossip", "--without-mingle")


class Page:
    """A reader of one page: saves the files that it shows, starts the worker, and types the examples."""

    def __init__(self, name: str, server_url: str) -> None:
        self._files = list(FILE.finditer((DOCS / name).read_text(encoding="utf-8")))
        self._url = server_url
        self._directory: Path | None = None
        self.worker: WorkerProcess | None = None

    def save(self, blocks: int) -> None:
        """Put the first code blocks that have a file's name as caption into files, and onto the path."""
        self.forget()
        self._directory = Path(tempfile.mkdtemp(prefix="canceltoken-docs-"))
        sys.path.insert(0, str(self._directory))
        for block in self._files[:blocks]:
            with (self._directory / block["name"]).open("a", encoding="utf-8") as file:
                file.write(SERVER.sub(self._url, block["text"]) + "\n\n")

    def start_worker(self, app: str, *, purge: bool = True) -> WorkerProcess:
        """Start `celery -A app worker --loglevel INFO` on the saved files, or start it again."""
        self.stop_worker()
        assert self._directory is not None
        if purge:
            self._purge(app)
        command = ["celery", "-A", app, "worker", "--loglevel", "INFO", *QUICK]
        self.worker = WorkerProcess(command, environment={}, python_path=[self._directory])
        self.worker.start()
        self.worker.wait_until_ready()
        return self.worker

    def stop_worker(self) -> None:
        """Stop the worker, if there is one, and be done with its log."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def forget(self) -> None:
        """Undo `save`."""
        if self._directory is not None:
            sys.path.remove(str(self._directory))
            for file in self._directory.glob("*.py"):
                sys.modules.pop(file.stem, None)
            shutil.rmtree(self._directory)
            self._directory = None

    def close(self) -> None:
        """Leave nothing behind."""
        self.stop_worker()
        self.forget()

    @staticmethod
    def _purge(app: str) -> None:
        # The pages of one process share a server, and all of them use Celery's default queue.
        __import__(app)
        client: Celery = sys.modules[app].app
        client.control.purge()


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def tables(page: str) -> list[list[list[str]]]:
    """The rows of the Markdown tables of a page, each a list of cells; without headings."""
    found = []
    for table in re.findall(r"(?:^\|.*\|$\n?)+", text_of(page), re.M):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in table.strip().splitlines()
        ]
        found.append([rows[0], *rows[2:]])
    return found


def table_headed(page: str, heading: str) -> list[list[str]]:
    (table,) = [rows for rows in tables(page) if rows[0][0] == heading]
    return table[1:]


def code_of(cell: str) -> str:
    """The first thing in a cell that is set as code, `nothing` where there is none."""
    found = re.search(r"`([^`]+)`", cell)
    return found[1] if found else "nothing"


def test_every_setting_is_documented_with_its_default() -> None:
    """The table of the settings is the dataclass, no more and no less."""
    documented = {code_of(row[0]): code_of(row[1]) for row in table_headed("settings.md", "setting")}
    actual = {
        SETTING_PREFIX + field.name: json.dumps(field.default)
        if isinstance(field.default, str)
        else repr(field.default)
        for field in fields(Settings)
    }
    assert documented == actual


CAUSES = {"none": None, **{cause.value: cause for cause in Cause}}
OUTCOME_COLUMNS = [
    (Ending.CANCELLED, True),
    (Ending.RETURNED, True),
    (Ending.RETURNED, False),
    (Ending.RAISED, True),
    (Ending.RAISED, False),
]


def test_the_outcome_table_is_the_outcome_function() -> None:
    """Each cell says the state that `decide` gives, and says so where the answer is "too late"."""
    rows = table_headed("travel.md", "cause")
    assert {cell_name(row[0]) for row in rows} == set(CAUSES)
    for row in rows:
        cause = CAUSES[cell_name(row[0])]
        for (ending, observed), cell in zip(OUTCOME_COLUMNS, row[1:], strict=True):
            verdict = decide(ending, cause, observed)
            assert code_of(cell) == (verdict.state.value if verdict.state else "nothing"), (cause, ending)
            if cause is Cause.REVOKED:
                assert ("too late" in cell) == (verdict.answer == "too-late"), (cause, ending)
            assert ("completed" in cell) == verdict.completed, (cause, ending)


def cell_name(cell: str) -> str:
    return cell if cell == "none" else code_of(cell)


REQUESTED = (Cause.REVOKED, Cause.DELETED, Cause.REQUEUED)

CELERY_ENDINGS = [
    ("raised `Retry`", Ending.RETRIED, (True, False)),
    ("was replaced", Ending.REPLACED, (True, False)),
    ("raised `Ignore`, observed", Ending.IGNORED, (True,)),
    ("raised `Ignore`, not observed", Ending.IGNORED, (False,)),
    ("raised `Reject`, observed", Ending.REJECTED, (True,)),
    ("raised `Reject`, not observed", Ending.REJECTED, (False,)),
    ("raised `Reject` with requeue", Ending.REJECTED_BACK, (True, False)),
    ("ran into the hard time limit", Ending.TIME_LIMIT, (True, False)),
    ("was killed by `terminate=True`", Ending.TERMINATED, (True, False)),
    ("was lost with its child process", Ending.CHILD_LOST, (True, False)),
    ("was lost, and Celery gives", Ending.CHILD_LOST_BACK, (True, False)),
    ("was killed by the shutdown", Ending.EVICTED, (False,)),
]


def test_the_table_of_celerys_endings_is_the_outcome_function() -> None:
    """Each row says what `decide` gives with no cause and with each kind of request."""
    rows = table_headed("travel.md", "the body or its process")
    assert {ending for _, ending, _ in CELERY_ENDINGS} == set(Ending) - dict(OUTCOME_COLUMNS).keys()
    assert len(rows) == len(CELERY_ENDINGS)
    for row, (beginning, ending, observed) in zip(rows, CELERY_ENDINGS, strict=True):
        assert row[0].startswith(beginning)
        # Nobody else kills in that way.
        nobody = Cause.SHUTDOWN if ending is Ending.EVICTED else None
        for cell, cause in zip(row[1:], (nobody, *REQUESTED), strict=True):
            for seen in observed:
                state = decide(ending, cause, seen).state
                assert state is not None
                assert code_of(cell) == state.value, (row[0], cause)


ENDINGS_IN_WORDS = {
    "had not started": [],
    "had ended": [],
    "raised `TaskCancelled`": [(Ending.CANCELLED, True)],
    "raised `TaskCancelled`, or another": [
        (Ending.CANCELLED, True),
        (Ending.RAISED, True),
        (Ending.RAISED, False),
    ],
    "returned, having observed": [(Ending.RETURNED, True)],
    "returned, not having observed": [(Ending.RETURNED, False)],
    "raised another exception": [(Ending.RAISED, True), (Ending.RAISED, False)],
    "asked for a retry": [(Ending.RETRIED, True), (Ending.RETRIED, False)],
    "was replaced by": [(Ending.REPLACED, True), (Ending.REPLACED, False)],
}


@pytest.mark.parametrize(
    ("page", "heading"),
    [("guarantees.md", "its body"), ("../README.md", "it was told by a request, and its body")],
)
def test_what_delete_and_requeue_come_to_is_the_outcome_function(page: str, heading: str) -> None:
    """The short tables of both say what `decide` gives."""
    for row in table_headed(page, heading):
        words = max((words for words in ENDINGS_IN_WORDS if row[0].startswith(words)), key=len)
        for cell, cause in zip(row[1:], (Cause.DELETED, Cause.REQUEUED), strict=True):
            for ending, observed in ENDINGS_IN_WORDS[words]:
                verdict = decide(ending, cause, observed)
                assert verdict.state is not None
                assert code_of(cell) == verdict.state.value, (row[0], cause)
                assert ("completed" in cell) == verdict.completed, (row[0], cause)


ENDINGS_AT_SHUTDOWN = {
    "raised `TaskCancelled`": [(Ending.CANCELLED, True, False)],
    "raised `TaskCancelled`, or returned, having observed": [
        (Ending.CANCELLED, True, False),
        (Ending.RETURNED, True, False),
    ],
    "returned, having observed": [(Ending.RETURNED, True, False)],
    "returned, not having observed": [(Ending.RETURNED, False, False)],
    "returned, after `token.disregard()`": [(Ending.RETURNED, True, True)],
    "raised another exception": [(Ending.RAISED, True, False), (Ending.RAISED, False, False)],
    "asked for a retry": [(Ending.RETRIED, True, False), (Ending.RETRIED, False, False)],
    "was killed, not having looked": [(Ending.EVICTED, False, False)],
}


@pytest.mark.parametrize(
    ("page", "heading", "policies"),
    [
        ("shutdown.md", "its body", ("requeue", "fail")),
        ("../README.md", "its worker stops, and its body", ("requeue",)),
    ],
)
def test_what_a_shutdown_comes_to_is_the_outcome_function(
    page: str, heading: str, policies: tuple[str, ...]
) -> None:
    """The tables of both say what `decide` gives with each policy."""
    rows = table_headed(page, heading)
    assert {row[0] for row in rows} <= {"had not begun", *ENDINGS_AT_SHUTDOWN}
    for row in rows:
        for ending, observed, disregarded in ENDINGS_AT_SHUTDOWN.get(row[0], []):
            for cell, policy in zip(row[-len(policies) :], policies, strict=True):
                state = decide(ending, Cause.SHUTDOWN, observed, disregarded, policy).state
                assert state is not None
                assert code_of(cell) == state.value, (row[0], policy)


def test_every_public_name_has_its_place_in_the_reference() -> None:
    """What the package exports is documented, and what is documented is exported."""
    named = re.findall(r"\.\. auto\w+:: celery_canceltoken\.(\w+)(?:\(\))?$", text_of("reference.md"), re.M)
    assert sorted(named) == sorted(celery_canceltoken.__all__)


def test_every_script_has_its_place_in_the_reference() -> None:
    """The heads of all Lua scripts are shown."""
    shown = re.findall(r"literalinclude\} \S+/(\w+\.lua)$", text_of("reference.md"), re.M)
    assert sorted(shown) == sorted(file.name for file in (PACKAGE / "store/lua").glob("*.lua"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    """A file of the package that moved takes its mentions along."""
    named = set(PACKAGE_FILE.findall(page.read_text(encoding="utf-8"))) - FILES_OF_READERS
    missing = {name for name in named if not (PACKAGE / name).exists() and not list(PACKAGE.rglob(name))}
    assert not missing
