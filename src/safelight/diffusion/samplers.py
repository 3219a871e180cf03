"""The samplers by their community names, and their diffusers schedulers.

Names are AUTOMATIC1111's. Variants with another spacing of the noise levels are derived: "DPM++ 2M Karras" from
"DPM++ 2M" and "Karras". `add_samplers` adds those of plugins.

Not possible as a table: AUTOMATIC1111's DPM adaptive, which chooses its steps while it runs. Not in diffusers: DPM
fast, DPM++ 2S a, Restart, CFG++, "Euler a Karras", polyexponential and Align Your Steps spacing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from safelight.errors import SafelightError, UnknownSampler, UnsupportedOption
from safelight.plugins import Plugin, Plugins

Kind = Literal["diffusion", "flow", "edm", "any"]

SPACINGS: dict[str, dict[str, Any]] = {
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "Beta": {"use_beta_sigmas": True},
    "SGM Uniform": {"timestep_spacing": "trailing"},
}
"""Spacings of the noise levels: arXiv:2206.00364, k-diffusion, arXiv:2407.12173, and steps that start at pure noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    name: str
    diffusers_class: str | type[Any]
    """If empty, the class in the checkpoint's own configuration; a plugin may give a class of its own."""
    description: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options for the diffusers class, which override the checkpoint's configuration."""
    step_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options for each call of the scheduler's `step`."""
    order: int = 1
    """Error falls as 1 / steps^order (in the weak sense for stochastic samplers)."""
    calls_per_step: int = 1
    stochastic: bool = False
    """Adds noise during sampling; more steps then change the image rather than refine it."""
    kind: Kind = "diffusion"
    aliases: tuple[str, ...] = ()
    spacings: tuple[str, ...] = ()
    """Names in SPACINGS that the class supports."""
    automatic: str = ""
    """AUTOMATIC1111's "Automatic" spacing for it, if that is not the plain one."""
    base: str = ""
    """For a variant, the name of the plain sampler."""

    @property
    def plain(self) -> str:
        return self.base or self.name


_SIGMAS = ("Karras", "Exponential", "Beta")
_ALL = (*_SIGMAS, "SGM Uniform")
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_PAIRS = {"lower_order_final": True}  # an odd step at the end; diffusers sets it itself, with a warning
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

