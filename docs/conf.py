"""How the documentation is built: `sphinx-build -W -b html docs docs/_build/html`. Nothing is fetched."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sphinx.pycode import ModuleAnalyzer

import celery_canceltoken

project = "celery_canceltoken"
author = "celery_canceltoken contributors"
copyright = author
version = release = celery_canceltoken.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# The docstrings say `name` for code, as the rest of the project does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"celery_canceltoken {release}"
html_copy_source = False
html_show_copyright = False


# Napoleon takes what stands before a colon in the docstring of an attribute for its type. Ours are sentences.
_docstrings_of_attributes = {}


def setup(app):
    app.connect("autodoc-process-docstring", _fetch_from_home, priority=300)
    app.connect("autodoc-process-docstring", _put_aside, priority=400)
    app.connect("autodoc-process-docstring", _put_back, priority=600)


def _fetch_from_home(_app, what, name, *rest):
    """Take the docstring of a value from the module that it is loaded from, instead of its class's."""
    short = name.rpartition(".")[2]
    if what == "data" and short in celery_canceltoken._HOMES:
        home = f"celery_canceltoken.{celery_canceltoken._HOMES[short]}"
        rest[-1][:] = ModuleAnalyzer.for_module(home).find_attr_docs()["", short]


def _put_aside(_app, what, name, *rest):
    if what in {"attribute", "property"}:
        _docstrings_of_attributes[name] = list(rest[-1])


def _put_back(_app, _what, name, *rest):
    if name in _docstrings_of_attributes:
        rest[-1][:] = _docstrings_of_attributes.pop(name)
