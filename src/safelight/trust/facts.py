"""What is true of a picture beyond its spec: when and by what it was made, and what its inputs are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath

from safelight.imaging.canvas import Box

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED = SOURCE_TYPES + "trainedAlgorithmicMedia"
"""Made by a generative model, from words alone or led by pictures of which no pixel is left."""
COMPOSITE_TRAINED = SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
"""An existing picture that a generative model changed."""
COMPOSITE_SYNTHETIC = SOURCE_TYPES + "compositeSynthetic"
"""Put together of several pictures, some of them made by a generative model."""
GENERATED = frozenset({TRAINED, COMPOSITE_TRAINED, COMPOSITE_SYNTHETIC, SOURCE_TYPES + "algorithmicMedia"})
"""What a picture says that is not a record of the world alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where weights come from, as the registry knows it."""

    trained_from: tuple[str, ...] = ()
    """sha256 of the models that they were trained from, in hex."""
    data_set: str = ""
    """sha256 of the data set, in hex."""
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkFact:
    """A watermark that the pixels carry."""

    alg: str
    key_id: str
    strength: str = ""
    """What its own check found, such as `weak`; empty: as it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    version: str
    """Of safelight."""
    when: datetime
    """When the picture was finished, with its time zone."""
    uid: str
    """The asset's id in marks, known before its bytes are: hex, the same for the same spec and key."""
    torch_version: str = ""
    origins: Mapping[str, Origin] = field(default_factory=dict[str, Origin])
    """By the digest of weights; what is not known is left out."""
    interactive: bool = False
    """Whether a person waits for the picture."""
    watermark: WatermarkFact | None = None
    region: Box | None = None
    """The part of the picture that an inpainting drew anew (`canvas.painted_box`)."""
    own_source: bool = False
    """Whether the picture that this one starts from was made here."""
    source_type: str = ""
    """IPTC's digital source type of that picture, the full URI; empty: it says nothing."""
    full_metadata: bool = False
    """Whether the caller lets the file carry the prompt."""


def public_name(model: str) -> str:
    """A model's name without the folders above it, which say more of a machine than of a picture:
    `/home/ann/portraits.safetensors` is `portraits`, and a hub id stays as it is."""
    path = PurePath(model)
    is_path = path.is_absolute() or model.startswith((".", "~")) or "\\" in model or path.suffix == ".safetensors"
    if not is_path:
        return model
    return PurePath(model.replace("\\", "/")).name.removesuffix(".safetensors") or "model"
