"""What a sweep tries: values of some settings of a method, or ranges that Optuna draws from."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastError
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.unlearning.training_config import SearchAxis

# Digits of a drawn number: enough to say what works, few enough to write down.
_DIGITS = 4

Values = tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: The lowest.
        high: The highest.
        automatic: Whether they are factors of `steering_coeff="auto:FACTOR"`.

    Example:
        >>> from wmdp_fast import Range
        >>> over = {"layer_id": [1, 2], "learning_rate": Range(1e-5, 1e-3)}  # for `sweep` with `trials`
        >>> over["learning_rate"].high
        0.001
    """

    low: float
    high: float
    automatic: bool = False


Space = dict[str, Values | Range]


def check_space(
    over: Mapping[str, Sequence[Any] | Range], *, drawn: bool, axes: Sequence[SearchAxis] = RMUConfig.search_axes
) -> Space:
    """The space as given, in the order of the axes. A range of whole numbers has `int` ends, any other `float` ends.

    Args:
        over: For each setting the values to try, or a range.
        drawn: Whether Optuna draws; a grid has no ranges.
        axes: What can be swept.

    Raises:
        TypeError: It is no mapping.
        ValueError: A setting cannot be swept, has no values, or a range is none.
    """
    names = [axis.name for axis in axes]
    if not isinstance(over, Mapping):
        raise TypeError(f"over must map settings to the values to try, such as {{{names[0]!r}: [...]}}, not {over!r}")
    if unknown := [name for name in over if name not in names]:
        raise ValueError(f"{unknown[0]} cannot be swept; what can is {', '.join(names)}")
    if not over:
        raise ValueError(f"nothing to sweep: give values for at least one of {', '.join(names)}")
    space: Space = {}
    for axis in axes:
        if axis.name not in over:
            continue
        given = over[axis.name]
        if isinstance(given, Range):
            if given.automatic and not axis.automatic:
                takes = [one.name for one in axes if one.automatic]
                raise ValueError(f"auto is for {' and '.join(takes) or 'no setting here'}, not for {axis.name}")
            space[axis.name] = _checked_range(axis, given, drawn=drawn)
            continue
        if not isinstance(given, Iterable) or isinstance(given, str) or not given:
            raise ValueError(f"{axis.name} needs a list of the values to try, not {given!r}")
        space[axis.name] = tuple(dict.fromkeys(tuple(one) if isinstance(one, list) else one for one in given))
    return space


def grid(space: Mapping[str, Values | Range]) -> Iterator[dict[str, Any]]:
    """Every combination of values."""
    columns = [values for values in space.values() if isinstance(values, tuple)]
    for combination in itertools.product(*columns):
        yield dict(zip(space, combination, strict=True))


def bounds(space: Mapping[str, Values | Range]) -> Iterator[dict[str, Any]]:
    """Settings that, if they are all possible, say that every point of the space is."""
    return grid({name: _ends(values) for name, values in space.items()})


def highest(space: Mapping[str, Values | Range], name: str, default: int) -> int:
    """The largest value of a setting that is a number."""
    values = space.get(name, (default,))
    return int(values.high) if isinstance(values, Range) else max(values)


class OptunaSampler:
    """Draws points with Optuna's TPE sampler for two objectives: low accuracy on forget, high accuracy on retain tasks.

    Every point follows from the seed, its number and the results before it, and from nothing else: so a sweep that was
    killed goes on as it would have.

    Args:
        space: What to draw from.
        seed: Of the draws.

    Raises:
        WmdpFastError: Optuna is not installed; says how to install it.
    """

    def __init__(self, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise WmdpFastError("drawing points needs Optuna: pip install 'wmdp-fast[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        self._distributions = {name: self._distribution(values) for name, values in space.items()}

    def draw(
        self,
        before: Sequence[tuple[Mapping[str, Any], tuple[float, float] | None]],
        running: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """What Optuna draws next, by its own names and numbers; `settings` makes settings of it.

        Args:
            before: What was drawn before, each with its forget and retain accuracy; None where the run failed.
            running: What was drawn after that, and has no result yet.
        """
        optuna = self._optuna
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Near points that are still running it then draws no others.
            sampler = optuna.samplers.TPESampler(
                seed=self._seed + len(before) + len(running), constant_liar=bool(running)
            )
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        for params, values in before:
            state = optuna.trial.TrialState.FAIL if values is None else optuna.trial.TrialState.COMPLETE
            study.add_trial(
                optuna.trial.create_trial(
                    state=state, params=dict(params), distributions=self._distributions, values=values
                )
            )
        for params in running:
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=dict(params), distributions=self._distributions
                )
            )
        return dict(study.ask(self._distributions).params)

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that a draw stands for."""
        found = {}
        for name, values in self._space.items():
            drawn = params[name]
            if isinstance(values, tuple):
                found[name] = values[drawn]
            elif isinstance(values.low, int):
                found[name] = int(drawn)
            else:
                number = float(f"{drawn:.{_DIGITS}g}")
                found[name] = f"auto:{number:g}" if values.automatic else number
        return found

    def _distribution(self, values: Values | Range) -> Any:
        distributions = self._optuna.distributions
        if isinstance(values, tuple):
            # By number: a value may be a tuple, for which Optuna has no type.
            return distributions.CategoricalDistribution(list(range(len(values))))
        if isinstance(values.low, int):
            return distributions.IntDistribution(values.low, int(values.high))
        return distributions.FloatDistribution(values.low, values.high, log=True)


def _checked_range(axis: SearchAxis, given: Range, *, drawn: bool) -> Range:
    """The range, with ends of the axis's type."""
    name = axis.name
    if not drawn:
        raise ValueError(f"{name} is a range, which only Optuna can draw from: give a list of values, or trials")
    if not (math.isfinite(given.high) and given.low < given.high):
        raise ValueError(
            f"the range of {name} must go from a lower to a higher number, not {given.low} to {given.high}"
        )
    if given.low <= 0 and not axis.zero_allowed:
        raise ValueError(f"the range of {name} must begin above 0, not at {given.low:g}")
    if not axis.whole:
        return replace(given, low=float(given.low), high=float(given.high))
    if given.low != int(given.low) or given.high != int(given.high):
        raise ValueError(f"the range of {name} must have whole numbers as its ends, not {given.low} and {given.high}")
    return replace(given, low=int(given.low), high=int(given.high))


def _ends(values: Values | Range) -> Values:
    if isinstance(values, tuple):
        return values
    ends = (values.low, values.high)
    return tuple(f"auto:{end:g}" for end in ends) if values.automatic else ends
