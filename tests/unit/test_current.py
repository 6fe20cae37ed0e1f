"""The token of the task that runs here."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from celery_canceltoken.cancelled import TaskCancelled
from celery_canceltoken.current import as_current, current_token
from celery_canceltoken.token import CancellationSource, CancellationToken, run_in_thread

PATIENCE = 10.0


@pytest.fixture
def token() -> CancellationToken:
    return CancellationSource().token


def test_outside_a_task_it_is_none() -> None:
    """Code that runs in no task gets the token that is never cancelled."""
    assert current_token() is CancellationToken.none


def test_inside_it_is_the_one_that_was_set(token: CancellationToken) -> None:
    """Code below a body gets the body's own token, and so does the block."""
    with as_current(token) as given:
        assert given is token
        assert current_token() is token


def test_blocks_nest() -> None:
    """A task that runs another one inline has its own token back afterwards."""
    outer, inner = CancellationSource().token, CancellationSource().token
    with as_current(outer):
        with as_current(inner):
            assert current_token() is inner
        assert current_token() is outer
    assert current_token() is CancellationToken.none


@pytest.mark.parametrize("error", [ValueError, TaskCancelled, SystemExit])
def test_a_failing_block_is_undone(token: CancellationToken, error: type[BaseException]) -> None:
    """However a body ends, the thread that ran it carries nothing over, and the error is the body's."""
    with pytest.raises(error), as_current(token):
        raise error
    assert current_token() is CancellationToken.none


def test_a_thread_of_the_body_has_none(token: CancellationToken) -> None:
    """The context of one thread is not that of another, unless it is handed on."""
    seen: list[CancellationToken] = []
    with as_current(token):
        context = contextvars.copy_context()
    for run in (contextvars.Context().run, context.run):
        thread = threading.Thread(target=lambda run=run: seen.append(run(current_token)))
        thread.start()
        thread.join(PATIENCE)
    assert seen == [CancellationToken.none, token]


def test_it_follows_asyncio(token: CancellationToken) -> None:
    """Tasks and threads that asyncio starts below a body have the body's token."""

    async def body() -> list[CancellationToken]:
        async def child() -> CancellationToken:
            return current_token()

        return [await asyncio.create_task(child()), await asyncio.to_thread(current_token)]

    with as_current(token):
        assert asyncio.run(body()) == [token, token]


def test_a_callback_has_the_token_of_its_body() -> None:
    """A callback knows the task it was registered in, even on another thread."""
    source = CancellationSource(run_callbacks=run_in_thread)
    seen: list[CancellationToken] = []
    done = threading.Event()

    def callback() -> None:
        seen.append(current_token())
        done.set()

    with as_current(source.token):
        source.token.on_cancel(callback)
    source.cancel()
    assert done.wait(PATIENCE), "the callback did not run"
    assert seen == [source.token]
