"""The token parameter: found by its annotation, hidden from callers, filled in at the call."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import pytest
from celery import Celery

import celery_canceltoken
from celery_canceltoken.task.base import CancellableTask
from celery_canceltoken.task.injection import (
    find_token_parameter,
    holds_token,
    with_token,
    without_tokens,
)
from celery_canceltoken.token import CancellationSource, CancellationToken

if TYPE_CHECKING:
    from celery_canceltoken import token as token_module

Function = Callable[..., Any]
NONE = CancellationToken.none
KIND = inspect.Parameter


# Each gives back what it was called with, the token by its own name first.


def first(token: CancellationToken, a: int, b: int = 2) -> Any:
    return token, a, b


def middle(a: int, token: CancellationToken, b: int = 2) -> Any:
    return token, a, b


def last(a: int, b: int = 2, token: CancellationToken = NONE) -> Any:
    return token, a, b


def keyword_only(a: int, b: int = 2, *, token: CancellationToken) -> Any:
    return token, a, b


def positional_only(a: int, token: CancellationToken, /, b: int = 2) -> Any:
    return token, a, b


def positional_only_first(token: CancellationToken, /, a: int, b: int = 2) -> Any:
    return token, a, b


def before_star_args(a: int, token: CancellationToken, *b: int) -> Any:
    return token, a, b[0] if b else 2


def with_star_kwargs(a: int, token: CancellationToken, **b: int) -> Any:
    return token, a, b.get("b", 2)


POSITIONS = [
    first,
    middle,
    last,
    keyword_only,
    positional_only,
    positional_only_first,
    before_star_args,
    with_star_kwargs,
]


@pytest.fixture
def token() -> CancellationToken:
    """A token that is not `none`."""
    return CancellationSource().token


def filled(function: Function, token: CancellationToken, /, *args: Any, **kwargs: Any) -> Any:
    """Call the function as a task's body is called."""
    parameter = find_token_parameter(function)
    assert parameter is not None
    args, kwargs = with_token(parameter, token, args, kwargs)
    return function(*args, **kwargs)


@pytest.mark.parametrize("function", POSITIONS)
def test_it_is_found_wherever_it_stands(function: Function) -> None:
    """The annotation decides, not the place or the name."""
    parameter = find_token_parameter(function)
    assert parameter is not None
    assert parameter.name == "token"


@pytest.mark.parametrize("function", POSITIONS)
def test_it_is_filled_in_where_the_caller_left_it_out(function: Function, token: CancellationToken) -> None:
    """Callers pass the other arguments as if the token were not there."""
    assert filled(function, token, 1) == (token, 1, 2)


@pytest.mark.parametrize(
    "function", [one for one in POSITIONS if one not in (with_star_kwargs, keyword_only)]
)
def test_it_is_filled_in_between_positional_arguments(function: Function, token: CancellationToken) -> None:
    """Positional arguments keep their places around it."""
    assert filled(function, token, 1, 3) == (token, 1, 3)


@pytest.mark.parametrize("function", [one for one in POSITIONS if one is not before_star_args])
def test_it_is_filled_in_beside_keyword_arguments(function: Function, token: CancellationToken) -> None:
    """Keyword arguments stay what they were."""
    assert filled(function, token, 1, b=3) == (token, 1, 3)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (first, (NONE, 1, 3), {}),
        (middle, (1, NONE, 3), {}),
        (middle, (1,), {"token": NONE, "b": 3}),
        (last, (1, 3, NONE), {}),
        (last, (1, 3), {"token": NONE}),
        (keyword_only, (1, 3), {"token": NONE}),
        (positional_only, (1, NONE, 3), {}),
        (before_star_args, (1, NONE, 3), {}),
    ],
)
def test_what_the_caller_passed_for_it_is_discarded(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], token: CancellationToken
) -> None:
    """A placeholder, positional or by keyword, makes room for the run's own token."""
    assert filled(function, token, *args, **kwargs) == (token, 1, 3)


def test_a_callers_live_token_is_discarded_as_well(token: CancellationToken) -> None:
    """A token of somebody else's never reaches the body."""
    assert filled(middle, token, 1, CancellationSource().token, 3) == (token, 1, 3)


def test_a_bound_method_is_filled_in_after_self(token: CancellationToken) -> None:
    """A task's own object counts as the first argument."""

    def body(self: object, token: CancellationToken, a: int) -> Any:
        return self, token, a

    assert filled(body, token, "self", 1) == ("self", token, 1)


def optional(token: Optional[CancellationToken] = None) -> None:  # noqa: UP045
    """The spelling of older code."""


