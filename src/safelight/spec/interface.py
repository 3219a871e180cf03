"""How an interface takes its arguments from the fields of a model: types, and signatures made of them.

The command line, OpenAI's dialect and the MCP tools are made this way from `Draft`, and `safelight train` from recipes.
"""

import inspect
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

F = TypeVar("F", bound=Callable[..., Any])


def bare(annotation: Any) -> Any:
    """The type without its bounds and without None: `Annotated[int, Field(ge=1)] | None` is `int`."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return bare(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


def is_scalar(field: FieldInfo) -> bool:
    """Whether a value of the field is one word or number, and not a list or an object."""
    kind = bare(field.annotation)
    return kind in (bool, int, float, str) or get_origin(kind) is Literal


def keyword(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_parameters(parameters: Iterable[inspect.Parameter]) -> Callable[[F], F]:
    """Replace the `**fields` in a function's signature by these keyword parameters, for libraries that read it.

    They precede the function's own keyword parameters; one with a name that the function has itself is left out.
    """

    def change(function: F) -> F:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        names = {one.name for one in own}
        added = [one for one in parameters if one.name not in names]
        first = [one for one in own if one.kind is not one.KEYWORD_ONLY]
        last = [one for one in own if one.kind is one.KEYWORD_ONLY]
        function.__signature__ = signature.replace(parameters=[*first, *added, *last])  # pyright: ignore
        return function

    return change
