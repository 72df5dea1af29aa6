"""What a run says of its corpora: documents that it is to forget and to keep, and tokens that changed meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.unlearning.api import unlearn
from wmdp_fast.unlearning.corpus_doubts import corpus_doubts, cut_corpora
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = RMUConfig(
    layer_id=2, steering_coeff=2.0, alpha=50.0, learning_rate=1e-3, batch_size=2, max_steps=4, save_every=1
)


@pytest.mark.filterwarnings("ignore:this run unlearned:wmdp_fast.exceptions.WmdpFastWarning")
def test_documents_to_forget_and_to_keep_are_told(tmp_path: Path) -> None:
    base = runs.saved_model(tmp_path / "base", "llama")
    forget, kept = ([one + one + one for one in runs.documents(seed, longest=13)] for seed in (1, 2))
    retain = runs.corpus([*kept[:-3], *forget[:3]], "mixed")
    told = r"3 of the 30 documents of the forget corpus birds are in the retain corpus mixed too: the run is to forget"
    given: dict[str, Any] = {"forget": runs.corpus(forget, "birds"), "config": CONFIG, "progress": False}
    with pytest.warns(WmdpFastWarning, match=told):
        unlearn(base, retain=retain, output=tmp_path / "out", **given)
    [sentence] = json.loads((tmp_path / "out" / "unlearn.json").read_text())["doubts"]
    assert sentence.startswith("3 of the 30 documents")
    assert "> **3 of the 30 documents" in (tmp_path / "out" / "README.md").read_text()
    unlearn(base, retain=runs.corpus(kept, "other"), output=tmp_path / "none", **given)
    assert json.loads((tmp_path / "none" / "unlearn.json").read_text())["doubts"] == []


class StoppedError(Exception):
    """The run is interrupted."""


@pytest.mark.filterwarnings("ignore:this run unlearned:wmdp_fast.exceptions.WmdpFastWarning")
def test_a_run_does_not_go_on_with_other_tokens_of_the_same_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmdp_fast.unlearning import trainer

    base = runs.saved_model(tmp_path / "base", "llama")
    forget, retain = runs.corpus(runs.documents(1), "forget"), runs.corpus(runs.documents(2), "retain")
    given: dict[str, Any] = {"retain": retain, "config": CONFIG, "output": tmp_path / "out", "progress": False}
    save = trainer.save_state

    def stop(folder: Path, state: Any, identity: dict[str, Any]) -> None:
        save(folder, state, identity)
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_state", stop)
        with pytest.raises(StoppedError):
            unlearn(base, forget=forget, **given)
    other = CorpusTokens(forget.name, forget.tokens[::-1].copy(), forget.offsets, forget.content_hash)
    with pytest.raises(ModelError, match="belongs to a run with other forget corpora; resume with the same"):
        unlearn(base, forget=other, resume=True, **given)
    assert unlearn(base, forget=forget, resume=True, **given).steps == 4


class Reads:
    """Stands for a tokenizer: 9 is a blank."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(" " if token == 9 else "x" for token in tokens)


def test_blank_documents_and_corpora_that_end_in_the_middle_of_documents_are_told() -> None:
    forget = runs.corpus([[9, 9], [1, 9], [9]], "blank")
    retain = runs.corpus([[1] * 8, [2] * 8, [3] * 4], "long")
    reads: Any = Reads()
    assert list(corpus_doubts([forget], [retain], reads)) == [
        "2 of the 3 documents of the corpus blank are white space and nothing else"
    ]
    assert list(corpus_doubts([forget], [retain], None)) == []
    assert list(cut_corpora([forget, retain], [8, 8], 4)) == [
        "the corpus long ends after 3 documents, of which 2 have 8 tokens or more, and no more are read of each: cut"
        " them into passages, a document each, to have all of them"
    ]
    assert list(cut_corpora([forget, retain], [8, 9], 4)) == []
    assert list(cut_corpora([forget, retain], [8, 8], 3)) == []
