"""What drawing a spec would raise, as far as it shows without a network in memory: the caller learns it at once."""

from safelight.engine.loader import refiners_of
from safelight.engine.rehearse import rehearse, require_white
from safelight.models.networks.pool import Found
from safelight.models.networks.textual_inversion import load_embedding
from safelight.spec import Denoised, Inpaint
from safelight.studio import Studio, pictures_of


def require_drawable(spec: Denoised, studio: Studio, found: Found) -> None:
    """
    Raises:
        SafelightError: as drawing the spec would.
    """
    studio.loader.allocations(spec)  # reads every header
    outline = studio.models.outline(spec.model, found)
    refiners = [
        studio.models.outline(refiner.model, studio.models.pinned(refiner.model, refiner.digest))
        for refiner in refiners_of(spec)
    ]
    used = [effect for effect in studio.effects.values() if effect.used(spec)]
    for effect in used:
        effect.require_fit(spec, outline)
        effect.require(spec, [outline, *refiners])
    if spec.vae is not None:
        studio.parts.require_fit("vae", spec.vae, outline, spec.model_digest)
    if spec.text_encoder is not None:
        studio.parts.require_fit("text_encoder", spec.text_encoder, outline, spec.model_digest)
    embeddings = [load_embedding(studio.models.catalogue, pin.name, pin.digest) for pin in spec.embeddings]
    further = [text for effect in used for text in effect.texts(spec)]
    rehearse(spec, outline, embeddings=embeddings, further=further, refiner=refiners[0] if refiners else None)
    sizes = {digest: studio.size_of(digest) for digest in pictures_of(spec)}
    if isinstance(spec, Inpaint):
        require_white(spec, studio.picture(spec.mask), sizes[spec.init])
