"""Texts on their way through a model: their windows as requests, and the windows' scores as results by document."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from wmdp_fast._rust import Requests
from wmdp_fast.prompts.texts import windows_of
from wmdp_fast.results.perplexity import TextResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wmdp_fast._rust import Tokenizer
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.scoring.scores import PartialScores, ScoreMode, Scores


class TextRun:
    """The texts that a model is to read.

    Args:
        loaded: The model.
        tokenizer: Its tokenizer in Rust.
        texts: The texts.
        max_length: Most tokens to read at once, or None for the model's own limit.

    Attributes:
        requests: Each window as a question with one choice.

    Raises:
        ModelError: A document has a token that the model has no embedding for; names it.
        TokenizerError: A document cannot be tokenized; names it.
    """

    def __init__(
        self, loaded: LoadedModel, tokenizer: Tokenizer, texts: Sequence[Text], max_length: int | None
    ) -> None:
        from wmdp_fast.models.vocabulary import refuse_unknown_in_requests

        self._loaded, self._texts = loaded, texts
        self._max_length = max_length or loaded.max_length
        self._windows = windows_of(texts, tokenizer, loaded.prefix_token_id, self._max_length)
        self.requests = Requests.from_tokens(
            self._windows.contexts, [[one] for one in self._windows.continuations], self._max_length
        )
        names = [f"{text.name}, document {row + 1}" for text in texts for row in range(len(text.documents))]
        refuse_unknown_in_requests(
            loaded.model, loaded.tokenizer, self.requests, lambda window: names[self._windows.documents[window]]
        )

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._windows.documents)

    def score(
        self,
        *,
        token_budget: int | Literal["auto"],
        score_mode: ScoreMode,
        progress: Callable[[int, int], None],
        partial: PartialScores,
    ) -> Scores:
        """Scores the windows; arguments and errors are those of `models.rolling.score_windows`."""
        from wmdp_fast.scoring.rolling import score_windows

        return score_windows(
            self._loaded,
            self.requests,
            token_budget=token_budget,
            score_mode=score_mode,
            progress=progress,
            partial=partial,
        )

    def results(self, scores: Scores) -> dict[str, TextResult]:
        """The results by text; a document's log-likelihood is the sum over its windows."""
        tokens = np.array(self._windows.tokens, dtype=np.int64)
        windows = np.bincount(self._windows.documents, minlength=len(tokens)).astype(np.int64)
        loglikelihood = np.zeros(len(tokens))
        np.add.at(loglikelihood, self._windows.documents, scores.loglikelihood)
        ends = accumulate((len(text.documents) for text in self._texts), initial=0)
        return {
            text.name: TextResult.from_scores(
                text, loglikelihood[slice(*of)], tokens[slice(*of)], windows[slice(*of)], self._max_length
            )
            for text, of in zip(self._texts, pairwise(ends), strict=True)
        }
