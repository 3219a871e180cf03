"""A registered version and its provenance, and references to versions: `brand`, `brand@3`, `brand@production`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from safelight.errors import InvalidRequest
from safelight.models.weights.identify import Kind

NAME = re.compile(r"\w[\w.-]{0,99}")
LABEL = re.compile(r"[a-zA-Z][\w.-]{0,63}")
RESERVED = ("mini",)
"""The name of the embedded model."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`label` is a number, an alias, or empty: then it is the newest version, or the name is itself an alias."""

    name: str
    label: str = ""

    @property
    def number(self) -> int | None:
        return int(self.label) if self.label.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.name}@{self.label}" if self.label else self.name

    @staticmethod
    def is_valid(text: str) -> bool:
        """Return whether the text is a valid reference; paths and hub ids are not."""
        name, at, label = text.partition("@")
        return is_name(name) and (not at or bool(re.fullmatch(r"[1-9]\d{0,8}", label) or LABEL.fullmatch(label)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            InvalidRequest: the text is not a valid reference.
        """
        if not cls.is_valid(text):
            raise InvalidRequest(
                f"{text[:120]!r} is no reference to a version; use NAME, NAME@3 or NAME@production, "
                "where a name has letters, digits and . _ -"
            )
        name, _, label = text.partition("@")
        return cls(name, label)


def is_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None and not text.endswith(".safetensors")


class FrozenRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parent(FrozenRow):
    """Another model that a version was made from."""

    name: str
    digest: str = ""


class Lineage(FrozenRow):
    """How a version was made; unknown fields are empty."""

    parents: tuple[Parent, ...] = ()
    dataset_digest: str = ""
    recipe: Mapping[str, Any] = {}
    """Kind and settings of the recipe, so that it can be run again."""
    code_version: str = ""
    metrics: Mapping[str, Any] = {}


class Licence(FrozenRow):
    """The licence of a version; `models/registry/licences.py` has the common ones."""

    id: str
    title: str = ""
    url: str = ""
    restrictions: tuple[str, ...] = ()
    """Obligations and prohibitions, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One immutable version of a model."""

    id: int
    name: str
    number: int
    kind: Kind
    digest: str
    base: str
    prediction: str
    size_bytes: int
    files: Mapping[str, str]
    """sha256 of each file, by its path in the folder."""
    folder: Path
    path: Path
    """The file or folder to load."""
    in_place: bool
    source: str
    revision: str
    licence: Licence | None
    lineage: Lineage
    added: float
    added_by: str
    removed: float | None

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"

    def parent(self) -> Parent:
        """Return this version as a parent, for the lineage of a version made from it."""
        return Parent(name=self.reference, digest=self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointing:
    """One move of an alias."""

    alias: str
    to: str | None
    """A version (`brand@3`), or an alias that it follows; None if the alias was removed."""
    previous: str | None
    """Its target before the move."""
    at: float
    by: str
    reason: str
    gate: Mapping[str, Any] | None = None
    """The numbers, the policy and the verdict behind the decision; None if nothing was measured."""
