"""Every public function that takes or returns tensors names their shapes: by a type of its own, or in its docstring."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "safelight"
WINGS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py")))
SHAPE = re.compile(r"\([a-z0-9_+*/ .']+,[a-z0-9_+*/, .']*\)|\bscalar\b|\bany shape\b|\bsame shape\b")
"""`(b, c, h, w)`, `(n,)`, or in words that there is nothing to say."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def bare_tensors(function: Function) -> bool:
    """A parameter or the result is a plain `Tensor`, of whatever shape."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [function.returns]
    return any(re.search(r"\bTensor\b", written(found)) for found in annotations if found is not None)


def written(annotation: ast.expr) -> str:
    """The annotation's source, without what jaxtyping says of a shape."""
    return re.sub(r"\w+\[(torch\.)?Tensor, '[^']*'\]", "", ast.unparse(annotation))


def public_functions(path: Path) -> Iterator[tuple[str, Function, str]]:
    """Name, function, and the docstring that speaks for it: its own, and that of its class."""
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not node.name.startswith("_"):
                yield node.name, node, ast.get_docstring(node) or ""
            case ast.ClassDef() if not node.name.startswith("_"):
                about = ast.get_docstring(node) or ""
                for method in node.body:
                    if isinstance(method, Function) and (not method.name.startswith("_") or method.name == "__call__"):
                        yield f"{node.name}.{method.name}", method, f"{about} {ast.get_docstring(method) or ''}"
            case _:
                pass


def unnamed(wing: str) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in sorted((PACKAGE / wing).rglob("*.py"))
        for name, function, docstring in public_functions(path)
        if bare_tensors(function) and not SHAPE.search(docstring)
    ]


@pytest.mark.parametrize("wing", WINGS)
def test_functions_of_tensors_name_their_shapes(wing: str) -> None:
    assert not (found := unnamed(wing)), "\n".join(found)


def test_a_function_that_names_no_shape_is_found() -> None:
    plain, by_type, by_words = ast.parse(
        "def a(x: Tensor): ...\ndef b(x: Float[Tensor, 'b c']): ...\ndef c(x: Tensor):\n    '''(b, c) in.'''\n"
    ).body
    assert isinstance(plain, ast.FunctionDef)
    assert isinstance(by_type, ast.FunctionDef)
    assert bare_tensors(plain)
    assert not bare_tensors(by_type)
    assert SHAPE.search(ast.get_docstring(by_words) or "")
