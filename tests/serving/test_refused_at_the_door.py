"""What cannot be drawn is refused when it is asked for, and not accepted first and failed later."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.control_files import controlnet, write_diffusers, write_encoder, write_ip_adapter
from tests.lora_files import write_kohya
from tests.models.embeddings import write_a1111
from tests.serving.conftest import serving, settings_in
from tests.tiny_models import load, write_flow, write_inpaint, write_sd1

from safelight.models.checkpoints.catalogue import MINI

SMALL: dict[str, Any] = {"prompt": "an apple", "model": "tiny", "seed": 1, "steps": 2, "width": 64, "height": 64}


def changed(path: Path, to: Path, change: Any) -> None:
    """A file whose header is sound, and which is not what its name says."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, to)


def drop_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[max(tensors)]


def cut_one(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in sorted(tensors) if tensors[name].ndim > 1 and tensors[name].shape[0] > 1)
    tensors[name] = tensors[name][1:].clone()


def poison(tensors: dict[str, torch.Tensor]) -> None:
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = torch.full_like(tensors[name], torch.nan)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("door")
    tiny = load(write_sd1(home / "models" / "tiny"))
    write_inpaint(home / "models" / "masked")
    write_flow(home / "models" / "flow")
    for name in ("loras", "controlnets", "vaes"):
        (home / name).mkdir()
    whole = write_kohya(home / "loras" / "whole.safetensors", tiny)
    write_kohya(home / "loras" / "other.safetensors", load(MINI))
    changed(whole, home / "loras" / "cut.safetensors", cut_one)
    changed(whole, home / "loras" / "poisoned.safetensors", poison)
    save_file({"strange": torch.zeros(2)}, home / "loras" / "strange.safetensors")
    whole = write_a1111(home / "embeddings" / "whole.safetensors")
    changed(whole, home / "embeddings" / "poisoned.safetensors", poison)
    write_a1111(home / "embeddings" / "wide.safetensors", width=48)
    write_a1111(home / "embeddings" / "long.safetensors", num=200)
    whole = write_diffusers(home / "controlnets" / "whole.safetensors", controlnet(tiny))
    for name, change in {"dropped": drop_one, "cut": cut_one}.items():
        changed(whole, home / "controlnets" / f"{name}.safetensors", change)
    encoder = write_encoder(home / "ip-adapters" / "image_encoder")
    whole = write_ip_adapter(home / "ip-adapters" / "whole.safetensors", tiny, encoder=encoder)
    for name, change in {"dropped": drop_one, "cut": cut_one}.items():
        changed(whole, home / "ip-adapters" / f"{name}.safetensors", change)
    whole = home / "models" / "tiny" / "vae" / "diffusion_pytorch_model.safetensors"
    for name, change in {"whole": bool, "dropped": drop_one, "cut": cut_one}.items():
        changed(whole, home / "vaes" / f"{name}.safetensors", change)
    return home


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[httpx.Client]:
    with serving(settings_in(home)) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def kept(client: httpx.Client) -> dict[str, str]:
    """Pictures that are stored, by what they show."""
    pictures = {
        "apple": Image.new("RGB", (64, 64), "red"),
        "black": Image.new("L", (64, 64), "black"),
        "white": Image.new("L", (64, 64), "white"),
        "corner": Image.new("L", (200, 64), "black"),
    }
    pictures["corner"].paste(255, (0, 0, 8, 64))  # which is cut away from a square
    ids: dict[str, str] = {}
    for name, picture in pictures.items():
        file = BytesIO()
        picture.save(file, "PNG")
        ids[name] = client.post("/v1/files", files={"file": ("x.png", file.getvalue())}).raise_for_status().json()["id"]
    return ids


