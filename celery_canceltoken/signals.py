"""Celery signals of this package's own."""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["task_cancelled"]

task_cancelled = Signal(
    name="task_cancelled",
    providing_args=["task_id", "cause", "reason", "actor", "args", "kwargs"],
)
"""A run ended as it was told to, or never started for that, or another took its id over.

Sent where the body runs; the sender is the task.

It comes after the outcome is decided, and before the result is written or the message sent back. What a
receiver raises is logged by Celery and changes nothing.
"""
