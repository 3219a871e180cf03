"""The programs on the clients' pages run against a server, with its address in the place of the usual one."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CLIENTS = Path(__file__).parents[2] / "docs" / "clients"
FENCE = re.compile(r"^```py\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["automatic1111.md", "openai.md"])
def test_the_programs_of_a_page_run(page: str, server: str, tmp_path: Path) -> None:
    port = str(urlsplit(server).port)
    program = "\n".join(FENCE.findall((CLIENTS / page).read_text()))
    assert "7860" in program
    # In a process of its own: a program may leave its connections open when it ends.
    subprocess.run([sys.executable, "-c", program.replace("7860", port)], cwd=tmp_path, check=True)
    assert list(tmp_path.glob("*.png"))
