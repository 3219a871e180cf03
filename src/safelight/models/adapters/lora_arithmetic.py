"""From a file's tensors to the terms of `lora_terms.py`: each algorithm's formula, as its authors have it.

| algorithm | adds | source |
|---|---|---|
| LoRA | α/r · B A | arXiv:2106.09685 |
| LoCon | the same for convolutions, A of their kernel's size; with `mid`, a CP decomposition | arXiv:2309.14859 |
| LoHa | α/r · (B₁A₁) ∘ (B₂A₂) | arXiv:2108.06098 |
| LoKr | α/r · W₁ ⊗ W₂, either also as a product | arXiv:2309.14859 |
| DoRA | m (W + D) / ‖W + D‖ - W, where D is what any of these adds | arXiv:2402.09353 |

A weight w multiplies the whole difference, DoRA's too, so that 0 is the base model and 1 the trained one (peft's
weight of a DoRA scales D inside of the norm; at 1 all agree).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from safelight.errors import CorruptModel
from safelight.models.hooks.lora_terms import Dense, Gain, Kronecker, Layer, LowRank, Term
from safelight.models.weights.lora_file import scalar_value

Tensors = Mapping[str, Tensor]
NUMBERS = ("alpha", "scalar")


class DoesNotFit(Exception):
    """The tensors are of other shapes than the layer's; says which."""


def terms_of(tensors: Tensors, layer: Layer, *, scale: float | None) -> tuple[Term, ...]:
    """What these tensors add to the layer, in float32.

    Args:
        scale: alpha / r, where the file's header and not its tensors say so.

    Raises:
        DoesNotFit: made for a layer of another shape.
        CorruptModel: tensors that belong together are missing, or do not go together.
    """
    device = layer.weight.device
    tensors = {name: t.float() if name in NUMBERS else t.to(device, torch.float32) for name, t in tensors.items()}
    try:
        term = plain_term(tensors, layer, scale=scale)
        check_fit(term, layer)
        term = shaped(term, layer)
        if "scalar" in tensors:
            term = times(term, scalar_value(tensors["scalar"]))
        if "magnitude" in tensors:
            # peft's are along the output, whatever their shape: (out,), or (1, out, 1, 1) for convolutions.
            return decomposed(term, tensors["magnitude"].flatten(), layer)
        return decomposed(term, tensors["dora_scale"], layer) if "dora_scale" in tensors else (term,)
    except KeyError as error:
        raise CorruptModel(f"{sorted(tensors)} without {error}") from None
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise CorruptModel(f"shapes that do not fit together: {shapes}") from error


def fused(layers: Sequence[Layer]) -> Layer:
    """Layers that read the same, as one layer with their outputs below each other; of one, that one."""
    if len(layers) == 1:
        return layers[0]
    weight = torch.cat([layer.weight for layer in layers])
    one = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    one.weight = nn.Parameter(weight, requires_grad=False)
    return one


def apart(terms: Sequence[Term], layers: Sequence[Layer]) -> list[tuple[Term, ...]]:
    """What is for each of the layers, of terms for all of them fused."""
    if len(layers) == 1:
        return [tuple(terms)]
    sizes = [len(layer.weight) for layer in layers]
    return [*zip(*(rows_of(term, sizes) for term in terms), strict=True)]


