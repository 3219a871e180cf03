"""Spatial control per row: each row of one network call has its own ControlNets and T2I-Adapters, or none.

    net.read(hint)                 once a walk: what the network makes of the picture that it is shown
    residuals_of(rows, inputs)     each call: what is added inside of the UNet, for all rows

A ControlNet is called on its own rows only, those of one net together, and what it says is scattered into zeros, so
that a row without control has nothing added to it. Weights multiply what is added: they may differ from row to row.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import unwrap
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot

from safelight.errors import CorruptModel
from safelight.models.adapters.control_file import ControlFile
from safelight.models.hooks.hook import NetworkInputs
from safelight.models.networks.components import Weights
from safelight.models.networks.load import build, outlined, require_shapes
from safelight.models.networks.networks import control_classes
from safelight.models.networks.placement import Placement
from safelight.models.weights.control_lora import restore_weight
from safelight.models.weights.safetensors_file import read_header
from safelight.models.weights.tensor_file import TensorFile
from safelight.spec.effects import HintKind

Features = tuple[Tensor, ...]
"""What a network makes of its hint, apart from noise and prompt."""
SOFTEST = 0.1
"""How much the finest layer counts where control acts less the finer a layer is."""


@dataclass(frozen=True, slots=True, eq=False)
class ControlNet:
    """Compared by identity."""

    network: Any
    """A ControlNetModel whose embedding of the hint has been taken out, to run once a walk and not in every call."""
    embedding: nn.Module
    placement: Placement
    hint_channels: int
    flips: bool
    """It was trained on pictures in the order blue, green, red."""
    pools: bool
    """It says the same for all places (shuffle), and nothing of what guidance leads away from."""
    hint_kinds: tuple[HintKind, ...]
    """That it is told apart by; none but for a ControlNet Union."""
    size_bytes: int

    def read(self, hint: Image.Image) -> Features:
        pixels = to_pixels(hint, self.hint_channels, self.placement)
        return (self.embedding(pixels.flip(1) if self.flips else pixels)[0],)

    def __call__(self, features: Tensor, inputs: "NetworkInputs", kinds: Sequence[HintKind | None]) -> list[Tensor]:
        """Residuals (n, c, h, w) for each skip of the UNet's first half and for its middle.

        `features` is (n, c, h, w), for n rows whose prompts are equally long.
        """
        shown: dict[str, Any] = {"controlnet_cond": features}
        if self.hint_kinds:
            numbers = torch.tensor([self.hint_kinds.index(kind) for kind in kinds if kind], device=features.device)
            # One entry of each list is one hint of every row; what kind it is may differ from row to row.
            shown = {
                "controlnet_cond": [features],
                "control_type": one_hot(numbers, len(self.hint_kinds)),
                "control_type_idx": [numbers],
            }
        down, middle = unwrap(type(self.network).forward)(
            self.network,
            inputs.latents[:, : self.network.config.in_channels],
            inputs.timesteps,
            encoder_hidden_states=inputs.context,
            added_cond_kwargs=inputs.added,
            return_dict=False,
            **shown,
        )
        residuals = [*down, middle]
        if self.pools:
            return [part.mean(dim=(2, 3), keepdim=True).expand_as(part) for part in residuals]
        return residuals


@dataclass(frozen=True, slots=True, eq=False)
class T2IAdapter:
    network: Any
    placement: Placement
    hint_channels: int
    downscale: int
    size_bytes: int

    def read(self, hint: Image.Image) -> Features:
        """One for each level; all that it does, for it knows neither noise nor prompt."""
        width, height = (-(-side // self.downscale) * self.downscale for side in hint.size)
        if (width, height) != hint.size:
            hint = hint.resize((width, height), Image.Resampling.LANCZOS)
        return tuple(part[0] for part in self.network(to_pixels(hint, self.hint_channels, self.placement)))


Net = ControlNet | T2IAdapter


@dataclass(frozen=True, slots=True, eq=False)
class ControlInput:
    """One control of one row, in one call."""

    net: Net
    features: Features
    weight: float
    soft: bool = False
    """Less the finer a layer is."""
    kind: HintKind | None = None
    """Of its hint, for a net that tells several apart."""


Row = tuple[ControlInput, ...]


@dataclass(slots=True)
class ResidualSums:
    """Tensors for all rows, zero until something is added to some of them."""

    rows: int
    tensors: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, index: Tensor, parts: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Add parts, each (n, c, h, w), to the rows of index, (n,), times weights, each (n,)."""
        if not self.tensors:
            self.tensors = [part.new_zeros(self.rows, *part.shape[1:]) for part in parts]
        for total, part, weight in zip(self.tensors, parts, weights, strict=True):
            total.index_add_(0, index, part * weight.to(part).view(-1, 1, 1, 1))


class ControlHook:
    """Calls the control networks before the UNet, which takes their outputs as arguments."""

    def __init__(self, network: nn.Module) -> None:
        del network

    @contextmanager
    def on(self, rows: Sequence[Row | None], inputs: NetworkInputs) -> Iterator[dict[str, Any]]:
        yield residuals_of(rows, inputs)


def residuals_of(rows: Sequence[Row | None], inputs: NetworkInputs) -> dict[str, Any]:
    """The UNet's arguments that carry control; none where no row has any."""
    lengths = [inputs.context.shape[1]] * len(rows) if inputs.mask is None else inputs.mask.sum(dim=1).tolist()
    residuals, shifts = ResidualSums(len(rows)), ResidualSums(len(rows))
    for (net, _, length), members in grouped(rows, lengths).items():
        index = torch.tensor([row for row, _ in members], device=inputs.latents.device)
        features = [torch.stack(level) for level in zip(*(control.features for _, control in members), strict=True)]
        match net:
            case ControlNet():
                parts = net(features[0], inputs.rows(index, length), [control.kind for _, control in members])
                residuals.add(index, parts, weights_of([control for _, control in members], len(parts)))
            case T2IAdapter():
                shifts.add(index, features, weights_of([control for _, control in members], len(features)))
    arguments: dict[str, Any] = {}
    if residuals.tensors:
        *down, middle = residuals.tensors
        arguments |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    if shifts.tensors:
        arguments |= {"down_intrablock_additional_residuals": shifts.tensors}
    return arguments


