"""The agent of a worker and what connects it to the bodies: threads and sockets, no Celery."""
