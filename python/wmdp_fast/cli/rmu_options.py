"""The options of RMU that `unlearn` and `sweep` share. They are the fields of `RMUConfig`."""

from __future__ import annotations

import argparse
from typing import Any

from wmdp_fast.cli.options import finite_number, whole_number, whole_numbers

# Options that are fields of RMUConfig; what is not given stays away, and keeps the preset's value or the default.
_SETTINGS = (
    "layer_id", "update_layer_ids", "parameters", "steering_coeff", "alpha", "learning_rate", "batch_size", "max_steps",
    "epochs", "max_length", "retain_max_length", "mode", "retain_noise", "seed", "grad_accum", "grad_clip",
    "master_weights", "dtype", "save_dtype", "save_every", "min_chars", "raw_lines", "field",
)  # fmt: skip


def add_corpora(parser: argparse.ArgumentParser) -> None:
    """Adds what is unlearned and what is kept."""
    corpora = parser.add_argument_group("corpora")
    corpora.add_argument(
        "--forget", required=True, action="append", metavar="CORPUS", help="what to unlearn; once for each topic"
    )
    corpora.add_argument(
        "--retain", required=True, action="append", metavar="CORPUS", help="what to keep; once, or once for each topic"
    )
    corpora.add_argument(
        "--data", metavar="DIR", help="folder with corpora and datasets that are given by name, in place of the hub"
    )
    corpora.add_argument("--field", metavar="KEY", help="key of the text in a record (default text)")
    corpora.add_argument(
        "--min-chars", type=whole_number(least=0), metavar="N", help="skip documents of N characters or fewer"
    )
    corpora.add_argument(
        "--max-length", type=_wholes, metavar="N,...", help="most tokens of a forget document, per topic"
    )
    corpora.add_argument("--retain-max-length", type=whole_number(least=1), metavar="N", help="of a retain document")
    corpora.add_argument(
        "--raw-lines",
        type=_flags,
        metavar="yes|no,...",
        help="take forget files' lines as they are, JSON or not, per topic",
    )


def add_method(parser: argparse.ArgumentParser, *, swept: bool = False) -> None:
    """Adds the settings of RMU, those that a sweep varies only if it is none."""
    method = parser.add_argument_group("the method")
    method.add_argument(
        "--preset", metavar="NAME", help="published settings, e.g. zephyr-7b; other options override them"
    )
    if not swept:
        method.add_argument("--layer-id", type=whole_number(least=0), metavar="L", help="layer whose output is steered")
    method.add_argument("--update-layer-ids", type=whole_numbers, metavar="L,...", help="layers that are trained")
    method.add_argument(
        "--parameters", metavar="ROLE", help="what is trained in them: a role or a regex (default mlp.down_proj)"
    )
    if not swept:
        method.add_argument(
            "--steering-coeff", type=_coefficients, metavar="C,...", help="a number, auto or auto:FACTOR, per topic"
        )
        method.add_argument("--alpha", type=_numbers, metavar="A,...", help="weight of the retain loss, per topic")
    method.add_argument(
        "--mode", choices=("reference", "masked"), help="whether the loss counts padding, as the original's does"
    )
    method.add_argument("--retain-noise", type=finite_number, metavar="NU", help="noise on the retain target (RNA)")
    method.add_argument("--seed", type=int, metavar="N", help="of control vectors and noise")


def add_training(parser: argparse.ArgumentParser, *, swept: bool = False) -> None:
    """Adds the settings of the optimizer, what the model is loaded with, and the cache."""
    training = parser.add_argument_group("training")
    if not swept:
        training.add_argument("--learning-rate", type=finite_number, metavar="LR")
    training.add_argument(
        "--batch-size", type=whole_number(least=1), metavar="N", help="documents of each kind at once"
    )
    if not swept:
        training.add_argument(
            "--max-steps", type=whole_number(least=1), metavar="N", help="optimizer steps over all topics"
        )
    training.add_argument("--epochs", type=whole_number(least=1), metavar="N", help="times through the corpora at most")
    training.add_argument("--grad-accum", type=whole_number(least=1), metavar="N", help="batches that make a step")
    training.add_argument("--grad-clip", type=finite_number, metavar="NORM")
    training.add_argument("--master-weights", action="store_true", help="optimizer state and weights in float32")
    if not swept:
        training.add_argument(
            "--save-every", type=whole_number(least=0), metavar="N", help="steps between saved states"
        )
    training.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="default: the checkpoint's"
    )
    training.add_argument(
        "--save-dtype",
        choices=("auto", "checkpoint", "float32", "bfloat16", "float16"),
        help="of the changed tensors on disk (default auto: the checkpoint's, if that loses little of the change)",
    )
    training.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    training.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model on the hub")
    training.add_argument(
        "--cache-trunk", metavar="DIR", help="cache frozen activations in DIR, for later epochs and runs"
    )
    training.add_argument(
        "--cache-limit", type=finite_number, metavar="GB", help="most that DIR may hold (default no limit)"
    )
    training.add_argument("--trust-remote-code", action="store_true", help="let code that comes with the model run")


def settings(arguments: argparse.Namespace, *, swept: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of `RMUConfig` that were given, by a preset or by themselves, but for those that are swept."""
    given = vars(arguments)
    found = _preset(arguments.preset, len(arguments.forget)) if arguments.preset else {}
    return found | {name: given[name] for name in _SETTINGS if name in given and name not in swept}


def _preset(name: str, topics: int) -> dict[str, Any]:
    from wmdp_fast.unlearning.rmu.presets import PRESETS

    if name not in PRESETS:
        raise ValueError(f"there is no preset {name}; there are {', '.join(PRESETS)}")
    found: dict[str, Any] = PRESETS[name].for_topics(topics)
    return found


def one_or_more(values: list[Any]) -> Any:
    """One value stands for all topics."""
    return values[0] if len(values) == 1 else tuple(values)


def _wholes(text: str) -> Any:
    return one_or_more(list(whole_numbers(text)))


def _numbers(text: str) -> Any:
    try:
        return one_or_more([finite_number(part) for part in text.split(",")])
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number or a comma-separated list of them") from None


def coefficient(text: str) -> float | str:
    """The argparse type of a steering coefficient: a finite number, `auto`, or `auto:` and such a number."""
    if text in ("auto", "auto:"):
        return text
    number = finite_number(text.removeprefix("auto:"))
    return text if text.startswith("auto:") else number


def _coefficients(text: str) -> Any:
    return one_or_more([coefficient(part.strip()) for part in text.split(",")])


def _flags(text: str) -> Any:
    values = {"yes": True, "no": False}
    parts = [part.strip() for part in text.split(",")]
    if any(part not in values for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not yes or no, or a comma-separated list of these")
    return one_or_more([values[part] for part in parts])
