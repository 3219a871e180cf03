"""`safelight trust ledger`: for people, for scripts, and their exit codes."""

import json
from pathlib import Path

from tests.cli.conftest import Call
from tests.trust.ledgers import entry, tamper

from safelight.settings import Settings
from safelight.trust.ledger import Ledger


def filled(home: Path, count: int = 3) -> None:
    with Ledger(Settings(home=home)) as ledger:
        for number in range(count):
            ledger.append(entry(number))


def damage(home: Path, statement: str) -> None:
    with Ledger(Settings(home=home)) as ledger:
        tamper(ledger.database, statement)


def test_a_whole_ledger_says_so(safelight: Call, home: Path) -> None:
    assert safelight("trust", "ledger", "verify").stdout == (
        "0 rows, 0 pictures, 0 bodies erased, 0 checkpoints hold\nThe ledger is whole.\n"
    )
    filled(home)
    found = safelight("trust", "ledger", "verify")
    assert (found.exit_code, found.stdout.splitlines()[-1]) == (0, "The ledger is whole.")
    said = json.loads(safelight("trust", "ledger", "verify", "--json").stdout)
    assert (said["whole"], said["rows"], said["problems"], said["pending"]) == (True, 3, [], 0)


def test_a_broken_ledger_exits_with_one_and_says_where(safelight: Call, home: Path) -> None:
    filled(home, 40)
    damage(home, "UPDATE ledger SET record = replace(record, 'dddd', 'eeee') WHERE seq > 2")
    found = safelight("trust", "ledger", "verify")
    assert found.exit_code == 1
    assert "row 3 was changed, or not written with our key" in found.stdout
    assert "and 18 more" in found.stdout
    assert found.stdout.endswith("Broken from row 3 on.\n")
    said = json.loads(safelight("trust", "ledger", "verify", "--json").stdout)
    assert (said["first_broken"], len(said["problems"])) == (3, 38)


def test_an_export_shows_what_was_cut_off_later(safelight: Call, home: Path, tmp_path: Path) -> None:
    filled(home, 10)
    kept = tmp_path / "ledger.jsonl"
    assert safelight("trust", "ledger", "export", "--out", kept).stdout == f"11 rows in {kept}\n"
    assert "cannot be written" in safelight("trust", "ledger", "export", "--out", kept).stderr
    assert safelight("trust", "ledger", "verify", "--against", kept).exit_code == 0
    damage(home, "DELETE FROM ledger WHERE seq > 9")
    damage(home, "DELETE FROM ledger_bodies WHERE seq > 9")
    (home / "trust" / "checkpoints.jsonl").unlink()
    assert safelight("trust", "ledger", "verify").exit_code == 0
    found = safelight("trust", "ledger", "verify", "--against", kept)
    assert found.exit_code == 1
    assert "row 10, which ledger.jsonl names, is not there" in found.stdout
    assert safelight("trust", "ledger", "verify", "--against", tmp_path / "none").exit_code == 2


def test_an_export_is_json_lines_of_a_time(safelight: Call, home: Path) -> None:
    filled(home)
    everything = safelight("trust", "ledger", "export").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in everything] == [1, 2, 3, 4]
    assert "apple" not in "".join(everything)
    assert "a red apple" in safelight("trust", "ledger", "export", "--words").stdout
    of_a_time = safelight("trust", "ledger", "export", "--since", "1970-01-12T13:46:41", "--until", "1970-01-13")
    assert [json.loads(line)["seq"] for line in of_a_time.stdout.splitlines()] == [2, 3, 4]


def test_a_checkpoint_is_a_statement(safelight: Call, home: Path) -> None:
    assert "The ledger is empty." in safelight("trust", "ledger", "checkpoint").stderr
    filled(home)
    assert safelight("trust", "ledger", "checkpoint").stdout.count(".") == 2


def test_a_new_key_goes_on(safelight: Call, home: Path) -> None:
    filled(home)
    assert "from now on" in safelight("trust", "ledger", "rotate").stdout
    filled(home, 4)
    assert safelight("trust", "ledger", "verify").exit_code == 0


def test_old_words_are_erased(safelight: Call, home: Path) -> None:
    filled(home)
    refused = safelight("trust", "ledger", "retain")
    assert refused.exit_code == 2
    assert "SAFELIGHT_TRUST_LEDGER_DAYS is not set" in refused.stderr
    erased = safelight("trust", "ledger", "retain", env={"SAFELIGHT_TRUST_LEDGER_DAYS": "30"})
    assert erased.stdout == "The words of 3 pictures are erased.\n"
    assert "apple" not in safelight("trust", "ledger", "export", "--words").stdout
    assert safelight("trust", "ledger", "verify").exit_code == 0
