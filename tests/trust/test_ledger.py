"""The ledger on either database: a chain, each entry once; found again, erased, kept while the database is away."""

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.trust.ledgers import ANN, JOE, column, entry, erase, tamper, verified

from safelight.errors import StorageFailed
from safelight.settings import Settings
from safelight.trust import chain_keys
from safelight.trust.entry import Entry, canonical, once
from safelight.trust.ledger import Ledger


def test_entries_are_numbered_and_verify(ledger: Ledger) -> None:
    appended = [ledger.append(entry(number)) for number in range(3)]
    assert [one.seq for one in appended] == [1, 2, 3]
    assert all(one.new for one in appended)
    found = verified(ledger)
    assert (found.rows, found.pictures, found.problems) == (3, 3, [])


def test_the_chain_holds_digests_and_the_words_lie_beside_it(ledger: Ledger) -> None:
    ledger.append(entry(7))
    [record] = column(ledger.database, "SELECT record FROM ledger")
    assert "apple" not in record
    assert "joe" not in record
    assert '"model":"dddd' in record
    bodies = column(ledger.database, "SELECT body FROM ledger_bodies ORDER BY kind")
    assert bodies[1] == '{"key":"joe","prompt":"a red apple, number 7"}'


def test_the_same_words_have_another_digest_each_time(ledger: Ledger) -> None:
    """Or a guess at an erased prompt could be checked against the chain."""
    for number in (1, 2):
        ledger.append(entry(number, words={"prompt": "the same"}, likeness=b""))
    records = [found.record["bodies"]["words"] for number in (1, 2) for found in ledger.find(f"{number:016x}")]
    assert len({*records}) == 2


def test_an_entry_is_written_once(ledger: Ledger) -> None:
    first = ledger.append(entry(1))
    again = ledger.append(entry(1))
    assert (again.seq, again.asset_id, again.new) == (first.seq, first.asset_id, False)
    assert ledger.append(entry(1, actor=ANN)).new, "for somebody else the same file is another fact"


def test_a_place_of_a_request_has_one_asset(ledger: Ledger) -> None:
    """A picture that is signed anew has another sha256."""
    first = ledger.append(entry(1, place="job-1"))
    again = ledger.append(entry(2, place="job-1"))
    assert (again.asset_id, again.new) == (first.asset_id, False)
    assert ledger.append(entry(3, place="job-2")).new
    assert ledger.recorded("job-1", "5" * 64) == first.asset_id
    assert ledger.recorded("job-9", "5" * 64) is None


def test_threads_and_ledgers_on_one_database_make_one_chain(ledger: Ledger) -> None:
    other = Ledger(ledger.settings, ledger.database)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: (ledger, other)[number % 2].append(entry(number)), range(40)))
    found = verified(ledger)
    assert (found.rows, found.problems) == (40, [])


APPENDS = """
import sys
from pathlib import Path
from tests.trust.ledgers import entry
from safelight.settings import Settings
from safelight.trust.ledger import Ledger
with Ledger(Settings(home=Path(sys.argv[1]), database_url=sys.argv[2])) as ledger:
    for number in range(10):
        assert ledger.append(entry(int(sys.argv[3]) * 100 + number)).seq
"""


def test_processes_on_one_database_make_one_chain(ledger: Ledger, database_url: str, home: Path) -> None:
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([sys.executable, "-c", APPENDS, str(home), database_url, str(number)], cwd=root)
        for number in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    found = verified(ledger)
    assert (found.rows, found.problems) == (30, [])


def test_rows_are_found_by_number_and_by_file(ledger: Ledger) -> None:
    ledger.append(entry(1))
    ledger.append(entry(2, uid=f"{1:016x}"))
    ledger.append(entry(3))
    assert [found.record["asset_id"] for found in ledger.find(f"{1:016x}")] == [f"{1:064x}", f"{2:064x}"]
    [found] = ledger.find_asset(f"{3:064x}")
    assert (found.seq, found.likeness, found.intact) == (3, b"shape of 3", True)
    assert ledger.find("f" * 16) == []


