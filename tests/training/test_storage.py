import math
from io import FileIO

import pytest

from workbench.training import storage
from workbench.training.run import newest_rows


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    storage.write(path, b"old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        storage.write(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_cut_last_line_is_not_read_and_does_not_spoil_the_next_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    storage.append(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo')
    tail = storage.Tail(path)
    assert storage.rows(path) == tail.look()[0] == [{"step": 1}]
    storage.append(path, {"step": 3})
    assert storage.rows(path) == [{"step": 1}, {"step": 3}]
    assert tail.look() == ([{"step": 3}], False)


def test_half_a_line_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    storage.append(path, {"step": 1})
    tail = storage.Tail(path)
    for piece, rows in ((b'{"step"', [{"step": 1}]), (b": 2", []), (b"}\n", [{"step": 2}]), (b"", [])):
        with open(path, "ab") as file:
            file.write(piece)
        assert tail.look() == (rows, False)


def test_a_look_gives_the_new_rows_and_reads_no_more_than_them(tmp_path, monkeypatch):
    path, read = tmp_path / "metrics.jsonl", []

    class Counted(FileIO):
        def read(self, *size):
            read.append(super().read(*size))
            return read[-1]

    monkeypatch.setattr(storage, "open", lambda path, mode: Counted(path, mode), raising=False)
    tail = storage.Tail(path)
    assert tail.look() == ([], False)
    path.write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(10_000)))
    assert len(tail.look()[0]) == 10_000
    read.clear()
    with path.open("a") as file:
        file.write('{"step": 10000, "loss": 0.4}\n')
    assert tail.look() == ([{"step": 10000, "loss": 0.4}], False)
    assert sum(map(len, read)) <= len('{"step": 10000, "loss": 0.4}\n') + storage.KNOWN_BY


@pytest.mark.parametrize("then", [[1], [7, 8, 9, 10], [4, 5], []])
def test_a_file_that_was_cut_or_written_anew_is_read_from_its_start(tmp_path, then):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        storage.append(path, {"step": step})
    tail = storage.Tail(path)
    tail.look()
    path.write_text("".join(f'{{"step": {step}}}\n' for step in then))
    assert tail.look() == ([{"step": step} for step in then], True)
    assert tail.look() == ([], False)
    path.unlink()
    assert tail.look() == ([], bool(then))


def test_numbers_that_are_not_finite_become_null_in_json(tmp_path):
    storage.append(tmp_path / "m.jsonl", {"step": 1, "valid": math.nan})
    assert storage.rows(tmp_path / "m.jsonl") == [{"step": 1, "valid": None}]


def test_rows_that_a_resumed_run_went_over_again_count_once():
    rows = [{"step": s, "loss": 0.0} for s in (1, 2, 3, 4, 5)] + [{"step": s, "loss": 1.0} for s in (3, 4)]
    table = newest_rows(rows)
    assert table["step"].tolist() == [1, 2, 3, 4]
    assert table["loss"].tolist() == [0, 0, 1, 1]


def test_metrics_of_a_run_that_wrote_none_are_an_empty_table():
    assert newest_rows([])["step"].tolist() == []
