"""Validation of requests: reports all errors at once, by field, under the caller's names of the fields.

    ValidationError -> one error with all messages    `refuse`, `explain`
    our field name -> the dialect's field name        `rename_fields`
    several awaitables, all their errors              `gather_all`

A `CheckedModel` also reports conflicts between fields and misspelt names.
"""

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, NoReturn, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from safelight.errors import InvalidField, InvalidFields, InvalidRequest, SafelightError, nearest

MAX_SHOWN = 60
MIN_TYPO_LENGTH = 4
"""Shorter names are too often one letter away from each other."""
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class CheckedModel(BaseModel):
    """A request body that reports all errors at once: invalid fields, misspelt names, and conflicts between fields."""

    other_names: ClassVar[Collection[str]] = ()
    """Older names of its fields, which do not count as misspelt."""

    def clashes(self) -> Iterable[SafelightError]:
        """Yield errors between fields. Also called if single fields are invalid, which then have their defaults: errors
        that name one of those are dropped."""
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def check_all(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        known = list(cls.model_fields)
        details = [misspelt_error(name, right) for name, right in misspelt_names(values, cls)]
        invalid: set[str] = set()
        checked: Self | None = None
        try:
            checked = handler(values)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            details += [complete_error(problem, known) for problem in errors]
            invalid = {str(problem["loc"][0]) for problem in errors if problem["loc"]}
            if isinstance(values, Mapping) and invalid:
                missing = {str(problem["loc"][0]): "" for problem in errors if problem["type"] == "missing"}
                rest = {name: value for name, value in values.items() if name not in invalid}
                with suppress(ValidationError):  # a missing field is no string: its conflicts cannot be checked
                    checked = handler(rest | missing)
        if checked is not None:
            details += [wrap_error(one, values) for one in checked.clashes() if invalid.isdisjoint(top_fields(one))]
        if details or checked is None:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return checked


def without_tags(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validator of a tagged union: removes the tag that pydantic puts before the names of fields in errors."""
    try:
        return handler(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        details = [complete_error(problem | {"loc": problem["loc"][1:]}, ()) for problem in errors]
        raise ValidationError.from_exception_data(error.title, details) from None


def misspelt_names(values: Any, kind: type[CheckedModel]) -> Iterator[tuple[str, str]]:
    """In a body that ignores unknown fields: yield each name that is one letter off, and the known name."""
    if isinstance(values, Mapping) and kind.model_config.get("extra") == "ignore":
        for name, value in values.items():
            is_known = name in kind.model_fields or name in kind.other_names
            if isinstance(name, str) and not is_known and value is not None:
                yield from ((name, known) for known in kind.model_fields if one_letter_off(name, known))


def one_letter_off(given: str, known: str) -> bool:
    """Whether one letter is missing, added, replaced, or swapped with its neighbour."""
    if min(len(given), len(known)) < MIN_TYPO_LENGTH:
        return False
    same = next(
        (index for index, (a, b) in enumerate(zip(given, known, strict=False)) if a != b), len(min(given, known))
    )
    a, b = given[same:], known[same:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def top_fields(error: SafelightError) -> set[str]:
    fields = error.fields if isinstance(error, InvalidField) else (error.param or "",)
    return {field.partition(".")[0] for field in fields}


def misspelt_error(name: str, right: str) -> InitErrorDetails:
    return wrap_error(InvalidField(name, f"no such field; did you mean {right!r}?"), None)


def wrap_error(error: SafelightError, values: Any) -> InitErrorDetails:
    """Wrap a SafelightError as an error of pydantic, at its field."""
    kind = PydanticCustomError("problem", "{reason}", {"reason": getattr(error, "reason", str(error)), "error": error})
    return InitErrorDetails(type=kind, loc=(error.param,) if error.param else (), input=values)


def complete_error(problem: Mapping[str, Any], known: Sequence[str]) -> InitErrorDetails:
    """Turn a reported error of pydantic into one that can be raised, with the value and the nearest known name."""
    original = problem.get("ctx", {}).get("error")
    context: dict[str, Any] = {"reason": reason_of(problem, known)}
    if isinstance(original, SafelightError):
        context["error"] = original
    kind = PydanticCustomError("problem", "{reason}", context)
    return InitErrorDetails(type=kind, loc=problem["loc"], input=problem["input"])


def reason_of(problem: Mapping[str, Any], known: Sequence[str]) -> str:
    match problem["type"]:
        case "problem":
            return problem["msg"]
        case "extra_forbidden":
            # The fields of a nested model are not those of the outer one.
            return f"no such field{nearest(str(problem['loc'][0]), list(known)) if len(problem['loc']) == 1 else ''}"
        case "missing":
            return "is needed"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"should be a JSON object, not {shown(problem['input'])}"
        case "value_error" | "assertion_error":
            return str(problem["msg"]).partition(", ")[2]
        case _:
            return f"{problem['msg']} (got {shown(problem['input'])})"


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def to_invalid_fields(
    found: Iterable[Mapping[str, Any]], known: Sequence[str] = (), *, status: int = 400
) -> InvalidFields:
    """Convert errors of pydantic.

    Args:
        known: the field names of the model, unless it is a `CheckedModel`.
        status: HTTP status of errors that have none of their own.
    """
    errors: list[SafelightError] = []
    for problem in found:
        where = ".".join(str(part) for part in problem["loc"])
        error = problem.get("ctx", {}).get("error")
        if isinstance(error, SafelightError):
            error.param = where or error.param
        else:
            error = (
                InvalidField(where, reason_of(problem, known)) if where else InvalidRequest(reason_of(problem, known))
            )
        if type(error) in (InvalidField, InvalidRequest):
            error.status = status
        errors.append(error)
    return InvalidFields(errors)


def refuse(error: ValidationError, known: Sequence[str] = ()) -> NoReturn:
    """Raise all errors as one."""
    raise to_invalid_fields(error.errors(include_url=False), known).simplified() from None


def explain(error: ValidationError, known: Sequence[str]) -> str:
    """`width: Input should be a multiple of 8 (got 100); stepz: no such field; did you mean 'steps'?`"""
    return str(to_invalid_fields(error.errors(include_url=False), known))


@contextmanager
def rename_fields(words: Mapping[str, str]) -> Iterator[None]:
    """Rename fields of errors raised in the block; `words` maps our names, or `name.part`, to the caller's."""
    try:
        yield
    except SafelightError as error:
        for one in single_errors(error):
            rename_in(one, words)
        raise


@contextmanager
def default_field(field: str) -> Iterator[None]:
    """Errors raised in the block that name no field get this one."""
    try:
        yield
    except SafelightError as error:
        for one in single_errors(error):
            one.param = one.param or field
        raise


async def gather_all(first: Awaitable[A], second: Awaitable[B], third: Awaitable[C]) -> tuple[A, B, C]:
    """Await all three and return their results.

    Raises:
        SafelightError: all errors of the three at once.
    """
    a, b, c = await asyncio.gather(first, second, third, return_exceptions=True)
    errors: list[SafelightError] = []
    for one in (a, b, c):
        if isinstance(one, SafelightError):
            errors += single_errors(one)
        elif isinstance(one, BaseException):
            raise one
    if errors:
        raise InvalidFields(errors).simplified()
    return cast("tuple[A, B, C]", (a, b, c))


def single_errors(error: SafelightError) -> Sequence[SafelightError]:
    return error.errors if isinstance(error, InvalidFields) else (error,)


def errors_in(kind: type[BaseModel], values: Mapping[str, Any], words: Mapping[str, str]) -> Iterator[SafelightError]:
    """Yield the errors of validating `values` as `kind`, with fields renamed by `words`."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        for one in to_invalid_fields(error.errors(include_url=False)).errors:
            rename_in(one, words)
            yield one


def rename_in(error: SafelightError, words: Mapping[str, str]) -> None:
    if error.param:
        error.param = rename_field(error.param, words)
    if isinstance(error, InvalidField):
        error.fields = tuple(rename_field(field, words) for field in error.fields)


def rename_field(field: str, words: Mapping[str, str]) -> str:
    parts = field.split(".")
    for length in range(len(parts), 0, -1):
        if theirs := words.get(".".join(parts[:length])):
            return ".".join([theirs, *parts[length:]])
    return field
