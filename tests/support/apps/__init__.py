"""Celery apps for the tests' workers, one module each.

A module holds `make_app`, which tests call for an app of their own, and `app`, which `celery -A` finds.
"""
