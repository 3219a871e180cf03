"""The body of /sdapi/v1/txt2img, with its second pass (`hr_...`)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from safelight.errors import InvalidField, SafelightError, UnsupportedOption
from safelight.serving.a1111.generation_body import FIELD_NAMES, GenerationBody
from safelight.serving.a1111.options import Options
from safelight.serving.a1111.unit import Unit
from safelight.serving.a1111.upscalers import HIGHRES
from safelight.spec.fields import Fraction


class TextToImageBody(GenerationBody):
    denoising_strength: Fraction = 0.75
    enable_hr: bool = False
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: Annotated[int, Field(ge=0, le=1000)] = 0
    hr_resize_x: Annotated[int, Field(ge=0, le=32_768)] = 0
    hr_resize_y: Annotated[int, Field(ge=0, le=32_768)] = 0
    hr_checkpoint_name: str = ""
    hr_sampler_name: str = ""
    hr_scheduler: str = ""
    hr_prompt: str = ""
    hr_negative_prompt: str = ""

    @property
    def field_names(self) -> Mapping[str, str]:
        resized = "hr_resize_x" if self.hr_resize_x else "hr_resize_y" if self.hr_resize_y else "hr_scale"
        return {**FIELD_NAMES, "highres.scale": resized}

    def fields_without_sampler(self, options: Options) -> dict[str, Any]:
        return super().fields_without_sampler(options) | {"highres": self.highres() if self.enable_hr else None}

    def highres(self) -> dict[str, Any]:
        known = {"upscaler": HIGHRES[self.hr_upscaler]} if self.hr_upscaler in HIGHRES else {}
        return known | {
            "scale": max(self.scales) if self.scales else self.hr_scale,
            "strength": self.denoising_strength,
            "steps": self.hr_second_pass_steps or None,
        }

    @property
    def scales(self) -> set[float]:
        """The scales implied by the requested sizes; empty if `hr_scale` applies."""
        return {self.hr_resize_x / self.width, self.hr_resize_y / self.height} - {0.0}

    def clashes(self) -> Iterator[SafelightError]:
        yield from super().clashes()
        if not self.enable_hr:
            return
        if self.hr_upscaler not in HIGHRES:
            known = ", ".join(filter(None, HIGHRES))
            yield UnsupportedOption("hr_upscaler", f"no upscaler {self.hr_upscaler!r}; known: {known}")
        allowed = {
            "hr_checkpoint_name": ("", "Use same checkpoint"),
            "hr_sampler_name": ("", "Use same sampler", self.sampler_name or self.sampler_index),
            "hr_scheduler": ("", "Use same scheduler", self.scheduler),
            "hr_prompt": ("", self.prompt),
            "hr_negative_prompt": ("", self.negative_prompt),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                yield UnsupportedOption(name, "the second pass uses the same value as the first; leave it out")
        if len(self.scales) > 1:
            yield UnsupportedOption(
                "hr_resize_x", "the second pass keeps the proportions; give one of hr_resize_x and _y", "hr_resize_y"
            )

    def check_units(self, units: Mapping[str, Unit]) -> Iterator[SafelightError]:
        for path, unit in units.items():
            if not unit.image:
                yield InvalidField(f"{path}.image", "a unit has no image")
            if self.enable_hr and unit.hr_option.lower() not in ("both", "0"):
                yield InvalidField(f"{path}.hr_option", "units always apply to both passes here")
