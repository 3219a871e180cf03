"""One of two models that are held against each other, and how a prompt is drawn with it.

mini                    a model
brand@3                 a version: of a checkpoint; of a LoRA or an embedding, on the model it was made for
mini+brand@3            a LoRA or an embedding on another model
"""

from contextlib import suppress
from dataclasses import dataclass

from safelight.errors import InvalidRequest, UnknownVersion
from safelight.models.registry.registry import Registry
from safelight.models.registry.version import RESERVED, Reference, Version
from safelight.spec import Draft, LoraRequest
from safelight.studio import Studio


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedModel:
    name: str
    """As it was asked for, with the version that it stands for now."""
    model: str
    model_digest: str
    version: Version | None = None
    """Of what is held against something else; None for a model that is in no registry."""

    @property
    def is_lora(self) -> bool:
        return self.version is not None and self.version.kind == "lora"

    @property
    def word(self) -> str:
        """What an embedding is called in a prompt."""
        return self.version.name if self.version is not None and self.version.kind == "embedding" else ""

    @property
    def digests(self) -> list[str]:
        """All that its pictures depend on."""
        return [self.model_digest, *([self.version.digest] if self.version is not None else [])]

    @property
    def doubts(self) -> list[str]:
        """What whoever reads its numbers must know: it may be drawn on another model than it was made for."""
        version = self.version
        if version is None or version.kind == "checkpoint":
            return []
        made_from = [parent for parent in version.lineage.parents if parent.digest]
        if not made_from or any(parent.digest == self.model_digest for parent in made_from):
            return []
        return [
            f"{version.reference} was made from {made_from[0].name} {made_from[0].digest[:10]}, and is drawn here on "
            f"{self.model} {self.model_digest[:10]}."
        ]

    def draft(self, prompt: str, *, seed: int, steps: int | None) -> Draft:
        loras: tuple[LoraRequest, ...] = ()
        if self.version is not None and self.version.kind == "lora":
            loras = (LoraRequest(name=self.version.reference),)
        if self.word and self.version is not None:
            prompt = prompt.replace(self.word, self.version.reference)
        return Draft(prompt=prompt, model=self.model, loras=loras, seed=seed, steps=steps)


def open_side(name: str, registry: Registry, studio: Studio) -> ComparedModel:
    """
    Raises:
        UnknownModel, UnknownVersion: nothing has that name.
        InvalidRequest: a version of another kind, or one that does not say on which model it is drawn.
    """
    on, plus, what = name.rpartition("+")
    version = found(what, registry)
    if version is None or version.kind == "checkpoint":
        if plus:
            raise InvalidRequest(f"{what} is a model, and is not drawn on another: say {what} alone")
        model = version.reference if version is not None else what
        return ComparedModel(name=model, model=model, model_digest=studio.models.find(model).digest, version=version)
    if version.kind not in ("lora", "embedding"):
        raise InvalidRequest(f"{version.reference} is a {version.kind}; models, LoRAs and embeddings are compared")
    base = on or base_of(version)
    digest = studio.models.find(base).digest
    return ComparedModel(name=f"{base}+{version.reference}", model=base, model_digest=digest, version=version)


def found(name: str, registry: Registry) -> Version | None:
    if name in RESERVED or not Reference.is_valid(name):
        return None
    with suppress(UnknownVersion):
        return registry.resolve(name)
    if "@" in name:
        registry.resolve(name)  # whoever says @ means a version, and is told which there are
    return None


def base_of(version: Version) -> str:
    """What a version was made from.

    Raises:
        InvalidRequest: that is not known.
    """
    if not version.lineage.parents:
        raise InvalidRequest(
            f"{version.reference} does not say what it was made from; name a model too, as in mini+{version.reference}"
        )
    return version.lineage.parents[0].name
