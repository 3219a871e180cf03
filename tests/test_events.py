from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import get_args

import pytest

from safelight.events import Event, Stepped

KINDS = get_args(Event)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_a_frozen_fact_about_a_job(kind: type) -> None:
    assert is_dataclass(kind)
    assert fields(kind)[0].name == "job_id"


def test_an_event_cannot_be_changed() -> None:
    event = Stepped(job_id="one", step=1, total_steps=2, batch_rows=3)
    with pytest.raises(FrozenInstanceError):
        event.step = 2  # type: ignore[misc]
