"""`canceltoken_track_enqueued`: what is sent is known before any worker has seen it."""

from __future__ import annotations

import base64
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signals
from kombu.exceptions import EncodeError, OperationalError
from redis import Redis

from celery_canceltoken import (
    CancellableTask,
    State,
    TaskRecord,
    delete,
    get_record,
    list_records,
    requeue,
    reschedule,
    revoke,
    revoke_where,
)
from celery_canceltoken.configuration import client_store, settings_of
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.task import tracking
from tests.e2e.conftest import Job, send
from tests.support.apps.controlled import CONTROLLED_APP
from tests.support.proxy import ToxicProxy
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, ClientFactory, close_client, unique_name

TRACKING: dict[str, Any] = {
    "canceltoken_track_enqueued": True,
    "accept_content": ["json", "pickle", "msgpack", "yaml"],
    "task_queue_max_priority": 9,
}
HOUR = timedelta(hours=1)


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


@pytest.fixture(scope="module")
def worker(valkey: EmbeddedServer) -> Iterator[CeleryWorker]:
    """A worker that tracks what its tasks send. It takes from any queue that it is told of."""
    worker = CeleryWorker(
        CONTROLLED_APP,
        broker_url=valkey.url,
        result_backend=valkey.url,
        queue=unique_name("tracking"),
        pool="threads",
        configuration=TRACKING,
        # Celery refuses pickle to a worker that runs as root.
        environment={"C_FORCE_ROOT": "1"},
    )
    worker.restart()
    yield worker
    worker.close()


@pytest.fixture
def app(worker: CeleryWorker) -> Celery:
    """An app that tracks, in the process that sends."""
    return worker.client


@pytest.fixture
def consume(worker: CeleryWorker, queue: str, valkey: EmbeddedServer) -> Iterator[Callable[[], None]]:
    """Has the worker take from this test's queue, from now on."""
    control = worker.client.control

    def start() -> None:
        assert control.add_consumer(queue, destination=[worker.name], reply=True, timeout=10, limit=1)

    yield start
    control.cancel_consumer(queue, destination=[worker.name], reply=True, timeout=10, limit=1)
    with Redis.from_url(valkey.url) as client:
        client.delete(queue, *client.keys(f"{queue}*"))


def echo(word: str) -> str:
    return word


def record_of(job: Job) -> TaskRecord:
    record = job.record()
    assert record is not None
    return record


def kept(app: Celery, task_id: str) -> KeptMessage:
    store = client_store(app)
    text = store.ask(store.calls.message(task_id))
    assert text is not None
    return KeptMessage.from_json(text)


def on_the_wire(app: Celery, queue: str, priority: int = 0) -> dict[str, Any]:
    """The last message of a queue, as the broker has it."""
    key = queue if not priority else f"{queue}\x06\x16{priority}"
    raw: dict[str, Any] = json.loads(app.backend.client.lindex(key, 0))
    return raw


def body_on_the_wire(message: dict[str, Any]) -> bytes:
    return base64.b64decode(message["body"])


def test_a_task_that_was_sent_is_enqueued(app: Celery, queue: str) -> None:
    """After `apply_async` the record says that the task waits, where, and what it is."""
    job = send(app, "act", "return", queue=queue)
    record = record_of(job)
    assert (record.state, record.name, record.queue) == (State.ENQUEUED, "act", queue)
    assert (record.eta, record.attempt, record.worker, record.takes_token) == (None, 0, None, True)


@pytest.mark.parametrize("how", ["eta", "countdown"])
def test_a_task_with_a_time_is_scheduled(app: Celery, queue: str, how: str) -> None:
    """With an eta or a countdown the task is SCHEDULED, and the record says for when."""
    eta = datetime.now(timezone.utc) + HOUR
    record = record_of(send(app, "act", queue=queue, **{how: eta if how == "eta" else HOUR.total_seconds()}))
    assert record.state is State.SCHEDULED
    assert record.eta is not None
    assert abs(record.eta - eta) < timedelta(minutes=1)
    assert how == "countdown" or record.eta == eta


def test_send_task_is_tracked(app: Celery, queue: str) -> None:
    """A task sent by its name is tracked as well, by the app that sends it, current or not."""
    job = Job(app.send_task("act", ["return"], queue=queue))
    assert record_of(job).state is State.ENQUEUED


def test_send_task_of_an_app_that_does_not_track_is_not(
    app: Celery, client_factory: ClientFactory, queue: str
) -> None:
    """Each app's own setting decides, whichever app is current."""
    other = client_factory()
    app.set_current()
    assert Job(other.send_task("act", ["return"], queue=queue)).record() is None


