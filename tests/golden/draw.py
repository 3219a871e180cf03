"""Draws the golden pictures of this folder: one for each task and each way of steering, with the embedded model.

    python -m tests.golden.draw          draw those that are missing
    python -m tests.golden.draw NAME ... draw these again

`test_golden.py` replays them. A picture is drawn again only where a change of numbers is meant, and CHANGELOG says why.
Adapters and the models beside `mini` are made here of whole numbers divided by powers of two, and of the weights of
`mini` times such numbers: their digests are the same on every machine.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import load_file, save_file
from tests.control_files import HINTS
from tests.tiny_models import UNET as UNET_OF_SMALL
from tests.tiny_models import write_sd1

import safelight
from safelight.settings import Settings

HERE = Path(__file__).parent
STARTS = HERE / "starts"
"""The files that specs name by digest; encoders of PNG may differ, so these are kept as they are."""
MINI = Path(safelight.__file__).parent / "models" / "mini"
UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
Tensors = dict[str, np.ndarray[Any, Any]]

COMMON = {"seed": 7, "steps": 6, "determinism": "strict"}
PICTURES: dict[str, dict[str, Any]] = {
    "text_to_image": {"prompt": "a red apple", "sampler": "DPM++ 2M Karras"},
    "prompt_syntax": {
        "prompt": "a [red:(green:1.3):0.5] apple AND a yellow lemon :0.6 BREAK glossy style",
        "negative_prompt": "blue",
        "guidance_interval": {"start": 0.1, "end": 0.9},
        "sampler": "Euler a",
    },
    "highres": {"prompt": "a blue car", "highres": {"scale": 1.5, "strength": 0.6, "upscaler": "latent"}},
    "refiner": {"prompt": "a blue car", "refiner": "second", "refiner_switch": 0.5, "sampler": "Euler"},
    "image_to_image": {"prompt": "an orange", "init": "fruit.png", "strength": 0.6},
    "tiles": {"prompt": "an orange", "init": "fruit.png", "scale": 1.5, "tiles": {"overlap": 32}, "strength": 0.5},
    "inpaint": {"prompt": "a purple grape", "init": "fruit.png", "mask": "box.png", "strength": 0.9},
    "outpaint": {"prompt": "an orange", "init": "fruit.png", "extend": {"left": 32}, "sampler": "Heun"},
    "background": {"prompt": "a green field", "init": "fruit.png", "replace_background": True},
    "edit": {"prompt": "make it green", "model": "edit", "init": "fruit.png", "image_guidance": 1.2},
    "variation": {"prompt": "", "model": "variation", "init": "fruit.png"},
    "lora": {"prompt": "a red apple <lora:coarse:0.8>", "loras": [{"name": "fine", "weight": 0.5}]},
    "controlnet": {
        "prompt": "a photo of the red apple",
        "model": "small",
        "controls": [{"image": "fruit.png", "model": "edges", "preprocessor": "canny", "weight": 0.8, "end": 0.7}],
    },
    "t2i_adapter": {"prompt": "a red apple", "controls": [{"image": "fruit.png", "model": "sketch", "weight": 0.6}]},
    "picture_prompt": {
        "prompt": "an apple",
        "picture_prompts": [{"image": "fruit.png", "model": "look", "weight": 0.7}],
    },
    "embedding": {"prompt": "a (sparkle:1.2) apple", "clip_skip": 2},
    "freeu": {"prompt": "a red apple", "freeu": {"b1": 1.2, "b2": 1.3}, "sampler": "UniPC"},
    "pag": {"prompt": "a red apple", "pag_scale": 2.0, "guidance_rescale": 0.3},
    "sag": {"prompt": "a red apple", "sag_scale": 0.75, "sampler": "DPM++ 2M SDE"},
}
UPSCALED = "upscale"
NAMES = [*PICTURES, UPSCALED]


def furnish(home: Path) -> None:
    """The models, adapters and pictures that the specs name, under a `SAFELIGHT_HOME`."""
    for name, changed in {"second": second, "edit": edit, "variation": variation}.items():
        folder = home / "models" / name
        shutil.copytree(MINI, folder)
        changed(folder)
    unet = as_floats(MINI / UNET)
    write(home / "loras" / "coarse.safetensors", lora(unet, ".attn1.to_q .attn2.to_v", rank=2, seed=1))
    write(home / "loras" / "fine.safetensors", lora(unet, ".ff.net.2 .conv1", rank=4, seed=2))
    write(home / "embeddings" / "sparkle.safetensors", {"emb_params": exact((2, 256), seed=3, size=1 / 32)})
    small(home / "models" / "small")
    write(home / "controlnets" / "edges.safetensors", controlnet())
    write(home / "t2i-adapters" / "sketch.safetensors", t2i_adapter())
    encoder = home / "ip-adapters" / "image_encoder"
    shutil.copytree(MINI / "image_encoder", encoder)
    write(home / "ip-adapters" / "look.safetensors", ip_adapter(unet))
    pictures(home)


def pictures(folder: Path) -> None:
    """fruit.png, a ball on an even ground, and box.png, a mask."""
    ball = Image.new("RGB", (128, 128), (230, 226, 214))
    ImageDraw.Draw(ball).ellipse((34, 30, 98, 94), fill=(226, 120, 36))
    ImageDraw.Draw(ball).ellipse((50, 42, 66, 56), fill=(250, 196, 130))
    ball.save(folder / "fruit.png")
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((60, 20, 120, 100), fill=255)
    mask.save(folder / "box.png")


def exact(shape: Iterable[int], *, seed: int, size: float) -> "np.ndarray[Any, Any]":
    """Whole numbers from -32 to 32, times a power of two: no rounding, on any machine."""
    numbers = np.random.default_rng(seed).integers(-32, 33, tuple(shape))
    return (numbers * (size / 32)).astype(np.float32)


def as_floats(path: Path) -> Tensors:
    return {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}


def write(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def second(folder: Path) -> None:
    """Like `mini`, but of one mind less sure: the last layer says three quarters."""
    unet = load_file(folder / UNET)
    unet["conv_out.weight"] *= np.float16(0.75)
    write(folder / UNET, unet)


def edit(folder: Path) -> None:
    """Shown a picture too, through four more channels."""
    unet = load_file(folder / UNET)
    unet["conv_in.weight"] = np.concatenate([unet["conv_in.weight"], unet["conv_in.weight"] * np.float16(0.25)], axis=1)
    write(folder / UNET, unet)
    change(folder / "unet" / "config.json", in_channels=8)
    change(folder / "model_index.json", _class_name="StableDiffusionInstructPix2PixPipeline")


def variation(folder: Path) -> None:
    """Told what the image encoder sees, in place of words."""
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    extractor = folder / "feature_extractor"
    extractor.mkdir()
    shutil.copy(folder / "image_encoder" / "preprocessor_config.json", extractor)
    change(
        folder / "model_index.json",
        _class_name="StableDiffusionImageVariationPipeline",
        text_encoder=None,
        tokenizer=None,
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )


def change(file: Path, **values: Any) -> None:
    """With these keys, and without those that are None."""
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


def lora(unet: Tensors, endings: str, *, rank: int, seed: int) -> Tensors:
    """kohya's names and shapes, for the layers whose paths end so."""
    file: Tensors = {}
    for name, weight in unet.items():
        layer = name.removesuffix(".weight")
        if layer != name and layer.endswith(tuple(endings.split())):
            out, *into = weight.shape
            key = f"lora_unet_{layer.replace('.', '_')}"
            file[f"{key}.lora_down.weight"] = exact((rank, *into), seed=seed, size=1 / 4)
            file[f"{key}.lora_up.weight"] = exact((out, rank, *(1,) * (len(into) - 1)), seed=seed + 1, size=1 / 4)
            file[f"{key}.alpha"] = np.array(rank / 2, dtype=np.float32)
    return file


