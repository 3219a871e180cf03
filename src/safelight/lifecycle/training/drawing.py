"""Pictures drawn by the engine from networks that are being trained: samples, and pictures of a class."""

from collections.abc import Generator, Sequence

from PIL import Image

from safelight.engine.engine import Engine
from safelight.engine.job import Job
from safelight.engine.runner import Runner
from safelight.engine.scheduler import Scheduler
from safelight.errors import StorageFailed
from safelight.events import Cancelled, Decoded, Event, Failed
from safelight.imaging.grid import paste
from safelight.lifecycle.training.events import Sampled, TrainingEvent
from safelight.lifecycle.training.run import Run
from safelight.models.backends.eager import eager_denoiser
from safelight.models.networks.load import Model
from safelight.models.networks.textual_inversion import Embedding
from safelight.spec import Draft
from safelight.spec.complete import complete

BUDGET_MEGAPIXELS = 1.0
"""Rows times area in one call: pictures on the way are few, and the training itself needs the memory."""
SEEDS = (0, 1, 2, 3)
"""One column each."""


def draw_pictures(model: Model, drafts: Sequence[Draft], embeddings: Sequence[Embedding] = ()) -> list[Image.Image]:
    """In the order of the drafts, with the networks as they are now.

    Raises:
        SafelightError: the first that failed.
    """
    found: dict[str, Event] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, Decoded | Failed | Cancelled):
            found[event.job_id] = event

    engine = Engine(Scheduler(lambda _model: BUDGET_MEGAPIXELS), Runner(eager_denoiser), emit=on_event)
    try:
        for number, draft in enumerate(drafts):
            spec = complete(draft, model.description.defaults, model_digest=model.digest)
            engine.add(Job(id=str(number), spec=spec, model=model, pictures={}, embeddings=tuple(embeddings)))
        while engine.step():
            pass
    finally:
        engine.close()
    images: list[Image.Image] = []
    for number in range(len(drafts)):
        match found.get(str(number)):
            case Decoded(image=image):
                images.append(image)
            case Failed(error=error):
                raise error
            case other:
                raise AssertionError(f"picture {number} ended with {other}")
    return images


def draw_samples(
    run: Run, model: Model, step: int, embeddings: Sequence[Embedding] = ()
) -> Generator[TrainingEvent, None, None]:
    """The recipe's prompts, one row each, with seeds 0 to 3: samples/STEP.png."""
    if not run.accelerator.is_main_process:
        return
    recipe = run.recipe
    side = None if recipe.resolution is None else max(64, recipe.resolution // 8 * 8)
    drafts = [Draft(prompt=prompt, seed=seed, width=side, height=side) for prompt in recipe.prompts for seed in SEEDS]
    images = draw_pictures(model, drafts, embeddings)
    path = run.folder / "samples" / f"{step:06}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [images[first : first + len(SEEDS)] for first in range(0, len(images), len(SEEDS))]
        paste(rows).save(path)
    except OSError as error:
        raise StorageFailed(f"the samples of step {step} could not be written to {path}: {error}") from None
    yield Sampled(step=step, path=path)
