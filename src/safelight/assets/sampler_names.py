"""Sampler names as other programs write them, to and from the community names that specs use.

AUTOMATIC1111 splits "DPM++ 2M Karras" into Sampler and Schedule type; ComfyUI, InvokeAI and stable-diffusion.cpp have
identifiers. An unknown name is returned unchanged; looking it up later gives an error with suggestions.
"""

SCHEDULE_TYPES = (
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "Beta",
    "Turbo",
)
"""AUTOMATIC1111's schedule types that can be the last words of a community name."""
AUTOMATIC = {
    "DPM2": "Karras",
    "DPM2 a": "Karras",
    "DPM++ 2M": "Karras",
    "DPM++ 2S a": "Karras",
    "DPM++ SDE": "Karras",
    "DPM++ 2M SDE": "Exponential",
    "DPM++ 2M SDE Heun": "Exponential",
    "DPM++ 3M SDE": "Exponential",
    "Restart": "Karras",
}
"""The meaning of "Automatic" in AUTOMATIC1111, where it is not the plain spacing."""
IDENTIFIERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpm2": "DPM2",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpm++2m": "DPM++ 2M",
    "dpm++2s_a": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_3m": "DPM++ 3M",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_3m_sde_gpu": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_sde_gpu": "DPM++ SDE",
    "euler": "Euler",
    "euler_a": "Euler a",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "kdpm_2": "DPM2",
    "kdpm_2_a": "DPM2 a",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
    "tcd": "TCD",
    "uni_pc": "UniPC",
    "unipc": "UniPC",
}
SPACING_IDENTIFIERS = {
    "karras": "Karras",
    "k": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "beta": "Beta",
}
"""Other spacings ("normal", "discrete", ...) are close to the plain one."""


def split(name: str) -> tuple[str, str]:
    """Split `DPM++ 2M Karras` into AUTOMATIC1111's (Sampler, Schedule type)."""
    for schedule in SCHEDULE_TYPES:
        if name.endswith(f" {schedule}"):
            return name.removesuffix(f" {schedule}"), schedule
    return name, "Uniform" if name in AUTOMATIC else "Automatic"


def join(sampler: str, schedule: str | None) -> str:
    """Join what `split` splits; old files have no schedule type, as it was part of the name."""
    if schedule == "Automatic":
        schedule = AUTOMATIC.get(sampler)
    return sampler if schedule in (None, "", "Uniform") else f"{sampler} {schedule}"


def from_identifier(sampler: str, schedule: str = "") -> str:
    """Convert `dpmpp_2m` and `karras` (ComfyUI), `dpmpp_2m_k` (InvokeAI), `dpm++2m karras` (stable-diffusion.cpp)."""
    if not schedule:
        sampler, _, schedule = sampler.partition(" ")
    if sampler not in IDENTIFIERS and sampler.endswith("_k"):
        sampler, schedule = sampler.removesuffix("_k"), "k"
    return join(IDENTIFIERS.get(sampler, sampler), SPACING_IDENTIFIERS.get(schedule))
