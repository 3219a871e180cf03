"""What /sdapi/v1/embeddings says: which textual inversions there are, and which of them the model at hand can read."""

from pydantic import BaseModel

from safelight.errors import SafelightError
from safelight.models.checkpoints.families import text_widths
from safelight.models.networks.textual_inversion import shapes_of
from safelight.studio import Studio


class EmbeddingItem(BaseModel):
    step: int | None = None
    """How long it was trained; files here do not say."""
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    shape: int
    """Width of a vector; of both together, where there is one for each text encoder."""
    vectors: int
    """Tokens it takes."""


class Embeddings(BaseModel):
    loaded: dict[str, EmbeddingItem] = {}
    skipped: dict[str, EmbeddingItem] = {}
    """For models of another family."""


def list_embeddings(studio: Studio, model: str) -> Embeddings:
    """Sorted by the model that the caller has chosen; files that are no embeddings are left out. Blocks."""
    found = Embeddings()
    files = studio.models.catalogue.files("embedding")
    widths = text_widths(studio.models.find(model).description) if files else ()
    for name, path in sorted(files.items()):
        try:
            shapes = list(shapes_of(path).values())
        except SafelightError:
            continue
        item = EmbeddingItem(
            shape=sum(shape[-1] for shape in shapes), vectors=shapes[0][0] if len(shapes[0]) > 1 else 1
        )
        fits = tuple(shape[-1] for shape in shapes) == widths
        (found.loaded if fits else found.skipped)[name] = item
    return found
