"""Forget and retain corpora: files, or public corpora by name. `prompts.documents` reads and tokenizes them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.data.locate import locate
from wmdp_fast.exceptions import DataUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike


_EXTENSIONS = tuple(kind + packed for kind in (".jsonl", ".parquet", ".txt") for packed in ("", ".gz", ".zst"))
_EXTENSIONS_IN_WORDS = ".jsonl, .parquet or .txt, also with .gz or .zst behind"


@dataclass(frozen=True)
class HubCorpus:
    """A corpus on the Hugging Face hub, as `wmdp_fast.data.locate` looks for it.

    Attributes:
        name: Its name here, and that of a plain file in its place (`bio-forget-corpus.jsonl`).
        dataset: Repository on the hub.
        config: The dataset's configuration, or None if it has only one.
        test_split: Name of the split that is the corpus.
        about: What it is, in a line.
        revision: Pinned commit of the dataset, or None for the newest.
        gated: Whether its authors' terms must be accepted on the hub.
    """

    name: str
    dataset: str
    config: str | None
    test_split: str
    about: str
    revision: str | None = None
    gated: bool = False
    # What else a task of questions has, and a corpus has not.
    fewshot_split: None = None
    num_fewshot: int = 0
    subject: None = None
    test_files: tuple[Path, ...] = ()
    fewshot_files: tuple[Path, ...] = ()
    extensions: str = ".jsonl (or .parquet, also with .gz or .zst behind)"


_WMDP = "cais/wmdp-corpora"
_AUXILIARY = "cais/wmdp-mmlu-auxiliary-corpora"

# The known corpora by name. The original read wikitext's test split, which is why it is the one here.
CORPORA: dict[str, HubCorpus] = {
    corpus.name: corpus
    for corpus in (
        HubCorpus(
            "wikitext",
            "Salesforce/wikitext",
            "wikitext-2-raw-v1",
            "test",
            "rows of WikiText-2's test split, the original's retain data",
            revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        ),
        HubCorpus(
            "bio-forget-corpus", "cais/wmdp-bio-forget-corpus", None, "train", "24,453 biology papers", gated=True
        ),
        HubCorpus("bio-retain-corpus", _WMDP, "bio-retain-corpus", "train", "60,887 papers of general biology"),
        HubCorpus("cyber-forget-corpus", _WMDP, "cyber-forget-corpus", "train", "1,000 documents on cybersecurity"),
        HubCorpus("cyber-retain-corpus", _WMDP, "cyber-retain-corpus", "train", "4,473 documents on computing"),
        HubCorpus(
            "cyber-forget-corpus-gated",
            "cais/wmdp-cyber-forget-corpus",
            None,
            "train",
            "1,000 documents on cybersecurity, the copy that the original reads since 2025",
            gated=True,
        ),
        HubCorpus("economics-corpus", _AUXILIARY, "economics-corpus", "train", "textbooks of economics"),
        HubCorpus("law-corpus", _AUXILIARY, "law-corpus", "train", "textbooks of law"),
        HubCorpus("physics-corpus", _AUXILIARY, "physics-corpus", "train", "textbooks of physics"),
    )
}


def find_corpus(
    spec: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    data: str | PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool | None = None,
) -> tuple[str, tuple[Path, ...], str | None]:
    """What to call a corpus, its files, and its commit if it is the hub's; arguments and errors as in `load_corpus`."""
    if isinstance(spec, str) and spec in CORPORA:
        located = locate(CORPORA[spec], data=data, dataset_revision=revision, offline=offline)
        return spec, located.test, located.revision
    given = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    files = tuple(file for path in given for file in _files(Path(path)))
    return ", ".join(os.fspath(path) for path in given), files, None


def _files(path: Path) -> list[Path]:
    """The corpus files that a path means."""
    if path.is_dir():
        found = _in_folder(path) or (_in_folder(path / "data") if (path / "data").is_dir() else [])
        if not found:
            raise DataUnavailableError(
                f"{path}: no corpus file in this folder; their names end in {_EXTENSIONS_IN_WORDS}"
            )
        return found
    if not path.exists():
        raise DataUnavailableError(
            f"{path} is neither a file or folder here nor the name of a known corpus: {', '.join(CORPORA)}"
        )
    return [path]


def _in_folder(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.name.lower().endswith(_EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
    )
