"""What is wrong with what a caller said: all of it at once, by field, in the caller's own words.

    ValidationError -> one error that says it all     `refuse`, `explain`
    a field of ours -> a field of theirs              `in_words`
    several requests for one answer                   `together`

A model that is `Checked` finds clashes between fields and misspelt names along with the rest.
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
SHORTEST_SLIP = 4
"""Any short name is a letter away from another."""
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class CheckedModel(BaseModel):
    """A body that is told all of its faults: of fields, of their names, and of fields that do not go together."""

    other_names: ClassVar[Collection[str]] = ()
    """Older names of its fields, which are no slips."""

    def clashes(self) -> Iterable[SafelightError]:
        """What is wrong beyond single fields. Asked also where some are at fault, which stand at their defaults then:
        what names one of those is not told."""
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def check_all(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        known = list(cls.model_fields)
        faults = [misspelt(name, right) for name, right in slips(values, cls)]
        broken: set[str] = set()
        whole: Self | None = None
        try:
            whole = handler(values)
        except ValidationError as error:
            told = error.errors(include_url=False)
            faults += [detail(fault, known) for fault in told]
            broken = {str(fault["loc"][0]) for fault in told if fault["loc"]}
            if isinstance(values, Mapping) and broken:
                missing = {str(fault["loc"][0]): "" for fault in told if fault["type"] == "missing"}
                rest = {name: value for name, value in values.items() if name not in broken}
                with suppress(ValidationError):  # what is missing is no string: what it clashes with is not known
                    whole = handler(rest | missing)
        if whole is not None:
            faults += [carrying(one, values) for one in whole.clashes() if broken.isdisjoint(heads_of(one))]
        if faults or whole is None:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return whole


def untagged(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """For a union told apart by a tag, which pydantic puts before the names of fields."""
    try:
        return handler(value)
    except ValidationError as error:
        faults = [detail(fault | {"loc": fault["loc"][1:]}, ()) for fault in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(error.title, faults) from None


def slips(values: Any, kind: type[CheckedModel]) -> Iterator[tuple[str, str]]:
    """Of a body that may hold fields of others: names that are known but for one letter, and the known ones."""
    if isinstance(values, Mapping) and kind.model_config.get("extra") == "ignore":
        for name, value in values.items():
            known_so = name in kind.model_fields or name in kind.other_names
            if isinstance(name, str) and not known_so and value is not None:
                yield from ((name, known) for known in kind.model_fields if one_letter_off(name, known))


def one_letter_off(said: str, known: str) -> bool:
    """One is missing, too many, another one, or has changed places with its neighbour."""
    if min(len(said), len(known)) < SHORTEST_SLIP:
        return False
    same = next((place for place, (a, b) in enumerate(zip(said, known, strict=False)) if a != b), len(min(said, known)))
    a, b = said[same:], known[same:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def heads_of(error: SafelightError) -> set[str]:
    fields = error.fields if isinstance(error, InvalidField) else (error.param or "",)
    return {field.partition(".")[0] for field in fields}


def misspelt(name: str, right: str) -> InitErrorDetails:
    return carrying(InvalidField(name, f"no such field; did you mean {right!r}?"), None)


def carrying(error: SafelightError, values: Any) -> InitErrorDetails:
    """An error of ours among pydantic's, at the field that it is about."""
    kind = PydanticCustomError("fault", "{why}", {"why": getattr(error, "why", str(error)), "error": error})
    return InitErrorDetails(type=kind, loc=(error.param,) if error.param else (), input=values)


def detail(fault: Mapping[str, Any], known: Sequence[str]) -> InitErrorDetails:
    """A fault of pydantic's as it can be raised again, with what it leaves out: the value, and the nearest name."""
    carried = fault.get("ctx", {}).get("error")
    context: dict[str, Any] = {"why": why_of(fault, known)}
    if isinstance(carried, SafelightError):
        context["error"] = carried
    return InitErrorDetails(type=PydanticCustomError("fault", "{why}", context), loc=fault["loc"], input=fault["input"])


