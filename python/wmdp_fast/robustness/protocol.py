"""What an attack is: it takes an unlearned checkpoint and data, and gives back what is to be evaluated.

An attack shows what a model still knows, by changing its weights (relearning, ablation of a direction, pruning, noise,
quantization) or what it is asked (few-shot examples, other wordings, soft prompts). It evaluates nothing itself. A
suite asks the same questions of every model: the unlearned one, and the controls without which a recovered score means
nothing, under the same attack.

Three rules are in the types. What an attack may learn from is apart from what is asked afterwards: `Material` has the
questions to choose settings on, and never those that are reported. Every choice is in the record: a setting that was
tried and not taken is listed, since a maximum over many is inflated. And all that is drawn follows from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import CorpusTokens

# What an attacker needs: answers alone, activations too, or to change weights.
Access = Literal["prompts", "activations", "weights"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model under attack.

    Attributes:
        name: Of the model, for records.
        checkpoint: Its folder.
        original: The folder of the model before unlearning, or None: some attacks need it, some are better with it.
    """

    name: str
    checkpoint: Path
    original: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Material:
    """What an attack may use.

    Attributes:
        corpora: Texts by what they are to the unlearning: `forget`, `retain`, `unrelated`.
        questions: Question files to choose settings on. Questions that are reported are not among them.
    """

    corpora: Mapping[str, CorpusTokens] = field(default_factory=dict)
    questions: Sequence[Path] = ()


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """What was done, in full.

    Attributes:
        attack: The attack's name.
        settings: The settings that were taken, the seed among them.
        tried: Of each setting that was tried, what was found on the questions for choosing; those taken too.
        documents: How many documents of each corpus were used.
        steps: Optimizer steps, or 0.
        passes: Forward and backward passes of the model, a budget that means the same on every machine.
        notes: What limits what may be concluded.
    """

    attack: str
    settings: dict[str, Any]
    tried: tuple[dict[str, Any], ...] = ()
    documents: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    passes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttackedModel:
    """What an attack gives back.

    Attributes:
        model: To be evaluated in place of the target.
        tokenizer: Its tokenizer.
        eval_options: Options of `wmdp_fast.evaluate` that belong to the attack, such as a prompt template.
        record: What was done.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    record: AttackRecord
    eval_options: Mapping[str, Any] = field(default_factory=dict)


class Attack(Protocol):
    """An attack with its settings.

    Attributes:
        name: What records and tables call it.
        access: What an attacker needs for it.
        needs_original: Whether it needs `Target.original`.
    """

    name: str
    access: Access
    needs_original: bool

    def run(self, target: Target, material: Material, /, *, seed: int) -> AttackedModel:
        """Attacks a model. The target's files are not changed.

        Args:
            target: The model.
            material: What may be used.
            seed: Of all that is drawn: the same seed gives the same model on the same machine.

        Raises:
            ModelError: The target cannot be loaded.
            ValueError: The material lacks what the attack needs, or there is no original where one is needed.
        """