def union(token: Union[CancellationToken, None] = None) -> None:  # noqa: UP007
    """Likewise."""


def pipe(token: CancellationToken | None = None) -> None:
    """The spelling of today."""


def annotated(token: Annotated[CancellationToken, "the run's own"]) -> None:
    """With something for another tool."""


def annotated_optional(token: Annotated[CancellationToken | None, 1] = None) -> None:
    """Both at once."""


def qualified(token: celery_canceltoken.CancellationToken) -> None:
    """By the name of the module."""


def type_checking_only(token: token_module.CancellationToken) -> None:
    """A name that does not exist at run time."""


def other_name(stop: CancellationToken) -> None:
    """Called otherwise."""


@pytest.mark.parametrize(
    "function",
    [
        optional,
        union,
        pipe,
        annotated,
        annotated_optional,
        qualified,
        type_checking_only,
        other_name,
    ],
)
def test_it_is_found_in_every_spelling(function: Function) -> None:
    """Optional, annotated, quoted or out of reach at run time: it is the token all the same."""
    parameter = find_token_parameter(function)
    assert parameter is not None
    assert list(parameter.callers_signature.parameters) == []


def real(annotation: Any) -> Function:
    """A function whose annotation is this object, as in a module without postponed annotations."""

    def function(token: Any = None) -> None: ...

    function.__annotations__ = {"token": annotation}
    return function


@pytest.mark.parametrize(
    "annotation",
    [
        CancellationToken,
        Optional[CancellationToken],  # noqa: UP045
        CancellationToken | None,
        Annotated[CancellationToken, 1],
        Annotated[Optional[CancellationToken], 1],  # noqa: UP045
        "CancellationToken",
        "CancellationToken | None",
        "typing.Optional[CancellationToken]",
        "elsewhere.CancellationToken",
    ],
    ids=str,
)
def test_it_is_found_where_annotations_are_objects(annotation: Any) -> None:
    """Modules with and without postponed annotations work alike."""
    assert find_token_parameter(real(annotation)) is not None


@pytest.mark.parametrize("annotation", [int, "int", "no.such.Name", Any, None, typing.Callable[[], int], 5])
def test_other_annotations_are_not_taken_for_it(annotation: Any) -> None:
    """A parameter of any other kind stays the caller's, whatever stands in its annotation."""
    assert find_token_parameter(real(annotation)) is None


def test_a_function_without_annotations_has_none() -> None:
    """A name alone makes no token."""
    assert find_token_parameter(lambda token: token) is None


def test_a_return_annotation_is_no_parameter() -> None:
    """A function that makes a token does not take one."""

    def make() -> CancellationToken:
        return NONE

    assert find_token_parameter(make) is None


def test_what_has_no_signature_has_no_token() -> None:
    """A callable that tells nothing of its parameters is no error."""
    assert find_token_parameter(dict) is None


def test_a_wrapped_function_is_looked_through() -> None:
    """A decorator that keeps the signature keeps the token, with its module's own names."""

    @functools.wraps(middle)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return middle(*args, **kwargs)

    parameter = find_token_parameter(wrapper)
    assert parameter is not None
    assert parameter.position == 1


def test_two_of_them_are_a_type_error() -> None:
    """A function with two tokens is refused with both names and the remedy."""

    def two(token: CancellationToken, a: int, other: CancellationToken | None = None) -> None: ...

    with pytest.raises(TypeError, match=r"two\(\) has 2 .*\(token, other\).*keep one of them"):
        find_token_parameter(two)


@pytest.mark.parametrize("function", POSITIONS)
def test_callers_do_not_see_it(function: Function) -> None:
    """The signature for callers lacks the token and nothing else."""
    parameter = find_token_parameter(function)
    assert parameter is not None
    whole = inspect.signature(function)
    others = [one for name, one in whole.parameters.items() if name != "token"]
    assert list(parameter.callers_signature.parameters.values()) == others
    assert parameter.callers_signature.return_annotation == whole.return_annotation


@pytest.mark.parametrize(
    ("args", "kwargs", "held"),
    [
        (None, None, False),
        ((), {}, False),
        ((1, "x"), {"a": None}, False),
        ((1, NONE), None, True),
        ([NONE], {}, True),
        ((), {"token": NONE}, True),
        ((CancellationSource().token,), {}, True),
    ],
)
def test_a_passed_token_is_noticed(args: Any, kwargs: Any, held: bool) -> None:
    """Whether a caller has passed a token shows, however it did."""
    assert holds_token(args, kwargs) is held


