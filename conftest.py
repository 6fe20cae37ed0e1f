"""What the tests and the documented examples share."""

from __future__ import annotations

import re

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers import myst, rest
from sybil.region import Lexeme

pytest_plugins = [
    "tests.support.reporting",
    "tests.support.services",
    "tests.support.node_fixtures",
]

DOCUMENTED_SERVER = re.compile(r"redis://localhost(:6379)?(/\d+)?(?=[\"'])")


class PrivateServerEvaluator(PythonEvaluator):
    """Runs an example as it is printed, but on a server of our own instead of the reader's."""

    def __call__(self, example: Example) -> None:
        written = example.parsed
        text = DOCUMENTED_SERVER.sub(example.namespace["valkey"].url, written)
        example.parsed = Lexeme(text, written.offset, written.line_offset)
        super().__call__(example)


MARKDOWN = Sybil(
    parsers=[
        myst.CodeBlockParser("python", PrivateServerEvaluator()),
        myst.SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    fixtures=["valkey"],
)
RESTRUCTURED_TEXT = Sybil(
    parsers=[
        rest.CodeBlockParser("python", PrivateServerEvaluator()),
        rest.DocTestParser(),
        rest.SkipParser(),
    ],
    patterns=["docs/*.rst", "docs/**/*.rst"],
    fixtures=["valkey"],
)

pytest_collect_file = (MARKDOWN + RESTRUCTURED_TEXT).pytest()
