"""Other programs' files are built here from their documented shapes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.assets.files import chunk, png, saved
from tests.assets.specs import APPLE

from safelight.assets.encode import Encoding, encode
from safelight.assets.read_metadata import Metadata, read_metadata
from safelight.errors import InvalidImage

PICTURE = Image.new("RGB", (8, 8))
INFOTEXT = (
    "a fox, ünicode 狐\nNegative prompt: blurry\n"
    "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 42, Size: 512x512, Model: v1-5"
)
INFOTEXT_SETTINGS = {
    "steps": 20,
    "sampler": "Euler a",
    "guidance": 7.0,
    "seed": 42,
    "width": 512,
    "height": 512,
    "model": "v1-5",
    "clip_skip": 1,
}
GRAPH: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 2**60,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}
GRAPH_SETTINGS = {
    "seed": 2**60,
    "steps": 20,
    "guidance": 8.0,
    "sampler": "DPM++ 2M Karras",
    "model": "v1-5.safetensors",
    "width": 512,
    "height": 768,
}


def read(data: bytes) -> Metadata:
    return read_metadata(data, max_pixels=10**6, max_file_bytes=10**8)


def with_texts(**texts: str) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return saved(PICTURE, "PNG", pnginfo=info)


def with_exif(kind: str, *, comment: bytes | None = None, **tags: str) -> bytes:
    exif = Image.Exif()
    for tag, text in tags.items():
        exif[{"make": 0x010F, "model": 0x0110}[tag]] = text
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    return saved(PICTURE, kind, exif=exif)


def graph_of(**nodes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(GRAPH)) | nodes


def from_graph(graph: object) -> Metadata:
    return read(with_texts(prompt=json.dumps(graph), workflow="{}"))


def test_automatic1111s_png() -> None:
    said = read(with_texts(parameters=INFOTEXT))
    assert (said.producer, said.prompt, said.negative_prompt) == ("automatic1111", "a fox, ünicode 狐", "blurry")
    assert said.settings == INFOTEXT_SETTINGS
    assert said.raw == {"parameters": INFOTEXT}


def test_text_after_the_pixels_is_read() -> None:
    assert read(png(4, 4, after=chunk(b"tEXt", b"parameters\0" + INFOTEXT.encode()))).settings == INFOTEXT_SETTINGS


def test_the_text_of_a_truncated_picture_is_read() -> None:
    data = with_texts(parameters=INFOTEXT)
    assert read(data[: data.index(b"IDAT") + 10]).settings == INFOTEXT_SETTINGS


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(("name", "encoding"), [
    (b"UNICODE\0", "utf-16-be"),
    (b"UNICODE\0", "utf-16-le"),
    (b"UNICODE\0", "utf-16"),
    (b"ASCII\0\0\0", "utf-8"),
    (b"\0" * 8, "utf-8"),
    (b"", "utf-8"),
])  # fmt: skip
def test_automatic1111s_jpeg_and_webp_in_any_encoding_found_in_the_wild(kind: str, name: bytes, encoding: str) -> None:
    said = read(with_exif(kind, comment=name + INFOTEXT.encode(encoding)))
    assert (said.producer, said.prompt) == ("automatic1111", "a fox, ünicode 狐")
    assert said.settings == INFOTEXT_SETTINGS


CPP = (
    "a fox & a <hen>, ü\nSteps: 20, CFG scale: 7.000000, Seed: 42, Size: 512x512, Model: v1-5, RNG: cuda, "
    "Sampler: dpm++2m karras, Version: stable-diffusion.cpp"
)


def test_stable_diffusion_cpps_png_and_webp() -> None:
    escaped = CPP.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><sdcpp:parameters>{escaped}</sdcpp:parameters></x:xmpmeta>'
    utf8_in_latin1 = png(4, 4, before=chunk(b"tEXt", b"parameters\0" + CPP.encode()))
    for data in (utf8_in_latin1, saved(PICTURE, "WEBP", xmp=packet.encode())):
        said = read(data)
        assert (said.producer, said.prompt) == ("stable-diffusion.cpp", "a fox & a <hen>, ü")
        assert said.settings == INFOTEXT_SETTINGS | {"sampler": "DPM++ 2M Karras"}


def test_invokeais_png() -> None:
    text = json.dumps({
        "generation_mode": "txt2img",
        "positive_prompt": "a fox",
        "negative_prompt": "blurry",
        "width": 512,
        "height": 768,
        "seed": 42,
        "rand_device": "cpu",
        "cfg_scale": 7.5,
        "cfg_rescale_multiplier": 0.0,
        "steps": 30,
        "scheduler": "dpmpp_2m_k",
        "clip_skip": 1,
        "model": {"key": "aa", "hash": "blake3:bb", "name": "v1-5", "base": "sd-1", "type": "main"},
        "loras": [],
        "app_version": "5.4.0",
    })  # fmt: skip
    said = read(with_texts(invokeai_metadata=text, invokeai_graph="{}"))
    assert (said.producer, said.prompt, said.negative_prompt) == ("invokeai", "a fox", "blurry")
    assert said.settings == {
        "width": 512,
        "height": 768,
        "seed": 42,
        "guidance": 7.5,
        "guidance_rescale": 0.0,
        "steps": 30,
        "sampler": "DPM++ 2M Karras",
        "clip_skip": 2,
        "model": "v1-5",
    }


def test_comfyuis_png_and_webp() -> None:
    webp = with_exif("WEBP", model=f"prompt:{json.dumps(GRAPH)}", make="workflow:{}")
    for said in (from_graph(GRAPH), read(webp)):
        assert (said.producer, said.prompt, said.negative_prompt) == ("comfyui", "a fox", "blurry")
        assert said.settings == GRAPH_SETTINGS
        assert said.raw["workflow"] == "{}"


def test_comfyuis_control_net_keeps_the_prompts_apart() -> None:
    control = {"positive": ["6", 0], "negative": ["7", 0], "control_net": ["11", 0], "strength": 1.0}
    graph = graph_of(**{"10": {"class_type": "ControlNetApplyAdvanced", "inputs": control}})
    graph["3"]["inputs"] |= {"positive": ["10", 0], "negative": ["10", 1]}
    said = from_graph(graph)
    assert (said.prompt, said.negative_prompt) == ("a fox", "blurry")


def test_comfyuis_text_and_seed_may_come_from_other_nodes() -> None:
    graph = graph_of(
        **{
            "12": {"class_type": "PrimitiveString", "inputs": {"value": "a hen"}},
            "13": {"class_type": "Seed (rgthree)", "inputs": {"seed": 7}},
        }
    )
    graph["6"]["inputs"]["text"] = ["12", 0]
    graph["3"]["inputs"]["seed"] = ["13", 0]
    said = from_graph(graph)
    assert (said.prompt, said.settings["seed"]) == ("a hen", 7)


def test_the_first_of_comfyuis_two_passes_is_read() -> None:
    second = {**GRAPH["3"]["inputs"], "seed": 1, "denoise": 0.5, "latent_image": ["14", 0]}
    said = from_graph({
        "1": {"class_type": "KSampler", "inputs": second},
        "14": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 1024, "height": 1536}},
        **GRAPH,
    })  # fmt: skip
    assert said.settings == GRAPH_SETTINGS


def test_comfyuis_sampler_in_parts() -> None:
    said = from_graph({
        "1": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "2": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "3": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 4, "denoise": 1}},
        "4": {
            "class_type": "CFGGuider",
            "inputs": {"cfg": 1, "positive": ["6", 0], "negative": ["7", 0], "model": ["9", 0]},
        },
        "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 1024}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["8", 0]}},
        "7": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}},
        "9": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
        "10": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["1", 0],
                "guider": ["4", 0],
                "sampler": ["2", 0],
                "sigmas": ["3", 0],
                "latent_image": ["5", 0],
            },
        },
    })  # fmt: skip
    assert (said.prompt, said.negative_prompt) == ("a fox", "")
    assert said.settings == {
        "seed": 5,
        "steps": 4,
        "guidance": 1.0,
        "model": "flux.safetensors",
        "width": 1024,
        "height": 1024,
        "sampler": "Euler",
    }


def test_a_cycle_in_a_graph_ends() -> None:
    graph = graph_of()
    graph["6"]["inputs"] = {"a": ["8", 0]}
    graph["8"]["inputs"]["b"] = ["6", 0]
    assert from_graph(graph).prompt == ""


def test_unknown_metadata_is_returned_raw() -> None:
    swarm = json.dumps({"sui_image_params": {"prompt": "a fox"}})
    assert read(with_texts(parameters=swarm)) == Metadata(producer="unknown", raw={"parameters": swarm})
    assert read(saved(PICTURE, "JPEG")) == Metadata(producer="unknown", raw={})


def test_a_spec_that_does_not_match_its_digest_is_ignored() -> None:
    data = encode(PICTURE, APPLE, Encoding(), version="1")
    forged = read(data).raw["safelight"].replace("apple", "grape")
    said = read(with_texts(safelight=forged, parameters="a red apple\nSteps: 1, Seed: 2, Size: 8x8"))
    assert (said.producer, said.spec, said.prompt, said.settings["seed"]) == ("safelight", None, "a red apple", 2)


def test_a_file_that_is_no_image_is_an_error() -> None:
    with pytest.raises(InvalidImage, match="is not a picture"):
        read(b"hello")


KEYS = ["parameters", "safelight", "invokeai_metadata", "prompt"]
NESTED = "[" * 200_000


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("text", [
    "",
    "null",
    "[]",
    "{",
    "1" * 10_000,
    NESTED,
    '{"spec_digest":' + NESTED,
    '{"a":' * 200_000,
    '{"spec_digest": 1, "spec": {"task": []}}',
    '{"spec_digest": [], "spec": {"task": "inpaint", "prompt": 1e999, "steps": NaN}}',
    '{"seed": "x", "steps": NaN, "cfg_scale": Infinity, "model": {"name": 3}, "scheduler": {}, "positive_prompt": []}',
    '{"3": {"inputs": {"positive": [[], 0], "latent_image": [{}, {}], "seed": {}, "cfg": true, "steps": 1.5}}}',
    '{"3": {"inputs": {"guider": ["3", 0], "latent_image": ["3", 0]}}}',
    '{"3": {"inputs": {"positive": ["4", 0], "latent_image": null}}, "4": [], "5": {"inputs": []}}',
])  # fmt: skip
def test_malformed_text_is_ignored(key: str, text: str) -> None:
    said = read(with_texts(**{key: text}))
    assert said.spec is None
    assert said.prompt in ("", text)


def test_an_overlong_text_is_ignored() -> None:
    assert not read(with_texts(parameters="x" * 5_000_000)).raw


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
links = st.tuples(st.sampled_from("012"), st.integers(0, 1)).map(list)
names = st.sampled_from(["positive", "negative", "guider", "latent_image", "text", "seed", "steps", "cfg", "width"])
nodes = st.fixed_dictionaries({"inputs": st.dictionaries(names, links | json_values), "class_type": json_values})


@given(st.dictionaries(st.sampled_from("012"), nodes | json_values))
def test_no_graph_breaks_the_reader(graph: dict[str, Any]) -> None:
    from_graph(graph)


@given(
    st.dictionaries(
        st.sampled_from(["positive_prompt", "seed", "steps", "scheduler", "model", "spec_digest", "spec"]), json_values
    )
)
def test_no_record_breaks_the_reader(record: dict[str, Any]) -> None:
    text = json.dumps(record)
    read(with_texts(invokeai_metadata=text))
    read(with_texts(safelight=text))


@given(st.binary(max_size=200))
def test_no_exif_comment_breaks_the_reader(comment: bytes) -> None:
    read(with_exif("JPEG", comment=comment))
    read(with_exif("JPEG", comment=b"UNICODE\0" + comment))
