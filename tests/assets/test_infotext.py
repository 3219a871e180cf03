import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.assets.specs import APPLE, FROM_MASK, PLAIN, prompts, specs

from safelight.assets import sampler_names
from safelight.assets.infotext import from_pairs, parse_infotext, quote, storable, unquote, write_infotext
from safelight.diffusion.samplers import SAMPLERS
from safelight.spec import Denoised, HighresFix, Inpaint, TextToImage
from safelight.spec.effects import PinnedControl
from safelight.spec.parts import PinnedEmbedding, PinnedRefiner

NOT_IN_TEXT = {
    "task",
    "prompt",
    "negative_prompt",
    "model_digest",
    "determinism",
    "init",
    "mask",
    "fit",
    "embeddings",
    "tiles",
}


def lines_stripped(text: str) -> str:
    return "\n".join(line.strip() for line in storable(text).strip().split("\n")).strip("\n")


def words(text: str) -> str:
    return "".join(text.split()).replace("Negativeprompt:", "")


def settings_of(spec: Denoised) -> dict[str, Any]:
    """What the text carries: all but pictures and what AUTOMATIC1111 has no word for; defaults may be left out."""
    led = ("controls", "picture_prompts", "plugins")  # of which only a summary is written, or nothing
    settings = spec.model_dump(exclude={*NOT_IN_TEXT, "loras", *led})  # LoRAs are in the prompt's tags
    settings["regions"] = json.loads(json.dumps([region.model_dump(exclude_defaults=True) for region in spec.regions]))
    plain = {
        "guidance_rescale": 0,
        "pag_scale": 0,
        "pag_layers": ("mid",),
        "sag_scale": 0,
        "regions": [],
        "freeu": None,
        "effects": {},
        "refiner": None,
        "mask_invert": False,
        "only_masked": False,
        "soft_mask": False,
        "highres": None,
    }
    for name, default in plain.items():
        if settings.get(name) == default:
            settings.pop(name, None)
    if settings["guidance_interval"] == {"start": 0, "end": 1}:
        del settings["guidance_interval"]
    if "only_masked" not in settings:
        settings.pop("padding", None)
    if settings.get("highres", {}).get("steps", 0) is None:
        del settings["highres"]["steps"]
    if refiner := settings.pop("refiner", None):
        settings |= {"refiner": storable(refiner["model"]), "refiner_switch": refiner["switch"]}
    for name in ("vae", "text_encoder"):
        if pinned := settings.pop(name):
            settings[name] = storable(pinned["name"])
    for name in ("model", "sampler"):
        settings[name] = storable(settings[name])
    return settings


def test_the_infotext_equals_automatic1111s() -> None:
    assert write_infotext(APPLE, version="0.1.0") == (
        "a red apple\n"
        "Negative prompt: blurry\n"
        "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234, Size: 512x768, "
        "Model hash: 0123456789, Model: mini, RNG: CPU, Version: safelight 0.1.0"
    )


def test_a_second_pass_and_a_mask_have_automatic1111s_names() -> None:
    larger = TextToImage(**PLAIN, highres=HighresFix(scale=1.5, steps=10))
    pairs = parse_infotext(write_infotext(larger, version="1")).pairs
    assert pairs["Hires upscale"] == "1.5"
    assert (pairs["Hires steps"], pairs["Hires upscaler"], pairs["Denoising strength"]) == ("10", "Lanczos", "0.6")
    mask = Inpaint(**PLAIN | FROM_MASK | {"only_masked": True, "mask_invert": True, "clip_skip": 2})
    pairs = parse_infotext(write_infotext(mask, version="1")).pairs
    assert (pairs["Mask blur"], pairs["Mask mode"], pairs["Clip skip"]) == ("4", "Inpaint not masked", "2")
    assert (pairs["Inpaint area"], pairs["Masked area padding"]) == ("Only masked", "32")