def test_a_row_that_was_changed_is_found_and_proves_nothing(ledger: Ledger) -> None:
    ledger.append(entry(1))
    ledger.append(entry(2))
    tamper(ledger.database, "UPDATE ledger SET record = replace(record, 'dddd', 'eeee') WHERE seq = 1")
    tamper(ledger.database, "UPDATE ledger_bodies SET body = 'QUJD' WHERE seq = 2 AND kind = 'likeness'")
    assert [ledger.find(f"{number:016x}")[0].intact for number in (1, 2)] == [False, False]


@pytest.mark.parametrize(("name", "value"), [("uid", "f" * 16), ("asset_id", "f" * 64)])
def test_a_row_that_was_put_under_another_number_proves_nothing(ledger: Ledger, name: str, value: str) -> None:
    ledger.append(entry(1))
    tamper(ledger.database, f"UPDATE ledger SET {name} = :value", {"value": value})
    [found] = ledger.find(value) if name == "uid" else ledger.find_asset(value)
    assert not found.intact


@pytest.mark.parametrize("value", ["record = '['", "record = '[]'", "prev = 'x'", "key_id = ''"])
def test_a_row_that_makes_no_sense_is_found_all_the_same(ledger: Ledger, value: str) -> None:
    ledger.append(entry(1))
    tamper(ledger.database, f"UPDATE ledger SET {value}")
    tamper(ledger.database, "UPDATE ledger_bodies SET body = '?'")
    [found] = ledger.find(f"{1:016x}")
    assert (found.intact, found.likeness) == (False, None)


# Erased --------------------------------------------------------------------------------------------------------------


def test_words_are_erased_after_their_time_and_rows_stay(ledger: Ledger, home: Path) -> None:
    short = Ledger(Settings(home=home, trust_ledger_days=1), ledger.database, clock=lambda: 1_000_010.0 + 86_400)
    for number in (1, 5, 20):
        short.append(entry(number))
    assert short.retain() == 2
    assert short.retain() == 0
    kept = column(ledger.database, "SELECT seq FROM ledger_bodies WHERE kind = 'words' AND body IS NOT NULL")
    assert kept == [3]
    assert ledger.find_asset(f"{1:064x}")[0].likeness == b"shape of 1"
    found = verified(ledger)
    assert (found.rows, found.erased, found.problems) == (4, 2, [])


def test_without_days_words_stay_and_with_none_they_are_never_taken(ledger: Ledger, home: Path) -> None:
    ledger.append(entry(1))
    assert ledger.retain() == 0
    Ledger(Settings(home=home, trust_ledger_days=0), ledger.database).append(entry(2))
    assert column(ledger.database, "SELECT seq FROM ledger_bodies WHERE kind = 'words'") == [1]
    gone = Settings(home=home, trust_ledger_days=0, database_url=f"sqlite:///{home / 'gone' / 'x.db'}")
    Ledger(gone).append(entry(3))
    assert [path for path in ledger.pending.paths() if "apple" in path.read_text()] == []
    assert verified(ledger).whole


def test_a_person_is_erased_and_nobody_else(ledger: Ledger) -> None:
    ledger.append(entry(1))
    ledger.append(entry(2, actor=ANN))

    assert erase(ledger, JOE) == 2
    assert column(ledger.database, "SELECT seq FROM ledger_bodies WHERE salt IS NOT NULL") == [2, 2]
    [found] = ledger.find_asset(f"{1:064x}")
    assert (found.likeness, found.intact) == (None, True)
    assert verified(ledger).whole


# Keys ----------------------------------------------------------------------------------------------------------------


def test_the_key_is_for_its_owner_alone(ledger: Ledger, home: Path) -> None:
    ledger.append(entry(1))
    assert stat.S_IMODE((home / "trust" / "ledger.json").stat().st_mode) == 0o600


def test_a_new_key_goes_on_and_old_rows_verify(ledger: Ledger) -> None:
    other = Ledger(ledger.settings, ledger.database)
    other.append(entry(1))
    key_id = ledger.rotate()
    assert other.append(entry(2)).seq == 3, "it learns of the new key from the chain"
    assert column(ledger.database, "SELECT key_id FROM ledger ORDER BY seq")[1:] == [key_id, key_id]
    assert verified(ledger).whole


def test_threads_that_start_at_once_make_one_key(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: [*chain_keys.open_keys(folder)], range(8)))
    assert len({tuple(keys) for keys in found}) == 1


