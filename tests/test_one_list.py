"""A field of `Draft` is written once: its flag, its field of bodies and its argument of MCP tools follow from it."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field, ValidationError
from typer.testing import CliRunner

from safelight.cli.draft_flags import DRAWING, ELSEWHERE, FLAGS, PANELS, fields_of
from safelight.cli.from_fields import flags, parts, values_of
from safelight.serving.mcp import mcp
from safelight.serving.openai.bodies import NO_EXTRAS, extras_of
from safelight.settings import Settings
from safelight.spec import Draft
from safelight.spec.interface import bare, with_parameters


class Ray(BaseModel, use_attribute_docstrings=True):
    length: int = 5
    """Length of a ray in pixels."""
    colour: str = "white"
    """Colour of a ray."""


class WiderDraft(Draft):
    glow: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Glow, 0 to 1: how far bright areas shine."""
    grain: int | None = None
    """Grain, in pixels; needs `negative_prompt`."""
    film: Literal["none", "sepia"] = "none"
    """Film: the colours of an old one."""
    title: str | None = None
    """Title of the picture."""
    upside_down: bool = False
    """Turn the picture."""
    ray: Ray | None = None
    """Rays of light."""


NEW = {"glow", "grain", "film", "title", "upside_down"}


def command(read: dict[str, Any]) -> typer.Typer:
    """A command with the flags of `WiderDraft`, which puts the values of their fields into `read`."""
    app = typer.Typer()
    fields = fields_of(WiderDraft)

    @app.command()
    @with_parameters(flags(fields, FLAGS, PANELS, DRAWING))
    def draw(**given: Any) -> None:
        read.update(values_of(given, fields, FLAGS, Settings()))

    _ = draw
    return app


def test_a_new_field_is_a_flag() -> None:
    read: dict[str, Any] = {}
    words = "--glow 0.5 --grain 3 --film sepia --title Dusk --upside-down --ray 9 --ray-colour red"
    result = CliRunner().invoke(command(read), words.split())
    assert result.exit_code == 0, result.output
    new = {"glow": 0.5, "grain": 3, "film": "sepia", "title": "Dusk", "upside_down": True}
    assert {name: read[name] for name in NEW} == new
    assert read["ray"] == {"length": 9, "colour": "red"}


def test_a_new_field_that_is_not_given_is_left_to_the_draft() -> None:
    read: dict[str, Any] = {}
    assert CliRunner().invoke(command(read), []).exit_code == 0
    assert {"grain", "title", "ray"}.isdisjoint(read)
    assert WiderDraft(prompt="x", **read) == WiderDraft(prompt="x")


def test_help_shows_the_docstring_with_flags_for_the_fields_it_names() -> None:
    shown = CliRunner().invoke(command({}), ["--help"], env={"COLUMNS": "200"}).output
    assert "Glow, 0 to 1: how far bright areas shine." in shown
    assert "needs --negative." in shown
    assert "Length of a ray in pixels." in shown


def test_a_new_field_is_an_extra_field_of_openais_dialect() -> None:
    extras = extras_of(WiderDraft)
    properties = extras.model_json_schema()["properties"]
    assert properties.keys() >= NEW
    assert properties["glow"]["description"] == "Glow, 0 to 1: how far bright areas shine."
    assert properties["glow"]["maximum"] == 1
    assert extras(ray='{"length": 3}').model_dump()["ray"] == {"length": 3, "colour": "white"}
    with pytest.raises(ValidationError, match="glow"):
        extras(glow=2)


def test_a_new_field_is_an_argument_of_the_mcp_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "Draft", WiderDraft)
    api = mcp.Api(Settings(), owner=True)
    tools = {
        tool.name: tool.input_schema["properties"] for tool in asyncio.run(mcp.mcp_server(api, local=True).list_tools())
    }
    for name in ("generate_image", "edit_image"):
        assert tools[name].keys() >= NEW
        assert tools[name]["film"]["enum"] == ["none", "sepia"]
        assert tools[name]["film"]["description"] == "Film: the colours of an old one."


def models_in(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The model and those that its fields are made of."""
    kinds = [
        kind for field in model.model_fields.values() for kind in (bare(field.annotation), *members(field.annotation))
    ]
    return {model}.union(*(models_in(kind) for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)))


def members(annotation: Any) -> tuple[Any, ...]:
    return getattr(bare(annotation), "__args__", ())


def test_every_field_of_a_draft_and_of_its_parts_is_described() -> None:
    fields: Mapping[str, Any] = {f"{kind.__name__}.{name}": field for kind in models_in(Draft)
                                 for name, field in kind.model_fields.items()}  # fmt: skip
    assert len(fields) > 70
    assert [name for name, field in fields.items() if not field.description] == []


def test_tables_name_fields_that_there_are() -> None:
    assert {*NO_EXTRAS, *mcp.NO_ARGUMENTS, *mcp.OF_EDITS, *mcp.DESCRIPTIONS, *ELSEWHERE} <= Draft.model_fields.keys()
    assert {name for names in PANELS.values() for name in names} <= fields_of().keys()
    keys = {key for name, field in fields_of().items() for key, _, _ in parts(name, field, FLAGS)}
    assert FLAGS.keys() <= keys
