from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support import rabbitmq as rabbitmq_module
from tests.support.rabbitmq import RabbitMQAbsentError, RabbitMQUnusableError, find_rabbitmq

pytest_plugins = ["pytester"]

NEEDS_RABBITMQ = """
def test_needs_it(rabbitmq):
    assert rabbitmq.url
"""


@pytest.fixture
def dead_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"amqp://guest:guest@127.0.0.1:{probe.getsockname()[1]}//"


@pytest.fixture
def strange_url() -> Iterator[str]:
    """An address where somebody listens who is no RabbitMQ."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}//"


def test_a_promised_rabbitmq_that_is_dead_is_an_error(monkeypatch: pytest.MonkeyPatch, dead_url: str) -> None:
    """Whoever sets the variable wants the tests to run, not to be skipped."""
    monkeypatch.setenv("CANCELTOKEN_RABBITMQ_URL", dead_url)
    with pytest.raises(RabbitMQUnusableError, match="ConnectionRefused"):
        find_rabbitmq()


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch, dead_url: str) -> None:
    """The message of an error holds no secret of the address."""
    monkeypatch.setenv("CANCELTOKEN_RABBITMQ_URL", dead_url.replace("guest@", "secret@"))
    with pytest.raises(RabbitMQUnusableError) as failure:
        find_rabbitmq()
    assert "secret" not in str(failure.value)


def test_an_unpromised_rabbitmq_that_is_not_there_is_absent(
    monkeypatch: pytest.MonkeyPatch, dead_url: str
) -> None:
    """Without the variable, no RabbitMQ on this machine is a plain fact with a remedy."""
    monkeypatch.delenv("CANCELTOKEN_RABBITMQ_URL", raising=False)
    monkeypatch.setattr(rabbitmq_module, "DEFAULT_URL", dead_url)
    with pytest.raises(RabbitMQAbsentError, match="CANCELTOKEN_RABBITMQ_URL"):
        find_rabbitmq()


def test_something_else_on_the_port_is_no_rabbitmq(monkeypatch: pytest.MonkeyPatch, strange_url: str) -> None:
    """A listener that does not speak the protocol is found out within seconds."""
    monkeypatch.setenv("CANCELTOKEN_RABBITMQ_URL", strange_url)
    with pytest.raises(RabbitMQUnusableError, match="does not speak AMQP"):
        find_rabbitmq()


@pytest.fixture
def elsewhere(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, dead_url: str) -> pytest.Pytester:
    """A test run where no RabbitMQ is, with one test that needs it."""
    monkeypatch.delenv("CANCELTOKEN_RABBITMQ_URL", raising=False)
    monkeypatch.delenv("CANCELTOKEN_REQUIRE_RABBITMQ", raising=False)
    monkeypatch.setattr(rabbitmq_module, "DEFAULT_URL", dead_url)
    pytester.makepyfile(NEEDS_RABBITMQ)
    return pytester


PLUGIN = ("-p", "tests.support.services", "-p", "no:celery", "-rs")


def test_without_it_its_tests_are_skipped_with_the_reason(elsewhere: pytest.Pytester) -> None:
    """A machine without RabbitMQ passes, and tells in the header and the summary what it has left out."""
    result = elsewhere.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["rabbitmq: its tests will be SKIPPED: none at *", "SKIPPED*RabbitMQ: none at *"]
    )


def test_where_it_is_required_its_absence_is_a_failure(elsewhere: pytest.Pytester) -> None:
    """With --require-rabbitmq nothing is skipped in silence."""
    result = elsewhere.runpytest_inprocess(*PLUGIN, "--require-rabbitmq")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*RabbitMQ is required, but there is none at *"])


def test_it_can_be_required_by_the_environment(
    elsewhere: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CANCELTOKEN_REQUIRE_RABBITMQ=1 is the option for scripts."""
    monkeypatch.setenv("CANCELTOKEN_REQUIRE_RABBITMQ", "1")
    elsewhere.runpytest_inprocess(*PLUGIN).assert_outcomes(errors=1)
