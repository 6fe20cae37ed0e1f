"""What type checkers see of a decorated task, a token and a handle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.workers import ROOT

GOOD = """
from typing import Optional
from celery import Celery
from celery_canceltoken import CancellableTask, CancellationToken, State, current_token, get_record, revoke

app = Celery("shop")

@app.task(base=CancellableTask)
def required(rows: int, token: CancellationToken) -> int:
    told: bool = token.cancel_requested
    return rows if told else 0

@app.task(base=CancellableTask)
def defaulted(rows: int, token: CancellationToken = CancellationToken.none) -> int:
    return rows

required(3)
required.delay(3)
required.apply_async((3,), countdown=1)
required.s(3)
defaulted(3)
defaulted.delay(3, CancellationToken.none)

handle = revoke(required.delay(3), reason="enough", from_state=[State.PROCESSING])
previous: Optional[State] = handle.previous
late: bool = handle.wait(1).came_too_late
record = get_record("id")
reason: Optional[str] = record.reason if record else None
"""

BAD = {
    "a token is read-only": "current_token().cancel_requested = True",
    "a handle is what it is": "word: str = revoke('id').applied",
    "a reason is a string": "revoke('id', reason=3)",
    "a callback takes nothing": "current_token().on_cancel(lambda word: word)",
}


@pytest.fixture(params=["mypy", "pyright"])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    """Checks a program, and returns what there is to complain about."""
    checker = request.param
    pytest.importorskip(checker, reason=f"{checker} is among the extra `lint`")

    def run(program: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(program)
        if checker == "mypy":
            command = ["mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(file)]
            environment = {"MYPYPATH": str(ROOT)}
        else:
            configuration = {"include": ["program.py"], "extraPaths": [str(ROOT)]}
            (tmp_path / "pyrightconfig.json").write_text(json.dumps(configuration))
            command = ["pyright", "--pythonpath", sys.executable, "--project", str(tmp_path)]
            environment = {}
        import os

        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            timeout=110,
            check=False,
        )
        return "" if done.returncode == 0 else done.stdout + done.stderr

    return run


@pytest.mark.timeout(120)
def test_what_works_is_accepted(check: object) -> None:
    """A task may be called without its token, required or not, and the answers have their types."""
    assert check(GOOD) == ""  # type: ignore[operator]


@pytest.mark.timeout(120)
def test_what_does_not_is_refused(check: object) -> None:
    """Each misuse is found, on its own line."""
    program = GOOD + "\n".join(BAD.values()) + "\n"
    complaints = check(program)  # type: ignore[operator]
    first = GOOD.count("\n") + 1
    for number, what in enumerate(BAD, first):
        assert f"program.py:{number}:" in complaints, what
