"""The token parameter: finding it, hiding it from callers, filling it in."""

from __future__ import annotations

import builtins
import inspect
import types
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery_canceltoken.token import PLACEHOLDER, CancellationToken

__all__ = [
    "TokenParameter",
    "find_token_parameter",
    "holds_token",
    "is_placeholder",
    "warn_of_hidden_token_parameter",
    "with_token",
    "without_tokens",
]


@dataclass(frozen=True)
class TokenParameter:
    """Where a function wants its token."""

    name: str
    position: int
    """Among the parameters; meaningless where it can only be passed by keyword."""
    kind: inspect._ParameterKind
    callers_signature: inspect.Signature
    """What callers see: the signature without the token."""


def find_token_parameter(function: Callable[..., Any]) -> TokenParameter | None:
    """Find the parameter annotated as a CancellationToken, wherever it stands; None without one.

    Raises TypeError where there are two.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    parameters = list(signature.parameters.values())
    found = [index for index, one in enumerate(parameters) if _is_token(one, namespace)]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(parameters[index].name for index in found)
        raise TypeError(
            f"{getattr(function, '__qualname__', function)!s}() has {len(found)} CancellationToken "
            f"parameters ({names}); a task gets one token: keep one of them"
        )
    (index,) = found
    parameter = parameters[index]
    others = [one for one in parameters if one is not parameter]
    return TokenParameter(
        name=parameter.name,
        position=index,
        kind=parameter.kind,
        callers_signature=signature.replace(parameters=others),
    )


def warn_of_hidden_token_parameter(function: Callable[..., Any], parameter: TokenParameter | None) -> None:
    """Warn where a decorator without `functools.wraps` keeps a token parameter from being seen."""
    for cell in getattr(function, "__closure__", None) or () if parameter is None else ():
        try:
            inner = cell.cell_contents
        except ValueError:
            continue
        if inspect.isfunction(inner) and find_token_parameter(inner) is not None:
            warnings.warn(
                f"{inner.__qualname__}() wants a CancellationToken, but the decorator that returned "
                f"{function.__qualname__}() hides that, so it gets none; decorate with functools.wraps",
                RuntimeWarning,
                stacklevel=4,
            )


def with_token(
    parameter: TokenParameter, token: CancellationToken, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with *token* in its place; whatever the caller passed for it is gone."""
    args, kwargs = without_tokens(args, kwargs)
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        args += _defaults_between(parameter, len(args))
    by_position = parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (
        parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and parameter.position < len(args)
    )
    if by_position:
        return (*args[: parameter.position], token, *args[parameter.position :]), kwargs
    return args, {**kwargs, parameter.name: token}


def _defaults_between(parameter: TokenParameter, given: int) -> tuple[Any, ...]:
    """What fills the places before a positional-only token that a caller left to their defaults."""
    skipped = list(parameter.callers_signature.parameters.values())[given : parameter.position]
    missing = any(one.default is inspect.Parameter.empty for one in skipped)
    return () if missing else tuple(one.default for one in skipped)


def holds_token(args: Any, kwargs: Any) -> bool:
    """Tell whether a caller passed a token, live or not, or what one becomes in JSON."""
    return any(is_placeholder(one) for one in (*(args or ()), *(kwargs or {}).values()))


def is_placeholder(value: Any) -> bool:
    """Tell whether *value* stands in the place of a token."""
    return isinstance(value, CancellationToken) or value == PLACEHOLDER


def without_tokens(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Drop the tokens that a caller passed: they are placeholders, and go to nobody."""
    return (
        tuple(one for one in args or () if not is_placeholder(one)),
        {name: one for name, one in (kwargs or {}).items() if not is_placeholder(one)},
    )


def _is_token(parameter: inspect.Parameter, namespace: dict[str, Any]) -> bool:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return False
    return parameter.annotation is not inspect.Parameter.empty and _means_token(
        parameter.annotation, namespace
    )


def _means_token(annotation: Any, namespace: dict[str, Any]) -> bool:
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, {}, _Names(namespace))
        except Exception:
            return False
        return _means_token(annotation, namespace)
    if annotation is CancellationToken:
        return True
    # A list of tokens is not a token: only what may be one counts.
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _means_token(arguments[0], namespace)
    if origin in (typing.Union, types.UnionType):
        return any(_means_token(argument, namespace) for argument in arguments)
    return False


class _Names(dict[str, Any]):
    """The names an annotation may use, with stand-ins for those under `TYPE_CHECKING` only."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        return _Unknown().__getattr__(name)


class _Unknown:
    """A name that does not exist at run time: a module, or a type that is not the token's."""

    def __getattr__(self, name: str) -> Any:
        if name == CancellationToken.__name__:
            return CancellationToken
        return getattr(typing, name, self)

    def __getitem__(self, _: Any) -> _Unknown:
        return self

    def __or__(self, other: Any) -> Any:
        return typing.Optional[other]  # noqa: UP045 - what `|` would make, of what may not know it

    __ror__ = __or__
