"""The task base class for Django projects."""

from __future__ import annotations

from celery.contrib.django.task import DjangoTask

from celery_canceltoken.task.base import CancellableTask

__all__ = ["CancellableDjangoTask"]


class CancellableDjangoTask(CancellableTask, DjangoTask):  # type: ignore[type-arg]
    """`CancellableTask` with Celery's `delay_on_commit` and `apply_async_on_commit`.

    Celery gives a Django project's tasks these by itself, but not where `task_cls` names another class.
    So use `Celery(task_cls="celery_canceltoken.django:CancellableDjangoTask")`.
    """

    abstract = True
