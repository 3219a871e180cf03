"""Make a diffusers folder from a file that holds only the denoising network, and a folder with the other components.

    transformer or UNet in a file + a folder of its family -> a folder with that network

The file may use the tensor names of the original code, of ComfyUI or of diffusers; from a file that holds more, only
the network is used. The folder's other files are hard-linked, not copied, where the file system allows it.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from safelight.errors import CorruptModel, InvalidRequest, StorageFailed, UnsupportedOption
from safelight.models.checkpoints.digest import files_of
from safelight.models.checkpoints.families import Description
from safelight.models.networks.networks import denoiser_class
from safelight.models.weights.identify import ORIGINAL, TITLES, UNET, identify
from safelight.models.weights.ldm_names import unet_modules
from safelight.models.weights.ldm_weights import unet_from_ldm
from safelight.models.weights.mmdit_names import LAYOUTS, from_original
from safelight.models.weights.safetensors_file import NETWORK
from safelight.models.weights.scaled import ScaledWeights
from safelight.models.weights.tensor_file import TensorFile, write_tensors

Tensors = Mapping[str, Tensor]


def join(file_path: Path, base: Description, out: Path) -> None:
    """Write the folder `out`: the network from `file_path`, everything else from `base`.

    Raises:
        InvalidRequest: `out` exists already.
        UnsupportedOption: the file is of another family than the base, or the base is not a folder.
        UnsafeFile, CorruptModel: as `read_header`; or the network differs in structure from the base's.
        StorageFailed: the disk is full, or the folder cannot be written to.
    """
    if out.exists():
        raise InvalidRequest(f"{out} exists already: choose another name, or remove it")
    if base.is_file:
        raise UnsupportedOption(
            "base", f"{base.path} is one file; the other components must come from a diffusers folder"
        )
    file = TensorFile(file_path)
    identity = identify(file.header)
    if identity is not None and identity.base not in ("", base.family.name):
        raise UnsupportedOption("base", f"{file_path} is a {identity}, and {base.path} is {TITLES[base.family.name]}")
    read = reader(file_path, ScaledWeights(file), base)
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in read()}
    require_same(file_path, shapes, base)

    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        network = part / base.family.network
        plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in shapes.items()}
        write_tensors(network / f"{NETWORK}.safetensors", plan, read(), metadata={"format": "pt"})
        for path in other_files(base):
            place(path, part / path.relative_to(base.path))
        part.rename(out)
    except OSError as error:
        raise StorageFailed(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def reader(file_path: Path, tensors: Tensors, base: Description) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    """Return a function that yields the network's tensors (any shape) under diffusers' names, one at a time."""
    prefix = UNET if any(name.startswith(UNET) for name in tensors) else ""
    names = [name for name in tensors if name.startswith(prefix)]
    convert: Callable[[Tensors], Tensors] = dict
    if any(name.removeprefix(prefix).startswith(ORIGINAL) for name in names):
        if base.family.network == "unet":
            modules = unet_modules(base.unet)
            convert = lambda tensors: unet_from_ldm(tensors, modules)  # noqa: E731
        else:
            layout = LAYOUTS[base.family.name](base.unet)
            convert = lambda tensors: from_original(tensors, layout)  # noqa: E731

    def read() -> Iterator[tuple[str, Tensor]]:
        for name in names:
            try:
                yield from convert({name.removeprefix(prefix): tensors[name]}).items()
            except CorruptModel as error:
                raise CorruptModel(f"{file_path}: {error}") from None

    return read


def require_same(file_path: Path, shapes: Tensors, base: Description) -> None:
    wanted = denoiser_class(base.family.name)(base.unet).state_dict()
    missing, beyond = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    wrong = [name for name, tensor in wanted.items() if name in shapes and shapes[name].shape != tensor.shape]
    if missing:
        problem = f"lacks {len(missing)} of its tensors, the first is {missing[0]}"
    elif beyond:
        problem = f"has {len(beyond)} more tensors, the first is {beyond[0]}"
    elif wrong:
        theirs, ours = tuple(shapes[wrong[0]].shape), tuple(wanted[wrong[0]].shape)
        problem = f"has {wrong[0]} of shape {theirs}, not {ours}"
    else:
        return
    raise CorruptModel(f"the network in {file_path} differs in structure from that of {base.path}: it {problem}")


def other_files(base: Description) -> list[Path]:
    """Return the base's files besides its network, the index last: without it, the folder does not count as a model."""
    network = base.path / base.family.network
    read = [path for path in files_of(base) if path.parent != network]
    indices = [index for folder in {path.parent for path in read} for index in folder.glob("*.index*.json")]
    files = {*read, *indices, network / "config.json"}
    return sorted(files, key=lambda path: (path.name == "model_index.json", path))


def place(path: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    source = path.resolve()  # files in the hub's folders are symbolic links
    try:
        os.link(source, out)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, out)