def test_placeholders_are_dropped_from_what_is_sent() -> None:
    """Nothing of a token goes into a message."""
    args, kwargs = without_tokens([1, NONE, 2], {"a": 3, "token": CancellationSource().token})
    assert (args, kwargs) == ((1, 2), {"a": 3})


def test_nothing_to_drop_is_nothing_dropped() -> None:
    """Arguments that were never given stay empty."""
    assert without_tokens(None, None) == ((), {})


# As a task.


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app of the test's own, which sends nothing."""
    app = Celery("shop", set_as_current=False, broker="memory://", task_cls=CancellableTask)
    yield app
    app.close()


@pytest.mark.parametrize("function", POSITIONS)
def test_a_task_shows_the_callers_signature(app: Celery, function: Function) -> None:
    """Whoever inspects a task sees what may be passed to it."""
    task = app.task(function, name=f"test.{function.__name__}")
    assert "token" not in inspect.signature(task.run).parameters
    assert "a" in inspect.signature(task.run).parameters


def test_a_task_keeps_the_token_of_its_own_signature_hidden_from_its_argument_check(app: Celery) -> None:
    """A call with the token's place taken by a further argument is refused before it is sent."""
    task = app.task(first)
    with pytest.raises(TypeError):
        task.delay(1, 2, 3)
    with pytest.raises(TypeError):
        task.delay()
    with pytest.raises(TypeError):
        task.delay(1, token="mine")


def test_a_task_may_be_called_with_or_without_a_placeholder(app: Celery) -> None:
    """The argument check lets both spellings pass."""
    task = app.task(middle)
    for call in (lambda: task.delay(1, 3), lambda: task.delay(1, NONE, 3), lambda: task.delay(1, token=NONE)):
        assert call().id


def test_two_tokens_are_refused_at_decoration(app: Celery) -> None:
    """The mistake shows when the module is loaded, not when the task runs."""
    with pytest.raises(TypeError, match="keep one of them"):

        @app.task(lazy=False)
        def two(token: CancellationToken, other: CancellationToken) -> None: ...


@pytest.mark.parametrize("function", POSITIONS)
def test_a_direct_call_gets_none(app: Celery, function: Function) -> None:
    """Called like a function the task runs with the token that never trips."""
    task = app.task(function, name=f"test.{function.__name__}")
    assert task(1) == (NONE, 1, 2)


def test_a_direct_call_keeps_the_token_it_was_given(app: Celery, token: CancellationToken) -> None:
    """A caller in the same process may hand its own token down."""
    assert app.task(middle)(1, token) == (token, 1, 2)


def test_an_eager_call_gets_a_live_token(app: Celery) -> None:
    """`apply()` runs with a token of the run's own."""

    def body(a: int, token: CancellationToken) -> list[Any]:
        return [a, token.can_be_cancelled]

    assert app.task(body).apply((1,)).get() == [1, True]


def test_a_task_without_a_token_is_left_alone(app: Celery) -> None:
    """A body that wants no token gets none, and is known as one that does not look."""

    def body(a: int, b: int = 2) -> int:
        return a + b

    task = app.task(body)
    assert task(1) == 3
    assert task.apply((1, 4)).get() == 5
    assert task.token_parameter is None


@pytest.mark.parametrize(
    "annotation",
    [Optional["CancellationToken"], Annotated["CancellationToken", 1]],
    ids=str,
)
def test_it_is_found_where_only_the_inner_name_is_quoted(annotation: Any) -> None:
    """`Optional["CancellationToken"]` is the token as well."""
    assert find_token_parameter(real(annotation)) is not None


@pytest.mark.parametrize("annotation", ["'CancellationToken'", "'CancellationToken | None'"])
def test_it_is_found_where_a_postponed_annotation_is_quoted_as_well(annotation: str) -> None:
    """Quotes that `from __future__ import annotations` has made needless do no harm."""
    assert find_token_parameter(real(annotation)) is not None


def test_a_positional_only_token_behind_a_default_finds_its_place(token: CancellationToken) -> None:
    """Arguments that the caller left to their defaults keep their defaults."""

    def body(a: int = 1, token: CancellationToken = NONE, /) -> Any:
        return token, a

    assert filled(body, token) == (token, 1)


@pytest.mark.parametrize("annotation", [list[CancellationToken], dict[str, CancellationToken]], ids=str)
def test_a_container_of_tokens_is_not_the_token(annotation: Any) -> None:
    """A body that wants several tokens from its caller does not get one in their place."""
    assert find_token_parameter(real(annotation)) is None


def test_a_star_parameter_is_not_the_token() -> None:
    """What takes any number of arguments cannot be the one token."""

    def body(*tokens: CancellationToken) -> None: ...

    assert find_token_parameter(body) is None
