"""`safelight replay`: make a picture again from what its file says, and measure the difference."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.cli import options
from safelight.cli.kept import kept
from safelight.cli.once import finish
from safelight.cli.out import copy_out, require_writable
from safelight.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL import Image

    from safelight.assets.read_metadata import Metadata
    from safelight.settings import Settings
    from safelight.spec import Draft
    from safelight.spec import Spec as AnySpec

SAME_DB = 60.0
"""PSNR from which two pictures are the same: less than one in 255 for about one pixel in fifteen."""
LOSSY_DB = 30.0
"""The same for JPEG, WebP and AVIF, where the file itself is off by more than that."""
EXAMPLES = """\
[bold]Examples[/]
  safelight replay pictures/a-red-apple-7.png
  safelight replay greener.png --init a-red-apple-7.png
  safelight replay from-automatic1111.png --model ./stable-diffusion-v1-5 --out replayed

Exit code 0: the same picture; 1: another one; 2: it cannot be drawn again, and the message says why."""


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture with its settings in its metadata.")],
    init: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its init picture, if it is not stored here.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="Its mask, if it is not stored here.")] = None,
    led_by: Annotated[
        list[Path] | None,
        typer.Option(
            "--led-by",
            metavar="FILE",
            help="One of its control images or picture prompts, if it is not stored here; may be given several times.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME|PATH|HUB_ID", help="Draw with this model instead of the one in the file."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Also write the new picture to this folder.", show_default="compare only"
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Draw a picture again from its metadata, and report how much it differs.

    Pictures made by safelight must come out the same. From other programs' settings the picture is drawn with --model.
    """
    from safelight.assets.read_metadata import read_metadata
    from safelight.settings import Settings

    settings = Settings.from_environment(device=device, dtype=dtype)
    found = read_metadata(file, max_pixels=settings.max_pixels, max_file_bytes=settings.max_file_bytes)
    given = {"init": kept(init, settings), "mask": kept(mask, settings)}
    for picture in led_by or ():
        kept(picture, settings)
    draft = what_to_draw(file, found, given, model, settings)
    require_writable([settings.blobs, *([out] if out else [])])

    from safelight.api import run
    from safelight.assets.encode import Encoding
    from safelight.spec import Draft
    from safelight.studio import open_studio

    with open_studio(settings) as studio:
        notes = [] if isinstance(draft, Draft) else studio.plugins.differences(draft.plugins)
        original = studio.open(file, trusted=True)
        again = run(finish(draft, studio, Encoding()))
        path = copy_out(studio.assets, again.asset_id, out, f"{file.stem}-replayed") if out else None
        key = studio.keyring.current.id if studio.keyring else ""
    lossy = file.read_bytes()[:4] != b"\x89PNG"
    alike = compare(original, again.image)
    # Another key's watermark differs in every pixel a little: what was drawn is then compared by its digest.
    if found.watermark_key != key and found.pixels and found.pixels == again.pixels and is_close(alike):
        alike = Difference(worst=0, psnr_db=math.inf)
        notes = [*notes, "its watermark was made with another key, or there was none; what was drawn is compared"]
    report(alike, lossy=lossy, path=path, notes=notes, as_json=as_json)


