"""The image encoder recipe: train a small CLIP vision network for the text encoder of a model folder.

The text encoder is frozen; besides the image encoder, only a small head on its states is trained. So after new training
of the text encoder, only this stage has to run again. A batch holds several pictures of each of its concepts, which
differ in style, colour and background. A second loss classifies each picture among the names of all concepts, since a
batch contains only a few.

Read `train_image_encoder` from top to bottom. A step's randomness depends only on (seed, step, process).
"""

import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from safelight.lifecycle.mini.augment import augmented, on_white
from safelight.lifecycle.mini.autoencoder import BACKGROUNDS
from safelight.lifecycle.mini.captions import STYLE_WORDS, Subject, caption, without_colours
from safelight.lifecycle.mini.drawings import Drawings
from safelight.lifecycle.mini.image_encoder_folder import load_vision, write_pair
from safelight.lifecycle.mini.mini import ImageEncoderRecipe, MiniRecipe
from safelight.lifecycle.training.averaging import Average
from safelight.lifecycle.training.checkpoint import load_checkpoint, restore, save_checkpoint, snapshot
from safelight.lifecycle.training.optimizer import new_optimizers, set_rates
from safelight.lifecycle.training.rates import Until, rate_factor, shared_progress
from safelight.lifecycle.training.seeds import seed_of
from safelight.models.checkpoints.digest import file_sum
from safelight.models.networks.placement import fast_dtypes
from safelight.models.vision.similarity import TextHead, pool_text


class ClipPair(nn.Module):
    """Image encoder and text head: pictures and pooled texts in, unit vectors out."""

    def __init__(self, vision: CLIPVisionModelWithProjection, text_head: TextHead) -> None:
        super().__init__()
        self.vision = vision
        self.text_head = text_head
        self.sharpness = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Tensor, *texts: Tensor) -> tuple[Tensor, ...]:
        """Images (b, 3, side, side) and pooled texts (n, width) -> unit vectors, (b, dim) and (n, dim)."""
        pictures = F.normalize(self.vision(images).image_embeds.float(), dim=-1)
        return pictures, *(F.normalize(self.text_head(text).float(), dim=-1) for text in texts)


def new_pair(recipe: ImageEncoderRecipe, text_width: int, start: Path | None) -> ClipPair:
    """A new pair, or one with the image encoder of the model folder `start`; the text head is always new."""
    torch.manual_seed(recipe.seed)
    config = CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        image_size=recipe.side,
        patch_size=recipe.patch,
        projection_dim=recipe.projection,
    )
    vision = CLIPVisionModelWithProjection(config)
    if start:
        load_vision(vision, start)
    return ClipPair(vision, TextHead(text_width, recipe.projection)).train()


