"""A training run as a job: `safelight train` in a process of its own, whose news become events.

A process of its own, so that a run that dies takes nobody with it and its memory goes with it. Its folder is named
after the job, so a job that is tried again, after a crash say, goes on from the checkpoint.
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
    """Started, Stepped*, and at last Learnt or Failed. Closing the generator stops the run with a checkpoint."""
    began = time.monotonic()
    recipe = parse_recipe(spec["recipe"])
    folder = settings.home / "runs" / job_id
    folder.mkdir(parents=True, exist_ok=True)
    await until_free(folder / "lock")
    order = folder / "order.yaml"
    order.write_text(recipe.to_yaml(), "utf-8")
    command = ["-m", "safelight", "train", recipe.kind, "--recipe", str(order), "--out", str(folder), "--json"]
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
        yield ended or Failed(job_id=job_id, error=fault(await errors, process.returncode))
    finally:
        await stop(process)
        errors.cancel()


async def until_free(lock: Path) -> None:
    """A server that was killed leaves its run behind, which ends at its next word: nobody hears it any more."""
    with lock.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                await asyncio.sleep(0.5)


async def last_lines(stream: asyncio.StreamReader) -> list[str]:
    lines: list[str] = []
    async for line in stream:
        lines = [*lines[-20:], line.decode("utf-8", "replace").strip()]
    return lines


def fault(lines: list[str], code: int | None) -> JobFailed:
    """What the command said last, which is a JSON object where it is an error of ours."""
    for line in reversed(lines):
        with suppress(ValueError, TypeError, KeyError):
            said = json.loads(line)["error"]
            error = JobFailed(said["message"])
            error.code = said["code"]
            return error
    return JobFailed(f"the run ended with {code}: {lines[-1] if lines else 'it said nothing'}")


async def stop(process: asyncio.subprocess.Process) -> None:
    """As Ctrl-C would: the run writes a checkpoint, and ends."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError):
        # Cancelled again, it ends at once: a process must not outlive the loop that looks after it.
        process.kill()
        await process.wait()


def environment(settings: Settings) -> dict[str, str]:
    """The server's own settings, which need not be those of its shell."""
    chosen = {"HOME": str(settings.home), "DEVICE": settings.device, "DATABASE_URL": settings.database}
    return os.environ | {PREFIX + name: value for name, value in chosen.items()}
