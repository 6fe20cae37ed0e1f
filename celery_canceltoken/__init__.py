"""Cooperative cancellation for Celery tasks."""

__version__ = "0.1.0"
