"""/verify: a page that says what a picture says of itself, without a script."""

import base64
from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, File, Request, UploadFile
from fastapi.responses import HTMLResponse

from safelight.errors import SafelightError
from safelight.serving.native.verify_routes import examined
from safelight.trust.examination import Examination, Layer

router = APIRouter(include_in_schema=False)

STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 44rem; margin: 3rem auto; padding: 0 1rem }
form { border: 1px solid GrayText; border-radius: .5rem; padding: 1rem; display: flex; gap: 1rem; flex-wrap: wrap }
section { border-top: 1px solid GrayText; padding: .5rem 0 }
h2 { margin: 1.5rem 0 .5rem } h3 { margin: .5rem 0 0; font-size: 1rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 0 }
dd { margin: 0; overflow-wrap: anywhere } .quiet { color: GrayText }
"""
HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
           "base-uri 'none'; frame-ancestors 'none'"}  # fmt: skip
FORM = """
<form method="post" enctype="multipart/form-data">
<input type="file" name="file" required accept="image/*" aria-label="Picture"><button>Verify</button></form>
<p class="quiet">The picture is read and forgotten. Marks can be removed: that nothing is found does not show that no
model made it.</p>"""
SAID = {
    "marked": "The picture is marked, and its marks hold.",
    "broken": "The signature does not hold: the picture was changed after it was signed.",
    "unmarked": "No marks were found.",
}
MADE = {"yes": "It says that a generative model made it.", "partly": "It says that a generative model changed it."}


@router.get("/verify")
async def page() -> HTMLResponse:
    return answer("")


@router.post("/verify")
async def result(request: Request, file: Annotated[UploadFile, File()]) -> HTMLResponse:
    try:
        found, report = await examined(request, file)
    except SafelightError as error:
        return answer(f"<h2>It could not be read</h2><p>{escape(str(error))}</p>", status=error.status)
    return answer(shown(found, report, name=file.filename or "picture"))


def answer(body: str, *, status: int = 200) -> HTMLResponse:
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Verify a picture</title><style>{STYLE}</style>"
    view = '<meta name="viewport" content="width=device-width">'
    return HTMLResponse(f"{head}{view}<h1>Verify a picture</h1>{FORM}{body}</html>", status, headers=HEADERS)


def shown(found: Examination, report: str, *, name: str) -> str:
    """The findings as HTML; all that comes from the picture is text."""
    file = base64.b64encode(report.encode()).decode()
    link = f'<p><a download="report.jws" href="data:application/jose;base64,{file}">Download the signed report</a></p>'
    made = f"<p>{MADE[found.generated]}</p>" if found.generated in MADE else ""
    layers = "".join(section(layer) for layer in found.layers)
    return f"<h2>{escape(name)}</h2><p><strong>{SAID[found.conclusion]}</strong></p>{made}{layers}{link}"


def section(layer: Layer) -> str:
    said = {name.replace("_", " "): text_of(value) for name, value in layer.says.items()}
    rows = "".join(f"<dt>{escape(name)}<dd>{escape(text)}" for name, text in said.items())
    reasons = "".join(f"<p>{escape(reason)}</p>" for reason in layer.reasons)
    title = f"<h3>{escape(layer.name.capitalize())}: {escape(layer.state)}</h3>"
    return f"<section>{title}<p class=quiet>{escape(layer.technique)}</p><dl>{rows}</dl>{reasons}</section>"


def text_of(value: Any) -> str:
    match value:
        case list():
            return "; ".join(text_of(one) for one in value)  # pyright: ignore[reportUnknownVariableType]
        case dict():
            return ", ".join(f"{name} {text_of(one)}" for name, one in value.items() if one)  # pyright: ignore
        case _:
            return str(value)
