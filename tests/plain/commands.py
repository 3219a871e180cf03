"""Every command of `safelight` on a plain installation: it works, or says in one sentence what to install.

    make plain

An environment without extras has no pytest, hence a program. Packages are missing there and not hidden. The commands
are listed from the program itself: a new one needs its line below.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from typer.main import get_command

from safelight.cli.doctor import EXTRAS
from safelight.cli.main import app
from safelight.models.checkpoints.catalogue import MINI

WORKS, REFUSED, JUDGED = "works", "is refused", "does not pass"
SMALL = "--steps 1 --seed 7"
CASES = {
    f"generate apple {SMALL} --width 64 --height 64": WORKS,
    "replay pictures/apple-7.png": WORKS,
    "info pictures/apple-7.png": WORKS,
    "verify pictures/apple-7.png": WORKS,
    "upscale pictures/apple-7.png": WORKS,
    "upscale pictures/apple-7.png --method realesr-animevideov3": "upscale",
    "serve": "server",
    "mcp": "server,mcp",
    "keys create joe": WORKS,
    "keys list": WORKS,
    "keys webhook-secret": WORKS,
    "forget joe --dry-run": WORKS,
    "keys revoke joe": WORKS,
    "SAFELIGHT_DATABASE_URL=postgresql://localhost/none keys list": "postgres",
    "control": WORKS,
    "control list": WORKS,
    "control hint pictures/apple-7.png canny": WORKS,
    "lora": WORKS,
    "lora list": WORKS,
    "lora show nowhere": REFUSED,
    "models": WORKS,
    "models list": WORKS,
    "models show mini": WORKS,
    "models export mini --single-file mini.safetensors": REFUSED,
    "models add brand": WORKS,
    "models alias brand@candidate brand@1": WORKS,
    "models licence brand@1": WORKS,
    "models convert old.ckpt new.safetensors": REFUSED,
    "models join brand/unet/diffusion_pytorch_model.safetensors mini": WORKS,
    "models link": WORKS,
    "models policy": WORKS,
    "models promote brand@1 --against mini --seeds 1 --steps 1 --override 'only a trial'": WORKS,
    "models rollback brand": REFUSED,
    "models verify": WORKS,
    "models rm brand@1 --force": WORKS,
    "plugins": WORKS,
    "samplers": WORKS,
    "samplers list": WORKS,
    "samplers plot Euler --out euler.png": WORKS,
    "train check data": WORKS,
    "train check table.parquet": "data",
    "train check https://example.org/set.tar": "data",
    f"train lora data --name ink {SMALL}": "train",
    f"train dreambooth data --name ink --prompt 'a sks mug' {SMALL}": "train",
    f"train embedding data --name ink --init apple {SMALL}": "train",
    f"train full data --name ink {SMALL}": "train",
    "train scratch artwork": "train",
    "eval mini --limit 1 --seeds 1 --steps 1": WORKS,
    "eval compare mini mini --seeds 1 --steps 1": JUDGED,
    "audit mini --data data --seeds 1 --steps 1": WORKS,
    "trust init": WORKS,
    "trust certificate": WORKS,
    "trust rotate": WORKS,
    "trust init --certificate nowhere.pem --key nowhere.pem": REFUSED,
    "trust ledger verify": WORKS,
    "trust ledger export": WORKS,
    "trust ledger checkpoint": WORKS,
    "trust ledger rotate": WORKS,
    "trust ledger retain": REFUSED,
    "doctor": WORKS,
    "bench --model nowhere": REFUSED,
}
"""What each does here: it works, is refused for another reason, or names the extra that it needs."""


def main() -> None:
    there = [name for _, modules in EXTRAS.values() for name in modules if importlib.util.find_spec(name)]
    if there:
        sys.exit(f"this is no plain installation: it has {', '.join(there)}; say `make plain`")
    faults = [f"{words}: has no case" for words in commands(get_command(app)) if not any(map(words.match, CASES))]
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        for case, expected in CASES.items():
            done = call(case, folder)
            said = outcome(done)
            print(f"{'ok' if said == expected else 'FAULT':<6}{case}: {said}", flush=True)
            if said != expected:
                faults.append(f"{case}: {said}, and not {expected}\n{done.stdout}{done.stderr}")
    sys.exit("\n".join(faults) or None)


def commands(command: Any, words: str = "") -> Iterator[re.Pattern[str]]:
    below: dict[str, Any] = getattr(command, "commands", {})
    for name, one in below.items():
        yield from commands(one, f"{words}{name} ")
    if not below:
        yield re.compile(rf"{words.strip()}\b")


def call(case: str, folder: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(case)
    said = dict(word.split("=", 1) for word in words if word.startswith("SAFELIGHT_"))
    environment = os.environ | {"SAFELIGHT_HOME": f"{folder}/home", "HF_HUB_OFFLINE": "1"} | said
    command = [sys.executable, "-m", "safelight", *words[len(said) :]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def outcome(done: subprocess.CompletedProcess[str]) -> str:
    """What is refused is refused in one sentence, with the exit code of what cannot be."""
    if done.returncode == 0:
        return WORKS
    if done.returncode == 1 and "It does not pass" in done.stdout:
        return JUDGED
    errors = re.findall(r"^Error: (.+)$", done.stderr, re.MULTILINE)
    if done.returncode != 2 or len(errors) != 1 or "Traceback" in done.stderr:
        return f"exit code {done.returncode}, {len(errors)} errors"
    named = re.search(r"pip install 'safelight\[([a-z,]+)\]'", errors[0])
    return named[1] if named else REFUSED


def write_data(folder: Path) -> None:
    (folder / "table.parquet").write_bytes(b"PAR1")
    shutil.copytree(MINI, folder / "brand")
    (folder / "data").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 90, 120)).save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text("a coloured square")


if __name__ == "__main__":
    main()
