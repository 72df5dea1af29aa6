"""Rows of a stored matrix: read when they are wanted, given back, and always those of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from wmdp_fast.checkpoints.layer_reader import StoredTensor, stored_tensors
from wmdp_fast.checkpoints.stored_rows import StoredRows, rows_behind
from wmdp_fast.checkpoints.weight_files import weight_files
from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from pathlib import Path

# Rows smaller than a page, of two rows for three pages, and of several pages.
SHAPES = ((3000, 5), (40, 1536), (9, 5000))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], StoredTensor]:
    folder = tmp_path_factory.mktemp("rows")
    torch.manual_seed(0)
    save_file({str(shape): torch.randn(shape) for shape in SHAPES}, folder / "model.safetensors")
    files = weight_files(folder)
    assert files is not None
    return {one.shape: one for one in stored_tensors(files).values() if len(one.shape) == 2}  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_are_those_of_the_file(stored: dict[tuple[int, int], StoredTensor], data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(SHAPES))
    whole, rows = stored[shape][...], StoredRows(stored[shape])
    weight = rows.parameter()
    number = st.integers(0, shape[0] - 1)
    for _ in range(data.draw(st.integers(1, 8))):
        rows.keep = data.draw(st.sampled_from([0, 40_000, 1 << 40]))
        if data.draw(st.booleans()):
            wanted = data.draw(st.lists(number, max_size=20))
            rows.read(np.array(wanted, dtype=np.int64))
            assert torch.equal(weight[wanted], whole[wanted])
        else:
            start = data.draw(number)
            stop = start + data.draw(st.integers(1, shape[0]))
            assert torch.equal(rows.part(start, stop), whole[start:stop])
        if data.draw(st.booleans()):
            rows.trim()
            assert rows.nbytes <= rows.keep
        # What is not there are zeros or still the numbers, never anything else.
        assert bool(((weight == whole) | (weight == 0)).all())
    rows.read_all()
    assert torch.equal(weight, whole)


def test_memory_is_given_back(stored: dict[tuple[int, int], StoredTensor]) -> None:
    rows = StoredRows(stored[40, 1536])
    weight = rows.parameter()
    assert rows_behind(weight) is rows
    assert rows_behind(torch.nn.Parameter(torch.zeros(2))) is None
    size = 10 * 1536 * 4
    # What does not stay is not in the matrix.
    rows.part(10, 20)
    assert (rows.nbytes, rows.bytes_read) == (0, size)
    assert not weight.any()
    rows.keep = size
    rows.part(10, 20)
    rows.part(10, 20)
    assert (rows.nbytes, rows.bytes_read) == (size, 2 * size)
    assert torch.equal(weight[10:20], stored[40, 1536][...][10:20])
    rows.read(np.array([0]))
    rows.trim()
    assert rows.nbytes == 0
    assert not weight.any()


def test_what_is_not_there_is_said(stored: dict[tuple[int, int], StoredTensor], tmp_path: Path) -> None:
    one = stored[9, 5000]
    with pytest.raises(IndexError):
        StoredRows(one).read(np.array([9]))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(one.path.read_bytes()[: one.start + 5 * 5000 * 4 + 3])
    rows = StoredRows(StoredTensor(one.name, cut, one.dtype, one.shape, one.start, one.nbytes))
    rows.read(np.arange(5))
    with pytest.raises(ModelError, match=r"cut.safetensors ends within \(9, 5000\); copy or download it again"):
        rows.read_all()
