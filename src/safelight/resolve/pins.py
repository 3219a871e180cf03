"""Names of a draft, each with the digest of the file that it stands for now."""

from safelight.models.checkpoints.families import require_successor, text_widths
from safelight.models.networks.pool import Found
from safelight.models.networks.textual_inversion import pin_embeddings
from safelight.models.vision.face import require_aligned
from safelight.resolve.plugins import checked_effects
from safelight.spec import Draft
from safelight.spec.marks import Mark, marked
from safelight.spec.parts import PartName, PinnedEmbedding, PinnedPart, PinnedRefiner
from safelight.studio import Studio


def named_embeddings(draft: Draft, studio: Studio, found: Found) -> tuple[PinnedEmbedding, ...]:
    """The textual inversions that the prompts name."""
    return pin_embeddings(
        studio.models.catalogue,
        tuple(marked(draft, Mark.PROMPT)),
        model=draft.model,
        model_widths=lambda: text_widths(found.description),
    )


def pin_parts(draft: Draft, studio: Studio) -> dict[PartName, PinnedPart]:
    """The autoencoder and text encoder that replace the model's own."""
    wanted: dict[PartName, str | None] = {"vae": draft.vae, "text_encoder": draft.text_encoder}
    return {part: studio.parts.folder.pin(part, name) for part, name in wanted.items() if name is not None}


def pin_refiner(draft: Draft, studio: Studio, found: Found) -> PinnedRefiner | None:
    """
    Raises:
        UnsupportedOption: the refiner cannot continue from the model's latents.
    """
    if draft.refiner is None:
        return None
    refiner = studio.models.find(draft.refiner)
    names = draft.model, draft.refiner
    require_successor(found.description, refiner.description, names=names, masked=draft.mask is not None)
    switch = {} if draft.refiner_switch is None else {"switch": draft.refiner_switch}
    return PinnedRefiner(model=draft.refiner, digest=refiner.digest, **switch)


def pin_effects(draft: Draft, studio: Studio, found: Found) -> Draft:
    """Every effect that the draft uses, with the digests of its files, and plugins' values checked."""
    draft = draft.model_copy(update={"effects": checked_effects(draft, studio)})
    for effect in studio.effects.values():
        if effect.used(draft):
            draft = effect.pin(draft, found.description)
    for digest in marked(draft, Mark.PICTURE):
        studio.assets.path_of(digest)
    for prompt in draft.picture_prompts:
        if prompt.image is not None and prompt.face_model is not None:
            require_aligned(studio.size_of(prompt.image))
    return draft
