"""/sdapi/v1/embeddings: the textual inversions, and which of them fit the caller's model."""

from pydantic import BaseModel

from safelight.errors import SafelightError
from safelight.models.checkpoints.families import text_widths
from safelight.models.networks.textual_inversion import shapes_of
from safelight.studio import Studio


class EmbeddingItem(BaseModel):
    step: int | None = None
    """Training steps; not stored in the files here."""
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    shape: int
    """Width of a vector; the sum of both, if there is one for each text encoder."""
    vectors: int
    """Number of tokens."""


class Embeddings(BaseModel):
    loaded: dict[str, EmbeddingItem] = {}
    skipped: dict[str, EmbeddingItem] = {}
    """For models of another family."""


def list_embeddings(studio: Studio, model: str) -> Embeddings:
    """List embeddings as loaded or skipped for this model; files that are no embeddings are omitted. Blocking."""
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
