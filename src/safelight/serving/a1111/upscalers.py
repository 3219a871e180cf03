"""Upscalers by AUTOMATIC1111's names and ours."""

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
"""There too, "None" is Lanczos."""
NONE = "None"


def upscalers_by_name(upscalers: Upscalers) -> dict[str, str]:
    """Our names of the available upscalers by AUTOMATIC1111's; own networks have the same name in both."""
    theirs = {ours: name for name, ours in NETWORKS.items()} | {"lanczos": "Lanczos"}
    return {theirs.get(name, name): name for name in upscalers.names()}


def method_for(field: str, name: str, upscalers: Upscalers) -> str:
    """
    Raises:
        UnsupportedOption: no upscaler has this name.
    """
    known = upscalers_by_name(upscalers)
    if name not in known:
        hint = f"; {install('upscale')}" if name in NETWORKS else ""
        raise UnsupportedOption(field, f"no upscaler {name!r}{hint}; known: {NONE}, {', '.join(known)}")
    return known[name]