Group = list[tuple[int, ControlInput]]
"""Controls with the index of their row in the call."""


def grouped(rows: Sequence[Row | None], lengths: Sequence[int]) -> dict[tuple[Net, int, int], Group]:
    """What can be asked in one call: of one net, and of prompts of one length; each row once."""
    groups: dict[tuple[Net, int, int], Group] = {}
    for row, controls in enumerate(rows):
        seen: Counter[Net] = Counter()
        for one in controls or ():
            groups.setdefault((one.net, seen[one.net], lengths[row]), []).append((row, one))
            seen[one.net] += 1
    return groups


def weights_of(controls: Sequence[ControlInput], layers: int) -> list[Tensor]:
    """For each layer, (b,); soft ones grow by equal factors from the finest layer to the middle."""
    weights = torch.tensor([control.weight for control in controls])
    soft = torch.tensor([control.soft for control in controls])
    factors = torch.logspace(float(np.log10(SOFTEST)), 0, layers)
    return [torch.where(soft, weights * factor, weights) for factor in factors]


def to_pixels(hint: Image.Image, channels: int, placement: Placement) -> Tensor:
    """(1, c, h, w) in [0, 1], as diffusers' pipelines make it."""
    levels = torch.from_numpy(np.array(hint.convert("L" if channels == 1 else "RGB"))).float() / 255.0
    pixels = levels[None, None] if levels.ndim == 2 else levels.permute(2, 0, 1)[None]
    return pixels.to(placement.device, placement.dtype)


def restored_weights(about: ControlFile, file: TensorFile, unet: nn.Module) -> dict[str, Tensor]:
    """The weights of a Control-LoRA, of any shape: the model's, plus the differences in the file."""
    theirs = unet.state_dict()
    try:
        return {
            name: restore_weight(theirs[name], file[f"{module}.up"], file[f"{module}.down"])
            for module, name in about.changes.items()
        }
    except (KeyError, RuntimeError) as error:
        raise CorruptModel(f"{about.path} is a Control-LoRA for another model: {error}") from None


class EachRowAlone(nn.Module):
    """A layer of ControlNet Union that attends over the first dimension of (b, n, c), which is the batch's, as if each
    row were called alone: what stands beside a picture would change it. Rows of one picture are all alike there.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(1, -1, x.shape[-1])).reshape(x.shape)


def maker(about: ControlFile) -> Callable[[Mapping[str, Any]], nn.Module]:
    classes = control_classes()
    return {
        "controlnet": classes.controlnet,
        "controlnet-union": classes.controlnet_union,
        "t2i-adapter": classes.t2i_adapter,
    }[about.kind]


def settings_of(about: ControlFile) -> Mapping[str, Any]:
    # Pooled by us, and in the order of our own pictures.
    ours = {"global_pool_conditions": False, "controlnet_conditioning_channel_order": "rgb"}
    return {**about.config, **({} if about.kind == "t2i-adapter" else ours)}


def require_known(about: ControlFile, names: Set[str], network: nn.Module) -> None:
    if strange := names - network.state_dict().keys():
        raise CorruptModel(f"{about.path} has {len(strange)} unknown tensors, such as {min(strange)}")


def require_whole(about: ControlFile) -> None:
    """Raises CorruptModel as `load_control` does, from the headers alone."""
    network = outlined(maker(about), settings_of(about), about.path)
    wanted = network.state_dict()
    headers = [read_header(path) for path in about.files]
    found = {
        about.names[name]: entry.shape
        for header in headers
        for name, entry in header.tensors.items()
        if name in about.names
    }
    # Of a Control-LoRA, these are the model's own with something added.
    found |= {name: wanted[name].shape for name in about.changes.values() if name in wanted}
    require_shapes(wanted, found, about.path)
    require_known(about, found.keys(), network)


def load_control(about: ControlFile, placement: Placement, unet: nn.Module) -> Net:
    """Read the weights, on the device and in the number format of the model, whose network is `unet`.

    Raises:
        CorruptModel: tensors are missing, or are not as the configuration has them.
    """
    files = tuple(TensorFile(path) for path in about.files)
    tensors = {about.names[name]: file[name] for file in files for name in file if name in about.names}
    if about.changes:
        tensors |= restored_weights(about, files[0], unet)
    network = build(maker(about), settings_of(about), Weights(about.path, tensors, files), placement)
    require_known(about, tensors.keys(), network)
    size = sum(param.nbytes for param in network.parameters())
    if about.kind == "t2i-adapter":
        channels, downscale = int(network.config.in_channels), int(network.config.downscale_factor)
        return T2IAdapter(network, placement, channels, downscale, size)
    if about.hint_kinds:
        network.transformer_layes = nn.ModuleList(map(EachRowAlone, network.transformer_layes))
    embedding = network.controlnet_cond_embedding
    network.controlnet_cond_embedding = nn.Identity()
    return ControlNet(
        network=network,
        embedding=embedding,
        placement=placement,
        hint_channels=int(network.config.conditioning_channels),
        flips=about.config.get("controlnet_conditioning_channel_order") == "bgr",
        pools=bool(about.config.get("global_pool_conditions")),
        hint_kinds=about.hint_kinds,
        size_bytes=size,
    )
