"""Every way to change the ledger's database shows, on either database, and says where."""

import json
from pathlib import Path

import pytest
from tests.trust.authority import issue
from tests.trust.ledgers import JOE, column, entry, erase, tamper, verified

from safelight.errors import InvalidRequest
from safelight.settings import Settings
from safelight.trust.chain_keys import add_key
from safelight.trust.credentials import own_credentials, rotate, use
from safelight.trust.entry import GENESIS, canonical, link
from safelight.trust.export import export
from safelight.trust.ledger import Ledger
from safelight.trust.statements import StatementSigner


@pytest.fixture
def ten(ledger: Ledger) -> Ledger:
    for number in range(10):
        ledger.append(entry(number))
    return ledger


def keep(ledger: Ledger, path: Path, **span: float) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in export(ledger, **span)))
    return path


def test_an_empty_ledger_is_whole(ledger: Ledger) -> None:
    found = verified(ledger)
    assert (found.whole, found.rows, found.head) == (True, 0, GENESIS)


def test_what_was_written_is_whole(ten: Ledger) -> None:
    ten.checkpoint()
    erase(ten, JOE)
    ten.rotate()
    ten.append(entry(11))
    found = verified(ten)
    assert found.problems == []
    assert (found.rows, found.pictures, found.erased, found.checkpoints, found.first_broken) == (14, 11, 20, 2, None)
    assert found.head == column(ten.database, "SELECT hash FROM ledger WHERE seq = 14")[0]


@pytest.mark.parametrize(
    ("change", "row", "sentence"),
    [
        pytest.param(
            "UPDATE ledger SET record = replace(record, 'dddd', 'eeee') WHERE seq = 4",
            4,
            "row 4 was changed, or not written with our key",
            id="edited",
        ),
        pytest.param("UPDATE ledger SET hash = prev WHERE seq = 4", 4, "row 4 was changed", id="hash edited"),
        pytest.param("UPDATE ledger SET record = '[' WHERE seq = 4", 4, "row 4 cannot be read", id="no JSON"),
        pytest.param("UPDATE ledger SET prev = 'xyz' WHERE seq = 4", 4, "row 4 was changed", id="no number"),
        pytest.param(
            "UPDATE ledger SET asset_id = repeat_f WHERE seq = 4".replace("repeat_f", "'" + "f" * 64 + "'"),
            4,
            "row 4: its column asset_id says",
            id="column edited",
        ),
        pytest.param("UPDATE ledger SET time = 5 WHERE seq = 4", 4, "row 4: its column time says 5.0", id="time"),
        pytest.param("DELETE FROM ledger WHERE seq = 4", 4, "row 4 is missing", id="deleted"),
        pytest.param("DELETE FROM ledger WHERE seq IN (4, 5)", 4, "rows 4 to 5 are missing", id="two deleted"),
        pytest.param("DELETE FROM ledger WHERE seq = 1", 1, "row 1 is missing", id="first deleted"),
        pytest.param(
            "DELETE FROM ledger_bodies WHERE seq = 4 AND kind = 'words'",
            4,
            "row 4: the words beside it are lost, and no erasure says so",
            id="words deleted",
        ),
        pytest.param(
            "UPDATE ledger_bodies SET body = 'a blue apple' WHERE seq = 4 AND kind = 'words'",
            4,
            "row 4: the words beside it were changed",
            id="words edited",
        ),
        pytest.param(
            "INSERT INTO ledger_bodies (seq, kind, body) VALUES (4, 'notes', 'x')",
            4,
            "row 4: notes lie beside it that the chain knows nothing of",
            id="words added",
        ),
        pytest.param(
            "UPDATE ledger_bodies SET salt = NULL, body = NULL, erased_by = 9 WHERE seq = 4 AND kind = 'words'",
            4,
            "row 4: the words beside it are lost, and no erasure says so",
            id="an erasure made up",
        ),
    ],
)
def test_a_change_shows_and_says_where(ten: Ledger, change: str, row: int, sentence: str) -> None:
    tamper(ten.database, change)
    found = verified(ten)
    assert not found.whole
    assert found.first_broken == row
    assert any(problem.startswith(sentence) for problem in found.problems), found.problems


