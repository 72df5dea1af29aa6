"""Shards that are copied while a run trains: the bytes, what is left of them, and what goes wrong on the way."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wmdp_fast.checkpoints import shard_copies
from wmdp_fast.checkpoints.checkpoint import Checkpoint, write_checkpoint
from wmdp_fast.checkpoints.shard_copies import ShardCopies, copy_file

if TYPE_CHECKING:
    from pathlib import Path

NAME = "layers.1.weight"
CHANGED = {NAME: torch.full((30, 40), 7.0)}


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "base"
    folder.mkdir()
    for shard in range(2):
        tensors = {f"layers.{shard}.{name}": torch.rand(30, 40) for name in ("weight", "other")}
        save_file(tensors, folder / f"model-{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}}'
    )
    (folder / "config.json").write_text("{}")
    return Checkpoint.open(folder)


def plainly_written(base: Checkpoint, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    write_checkpoint(base, CHANGED, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(content=st.binary(max_size=300), piece=st.integers(1, 100), sync=st.booleans(), ranged=st.booleans())
def test_a_copy_has_the_bytes(
    content: bytes, piece: int, sync: bool, ranged: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("copies")
    (folder / "source").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_copies, "_PIECE", piece)
        if not ranged:
            patch.delattr(os, "copy_file_range", raising=False)
        copy_file(folder / "source", folder / "copy", sync=sync)
    assert (folder / "copy").read_bytes() == content


def test_a_checkpoint_is_the_same_with_copies_that_were_made_before(base: Checkpoint, tmp_path: Path) -> None:
    expected = plainly_written(base, tmp_path / "plain")
    copies = ShardCopies(base.folder, [base.shards[NAME]], tmp_path / "copies")
    new = tmp_path / "new"
    new.mkdir()
    write_checkpoint(base, CHANGED, new, copies)
    copies.close()
    assert {path.name: path.read_bytes() for path in new.iterdir()} == expected
    assert (new / "model-0.safetensors").samefile(base.folder / "model-0.safetensors")
    assert torch.equal(load_file(new / "model-1.safetensors")[NAME], CHANGED[NAME])
    assert not torch.equal(load_file(base.folder / "model-1.safetensors")[NAME], CHANGED[NAME])
    assert not (tmp_path / "copies").exists()


def test_only_shards_that_will_change_are_copied_and_what_is_not_taken_is_deleted(
    base: Checkpoint, tmp_path: Path
) -> None:
    copies = ShardCopies(base.folder, [base.shards[NAME]], tmp_path / "copies")
    copies._thread.join()
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["model-1.safetensors"]
    copies.close()
    assert not (tmp_path / "copies").exists()
    assert not copies.take("model-0.safetensors", tmp_path / "elsewhere")


@pytest.mark.parametrize("what", ["changed since", "cannot be written", "left by another run"])
def test_what_went_wrong_on_the_way_is_done_at_the_end(what: str, base: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    if what == "cannot be written":
        folder.write_text("a file")
    elif what == "left by another run":
        folder.mkdir()
        (folder / "model-1.safetensors").write_text("half of it")
    copies = ShardCopies(base.folder, [base.shards[NAME]], folder)
    copies._thread.join()
    if what == "changed since":
        os.utime(base.folder / "model-1.safetensors", ns=(1, 1))
    expected = plainly_written(base, tmp_path / "plain")
    new = tmp_path / "new"
    new.mkdir()
    write_checkpoint(base, CHANGED, new, copies)
    copies.close()
    assert {path.name: path.read_bytes() for path in new.iterdir()} == expected


def test_a_run_that_ends_early_does_not_wait_for_the_copies(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    plain = shard_copies._copy_piece

    def slow(*arguments: int) -> int:
        begun.set()
        may_go_on.wait(60)
        return plain(*arguments)

    monkeypatch.setattr(shard_copies, "_copy_piece", slow)
    monkeypatch.setattr(shard_copies, "_PIECE", 100)
    monkeypatch.setattr(shard_copies, "_PATIENCE", 0.01)
    copies = ShardCopies(base.folder, [base.shards[NAME]], tmp_path / "copies")
    assert begun.wait(60)
    copies.close()
    assert not (tmp_path / "copies").exists()
    may_go_on.set()
    copies._thread.join(60)
    assert not copies._thread.is_alive()
    assert not copies.take("model-1.safetensors", tmp_path / "elsewhere")
    assert not (tmp_path / "copies").exists()


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(b"some bytes")
    monkeypatch.setattr(shard_copies, "_copy_piece", lambda *_: 0)
    with pytest.raises(OSError, match="source has become shorter"):
        copy_file(tmp_path / "source", tmp_path / "copy")
