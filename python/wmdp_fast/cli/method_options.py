"""The options that `unlearn` and `sweep` share: the method and its settings.

Settings are the fields of the method's configuration, and their options are made from these: an option for each field
that every method has, and a group for each method with the fields of its own. What is not given stays away, and keeps
the preset's value or the default.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from wmdp_fast.cli.field_types import FieldType, field_help, field_types
from wmdp_fast.cli.options import finite_number, positive_number, whole_number
from wmdp_fast.runtime.own_code import FORM
from wmdp_fast.unlearning.methods.catalog import DEFAULT, METHODS, config_class, preset_of, spelled
from wmdp_fast.unlearning.training_config import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    # The argparse type of a setting that a sweep may vary, by how a single value is read.
    Axis = Callable[[FieldType], Callable[[str], Any]]

# Fields that say how corpora are read; the others that all methods have say how is trained.
_OF_CORPORA = ("field", "min_chars", "max_length", "retain_max_length", "raw_lines", "chat_template")


def add_settings(parser: argparse.ArgumentParser, *, axis: Axis | None = None) -> None:
    """Adds corpora, method, training and the settings of each method.

    Args:
        parser: The command's.
        axis: Of a sweep, how the options of what can be swept are read.
    """
    configs = {name: config_class(name) for name in METHODS}
    everyone: dict[str, type[Any]] = {"all": TrainingConfig, **configs}
    swept = {one.name for config in configs.values() for one in config.search_axes} if axis else set()
    common = [one.name for one in dataclasses.fields(TrainingConfig)]

    def add(group: argparse._ArgumentGroup, names: Iterable[str], owners: Mapping[str, type[Any]]) -> None:
        for name in names:
            if axis and name == "save_every":
                continue
            _add_field(group, name, owners, axis if name in swept else None)

    corpora = parser.add_argument_group("corpora")
    _add_corpora(corpora)
    add(corpora, _OF_CORPORA, everyone)
    _add_choice(parser.add_argument_group("the method"))
    training = parser.add_argument_group("training")
    add(training, [name for name in common if name not in _OF_CORPORA], everyone)
    _add_loading(training)
    for owners, names in _own_fields(configs, common).items():
        group = parser.add_argument_group(f"settings of {', '.join(owners)}")
        add(group, names, {owner: configs[owner] for owner in owners})


def add_budget(group: argparse._ArgumentGroup) -> None:
    """Adds how far a run may go from the original model."""
    group.add_argument(
        "--max-kl",
        type=positive_number,
        metavar="NATS",
        help="end once KL(original || model) on general text lies above so many nats per token, and go back to the last"
        " step within",
    )
    group.add_argument(
        "--kl-text", metavar="FILE", help="text for --max-kl, none of the corpora (default one that comes with this)"
    )
    group.add_argument(
        "--kl-every", type=whole_number(least=1), metavar="N", help="steps between its measurements (default 5)"
    )


def chosen(arguments: argparse.Namespace) -> type[TrainingConfig]:
    """The configuration's class of the method that was asked for.

    Raises:
        ValueError: There is none, or it cannot be loaded.
    """
    return config_class(arguments.method)


def config_of(
    arguments: argparse.Namespace, *, but: Iterable[str] = (), more: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """The configuration as it was asked for: a preset, then options, then `--set`.

    Args:
        arguments: What was given.
        but: Settings that are left at their default, for they are swept.
        more: Settings that were read elsewhere.

    Raises:
        ValueError: A setting is not the method's, which is named that has it; or is impossible.
    """
    config = chosen(arguments)
    given = vars(arguments)
    refuse_foreign(arguments, config)
    found: dict[str, Any] = {}
    if arguments.preset is not None:
        found |= preset_of(arguments.method, arguments.preset).for_topics(len(arguments.forget))
    left_out = set(but)
    names = [one.name for one in dataclasses.fields(config) if one.name not in left_out]
    found |= {name: given[name] for name in names if name in given}
    found |= _set_by_name(arguments, config, left_out)
    return config(**{name: value for name, value in {**found, **(more or {})}.items() if name not in left_out})


def refuse_foreign(arguments: argparse.Namespace, config: type[TrainingConfig]) -> None:
    """Raises ValueError if an option was given that is a setting of other methods only; names them."""
    own = {one.name for one in dataclasses.fields(config)}
    for name in vars(arguments):
        owners = [key for key in METHODS if name in {one.name for one in dataclasses.fields(config_class(key))}]
        if owners and name not in own:
            raise ValueError(
                f"--{name.replace('_', '-')} is a setting of {' and '.join(owners)}, and the method is"
                f" {arguments.method}, which has {_options(config)}"
            )


def set_texts(arguments: argparse.Namespace, config: type[TrainingConfig]) -> dict[str, str]:
    """What stands behind the names of `--set`, as it was written.

    Raises:
        ValueError: There is no such setting; names those there are.
    """
    known = [one.name for one in dataclasses.fields(config)]
    found = {}
    for pair in getattr(arguments, "set", ()):
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ValueError(f"--set {pair}: write NAME=VALUE")
        if name not in known:
            raise ValueError(f"--set {pair}: {arguments.method} has no setting {name}; it has {', '.join(known)}")
        found[name] = text.strip()
    return found


def types_of(config: type[TrainingConfig]) -> dict[str, FieldType]:
    """`field_types`, whose complaint of a type is the fault of whoever wrote the method.

    Raises:
        ValueError: The type of a field is not known.
    """
    try:
        return field_types(config)
    except NameError as error:
        raise ValueError(f"the settings of {config.__name__} cannot be read from text: {error}") from None


def _set_by_name(arguments: argparse.Namespace, config: type[TrainingConfig], left_out: set[str]) -> dict[str, Any]:
    """The settings that were given with `--set`, but for some.

    Raises:
        ValueError: There is no such setting, or its value is none; says which there are, or what is expected.
    """
    found = {}
    for name, text in set_texts(arguments, config).items():
        if name in left_out:
            continue
        try:
            found[name] = types_of(config)[name].parse(text)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--set {name}: {error}") from None
    return found


def _add_corpora(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--forget", required=True, action="append", metavar="CORPUS", help="what to unlearn; once for each topic"
    )
    group.add_argument(
        "--retain", required=True, action="append", metavar="CORPUS", help="what to keep; once, or once for each topic"
    )
    group.add_argument(
        "--data", metavar="DIR", help="folder with corpora and datasets that are given by name, in place of the hub"
    )


def _add_choice(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--method",
        type=spelled,
        default=DEFAULT,
        metavar="NAME",
        help=f"{', '.join(METHODS)}, or {FORM} for one of your own (default {DEFAULT}; `wmdp-fast methods` lists them)",
    )
    group.add_argument(
        "--preset",
        default=None,
        metavar="NAME",
        help="published settings of the method, e.g. zephyr-7b; other options override them",
    )
    group.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="any setting of the method by its name in Python, for what has no option: those of your own method",
    )


def _add_loading(group: argparse._ArgumentGroup) -> None:
    """Adds what a model is loaded with, and the cache."""
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    group.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model on the hub")
    group.add_argument(
        "--cache-trunk", metavar="DIR", help="cache frozen activations in DIR, for later epochs and runs"
    )
    group.add_argument(
        "--cache-limit", type=finite_number, metavar="GB", help="most that DIR may hold (default no limit)"
    )
    group.add_argument("--trust-remote-code", action="store_true", help="let code that comes with the model run")


def _own_fields(configs: Mapping[str, type[TrainingConfig]], common: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """The fields that not all methods have, by the methods that have them, in the order of the methods."""
    owners: dict[str, tuple[str, ...]] = {}
    for name, config in configs.items():
        for one in dataclasses.fields(config):
            owners[one.name] = (*owners.get(one.name, ()), name)
    found: dict[tuple[str, ...], list[str]] = {}
    for field in owners:
        if field not in common:
            found.setdefault(owners[field], []).append(field)
    return found


def _add_field(group: argparse._ArgumentGroup, name: str, owners: Mapping[str, type[Any]], axis: Axis | None) -> None:
    """Adds the option of a field that some methods have."""
    config = next(iter(owners.values()))
    kind, told = field_types(config)[name], field_help(config).get(name, "")
    option = f"--{name.replace('_', '-')}"
    defaults = {repr(getattr(one, "default", None)) for one in (_field(owner, name) for owner in owners.values())}
    text = told.replace("%", "%%")
    if len(defaults) == 1 and (default := _field(config, name).default) is not None:
        text += f" (default {_word(default)})"
    if axis is not None:
        group.add_argument(option, type=axis(kind), metavar=f"{kind.metavar.removesuffix(',...')},...", help=text)
    elif kind.is_flag:
        group.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
    elif kind.choices is not None and not kind.optional:
        group.add_argument(option, choices=kind.choices, help=text)
    else:
        group.add_argument(option, type=kind.parse, metavar=kind.metavar, help=text)


def _field(config: type[Any], name: str) -> dataclasses.Field[Any]:
    return next(one for one in dataclasses.fields(config) if one.name == name)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _options(config: type[TrainingConfig]) -> str:
    """The options of a method's own settings, for messages."""
    common = {one.name for one in dataclasses.fields(TrainingConfig)}
    own = [f"--{one.name.replace('_', '-')}" for one in dataclasses.fields(config) if one.name not in common]
    return ", ".join(own) or "no settings of its own"
