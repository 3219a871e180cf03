"""Translates the ControlNet units of a body to fields of a draft."""

import asyncio
import re
from typing import Any

from fastapi import Request

from safelight.errors import InvalidField, InvalidFields, SafelightError
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.serving.a1111.generation_body import GenerationBody
from safelight.serving.a1111.unit import Unit
from safelight.serving.http.fetch import fetch_picture
from safelight.serving.http.parts import Parts, parts_of
from safelight.serving.jobs.keys import Caller
from safelight.studio import Studio
from safelight.validation import default_field, single_errors


async def control_fields(
    request: Request, caller: Caller, body: GenerationBody, *, init: str | None = None
) -> dict[str, Any]:
    """The draft fields of the body's units, whose pictures are stored; a unit without a picture gets `init`.

    Raises:
        SafelightError: all errors of the units at once.
    """
    fields: dict[str, list[dict[str, Any]]] = {}
    errors: list[SafelightError] = []
    for path, unit in body.units.items():
        try:
            model = await asyncio.to_thread(find_model_name, f"{path}.model", unit, parts_of(request).studio)
            with default_field(f"{path}.image"):
                image = await picture_of(unit, parts_of(request), caller) if unit.image else init
            assert image, "validation has refused a body without one"
            field, control_request = unit.to_request(model, image)
            fields.setdefault(field, []).append(control_request)
        except SafelightError as error:
            errors += single_errors(error)
    if errors:
        raise InvalidFields(errors).simplified()
    return fields


async def picture_of(unit: Unit, parts: Parts, caller: Caller) -> str:
    """Fetch and store the unit's picture; returns its digest."""
    data = await fetch_picture(unit.image, max_bytes=parts.settings.max_file_bytes)
    return await parts.studio.take(data, tenant=caller.tenant)


def find_model_name(field: str, unit: Unit, studio: Studio) -> str:
    """The model's name, from a title that may end in a hash.

    Raises:
        InvalidField: 422, no model has this name.
    """
    name = re.sub(r" \[[0-9a-f]{1,64}\]$", "", unit.model.strip())
    try:
        ControlFolder(studio.models.catalogue).path("ip-adapter" if unit.is_ip_adapter else "control", name)
    except SafelightError as error:
        refusal = InvalidField(field, str(error))
        refusal.status = 422
        raise refusal from None
    return name