def t2i_adapter() -> Tensors:
    from diffusers.models.adapter import T2IAdapter

    network = T2IAdapter(channels=[48, 96, 192], num_res_blocks=1, downscale_factor=16, adapter_type="full_adapter_xl")
    return exactly(network.state_dict(), size=4)


def controlnet() -> Tensors:
    """For `small`; `mini` reads time at a width of its own, which no ControlNet does."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    network = ControlNetModel(
        **{name: UNET_OF_SMALL[name] for name in ("down_block_types", "block_out_channels", "layers_per_block")},
        **{name: UNET_OF_SMALL[name] for name in ("norm_num_groups", "attention_head_dim", "cross_attention_dim")},
        conditioning_embedding_out_channels=HINTS,
    )
    return exactly(network.state_dict(), size=1)


def small(folder: Path) -> None:
    """A Stable Diffusion 1 of numbers by lot."""
    write_sd1(folder)
    for config in folder.rglob("config.json"):
        change(config, _diffusers_version=None, transformers_version=None)
    for file in folder.rglob("*.safetensors"):
        write(file, exactly(load_file(file), size=1))


def exactly(shapes: Mapping[str, Any], *, size: float) -> Tensors:
    """Numbers by lot in these shapes: weights about as large as they are when training begins, biases and norms 1."""
    tensors: Tensors = {}
    for seed, (name, tensor) in enumerate(sorted(shapes.items())):
        shape = tuple(tensor.shape)
        if len(shape) > 1:
            fan_in = int(np.prod(shape[1:]))
            tensors[name] = exact(shape, seed=seed, size=size * 2.0 ** -round(np.log2(fan_in) / 2))
        else:
            tensors[name] = np.full(shape, 1.0 if "norm" in name and name.endswith("weight") else 0.0, np.float32)
    return tensors


def ip_adapter(unet: Tensors) -> Tensors:
    file = {
        "image_proj.proj.weight": exact((4 * 256, 256), seed=6, size=1 / 16),
        "image_proj.proj.bias": exact((4 * 256,), seed=7, size=1 / 16),
        "image_proj.norm.weight": np.ones(256, dtype=np.float32),
        "image_proj.norm.bias": np.zeros(256, dtype=np.float32),
    }
    # The order of diffusers' attention processors: down, up, and the middle last.
    order = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
    keys = sorted(
        (name for name in unet if name.endswith(".attn2.to_k.weight")),
        key=lambda name: (order[name.split(".")[0]], name),
    )
    for number, name in enumerate(keys):
        for part in "kv":
            shape = unet[name].shape
            file[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = exact(shape, seed=8 + number, size=1 / 16)
    return file


def draw(name: str, home: Path, folder: Path) -> Path:
    """One of the pictures, with its record inside; `home` is furnished."""
    target = folder / f"{name}.png"
    if name == UPSCALED:
        # The one task that no call of the Python interface has.
        command = [sys.executable, "-m", "safelight", "upscale", str(home / "fruit.png"), "--scale", "2"]
        subprocess.run([*command, "--out", str(folder)], check=True, env=environment(home), capture_output=True)
        [made] = folder.glob("fruit*.png")
        made.rename(target)
        return target
    fields = COMMON | PICTURES[name]
    for key in ("init", "mask"):
        if key in fields:
            fields[key] = home / fields[key]
    for key in ("controls", "picture_prompts"):
        fields[key] = [{**one, "image": home / one["image"]} for one in fields.get(key, ())]
    with safelight.open_studio(settings_of(home)) as studio:
        [picture] = safelight.generate(**fields, studio=studio)
    shutil.copy(picture.path, target)
    return target


def keep_starts(home: Path) -> None:
    """Of all pictures here that start from one."""
    STARTS.mkdir(exist_ok=True)
    specs = [Image.open(HERE / f"{name}.png").info["safelight"] for name in NAMES]
    for blob in (home / "blobs").rglob("*.png"):
        if any(f'"{blob.stem}"' in spec for spec in specs):
            shutil.copy(blob, STARTS)


def settings_of(home: Path) -> Settings:
    return Settings.from_environment(home=home, device="cpu", dtype="float32")


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "SAFELIGHT_HOME": str(home), "SAFELIGHT_DEVICE": "cpu", "SAFELIGHT_DTYPE": "float32"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        furnish(Path(place))
        for wanted in sys.argv[1:] or [name for name in NAMES if not (HERE / f"{name}.png").exists()]:
            print(draw(wanted, Path(place), HERE))
        keep_starts(Path(place))
