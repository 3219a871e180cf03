"""What kind of thing a field holds, where its type does not say: prompts, and pictures that are stored.

Whoever needs all prompts or pictures of a request finds them by their marks: a new field is found without a change.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Mark(Enum):
    PROMPT = auto()
    """Words that a text encoder reads."""
    PICTURE = auto()
    """The digest of a stored picture that is needed to draw."""
    SOURCE = auto()
    """The digest of a stored picture from which one that is needed was made."""


def marked(value: BaseModel, *marks: Mark) -> Iterator[str]:
    """The values with one of the marks, those of models inside too, in the order of the fields."""
    for name, field in type(value).model_fields.items():
        held = getattr(value, name)
        if held is not None and mark_of(field) in marks:
            yield held
        for inner in held if isinstance(held, tuple) else (held,):  # pyright: ignore[reportUnknownVariableType]
            if isinstance(inner, BaseModel):
                yield from marked(inner, *marks)


def with_marked(
    values: Mapping[str, Any], kind: type[BaseModel], change: Callable[[Any], Any], *marks: Mark
) -> dict[str, Any]:
    """Values of a model's fields, not validated yet, with every marked one changed, in the order of the fields."""
    changed = dict(values)
    for name, field in kind.model_fields.items():
        held, inner = values.get(name), model_in(field)
        if held is not None and mark_of(field) in marks:
            changed[name] = change(held)
        elif inner and isinstance(held, Mapping):
            changed[name] = with_marked(held, inner, change, *marks)  # pyright: ignore[reportUnknownArgumentType]
        elif inner and isinstance(held, list | tuple):
            changed[name] = [
                with_marked(each, inner, change, *marks) if isinstance(each, Mapping) else each  # pyright: ignore
                for each in held  # pyright: ignore[reportUnknownVariableType]
            ]
    return changed


def mark_of(field: FieldInfo) -> Mark | None:
    return next((part for part in parts_of(field) if isinstance(part, Mark)), None)


def model_in(field: FieldInfo) -> type[BaseModel] | None:
    """The model that the field holds, or holds several of."""
    return next((part for part in parts_of(field) if isinstance(part, type) and issubclass(part, BaseModel)), None)


def parts_of(field: FieldInfo) -> Iterator[Any]:
    """All that the field's annotation is made of."""
    found = [*field.metadata, field.annotation]
    while found:
        part = found.pop()
        yield part
        found += get_args(part)
