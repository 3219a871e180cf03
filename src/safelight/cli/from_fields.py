"""Flags made from the fields of a model: `--fit` from `fit: Fit = "crop"` and its docstring.

A number, word, switch or choice needs nothing more. `Flag` holds the rest: another name, a short form, a parser.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from safelight.spec.interface import bare, keyword

if TYPE_CHECKING:
    from safelight.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """How a flag differs from what its field's name, type, default and docstring make of it."""

    name: str | None = None
    """`negative` is `--negative`."""
    short: str | None = None
    """`s` is `-s`."""
    metavar: str | None = None
    kind: Any = None
    """Type that Typer parses; a `list[str]` may be given several times."""
    shown: str | None = None
    """The default in words, such as "random"."""
    help: str | None = None
    """In place of the field's docstring, where the flag has a form of its own."""
    parse: "Callable[[Any, Settings], Any] | None" = None
    """From a value of `kind` to a value of the field."""


PLAIN = Flag()
Fields = Mapping[str, FieldInfo]
Table = Mapping[str, Flag]


def flags(fields: Fields, table: Table, panels: Mapping[str, Iterable[str]], other: str) -> Iterator[inspect.Parameter]:
    """A parameter for each flag, panel by panel; "" is the panel without a title.

    Args:
        other: the panel of fields that no panel names.
    """
    panel_of = {name: panel for panel, names in panels.items() for name in names}
    place = {panel: number for number, panel in enumerate(panels)}
    flag_names = {name: flag_name(name, table) for name in fields}
    for name in sorted(fields, key=lambda name: place[panel_of.get(name, other)]):
        for key, part, field in parts(name, fields[name], table):
            flag = table.get(key, PLAIN)
            open_ = flag.parse is not None or field.is_required() or (key == name and part != "")
            default = None if open_ or kind_of(field) == list[str] else field.default
            panel = panel_of.get(name, other) or None
            yield option(key, field, flag, default=default, panel=panel, flag_names=flag_names)


def parts(name: str, field: FieldInfo, table: Table) -> list[tuple[str, str, FieldInfo]]:
    """The key, the part and the field of each flag of a field: one, with part "", unless the field is a model.

    The first part of a model has the flag of the whole, without which the others do nothing: `--highres 2
    --highres-steps 10`.
    """
    kind = bare(field.annotation)
    if table.get(name, PLAIN).parse or not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return [(name, "", field)]
    keys = [name, *(f"{name}_{part}" for part in list(kind.model_fields)[1:])]
    return [(key, part, field) for key, (part, field) in zip(keys, kind.model_fields.items(), strict=True)]


def option(
    name: str,
    field: FieldInfo,
    flag: Flag = PLAIN,
    *,
    default: Any = None,
    panel: str | None,
    flag_names: Mapping[str, str],
) -> inspect.Parameter:
    """A parameter that Typer reads as a flag. Bounds are for the model to check, all at once."""
    kind = flag.kind or kind_of(field)
    long = f"--{(flag.name or name).replace('_', '-')}"
    long = f"{long}/--no-{long[2:]}" if kind is bool and default is not False else long
    names = [long, f"-{flag.short}"] if flag.short else [long]
    shown: Any = True if flag.shown is None else flag.shown or False
    text = flag.help or help_of(field, flag_names)
    text = re.sub(r"; left out, .*?\.(?=\s|$)", ".", text) if flag.shown else text  # the default is shown anyway
    made = typer.Option(*names, metavar=flag.metavar, help=text, show_default=shown, rich_help_panel=panel)
    return keyword(flag.name or name, Annotated[kind | None, made], default)


def kind_of(field: FieldInfo) -> Any:
    kind = bare(field.annotation)
    return list[str] if get_origin(kind) is tuple else kind


def flag_name(name: str, table: Table) -> str:
    return f"--{(table.get(name, PLAIN).name or name).replace('_', '-')}"


def help_of(field: FieldInfo, flag_names: Mapping[str, str]) -> str:
    """The field's docstring, with flags for the fields that it names, in Rich's markup."""
    text = re.sub(r"`(\w+)`", lambda found: flag_names.get(found[1], found[0]), field.description or "")
    return text.replace("[", "\\[")


def values_of(given: Mapping[str, Any], fields: Fields, table: Table, settings: "Settings") -> dict[str, Any]:
    """The fields' values from those of their flags; fields without a value are left out."""
    values: dict[str, Any] = {}
    for name, field in fields.items():
        read = {part: value_of(given, key, table, settings) for key, part, _ in parts(name, field, table)}
        if next(iter(read.values())) is not None:
            values[name] = read.get("", {part: value for part, value in read.items() if value is not None})
    return values


def value_of(given: Mapping[str, Any], key: str, table: Table, settings: "Settings") -> Any:
    flag = table.get(key, PLAIN)
    value = given[flag.name or key]
    if value is None or value == []:
        return None
    return flag.parse(value, settings) if flag.parse else value
