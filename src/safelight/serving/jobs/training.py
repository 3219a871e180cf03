"""A training run as a job: `safelight train` in a process of its own, whose output becomes events.

In its own process, a run that crashes takes nothing else with it, and its memory is freed with it. Its folder is named
after the job, so a job that is tried again, for example after a crash, resumes from the checkpoint.
"""

import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safelight.errors import JobFailed
from safelight.events import Event, Failed, Started, Stepped, Trained
from safelight.lifecycle.training.recipe import parse_recipe
from safelight.settings import PREFIX, Settings

MAX_LINE = 16 * 2**20
STOP_S = 30.0
"""How long a run may take to write its checkpoint when it is stopped."""


async def run_training(job_id: str, spec: dict[str, Any], settings: Settings) -> AsyncGenerator[Event, None]:
    """Yield Started, Stepped*, and finally Trained or Failed. Closing the generator stops the run with a checkpoint."""
    began = time.monotonic()
    recipe = parse_recipe(spec["recipe"])
    folder = settings.home / "runs" / job_id
    folder.mkdir(parents=True, exist_ok=True)
    await wait_for_lock(folder / "lock")
    recipe_path = folder / "order.yaml"
    recipe_path.write_text(recipe.to_yaml(), "utf-8")
    command = ["-m", "safelight", "train", recipe.kind, "--recipe", str(recipe_path), "--out", str(folder), "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE,
        env=environment(settings),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(last_lines(process.stderr))
    ended: Event | None = None
    try:
        yield Started(job_id=job_id, total_steps=recipe.steps, waited_s=0.0)
        async for line in process.stdout:
            match json.loads(line):
                case {"event": "trained", "step": step, "total_steps": total}:
                    yield Stepped(job_id=job_id, step=step, total_steps=total, batch_rows=0)
                case {"event": "finished", "reference": reference, "lineage": lineage}:
                    seconds = time.monotonic() - began
                    digest = lineage["digest"]
                    ended = Trained(
                        job_id=job_id,
                        name=recipe.name,
                        reference=reference,
                        kind=recipe.kind,
                        digest=digest,
                        seconds=seconds,
                    )
                case _:
                    pass
        await process.wait()
        yield ended or Failed(job_id=job_id, error=error_from_output(await errors, process.returncode))
    finally:
        await stop(process)
        errors.cancel()


async def wait_for_lock(lock: Path) -> None:
    """Lock the run's folder. A killed server leaves its run behind, which ends at its next write to the closed pipe."""
    with lock.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                await asyncio.sleep(0.5)


async def last_lines(stream: asyncio.StreamReader) -> list[str]:
    """Read the stream to its end; returns its last 21 lines."""
    lines: list[str] = []
    async for line in stream:
        lines = [*lines[-20:], line.decode("utf-8", "replace").strip()]
    return lines


def error_from_output(lines: list[str], code: int | None) -> JobFailed:
    """The error that the command printed last, as JSON if it is a SafelightError."""
    for line in reversed(lines):
        with suppress(ValueError, TypeError, KeyError):
            printed = json.loads(line)["error"]
            error = JobFailed(printed["message"])
            error.code = printed["code"]
            return error
    return JobFailed(f"the training run failed with exit code {code}: {lines[-1] if lines else 'it printed nothing'}")


async def stop(process: asyncio.subprocess.Process) -> None:
    """Stop the run as Ctrl-C would: it writes a checkpoint and ends."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError):
        # Cancelled again: end it at once, since a process must not outlive the event loop that supervises it.
        process.kill()
        await process.wait()


def environment(settings: Settings) -> dict[str, str]:
    """Environment variables with the server's own settings, which may differ from those of its shell."""
    chosen = {"HOME": str(settings.home), "DEVICE": settings.device, "DATABASE_URL": settings.database}
    return os.environ | {PREFIX + name: value for name, value in chosen.items()}
