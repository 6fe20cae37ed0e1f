"""One run of a task id, from the claim to the end: what happens around a body."""

from __future__ import annotations

import builtins
import json
import logging
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any

from celery import Task, signals
from celery import states as celery_states
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError

from celery_canceltoken.cancelled import TaskCancelled
from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.configuration import broker_of
from celery_canceltoken.current import as_current
from celery_canceltoken.errors import CancelTokenError, ShutdownError, StoreUnavailableError, SupersededError
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.native import is_green
from celery_canceltoken.outcome import (
    SHUTDOWN_POLICIES,
    Ending,
    MessageFate,
    ResultFate,
    Verdict,
    decide,
    rows,
)
from celery_canceltoken.publishing import as_sent_again, publish
from celery_canceltoken.results import forget, write_revoked
from celery_canceltoken.signals import task_cancelled
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import Claim, ClaimAnswer, ClaimVerdict, Ended, Enqueued, Finish
from celery_canceltoken.task.context import CurrentExecution
from celery_canceltoken.task.endings import (
    NotStarted,
    RaisedAfterCancel,
    Replaced,
    Revoked,
    SentBack,
    StrayCancellationError,
    Superseded,
)
from celery_canceltoken.task.policies import shutdown_grace_of, shutdown_policy_of
from celery_canceltoken.task.stamp import Stamp
from celery_canceltoken.task.wire import Keeping, keeping, kept_message
from celery_canceltoken.token import CancellationSource, run_in_thread
from celery_canceltoken.worker.runtime import Runtime, runtime_of

__all__ = ["Execution", "current_execution", "open_execution", "perform"]

logger = logging.getLogger("celery_canceltoken.task")

_VALUE_LIMIT = 64 * 1024
"""Characters of JSON; a larger return value is not kept in the record."""
_ERROR_LIMIT = 4096
_FIRST_PAUSE = 0.1
_LONGEST_CLOSING = 5.0
_LONGEST_CLOSING_OF_GREENLETS = 0.2
"""A pool of greenlets that is full holds up the very greenlet that is to close."""
_CLOSING_PAUSE = 0.02
_ATTRIBUTE = "_canceltoken_execution"

_open: ContextVar[Execution | None] = ContextVar("celery_canceltoken.open_execution", default=None)


