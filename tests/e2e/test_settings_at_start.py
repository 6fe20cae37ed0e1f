"""A worker with settings that cannot work does not start, and names the setting."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.workers import WorkerFactory


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        ({"canceltoken_chek_interval": 1}, ["canceltoken_chek_interval", "canceltoken_check_interval"]),
        ({"canceltoken_check_interval": "often"}, ["canceltoken_check_interval", "seconds"]),
        ({"canceltoken_redis_url": "http://example.org"}, ["canceltoken_redis_url", "redis://"]),
        ({"canceltoken_redis_url": "redis://localhost:port/0"}, ["canceltoken_redis_url"]),
        ({"canceltoken_lease_duration": 1}, ["canceltoken_lease_duration", "heartbeat"]),
    ],
)
def test_worker_refuses(
    worker_factory: WorkerFactory, configuration: dict[str, Any], words: list[str]
) -> None:
    """The worker ends with an error that names the setting and the remedy."""
    worker = worker_factory(pool="solo", configuration=configuration, wait=False)
    assert worker.wait() != 0
    last_words = worker.logs()
    assert all(word in last_words for word in words)


def test_store_that_does_not_answer_yet(worker_factory: WorkerFactory) -> None:
    """A store that is not up yet is no reason not to start."""
    worker = worker_factory(pool="solo", configuration={"canceltoken_redis_url": "redis://127.0.0.1:1/0"})
    result = worker.client.tasks["big_return"].delay(2)
    assert result.get(timeout=10) == "xx"
    assert worker.stop() == 0
