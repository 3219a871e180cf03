"""Specs of every kind: one plain one to vary, and a strategy for all."""

from typing import Any

from hypothesis import strategies as st

from safelight.spec import (
    Edit,
    FreeU,
    GuidanceInterval,
    HighresFix,
    ImageToImage,
    Inpaint,
    Region,
    TextToImage,
    Tiles,
    Variation,
)
from safelight.spec.parts import PinnedPart, PinnedRefiner

PLAIN: dict[str, Any] = {
    "model": "mini",
    "model_digest": "0123456789abcdef" * 4,
    "prompt": "a red apple",
    "negative_prompt": "blurry",
    "seed": 1234,
    "width": 512,
    "height": 768,
    "sampler": "DPM++ 2M Karras",
    "steps": 25,
    "guidance": 7.0,
    "guidance_rescale": 0.0,
    "guidance_interval": GuidanceInterval(),
    "clip_skip": 1,
    "determinism": "fast",
}
APPLE = TextToImage(**PLAIN)
DIGEST = "ab" * 32
FROM_PICTURE: dict[str, Any] = {"init": DIGEST, "strength": 0.75, "fit": "crop"}
FROM_MASK: dict[str, Any] = FROM_PICTURE | {
    "mask": DIGEST,
    "mask_blur": 4.0,
    "mask_invert": False,
    "only_masked": False,
    "padding": 32,
}

pieces = st.sampled_from(
    ["Negative prompt:", "Steps: 20", ", Seed: 1, Size: 2x2", '"', "\\", "\n", ",", ":", "{", "😀", "ü"]
)
prompts = st.lists(st.one_of(st.text(max_size=12), pieces), max_size=8).map("".join).map(str.strip)
fractions = st.floats(0, 1)
strengths = st.floats(0, 1, exclude_min=True)
factors = st.floats(0, 4)
samplers = st.one_of(
    st.sampled_from(
        ["Euler", "Euler a", "DPM++ 2M", "DPM++ 2M Karras", "DPM++ 3M SDE Exponential", "Heun SGM Uniform"]
    ),
    st.text(min_size=1).filter(lambda name: name not in ("Automatic", "Uniform")),
)
intervals = st.tuples(fractions, fractions).filter(lambda ends: ends[0] < ends[1])
highres = st.builds(
    HighresFix,
    scale=st.floats(1, 8, exclude_min=True),
    strength=strengths,
    steps=st.none() | st.integers(1, 1000),
    upscaler=st.sampled_from(["latent", "latent-bilinear", "lanczos", "realesrgan-x4plus"]),
)
values = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=9))
parts = st.none() | st.builds(PinnedPart, name=st.text(min_size=1), digest=st.just(DIGEST))
common: dict[str, Any] = {
    "model": st.text(min_size=1),
    "model_digest": st.just(DIGEST),
    "prompt": prompts,
    "negative_prompt": prompts,
    "seed": st.integers(0, 2**63 - 1),
    "width": st.integers(8, 512).map(lambda n: n * 8),
    "height": st.integers(8, 512).map(lambda n: n * 8),
    "sampler": samplers,
    "steps": st.integers(1, 1000),
    "guidance": st.floats(0, 100),
    "guidance_rescale": fractions,
    "pag_scale": st.floats(0, 30),
    "sag_scale": st.floats(0, 30),
    "freeu": st.none() | st.builds(FreeU, b1=factors, b2=factors, s1=factors, s2=factors),
    "regions": st.lists(
        st.builds(Region, prompt=prompts, box=st.just((0.0, 0.25, 0.5, 1.0)), weight=strengths), max_size=2
    ).map(tuple),
    "guidance_interval": intervals.map(lambda ends: GuidanceInterval(start=ends[0], end=ends[1])),
    "clip_skip": st.integers(1, 12),
    "determinism": st.sampled_from(["fast", "strict"]),
    "effects": st.dictionaries(st.text(min_size=1, max_size=9), st.dictionaries(st.text(), values), max_size=2),
    "vae": parts,
    "text_encoder": parts,
}
started: dict[str, Any] = common | {
    "init": st.just(DIGEST),
    "strength": strengths,
    "fit": st.sampled_from(["crop", "stretch", "pad"]),
}
masked: dict[str, Any] = started | {
    "mask": st.just(DIGEST),
    "mask_blur": st.floats(0, 256),
    "mask_invert": st.booleans(),
    "only_masked": st.booleans(),
    "padding": st.integers(0, 1024),
    "soft_mask": st.booleans(),
}
refiners = st.none() | st.builds(
    PinnedRefiner,
    model=st.text(min_size=1),
    digest=st.just(DIGEST),
    switch=st.floats(0, 1, exclude_min=True, exclude_max=True),
)
specs = st.one_of(
    st.builds(TextToImage, **common, highres=st.none() | highres, refiner=refiners),
    st.builds(ImageToImage, **started, tiles=st.none() | st.just(Tiles(side=256)), refiner=refiners),
    st.builds(Inpaint, **masked, refiner=refiners),
    st.builds(Edit, **started, image_guidance=st.floats(1, 100)),
    st.builds(Variation, **common, init=st.just(DIGEST)),
)
