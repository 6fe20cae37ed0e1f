from __future__ import annotations

from importlib import metadata

import pytest

from tests.support.workers import ROOT


def installed_files() -> set[str]:
    """What pip has installed, without what it notes about that; nothing for a link to this checkout."""
    records = [found.read_text("RECORD") for found in metadata.distributions(name="celery_canceltoken")]
    names = {line.split(",")[0] for record in records if record for line in record.splitlines()}
    return {name for name in names if ".dist-info/" not in name and "__pycache__" not in name}


def test_everything_in_the_package_is_installed() -> None:
    """Scripts and type information travel with the modules, and nothing but the package is installed."""
    installed = installed_files()
    if "celery_canceltoken/__init__.py" not in installed:
        pytest.skip("celery_canceltoken is not installed here; tox installs it")
    assert installed == {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "celery_canceltoken").rglob("*")
        if path.suffix in {".lua", ".py", ".typed"}
    }
