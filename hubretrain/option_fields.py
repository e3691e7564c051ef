"""Options as dataclass fields: default, help, choices and bounds of each stand once.

    @dataclass(frozen=True)
    class CacheOptions:
        n_views: int = option(4, "Views per image.", minimum=1, flag="views")

        def __post_init__(self) -> None:
            check_options(self, CacheError)

The command line makes its options from these fields (`hubretrain.cli.options`); `flags_of` writes
the flags that lead to given options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from hubretrain.errors import HubretrainError

_OPTION = "option"


@dataclass(frozen=True)
class Option:
    """What the command line needs to know of a field, besides its name, type and default.

    Attributes:
        help: One sentence.
        choices: The values that it may have.
        minimum: Least value.
        maximum: Largest value.
        above: Value that it must exceed.
        below: Value that it must be less than.
        flag: Name on the command line, or `with/without`; by default the field's name.
        metavar: Name of the value in the help text.
        repeatable: Whether the flag may be repeated; the field is a tuple.
    """

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    flag: str = ""
    metavar: str | None = None
    repeatable: bool = False

    @property
    def range(self) -> str:
        """The bounds in words, such as `1 to 1000`; empty where there are none."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:g} to {self.maximum:g}"
        bounds = {
            "at least": self.minimum,
            "more than": self.above,
            "at most": self.maximum,
            "less than": self.below,
        }
        return " and ".join(
            f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None
        )

    def admits(self, value: float) -> bool:
        """Return whether a number is within the bounds."""
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def option(default: Any, sentence: str, /, **details: Any) -> Any:
    """Return a dataclass field that the command line offers as an option.

    Args:
        default: Default value.
        sentence: Its help.
        details: See `Option`.
    """
    return field(default=default, metadata={_OPTION: Option(sentence, **details)})


def option_of(of_field: Field[Any]) -> Option | None:
    """Return what a field says of its option, None where it is not one."""
    found: Option | None = of_field.metadata.get(_OPTION)
    return found


def flag_of(of_field: Field[Any]) -> str:
    """Return the flag of a field, such as `--views` or `--crop/--no-crop`."""
    described = option_of(of_field)
    flag = (described.flag if described else "") or of_field.name.replace("_", "-")
    if of_field.default is True and "/" not in flag:
        flag = f"{flag}/no-{flag}"
    return "/".join(f"--{name}" for name in flag.split("/"))


def check_options(options: Any, error: type[HubretrainError]) -> None:
    """Check each field against its choices and bounds.

    Raises:
        HubretrainError: A value is none of the choices, or out of bounds; of type `error`.
    """
    for of_field in fields(options):
        described, value = option_of(of_field), getattr(options, of_field.name)
        if described is None or value is None:
            continue
        expected = ""
        if described.choices and value not in described.choices:
            expected = f"one of {', '.join(described.choices)}"
        elif isinstance(value, int | float) and not described.admits(value):
            expected = described.range
        if expected:
            raise error(f"`{of_field.name}` is {value!r}; expected {expected}.")


def flags_of(options: Any) -> list[str]:
    """Return the words of a command line that gives these options; defaults are left out."""
    return [word for of_field, value in _changed(options) for word in _words(of_field, value)]


def _changed(options: Any) -> Iterator[tuple[Field[Any], Any]]:
    for of_field in fields(options):
        value = getattr(options, of_field.name)
        if is_dataclass(value):
            yield from _changed(value)
        elif option_of(of_field) is not None and value not in (None, of_field.default):
            yield of_field, value


def _words(of_field: Field[Any], value: Any) -> list[str]:
    described, (flag, *without) = option_of(of_field), flag_of(of_field).split("/")
    if isinstance(value, bool):
        return [flag] if value else without
    if described is not None and described.repeatable and not isinstance(value, str):
        return [word for item in value for word in (flag, _text(item))]
    return [flag, _text(value)]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_text(number)}" for name, number in value.items())
    if isinstance(value, tuple | list):
        return ",".join(map(_text, value))
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)
