"""The message of a task, carried as it came on the wire from the worker's main process to its body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_canceltoken.message import KeptMessage
from celery_canceltoken.settings import Settings
from celery_canceltoken.task.policies import keep_policy_of

__all__ = ["PROPERTIES", "Keeping", "attach", "keeping", "kept_message"]

_PLACE = "canceltoken_wire"
PROPERTIES = ("priority", "correlation_id", "reply_to", "delivery_mode", "expiration")


@dataclass(frozen=True)
class Keeping:
    """What is kept of a message in the record."""

    policy: str
    text: str = ""
    """The message in JSON; empty where it is not kept."""
    why_not: str = ""
    """`setting`, `too-large`, `not-json` or `unreadable`."""


def attach(request: Any) -> None:
    """In the main process: lay the wire's own bytes beside what Celery sends to the pool.

    They travel once: the pool's pickle knows that both are the same object.
    """
    message = request.message
    if "task" not in (message.headers or {}):
        # Protocol 1 has no headers that could say which generation it is.
        return
    # Inside the properties, for any other unknown name would be taken for a header of the user's and be
    # published with a retry.
    properties = request.request_dict.get("properties") or {}
    wire = (message.body, message.content_type, message.content_encoding, dict(message.headers))
    request.request_dict["properties"] = {**properties, _PLACE: wire}


def kept_message(request: Any) -> KeptMessage | None:
    """Where the body runs: the message that *request* came with; None where it cannot be told."""
    properties = getattr(request, "properties", None) or {}
    wire = properties.get(_PLACE)
    if wire is None:
        return None
    # It has done its duty, and is of no interest to whoever is shown the request.
    request.properties = {name: value for name, value in properties.items() if name != _PLACE}
    body, content_type, content_encoding, headers = wire
    delivery = getattr(request, "delivery_info", None) or {}
    # kombu has decompressed the body, and says still that it is compressed.
    headers = {name: value for name, value in headers.items() if name != "compression"}
    return KeptMessage(
        body=body.encode(content_encoding or "utf-8") if isinstance(body, str) else bytes(body),
        content_type=content_type,
        content_encoding=content_encoding,
        headers=headers,
        exchange=delivery.get("exchange") or "",
        routing_key=delivery.get("routing_key") or "",
        properties={name: properties[name] for name in PROPERTIES if properties.get(name) is not None},
    )


def keeping(message: KeptMessage | None, task: Any, settings: Settings) -> Keeping:
    """Decide what is kept of *message*: as the task says, else as the settings do."""
    policy = keep_policy_of(task, settings)
    if message is None:
        return Keeping(policy, why_not="unreadable")
    if policy == "never":
        return Keeping(policy, why_not="setting")
    try:
        text = message.to_json()
    except (TypeError, ValueError):
        return Keeping(policy, why_not="not-json")
    if len(text.encode()) > settings.message_limit:
        return Keeping(policy, why_not="too-large")
    return Keeping(policy, text)
