from __future__ import annotations

from importlib import metadata

import pytest

from tests.support.workers import ROOT


def test_everything_in_the_package_is_installed() -> None:
    """Scripts and type information travel with the modules, and nothing but the package is installed."""
    try:
        installed = metadata.files("celery_canceltoken") or []
    except metadata.PackageNotFoundError:
        pytest.skip("celery_canceltoken is not installed here; tox installs it")
    code = {str(file) for file in installed if not file.parts[0].endswith(".dist-info")}
    package = ROOT / "celery_canceltoken"
    expected = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and path.suffix in {".py", ".lua", ".typed"}
    }
    assert {name for name in code if "__pycache__" not in name} == expected
