import math

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
    rows, offset = storage.rows(path)
    assert rows == [{"step": 1}]
    storage.append(path, {"step": 3})
    assert storage.rows(path)[0] == [{"step": 1}, {"step": 3}]
    assert storage.rows(path, offset)[0] == [{"step": 3}]


def test_rows_from_an_offset_are_the_new_ones_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert storage.rows(path) == ([], 0)
    storage.append(path, {"step": 1})
    _, offset = storage.rows(path)
    storage.append(path, {"step": 2})
    rows, end = storage.rows(path, offset)
    assert rows == [{"step": 2}]
    assert end == path.stat().st_size


def test_numbers_that_are_not_finite_become_null_in_json(tmp_path):
    storage.append(tmp_path / "m.jsonl", {"step": 1, "valid": math.nan})
    assert storage.rows(tmp_path / "m.jsonl")[0] == [{"step": 1, "valid": None}]


def test_rows_that_a_resumed_run_went_over_again_count_once():
    rows = [{"step": s, "loss": 0.0} for s in (1, 2, 3, 4, 5)] + [{"step": s, "loss": 1.0} for s in (3, 4)]
    table = newest_rows(rows)
    assert table["step"].tolist() == [1, 2, 3, 4]
    assert table["loss"].tolist() == [0, 0, 1, 1]


def test_metrics_of_a_run_that_wrote_none_are_an_empty_table():
    assert newest_rows([])["step"].tolist() == []