def test_a_task_known_by_name_only_is_tracked(app: Celery, queue: str) -> None:
    """What is sent to tasks of another program waits too: nobody here can say that it never claims."""
    record = record_of(Job(app.send_task("elsewhere.defined", queue=queue)))
    assert (record.state, record.name, record.takes_token) == (State.ENQUEUED, "elsewhere.defined", None)


def test_a_plain_task_is_not_tracked(app: Celery, queue: str) -> None:
    """A task that is no CancellableTask never claims its id, and would wait in the lists for ever."""
    assert send(app, "add", 1, 2, queue=queue).record() is None


def test_all_members_of_a_workflow_are_tracked(app: Celery, queue: str) -> None:
    """The members of a group and of a chord's header wait at once, the first task of a chain as well."""
    act = app.tasks["act"]
    members = group(act.si("return").set(queue=queue) for _ in range(2)).apply_async().results
    header = chord([act.si("return").set(queue=queue)] * 2)(app.tasks["collect"].s().set(queue=queue)).parent
    first = chain(act.si("return").set(queue=queue), act.si("return").set(queue=queue)).apply_async().parent
    states = [record_of(Job(one)).state for one in [*members, *header.results, first]]
    assert states == [State.ENQUEUED] * 5


def test_what_a_worker_sends_is_tracked(app: Celery, worker: CeleryWorker, queue: str) -> None:
    """The next task of a chain waits, once the worker has sent it."""
    act = app.tasks["act"]
    later = chain(act.si("return"), act.si("return").set(queue=queue)).apply_async()
    Job(later.parent).wait_until_final()
    record = wait_until(Job(later).record, description="the worker has sent it")
    assert (record.state, record.root_id) == (State.ENQUEUED, later.parent.id)


def test_a_retry_is_scheduled_and_runs(app: Celery, worker: CeleryWorker) -> None:
    """A retry, sent by the worker, does not disturb the life that it continues."""
    job = send(app, "retry_until", 2)
    record = job.wait_until_final()
    assert (record.state, record.attempt, job.starts()) == (State.SUCCEEDED, 3, 3)
    assert State.ENQUEUED not in [change.state for change in record.history[1:] if change.attempt == 0]


def test_an_id_sent_again_waits_again(app: Celery, worker: CeleryWorker, queue: str) -> None:
    """The same id, sent again after it has ended, begins a new life as a task that waits."""
    job = send(app, "act")
    job.wait_until_final()
    again = send(app, "act", task_id=job.id, queue=queue)
    record = record_of(again)
    assert (record.state, record.attempt, record.started_at) == (State.ENQUEUED, 0, None)


def test_an_id_sent_again_by_name_waits_again(app: Celery, worker: CeleryWorker, queue: str) -> None:
    """The same holds for `send_task`, whose messages carry no mark of ours of their own accord."""
    job = Job(app.send_task("act", ["return"]))
    job.wait_until_final()
    app.send_task("act", ["return"], task_id=job.id, queue=queue)
    assert record_of(job).state is State.ENQUEUED


