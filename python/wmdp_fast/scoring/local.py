"""A model that is loaded here as a `Backend`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.load import files_identity
from wmdp_fast.models.positions import refuse_beyond_positions
from wmdp_fast.models.vocabulary import refuse_unknown_in_requests
from wmdp_fast.runtime.environment import versions
from wmdp_fast.scoring.backend import LoadOptions, ModelRecord, ScoreOptions
from wmdp_fast.scoring.rolling import score_windows
from wmdp_fast.scoring.streamed import read_along
from wmdp_fast.scoring.trie import estimate, score

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.scoring.ranks import Ranks
    from wmdp_fast.scoring.scores import PartialScores, Scores
    from wmdp_fast.scoring.trunk import SharedTrunk

_CODE = ("wmdp_fast", "torch", "transformers", "peft")


@dataclass(frozen=True)
class LocalModel:
    """A loaded model and how it is scored; `Backend` describes what it offers.

    Attributes:
        loaded: The model.
        load: How it was loaded.
        options: How it is scored.
        trunk: What passes the lower layers' output on between models that have these in common.
    """

    loaded: LoadedModel
    load: LoadOptions
    options: ScoreOptions
    trunk: SharedTrunk | None = None

    @property
    def name(self) -> str:
        """Folder or name on the hub, as it was given."""
        return self.loaded.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer of transformers."""
        return self.loaded.tokenizer

    @property
    def prefix_token_id(self) -> int:
        """Token that stands for an empty context."""
        return self.loaded.prefix_token_id

    @property
    def max_length(self) -> int:
        """Maximum sequence length of the model, by lm-eval's rule."""
        return self.loaded.max_length

    @property
    def model_type(self) -> str:
        """Transformers' name for its architecture, or nothing for a model that has none."""
        return str(getattr(getattr(self.loaded.model, "config", None), "model_type", ""))

    @property
    def dtype(self) -> str:
        """Type of its weights."""
        return str(self.loaded.dtype).removeprefix("torch.")

    @property
    def attention(self) -> str | None:
        """The attention implementation of transformers that the model is set to."""
        return getattr(getattr(self.loaded.model, "config", None), "_attn_implementation", None)

    @property
    def warnings(self) -> Sequence[str]:
        """What results should say of how it was loaded."""
        return self.loaded.warnings

    @property
    def progress(self) -> tuple[str, str]:
        """Inputs are counted: the trie does not count those that are the beginning of another one.

        Of a streamed model, layers, each once for every chunk of batches.
        """
        return ("input", "scoring") if self.loaded.streamed is None else ("layer", "streaming")

    def identity(self, requests: Requests | None, prompts: Sequence[Prompts]) -> dict[str, Any] | None:  # noqa: ARG002
        """Files, dtype and device, the tokens, and versions of the code; None for a model that was in memory."""
        if self.loaded.path is None:
            return None
        return {
            "model files": files_identity(self.loaded),
            "dtype": self.dtype,
            "device": self.loaded.device.type,
            "score mode": self.options.score_mode,
            "questions and their tokens": _needed(requests).content_hash,
            # Of two versions the halves of a run need not fit together.
            **{name: found for name, found in versions().items() if name in _CODE},
        }

    def record(self) -> ModelRecord:
        """What lm-eval's `HFLM` records: its `model_args` and `get_model_info`."""
        arguments: dict[str, Any] = {"pretrained": self.name, "dtype": self.load.dtype}
        if isinstance(self.load.tokenizer, (str, os.PathLike)):
            arguments["tokenizer"] = os.fspath(self.load.tokenizer)
        if self.load.revision is not None:
            arguments["revision"] = self.load.revision
        if self.load.peft is not None:
            arguments["peft"] = os.fspath(self.load.peft)
        info = {
            "model_num_parameters": self.loaded.num_parameters,
            "model_dtype": str(self.loaded.dtype),
            "model_revision": self.loaded.revision or "main",
            "model_sha": self.loaded.sha or "",
        }
        return ModelRecord(
            model="hf",
            model_args=arguments,
            model_info=info,
            batch_size=self.options.token_budget,
            device=str(self.loaded.device),
        )

    def check_tokens(self, requests: Requests, name_of: Callable[[int], str]) -> None:
        """Raises ModelError if a token has no embedding, naming the question, or inputs go beyond all positions."""
        refuse_unknown_in_requests(self.loaded.model, self.tokenizer, requests, name_of)
        refuse_beyond_positions(self.loaded.model, requests)

    def sharing_with(self, ranks: Ranks) -> LocalModel:
        """The same, which reads layers together with the others if all of them stream."""
        streamed = self.loaded.streamed
        every = ranks.exchange(None if streamed is None else streamed.skeleton.layers_as_stored)
        if streamed is None or None in every:
            return self
        if any(one != every[0] for one in every):
            raise ModelError(f"{self.name} is another checkpoint in one process than in another: copy it again")
        together = ranks.reading(self.loaded.device)
        return replace(self, loaded=replace(self.loaded, streamed=replace(streamed, together=together)))

    def read_along(self, meanwhile: Callable[[], object]) -> Mapping[str, Any] | None:
        """See `wmdp_fast.scoring.streamed.read_along`."""
        streamed = self.loaded.streamed
        if streamed is None:
            return None
        read_along(streamed, meanwhile)
        return streamed.cost.record()

    def estimate(self, requests: Requests | None, shards: int) -> str | None:
        """Of a streamed model, what it reads and how much memory it takes."""
        if self.loaded.streamed is None or requests is None:
            return None
        return estimate(self.loaded, requests, self.options.engine, self.options.token_budget, shards)

    def score(
        self,
        prompts: Sequence[Prompts],  # noqa: ARG002
        requests: Requests | None,
        *,
        progress: Callable[[int, int], None],
        partial: PartialScores,
    ) -> Scores:
        """Scores by trie or on padded rows; see `wmdp_fast.scoring.trie.score`."""
        return score(
            self.loaded,
            _needed(requests),
            engine=self.options.engine,
            token_budget=self.options.token_budget,
            score_mode=self.options.score_mode,
            progress=progress,
            partial=partial,
            trunk=self.trunk,
        )

    def score_windows(
        self, requests: Requests, *, progress: Callable[[int, int], None], partial: PartialScores
    ) -> Scores:
        """Scores windows of texts; see `wmdp_fast.scoring.rolling.score_windows`."""
        return score_windows(
            self.loaded,
            requests,
            token_budget=self.options.token_budget,
            score_mode=self.options.score_mode,
            progress=progress,
            partial=partial,
        )


def _needed(requests: Requests | None) -> Requests:
    if requests is None:
        raise ValueError("a model that is run here reads tokens")
    return requests
