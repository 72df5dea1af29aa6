"""Weights as transformers reads them, and its report of what it did not find.

Where a checkpoint lacks a weight, transformers makes a random one and says so in a log line: the model then runs, with
numbers that mean nothing and differ from run to run. Here that is an error that names the weights.

Loading runs much code of others on files of others, which fails in every way there is; `failures_as` makes one of each.

Importing this imports no torch: a tokenizer is read before that.
"""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.weight_files import CONFIG, read_json, shown
from wmdp_fast.exceptions import ModelError, WmdpFastError, WmdpFastWarning
from wmdp_fast.models.threads import loading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

_MOST_NAMED = 4

# No model has as many of anything that takes time to build; a configuration that says so would never be done.
_MOST_PARTS = 20_000
_PARTS = re.compile(r"layer|block|expert|depth")
# How transformers calls models that give scores, labels or vectors in place of the next token.
_OTHER_HEADS = re.compile(
    r"(For(Sequence|Token)Classification|ForQuestionAnswering|ForMultipleChoice|ForMaskedLM|Reward\w*|ValueHead"
    r"|(?<!LMHead)(?<!Heads)Model)$"
)
# What quantized weights are to be multiplied by, or counted from: of FP8 and integers, of bitsandbytes.
_SCALES = re.compile(
    r"(?P<weight>.+\.weight)(_scale(_inv|_2)?|_scales|_global_scale|_zero_point|\.absmax|\.quant_map|\.quant_state\..+)"
    r"|(?P<module>.+)\.SCB"
)
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def read_pretrained(
    auto_class: Any, where: str, *, allow_missing: bool = False, part: bool = False, **arguments: Any
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """Loads a model from safetensors files by one of transformers' auto classes.

    Weights that are tied to others, and those that the model's class declares not to need, are not missing.

    Args:
        auto_class: `AutoModelForCausalLM` or another.
        where: Folder, or name on the hub.
        allow_missing: Whether weights may be missing; they are random then.
        part: Whether only a part of what the files hold is read on purpose.
        arguments: More for `from_pretrained`.

    Returns:
        The model, the names of missing weights, and those of the files' tensors that have no place in it, sorted.

    Raises:
        ModelError: It cannot be loaded, or weights are missing or have another shape than `config.json` says.
    """
    import torch

    from wmdp_fast.models.configurations import return_objects

    lines: list[str] = []
    with failures_as(ModelError, f"{where} cannot be loaded"), _without_report(lines):
        try:
            with loading():
                model, info = auto_class.from_pretrained(
                    where, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **arguments
                )
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{where} does not fit into memory: try dtype bfloat16, or device cpu") from error
        except RuntimeError as error:
            if not lines:
                raise
            # Transformers builds these of several tensors of the files, as the experts of a mixture.
            raise ModelError(
                f"{where} lacks parts of {named(lines)}, or has them in other shapes than {CONFIG} says; copy or"
                f" download the checkpoint again, or correct {CONFIG}"
            ) from error
    missing, unexpected = check_weights(where, type(model).__name__, info, allow_missing=allow_missing, part=part)
    loaded: PreTrainedModel = model
    return_objects(loaded)
    return loaded, missing, unexpected


def check_weights(
    where: str, model: str, info: Mapping[str, Any], *, allow_missing: bool = False, part: bool = False
) -> tuple[list[str], list[str]]:
    """Looks through what transformers says of the weights that it has loaded.

    Args:
        where: Folder, or name on the hub.
        model: The class of the model.
        info: Its `missing_keys`, `unexpected_keys` and `mismatched_keys`.
        allow_missing: As `read_pretrained`.
        part: As `read_pretrained`.

    Returns:
        The names of missing weights, and those of the files' tensors that have no place in the model, sorted.

    Raises:
        ModelError: Weights are missing, have another shape than `config.json` says, or are quantized in a way that it
            does not say.
    """
    if info["mismatched_keys"]:
        name, stored, wanted = min(info["mismatched_keys"])
        raise ModelError(
            f"{where}: weights do not fit {CONFIG}: {named([key for key, *_ in info['mismatched_keys']])}. {name} is"
            f" {_shape(stored)}, where {model} by {CONFIG} has {_shape(wanted)}"
        )
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing and not allow_missing:
        surplus = (
            f" There is no place for {named(unexpected)}, which may be their names." if unexpected and not part else ""
        )
        raise ModelError(
            f"{where} lacks weights of {model}, which would be random: {named(missing)}.{surplus} Copy"
            f" or download the checkpoint again, or correct {CONFIG}"
        )
    _refuse_unscaled(where, model, missing, unexpected)
    return missing, unexpected


def _refuse_unscaled(where: str, model: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Raises ModelError if weights were read whose scales have no place: they are codes, not numbers."""
    for name in unexpected:
        found = _SCALES.fullmatch(name)
        weight = found and (found["weight"] or f"{found['module']}.weight")
        if weight and weight not in missing and weight not in unexpected:
            raise ModelError(
                f"{where} is quantized, but {weight} would be read without what it is to be multiplied by"
                f" ({named([name])}), for which {model} has no place. {CONFIG} must have a quantization_config that"
                " this version of transformers knows; or take the model before it was quantized"
            )


def about_missing(missing: Sequence[str]) -> list[str]:
    """What a run with random weights says of itself."""
    return [f"weights are missing and random, so the numbers mean little: {named(missing)}"] if missing else []


def about_unexpected(unexpected: Sequence[str]) -> list[str]:
    """What a run says of tensors that were not read."""
    what = "the checkpoint has weights for which the model has no place; they are not used"
    return [f"{what}: {named(unexpected)}"] if unexpected else []


def about_architecture(folder: Path, model: str) -> list[str]:
    """What a run says of a checkpoint that was saved as something else than a language model.

    Where the head is tied to the embedding it loads all the same: nothing is missing.

    Args:
        folder: Where its configuration is.
        model: The class that it was loaded as.
    """
    listed = read_json(folder / CONFIG).get("architectures")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if not names or model in names or not all(_OTHER_HEADS.search(name) for name in names):
        return []
    return [
        f"{CONFIG} says that the checkpoint is a {shown(', '.join(names))}, which has no head of a language model; it"
        f" is scored as {model}"
    ]


def about_quantization(folder: Path, model: Any) -> list[str]:
    """What a run says of a quantized checkpoint whose weights it has without their quantization.

    Transformers does so where it lacks what runs them (FP8 and MXFP4 on a CPU), and where it does not know the method.

    Args:
        folder: Where its configuration is.
        model: The model, without an adapter.
    """
    content = read_json(folder / CONFIG)
    parts = [content, content.get("text_config")]
    wanted = next((one["quantization_config"] for one in parts if isinstance(one, dict) and _quantized(one)), None)
    if wanted is None or getattr(model, "hf_quantizer", None) is not None:
        return []
    method = shown(wanted.get("quant_method"))
    if getattr(model.config, "quantization_config", None) is not None:
        return [
            f"{CONFIG} says that the weights are quantized ({method}), which transformers knows nothing of: they are"
            " taken as they stand in the files"
        ]
    dtype = str(model.dtype).removeprefix("torch.")
    return [
        f"the checkpoint is quantized ({method}), which is not run here: its weights are taken back to {dtype}, so that"
        " numbers are not those of the quantized model where that also rounds activations"
    ]


def _quantized(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("quantization_config"), dict)


def check_config(folder: Path, where: str, source: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a model, read before its tokenizer, which would be blamed for what is wrong with it.

    Args:
        folder: Where its file is.
        where: Folder, or name on the hub.
        source: More for transformers, such as the `revision`.

    Raises:
        ModelError: It cannot be read, is that of an encoder with a decoder, or asks for no layers, or for so many that
            building them would not end.
    """
    from transformers import AutoConfig

    content = read_json(folder / CONFIG)
    for part in (content, content.get("text_config")):
        if not isinstance(part, dict):
            continue
        for name, value in part.items():
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            if (name in _LAYERS and value < 1) or (_PARTS.search(name) and value > _MOST_PARTS):
                raise ModelError(f"{folder / CONFIG}: {name} is {shown(value)}, which no model has")
    with failures_as(ModelError, f"{folder / CONFIG} cannot be used"):
        config: PretrainedConfig = AutoConfig.from_pretrained(where, **source)
    # Of some, such as BART, transformers would take the decoder alone for a language model, without a word.
    if config.is_encoder_decoder:
        raise ModelError(
            f"{where} is an encoder-decoder model ({config.model_type}), and only decoders by themselves are"
            " scored here; lm-eval takes it"
        )
    return config


@contextmanager
def failures_as(error_class: type[WmdpFastError], what: str) -> Iterator[None]:
    """Inside, whatever a library raises becomes one error in a line: `what`, and why.

    A panic of a library in Rust is no `Exception`, but a failure like others. Our own errors pass through.

    Args:
        error_class: What to raise.
        what: What could not be done, naming the folder.
    """
    try:
        yield
    except WmdpFastError:
        raise
    except Exception as error:
        raise error_class(f"{what}: {reason(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise error_class(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an exception of another library says, in one line of bounded length."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs Python code that comes with it: pass trust_remote_code (--trust-remote-code) if you trust it"
    if not text or isinstance(error, (KeyError, AttributeError, TypeError, IndexError, AssertionError, RecursionError)):
        text = f"{type(error).__name__} {text}".strip()
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 400 else f"{text[:397]}..."


@contextmanager
def warnings_as_ours(heard: list[str]) -> Iterator[None]:
    """Inside, warnings of other libraries are gathered, in one line each; what is to change in their future is not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        if issubclass(one.category, WmdpFastWarning):
            warnings.warn(one.message, stacklevel=3)
        elif issubclass(one.category, ResourceWarning):
            # Comes when Python collects garbage, which may be that of whatever ran before: it is passed on as it is.
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)
        elif not issubclass(one.category, (FutureWarning, DeprecationWarning, PendingDeprecationWarning)):
            heard.append(" ".join(str(one.message).split()))


@contextmanager
def without_progress() -> Iterator[None]:
    """Inside, transformers shows no bar over the tensors that it loads."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _without_report(lines: list[str]) -> Iterator[None]:
    """Keeps transformers' table of missing and surplus weights from the log; of failed conversions it is the reason."""

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return True
        lines.extend(line.split("|")[0].strip() for line in text.splitlines() if "| CONVERSION" in _plain(line))
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def named(names: Sequence[str]) -> str:
    """The first of some names from a file, escaped, and how many more there are."""
    shortened = [name if len(name) <= 100 else f"{name[:97]}..." for name in sorted(names)[:_MOST_NAMED]]
    rest = len(names) - len(shortened)
    return ", ".join(ascii(name)[1:-1] for name in shortened) + (f" and {rest} more" if rest else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape) or "a number"