def test_another_machine_without_the_key_loses_nothing(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append(entry(1))
    stranger = Ledger(Settings(home=tmp_path / "other"), ledger.database)
    assert stranger.append(entry(2)).seq is None
    assert not (tmp_path / "other" / "trust" / "ledger.json").exists(), "a key of its own would be of no use"
    (tmp_path / "other" / "trust" / "ledger.json").write_bytes((ledger.folder / "ledger.json").read_bytes())
    assert stranger.append(entry(3)).seq == 3
    assert verified(ledger).rows == 3


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"keys": {"0011": "abcd"}}', b"[1]"])
def test_a_damaged_key_is_reported_and_never_replaced(folder: Path, damage: bytes) -> None:
    chain_keys.open_keys(folder)
    (folder / "ledger.json").write_bytes(damage)
    with pytest.raises(StorageFailed, match="damaged: restore it"):
        chain_keys.open_keys(folder)
    with pytest.raises(StorageFailed, match="damaged: restore it"):
        chain_keys.add_key(folder)
    assert (folder / "ledger.json").read_bytes() == damage


# Without the database ------------------------------------------------------------------------------------------------


@pytest.fixture
def cut_off(home: Path, tmp_path: Path) -> Ledger:
    """A ledger whose database is not there."""
    return Ledger(Settings(home=home, database_url=f"sqlite:///{tmp_path / 'gone' / 'x.db'}"))


def test_entries_wait_in_files_and_follow_in_their_order(ledger: Ledger, cut_off: Ledger, home: Path) -> None:
    for number in (1, 2, 3):
        appended = cut_off.append(entry(number, place=f"job-{number}"))
        assert (appended.seq, appended.asset_id) == (None, f"{number:064x}")
    assert cut_off.recorded("job-2", "5" * 64) == f"{2:064x}"
    assert cut_off.recorded("job-9", "5" * 64) is None
    files = sorted((home / "trust" / "pending").iterdir())
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
    assert ledger.recorded("job-2", "5" * 64) == f"{2:064x}", "what waits counts as recorded"
    assert ledger.append(entry(4)).seq == 4
    assert not list((home / "trust" / "pending").iterdir())
    assert column(ledger.database, "SELECT asset_id FROM ledger ORDER BY seq") == [f"{n:064x}" for n in (1, 2, 3, 4)]
    assert verified(ledger).whole


def test_an_entry_that_was_written_before_its_file_was_removed_is_not_written_twice(
    ledger: Ledger, cut_off: Ledger
) -> None:
    cut_off.append(entry(1))
    ledger.write(entry(1))
    assert ledger.append(entry(2)).seq == 2


def test_a_ledger_that_was_damaged_loses_no_picture(ledger: Ledger, home: Path) -> None:
    for number in (1, 2):
        ledger.append(entry(number))
    tamper(ledger.database, "DELETE FROM ledger WHERE seq = 2")
    assert ledger.append(entry(3)).seq is None, "what lies beside the row that is gone is in its way"
    assert len(list((home / "trust" / "pending").iterdir())) == 1
    assert verified(ledger).problems == ["row 2 is missing, and what lies beside it is there"]


def test_where_neither_takes_it_the_picture_fails(cut_off: Ledger, home: Path) -> None:
    (home / "trust").write_text("a file where the folder should be")
    with pytest.raises(StorageFailed):
        cut_off.append(entry(1))


def test_a_file_that_is_no_entry_stays_and_stops_nobody(ledger: Ledger, cut_off: Ledger, home: Path) -> None:
    cut_off.append(entry(1))
    torn = home / "trust" / "pending" / "00000000000000000001-00.json"
    torn.write_text('{"action": "dra')
    assert ledger.append(entry(2)).seq == 2
    assert torn.exists()


def test_an_entry_survives_being_written_down() -> None:
    made = entry(1, place="job", verdicts=({"action": "allow"},), likeness=b"\x00\xff")
    assert canonical(Entry.from_json(made.to_json()).record()) == canonical(made.record())
    assert Entry.from_json(made.to_json()).bodies() == made.bodies()
    assert made.once == once("job", "5" * 64)
