"""The executions whose bodies run in this process, and how their tokens are tripped."""

from __future__ import annotations

from typing import Protocol

from celery_canceltoken.cause import Cancellation
from celery_canceltoken.store.answers import Claim, Ended, Finish
from celery_canceltoken.token import CancellationSource
from celery_canceltoken.worker.world import ThreadWorld, World

__all__ = ["AgentPort", "Bodies"]


class AgentPort(Protocol):
    """What a body's process tells its agent: by a call where it is the same process, else by frames.

    None of these waits for the store, and none raises where the agent cannot be reached.
    """

    @property
    def owner(self) -> str:
        """Whom to claim for: the agent's id and current incarnation."""

    @property
    def takes_work(self) -> bool:
        """False: the worker is stopping, and no body is to start here any more."""

    @property
    def is_closed(self) -> bool:
        """True: the worker takes no messages any more; what is given back now goes to another."""

    def started(self, claim: Claim, generation: int, attempt: int) -> None:
        """An execution has begun."""

    def observed(self, execution_id: str, at: float) -> None:
        """Its body has seen that it is to stop, at a time of this machine's monotonic clock."""

    def published(self, task_id: str, generation: int) -> None:
        """The message of a task that goes back to its queue is with the broker, as *generation*."""

    def ended(self, ended: Ended, owed: Finish | None) -> None:
        """It is over and Celery's result is written; *owed* is the finish the store could not be told."""


class Bodies:
    """Live cancellation sources by execution id.

    Owned by the process that runs the bodies. Any thread may call; a dict's own atomicity is
    all the locking there is. Empty in a freshly forked child, which makes its own.
    """

    def __init__(self, world: World | None = None) -> None:
        self._world = world or ThreadWorld()
        self._sources: dict[str, CancellationSource] = {}

    def add(self, execution_id: str, source: CancellationSource) -> None:
        """Make an execution known, before its agent hears of it: no cancellation can come too early."""
        self._sources[execution_id] = source

    def remove(self, execution_id: str) -> None:
        """Forget an execution that is over."""
        self._sources.pop(execution_id, None)

    def __len__(self) -> int:
        return len(self._sources)

    def cancel_all(self, cancellation: Cancellation) -> None:
        """Trip all tokens, from any thread."""
        for execution_id in list(self._sources):
            self.cancel(execution_id, cancellation)

    def cancel(self, execution_id: str, cancellation: Cancellation) -> None:
        """Trip a token, from any thread; its callbacks run on a thread of their own.

        The flag is set here and now, so that even a body that never yields sees it; who waits is
        woken in the world it waits in.
        """
        source = self._sources.get(execution_id)
        if source is not None and source.trip(cancellation):
            self._world.post(source.wake)
