"""A tokenizer is read once for models in a row whose files would make the same."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support import tiny_models
from wmdp_fast.models.kept_tokenizer import KeptTokenizer
from wmdp_fast.models.tokenizer_only import load_tokenizer_only

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_models.config("llama").save_pretrained(tmp_path / "one")
    tiny_models.tokenizer().save_pretrained(tmp_path / "one")
    return tmp_path / "one"


@pytest.mark.parametrize("name", ["trainer_state.json", "unlearn.json", "README.md", "model.safetensors.index.json"])
def test_papers_of_a_checkpoint_make_no_other_tokenizer(name: str, folder: Path) -> None:
    kept, other = KeptTokenizer(), shutil.copytree(folder, folder.parent / "other")
    (folder / name).write_text("{}")
    (other / name).write_text('{"step": 20}')
    one, two = (load_tokenizer_only(str(where), kept=kept) for where in (folder, other))
    assert one.tokenizer is two.tokenizer
    assert two.files.folder == other


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"])
def test_whatever_it_may_be_made_of_is_compared(name: str, folder: Path) -> None:
    kept, other = KeptTokenizer(), shutil.copytree(folder, folder.parent / "other")
    if name.endswith(".json"):
        content = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps({**content, "made_up": 1} if name != "tokenizer.json" else content))
    else:
        (other / name).write_text("{{ messages }}")
    read = [load_tokenizer_only(str(where), kept=kept).tokenizer for where in (folder, other, folder, folder)]
    assert read[0] is not read[1]
    assert read[1] is not read[2]
    assert read[2] is read[3]


def test_one_that_is_named_or_may_bring_code_is_read_each_time(folder: Path) -> None:
    kept = KeptTokenizer()
    for options in ({"tokenizer": str(folder)}, {"trust_remote_code": True}):
        read = [load_tokenizer_only(str(folder), kept=kept, **options).tokenizer for _ in range(2)]
        assert read[0] is not read[1]
