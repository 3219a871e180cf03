"""The same spec, drawn by the pipelines of diffusers: the reference that our pictures are compared with."""

import functools
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tests.diffusion.checkpoints import diffusers_scheduler

from safelight.diffusion.samplers import find_sampler
from safelight.models.checkpoints.families import describe, read_config
from safelight.spec import Denoised, Edit, ImageToImage, Inpaint, TextToImage, Variation


class Reference:
    """One checkpoint, loaded by diffusers; its networks are shared by the pipelines of every task."""

    def __init__(self, folder: Path) -> None:
        from diffusers import DiffusionPipeline

        self.description = describe(folder)
        with warnings.catch_warnings(action="ignore"):
            # What the index says is not there must be said again.
            absent = {
                name: None for name, part in read_config(folder / "model_index.json").items() if part == [None] * 2
            }
            pipeline: Any = DiffusionPipeline.from_pretrained(folder, **{"safety_checker": None} | absent)
        pipeline.set_progress_bar_config(disable=True)
        self.components: dict[str, Any] = pipeline.components
        encoder = self.components.get("text_encoder")
        if encoder is not None and not hasattr(encoder, "text_model"):
            # diffusers 0.42 looks there for the final norm when layers are skipped; transformers 5 has dropped it.
            encoder.__dict__["text_model"] = encoder

    def draw(self, spec: Denoised, pictures: Mapping[str, Image.Image] | None = None, **more: Any) -> Image.Image:
        """`more` are further arguments of the pipeline."""
        import diffusers

        assert isinstance(spec, TextToImage) or spec.guidance_rescale == 0, "these pipelines cannot rescale"
        pictures = pictures or {}
        if self.description.family.network == "transformer":
            return self.draw_by_transformer(spec, pictures, **more)
        sampler = find_sampler(spec.sampler)
        family = "StableDiffusionXL" if self.description.family.size_conditioned else "StableDiffusion"
        call: dict[str, Any] = {
            "prompt": spec.prompt,
            # None and "" are one to us; SDXL's pipeline takes None for "led away from zeros".
            "negative_prompt": spec.negative_prompt or None,
            "num_inference_steps": spec.steps,
            "guidance_scale": spec.guidance,
            "generator": torch.Generator("cpu").manual_seed(spec.seed),
            "clip_skip": None if spec.clip_skip == 1 else spec.clip_skip - 1,  # diffusers counts skipped layers
            "eta": sampler.step_options.get("eta", 0.0),
        }
        match spec:
            case TextToImage():
                pipeline_class = getattr(diffusers, f"{family}Pipeline")
                call |= {"width": spec.width, "height": spec.height, "guidance_rescale": spec.guidance_rescale}
            case ImageToImage():
                pipeline_class = getattr(diffusers, f"{family}Img2ImgPipeline")
                call |= {"image": pictures[spec.init], "strength": spec.strength}
            case Inpaint():
                pipeline_class = getattr(diffusers, f"{family}InpaintPipeline")
                call |= {
                    "image": pictures[spec.init],
                    "mask_image": pictures[spec.mask],
                    "strength": spec.strength,
                    "width": spec.width,
                    "height": spec.height,
                    "padding_mask_crop": spec.padding if spec.only_masked else None,
                }
            case Edit():
                pipeline_class = getattr(diffusers, f"{family}InstructPix2PixPipeline")
                size = {"width": spec.width, "height": spec.height} if family == "StableDiffusionXL" else {}
                call |= {"image": pictures[spec.init], "image_guidance_scale": spec.image_guidance, **size}
                del call["clip_skip"]
            case Variation():
                pipeline_class = diffusers.StableDiffusionImageVariationPipeline
                call |= {"image": pictures[spec.init], "width": spec.width, "height": spec.height}
                for name in ("prompt", "negative_prompt", "clip_skip"):
                    del call[name]
        call |= more
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            scheduler = usable(diffusers_scheduler(sampler, dict(self.description.scheduler)))
            pipeline: Any = pipeline_class(**self.components_for(pipeline_class, scheduler))
            pipeline.set_progress_bar_config(disable=True)
            image = pipeline(**call).images[0]
        if isinstance(spec, Inpaint) and not spec.only_masked:
            image = pipeline.image_processor.apply_overlay(pictures[spec.mask], pictures[spec.init], image)
        return image

    def draw_by_transformer(self, spec: Denoised, pictures: Mapping[str, Image.Image], **more: Any) -> Image.Image:
        """The pipelines of Stable Diffusion 3 and Flux are called alike, but for what Flux has no use for."""
        import diffusers

        family = "Flux" if self.description.family.name == "flux" else "StableDiffusion3"
        call: dict[str, Any] = {
            "prompt": spec.prompt,
            "num_inference_steps": spec.steps,
            "guidance_scale": spec.guidance,
            "generator": torch.Generator("cpu").manual_seed(spec.seed),
            "width": spec.width,
            "height": spec.height,
        }
        if family == "StableDiffusion3":
            call |= {
                "negative_prompt": spec.negative_prompt,
                "clip_skip": None if spec.clip_skip == 1 else spec.clip_skip - 1,
            }
        match spec:
            case TextToImage():
                pipeline_class = getattr(diffusers, f"{family}Pipeline")
            case ImageToImage():
                pipeline_class = getattr(diffusers, f"{family}Img2ImgPipeline")
                call |= {"image": pictures[spec.init], "strength": spec.strength}
            case Inpaint():
                pipeline_class = getattr(diffusers, f"{family}InpaintPipeline")
                call |= {"image": pictures[spec.init], "mask_image": pictures[spec.mask], "strength": spec.strength}
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            scheduler = diffusers_scheduler(find_sampler(spec.sampler), dict(self.description.scheduler))
            absent = {} if family == "Flux" else {"text_encoder_3": None, "tokenizer_3": None}
            pipeline: Any = pipeline_class(**absent | self.components_for(pipeline_class, scheduler))
            pipeline.set_progress_bar_config(disable=True)
            if pipeline_class is diffusers.StableDiffusion3InpaintPipeline:
                # diffusers 0.42 forgets there to add the autoencoder's shift before it decodes.
                latents = pipeline(**call | more, output_type="latent").images
                vae = pipeline.vae
                decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
                image = pipeline.image_processor.postprocess(decoded)[0]
            else:
                image = pipeline(**call | more).images[0]
        if isinstance(spec, Inpaint):
            image = pipeline.image_processor.apply_overlay(pictures[spec.mask], pictures[spec.init], image)
        return image

    def components_for(self, pipeline_class: Any, scheduler: Any) -> dict[str, Any]:
        accepted = inspect.signature(pipeline_class.__init__).parameters
        given = {name: part for name, part in self.components.items() if name in accepted}
        quiet = {"requires_safety_checker": False, "safety_checker": None, "add_watermarker": False}
        quiet |= {"requires_aesthetics_score": self.description.family.score_conditioned}
        quiet |= {"force_zeros_for_empty_prompt": self.description.force_zeros_for_empty_prompt}
        return given | {name: value for name, value in quiet.items() if name in accepted} | {"scheduler": scheduler}


def usable(scheduler: Any) -> Any:
    """Flow matching has other names for what the pipelines of Stable Diffusion ask of a scheduler."""
    if not hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input = lambda sample, _timestep: sample
    if not hasattr(scheduler, "init_noise_sigma"):
        scheduler.init_noise_sigma = 1.0
    if not hasattr(scheduler, "add_noise") and hasattr(scheduler, "scale_noise"):
        scheduler.add_noise = lambda sample, noise, timestep: scheduler.scale_noise(sample, timestep, noise)
    if hasattr(scheduler, "set_begin_index"):
        # The text-to-image pipelines do not say where they begin, and the scheduler's own guess goes wrong where two
        # rows share a timestep (Beta spacing at few steps): it starts at the second, and runs over the end.
        set_timesteps = scheduler.set_timesteps

        def begin_at_the_beginning(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            scheduler.set_begin_index(0)

        scheduler.set_timesteps = functools.wraps(set_timesteps)(begin_at_the_beginning)
    return scheduler
