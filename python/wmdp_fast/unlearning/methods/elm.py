"""ELM, erasure of language memory: the model is trained to speak of the forget text as one who does not know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.prompts.documents import CorpusKind  # noqa: TC001 (hints are looked at as the program runs)
from wmdp_fast.unlearning.methods.config import LanguageModelConfig
from wmdp_fast.unlearning.preset import Preset
from wmdp_fast.unlearning.training_config import SearchAxis, check_number, check_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.unlearning.method import Method, Setup


@dataclass(frozen=True, kw_only=True)
class ELMConfig(LanguageModelConfig):
    """The settings of ELM: `w_f * CE(q, p) + w_r * CE(argmax p0, p) + w_t * CE(text, p)`.

    On forget documents the target q of a token is the softmax of `log p0 - eta * (log p0(. | expert) - log p0(. |
    novice))` over its `top_k` largest entries: what the original model says after either prefix, so that what an expert
    would rather say becomes less likely. eta rises from 1 at a document's first token to the setting at its last; all
    three log-probabilities are of logits divided by `temperature`. On retain documents the target is the original
    model's likeliest token. The text is what the original model writes after a forget document and a sentence that
    changes the subject, steered away from the expert in the same way: a model that no longer knows should still speak.

    Attributes:
        reductions: Those that mean something to the method.
        forget_weight: Weight of the forget loss.
        retain_weight: Weight of the retain loss; 0 for none.
        fluency_weight: Weight of the loss of generated text; 0 for none, and none is generated.
        update_layer_ids: Layers whose parameters are trained; None is all.
        eta: How far the target is from what an expert says, at the end of a document.
        top_k: Tokens that a target has.
        temperature: What the original model's logits are divided by for targets.
        expert_prefix: What makes the original model an expert in the subject of all forget corpora; name it.
        novice_prefix: What makes it one who knows nothing of it.
        topic_change: What follows a forget document and begins the generated text.
        fluency_tokens: Tokens of generated text after that, unless it ends before.
        fluency_gamma: How far generated text is steered away from the expert.
        seed: Of generated text.

    Example:
        >>> from wmdp_fast import ELMConfig
        >>> config = ELMConfig(
        ...     expert_prefix="A virologist wrote this:", novice_prefix="Someone who never heard of viruses wrote this:"
        ... )
        >>> config.update_layer_ids, config.eta
        ((4, 5, 6, 7), 1000.0)
    """

    method_name: ClassVar[str] = "elm"
    reductions: ClassVar[tuple[str, ...]] = ("sequence_mean",)
    activation_metrics: ClassVar[tuple[str, ...]] = ("forget_loss", "retain_loss", "fluency_loss")
    forget_kinds: ClassVar[tuple[CorpusKind, ...]] = ("documents",)
    retain_kinds: ClassVar[tuple[CorpusKind, ...]] = ("documents",)
    why_kinds: ClassVar[str] = "its targets are of every token"
    shares_batches: ClassVar[bool] = True
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (
        SearchAxis("eta"),
        SearchAxis("retain_weight", zero_allowed=True),
        SearchAxis("fluency_weight", zero_allowed=True),
        *LanguageModelConfig.search_axes,
    )

    forget_weight: float = 1.0
    retain_weight: float = 1.0
    fluency_weight: float = 1.0
    update_layer_ids: tuple[int, ...] | None = (4, 5, 6, 7)
    parameters: str = "mlp"
    learning_rate: float = 5e-5
    eta: float = 1000.0
    top_k: int = 50
    temperature: float = 1.2
    expert_prefix: str = "An expert wrote this, who knows everything of its subject:"
    novice_prefix: str = "A beginner wrote this, who knows nothing of its subject:"
    topic_change: str = ". But enough of that; here is something more cheerful."
    fluency_tokens: int = 200
    fluency_gamma: float = 3.0

    def __post_init__(self) -> None:
        if isinstance(self.update_layer_ids, (list, int)):
            layers = self.update_layer_ids
            object.__setattr__(self, "update_layer_ids", (layers,) if isinstance(layers, int) else tuple(layers))
        super().__post_init__()
        for name in ("forget_weight", "eta", "temperature"):
            check_number(name, getattr(self, name))
        for name in ("retain_weight", "fluency_weight", "fluency_gamma"):
            check_number(name, getattr(self, name), zero_allowed=True)
        for name in ("top_k", "fluency_tokens"):
            check_whole(name, getattr(self, name), least=1)
        if self.top_k > 255:
            raise ValueError(f"top_k must be at most 255, not {self.top_k}")
        self._check_layers_and_texts()

    def method(self, setup: Setup) -> Method:
        """ELM on a model."""
        from wmdp_fast.unlearning.methods.erasure import Erasure, Writing
        from wmdp_fast.unlearning.methods.erasure_targets import Steering

        return Erasure(
            setup,
            {"forget": self.forget_weight, "retain": self.retain_weight, "fluency": self.fluency_weight},
            Steering(self.eta, self.top_k, self.temperature),
            Writing(
                expert_prefix=self.expert_prefix,
                novice_prefix=self.novice_prefix,
                topic_change=self.topic_change,
                tokens=self.fluency_tokens,
                gamma=self.fluency_gamma,
                seed=self.seed,
            ),
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def trained_layers(self, num_layers: int, /) -> Sequence[int]:
        """Those given, or all."""
        return range(num_layers) if self.update_layer_ids is None else sorted(set(self.update_layer_ids))

    def what_to_lower(self, *, losses_alone: bool) -> list[str]:
        """The learning rate, and how far targets are from what the model says."""
        then = "" if losses_alone else "then "
        return [*super().what_to_lower(losses_alone=losses_alone), f"{then}lower eta (now {self.eta:g})"]

    def _check_layers_and_texts(self) -> None:
        for layer in self.update_layer_ids or ():
            check_whole("update_layer_ids", layer, least=0)
        if self.update_layer_ids == ():
            raise ValueError("update_layer_ids is empty, so nothing would be trained")
        for name in ("expert_prefix", "novice_prefix", "topic_change"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty")
        if self.expert_prefix == self.novice_prefix:
            raise ValueError("expert_prefix and novice_prefix are the same, so there would be nothing to erase")


PRESETS = {
    one.name: one
    for one in (
        Preset(
            "zephyr-7b",
            "HuggingFaceH4/zephyr-7b-beta",
            {
                "lora": "r=8,alpha=16,dropout=0.05",
                "update_layer_ids": (4, 5, 6, 7),
                "eta": 1000.0,
                "top_k": 50,
                "temperature": 1.2,
                "fluency_gamma": 3.0,
                "forget_weight": 1.0,
                "retain_weight": 1.0,
                "fluency_weight": 1.0,
                "learning_rate": 5e-5,
                "schedule": "constant",
                "warmup": 0.0,
                "batch_size": 1,
                "grad_accum": 4,
                "max_steps": 2250,
                "dtype": "float32",
            },
            "Gandikota et al. 2024 (arXiv:2410.02760), defaults of rohitgandikota/erasing-llm",
            "For bio and cyber, 3,000 rounds of two bio documents and a cyber one, each cut at 700 characters. There"
            " one of ten prefixes with keywords of the subject is drawn for each document, a text has 100 to 300 tokens"
            ", and the gradients of a step's four documents are added up. Others report 30 to 34 on WMDP bio and"
            " 27 to 28 on cyber for the released model.",
        ),
    )
}
