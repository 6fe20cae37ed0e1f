"""A task's message as it was on the wire: what a requeue publishes again."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["KEEP_POLICIES", "KeptMessage"]

KEEP_POLICIES = ("until_success", "always", "never")

_GENERATION = "canceltoken_generation"


@dataclass(frozen=True)
class KeptMessage:
    """The bytes and what goes with them. Nothing here decodes the body; it may be of any serializer."""

    body: bytes
    content_type: str
    content_encoding: str
    headers: Mapping[str, Any]
    exchange: str
    routing_key: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    """What the broker is told besides: priority, correlation_id, reply_to, delivery_mode, expiration."""

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.headers.get("task", ""))

    @property
    def stamps(self) -> dict[str, list[Any]]:
        """Celery's stamps by header, each as a list of its values."""
        stamps = self.headers.get("stamps")
        if not isinstance(stamps, Mapping):
            return {}
        return {
            str(header): list(value) if isinstance(value, (list, tuple, set)) else [value]
            for header, value in stamps.items()
        }

    def again(self, generation: int, eta: str | None) -> KeptMessage:
        """The same message as a later generation, to be run at *eta* (ISO 8601; None: at once)."""
        return replace(self, headers={**self.headers, _GENERATION: generation, "eta": eta})

    def to_json(self) -> str:
        """As stored. Raises TypeError or ValueError where a header or property is not JSON."""
        try:
            body, encoding = self.body.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            body, encoding = base64.b64encode(self.body).decode("ascii"), "base64"
        return json.dumps(
            {
                "body": body,
                "body_encoding": encoding,
                "content_type": self.content_type,
                "content_encoding": self.content_encoding,
                "headers": dict(self.headers),
                "exchange": self.exchange,
                "routing_key": self.routing_key,
                "properties": dict(self.properties),
            },
            separators=(",", ":"),
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> KeptMessage:
        """Read back what `to_json` wrote. Raises ValueError."""
        try:
            fields = json.loads(text)
            body = fields["body"]
            encoded = fields["body_encoding"] == "base64"
            if not all(isinstance(fields[name], dict) for name in ("headers", "properties")):
                raise TypeError("headers and properties must be objects")
            return cls(
                body=base64.b64decode(body, validate=True) if encoded else body.encode("utf-8"),
                content_type=fields["content_type"],
                content_encoding=fields["content_encoding"],
                headers=fields["headers"],
                exchange=fields["exchange"],
                routing_key=fields["routing_key"],
                properties=fields["properties"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a kept message: {error!r}") from error
