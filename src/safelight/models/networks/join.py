"""A file that holds a network alone becomes a diffusers folder, with the other parts of a folder that has them.

    transformer or UNet in a file + a folder of its family -> a folder with that network

The file may name its tensors as the original code does, as ComfyUI does, or as diffusers does; of a file that holds
more, the network is taken. The folder's other files are linked, not copied, where the disk allows it.
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


def join(given: Path, base: Description, out: Path) -> None:
    """Write the folder `out`: the network in `given`, and all else as `base` has it.

    Raises:
        InvalidRequest: `out` is there already.
        UnsupportedOption: the file is of another family than the base, or the base is no folder.
        UnsafeFile, CorruptModel: as `read_header`; or the network is not built as the base's.
        StorageFailed: the disk is full, or the folder cannot be written to.
    """
    if out.exists():
        raise InvalidRequest(f"{out} is there already: choose another name, or remove it")
    if base.is_file:
        raise UnsupportedOption("base", f"{base.path} is one file; the other parts are taken from a diffusers folder")
    file = TensorFile(given)
    what = identify(file.header)
    if what is not None and what.base not in ("", base.family.name):
        raise UnsupportedOption("base", f"{given} is a {what}, and {base.path} is {TITLES[base.family.name]}")
    read = reader(given, ScaledWeights(file), base)
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in read()}
    require_same(given, shapes, base)

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


def reader(given: Path, tensors: Tensors, base: Description) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    """What yields the network's tensors under diffusers' names, one at a time."""
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
                raise CorruptModel(f"{given}: {error}") from None

    return read


def require_same(given: Path, shapes: Tensors, base: Description) -> None:
    wanted = denoiser_class(base.family.name)(base.unet).state_dict()
    missing, beyond = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    wrong = [name for name, tensor in wanted.items() if name in shapes and shapes[name].shape != tensor.shape]
    if missing:
        fault = f"lacks {len(missing)} tensors of it, the first is {missing[0]}"
    elif beyond:
        fault = f"has {len(beyond)} tensors more, the first is {beyond[0]}"
    elif wrong:
        theirs, ours = tuple(shapes[wrong[0]].shape), tuple(wanted[wrong[0]].shape)
        fault = f"has a {wrong[0]} of {theirs}, not {ours}"
    else:
        return
    raise CorruptModel(f"the network in {given} is not built as that of {base.path}: it {fault}")


def other_files(base: Description) -> list[Path]:
    """What is read of the base beside its network, the index last: without it, nothing takes the folder for a model."""
    network = base.path / base.family.network
    read = [path for path in files_of(base) if path.parent != network]
    indices = [index for folder in {path.parent for path in read} for index in folder.glob("*.index*.json")]
    files = {*read, *indices, network / "config.json"}
    return sorted(files, key=lambda path: (path.name == "model_index.json", path))


def place(path: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    source = path.resolve()  # the hub's folders are links
    try:
        os.link(source, out)
    except OSError:  # another disk, or one that has no links
        shutil.copyfile(source, out)
