"""Options that are made from the library's dataclasses."""

from __future__ import annotations

import functools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from hubretrain.cli.options.completion import COMPLETIONS
from hubretrain.option_fields import Option, flag_of, option_of

F = TypeVar("F", bound=Callable[..., Any])


def options_from(
    cls: type,
    name: str = "options",
    *,
    only: tuple[str, ...] = (),
    param_types: Mapping[str, click.ParamType[Any]] | None = None,
) -> Callable[[F], F]:
    """Return a decorator that gives a command the options of a dataclass, as one object.

    Fields that are dataclasses contribute their options, too. What is not given on the command
    line has the default of its field.

    Args:
        cls: Dataclass with fields made by `hubretrain.option_fields.option`.
        name: Parameter of the command that takes the object.
        only: Names of the fields to offer; by default all.
        param_types: Types of values that do not follow from a field's type.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_options(*args: Any, **values: Any) -> Any:
            chosen = _instance(cls, values, only)
            return command(*args, **{name: chosen}, **values)

        decorated: Any = with_options
        for owner, of_field in reversed(list(_option_fields(cls, only))):
            decorated = _click_option(owner, of_field, param_types or {})(decorated)
        return typing.cast(F, decorated)

    return decorate


def _option_fields(cls: type, only: tuple[str, ...] = ()) -> Iterator[tuple[type, Field[Any]]]:
    for of_field in fields(cls):
        if is_dataclass(of_field.default):
            yield from _option_fields(type(of_field.default))
        elif option_of(of_field) is not None and (not only or of_field.name in only):
            yield cls, of_field


def _instance(cls: type, values: dict[str, Any], only: tuple[str, ...]) -> Any:
    """Return an object of the values of its options, which are taken out of `values`."""
    chosen: dict[str, Any] = {}
    for of_field in fields(cls):
        if is_dataclass(of_field.default):
            chosen[of_field.name] = _instance(type(of_field.default), values, ())
        elif option_of(of_field) is not None and (not only or of_field.name in only):
            value = values.pop(of_field.name)
            if value is not None and value != ():  # else the field's own default
                chosen[of_field.name] = value
    return cls(**chosen)


def _click_option(
    cls: type, of_field: Field[Any], param_types: Mapping[str, click.ParamType[Any]]
) -> Callable[[Any], Any]:
    described = option_of(of_field)
    assert described is not None
    flag, default = flag_of(of_field), of_field.default
    details: dict[str, Any] = {"help": _help(cls, described.help), "metavar": described.metavar}
    details["shell_complete"] = COMPLETIONS.get(of_field.name)
    if isinstance(default, bool):
        details |= {"default": default, "is_flag": True, "show_default": "/" in flag}
        return click.option(flag, of_field.name, **details)
    details["type"] = param_types.get(of_field.name) or _param_type(
        typing.get_type_hints(cls)[of_field.name], described
    )
    if described.repeatable:
        return click.option(flag, of_field.name, multiple=True, **details)
    if details["type"] is bool:  # neither of two switches is a third answer
        return click.option(flag, of_field.name, **details | {"default": None, "type": None})
    if default is not None and default is not MISSING and not isinstance(default, tuple):
        details |= {"default": default, "show_default": True}
    return click.option(flag, of_field.name, **details)


def _help(cls: type, text: str) -> str:
    """Return a help sentence with flags for the fields that it names in backticks."""
    flags = {of_field.name: flag_of(of_field).split("/")[0] for _, of_field in _option_fields(cls)}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)


def _param_type(hint: Any, described: Option) -> Any:
    if described.choices:
        return click.Choice(described.choices)
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    kind = kinds[0] if isinstance(hint, types.UnionType) else hint
    if kind is Path:
        return click.Path(path_type=Path, readable=False)
    if typing.get_origin(kind) is tuple:
        return str if typing.get_args(kind)[0] is str else Numbers()
    low = described.minimum if described.above is None else described.above
    high = described.maximum if described.below is None else described.below
    if low is None and high is None:
        return kind
    if kind is int:
        return click.IntRange(_whole(low), _whole(high))
    return click.FloatRange(
        low, high, min_open=described.above is not None, max_open=described.below is not None
    )


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers of at least 0, separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers."""
        try:
            numbers = tuple(float(number) for number in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers, such as 1,10,100", param, ctx)
        if not all(0 <= number < float("inf") for number in numbers):
            self.fail(f"{value!r}: expected numbers of at least 0", param, ctx)
        return numbers