class Execution:
    """A run of a task id in this process. Owned by the thread or greenlet that runs the body."""

    def __init__(self, task: Task[Any, Any], request: Any) -> None:
        self.task = task
        self.request = request
        self.execution_id = uuid.uuid4().hex
        self.stamp = Stamp.of(getattr(request, "headers", None))
        self.generation = self.stamp.generation
        self.attempt = 1
        self.entered = False
        """The body has been called: a further call from within it is a direct one."""
        self.unclaimed = False
        self.message = kept_message(request)
        self.keeping = Keeping("never")
        self.runtime: Runtime | None = None
        self.claim: Claim | None = None
        self.owed: Finish | None = None
        self.outbox: Enqueued | None = None
        self.revoked_by: Cancellation | None = None
        self.decided: Verdict | None = None
        self.context = CurrentExecution(getattr(request, "id", None), self.execution_id, 1, "", None)
        self.source = CancellationSource(run_callbacks=run_in_thread, on_observed=self._observed)

    def _observed(self) -> None:
        if self.runtime is not None:
            self.runtime.port.observed(self.execution_id, self.source.observed_at or time.monotonic())

    def _save_checkpoint(self, text: str) -> None:
        if self.runtime is None:
            return
        answer = self.runtime.store.checkpoint(self.request.id, self.execution_id, text)
        if answer == "superseded":
            raise SupersededError(
                f"another execution owns task {self.request.id}: the checkpoint is not saved"
            )
        if answer == "untracked":
            # Its record is lost, and is written again by the agent in a moment.
            raise StoreUnavailableError(f"there is no record of task {self.request.id} at present")

    @property
    def cause(self) -> Cause | None:
        """Why the token tripped, if it did."""
        return self.source.token.cause

    # -- the beginning

    def begin(self) -> Cancellation | None:
        """Claim the id. Returns what the task was revoked with while it was queued; None: run the body.

        Raises NotStarted where this copy of the message is not wanted.
        """
        if self.request.is_eager:
            return None
        runtime = runtime_of(id(self.task.app), self.request.hostname)
        if runtime is None:
            _warn_of_missing_agent()
            return None
        if self.message is not None and not runtime.port.takes_work:
            self._send_back_untouched(runtime, self.message)
        self.keeping = keeping(self.message, self.task, runtime.settings)
        self.claim = self._make_claim(runtime)
        try:
            answer = self._claim_until_clear(runtime, self.claim)
        except StoreUnavailableError as error:
            # The worker goes on consuming. The agent writes the record once the store is back.
            logger.warning(
                "task %s[%s] starts without its record: %s", self.task.name, self.request.id, error
            )
            answer = ClaimAnswer(ClaimVerdict.RUN, attempt=1, generation=self.generation)
            self.unclaimed = True
        if answer.verdict is ClaimVerdict.UNTRACKED:
            logger.warning("record of task %s is %s: the task runs untracked", self.request.id, answer.why)
            self.claim = None
            return None
        if answer.verdict is ClaimVerdict.SKIP:
            raise NotStarted(f"a copy that is not wanted ({answer.why})")
        self.runtime = runtime
        if answer.verdict is ClaimVerdict.DENIED:
            return answer.cancellation or Cancellation(Cause.REVOKED)
        self.generation, self.attempt = answer.generation, answer.attempt
        self.context = CurrentExecution(
            self.request.id, self.execution_id, self.attempt, answer.checkpoint, self._save_checkpoint
        )
        runtime.bodies.add(self.execution_id, self.source)
        runtime.port.started(self.claim, self.generation, self.attempt)
        return None

    def _send_back_untouched(self, runtime: Runtime, message: KeptMessage) -> None:
        """Give the message to another worker, for this one is stopping: raises SentBack if that was done."""
        # Not before this worker has stopped taking messages: it would get it back.
        deadline = time.monotonic() + (_LONGEST_CLOSING_OF_GREENLETS if is_green() else _LONGEST_CLOSING)
        while not runtime.port.takes_work and not runtime.port.is_closed and time.monotonic() < deadline:
            time.sleep(_CLOSING_PAUSE)
        if runtime.port.takes_work:
            return
        try:
            publish(self.task.app, message)
        except Exception:
            logger.exception("task %s[%s] cannot be given back; it runs", self.task.name, self.request.id)
            return
        logger.info("Task %s[%s] given back: this worker is stopping", self.task.name, self.request.id)
        raise SentBack("given back, for this worker is stopping")

    def _make_claim(self, runtime: Runtime) -> Claim:
        delivery = getattr(self.request, "delivery_info", None) or {}
        root_id = getattr(self.request, "root_id", None)
        return Claim(
            task_id=self.request.id,
            execution_id=self.execution_id,
            owner=runtime.port.owner,
            worker=runtime.worker,
            send=self.stamp.send,
            generation=self.stamp.generation,
            redelivered=bool(delivery.get("redelivered")),
            name=self.task.name or "",
            takes_token=getattr(self.task, "token_parameter", None) is not None,
            late_ack=bool(self.task.acks_late),
            queue=str(delivery.get("routing_key") or ""),
            root=root_id if isinstance(root_id, str) else "",
            stamps=self.message.stamps if self.message is not None else {},
            keep=self.keeping.policy,
            unkept=self.keeping.why_not,
            broker=broker_of(self.task.app),
            shutdown_policy=shutdown_policy_of(self.task, runtime.settings),
            shutdown_grace=shutdown_grace_of(self.task, runtime.settings),
        )

    def _claim_until_clear(self, runtime: Runtime, claim: Claim) -> ClaimAnswer:
        pause = _FIRST_PAUSE
        while True:
            answer = runtime.store.claim(claim, message=self.keeping.text)
            if answer.verdict is not ClaimVerdict.OWNED:
                return answer
            if not runtime.store.is_alive(answer.owner):
                answer = runtime.store.claim(
                    claim, message=self.keeping.text, take_over_from=(answer.execution_id, answer.owner)
                )
                if answer.verdict is not ClaimVerdict.OWNED:
                    return answer
            elif answer.same_send and not claim.late_ack:
                return ClaimAnswer(ClaimVerdict.SKIP, why="it is running")
            if not runtime.port.takes_work and self.message is not None:
                self._send_back_untouched(runtime, self.message)
            # A late-acknowledged copy may be all that is left of the task if the first run dies now, and
            # the id sent again on purpose has to wait its turn: neither may be dropped.
            time.sleep(pause)
            pause = min(pause * 2, runtime.settings.check_interval)

    # -- the end

    def conclude(self, ending: Ending, value: Any = None, error: BaseException | None = None) -> Verdict:
        """Have the outcome decided and written, and return it."""
        self.decided = self._finish(ending, value, error)
        return self.decided

    def _finish(self, ending: Ending, value: Any, error: BaseException | None) -> Verdict:
        source = self.source
        self.revoked_by = source.cancellation
        policy = self.claim.shutdown_policy if self.claim is not None else SHUTDOWN_POLICIES[0]
        table = rows(ending, self.cause, source.observed, source.disregarded, policy)
        if self.runtime is None or self.claim is None:
            return table["none"]
        finish = Finish(
            claim=self.claim,
            generation=self.generation,
            attempt=self.attempt,
            rows=table,
            cancellation=source.cancellation,
            observed_ago=None if source.observed_at is None else time.monotonic() - source.observed_at,
            value=_kept_value(value) if ending is Ending.RETURNED else "",
            error=repr(error)[:_ERROR_LIMIT] if ending is Ending.RAISED else "",
            unclaimed=self.unclaimed,
        )
        try:
            answer = self.runtime.store.finish(finish)
        except StoreUnavailableError as error:
            logger.warning(
                "the end of task %s[%s] is written later: %s", self.task.name, self.request.id, error
            )
            self.owed = finish
            return table["none"]
        if answer.verdict is not None:
            self.revoked_by = answer.cancellation
            self.outbox = answer.outbox
            return answer.verdict
        if answer.untracked:
            return table["none"]
        return decide(ending, Cause.SUPERSEDED, observed=False)

    def close(self, celery_state: str | None) -> None:
        """Celery's result is written: leave the rest to the agent."""
        if self.runtime is None or self.claim is None:
            return
        self.runtime.bodies.remove(self.execution_id)
        if self.decided is None:
            # The child is about to end, and the parent says what becomes of the task.
            return
        failed_after_all = celery_state == celery_states.FAILURE and self.decided.state is State.SUCCEEDED
        instead = State.FAILED if failed_after_all else None
        ended = Ended(self.execution_id, self.request.id, instead, self.keeping.policy)
        self.runtime.port.ended(ended, self.owed)

    def send_back(self) -> None:
        """Put the task back into its queue as the next generation; where that fails, agents will."""
        waiting = self.outbox or Enqueued(self.generation + 1)
        if getattr(self.task, "track_started", False):
            # STARTED is not true any more.
            forget(self.task.backend, self.request.id)
        if self.message is None:
            logger.error("task %s[%s] has no message to send back", self.task.name, self.request.id)
            return
        try:
            publish(self.task.app, as_sent_again(self.message, waiting))
        except Exception:
            logger.exception("task %s[%s] is sent back later", self.task.name, self.request.id)
            return
        logger.info("Task %s[%s] sent back to its queue", self.task.name, self.request.id)
        if self.runtime is not None and self.owed is None:
            self.runtime.port.published(self.request.id, waiting.generation)

    def tell_of_cancellation(self) -> None:
        """Let the task's own hook and the signal know that this run ended as it was told to."""
        cancellation = self.revoked_by or self.source.cancellation
        if cancellation is None:
            return
        task, request = self.task, self.request
        args, kwargs = tuple(request.args or ()), dict(request.kwargs or {})
        hook = getattr(task, "on_cancelled", None)
        try:
            if hook is not None:
                hook(cancellation.cause, request.id, args, kwargs)
        except Exception:
            # What became of the task is decided already.
            logger.exception("on_cancelled of task %s[%s] failed", task.name, request.id)
        task_cancelled.send(
            sender=task,
            task_id=request.id,
            cause=cancellation.cause,
            reason=cancellation.reason,
            actor=cancellation.actor,
            args=args,
            kwargs=kwargs,
        )


