"""A pytest plugin: pytest-celery without docker.

Only its container-level fixtures are overridden. What stands on them is pytest-celery's own: the nodes, the
clusters, `celery_setup` and the app. Loaded after pytest-celery, these definitions win.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from pytest_celery import CeleryTestBroker

from tests.support.nodes import (
    GENERATED_APP,
    NodeOptions,
    NodeWorker,
    RabbitMQNode,
    RedisNode,
    WorkerNode,
)
from tests.support.rabbitmq import RabbitMQ
from tests.support.reporting import show_log_on_failure
from tests.support.workers import private_names, unique_name

NodeFactory = Callable[..., NodeWorker]


@pytest.fixture
def node_options() -> NodeOptions:
    """How the workers of `celery_setup` are started. Override it to have others."""
    return NodeOptions()


@pytest.fixture
def node_queue() -> str:
    """The queue of this test's nodes; the broker may be shared with others."""
    return unique_name("node")


@pytest.fixture(params=["celery_redis_broker", "celery_rabbitmq_broker"])
def celery_broker(request: pytest.FixtureRequest) -> Iterator[CeleryTestBroker]:
    """Each broker in turn. pytest-celery's own order is a set's, and differs between xdist's processes."""
    broker: CeleryTestBroker = request.getfixturevalue(request.param)
    yield broker
    broker.teardown()


@pytest.fixture
def default_redis_broker() -> Iterator[RedisNode]:
    """The container of a Redis broker."""
    node = RedisNode("redis-broker")
    yield node
    node.teardown()


@pytest.fixture
def default_redis_backend() -> Iterator[RedisNode]:
    """The container of a Redis result backend."""
    node = RedisNode("redis-backend")
    yield node
    node.teardown()


@pytest.fixture
def default_rabbitmq_broker(rabbitmq: RabbitMQ, node_queue: str) -> Iterator[RabbitMQNode]:
    """The container of a RabbitMQ broker: one that runs already, and that is left as it was found."""
    yield RabbitMQNode(rabbitmq)
    rabbitmq.delete(node_queue)


@pytest.fixture
def celery_setup_app(
    celery_setup_app: Celery, node_options: NodeOptions, node_queue: str
) -> Iterator[Celery]:
    """The app of the test, kept apart from everybody else's. Its changes reach the generated workers."""
    celery_setup_app.conf.update(private_names(node_queue), **node_options.configuration)
    yield celery_setup_app
    celery_setup_app.close()


@pytest.fixture
def node_factory(
    request: pytest.FixtureRequest,
    node_options: NodeOptions,
    node_queue: str,
    celery_setup_app: Celery,
    default_worker_command: list[str],
    default_worker_env: dict[str, str],
    default_worker_initial_content: Mapping[str, bytes],
) -> Iterator[NodeFactory]:
    """Starts worker nodes: `node_options`, with the changes that are given by name."""
    nodes: list[NodeWorker] = []

    def start(**changes: Any) -> NodeWorker:
        options = replace(node_options, **changes)
        container = WorkerNode(
            _command(default_worker_command, options, node_queue),
            queue=node_queue,
            environment={**default_worker_env, **_environment(default_worker_env, options, node_queue)},
            content=default_worker_initial_content,
        )
        node = NodeWorker(container, celery_setup_app)
        nodes.append(node)
        show_log_on_failure(request.node, container.name, container.logs)
        container.ready()
        return node

    yield start
    for node in nodes:
        node.teardown()


@pytest.fixture
def default_worker_container(node_factory: NodeFactory) -> WorkerNode:
    """The container of the one worker that `celery_setup` has unless told otherwise."""
    container: WorkerNode = node_factory().container
    return container


@pytest.fixture
def default_worker_cls() -> type[NodeWorker]:
    """The node of that worker."""
    return NodeWorker


def _command(command: list[str], options: NodeOptions, queue: str) -> list[str]:
    chosen = list(command)
    chosen[chosen.index("-A") + 1] = options.app
    # Celery takes the last of two equal options.
    chosen += ["-Q", queue, "--pool", options.pool, "--concurrency", str(options.concurrency)]
    return [*chosen, *options.arguments]


def _environment(given: Mapping[str, str], options: NodeOptions, queue: str) -> dict[str, str]:
    if options.app == GENERATED_APP:
        return dict(options.environment)
    # pytest-celery finds out by tasks of its own who is ready.
    tasks = {"imports": ["pytest_celery.vendors.worker.tasks"]}
    return {
        "CT_BROKER_URL": given["CELERY_BROKER_URL"],
        "CT_RESULT_BACKEND": given["CELERY_RESULT_BACKEND"],
        "CT_CONF": json.dumps({**tasks, **private_names(queue), **options.configuration}),
        **options.environment,
    }