def test_a_refiner_has_automatic1111s_names() -> None:
    refined = APPLE.model_copy(update={"refiner": PinnedRefiner(model="fine", digest="ab" * 32, switch=0.75)})
    pairs = parse_infotext(write_infotext(refined, version="1")).pairs
    assert (pairs["Refiner"], pairs["Refiner switch at"]) == ("fine [ababababab]", "0.75")
    assert from_pairs({"Refiner": "sd_xl_refiner_1.0 [7440042bbd]"})["refiner"] == "sd_xl_refiner_1.0"


def test_perturbed_layers_are_named_beside_their_scale() -> None:
    layers = ("mid", "up_blocks.0.attentions.1")
    text = write_infotext(APPLE.model_copy(update={"pag_scale": 3.0, "pag_layers": layers}), version="1")
    assert 'PAG scale: 3, PAG layers: "mid, up_blocks.0.attentions.1"' in text
    assert from_pairs(parse_infotext(text).pairs)["pag_layers"] == layers


def test_embeddings_are_named_with_their_hashes() -> None:
    pinned = tuple(PinnedEmbedding(name=name, digest=digit * 64) for name, digit in (("a-cat", "1"), ("b", "2")))
    pairs = parse_infotext(write_infotext(APPLE.model_copy(update={"embeddings": pinned}), version="1")).pairs
    assert pairs["TI hashes"] == "a-cat: 111111111111, b: 222222222222"


@given(specs)
def test_settings_survive_a_round_trip_with_any_prompt(spec: Denoised) -> None:
    assert from_pairs(parse_infotext(write_infotext(spec, version="0.1.0")).pairs) == settings_of(spec)


@given(prompts, prompts)
def test_prompts_survive_except_spaces_at_line_ends(prompt: str, negative: str) -> None:
    said = parse_infotext(
        write_infotext(APPLE.model_copy(update={"prompt": prompt, "negative_prompt": negative}), version="1")
    )
    if any(line.strip().startswith("Negative prompt:") for line in prompt.split("\n")):
        # Where the negative prompt begins cannot be told, but no word is lost.
        assert words(f"{said.prompt}{said.negative_prompt}") == words(storable(f"{prompt}{negative}"))
    else:
        assert said.prompt == lines_stripped(prompt)
        assert said.negative_prompt == lines_stripped(negative)


@given(st.text())
def test_any_value_survives_its_quotes(text: str) -> None:
    assert unquote(quote(text)) == text


@given(st.text(st.characters(exclude_categories=[])))
def test_no_text_breaks_the_reader(text: str) -> None:
    from_pairs(parse_infotext(text).pairs)
    from_pairs(parse_infotext(f"a\nSteps: {text}, Sampler: {text}, Seed: {text}, Hires upscale: {text}").pairs)


def test_halves_of_surrogate_pairs_and_nul_become_replacement_characters() -> None:
    spec = APPLE.model_copy(update={"prompt": "a\ud83d\0b"})
    assert parse_infotext(write_infotext(spec, version="1")).prompt == "a\ufffd\ufffdb"


def test_a_real_files_text_is_read() -> None:
    said = parse_infotext(
        "masterpiece, (apple:1.2),\n  still life <lora:fruit:0.8>\n"
        "Negative prompt: lowres, text,\nwatermark\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 6.5, Seed: 965400086, Size: 512x704, "
        'Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE: "a: b, c", Denoising strength: 0.5, Clip skip: 2, '
        'Hires upscale: 2, Hires steps: 0, Hires upscaler: ESRGAN_4x, Lora hashes: "fruit: aa, x: bb", Version: v1.10.1'
    )
    assert said.prompt == "masterpiece, (apple:1.2),\nstill life <lora:fruit:0.8>"
    assert said.negative_prompt == "lowres, text,\nwatermark"
    assert (said.pairs["VAE"], said.pairs["Lora hashes"]) == ("a: b, c", "fruit: aa, x: bb")
    assert from_pairs(said.pairs) == {
        "steps": 20,
        "sampler": "DPM++ 2M Karras",
        "guidance": 6.5,
        "seed": 965400086,
        "width": 512,
        "height": 704,
        "model": "v1-5-pruned-emaonly",
        "vae": "a: b, c",
        "clip_skip": 2,
        "highres": {"scale": 2.0, "strength": 0.5},
    }


