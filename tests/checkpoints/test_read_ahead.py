"""Reading a checkpoint into the page cache ahead of its loading: what is read, when it stops, and no errors."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from huggingface_hub import constants

from wmdp_fast import demo
from wmdp_fast._rust import ReadAhead
from wmdp_fast.checkpoints.read_ahead import read_ahead

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def total(model: object, **options: object) -> int | None:
    """How many bytes are wanted of a model, all of which must have been read or cached at the end."""
    ahead = read_ahead(model, **options)  # type: ignore[arg-type]
    if ahead is None:
        return None
    ahead.wait()
    assert ahead.why_skipped is None
    assert ahead.bytes_read + ahead.bytes_cached == ahead.bytes_total
    return ahead.bytes_total


def test_weights_and_tokenizer_are_read_and_nothing_above_the_last_layer():
    folder = demo.model_path()
    size = sum((folder / name).stat().st_size for name in ("tokenizer.json", "model.safetensors"))
    assert total(folder) == size
    # What is left out of so small a model are gaps that are not worth a seek.
    assert total(folder, last_layer=0) <= size


def test_of_the_hub_only_its_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert total("somebody/model") is None
    repository = tmp_path / "models--somebody--model"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"x" * 100)
    assert total("somebody/model") == 100
    assert total("somebody/model", revision="elsewhere") is None


def test_what_is_wrong_with_files_is_left_to_those_who_load_them(tmp_path: Path):
    assert total(tmp_path / "nowhere") is None
    assert total("no name / of a repository") is None
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{")
    assert total(tmp_path) is None
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (tmp_path / "model-1.safetensors").write_bytes(b"\xff" * 9)
    assert total(tmp_path, last_layer=1) == 9


def test_it_stops_when_it_is_told_to(tmp_path: Path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(2**31)
    ahead = ReadAhead([path])
    ahead.stop()
    begun = time.monotonic()
    ahead.wait()
    assert time.monotonic() - begun < 1
    assert ahead.bytes_read < ahead.bytes_total or ahead.bytes_total == 0
