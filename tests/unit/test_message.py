"""A kept message: what was on the wire comes back as it was."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from celery_canceltoken.message import KeptMessage
from tests.support.orders import MESSAGE


@pytest.mark.parametrize(
    "body",
    [b"", b"[[7], {}, {}]", "客🚪".encode(), b"\x00\xff\x80", bytes(range(256)), b"\xed\xa0\x80", b'"\\\n'],
    ids=repr,
)
def test_every_body_comes_back(body: bytes) -> None:
    """Text or not, byte for byte."""
    message = dataclasses.replace(MESSAGE, body=body)
    assert KeptMessage.from_json(message.to_json()) == message


@pytest.mark.parametrize(("body", "encoding"), [(b"{}", "utf-8"), (b"\xff", "base64")])
def test_a_body_is_stored_as_text_where_it_is_text(body: bytes, encoding: str) -> None:
    """What a person may have to read in the store is readable; what is not text is base64."""
    stored = json.loads(dataclasses.replace(MESSAGE, body=body).to_json())
    assert stored["body_encoding"] == encoding
    assert stored["body"] == ("{}" if encoding == "utf-8" else "/w==")


def test_headers_and_properties_come_back() -> None:
    """With all that JSON can hold."""
    message = dataclasses.replace(
        MESSAGE,
        headers={"task": "shop.export", "stamps": {"tenant": [7]}, "nothing": None, "reason": "客"},
        properties={"priority": 0, "reply_to": "x", "expiration": "5000"},
        exchange="shop",
        routing_key="reports.*",
    )
    assert KeptMessage.from_json(message.to_json()) == message


@pytest.mark.parametrize("place", ["headers", "properties"])
@pytest.mark.parametrize(
    "value", [b"bytes", object(), {1, 2}, math.nan, math.inf], ids=lambda v: type(v).__name__
)
def test_what_is_not_json_cannot_be_kept(place: str, value: Any) -> None:
    """It is an error, rather than something else that comes back."""
    message = dataclasses.replace(MESSAGE, **{place: {"x": value}})
    with pytest.raises((TypeError, ValueError)):
        message.to_json()


WHOLE = json.loads(MESSAGE.to_json())


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "7", "[]", '"text"', "{}"),
        *(json.dumps({name: value for name, value in WHOLE.items() if name != left}) for left in WHOLE),
        json.dumps({**WHOLE, "body": None}),
        json.dumps({**WHOLE, "body": 7}),
        json.dumps({**WHOLE, "body": "\ud800"}),
        json.dumps({**WHOLE, "body": "no base 64!", "body_encoding": "base64"}),
        json.dumps({**WHOLE, "body": "/w=", "body_encoding": "base64"}),
        json.dumps({**WHOLE, "body": None, "body_encoding": "base64"}),
        json.dumps({**WHOLE, "headers": ["task"]}),
        json.dumps({**WHOLE, "properties": None}),
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_bad_json_is_a_value_error(text: str) -> None:
    """Whatever is wrong with what is stored."""
    with pytest.raises(ValueError, match=r".+"):
        KeptMessage.from_json(text)


@pytest.mark.parametrize("eta", [None, "2030-01-01T00:00:00+00:00"])
def test_the_same_message_again(eta: str | None) -> None:
    """As a later generation, for a time or at once; all else is as it was."""
    message = dataclasses.replace(MESSAGE, headers={**MESSAGE.headers, "eta": "2020-01-01T00:00:00"})
    again = message.again(7, eta)
    assert again.headers == {**message.headers, "canceltoken_generation": 7, "eta": eta}
    assert dataclasses.replace(again, headers=message.headers) == message
    assert message.headers["canceltoken_generation"] == 0


@pytest.mark.parametrize(
    ("headers", "stamps"),
    [
        ({}, {}),
        ({"stamps": None}, {}),
        ({"stamps": ["tenant"]}, {}),
        ({"stamps": {"tenant": 7}}, {"tenant": [7]}),
        ({"stamps": {"tenant": [7, "a"]}}, {"tenant": [7, "a"]}),
        ({"stamps": {"tenant": ("a",), 5: "b"}}, {"tenant": ["a"], "5": ["b"]}),
    ],
    ids=str,
)
def test_stamps_are_lists(headers: dict[str, Any], stamps: dict[str, list[Any]]) -> None:
    """However Celery has written them."""
    assert dataclasses.replace(MESSAGE, headers=headers).stamps == stamps


@pytest.mark.parametrize(("headers", "name"), [({"task": "shop.export"}, "shop.export"), ({}, "")])
def test_the_name_of_its_task(headers: dict[str, Any], name: str) -> None:
    """As its headers say."""
    assert dataclasses.replace(MESSAGE, headers=headers).name == name
