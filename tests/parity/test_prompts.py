"""Prompts that change, and prompts joined by AND, against pipelines of diffusers that are made to do the same."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.fakes import draw, psnr, spec_for
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import MIN_PSNR, PICTURES, TASKS, is_telling
from tests.tiny_models import SIDE

from safelight.diffusion.schedules import schedule_for
from safelight.models.networks.load import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

Models = Callable[[str], Model]
References = Callable[[str], Reference]
CAT, DOG, HORSE = "the cat", "a dog, masterpiece, best quality, café 猫", "an astronaut riding a horse"
GUIDANCE = 30.0
"""Strong, for the words of these small networks count for little in the last steps, and a change should show."""


def swapping(words: Sequence[str], unwanted: Sequence[str]) -> dict[str, Any]:
    """Arguments that make a pipeline read other words at each network call."""

    def before_the_next_call(pipeline: Any, call: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if call + 1 == len(words):
            return {}
        prompt, negative = words[call + 1], unwanted[call + 1]
        sdxl = hasattr(pipeline, "text_encoder_2")
        # As everywhere: no negative prompt is None to SDXL, which is then led away from zeros.
        encoded = pipeline.encode_prompt(
            prompt=prompt,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative or (None if sdxl else ""),
        )
        found = {"prompt_embeds": torch.cat([encoded[1], encoded[0]])}
        if sdxl:
            found["add_text_embeds"] = torch.cat([encoded[3], encoded[2]])
        return found

    return {
        "callback_on_step_end": before_the_next_call,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }


def compare(ours: Model, theirs: Reference, words: Sequence[str], unwanted: Sequence[str], **wishes: Any) -> float:
    """Our picture against one drawn with these words, step by step."""
    spec = spec_for(ours, **({"guidance": GUIDANCE, "seed": 7} | wishes))
    strength = wishes.get("strength", 1.0)
    calls = schedule_for(spec.sampler, ours.description.scheduler, steps=spec.steps, strength=strength).step_of

    def drawn_with(words: Sequence[str], unwanted: Sequence[str]) -> Any:
        first = spec.model_copy(update={"prompt": words[0], "negative_prompt": unwanted[0]})
        swaps = swapping([words[int(step)] for step in calls], [unwanted[int(step)] for step in calls])
        return theirs.draw(first, PICTURES, **swaps)

    expected = drawn_with(words, unwanted)
    assert is_telling(expected), "a picture that is flat or clipped hides differences"
    late = drawn_with([words[0], *words[:-1]], [unwanted[0], *unwanted[:-1]])
    assert psnr(late, expected) < MIN_PSNR, "a change that comes one step late must show, or nothing is compared"
    return psnr(draw(spec, ours, PICTURES), expected)


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M Karras", "Heun"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_scheduled_prompt_is_a_pipeline_whose_words_are_swapped(
    kind: str, sampler: str, model: Models, reference: References
) -> None:
    words = [DOG, HORSE, HORSE, HORSE]
    wishes = {"prompt": f"[{DOG}:{HORSE}:1]", "steps": 4, "sampler": sampler}
    assert compare(model(kind), reference(kind), words, [""] * 4, **wishes) >= MIN_PSNR


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_alternation_is_a_pipeline_whose_words_alternate(kind: str, model: Models, reference: References) -> None:
    words = [CAT, DOG, HORSE, CAT, DOG]
    wishes = {"prompt": f"[{CAT}|{DOG}|{HORSE}]", "steps": 5}
    assert compare(model(kind), reference(kind), words, [""] * 5, **wishes) >= MIN_PSNR


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_negative_prompt_may_change_too(kind: str, model: Models, reference: References) -> None:
    wishes = {"prompt": CAT, "negative_prompt": f"[{DOG}:{HORSE}:0.25] best", "steps": 4}
    unwanted = [f"{DOG} best", *[f"{HORSE} best"] * 3]
    assert compare(model(kind), reference(kind), [CAT] * 4, unwanted, **wishes) >= MIN_PSNR


@pytest.mark.parametrize("task", ["image-to-image", "inpaint"])
def test_from_a_picture_the_steps_that_are_walked_count(task: str, model: Models, reference: References) -> None:
    """6 steps at a strength of 0.7 are 4 steps; a quarter of them is 1."""
    wishes = TASKS[task] | {"prompt": f"[{DOG}:{HORSE}:0.25]", "steps": 6, "width": SIDE, "height": SIDE}
    assert compare(model("sd1"), reference("sd1"), [DOG, *[HORSE] * 3], [""] * 4, **wishes) >= MIN_PSNR


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_and_is_a_pipeline_whose_network_composes(
    kind: str, rescale: float, model: Models, reference: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uncond + sum of w_i * guidance * (cond_i - uncond): composing what the network says, the pipeline guides it."""
    ours, theirs = model(kind), reference(kind)
    parts, weights = [CAT, DOG, HORSE], [1.0, 0.6, -0.4]
    prompt = f"{CAT} AND {DOG} :0.6 AND {HORSE} :-0.4"
    spec = spec_for(ours, prompt=prompt, steps=4, guidance=8.0, guidance_rescale=rescale, seed=3)

    from diffusers import DiffusionPipeline

    encoder: Any = DiffusionPipeline.from_pretrained(ours.description.path, safety_checker=None)
    sdxl = kind == "sdxl"
    with torch.no_grad():
        encoded = [
            encoder.encode_prompt(prompt=part, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
            for part in parts
        ]
    unet = theirs.components["unet"]
    plain = unet.forward

    def composing(latents: Any, timestep: Any, *, encoder_hidden_states: Any, **rest: Any) -> Any:
        def ask(row: int, states: Any, pooled: Any) -> Any:
            added = rest.get("added_cond_kwargs") or {}
            if sdxl:
                added = {"text_embeds": pooled, "time_ids": added["time_ids"][row : row + 1]}
            given = rest | {"added_cond_kwargs": added or None, "encoder_hidden_states": states}
            return plain(latents[row : row + 1], timestep, **given)[0]

        pooled = rest["added_cond_kwargs"]["text_embeds"][:1] if sdxl else None
        uncond = ask(0, encoder_hidden_states[:1], pooled)
        conds = [ask(1, one[0], one[2] if sdxl else None) for one in encoded]
        composed = uncond + sum(w * (cond - uncond) for w, cond in zip(weights, conds, strict=True))
        return (torch.cat([uncond, composed]),)

    monkeypatch.setattr(unet, "forward", composing)
    expected = theirs.draw(spec.model_copy(update={"prompt": CAT}), PICTURES)
    assert is_telling(expected)
    assert psnr(draw(spec, ours), expected) >= MIN_PSNR
    assert psnr(draw(spec_for(ours, prompt=CAT, steps=4, guidance=8.0, seed=3), ours), expected) < 40
