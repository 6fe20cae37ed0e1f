from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import celery_canceltoken

PACKAGE = Path(celery_canceltoken.__file__).parent
CORE = [
    "cancelled",
    "cause",
    "current",
    "errors",
    "outcome",
    "record",
    "settings",
    "states",
    "token",
]
IMPORT_OF_THE_CORE = """
import sys
from celery_canceltoken import CancellationSource, CancellationToken, TaskCancelled

print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_the_token_comes_without_celery_and_redis() -> None:
    """Code that only takes a token pays for neither Celery nor Redis, and needs neither."""
    imported = subprocess.run(
        [sys.executable, "-c", IMPORT_OF_THE_CORE],
        check=True,
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    assert not {"amqp", "billiard", "celery", "kombu", "redis", "vine"} & set(imported.stdout.split())


@pytest.mark.parametrize("module", CORE)
def test_the_core_needs_the_standard_library_alone(module: str) -> None:
    """No module of the core imports a package that somebody has to install."""
    allowed = sys.stdlib_module_names | {"celery_canceltoken"}
    assert imported_packages(PACKAGE / f"{module}.py") <= allowed