def test_a_faster_worker_has_the_last_word(
    app: Celery, worker: CeleryWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the task has ended before the sender comes to write it down, it stays ended."""
    write = tracking._write
    written = []

    def late(app: Any, task: Any, settings: Any, headers: Any, *rest: Any) -> None:
        def ended() -> bool:
            record = get_record(headers["id"], app=app)
            return record is not None and record.state is State.SUCCEEDED

        wait_until(ended, description="the task has ended")
        write(app, task, settings, headers, *rest)
        written.append(headers["id"])

    monkeypatch.setattr(tracking, "_write", late)
    job = send(app, "act")
    assert written == [job.id]
    record = record_of(job)
    assert record.state is State.SUCCEEDED
    assert State.ENQUEUED not in [change.state for change in record.history]


def test_nothing_is_asked_where_it_is_off(
    client_factory: ClientFactory, private_valkey: EmbeddedServer
) -> None:
    """By default sending a task asks the store nothing."""
    client = client_factory(configuration={"canceltoken_redis_url": private_valkey.url})
    with Redis.from_url(private_valkey.url) as counter:
        connections = counter.info("stats")["total_connections_received"]
        send(client, "act")
        client.send_task("act")
        assert counter.info("stats")["total_connections_received"] == connections


def test_a_message_costs_one_command(client_factory: ClientFactory, private_valkey: EmbeddedServer) -> None:
    """Where it is on, each message is one command to the store, in one round trip."""
    client = client_factory(configuration={**TRACKING, "canceltoken_redis_url": private_valkey.url})
    send(client, "act")
    with Redis.from_url(private_valkey.url) as counter, counter.monitor() as monitor:
        for _ in range(5):
            send(client, "act")
        get_record("the end", app=client)
        seen = []
        for command in monitor.listen():
            if "the end" in command["command"]:
                break
            if command["client_type"] != "lua":
                seen.append(command["command"].partition(" ")[0])
    assert [word for word in seen if word not in ("HELLO", "CLIENT", "AUTH")] == ["EVALSHA"] * 5


def test_revoked_in_its_queue_it_never_starts(app: Celery, queue: str, consume: Callable[[], None]) -> None:
    """A revoke with `must_exist` finds the task that waits."""
    job = send(app, "act", queue=queue)
    handle = revoke(job.result, must_exist=True, from_state=State.ENQUEUED, reason="not needed")
    assert (handle.applied, handle.previous) == (True, State.ENQUEUED)
    consume()
    assert handle.wait(10).state is State.REVOKED
    assert job.starts() == 0


def test_revoked_before_it_is_sent_it_never_starts(app: Celery, worker: CeleryWorker) -> None:
    """What was asked of the id before does not get lost when it is written down as waiting."""
    task_id = unique_name("id")
    handle = revoke(task_id, app=app)
    job = send(app, "act", task_id=task_id)
    assert handle.wait(10).state is State.REVOKED
    assert job.starts() == 0


def test_deleted_in_its_queue_it_never_starts(app: Celery, queue: str, consume: Callable[[], None]) -> None:
    """A delete of a task that waits is carried out when a worker comes to it."""
    job = send(app, "act", queue=queue)
    handle = delete(job.result, must_exist=True)
    consume()
    assert handle.wait(10).state is State.DELETED
    assert job.starts() == 0


def test_requeue_of_what_waits_is_refused(app: Celery, queue: str) -> None:
    """A task that is in its queue need not be put there."""
    handle = requeue(send(app, "act", queue=queue).result)
    assert (handle.applied, handle.refusal) == (False, "the task is in its queue")


def test_rescheduled_before_any_worker_has_seen_it(
    app: Celery, queue: str, consume: Callable[[], None]
) -> None:
    """A task that waits for a time runs at once when it is told so, once, and as it was sent."""
    collect = app.tasks["collect"]
    link, errback = unique_name("link"), unique_name("errback")
    job = send(
        app,
        "act",
        "return",
        "",
        {"a": [1, None]},
        queue=queue,
        eta=datetime.now(timezone.utc) + HOUR,
        headers={"shop": "north"},
        priority=3,
        link=collect.s().set(task_id=link, queue=queue),
        link_error=collect.si("error").set(task_id=errback, queue=queue),
        expires=1000,
    )
    assert reschedule(job.result, countdown=0).applied
    consume()
    assert job.wait_until_final().state is State.SUCCEEDED
    (account,) = job.accounts()
    assert account["args"] == ["return", "", {"a": [1, None]}]
    assert account["headers"]["shop"] == "north"
    assert account["delivery_info"]["priority"] == 3
    assert account["expires"] is not None
    linked = Job(app.AsyncResult(link))
    assert linked.wait_until_final().state is State.SUCCEEDED


def test_lists_show_what_waits(app: Celery, queue: str) -> None:
    """`list_records` finds tasks by their states before a worker has seen them."""
    waiting = send(app, "act", queue=queue)
    scheduled = send(app, "act", queue=queue, countdown=3600)
    assert waiting.id in [one.task_id for one in list_records(state="ENQUEUED", app=app)]
    assert scheduled.id in [one.task_id for one in list_records(state="SCHEDULED", name="act", app=app)]


def test_revoke_where_finds_what_waits(app: Celery, queue: str, consume: Callable[[], None]) -> None:
    """By queue, stamp or arguments: those that wait are told as those that run are."""
    stamped = app.tasks["act"].s("return")
    stamped.stamp(customer="north")
    jobs = [Job(stamped.apply_async(queue=queue)), send(app, "act", "return", "", "wanted", queue=queue)]
    left = send(app, "act", queue=queue)
    assert [one.task_id for one in revoke_where(stamps={"customer": "north"}, queue=queue, app=app)] == [
        jobs[0].id
    ]
    found = revoke_where(where=lambda task: "wanted" in task.args, queue=queue, app=app)
    assert [one.task_id for one in found] == [jobs[1].id]
    consume()
    assert [job.wait_until_final().state for job in jobs] == [State.REVOKED] * 2
    assert left.wait_until_final().state is State.SUCCEEDED


def test_a_far_eta_is_outlived_by_its_record(app: Celery, queue: str) -> None:
    """The record of a task that is to run in a year is kept for so long, and the message with it."""
    job = send(app, "act", queue=queue, eta=datetime.now(timezone.utc) + timedelta(days=365))
    key = f"{settings_of(app).prefix}:task:{job.id}"
    assert app.backend.client.pttl(key) > timedelta(days=365).total_seconds() * 1000


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
@pytest.mark.parametrize("of", ["app", "call"])
def test_what_is_kept_is_what_is_on_the_wire(
    client_factory: ClientFactory, queue: str, serializer: str, of: str
) -> None:
    """Body, headers, place and properties, for any serializer, whoever has chosen it."""
    chosen = {"task_serializer": serializer} if of == "app" else {}
    # Not among the records of tests whose apps do not accept what is sent here.
    prefix = {"canceltoken_prefix": unique_name("prefix")}
    client = client_factory(configuration={**TRACKING, **chosen, **prefix})
    options = {"serializer": serializer} if of == "call" else {}
    job = send(client, "act", "return", "", {"a": [1]}, priority=6, expires=600, headers={"x": 1}, **options)
    wire, message = on_the_wire(client, queue, 6), kept(client, job.id)
    assert message.body == body_on_the_wire(wire)
    assert (message.content_type, message.content_encoding) == (
        wire["content-type"],
        wire["content-encoding"],
    )
    assert dict(message.headers) == wire["headers"]
    info = wire["properties"]["delivery_info"]
    assert (message.exchange, message.routing_key) == (info["exchange"], info["routing_key"])
    names = ("priority", "correlation_id", "reply_to", "delivery_mode", "expiration")
    told = {name: wire["properties"].get(name) for name in names if wire["properties"].get(name) is not None}
    assert dict(message.properties) == told


def test_a_message_that_is_not_to_be_stored_is_kept_as_such(
    client_factory: ClientFactory, queue: str
) -> None:
    """The delivery mode of a single call is kept."""
    client = client_factory(configuration=TRACKING)
    job = send(client, "act", delivery_mode="transient")
    mode = on_the_wire(client, queue)["properties"]["delivery_mode"]
    assert kept(client, job.id).properties["delivery_mode"] == mode == 1


@pytest.mark.parametrize("of", ["app", "call"])
def test_a_compressed_message_is_kept_plain(
    client_factory: ClientFactory, app: Celery, queue: str, consume: Callable[[], None], of: str
) -> None:
    """What was compressed on its way can be sent again, and runs."""
    client = client_factory(
        configuration={**TRACKING, **({"task_compression": "gzip"} if of == "app" else {})}
    )
    options = {"compression": "gzip"} if of == "call" else {}
    job = send(client, "act", "return", "", "x" * 1000, countdown=3600, **options)
    assert "compression" not in kept(client, job.id).headers
    assert reschedule(job.result, countdown=0)
    consume()
    assert job.wait_until_final().state is State.SUCCEEDED


def test_pickled_arguments_survive_a_reschedule(
    client_factory: ClientFactory, queue: str, consume: Callable[[], None]
) -> None:
    """Arguments that only pickle can carry are kept as bytes, and run as they were."""
    client = client_factory(configuration={**TRACKING, "task_serializer": "pickle"})
    job = send(client, "act", "return", "", {1, 2}, countdown=3600)
    assert pickle.loads(kept(client, job.id).body)[0][2] == {1, 2}
    assert reschedule(job.result, countdown=0)
    consume()
    assert job.wait_until_final().state is State.SUCCEEDED


def test_the_store_of_each_app_is_its_own(
    client_factory: ClientFactory, private_valkey: EmbeddedServer
) -> None:
    """Two apps of one process write each to their own store, however the tasks are sent."""
    here = client_factory(configuration=TRACKING)
    there = client_factory(configuration={**TRACKING, "canceltoken_redis_url": private_valkey.url})
    here.set_current()
    for sent in (send(there, "act"), Job(there.send_task("act"))):
        assert record_of(sent).state is State.ENQUEUED
        assert get_record(sent.id, app=here) is None


def test_a_send_from_within_a_send_is_its_own_apps(client_factory: ClientFactory, queue: str) -> None:
    """What a publish signal's receiver sends by another app is of that app."""
    outer, inner = client_factory(configuration=TRACKING), client_factory(configuration=TRACKING)
    inner.conf.canceltoken_prefix = unique_name("prefix")
    sent = []

    def send_another(sender: Any = None, **_: Any) -> None:
        if not sent:
            sent.append(None)
            sent[0] = Job(inner.send_task("act"))

    signals.before_task_publish.connect(send_another)
    try:
        job = send(outer, "act")
    finally:
        signals.before_task_publish.disconnect(send_another)
    assert record_of(sent[0]).state is State.ENQUEUED
    assert get_record(sent[0].id, app=outer) is None
    assert kept(outer, job.id).headers["id"] == job.id


@pytest.fixture
def app_without_redis() -> Iterator[Celery]:
    """An app that has no Redis anywhere."""
    made = Celery(unique_name("app"), broker="memory://", backend="cache+memory://", set_as_current=False)
    made.task(name="act", base=CancellableTask, shared=False)(echo)
    made.finalize()
    yield made
    close_client(made)


def test_an_app_without_redis_sends_as_ever(
    app_without_redis: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever neither has Redis nor asks for tracking hears nothing of it."""
    caplog.set_level(logging.DEBUG, "celery_canceltoken")
    app_without_redis.tasks["act"].delay("x")
    app_without_redis.send_task("act", ["x"])
    assert [record for record in caplog.records if record.name.startswith("celery_canceltoken")] == []


@pytest.fixture
def store_away(client_factory: ClientFactory, valkey_proxy: ToxicProxy) -> Celery:
    """An app that tracks, at a store that accepts connections and answers nothing."""
    valkey_proxy.freeze("down")
    configuration = {"canceltoken_redis_url": valkey_proxy.url, "canceltoken_store_timeout": 1.0}
    return client_factory(configuration={**TRACKING, **configuration})


def test_without_a_store_the_message_is_sent(
    store_away: Celery, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that does not answer costs the record, and a warning; never the message."""
    job = send(store_away, "act")
    assert on_the_wire(store_away, queue)["headers"]["id"] == job.id
    (warning,) = [record for record in caplog.records if record.name.startswith("celery_canceltoken")]
    assert warning.levelno == logging.WARNING
    assert f"act[{job.id}] is sent, but not tracked" in warning.message


def test_fifty_messages_do_not_wait_fifty_times(
    store_away: Celery, queue: str, valkey_proxy: ToxicProxy
) -> None:
    """After the first failure the store is left alone for a while."""
    for _ in range(50):
        send(store_away, "act")
    assert valkey_proxy.accepted <= 3
    assert store_away.backend.client.llen(queue) == 50


def test_what_could_not_be_sent_leaves_no_record(
    client_factory: ClientFactory, valkey: EmbeddedServer
) -> None:
    """A publish that fails writes nothing."""
    with ToxicProxy((valkey.host, valkey.port)) as broker:
        quick = {"broker_transport_options": {"max_retries": 0}, "broker_connection_timeout": 0.5}
        client = client_factory(broker_url=broker.url, configuration={**TRACKING, **quick})
        broker.cut()
        task_id = unique_name("id")
        with pytest.raises(OperationalError):
            send(client, "act", task_id=task_id, retry=False)
        assert get_record(task_id, app=client) is None


def test_what_cannot_be_serialized_leaves_no_record(app: Celery) -> None:
    """Nor does a message that is no message, before it has come to the broker."""
    task_id = unique_name("id")
    with pytest.raises(EncodeError):
        send(app, "act", object(), task_id=task_id)
    assert get_record(task_id, app=app) is None


def test_a_namespaced_setting_counts(valkey: EmbeddedServer, queue: str) -> None:
    """The setting is found under the namespace that an app gives its configuration, as Django's do."""
    made = Celery(unique_name("app"), broker=valkey.url, backend=valkey.url, set_as_current=False)
    made.config_from_object({"CELERY_CANCELTOKEN_TRACK_ENQUEUED": True}, namespace="CELERY")
    made.task(name="act", base=CancellableTask, shared=False)(echo)
    made.finalize()
    try:
        result = made.tasks["act"].apply_async(("x",), queue=queue)
        record = get_record(result)
        assert record is not None
        assert record.state is State.ENQUEUED
    finally:
        made.backend.client.delete(queue)
        close_client(made)
