"""/v1/plugins: what plugins add to a request, with the schemas from which a form is made."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from safelight.plugins import State
from safelight.serving.http.auth import CurrentCaller
from safelight.serving.http.parts import parts_of
from safelight.spec.parts import PluginKind

router = APIRouter(prefix="/v1/plugins", tags=["plugins"])


class PluginView(BaseModel):
    kind: PluginKind
    name: str
    """An entry of `effects`, a value of `sampler`, or a `method` of /v1/upscales."""
    package: str
    version: str
    state: State
    """Only what is `ready` can be used; `safelight plugins` says why another failed."""
    about: str
    json_schema: dict[str, Any] | None
    """Of an effect's entry in `effects`: its fields, with types, bounds, defaults and descriptions."""


class PluginList(BaseModel):
    object: Literal["list"] = "list"
    data: list[PluginView]


@router.get("")
async def list_plugins(request: Request, caller: CurrentCaller) -> PluginList:
    """List the plugins that are installed on the server."""
    return PluginList(
        data=[
            PluginView.model_validate(plugin, from_attributes=True) for plugin in parts_of(request).studio.plugins.all
        ]
    )
