"""ControlNet as its extension of AUTOMATIC1111 has it: what the units of a body mean in our words."""

import asyncio
import re
from typing import Any

from fastapi import Request

from safelight.errors import InvalidField, InvalidFields, SafelightError
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.serving.a1111.payloads import GenerationBody
from safelight.serving.a1111.unit import Unit
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.http.parts import Parts, parts_of
from safelight.serving.jobs.keys import Caller
from safelight.studio import Studio
from safelight.validation import concerning, each


async def led_by(request: Request, caller: Caller, body: GenerationBody, *, init: str | None = None) -> dict[str, Any]:
    """What the units say in the words of a draft; their pictures are stored. `init` is for those that have none.

    Raises:
        SafelightError: what is wrong with any of them, all at once.
    """
    fields: dict[str, list[dict[str, Any]]] = {}
    wrong: list[SafelightError] = []
    for place, unit in body.units.items():
        try:
            model = await asyncio.to_thread(find, f"{place}.model", unit, parts_of(request).studio)
            with concerning(f"{place}.image"):
                image = await picture_of(unit, parts_of(request), caller) if unit.image else init
            assert image, "a body without one was refused"
            field, wish = unit.to_request(model, image)
            fields.setdefault(field, []).append(wish)
        except SafelightError as error:
            wrong += each(error)
    if wrong:
        raise InvalidFields(wrong).alone()
    return fields


async def picture_of(unit: Unit, parts: Parts, caller: Caller) -> str:
    """Stored; returns its digest."""
    data = await fetch_picture(unit.image, max_bytes=parts.settings.max_file_bytes)
    return await parts.studio.take(data, tenant=caller.tenant)


def find(field: str, unit: Unit, studio: Studio) -> str:
    """The model's name, from a title that may end in a hash.

    Raises:
        InvalidField: 422, nothing is named so.
    """
    name = re.sub(r" \[[0-9a-f]{1,64}\]$", "", unit.model.strip())
    try:
        ControlFolder(studio.models.catalogue).path("ip-adapter" if unit.shows_picture else "control", name)
    except SafelightError as error:
        refusal = InvalidField(field, str(error))
        refusal.status = 422
        raise refusal from None
    return name