def train_image_encoder(
    recipe: MiniRecipe, artwork: Path, out: Path, folder: Path, *, until: Until, start: Path | None = None
) -> dict[str, float]:
    """Train, resuming from `out`/image_encoder.pt; write `folder`/image_encoder; return the held-out retrieval."""
    encoder = recipe.image_encoder
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(out))
    accelerator.init_trackers("image_encoder")
    texts = Texts(folder)
    drawings = Drawings(artwork, side=encoder.side)
    batches = Batches(recipe, drawings)
    names = texts.pool(batches.bank)
    pair = new_pair(encoder, names.shape[1] // 2, start)
    optimizers = new_optimizers(
        pair,
        muon_rate=encoder.muon_rate,
        adam_rate=encoder.adam_rate,
        weight_decay=encoder.weight_decay,
        is_matrix=lambda name, param: ".layers." in name and param.ndim == 2,
    )
    average = Average(pair, encoder.ema)
    model = accelerator.prepare(pair)
    path = out / "image_encoder.pt"
    step, seconds = 0, 0.0
    if state := load_checkpoint(path):
        if state["text_encoder"] == texts.digest:
            step, seconds = restore(state, pair, average, optimizers)
        elif accelerator.is_main_process:
            print(f"{path} belongs to another text encoder: starting from the beginning", flush=True)
    began = saved = time.time()

    def save() -> None:
        if accelerator.is_main_process:
            spent = seconds + accelerator.num_processes * time.process_time()
            save_checkpoint(path, snapshot(step, spent, pair, average, optimizers) | {"text_encoder": texts.digest})

    while (progress := shared_progress(accelerator, until, step, began)) < 1:
        set_rates(optimizers, rate_factor(step, warmup=encoder.warmup, progress=progress, cooldown=encoder.cooldown))
        seed = seed_of(encoder.seed, step, accelerator.process_index)
        batch = batches.draw(seed, encoder.batch // accelerator.num_processes)
        generator = torch.Generator().manual_seed(seed)
        images = augmented(batch.pictures, encoder.how, generator, backgrounds=batch.backgrounds)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.bfloat16 in fast_dtypes("cpu")):
            pictures, captions, bank = model(images, texts.pool(batch.captions), names)
        sharpness = pair.sharpness.exp().clamp(max=100)
        loss = contrastive_loss(sharpness * pictures @ captions.T, batch.true)
        loss = loss + F.cross_entropy(sharpness * pictures @ bank.T, batch.concepts)
        accelerator.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
        step += 1
        if step % encoder.report_every == 0 and accelerator.is_main_process:
            with average.applied():
                numbers = retrieval(pair, texts, drawings)
            accelerator.log({"loss": loss.item(), **numbers}, step=step)
            print(f"step {step}  loss {loss.item():.3f}  {shown(numbers)}", flush=True)
        if time.time() - saved > encoder.save_every_s:
            save()
            saved = time.time()
    save()
    numbers = {}
    if accelerator.is_main_process:
        with average.applied():
            numbers = retrieval(pair, texts, drawings)
            write_pair(folder, pair.vision, pair.text_head, numbers | {"steps": step}, text_encoder=texts.digest)
        print(f"image encoder of {folder} after {step} steps: {shown(numbers)}", flush=True)
    accelerator.end_training()
    return numbers


class Texts:
    """Encodes captions with the frozen text encoder of a model folder, and caches the results."""

    def __init__(self, folder: Path) -> None:
        self.network = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.digest = file_sum(folder / "text_encoder/model.safetensors")
        self.known: dict[str, Tensor] = {}

    def pool(self, captions: Sequence[str]) -> Tensor:
        """Pooled states (n, width) of the captions, each computed once."""
        if new := sorted({text for text in captions if text not in self.known}):
            for start in range(0, len(new), 256):
                part = new[start : start + 256]
                self.known |= dict(zip(part, pool_text(self.network, self.tokenizer, part), strict=True))
        return torch.stack([self.known[text] for text in captions])


@dataclass(frozen=True, slots=True)
class CaptionBatch:
    pictures: Tensor
    backgrounds: Tensor
    captions: list[str]
    true: Tensor
    """(captions, pictures): whether the caption is true of the picture."""
    concepts: Tensor
    """The index of each picture's concept among all names."""


class Batches:
    """Samples some concepts, and some pictures of each, with new captions; never held-out combinations."""

    def __init__(self, recipe: MiniRecipe, drawings: Drawings) -> None:
        self.recipe = recipe
        self.drawings = drawings
        self.bank = sorted({names[0] for names in drawings.names.values()})
        self.place = {slug: self.bank.index(names[0]) for slug, names in drawings.names.items()}
        self.rows: dict[str, list[int]] = defaultdict(list)
        for row in (~drawings.is_held).nonzero()[:, 0].tolist():
            self.rows[drawings.about[row]["concept"]].append(row)
        core = {concept["slug"] for concept in drawings.concepts if concept["core"]}
        self.popular = [slug for slug in self.rows if slug in core]
        self.all = list(self.rows)

    def draw(self, seed: int, count: int) -> CaptionBatch:
        encoder, draw = self.recipe.image_encoder, random.Random(seed)
        rows: list[int] = []
        while len(rows) < count:
            tier = self.popular if self.popular and draw.random() < encoder.popular_share else self.all
            own = self.rows[draw.choice(tier)]
            rows += draw.sample(own, min(encoder.together, len(own), count - len(rows)))
        named = [draw.choice(list(BACKGROUNDS)) if draw.random() < encoder.named_backgrounds else None for _ in rows]
        subjects = [self.drawings.subject(row, background) for row, background in zip(rows, named, strict=True)]
        captions = [caption(subject, encoder.captions, draw) for subject in subjects]
        slugs = [self.drawings.about[row]["concept"] for row in rows]
        return CaptionBatch(
            pictures=self.drawings.pictures(torch.tensor(rows)),
            backgrounds=torch.tensor([BACKGROUNDS.get(name or "", (255, 255, 255)) for name in named]) / 255,
            captions=captions,
            true=truths(captions, subjects, slugs),
            concepts=torch.tensor([self.place[slug] for slug in slugs]),
        )


def truths(captions: Sequence[str], subjects: Sequence[Subject], concepts: Sequence[str]) -> Tensor:
    """Bool (b, b): whether each caption is true of each picture, by concept and every attribute that it names.

    A caption without a colour means the artist's own colours, unless its picture is a recoloured copy.
    """

    def true(text: str, about: int, other: int) -> bool:
        mine, theirs = subjects[about], subjects[other]
        words = text.replace(",", " ").split()
        says_style = any(word in text for word in STYLE_WORDS[mine.style])
        says_background = mine.background is not None and "background" in words
        return (
            concepts[about] == concepts[other]
            and (mine.colour == theirs.colour if mine.colour in words else mine.own_colour == theirs.own_colour)
            and (not says_style or mine.style == theirs.style)
            and (not says_background or mine.background == theirs.background)
        )

    count = range(len(captions))
    return torch.tensor([[i == j or true(captions[i], i, j) for j in count] for i in count])


def contrastive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """CLIP's loss in both directions; every caption that is true of a picture counts as a positive (arXiv:2204.03610).

    Args:
        logits: (pictures, captions).
        true: (captions, pictures).
    """
    of_captions = F.cross_entropy(logits.T, true.float() / true.sum(dim=1, keepdim=True))
    of_pictures = F.cross_entropy(logits, true.T.float() / true.T.sum(dim=1, keepdim=True))
    return (of_captions + of_pictures) / 2


@torch.no_grad()
def retrieval(pair: ClipPair, texts: Texts, drawings: Drawings) -> dict[str, float]:
    """Retrieval among the held-out pictures of popular concepts: top-1 and top-5 accuracy, in both directions."""
    rows = (drawings.is_held & drawings.is_popular).nonzero()[:, 0]
    parts = [on_white(drawings.pictures(part)) for part in rows.split(128)]
    captions = [full_caption(drawings.subject(row)) for row in rows.tolist()]
    pictures = torch.cat([pair(part)[0] for part in parts])
    alike = F.normalize(pair.text_head(texts.pool(captions)), dim=-1) @ pictures.T
    numbers: dict[str, float] = {"held_out_pictures": len(rows)}
    for direction, scores in (("text_to_picture", alike), ("picture_to_text", alike.T)):
        places = (scores > scores.diagonal()[:, None]).sum(dim=1)
        numbers |= {f"{direction}_at_{k}": (places < k).double().mean().item() for k in (1, 5)}
    return numbers


def full_caption(subject: Subject) -> str:
    """The plain caption that names colour, thing and style."""
    name = subject.names[0]
    return f"{name if subject.own_colour else f'{subject.colour} {without_colours(name)}'}, {subject.style} style"


def shown(numbers: dict[str, Any]) -> str:
    return "  ".join(f"{name} {number:.3g}" for name, number in numbers.items())
