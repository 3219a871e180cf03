"""/sdapi/v1: lists of models, samplers and so on, and the options of a key."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel

from safelight.diffusion.samplers import SAMPLERS, Sampler
from safelight.errors import SafelightError
from safelight.models.weights.safetensors_file import read_header
from safelight.serving.a1111.answers import ERROR_RESPONSES
from safelight.serving.a1111.embeddings import Embeddings, list_embeddings
from safelight.serving.a1111.options import merge_options, options_view
from safelight.serving.a1111.progress import active_requests_of
from safelight.serving.a1111.upscalers import LATENT_MODES, NONE, upscalers_by_name
from safelight.serving.http.auth import CurrentCaller
from safelight.serving.http.description import NULL
from safelight.serving.http.parts import parts_of
from safelight.studio import Studio
from safelight.version import __version__

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=ERROR_RESPONSES)

KARRAS_RHO = 7.0
NO_RHO = -1.0


class SamplerItem(BaseModel):
    name: str
    aliases: list[str]
    options: dict[str, str]


class SchedulerItem(BaseModel):
    name: str
    label: str
    aliases: list[str] | None = None
    default_rho: float = NO_RHO
    need_inner_model: bool = False


class UpscalerItem(BaseModel):
    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float | None = 4


class LatentUpscaleMode(BaseModel):
    name: str


class ModelItem(BaseModel):
    title: str
    """A value for `sd_model_checkpoint`, which also accepts the name alone."""
    model_name: str
    hash: str | None = None
    """Unknown for an unused model of a linked folder."""
    sha256: str | None = None
    filename: str
    config: str | None = None


class VaeItem(BaseModel):
    model_name: str
    filename: str


class LoraItem(BaseModel):
    name: str
    alias: str
    path: str
    """The file's name; callers do not see its folder."""
    metadata: dict[str, Any]
    """The metadata in the file, written by its trainer."""


class Named(BaseModel):
    name: str
    path: str | None = None


class FaceRestorer(BaseModel):
    name: str
    cmd_dir: str | None = None


class PromptStyle(BaseModel):
    name: str
    prompt: str | None = None
    negative_prompt: str | None = None


class Scripts(BaseModel):
    txt2img: list[str] = []
    img2img: list[str] = []


class ScriptInfo(BaseModel):
    name: str
    is_alwayson: bool
    is_img2img: bool
    args: list[dict[str, Any]]


class MemoryAnswer(BaseModel):
    """Memory in bytes; `error` if it is not known."""

    ram: dict[str, Any]
    cuda: dict[str, Any]


SCHEDULERS = [
    SchedulerItem(name="automatic", label="Automatic"),
    SchedulerItem(name="uniform", label="Uniform", need_inner_model=True),
    SchedulerItem(name="karras", label="Karras", default_rho=KARRAS_RHO),
    SchedulerItem(name="exponential", label="Exponential"),
    SchedulerItem(name="sgm_uniform", label="SGM Uniform", aliases=["SGMUniform"], need_inner_model=True),
    SchedulerItem(name="normal", label="Normal", need_inner_model=True),
    SchedulerItem(name="beta", label="Beta", need_inner_model=True),
]


@router.get("/options")
async def options(request: Request, caller: CurrentCaller) -> dict[str, Any]:
    """The options of the caller's key, with defaults for the rest."""
    studio, stored = parts_of(request).studio, active_requests_of(request).options_of(caller)

    def read() -> dict[str, Any]:
        return options_view(merge_options(stored, {}, studio), studio)

    return await asyncio.to_thread(read)


@router.post("/options", responses=NULL)
async def set_options(
    request: Request,
    caller: CurrentCaller,
    body: Annotated[dict[str, Any], Body(examples=[{"sd_model_checkpoint": "mini", "CLIP_stop_at_last_layers": 1}])],
) -> None:
    """Set options of the caller's key only; options that do not affect the picture are ignored."""
    caller.require("draw")
    parts, active_requests = parts_of(request), active_requests_of(request)
    options = await asyncio.to_thread(merge_options, active_requests.options_of(caller), body, parts.studio)
    await active_requests.save_options(caller, options, parts.keys)


@router.get("/samplers")
async def samplers(caller: CurrentCaller) -> list[SamplerItem]:
    return [
        SamplerItem(name=sampler.name, aliases=list(sampler.aliases), options=sampler_options(sampler))
        for sampler in SAMPLERS.values()
        if not sampler.base and sampler.kind in ("diffusion", "any")
    ]


def sampler_options(sampler: Sampler) -> dict[str, str]:
    return {"scheduler": sampler.automatic.lower()} if sampler.automatic else {}


@router.get("/schedulers")
async def schedulers(caller: CurrentCaller) -> list[SchedulerItem]:
    return SCHEDULERS


@router.get("/sd-models")
async def sd_models(request: Request, caller: CurrentCaller) -> list[ModelItem]:
    return await asyncio.to_thread(models_in, parts_of(request).studio)