def test_more_than_was_erased_shows(ten: Ledger) -> None:
    ten.append(entry(11, actor="local"))
    erase(ten, JOE)
    tamper(ten.database, "UPDATE ledger_bodies SET salt = NULL, body = NULL, erased_by = 12 WHERE seq = 11")
    found = verified(ten)
    assert found.problems == ["row 12 says that it erased 20, and 22 say so of it"]


def test_rows_that_changed_places_show(ten: Ledger) -> None:
    for old, new in ((4, 99), (5, 4), (99, 5)):
        tamper(ten.database, "UPDATE ledger SET seq = :new WHERE seq = :old", {"old": old, "new": new})
    found = verified(ten)
    assert found.first_broken == 4
    assert "row 4: its column seq says 4, its record 5" in found.problems
    assert "row 4 does not follow row 3: one was removed, added or moved" in found.problems


def test_a_row_that_was_added_by_somebody_without_the_key_shows(ten: Ledger) -> None:
    [prev] = column(ten.database, "SELECT hash FROM ledger WHERE seq = 10")
    [record] = column(ten.database, "SELECT record FROM ledger WHERE seq = 10")
    forged = canonical(json.loads(record) | {"seq": 11, "once": "0" * 64, "bodies": {}})
    tamper(
        ten.database,
        "INSERT INTO ledger SELECT 11, time, actor, action, asset_id, uid, :once, key_id, :record, :prev, :hash "
        "FROM ledger WHERE seq = 10",
        {"once": "0" * 64, "record": forged, "prev": prev, "hash": link(b"guess", prev, forged)},
    )
    found = verified(ten)
    assert found.problems == ["row 11 was changed, or not written with our key"]


def test_a_key_that_is_not_ours_verifies_nothing(ten: Ledger, tmp_path: Path) -> None:
    (ten.folder / "ledger.json").rename(tmp_path / "away.json")
    add_key(ten.folder)
    found = verified(ten)
    assert found.first_broken == 1
    assert found.num_problems == 10
    assert "its key" in found.problems[0]
    assert "is not here" in found.problems[0]


def test_a_key_that_was_given_up_makes_no_rows(ten: Ledger) -> None:
    """Who stole the former key could otherwise write on."""
    former = ten.key("")
    ten.rotate()
    key_id, key = former
    [prev] = column(ten.database, "SELECT hash FROM ledger WHERE seq = 11")
    [record] = column(ten.database, "SELECT record FROM ledger WHERE seq = 11")
    forged = canonical(json.loads(record) | {"seq": 12, "key_id": key_id, "action": "checkpoint"})
    tamper(
        ten.database,
        "INSERT INTO ledger SELECT 12, time, actor, 'checkpoint', NULL, NULL, NULL, :key, :record, :prev, :hash "
        "FROM ledger WHERE seq = 11",
        {"key": key_id, "record": forged, "prev": prev, "hash": link(key, prev, forged)},
    )
    assert "row 12 has another key than row 11, and no rotation says so" in verified(ten).problems


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_checkpoints_are_made_by_themselves(ledger: Ledger) -> None:
    often = Ledger(ledger.settings, ledger.database, checkpoint_every=3)
    for number in range(7):
        often.append(entry(number))
    assert column(ledger.database, "SELECT seq FROM ledger WHERE action = 'checkpoint' ORDER BY seq") == [4, 7, 10]
    assert verified(ledger).checkpoints == 6, "in the chain, and in the file beside it"


def test_rows_that_were_cut_off_show_against_the_file_of_checkpoints(ten: Ledger) -> None:
    ten.checkpoint()
    tamper(ten.database, "DELETE FROM ledger WHERE seq > 8")
    tamper(ten.database, "DELETE FROM ledger_bodies WHERE seq > 8")
    found = verified(ten)
    assert found.problems == [
        "row 10, which a checkpoint in checkpoints.jsonl names, is not there: the ledger was cut short"
    ]
    assert verified(ten, folder=None).whole, "from the database alone it cannot be seen"


