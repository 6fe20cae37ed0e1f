"""Celery's autoscaler without the half minute that it waits before it shrinks a pool."""

from __future__ import annotations

from celery.worker.autoscale import Autoscaler

__all__ = ["QuickAutoscaler"]


class QuickAutoscaler(Autoscaler):
    """Shrinks after a second."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{**kwargs, "keepalive": 1.0})
