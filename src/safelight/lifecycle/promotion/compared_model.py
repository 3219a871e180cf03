"""One of the two models of a comparison, and how to draw a prompt with it.

mini                    a model
brand@3                 a version of a checkpoint; or of a LoRA or an embedding, on the model it was made for
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
    """The requested name, with aliases resolved to versions."""
    model: str
    model_digest: str
    version: Version | None = None
    """The compared checkpoint, LoRA or embedding; None for a model that is not in the registry."""

    @property
    def is_lora(self) -> bool:
        return self.version is not None and self.version.kind == "lora"

    @property
    def embedding_name(self) -> str:
        """The word that stands for the embedding in prompts; empty if this is none."""
        return self.version.name if self.version is not None and self.version.kind == "embedding" else ""

    @property
    def digests(self) -> list[str]:
        """Digests of every file that its pictures depend on."""
        return [self.model_digest, *([self.version.digest] if self.version is not None else [])]

    @property
    def caveats(self) -> list[str]:
        """Warnings for the report: a LoRA or an embedding drawn on a different model than it was made for."""
        version = self.version
        if version is None or version.kind == "checkpoint":
            return []
        made_from = [parent for parent in version.lineage.parents if parent.digest]
        if not made_from or any(parent.digest == self.model_digest for parent in made_from):
            return []
        return [
            f"{version.reference} was made from {made_from[0].name} {made_from[0].digest[:10]}, but is drawn here with "
            f"{self.model} {self.model_digest[:10]}."
        ]

    def draft(self, prompt: str, *, seed: int, steps: int | None) -> Draft:
        loras: tuple[LoraRequest, ...] = ()
        if self.version is not None and self.is_lora:
            loras = (LoraRequest(name=self.version.reference),)
        if self.version is not None and self.embedding_name:
            prompt = prompt.replace(self.embedding_name, self.version.reference)
        return Draft(prompt=prompt, model=self.model, loras=loras, seed=seed, steps=steps)


def open_compared_model(name: str, registry: Registry, studio: Studio) -> ComparedModel:
    """Resolve a name such as mini, brand@3 or mini+brand@3.

    Raises:
        UnknownModel, UnknownVersion: nothing has that name.
        InvalidRequest: a version of another kind, or one whose base model is not known.
    """
    named_base, plus, target = name.rpartition("+")
    version = find_version(target, registry)
    if version is None or version.kind == "checkpoint":
        if plus:
            raise InvalidRequest(f"{target} is a model, and cannot be added to another: use {target} alone")
        model = version.reference if version is not None else target
        return ComparedModel(name=model, model=model, model_digest=studio.models.find(model).digest, version=version)
    if version.kind not in ("lora", "embedding"):
        raise InvalidRequest(
            f"{version.reference} is a {version.kind}; only models, LoRAs and embeddings can be compared"
        )
    base = named_base or base_of(version)
    digest = studio.models.find(base).digest
    return ComparedModel(name=f"{base}+{version.reference}", model=base, model_digest=digest, version=version)


def find_version(name: str, registry: Registry) -> Version | None:
    if name in RESERVED or not Reference.is_valid(name):
        return None
    with suppress(UnknownVersion):
        return registry.resolve(name)
    if "@" in name:
        registry.resolve(name)  # a name with @ means a version: raise UnknownVersion, which lists the known ones
    return None


def base_of(version: Version) -> str:
    """Name of the model that a version was made from.

    Raises:
        InvalidRequest: its lineage does not record one.
    """
    if not version.lineage.parents:
        raise InvalidRequest(
            f"the base model of {version.reference} is not recorded; name one, as in mini+{version.reference}"
        )
    return version.lineage.parents[0].name
