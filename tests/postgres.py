"""A PostgreSQL server of our own, where its programs are installed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextmanager
def postgresql_server() -> Generator[str, None, None]:
    """The URL of an empty one."""
    folder = Path(tempfile.mkdtemp(prefix="safelight-pg-"))
    # PostgreSQL refuses to run as root.
    become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if become:
        shutil.chown(folder, "postgres")

    def pg(program: str, *arguments: str) -> None:
        subprocess.run([*become, BINARIES[-1] / program, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=folder)

    pg("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "safelight")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    pg("pg_ctl", "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://safelight@/postgres?host={folder}"
    finally:
        pg("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(folder)
