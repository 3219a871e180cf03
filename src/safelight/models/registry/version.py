"""What is known of a version, and how one is named: `brand`, `brand@3`, `brand@production`."""

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
"""What the embedded model is called wherever a model may be named."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`label` is a number, an alias, or empty: then it is the newest version, or what the name stands for."""

    name: str
    label: str = ""

    @property
    def number(self) -> int | None:
        return int(self.label) if self.label.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.name}@{self.label}" if self.label else self.name

    @staticmethod
    def says(text: str) -> bool:
        """Whether a version could be named so; paths and hub ids are not."""
        name, at, label = text.partition("@")
        return is_name(name) and (not at or bool(re.fullmatch(r"[1-9]\d{0,8}", label) or LABEL.fullmatch(label)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            InvalidRequest: no name could be written so.
        """
        if not cls.says(text):
            raise InvalidRequest(
                f"{text[:120]!r} names no version; say NAME, NAME@3 or NAME@production, "
                "a name being letters, digits and . _ -"
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
    """How a version came about; what is not known is left empty."""

    parents: tuple[Parent, ...] = ()
    dataset_digest: str = ""
    recipe: Mapping[str, Any] = {}
    """Its kind and its settings, so that it can be run again."""
    code_version: str = ""
    metrics: Mapping[str, Any] = {}


class Licence(FrozenRow):
    """What may be done with a version; `models/registry/licences.py` knows the common ones."""

    id: str
    title: str = ""
    url: str = ""
    restrictions: tuple[str, ...] = ()
    """What one must or must not do, a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One model that never changes."""

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
    """The file or the folder that loads."""
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
        """This version, for the lineage of one that is made from it."""
        return Parent(name=self.reference, digest=self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointing:
    """One turn of an alias."""

    alias: str
    to: str | None
    """A version (`brand@3`), or an alias that it follows; None: it was taken away."""
    previous: str | None
    """What it pointed to before."""
    at: float
    by: str
    reason: str
    gate: Mapping[str, Any] | None = None
    """The numbers, the policy and the verdict that it was decided by; None where nobody measured."""