def what_to_draw(
    file: Path, found: "Metadata", given: dict[str, str | None], model: str | None, settings: "Settings"
) -> "AnySpec | Draft":
    """The very spec where the file has one, else a draft in its words.

    Raises:
        InvalidRequest: something is missing; the message says what.
    """
    from safelight.assets.store import AssetStore
    from safelight.errors import UnknownAsset
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.spec import Upscale, parse_draft
    from safelight.spec.fields import NUM_SEEDS

    if found.producer == "unknown":
        raise InvalidRequest(f"{file} has no known settings in its metadata, so it cannot be drawn again")
    if found.spec is not None and (model is None or isinstance(found.spec, Upscale)):
        for role in ("init", "mask"):
            wanted: str | None = getattr(found.spec, role, None)
            if given[role] not in (None, wanted):
                raise InvalidRequest(
                    f"--{role}: this is not the picture that {file} was drawn from, whose sha256 is {wanted[:10]}..."
                    if wanted
                    else f"--{role}: {file} was drawn without one"
                )
            try:
                _ = wanted and AssetStore(settings.blobs).path_of(wanted)
            except UnknownAsset:
                message = f"{file} started from a picture that is not stored here, {wanted}: give it with --{role} FILE"
                raise InvalidRequest(message) from None
        require_leads_stored(file, found.spec, settings)
        return found.spec
    if not found.settings:
        raise InvalidRequest(
            f"{file} lacks the settings to draw it again: it was written with --metadata minimal, or changed since"
        )
    settled = {name: value for name, value in given.items() if value is not None}
    draft: dict[str, Any] = {
        **found.settings,
        "prompt": found.prompt,
        "negative_prompt": found.negative_prompt,
        **settled,
    }
    # ComfyUI's seeds have 64 bits, and so had ours; the lower half is what a generator on the CPU draws by.
    if type(seed := draft.get("seed")) is int and seed >= NUM_SEEDS:
        draft["seed"] = seed % NUM_SEEDS
    named = draft.get("model", "none")
    if model is None and open_catalogue(settings).listed(named) is None:
        raise InvalidRequest(
            f"{file} was made by {found.producer} with model {named!r}, which is not here; "
            "add it, or choose a model to draw with: --model NAME|PATH|HUB_ID"
        )
    if "strength" in draft and "init" not in draft:
        raise InvalidRequest(
            f"{file} was drawn from an init picture, which the file does not contain: give it with --init FILE"
        )
    return parse_draft(draft | ({"model": model} if model else {}))


def require_leads_stored(file: Path, spec: "AnySpec", settings: "Settings") -> None:
    """Raises InvalidRequest if a control image or a picture prompt is not stored here."""
    from safelight.assets.store import AssetStore
    from safelight.errors import UnknownAsset
    from safelight.spec.marks import Mark, marked

    started = {getattr(spec, name, None) for name in ("init", "mask")}
    for wanted in set(marked(spec, Mark.PICTURE)) - started:
        try:
            AssetStore(settings.blobs).path_of(wanted)
        except UnknownAsset:
            message = (
                f"{file} uses a control image or picture prompt that is not stored here, {wanted}: "
                "give it with --led-by FILE"
            )
            raise InvalidRequest(message) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    worst: int
    """Largest difference of a colour channel, of 255."""
    psnr_db: float


def is_close(difference: Difference | None) -> bool:
    """Whether two watermarks, or compression, may be all that differs."""
    return difference is not None and difference.psnr_db >= LOSSY_DB


def compare(one: "Image.Image", other: "Image.Image") -> Difference | None:
    """None where the sizes differ."""
    import numpy as np

    if one.size != other.size:
        return None
    gap = np.asarray(one.convert("RGB"), dtype=np.float64) - np.asarray(other.convert("RGB"), dtype=np.float64)
    mean_square = float((gap**2).mean())
    return Difference(
        worst=int(np.abs(gap).max()),
        psnr_db=10 * math.log10(255**2 / mean_square) if mean_square else math.inf,
    )


def report(
    difference: Difference | None, *, lossy: bool, path: Path | None, notes: Sequence[str], as_json: bool
) -> None:
    """Print the result, and exit with 1 if the picture differs; `notes` are reasons why it may."""
    enough = LOSSY_DB if lossy else SAME_DB
    same = difference is not None and difference.psnr_db >= enough
    if as_json:
        said = {
            "same": same,
            "identical": difference is not None and difference.worst == 0,
            "max_difference": difference.worst if difference else None,
            "psnr_db": round(difference.psnr_db, 2) if difference and difference.worst else None,
            "path": str(path.absolute()) if path else None,
            "notes": list(notes),
        }
        typer.echo(json.dumps(said))
    else:
        for text in (*notes, worded(difference, same=same, lossy=lossy)):
            typer.echo(text)
        if path is not None:
            typer.echo(str(path))
    if not same:
        raise typer.Exit(1)


def worded(difference: Difference | None, *, same: bool, lossy: bool) -> str:
    if difference is None:
        return "different: the sizes differ"
    if difference.worst == 0:
        return "identical: every pixel is the same"
    measured = f"at most {difference.worst} of 255 in a channel, PSNR {difference.psnr_db:.1f} dB"
    allowed = f"within the loss of a lossy format ({LOSSY_DB:g} dB or more)" if lossy else f"{SAME_DB:g} dB or more"
    return f"the same, {allowed}: {measured}" if same else f"different: {measured}"