def models_in(studio: Studio) -> list[ModelItem]:
    items: list[ModelItem] = []
    for name in studio.models.catalogue.names():
        try:
            digest = studio.models.known_digest(name)
        except SafelightError:
            # A broken folder must not hide the others.
            continue
        short = digest and digest[:10]
        title = f"{name} [{short}]" if digest else name
        items.append(ModelItem(title=title, model_name=name, hash=short, sha256=digest, filename=name))
    return items


@router.get("/upscalers")
async def upscalers(request: Request, caller: CurrentCaller) -> list[UpscalerItem]:
    names = await asyncio.to_thread(upscalers_by_name, parts_of(request).studio.upscalers)
    return [UpscalerItem(name=name) for name in (NONE, *names)]


@router.get("/latent-upscale-modes")
async def latent_upscale_modes(caller: CurrentCaller) -> list[LatentUpscaleMode]:
    return [LatentUpscaleMode(name=name) for name in LATENT_MODES]


@router.get("/sd-vae")
async def sd_vae(request: Request, caller: CurrentCaller) -> list[VaeItem]:
    """The values of the option `sd_vae`, besides the models' own."""
    folder = parts_of(request).studio.parts.folder
    known = await asyncio.to_thread(folder.paths, "vae")
    return [VaeItem(model_name=name, filename=path.name) for name, path in known.items()]


@router.get("/loras")
async def loras(request: Request, caller: CurrentCaller) -> list[LoraItem]:
    """The names for `<lora:name:1>` in a prompt."""
    catalogue = parts_of(request).studio.models.catalogue
    return await asyncio.to_thread(lambda: [lora_item(name, path) for name, path in catalogue.files("lora").items()])


def lora_item(name: str, path: Path) -> LoraItem:
    try:
        metadata = dict(read_header(path).metadata)
    except SafelightError:
        metadata = {}
    return LoraItem(name=name, alias=str(metadata.get("ss_output_name") or name), path=path.name, metadata=metadata)


@router.get("/embeddings")
async def embeddings(request: Request, caller: CurrentCaller) -> Embeddings:
    """The embeddings that fit the caller's model, and the others."""
    studio, stored = parts_of(request).studio, active_requests_of(request).options_of(caller)
    return await asyncio.to_thread(
        lambda: list_embeddings(studio, merge_options(stored, {}, studio).sd_model_checkpoint)
    )


@router.get("/hypernetworks")
async def hypernetworks(caller: CurrentCaller) -> list[Named]:
    return []


@router.get("/face-restorers")
async def face_restorers(caller: CurrentCaller) -> list[FaceRestorer]:
    return []


@router.get("/realesrgan-models")
async def realesrgan_models(caller: CurrentCaller) -> list[Named]:
    return []


@router.get("/prompt-styles")
async def prompt_styles(caller: CurrentCaller) -> list[PromptStyle]:
    return []


@router.get("/scripts")
async def scripts(caller: CurrentCaller) -> Scripts:
    """The supported scripts; a request that names another is refused."""
    return Scripts(txt2img=["controlnet"], img2img=["controlnet", "sd upscale"])


@router.get("/script-info")
async def script_info(caller: CurrentCaller) -> list[ScriptInfo]:
    return []


@router.get("/extensions")
async def extensions(caller: CurrentCaller) -> list[Named]:
    return []


@router.get("/cmd-flags")
async def cmd_flags(caller: CurrentCaller) -> dict[str, Any]:
    return {"api": True, "nowebui": True, "version": f"safelight {__version__}"}


@router.get("/memory")
async def memory(caller: CurrentCaller) -> MemoryAnswer:
    return await asyncio.to_thread(lambda: MemoryAnswer(ram=ram(), cuda=cuda()))


def ram() -> dict[str, Any]:
    """The machine's memory, and that used by this process."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        used = page * int(Path("/proc/self/statm").read_text().split()[1])
    except (AttributeError, OSError, ValueError):
        return {"error": f"not known on {sys.platform}"}
    return {"free": total - used, "used": used, "total": total}


def cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"error": "there is no CUDA device"}
    free, total = torch.cuda.mem_get_info()
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    return {
        "system": {"free": free, "used": total - free, "total": total},
        "active": {"current": allocated, "peak": torch.cuda.max_memory_allocated()},
        "allocated": {"current": allocated, "peak": torch.cuda.max_memory_allocated()},
        "reserved": {"current": reserved, "peak": torch.cuda.max_memory_reserved()},
    }


@router.post("/refresh-checkpoints", responses=NULL)
@router.post("/refresh-vae", responses=NULL)
@router.post("/refresh-loras", responses=NULL)
@router.post("/refresh-embeddings", responses=NULL)
@router.post("/unload-checkpoint", responses=NULL)
@router.post("/reload-checkpoint", responses=NULL)
async def nothing_to_do(caller: CurrentCaller) -> None:
    """No effect: folders are read at every request, and one caller must not unload a model for the others."""