_TABLE = (
    Sampler(
        name="Default",
        diffusers_class="",
        description="the checkpoint's own scheduler, from its configuration",
        kind="any",
        aliases=("auto",),
    ),
    Sampler(
        name="Euler",
        diffusers_class="EulerDiscreteScheduler",
        description="the simplest ODE solver",
        aliases=("k_euler",),
        spacings=_ALL,
    ),
    Sampler(
        name="Euler a",
        diffusers_class="EulerAncestralDiscreteScheduler",
        description="Euler that adds fresh noise after each step",
        stochastic=True,
        aliases=("k_euler_a", "k_euler_ancestral"),
        spacings=("SGM Uniform",),
    ),
    Sampler(
        name="Heun",
        diffusers_class="HeunDiscreteScheduler",
        description="Euler, corrected by a second call at the end of the step",
        order=2,
        calls_per_step=2,
        aliases=("k_heun",),
        spacings=_ALL,
    ),
    Sampler(
        name="DPM2",
        diffusers_class="KDPM2DiscreteScheduler",
        description="midpoint rule, the second call half-way in log sigma",
        order=2,
        calls_per_step=2,
        aliases=("k_dpm_2",),
        spacings=_ALL,
        automatic="Karras",
    ),
    Sampler(
        name="DPM2 a",
        diffusers_class="KDPM2AncestralDiscreteScheduler",
        description="DPM2 that adds fresh noise after each step",
        order=2,
        calls_per_step=2,
        stochastic=True,
        aliases=("k_dpm_2_a", "k_dpm_2_ancestral"),
        spacings=_ALL,
        automatic="Karras",
    ),
    Sampler(
        name="LMS",
        diffusers_class="LMSDiscreteScheduler",
        description="linear multistep over the last four slopes",
        order=4,
        aliases=("k_lms",),
        spacings=_ALL,
    ),
    Sampler(
        name="DPM++ 2M",
        diffusers_class="DPMSolverMultistepScheduler",
        description="second order from the last two calls; a good first choice",
        order=2,
        aliases=("k_dpmpp_2m",),
        spacings=_ALL,
        automatic="Karras",
    ),
    Sampler(
        name="DPM++ 3M",
        diffusers_class="DPMSolverMultistepScheduler",
        description="third order from the last three calls",
        options={"solver_order": 3},
        order=3,
        aliases=("k_dpmpp_3m",),
        spacings=_ALL,
    ),
    Sampler(
        name="DPM++ 2M SDE",
        diffusers_class="DPMSolverMultistepScheduler",
        description="DPM++ 2M on the stochastic equation",
        options=_SDE,
        order=2,
        stochastic=True,
        aliases=("k_dpmpp_2m_sde",),
        spacings=_ALL,
        automatic="Exponential",
    ),
    Sampler(
        name="DPM++ 2M SDE Heun",
        diffusers_class="DPMSolverMultistepScheduler",
        description="DPM++ 2M SDE with Heun's form of the correction",
        options=_SDE | {"solver_type": "heun"},
        order=2,
        stochastic=True,
        aliases=("k_dpmpp_2m_sde_heun",),
        spacings=_ALL,
        automatic="Exponential",
    ),
    Sampler(
        name="DPM++ 3M SDE",
        diffusers_class="DPMSolverMultistepScheduler",
        description="DPM++ 3M on the stochastic equation",
        options=_SDE | {"solver_order": 3},
        order=3,
        stochastic=True,
        aliases=("k_dpmpp_3m_sde",),
        spacings=_ALL,
        automatic="Exponential",
    ),
    Sampler(
        name="DPM++ 2S",
        diffusers_class="DPMSolverSinglestepScheduler",
        description="second order over pairs of steps, restarted at each pair",
        options=_PAIRS,
        order=2,
        aliases=("k_dpmpp_2s",),
        spacings=_SIGMAS,
    ),
    Sampler(
        name="DPM++ SDE",
        diffusers_class="DPMSolverSinglestepScheduler",
        description="DPM++ 2S on the stochastic equation",
        options=_SDE | _PAIRS,
        order=2,
        stochastic=True,
        aliases=("k_dpmpp_sde",),
        spacings=_SIGMAS,
        automatic="Karras",
    ),
    Sampler(
        name="UniPC",
        diffusers_class="UniPCMultistepScheduler",
        description="predictor and corrector share their calls; strong at few steps",
        order=3,
        aliases=("unipc", "uni_pc"),
        spacings=_ALL,
    ),
    Sampler(
        name="DEIS",
        diffusers_class="DEISMultistepScheduler",
        description="exponential integrator, second order multistep",
        order=2,
        spacings=_ALL,
    ),
    Sampler(
        name="SA-Solver",
        diffusers_class="SASolverScheduler",
        description="stochastic Adams predictor and corrector, with noise at medium noise levels",
        order=2,
        stochastic=True,
        spacings=_ALL,
    ),
    Sampler(
        name="DDIM",
        diffusers_class="DDIMScheduler",
        description="the first fast deterministic sampler",
        spacings=("SGM Uniform",),
    ),
    Sampler(
        name="DDPM",
        diffusers_class="DDPMScheduler",
        description="the original stochastic sampler; needs many steps",
        stochastic=True,
        spacings=("SGM Uniform",),
    ),
    Sampler(
        name="PLMS",
        diffusers_class="PNDMScheduler",
        description="pseudo linear multistep; makes one call more than it has steps",
        options={"skip_prk_steps": True},
        order=4,
        aliases=("PNDM",),
        spacings=("SGM Uniform",),
    ),
    Sampler(
        name="LCM",
        diffusers_class="LCMScheduler",
        description="for latent consistency models and LCM-LoRA: 2 to 8 steps, guidance near 1",
        stochastic=True,
    ),
    Sampler(
        name="TCD",
        diffusers_class="TCDScheduler",
        description="for trajectory consistency models and TCD-LoRA: 2 to 8 steps, guidance near 1",
        # The pipelines pass eta 0 by default; 0.3 is the class's default and its authors' advice.
        step_options={"eta": 0.3},
        stochastic=True,
    ),
    Sampler(
        name="Flow Euler",
        diffusers_class="FlowMatchEulerDiscreteScheduler",
        description="Euler along a straightened flow (SD 3, Flux, ...)",
        kind="flow",
        spacings=_SIGMAS,
    ),
    Sampler(
        name="Flow Heun",
        diffusers_class="FlowMatchHeunDiscreteScheduler",
        description="Flow Euler, corrected by a second call",
        order=2,
        calls_per_step=2,
        kind="flow",
    ),
    Sampler(
        name="Flow DPM++ 2M",
        diffusers_class="DPMSolverMultistepScheduler",
        description="DPM++ 2M for flow models",
        options=_FLOW,
        order=2,
        kind="flow",
    ),
    Sampler(
        name="Flow UniPC",
        diffusers_class="UniPCMultistepScheduler",
        description="UniPC for flow models",
        options=_FLOW,
        order=3,
        kind="flow",
    ),
    Sampler(
        name="Flow LCM",
        diffusers_class="FlowMatchLCMScheduler",
        description="for consistency-distilled flow models: few steps, guidance near 1",
        stochastic=True,
        kind="flow",
    ),
    Sampler(
        name="EDM Euler",
        diffusers_class="EDMEulerScheduler",
        description="Euler for networks with EDM preconditioning (arXiv:2206.00364)",
        kind="edm",
    ),
    Sampler(
        name="EDM DPM++ 2M",
        diffusers_class="EDMDPMSolverMultistepScheduler",
        description="DPM++ 2M for networks with EDM preconditioning",
        order=2,
        kind="edm",
    ),
)


