"""What makes one sweep the same as another, so that it may use its results: written down beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import ModelError
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import write_whole
from wmdp_fast.runtime.own_code import own_code
from wmdp_fast.unlearning.source import asked_how, tokens_digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from wmdp_fast.unlearning.activation_cache import TrunkCache
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.source import Corpora, Source
    from wmdp_fast.unlearning.training_config import TrainingConfig

_FILE = "sweep.json"


@dataclass(frozen=True)
class Extent:
    """How far a sweep goes into model and corpora. One that goes further can still use what was found before.

    Attributes:
        layers: How many of the model's layers it may train or run for training; None for all.
        max_steps: Its largest number of steps, which decides how much of the corpora is read.
        forget: Documents read of each forget corpus.
        retain: Documents read of each retain corpus.
    """

    layers: int | None
    max_steps: int
    forget: tuple[int, ...] = ()
    retain: tuple[int, ...] = ()


def exists(folder: Path) -> bool:
    """Whether there is a sweep in a folder."""
    return (folder / _FILE).exists()


def remove(folder: Path) -> None:
    """Forgets that there was a sweep in a folder."""
    (folder / _FILE).unlink(missing_ok=True)


def extent_before(folder: Path) -> Extent | None:
    """How far the sweep in a folder went, or None if there is none.

    Raises:
        ModelError: The file is damaged.
    """
    return _read(folder)[1] if exists(folder) else None


def check(
    folder: Path,
    base: TrainingConfig,
    extent: Extent,
    source: Source,
    corpora: Corpora,
    cache: TrunkCache,
    tasks: Mapping[str, list[str]],
    leaves: Mapping[str, list[str]],
    request: Request,
) -> None:
    """Compares with the sweep in a folder, if there is one, and writes down what this one is.

    Args:
        folder: Of the results.
        base: The settings; those that can be swept do not count.
        extent: How far this sweep goes: at least as far as the one before. Documents are filled in here.
        source: The model.
        corpora: The tokens.
        cache: Hashes the weights, which are the original ones.
        tasks: What is measured, by the names that the user gave.
        leaves: The tasks that these stand for, for whoever reads the results.
        request: How, what perplexity is measured on, and how far a run may go.

    Raises:
        ModelError: The sweep there has other settings, weights, data or tasks; says which.
    """
    texts, budget = request.eval_text, request.budget
    free = {"save_every", *(axis.name for axis in base.search_axes)}

    def identity(extent: Extent) -> dict[str, Any]:
        layers = len(source.decoder.layers) if extent.layers is None else extent.layers
        return {
            "method": base.method_name,
            "settings": {name: value for name, value in base.to_json().items() if name not in free},
            "weights": [cache.weights(layers), source.num_layers],
            "forget corpora": list(map(tokens_digest, corpora.forget, extent.forget)),
            "retain corpora": list(map(tokens_digest, corpora.retain, extent.retain)),
            "tasks": dict(tasks),
            "evaluation options": asked_how(request),
            **({"code of the method": code} if (code := [one["sha256"] for one in own_code(base)]) else {}),
            **({} if budget is None else {"max_kl": budget.identity}),
            **({"texts": [[text.name, text.content_hash] for text in texts]} if texts else {}),
        }

    if exists(folder):
        before, extent_then = _read(folder)
        now = json.loads(json.dumps(identity(extent_then)))
        if differing := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
            raise ModelError(
                f"{folder} has a sweep with other {', '.join(differing)}; resume with the same, or choose another"
                " folder"
            )
    extent = Extent(extent.layers, extent.max_steps, tuple(map(len, corpora.forget)), tuple(map(len, corpora.retain)))
    record = {"identity": identity(extent), "extent": asdict(extent), "measured": dict(leaves)}
    text = strict_json.dumps(record, indent=2)
    write_whole(folder / _FILE, text + "\n")


def _read(folder: Path) -> tuple[dict[str, Any], Extent]:
    path = folder / _FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        extent = found["extent"]
        return found["identity"], Extent(
            extent["layers"], extent["max_steps"], tuple(extent["forget"]), tuple(extent["retain"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error!r}); remove {folder} to start over") from None
