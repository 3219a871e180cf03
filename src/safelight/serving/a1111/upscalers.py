"""What enlarges pictures, by AUTOMATIC1111's names and ours."""

from safelight.errors import UnsupportedOption, install
from safelight.models.vision.upscalers import Upscalers
from safelight.spec.fields import HighresUpscaler

NETWORKS = {
    "R-ESRGAN 4x+": "realesrgan-x4plus",
    "R-ESRGAN 4x+ Anime6B": "realesrgan-x4plus-anime",
    "R-ESRGAN AnimeVideo": "realesr-animevideov3",
}
LATENT_MODES: dict[str, HighresUpscaler] = {
    "Latent": "latent-bilinear",
    "Latent (antialiased)": "latent-bilinear-antialiased",
    "Latent (bicubic)": "latent",
    "Latent (bicubic antialiased)": "latent-antialiased",
    "Latent (nearest)": "latent-nearest",
    "Latent (nearest-exact)": "latent-nearest-exact",
}
HIGHRES: dict[str, str] = LATENT_MODES | {"Lanczos": "lanczos", "None": "lanczos", "": "latent-bilinear"} | NETWORKS
"""No upscaler means Lanczos there too."""
NONE = "None"


def upscalers_by_name(upscalers: Upscalers) -> dict[str, str]:
    """Those that work here: ours by theirs; one's own networks have one name for both."""
    theirs = {ours: name for name, ours in NETWORKS.items()} | {"lanczos": "Lanczos"}
    return {theirs.get(name, name): name for name in upscalers.names()}


def ours_for(field: str, name: str, upscalers: Upscalers) -> str:
    """
    Raises:
        UnsupportedOption: nothing has that name here.
    """
    known = upscalers_by_name(upscalers)
    if name not in known:
        more = f"; {install('upscale')}" if name in NETWORKS else ""
        raise UnsupportedOption(field, f"no upscaler {name!r}{more}; known: {NONE}, {', '.join(known)}")
    return known[name]
