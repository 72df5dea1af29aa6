"""A model under attack, with all that an attack may use."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from wmdp_fast.models.byte_sums import sum_of_bytes
from wmdp_fast.prompts.documents import CorpusTokens, load_corpus

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from wmdp_fast._rust import Prompts
    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.robustness.answers import Answers
    from wmdp_fast.robustness.questions import Questions
    from wmdp_fast.robustness.utility import Utility
    from wmdp_fast.scoring.local import LocalModel

_Found = TypeVar("_Found")

Role = Literal["unlearned", "base", "never learned"]
"""The model that is attacked, and the controls: the one before unlearning, and one that never had the knowledge."""

CorpusName = Literal["forget", "related", "unrelated"]
"""Texts by what they are to the unlearning: what was unlearned, its neighborhood, and anything else."""

# Documents of a corpus that are read, and tokens of each.
DOCUMENTS, LENGTH = 2000, 512


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under attack.

    Attributes:
        role: Which of the models it is.
        model: The model, its tokenizer, and how it is scored.
        questions: All questions, and which of them are for choosing.
        test: What measures its utility.
        sources: Where the corpora are that an attack may use, by name.
        original: Opens the model before unlearning, or None: of the base itself there is none.
    """

    role: Role
    model: LocalModel
    questions: Questions
    test: Utility
    sources: Mapping[CorpusName, Corpus] = field(default_factory=dict)
    original: Callable[[], LocalModel] | None = None
    _corpora: dict[tuple[CorpusName, int, int], CorpusTokens] = field(default_factory=dict, repr=False)
    _found: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def network(self) -> nn.Module:
        """The model itself."""
        return self.model.loaded.model

    def ask(self, prompts: Sequence[Prompts] | None = None) -> Answers:
        """Asks all questions of the model as it is now: its own prompts, or those of `Questions.prompts`.

        Raises:
            ModelError: Its numbers are none any more.
        """
        return self.questions.answers(self.model, prompts)

    def utility(self) -> dict[str, float]:
        """What else the model can do as it is now; see `Utility.measure`."""
        return self.test.measure(self.model)

    def corpus(self, name: CorpusName, *, documents: int = DOCUMENTS, length: int = LENGTH) -> CorpusTokens:
        """The first documents of a corpus as the model's tokens.

        Args:
            name: Which.
            documents: Most documents.
            length: Maximum tokens of each.

        Raises:
            KeyError: There is none of that name; `Attack.why_not` should have said so.
            DataUnavailableError, DatasetError, TokenizerError: As `load_corpus`.
        """
        source = self.sources[name]
        if isinstance(source, CorpusTokens):
            return source
        key = (name, documents, length)
        if key not in self._corpora:
            self._corpora[key] = load_corpus(source, self.model.tokenizer, max_length=length, num_documents=documents)
        return self._corpora[key]

    def once(self, key: Hashable, find: Callable[[], _Found]) -> _Found:
        """What several settings of an attack need of the model as it is, found for the first of them.

        Args:
            key: Tells it from whatever else is kept of the model.
            find: Finds it.
        """
        if key not in self._found:
            self._found[key] = find()
        found: _Found = self._found[key]
        return found

    @contextmanager
    def restored(self, names: Iterable[str] | None = None) -> Iterator[dict[str, nn.Parameter]]:
        """Inside, parameters may be changed in place; afterwards they have their values again, to the bit.

        Their values are kept in the host's memory, so that a device needs none beside the model.

        Args:
            names: Which, by their names in the model; None is all.

        Yields:
            The parameters by name.
        """
        every = dict(self.network.named_parameters())
        parameters = every if names is None else {name: every[name] for name in names}
        kept = {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}
        try:
            yield parameters
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(kept[name])


def fingerprint(network: nn.Module) -> tuple[int, ...]:
    """What tells whether a model was changed: of each parameter the sum of its bytes, and how many hooks there are."""
    sums = [sum_of_bytes(parameter) for parameter in network.parameters()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())
    return (*sums, hooks)