WISHES: dict[str, dict[str, Any]] = {
    "weight nan": {"prompt": "(an apple:nan)"},
    "weight inf": {"prompt": "(an apple:inf)"},
    "weight beyond reason": {"prompt": "(an apple:1000)"},
    "brackets beyond reason": {"prompt": "(" * 200 + "apple"},
    "negative weight nan": {"negative_prompt": "(a pear:nan)", "guidance": 5},
    "weight nan in the end": {"prompt": "an [apple:(pear:nan):0.9]", "steps": 20},
    "lora weight nan": {"prompt": "an apple <lora:whole:nan>"},
    "lora weight inf": {"prompt": "an apple <lora:whole:inf>"},
    "500 ANDs": {"prompt": " AND ".join(["apple"] * 500)},
    "a weight of AND": {"prompt": "apple AND pear :1000"},
    "too many changes": {"prompt": "[a|b]" * 101},
    "too many prompts": {"prompt": "".join(f"[{n}:{n + 1}:{n}]" for n in range(100)) + "[a|b|c]", "steps": 500},
    "too many chunks": {"prompt": "BREAK " * 70},
    "too many chunks in all": {"prompt": "[" + "|".join(["BREAK " * 60 + str(n) for n in range(8)]) + "]", "steps": 9},
    "too long": {"prompt": "a" * 20_001},
    "too long for tokens": {"prompt": "1 " * 9_000},
    "clip_skip": {"clip_skip": 12},
    "sampler": {"sampler": "Flow Euler"},
    "sampler of a flow model": {"model": "flow", "sampler": "DPM++ 2M"},
    "model for masks": {"model": "masked"},
    "perturbed layers": {"pag_scale": 3, "pag_layers": ["nowhere"]},
    "perturbed and": {"pag_scale": 3, "prompt": "an apple AND a pear"},
    "refiner of one step": {"refiner": "tiny", "steps": 1},
    "strength of no step": {"init": "apple", "strength": 0.1},
    "init unknown": {"init": "0" * 64},
    "mask unknown": {"init": "apple", "mask": "0" * 64},
    "mask black": {"init": "apple", "mask": "black"},
    "mask white, inverted": {"init": "apple", "mask": "white", "mask_invert": True},
    "mask cut away": {"init": "apple", "mask": "corner", "mask_blur": 0, "width": 64, "height": 512},
    "hint unknown": {"controls": [{"model": "whole", "image": "0" * 64}]},
    "picture unknown": {"picture_prompts": [{"model": "whole", "image": "0" * 64}]},
    **{f"lora {name}": {"loras": [{"name": name}]} for name in ("other", "cut", "poisoned", "strange")},
    **{f"lora {name}, tagged": {"prompt": f"<lora:{name}:0.5>"} for name in ("other", "cut", "poisoned")},
    **{f"embedding {name}": {"prompt": f"an apple, {name}"} for name in ("poisoned", "wide", "long")},
    **{f"control {name}": {"controls": [{"model": name, "image": "apple"}]} for name in ("dropped", "cut")},
    **{f"picture {name}": {"picture_prompts": [{"model": name, "image": "apple"}]} for name in ("dropped", "cut")},
    **{f"vae {name}": {"vae": name} for name in ("dropped", "cut")},
    "vae of another": {"vae": "mini"},
    "text encoder of another": {"text_encoder": "mini"},
}  # fmt: skip


def named(fields: Any, kept: dict[str, str]) -> Any:
    """With pictures called by what they are stored as."""
    match fields:
        case dict():
            return {
                name: kept.get(one, one) if isinstance(one, str) else named(one, kept) for name, one in fields.items()
            }
        case list():
            return [named(one, kept) for one in fields]
        case _:
            return fields


@pytest.mark.parametrize("what", WISHES)
def test_impossible_requests_are_not_accepted(client: httpx.Client, kept: dict[str, str], what: str) -> None:
    answer = client.post("/v1/jobs", json=SMALL | named(WISHES[what], kept))
    assert 400 <= answer.status_code < 500, answer.text
    assert len(answer.json()["error"]["message"]) < 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"loras": [{"name": "whole"}]},
        {"prompt": "an apple, whole"},
        {"controls": [{"model": "whole", "image": "apple"}]},
        {"picture_prompts": [{"model": "whole", "image": "apple"}]},
        {"vae": "whole"},
        {"model": "masked", "init": "apple", "mask": "white"},
        {"init": "apple", "mask": "corner"},
        {"prompt": "[a|b|c] AND (d:1.2) :0.5", "negative_prompt": "e", "steps": 5},
        {"guidance": 1, "negative_prompt": "(never read:nan)"},
    ],
    ids=str,
)
def test_valid_requests_are_drawn(client: httpx.Client, kept: dict[str, str], fields: dict[str, Any]) -> None:
    job = client.post("/v1/jobs", json=SMALL | named(fields, kept))
    assert job.status_code == 202, job.text
    done = client.get(f"/v1/jobs/{job.json()['id']}/wait?timeout_s=60").json()
    assert (done["state"], done["error"]) == ("done", None)