def rows_of(term: Term, sizes: Sequence[int]) -> Sequence[Term]:
    match term:
        case LowRank(down=down, up=up):
            return [LowRank(down, rows) for rows in up.split(sizes)]
        case Kronecker(left=left, right=right) if all(size % len(right) == 0 for size in sizes):
            return [Kronecker(rows, right) for rows in left.split([size // len(right) for size in sizes])]
        case Kronecker(left=left, right=right):  # a cut goes through a copy of the right matrix
            return [Dense(rows) for rows in torch.kron(left, right).split(sizes)]
        case Gain(gain=gain):
            return [Gain(rows) for rows in gain.split(sizes)]
        case Dense(weight=weight):
            return [Dense(rows) for rows in weight.split(sizes)]


def plain_term(tensors: Tensors, layer: Layer, *, scale: float | None) -> Term:
    if "down" in tensors or "up" in tensors:
        return low_rank(tensors, scale=scale)
    if any(name.startswith("hada") for name in tensors):
        return hadamard(tensors, layer)
    if any(name.startswith("lokr") for name in tensors):
        return kronecker(tensors, layer)
    return Dense(tensors["diff"])


def low_rank(tensors: Tensors, *, scale: float | None) -> LowRank:
    down, up = tensors["down"], tensors["up"].flatten(1)
    if "mid" in tensors:
        # A 1x1 convolution, then one of the kernel's size: together one of the kernel's size.
        down = torch.einsum("s r h w, r i -> s i h w", tensors["mid"], down.flatten(1))
    if up.shape[1] != down.shape[0]:
        raise ValueError
    if scale is None:
        scale = alpha_over(down.shape[0], tensors)
    return LowRank(down, up * scale)


def hadamard(tensors: Tensors, layer: Layer) -> Term:
    first, second = (tuple(tensors[f"hada_w{i}_{side}"] for side in "ab") for i in (1, 2))
    scale = alpha_over(first[1].shape[0], tensors)
    if "hada_t1" in tensors:
        return Dense(scale * tucker(tensors["hada_t1"], *first) * tucker(tensors["hada_t2"], *second))
    rank = first[1].shape[0] * second[1].shape[0]
    if 2 * rank <= min(layer.weight.shape[0], layer.weight.shape[1:].numel()):
        # A Hadamard product of two low-rank matrices is one of the product of their ranks (Khatri and Rao).
        up = torch.einsum("o p, o q -> o p q", first[0], second[0]).flatten(1)
        down = torch.einsum("p i, q i -> p q i", first[1], second[1]).flatten(0, 1)
        return LowRank(down if isinstance(layer, nn.Linear) else down.unflatten(1, layer.weight.shape[1:]), up * scale)
    return Dense(scale * (first[0] @ first[1]) * (second[0] @ second[1]))


def kronecker(tensors: Tensors, layer: Layer) -> Kronecker:
    ranks = [tensors[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors]
    left = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    if "lokr_w2" in tensors:
        right = tensors["lokr_w2"]
    elif "lokr_t2" in tensors:
        right = tucker(tensors["lokr_t2"], tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    else:
        w2_a, w2_b = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
        right = (w2_a @ w2_b.flatten(1)).view(len(w2_a), *w2_b.shape[1:])
    kernel = layer.weight.shape[2:]
    if right.ndim == 2 and right.shape[1] % kernel.numel() == 0 and kernel.numel() > 1:
        right = right.view(len(right), -1, *kernel)
    # With both matrices whole there is no rank, and LyCORIS takes no notice of alpha.
    return Kronecker(left * (alpha_over(ranks[0], tensors) if ranks else 1.0), right)


def tucker(core: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """(out, in, kh, kw) from LyCORIS's CP form: core (i, j, kh, kw), out (i, out), into (j, in)."""
    return torch.einsum("i j h w, i o, j n -> o n h w", core, out, into)


def alpha_over(rank: int, tensors: Tensors) -> float:
    return scalar_value(tensors["alpha"]) / rank if "alpha" in tensors else 1.0


def check_fit(term: Term, layer: Layer) -> None:
    """A 1x1 convolution and a linear layer may stand for each other."""
    out, into, *kernel = layer.weight.shape
    match term:
        case LowRank(down=down, up=up):
            found = (up.shape[0], *down.shape[1:])
        case Kronecker(left=left, right=right):
            found = (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1], *right.shape[2:])
        case Dense(weight=weight):
            found = tuple(weight.shape)
        case Gain():
            raise AssertionError("a gain is made for its layer")
    wanted = (out, into, *kernel)
    flat = (out, into * kernel[0] * kernel[1]) if kernel else wanted
    if without_ones(found) not in (without_ones(wanted), without_ones(flat)):
        raise DoesNotFit(f"{tuple(wanted)} here and {tuple(found)} in the file")


def shaped(term: Term, layer: Layer) -> Term:
    """With the dimensions that the layer's own weights have."""
    match term:
        case LowRank(down=down, up=up):
            return LowRank(down.reshape(-1, *layer.weight.shape[1:]), up)
        case Kronecker(left=left, right=right):
            kernel = [1] * (layer.weight.ndim - 2) if right.ndim == 2 else right.shape[2:][: layer.weight.ndim - 2]
            return Kronecker(left, right.reshape(*right.shape[:2], *kernel).contiguous())
        case Dense(weight=weight):
            return Dense(weight.reshape(layer.weight.shape))
        case Gain():
            return term


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] in ((), (1, 1)) else shape


def times(term: Term, scalar: float) -> Term:
    match term:
        case LowRank(down=down, up=up):
            return LowRank(down, up * scalar)
        case Kronecker(left=left, right=right):
            return Kronecker(left * scalar, right)
        case Dense(weight=weight):
            return Dense(weight * scalar)
        case Gain(gain=gain):
            return Gain(gain * scalar)


def decomposed(term: Term, magnitude: Tensor, layer: Layer) -> tuple[Term, ...]:
    """DoRA: the columns or rows of the sum, (out, in, ...), scaled to the trained lengths, (out,) or (in,)."""
    own = layer.weight.float()
    whole = own + term.delta(own)
    out, into = own.shape[:2]
    if magnitude.numel() not in (out, into):
        raise DoesNotFit(f"{tuple(own.shape)} here and a magnitude of {tuple(magnitude.shape)} in the file")
    # LyCORIS takes lengths along the input unless told otherwise, and writes (1, in) then; else it is (out, 1).
    by_input = magnitude.numel() == into and (out != into or (magnitude.ndim > 1 and magnitude.shape[0] == 1))
    if by_input:
        lengths = whole.transpose(0, 1).flatten(1).norm(dim=1)
        gain = (magnitude.flatten() / lengths.clamp(min=torch.finfo(torch.float32).eps)).view(
            1, -1, *[1] * (own.ndim - 2)
        )
        return (Dense(whole * gain - own),)
    gain = magnitude.flatten() / whole.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).eps)
    if isinstance(term, LowRank):
        return (LowRank(term.down, term.up * gain[:, None]), Gain(gain - 1))
    return (Dense(whole * gain.view(-1, *[1] * (own.ndim - 1)) - own),)
