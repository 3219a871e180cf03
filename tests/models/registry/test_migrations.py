"""A database of an older safelight, with models in it, opened by this one."""

from importlib import resources
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from tests.models.registry.files import write_lora

from safelight.database.connect import connect, open_database
from safelight.models.registry.registry import Registry


def go_back(url: str, revision: str) -> None:
    engine = connect(url)
    with engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(resources.files("safelight.database") / "migrations"))
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        connection.commit()
    engine.dispose()


@pytest.mark.parametrize("revision", ["0003"])
def test_versions_and_aliases_from_before_a_migration_still_work(
    revision: str, database_url: str, home: Path, tmp_path: Path
) -> None:
    database = open_database(database_url)
    registry = Registry(database, home)
    first = registry.add(write_lora(tmp_path / "ink.safetensors"))
    registry.point("ink", "production", first, reason="before")
    database.close()
    go_back(database_url, revision)

    database = open_database(database_url)
    registry = Registry(database, home)
    assert registry.resolve("ink@production") == first
    [turn] = registry.history("ink", "production")
    assert (turn.reason, turn.gate) == ("before", None)
    second = registry.add(write_lora(tmp_path / "ink.safetensors", seed=2))
    registry.point("ink", "production", second, reason="after", gate={"passed": True})
    assert [turn.gate for turn in registry.history("ink", "production")] == [{"passed": True}, None]
    database.close()