def why_of(fault: Mapping[str, Any], known: Sequence[str]) -> str:
    match fault["type"]:
        case "fault":
            return fault["msg"]
        case "extra_forbidden":
            # Those of a part are not those of the whole.
            return f"no such field{nearest(str(fault['loc'][0]), list(known)) if len(fault['loc']) == 1 else ''}"
        case "missing":
            return "is needed"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"should be a JSON object, not {shown(fault['input'])}"
        case "value_error" | "assertion_error":
            return str(fault["msg"]).partition(", ")[2]
        case _:
            return f"{fault['msg']} (got {shown(fault['input'])})"


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def faults_in(found: Iterable[Mapping[str, Any]], known: Sequence[str] = (), *, status: int = 400) -> InvalidFields:
    """What pydantic found.

    Args:
        known: the fields of what was validated, where it is not `Checked`.
        status: of what has none of its own.
    """
    errors: list[SafelightError] = []
    for fault in found:
        where = ".".join(str(part) for part in fault["loc"])
        error = fault.get("ctx", {}).get("error")
        if isinstance(error, SafelightError):
            error.param = where or error.param
        else:
            error = InvalidField(where, why_of(fault, known)) if where else InvalidRequest(why_of(fault, known))
        if type(error) in (InvalidField, InvalidRequest):
            error.status = status
        errors.append(error)
    return InvalidFields(errors)


def refuse(error: ValidationError, known: Sequence[str] = ()) -> NoReturn:
    """Raises what is wrong, all at once."""
    raise faults_in(error.errors(include_url=False), known).alone() from None


def explain(error: ValidationError, known: Sequence[str]) -> str:
    """`width: Input should be a multiple of 8 (got 100); stepz: no such field; did you mean 'steps'?`"""
    return str(faults_in(error.errors(include_url=False), known))


@contextmanager
def in_words(words: Mapping[str, str]) -> Iterator[None]:
    """What is refused inside of the block names the caller's fields; `words` has theirs by ours, or by `ours.part`."""
    try:
        yield
    except SafelightError as error:
        for one in each(error):
            reword(one, words)
        raise


@contextmanager
def concerning(field: str) -> Iterator[None]:
    """What is refused inside of the block, and names no field, is about this one."""
    try:
        yield
    except SafelightError as error:
        for one in each(error):
            one.param = one.param or field
        raise


async def together(first: Awaitable[A], second: Awaitable[B], third: Awaitable[C]) -> tuple[A, B, C]:
    """What each gives.

    Raises:
        SafelightError: what is wrong with any of them, all at once.
    """
    a, b, c = await asyncio.gather(first, second, third, return_exceptions=True)
    wrong: list[SafelightError] = []
    for one in (a, b, c):
        if isinstance(one, SafelightError):
            wrong += each(one)
        elif isinstance(one, BaseException):
            raise one
    if wrong:
        raise InvalidFields(wrong).alone()
    return cast("tuple[A, B, C]", (a, b, c))


def each(error: SafelightError) -> Sequence[SafelightError]:
    return error.errors if isinstance(error, InvalidFields) else (error,)


def wrong_in(kind: type[BaseModel], values: Mapping[str, Any], words: Mapping[str, str]) -> Iterator[SafelightError]:
    """What would be wrong with what a body means, in its own words."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        for one in faults_in(error.errors(include_url=False)).errors:
            reword(one, words)
            yield one


def reword(error: SafelightError, words: Mapping[str, str]) -> None:
    if error.param:
        error.param = renamed(error.param, words)
    if isinstance(error, InvalidField):
        error.fields = tuple(renamed(field, words) for field in error.fields)


def renamed(field: str, words: Mapping[str, str]) -> str:
    parts = field.split(".")
    for length in range(len(parts), 0, -1):
        if theirs := words.get(".".join(parts[:length])):
            return ".".join([theirs, *parts[length:]])
    return field