@cache
def _warn_of_missing_agent() -> None:
    logger.warning(
        "this worker has no agent, so its tasks run untracked and cannot be cancelled; import "
        "CancellableTask from celery_canceltoken in the module that makes the app, so that it is there "
        "when the worker starts"
    )


def open_execution() -> Execution | None:
    """The execution whose body runs in this context."""
    return _open.get()


def current_execution() -> CurrentExecution:
    """Return the execution whose body runs in this context: its attempt, its checkpoints.

    Raises CancelTokenError outside a task of this package. As `current_token`, it follows `asyncio`
    tasks and `asyncio.to_thread`; other threads and greenlets of the body's are to be handed it.
    """
    execution = _open.get()
    if execution is None:
        raise CancelTokenError("no task of celery_canceltoken runs here")
    return execution.context


def perform(task: Task[Any, Any], call: Callable[[], Any]) -> Any:
    """Make *call*, which leads to the body of *task*, the one run of its id.

    A direct call, and a layer inside the run that is open already, are simply made.
    """
    request = task.request_stack.top
    outer = _open.get()
    if request is None or request.called_directly or (outer is not None and outer.request is request):
        return call()
    execution = Execution(task, request)
    refusal = execution.begin()
    setattr(request, _ATTRIBUTE, execution)
    if refusal is not None:
        execution.decided = decide(Ending.CANCELLED, refusal.cause, observed=False)
        execution.revoked_by = refusal
        execution.tell_of_cancellation()
        _end_as_revoked(task, request, refusal)
    ending, value, error = _run(execution, call)
    verdict = execution.conclude(ending, value, error)
    return _tell_celery(execution, verdict, ending, value, error)


