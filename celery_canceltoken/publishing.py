"""Sending a kept message to its queue again, on any broker."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery
from kombu import Producer

from celery_canceltoken.message import KeptMessage
from celery_canceltoken.results import backend_of, forget
from celery_canceltoken.store.answers import Enqueued
from celery_canceltoken.store.redis_store import RedisStore

__all__ = ["as_sent_again", "publish", "send_again"]

logger = logging.getLogger("celery_canceltoken.task")

_RETRIES = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1.0}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def publish(app: Celery, message: KeptMessage) -> None:
    """Put *message* where it came from. On return the broker has it; any exception means: perhaps not.

    Not through Celery's own sender: that would serialize anew, and call the publish signals for a
    message whose task was sent long ago. Safe from any thread, greenlet and child; not from a
    native thread in a process of greenlets.
    """
    properties = dict(message.properties)
    if properties.get("expiration"):
        # Milliseconds on the wire, seconds as an argument; the half keeps the fraction from being cut short.
        properties["expiration"] = (int(properties["expiration"]) + 0.5) / 1000

    def send(channel: Any) -> None:
        confirmed = getattr(channel, "basic_publish_confirm", None)
        if confirmed is not None:
            # AMQP says nothing of what becomes of a message unless it is asked to.
            channel.basic_publish = confirmed
        try:
            Producer(channel, auto_declare=False).publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                headers=dict(message.headers),
                mandatory=True,
                **properties,
            )
        finally:
            if confirmed is not None:
                del channel.basic_publish

    pool: Any = app.pool
    with pool.acquire(block=True) as connection:
        connection.autoretry(send, **_RETRIES)()


def as_sent_again(message: KeptMessage, waiting: Enqueued) -> KeptMessage:
    """The message as the generation, and for the time, that the record says."""
    eta = None if waiting.eta is None else (_EPOCH + timedelta(microseconds=waiting.eta)).isoformat()
    return message.again(waiting.generation, eta)


def send_again(app: Celery, store: RedisStore, task_id: str) -> None:
    """Publish what waits in the outbox for *task_id*; nothing if somebody was faster.

    Raises StoreUnavailableError, and whatever the broker's client raises.
    """
    waiting, text = store.outbox_of(task_id)
    if waiting is None:
        store.published(task_id, -1)
        return
    if text is None:
        logger.error(
            "task %s was to go back to its queue, but its worker died at that moment and no message is kept",
            task_id,
        )
    else:
        message = KeptMessage.from_json(text)
        forget(backend_of(app, message.name), task_id)
        publish(app, as_sent_again(message, waiting))
        logger.info("task %s sent back to its queue", task_id)
    store.published(task_id, waiting.generation)
