"""Rows by name: stable as the vocabulary grows, and a sentence for a name never seen."""

import pytest
import torch

from tests.test_batch import SESSIONS, read
from workbench.errors import UnknownName
from workbench.nn.vocabulary import Vocabulary

WORDS = [f"{s.id}/{u}" for s in SESSIONS for u in s.units["id"]]


def test_growing_keeps_the_rows_that_are_there():
    words = Vocabulary("unit", WORDS[:5], 8)
    before = words(words.rows(WORDS[:5])).detach().clone()
    words.extend([*WORDS[3:8], WORDS[4]])
    assert words.words == WORDS[:8] and words.weight.shape == (9, 8)
    assert torch.equal(words(words.rows(WORDS[:5])), before)


def test_every_unit_of_a_batch_finds_its_row_whatever_the_order_of_the_vocabulary():
    batch = read([1, 0, 1], [0.0, 1.0, 2.0])
    words = Vocabulary("unit", WORDS[::-1], 4)
    want = [f"{batch.sessions[s].id}/{batch.sessions[s].units[u]}"
            for b, s in enumerate(batch.session.tolist())
            for u in batch.window_units[batch.unit_offsets[b]:batch.unit_offsets[b + 1]].tolist()]
    assert torch.equal(words.unit_rows(batch), words.rows(want))


def test_only_sessions_in_the_batch_have_to_be_known():
    words = Vocabulary("unit", [w for w in WORDS if w.startswith("b/")], 4)
    assert len(words.unit_rows(read([1], [0.0]))) == 12
    with pytest.raises(UnknownName, match=r"no unit 'a/u0' in the model's vocabulary; .*the model has never seen it"):
        words.unit_rows(read([1, 0], [0.0, 0.0]))


def test_bare_unit_ids_of_a_vocabulary_trained_elsewhere_are_found():
    words = Vocabulary("unit", ["u1", "u0", "u2"], 4)
    assert words.unit_rows(read([2], [0.0])).tolist() == [2, 1, 3]
