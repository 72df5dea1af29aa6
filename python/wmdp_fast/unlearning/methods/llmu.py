"""LLMU: gradient ascent on harmful answers, unrelated answers in their place, and the original model on normal text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from wmdp_fast.prompts.documents import CorpusKind  # noqa: TC001 (hints are looked at as the program runs)
from wmdp_fast.unlearning.methods.config import ForgetRetainConfig
from wmdp_fast.unlearning.training_config import SearchAxis, check_number, check_whole

if TYPE_CHECKING:
    from torch import Tensor

    from wmdp_fast.unlearning.method import Method, Setup


@dataclass(frozen=True, kw_only=True)
class LLMUConfig(ForgetRetainConfig):
    """LLMU: `-forget_weight * CE(answer) + unrelated_weight * CE(unrelated answer) + retain_weight * KL(p0 || p)`.

    The first is of the answers of the forget corpora, the second of answers to the same prompts that are drawn from the
    retain corpus, the third of retain text. It is written for prompts with responses. Of plain documents, which have no
    prompts, the first loss is of all tokens; the second, with a document's first `prompt_tokens` tokens for its prompt,
    is this package's reading, for the program that runs LLMU on the WMDP corpora (arXiv:2411.12103) leaves it out:
    `unrelated_weight` 0.

    Weights, number of answers, learning rate and number of steps are those of the public code, which has them for OPT
    and Llama 2; nobody has published settings for WMDP in full.

    The loss on answers has no lower bound. The public code means to end a run when it is above 100 nats and compares
    its negative, so that it never does; it also trains the prompts of unrelated answers, and takes token 1 for padding.
    None of that is done here.

    Attributes:
        unrelated_weight: Weight of the loss on unrelated answers; 0 to do without them.
        num_unrelated: Unrelated answers for each prompt, drawn anew in each step.
        unrelated_tokens: Maximum tokens of an unrelated answer.
        prompt_tokens: Of a forget corpus of plain documents, how many first tokens are the prompt of an unrelated
            answer; at most half of a document.

    Example:
        >>> from wmdp_fast import LLMUConfig
        >>> LLMUConfig.forget_kinds
        ('answers', 'documents')
        >>> LLMUConfig(unrelated_weight=0.0).retain_loss
        'kl'
    """

    method_name: ClassVar[str] = "llmu"
    source: ClassVar[str] = "LLMU (Yao et al. 2023, arXiv:2310.10683)"
    summary: ClassVar[str] = (
        "The loss on the forget corpora was raised, unrelated answers were trained in place of theirs, and the model's"
        " predictions on the retain corpora held to the original model's."
    )
    reductions: ClassVar[tuple[str, ...]] = ("sequence_mean",)
    forget_kinds: ClassVar[tuple[CorpusKind, ...]] = ("answers", "documents")
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (
        SearchAxis("forget_weight"),
        SearchAxis("unrelated_weight", zero_allowed=True),
        SearchAxis("retain_weight", zero_allowed=True),
        *ForgetRetainConfig.search_axes,
    )

    learning_rate: float = 2e-6
    max_steps: int = 1000
    forget_weight: float = 0.5
    unrelated_weight: float = 1.0
    num_unrelated: int = 5
    unrelated_tokens: int = 64
    prompt_tokens: int = 32
    retain_loss: Literal["cross_entropy", "kl"] = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("unrelated_weight", self.unrelated_weight, zero_allowed=True)
        for name in ("num_unrelated", "unrelated_tokens", "prompt_tokens"):
            check_whole(name, getattr(self, name), least=1)

    def method(self, setup: Setup) -> Method:
        """LLMU of a model."""
        from wmdp_fast.unlearning.methods.llmu_method import LLMU

        return LLMU(setup, self)

    def forget_loss(self, losses: Tensor, _reference: Tensor | None, /) -> Tensor:
        """`-CE`."""
        return -losses.mean()
