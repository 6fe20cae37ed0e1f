"""Celery's own revoke: its remote control commands also reach the tokens of what runs here.

Celery drops what has not started and, unless told to terminate, leaves alone what has. Its commands are
the one way in for `app.control.revoke`, `result.revoke`, `celery control revoke` and Flower's button. So
they are listened to: nothing is polled, and no store is asked.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery import bootsteps, signals
from kombu.utils.functional import maybe_list

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.worker.runtime import agent_of

__all__ = ["EXPIRED", "REVOKED", "TERMINATED", "install"]

logger = logging.getLogger("celery_canceltoken.worker")

# The words with which Celery itself marks a result as revoked.
REVOKED = Cancellation(Cause.REVOKED, "revoked")
TERMINATED = Cancellation(Cause.REVOKED, "terminated")
EXPIRED = Cancellation(Cause.REVOKED, "expired")

_LISTENS = "_canceltoken_listens"

Command = Callable[..., Any]


def install() -> None:
    """Listen to the commands in every worker of this process. Calling it again changes nothing."""
    signals.worker_init.connect(_on_worker_init, dispatch_uid="celery_canceltoken.celery_revoke")


class MissedRevokes(bootsteps.StartStopStep):
    """Looks, whenever the worker has reached its broker, for revokes that it did not hear of meanwhile.

    Celery's mingle asks the other workers which ids are revoked, and notes them for what is queued.
    """

    requires = ("celery.worker.consumer.mingle:Mingle",)

    def start(self, consumer: Any) -> None:
        """Trip the tokens of what runs here and is revoked."""
        from celery.worker import state as worker_state

        agent = agent_of(id(consumer.app), consumer.hostname)
        if agent is None:
            return
        for execution in agent.live():
            task_id = execution.claim.task_id
            request = worker_state.requests.get(task_id)
            # Among what is revoked Celery also counts copies that expired before they could start.
            may_be_expired = request is not None and request.expires
            if task_id in worker_state.revoked and not may_be_expired:
                agent.cancel(task_id, REVOKED)


def _on_worker_init(sender: Any, **_: Any) -> None:
    # Imported here: it is the worker's, and app code has no use for it.
    from celery.worker.control import Panel

    sender.app.steps["consumer"].add(MissedRevokes)
    for name, listen in (
        ("revoke", _on_revoke),
        ("terminate", _on_terminate),
        ("revoke_by_stamped_headers", _on_revoke_by_stamped_headers),
    ):
        command = Panel.data.get(name)
        if command is not None and not hasattr(command, _LISTENS):
            Panel.data[name] = _listened_to(command, listen)


def _listened_to(command: Command, listen: Command) -> Command:
    """Return *command* with *listen* called beside it."""

    def tell(state: Any, *args: Any, **kwargs: Any) -> None:
        try:
            listen(state, *args, **kwargs)
        except Exception:
            # Celery's command is not ours to break.
            logger.exception("tokens were not told of Celery's command %s", command.__name__)

    @functools.wraps(command)
    def listened_to(state: Any, *args: Any, **kwargs: Any) -> Any:
        if listen is _on_terminate or kwargs.get("terminate"):
            # A body that heeded before Celery comes to terminate it would be killed for it, or whatever its
            # process does next. Celery's way leads through our request, which does both in order.
            try:
                return command(state, *args, **kwargs)
            finally:
                tell(state, *args, **kwargs)
        # Celery's command may take its time with a result backend.
        tell(state, *args, **kwargs)
        return command(state, *args, **kwargs)

    setattr(listened_to, _LISTENS, True)
    return listened_to


def _on_revoke(state: Any, task_id: Any, terminate: bool = False, **_: Any) -> None:
    _cancel(state, maybe_list(task_id) or (), terminate)


def _on_terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> None:  # noqa: ARG001 - Celery's signature
    _on_revoke(state, task_id, terminate=True)


def _on_revoke_by_stamped_headers(state: Any, headers: Any, terminate: bool = False, **_: Any) -> None:
    from celery.worker import state as worker_state

    if isinstance(headers, list):
        headers = {name: value for name, value, *_ in (header.split("=") for header in headers)}
    # Not only the active ones: a request may have passed Celery's look at what is revoked already.
    known = {id(one): one for one in (*worker_state.active_requests, *worker_state.requests.copy().values())}
    _cancel(state, [one.id for one in known.values() if _is_stamped(one, headers)], terminate)


def _is_stamped(request: Any, headers: Mapping[str, Any]) -> bool:
    """As Celery compares: one value of one header in common is enough."""
    for name, asked in headers.items():
        stamps = maybe_list((request.stamps or {}).get(name)) or ()
        if any(stamp in maybe_list(asked) for stamp in stamps):
            return True
    return False


def _cancel(state: Any, task_ids: Iterable[str], terminate: bool) -> None:
    agent = agent_of(id(state.app), state.hostname)
    if agent is not None:
        for task_id in task_ids:
            agent.cancel(task_id, TERMINATED if terminate else REVOKED)
