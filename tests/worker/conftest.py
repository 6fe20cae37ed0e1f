"""The agent's chores on a real store, one turn at a time: no threads, and no Celery."""

from __future__ import annotations

from tests.store.conftest import every_key_expires, lab, redis, settings, store

__all__ = ["every_key_expires", "lab", "redis", "settings", "store"]
