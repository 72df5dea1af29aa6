"""Short runs of RMU on a model in memory, to find a learning rate that does something and damages little.

Learning rates do not travel between models: at the published 5e-5, which was found on models of 7 billion parameters,
a model of 135 million does not move at all in 40 steps, and at 1e-3 it does. So they are tried from below, until
activations say that forget data are steered and retain data kept (`effect` has the bounds).
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import DivergedError, WmdpFastWarning
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.unlearning.api import unlearn
from wmdp_fast.unlearning.parameters import select_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.prompts.documents import CorpusTokens
    from wmdp_fast.unlearning.rmu.config import RMUConfig
    from wmdp_fast.unlearning.rmu.effect import Effect

STEPS = 40
# From the published one upwards, about a factor of 4 between two.
LEARNING_RATES = (5e-5, 2e-4, 1e-3, 4e-3)
# The published one for large models first, then one with which retain data hold back a small model less.
ALPHAS = (1200.0, 100.0)


@dataclass(frozen=True)
class Trial:
    """A short run.

    Attributes:
        learning_rate: Of this run.
        alpha: Likewise.
        steps: Likewise.
        effect: What became of activations, or None if it diverged.
        failed: Why it diverged, or None.
    """

    learning_rate: float
    alpha: float
    steps: int
    effect: Effect | None
    failed: str | None = None

    @property
    def works(self) -> bool:
        """Whether forget activations were steered and retain activations kept."""
        return self.effect is not None and self.effect.forgetting == "steered" and self.effect.retain_kept

    def __str__(self) -> str:
        what = self.failed if self.effect is None else f"{self.effect.forgetting}: {self.effect.text}"
        return f"learning rate {self.learning_rate:g}, alpha {self.alpha:g}, {self.steps} steps: {what}"


def pilot(
    loaded: LoadedModel,
    forget: CorpusTokens,
    retain: CorpusTokens,
    config: RMUConfig,
    *,
    note: Callable[[str], None],
) -> list[Trial]:
    """Tries learning rates from below, with less weight on retain data where forget data were not steered.

    Args:
        loaded: The model; its weights are as before afterwards.
        forget: The forget corpus.
        retain: The retain corpus.
        config: The settings; those that are tried are replaced.
        note: Takes a line for each run.

    Returns:
        All runs. If any works, it is the last one.

    Raises:
        ModelError: The model cannot be unlearned.
    """
    trials = []
    for learning_rate in LEARNING_RATES:
        for alpha in ALPHAS:
            tried = dataclasses.replace(config, learning_rate=learning_rate, alpha=alpha)
            trial = _tried(loaded, forget, retain, tried)
            note(f"pilot: {trial}")
            trials.append(trial)
            if trial.works or trial.effect is None:
                return trials  # what has diverged would do so at a higher learning rate too
            if not trial.effect.retain_kept:
                break  # less weight would keep less
    return trials


def _tried(loaded: LoadedModel, forget: CorpusTokens, retain: CorpusTokens, config: RMUConfig) -> Trial:
    model: Any = loaded.model
    decoder = decoder_of(model)
    before = [
        (one.parameter, one.parameter.detach().clone())
        for one in select_parameters(decoder.layers, decoder.prefix, config.updated_layers, config.parameters)
    ]
    effect, failed = None, None
    try:
        with warnings.catch_warnings():
            # What they say of a pilot is in its result.
            warnings.simplefilter("ignore", WmdpFastWarning)
            result = unlearn(
                model, forget=forget, retain=retain, config=config, tokenizer=loaded.tokenizer, progress=False
            )
        [effect] = result.effects
        steps = result.steps
    except DivergedError as error:
        failed, steps = str(error), error.step
    finally:
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)
    return Trial(config.learning_rate, float(config.alpha), steps, effect, failed)  # type: ignore[arg-type]