def test_fewer_than_three_settings_are_part_of_the_prompt() -> None:
    said = parse_infotext("an advert\nPrice: 3, Size: 2x2")
    assert said.prompt == "an advert\nPrice: 3, Size: 2x2"
    assert not said.pairs


def test_invalid_settings_are_ignored() -> None:
    text = "x\nSteps: many, CFG scale: nan, Seed: 1e9, Size: 0x, Denoising strength: inf, Mask blur: 4"
    assert from_pairs(parse_infotext(text).pairs) == {"mask_blur": 4.0, "clip_skip": 1}


@pytest.mark.parametrize(
    "line", ["a" * 500_000, " " * 500_000 + "b", "a " * 250_000, 'aa: "' * 100_000, "aa: \\" * 100_000]
)
def test_a_long_line_takes_linear_time(line: str) -> None:
    # AUTOMATIC1111's own pattern would take hours.
    parse_infotext(f"x{line}")


@pytest.mark.parametrize(("name", "pair"), [
    ("DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
    ("DPM++ 2M", ("DPM++ 2M", "Uniform")),
    ("Euler a", ("Euler a", "Automatic")),
    ("Heun SGM Uniform", ("Heun", "SGM Uniform")),
])  # fmt: skip
def test_a_sampler_is_split_as_automatic1111_splits_it(name: str, pair: tuple[str, str]) -> None:
    assert sampler_names.split(name) == pair
    assert sampler_names.join(*pair) == name


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_survives_the_split(name: str) -> None:
    assert sampler_names.join(*sampler_names.split(name)) == name


def test_automatic_means_what_the_sampler_table_says() -> None:
    ours = {name: sampler.automatic for name, sampler in SAMPLERS.items() if sampler.automatic and not sampler.base}
    assert ours == {name: spacing for name, spacing in sampler_names.AUTOMATIC.items() if name in SAMPLERS}


def test_other_programs_identifiers_are_known_samplers() -> None:
    not_in_diffusers = {"DPM++ 2S a"}
    assert set(sampler_names.IDENTIFIERS.values()) - not_in_diffusers <= set(SAMPLERS)


@pytest.mark.parametrize(("identifiers", "name"), [
    (("dpmpp_2m", "karras"), "DPM++ 2M Karras"),
    (("dpmpp_2m_sde_k",), "DPM++ 2M SDE Karras"),
    (("dpm++2m karras",), "DPM++ 2M Karras"),
    (("euler_a discrete",), "Euler a"),
    (("euler_ancestral", "normal"), "Euler a"),
    (("res_multistep", "normal"), "res_multistep"),
])  # fmt: skip
def test_identifiers_become_community_names(identifiers: tuple[str, ...], name: str) -> None:
    assert sampler_names.from_identifier(*identifiers) == name


def test_quoting_is_json_as_automatic1111_reads_it() -> None:
    assert json.loads(quote('a, "b": c\n')) == 'a, "b": c\n'
    assert quote("plain words") == "plain words"


def test_controls_are_written_as_the_extension_writes_them() -> None:
    use = PinnedControl(
        model="canny-sd15",
        digest="ab" * 32,
        image="0" * 64,
        hint="1" * 64,
        preprocessor="canny",
        weight=0.8,
        end=0.5,
        mode="control",
        fit="pad",
    )
    pairs = parse_infotext(write_infotext(APPLE.model_copy(update={"controls": (use, use)}), version="1")).pairs
    assert pairs["ControlNet 1"] == (
        "Module: canny, Model: canny-sd15 [abababab], Weight: 0.8, Resize Mode: Resize and Fill, Guidance Start: 0, "
        "Guidance End: 0.5, Control Mode: ControlNet is more important"
    )
