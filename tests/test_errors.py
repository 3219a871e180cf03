import inspect
import re

import pytest

from safelight import errors
from safelight.errors import (
    InvalidRequest,
    MissingExtra,
    SafelightError,
    UnknownModel,
    UnknownSampler,
    UnsupportedOption,
    nearest,
    needing,
)

CLASSES = [item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, SafelightError)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+) +(\d+)|^    (\w+) +(\d+)$", errors.__doc__ or "", re.MULTILINE)
    said = {name or root: int(status or root_status) for name, status, root, root_status in drawn}
    assert said == {item.__name__: item.status for item in CLASSES}


def test_codes_are_stable_names_and_all_different() -> None:
    codes = [item.code for item in CLASSES if "code" in vars(item)]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_what_the_caller_did_wrong_is_a_400_or_a_404() -> None:
    assert {item.status for item in CLASSES if issubclass(item, InvalidRequest)} == {400, 404}


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("Euler A", ["Euler", "Euler a"], "; did you mean 'Euler a' or 'Euler'?"),
        ("mimi", ["mini", "other"], "; did you mean 'mini'?"),
        ("xyz", ["mini"], ""),
        ("", [], ""),
    ],
)
def test_the_nearest_names_are_suggested(name: str, known: list[str], said: str) -> None:
    assert nearest(name, known) == said


def test_messages_say_what_was_wrong_and_what_would_be_right() -> None:
    assert str(UnknownModel("mimi", ["mini"])) == "no model named 'mimi'; did you mean 'mini'?; known: mini"
    assert "did you mean 'Euler'" in str(UnknownSampler("Euller", ["Euler", "DDIM"]))
    assert str(UnsupportedOption("steps", "at most 9")) == "steps: at most 9"


def test_what_an_extra_would_bring_is_named_with_the_extra() -> None:
    with pytest.raises(MissingExtra) as caught, needing("server", "mcp"):
        import a_package_that_nobody_has  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert str(caught.value) == "a_package_that_nobody_has is missing: pip install 'safelight[server,mcp]'"


def test_a_module_of_ours_that_is_missing_is_a_fault_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError), needing("server"):
        import safelight.nowhere  # noqa: F401  # pyright: ignore[reportMissingImports]