def variants(sampler: Sampler) -> list[Sampler]:
    """Return the sampler itself, and a variant for each spacing its class supports."""
    return [
        sampler,
        *(
            replace(
                sampler,
                name=f"{sampler.name} {spacing}",
                description=f"{sampler.description}; {spacing} spacing",
                options={**sampler.options, **SPACINGS[spacing]},
                # AUTOMATIC1111 wrote `k_euler_ka` for "Euler Karras".
                aliases=tuple(f"{alias}_ka" for alias in sampler.aliases) if spacing == "Karras" else (),
                base=sampler.name,
            )
            for spacing in sampler.spacings
        ),
    ]


SAMPLERS: dict[str, Sampler] = {variant.name: variant for sampler in _TABLE for variant in variants(sampler)}
BUILT_IN = tuple(SAMPLERS.values())


def add_samplers(plugins: Plugins) -> None:
    """Load the samplers of plugins, and add them to `SAMPLERS`."""
    taken = _words(BUILT_IN)

    def make(plugin: Plugin, loaded: Any) -> Sampler:
        if not isinstance(loaded, Sampler):
            raise SafelightError(f"it is a {type(loaded).__name__}, and no safelight.diffusion.samplers.Sampler")
        if loaded.name != plugin.name:
            raise SafelightError(f"it is registered as {plugin.name!r}, and its name is {loaded.name!r}")
        words = _words(variants(loaded))
        if taken & words:
            raise SafelightError("another sampler has its name, or an alias of it")
        taken.update(words)
        return loaded

    for sampler in plugins.load("sampler", make).values():
        SAMPLERS.update({variant.name: variant for variant in variants(sampler)})


def _words(samplers: Iterable[Sampler]) -> set[str]:
    return {_fold(word) for sampler in samplers for word in (sampler.name, *sampler.aliases)}


def find_sampler(name: str, schedule: str | None = None) -> Sampler:
    """Find a sampler by name or alias, ignoring case and punctuation, with the spacing in the name or in `schedule`.

    "Automatic" is AUTOMATIC1111's choice for the sampler; "Uniform" or none is the plain spacing.
    """
    if schedule is None and name in SAMPLERS:
        return SAMPLERS[name]
    by_name = {_fold(word): sampler for sampler in SAMPLERS.values() for word in (*sampler.aliases, sampler.name)}
    sampler = by_name.get(_fold(name))
    if sampler is None:
        raise UnknownSampler(name, known=list(SAMPLERS))
    wanted = _fold(schedule or "")
    if wanted == "automatic" and not sampler.base:
        wanted = _fold(sampler.automatic)
    if wanted in ("", "automatic"):
        return sampler
    if wanted == "uniform":
        return SAMPLERS[sampler.plain]
    found = by_name.get(_fold(sampler.plain) + wanted)
    if found is None:
        can = ", ".join(("Automatic", "Uniform", *sampler.spacings))
        raise UnsupportedOption("sampler", f"there is no schedule {schedule!r}; {sampler.plain} has: {can}")
    return found


def _fold(name: str) -> str:
    """Normalise a name: `k_dpmpp_2m`, `DPM++ 2M` and `dpm++ 2m` become equal."""
    letters = "".join(
        letter for letter in name.casefold().replace("dpmpp", "dpm++") if letter.isalnum() or letter == "+"
    )
    return letters.removeprefix("k") if name.casefold().startswith("k_") else letters
