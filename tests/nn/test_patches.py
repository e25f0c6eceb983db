"""Patches of counts: places, padding, clipping."""

import pytest
import torch

from tests.models.test_zoo import SESSIONS
from workbench.batch import Reader
from workbench.nn.patches import Patches, unpatched


@pytest.mark.parametrize("size", [1, 4, 5, 16])
def test_patches_and_back(size):
    batch = Reader(SESSIONS).read([0, 1], [1.0, 3.0], 1.0)
    assert torch.equal(unpatched(batch.patches(size, 0.05), 12), batch.counts(0.05))
    there = Patches(size, 12, 20, 16 * size).units(batch)
    assert torch.equal(there.flatten(1)[:, :12], batch.unit_mask) and there.sum().item() == 20


def test_a_token_is_a_row_for_each_units_count():
    batch = Reader(SESSIONS).read([0, 1], [1.0, 3.0], 1.0)
    patches = Patches(5, 3, 2, 10)
    tokens, counts = patches(batch, 0.25), batch.counts(0.25)
    assert tokens.shape == (2, 4, 3, 10) and (counts > 2).any()
    want = patches.table(counts[1, 6, 3].long().clamp(max=2))           # unit 6: the second of the second patch
    assert torch.equal(tokens[1, 3, 1, 2:4], want)
    assert torch.equal(tokens[0, 0, 1, 6:8], patches.table.weight[3])   # 8 units: none at this place
    assert torch.equal(tokens[0, 0, 2, :2], patches.table.weight[3])
