"""The Celery side of a task: its base class, its token parameter, its execution, its request."""
