"""The journal: what is finished survives whatever happens to the process, the disk or the file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pathnet.study.journal import Journal, read_journal

HEADER = {
    "command": "lesion",
    "identity": {"pathnet": "0.1.0", "data": "d0", "weights": "w0"},
    "settings": {"seed": 0, "weights": "here.pt", "counts": (1, 2)},
}
RECORDS = [{"net": "trained", "values": {"3": {"error": 0.1, "loss": None}}}, {"net": "trained", "values": {"é": [1]}}]


def changed(section, **values):
    return {**HEADER, section: {**HEADER[section], **values}}


@pytest.fixture
def path(tmp_path):
    """A journal that holds two records."""
    journal = Journal(tmp_path / "journal.jsonl", HEADER)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    return tmp_path / "journal.jsonl"


def reopened(path, header=HEADER) -> list:
    journal = Journal(path, header)
    journal.close()
    return journal.records


def assert_refused(path, sentence, header=HEADER):
    """Opening it is a sentence, and the file stays what it was."""
    before = path.read_bytes()
    with pytest.raises(ValueError, match=sentence):
        Journal(path, header)
    assert path.read_bytes() == before


def test_records_come_back(path):
    assert reopened(path) == RECORDS
    header, records = read_journal(path)
    assert records == RECORDS and header["identity"] == HEADER["identity"]
    assert reopened(path, changed("settings", weights="elsewhere.pt")) == RECORDS  # the same weights in another place
    assert reopened(path, changed("settings", trials=30)) == RECORDS  # more of the same


def test_a_journal_cut_anywhere_keeps_every_whole_line(path):
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        whole = sum(length >= len(b"".join(lines[: i + 1])) for i in range(len(lines)))
        assert reopened(path) == RECORDS[: max(whole - 1, 0)]
        assert path.read_bytes() == b"".join(lines[: max(whole, 1)])  # the header at least


def test_a_last_line_of_zeros_is_cut_off(path):
    data = path.read_bytes()
    path.write_bytes(data + bytes(40))
    assert reopened(path) == RECORDS and path.read_bytes() == data


def test_what_is_appended_after_a_repair_stands(path):
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal(path, HEADER)
    journal.append(RECORDS[1])
    journal.close()
    assert reopened(path) == RECORDS


def test_damage_before_the_end_is_refused(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"error": 0.1', b'"error": 0.7'))  # fine JSON, but not what was written
    assert_refused(path, r"damaged in line 2; delete the line to have its work done again")
    path.write_bytes(data.replace(b"values", b"val\x00es", 1))
    assert_refused(path, "damaged in line 2")


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (changed("identity", weights="w1"), "another run .weights w0 there, w1 here"),
        (changed("identity", data="d1"), "data d0 there, d1 here"),
        (changed("identity", pathnet="0.2.0"), "pathnet 0.1.0 there, 0.2.0 here"),
        (changed("settings", counts=(1, 2, 3)), r"counts \[1, 2\] there, \[1, 2, 3\] here"),
        ({**HEADER, "command": "study"}, "command lesion there, study here"),
    ],
)
def test_the_journal_of_another_run_is_refused(path, header, sentence):
    assert_refused(path, sentence, header)


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    for text in ('{"results": 1}\n', "x"):
        (tmp_path / "notes").write_text(text)
        assert_refused(tmp_path / "notes", "is no journal of pathnet")


def test_a_journal_that_another_process_writes_is_refused(path):
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert_refused(path, "is being written by another process")
        assert read_journal(path)[1] == RECORDS  # looking is allowed
        other.stdin.close()
    assert reopened(path) == RECORDS  # the lock goes with its process


def test_a_full_disk_leaves_what_was_there(path, monkeypatch):
    before, write = path.read_bytes(), os.write
    journal = Journal(path, HEADER)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        with pytest.raises(ValueError, match="cannot be written .* make room"):
            journal.append(RECORDS[0])
    assert path.read_bytes() == before
    journal.append(RECORDS[0])
    journal.close()
    assert reopened(path) == [*RECORDS, RECORDS[0]]


def test_one_journal_takes_in_another_of_the_same_run(path, tmp_path):
    other = Journal(tmp_path / "other.jsonl", HEADER)
    other.append(RECORDS[0])
    other.append({"net": "new"})
    other.close()
    with (tmp_path / "other.jsonl").open("ab") as file:
        file.write(b'{"record": {"ha')  # its process was killed
    journal = Journal(path, HEADER)
    journal.absorb(tmp_path / "other.jsonl")
    journal.close()
    assert reopened(path) == [*RECORDS, {"net": "new"}] and not (tmp_path / "other.jsonl").exists()


def test_journals_of_another_run_are_not_taken_in(path, tmp_path):
    Journal(tmp_path / "other.jsonl", changed("identity", data="d1")).close()
    journal = Journal(path, HEADER)
    with pytest.raises(ValueError, match="data d1 there, d0 here"):
        journal.absorb(tmp_path / "other.jsonl")
    journal.close()
    assert reopened(path) == RECORDS and (tmp_path / "other.jsonl").exists()


def test_reading_what_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="cannot be read .No such file"):
        read_journal(tmp_path / "journal.jsonl")