def _run(execution: Execution, call: Callable[[], Any]) -> tuple[Ending, Any, BaseException | None]:
    reset = _open.set(execution)
    try:
        with as_current(execution.source.token):
            return Ending.RETURNED, call(), None
    except RaisedAfterCancel as carried:
        return Ending.RAISED, None, carried.error
    except Exception as error:
        return _ending_of(error), None, error
    except BaseException as error:
        if not _is_cancellation(error):
            # The end of the child, or of the worker: Celery's parent says what becomes of the task.
            raise
        return Ending.CANCELLED, None, error
    finally:
        _open.reset(reset)


def _ending_of(error: Exception) -> Ending:
    if isinstance(error, Retry):
        return Ending.RETRIED
    if isinstance(error, Reject):
        return Ending.REJECTED_BACK if getattr(error, "requeue", False) else Ending.REJECTED
    if isinstance(error, Replaced):
        return Ending.REPLACED
    if isinstance(error, Ignore):
        return Ending.IGNORED
    return Ending.RAISED


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, TaskCancelled):
        return True
    group = getattr(builtins, "BaseExceptionGroup", None)
    return group is not None and isinstance(error, group) and all(map(_is_cancellation, error.exceptions))


def _tell_celery(
    execution: Execution, verdict: Verdict, ending: Ending, value: Any, error: BaseException | None
) -> Any:
    task, request = execution.task, execution.request
    if verdict.is_cancellation or execution.cause in (Cause.SUPERSEDED, Cause.LEASE_LOST):
        execution.tell_of_cancellation()
    if verdict.message is MessageFate.REPUBLISH and not request.is_eager:
        execution.send_back()
        raise SentBack("sent back to its queue")
    if verdict.result is ResultFate.REVOKED:
        _end_as_revoked(task, request, execution.revoked_by or Cancellation(Cause.REVOKED))
    if verdict.result is ResultFate.NOTHING:
        if ending is Ending.RETRIED and not task.store_errors_even_if_ignored:
            # The retry is real and its hooks and events are due, but the result is the successor's by now.
            request.ignore_result = True
            raise error  # type: ignore[misc]
        raise Superseded("another execution owns the task id")
    if verdict.result is ResultFate.SHUT_DOWN:
        raise ShutdownError(
            "stopped by the shutdown of its worker, and not sent back to its queue "
            "(shutdown_policy, or canceltoken_max_shutdown_requeues without a checkpoint)"
        ) from error
    if verdict.result is ResultFate.TIMED_OUT:
        raise TimeoutError("the task's own deadline has passed") from error
    if verdict.result is ResultFate.FAILED:
        raise StrayCancellationError(
            f"the task raised TaskCancelled ({error}) though nobody had asked it to stop"
        ) from error
    if error is not None:
        raise error
    return value


def _end_as_revoked(task: Task[Any, Any], request: Any, cancellation: Cancellation) -> None:
    reason = cancellation.reason or cancellation.cause.value.lower()
    if request.is_eager:
        raise TaskRevokedError(reason)
    # The one way that tells everybody: the result, the chord, the rest of the chain and the errbacks here,
    # the event and the signal in the parent, on seeing our Ignore.
    write_revoked(task.backend, request.id, reason, request, store_result=_stores_errors(task, request))
    logger.info("Task %s[%s] revoked: %s", task.name, request.id, reason)
    raise Revoked(reason)


def _stores_errors(task: Task[Any, Any], request: Any) -> bool:
    ignored = vars(request).get("ignore_result")
    if ignored is None:
        ignored = task.ignore_result
    return bool(not ignored or task.store_errors_even_if_ignored)


def _kept_value(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return ""
    return text if len(text) <= _VALUE_LIMIT else ""


@signals.task_postrun.connect
def _on_postrun(task: Task[Any, Any], state: str | None = None, **_: Any) -> None:
    execution = getattr(task.request, _ATTRIBUTE, None)
    if execution is not None:
        execution.close(state)
