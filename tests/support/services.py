"""A pytest plugin: the servers that tests and documented examples use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.rabbitmq import RabbitMQ, RabbitMQAbsentError, RabbitMQUnusableError, find_rabbitmq
from tests.support.servers import EmbeddedServer, ServerNotFoundError, find_server

__all__ = ["private_valkey", "rabbitmq", "valkey"]

REQUIRED = "CANCELTOKEN_REQUIRE_RABBITMQ"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("celery_canceltoken").addoption(
        "--require-rabbitmq",
        action="store_true",
        default=os.environ.get(REQUIRED) == "1",
        help=f"where there is no RabbitMQ, fail its tests instead of skipping them (as {REQUIRED}=1 does)",
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = []
    try:
        lines.append("valkey: {} (from {})".format(*find_server()))
    except ServerNotFoundError as error:
        lines.append(f"valkey: nearly everything will FAIL: {error}")
    try:
        lines.append(f"rabbitmq: {find_rabbitmq()}")
    except RabbitMQUnusableError as error:
        lines.append(f"rabbitmq: its tests will FAIL: {error}")
    except RabbitMQAbsentError as error:
        fate = "FAIL" if config.getoption("require_rabbitmq") else "be SKIPPED"
        lines.append(f"rabbitmq: its tests will {fate}: {error}")
    return lines


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedServer]:
    """The server that the tests of this process share: use names of your own, and leave it running."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def private_valkey() -> Iterator[EmbeddedServer]:
    """A server for one test, to be paused, crashed and restarted."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq(request: pytest.FixtureRequest) -> RabbitMQ:
    """A RabbitMQ that is not ours: use `unique_name`, and delete what you have declared."""
    try:
        return find_rabbitmq()
    except RabbitMQUnusableError as error:
        pytest.fail(str(error))
    except RabbitMQAbsentError as error:
        if request.config.getoption("require_rabbitmq"):
            pytest.fail(f"RabbitMQ is required, but there is {error}")
        pytest.skip(f"RabbitMQ: {error}")