def test_rows_that_were_cut_off_show_against_an_export(ten: Ledger, tmp_path: Path) -> None:
    kept = keep(ten, tmp_path / "export.jsonl")
    assert verified(ten, against=kept).whole
    tamper(ten.database, "DELETE FROM ledger WHERE seq > 8")
    tamper(ten.database, "DELETE FROM ledger_bodies WHERE seq > 8")
    ten.append(entry(50))
    found = verified(ten, folder=None, against=kept)
    assert found.first_broken == 9
    assert "row 9 is another one than export.jsonl says" in found.problems


def test_an_export_of_a_time_ends_with_a_checkpoint_of_all(ten: Ledger, tmp_path: Path) -> None:
    kept = keep(ten, tmp_path / "export.jsonl", since=1_000_003.0, until=1_000_005.0)
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["seq"] for line in lines] == [4, 5, 11]
    assert "statement" in lines[-1]
    assert "apple" not in json.dumps(lines)
    [with_words, *_] = export(ten, since=1_000_003.0, words=True)
    assert with_words["words"] == {"key": "joe", "prompt": "a red apple, number 3"}


def test_a_checkpoint_by_somebody_else_shows(ten: Ledger, tmp_path: Path) -> None:
    root = issue("ACME root", ca=True)
    other = issue("Mallory", root)
    credentials = own_credentials(tmp_path, other.pem + root.pem, other.key_pem)
    statement = StatementSigner(credentials).sign({"kind": "checkpoint", "seq": 3, "hash": "0" * 64})
    (ten.folder / "checkpoints.jsonl").write_text(json.dumps({"seq": 3, "statement": statement}) + "\n")
    [problem] = verified(ten).problems
    assert "signed by a certificate that is not trusted here" in problem


def test_checkpoints_of_a_former_certificate_hold(ten: Ledger) -> None:
    ten.checkpoint()
    rotate(ten.folder)
    root = issue("ACME root", ca=True)
    other = issue("ACME pictures", root)
    use(own_credentials(ten.folder, other.pem + root.pem, other.key_pem))
    ten.append(entry(11))
    ten.checkpoint()
    found = verified(ten)
    assert (found.problems, found.checkpoints) == ([], 4)


def test_a_line_that_a_power_cut_left_unfinished_is_no_fault(ten: Ledger) -> None:
    ten.checkpoint()
    with (ten.folder / "checkpoints.jsonl").open("a") as file:
        file.write('{"seq": 12, "state')
    assert verified(ten).whole


@pytest.mark.parametrize("content", ["no JSON\n", "[1]\n", '{"hash": "x"}\n'])
def test_a_file_that_is_no_export_is_refused(ten: Ledger, tmp_path: Path, content: str) -> None:
    (tmp_path / "wrong").write_text(content)
    with pytest.raises(InvalidRequest, match="is no export of a ledger"):
        verified(ten, against=tmp_path / "wrong")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        verified(ten, against=tmp_path / "missing")


def test_a_second_checkpoint_of_the_same_row_is_the_first(ten: Ledger) -> None:
    assert ten.checkpoint() == ten.checkpoint()


def test_a_key_service_that_is_away_stops_no_picture(ledger: Ledger, home: Path) -> None:
    settings = Settings(home=home, trust_signer="tests.trust.test_verify_chain:away")
    often = Ledger(settings, ledger.database, checkpoint_every=2)
    assert [often.append(entry(number)).seq for number in range(3)] == [1, 2, 3]
    assert verified(ledger).whole


def away(_data: bytes) -> bytes:
    raise ConnectionError("no answer")


def test_problems_are_kept_up_to_a_number_and_counted_beyond(ten: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.trust.verify_chain.MAX_PROBLEMS", 3)
    tamper(ten.database, "UPDATE ledger SET hash = 'x'")
    found = verified(ten)
    assert (len(found.problems), found.num_problems > 10, found.first_broken) == (3, True, 1)


def test_pages_meet(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.trust.verify_chain.PAGE", 3)
    monkeypatch.setattr("safelight.trust.export.PAGE", 3)
    for number in range(9):
        ledger.append(entry(number))
    erase(ledger, JOE)
    found = verified(ledger)
    assert (found.rows, found.erased, found.problems) == (10, 18, [])
    assert [line["seq"] for line in export(ledger)] == list(range(1, 12))
    tamper(ledger.database, "DELETE FROM ledger WHERE seq = 4")
    assert verified(ledger).first_broken == 4
