"""`wmdp-fast eval`: scores a model. Each option is the parameter of that name of `wmdp_fast.evaluate`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.read_ahead import reading_ahead
from wmdp_fast.cli import devices, failures
from wmdp_fast.cli.asking import add_selection, add_wording
from wmdp_fast.cli.options import positive_number, whole_number, whole_number_or_auto
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.results.letters import OneLetterWarning
from wmdp_fast.results.saved import SavedResults
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.clock import timings_table
from wmdp_fast.runtime.ranks import place_of_process
from wmdp_fast.scoring.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wmdp_fast.results.result import EvalResult
    from wmdp_fast.several_models import ModelSpec, ScoredModel

SUMMARY = "Score a model on tasks or question files."

# Ways to name several models.
_SEVERAL = ("revisions", "adapters", "deltas", "checkpoints")

# What `run` takes itself; everything else goes to `evaluate` by its name.
_OWN = frozenset({"models", "devices", "given", "json", "quiet", "run", "fail", "show_prompts", "timings", *_SEVERAL})

# What does not change how prompts are made, and so is not for `rendered_prompts`.
_OF_SCORING = frozenset(
    {"dtype", "device", "peft", "allow_missing", "score_mode", "engine", "token_budget", "log_samples", "resume"}
    | {"memory", "stream", "shards"}
)

# The engines that are servers, with the address that such a server has by itself.
_SERVED = {"openai": None, "vllm": "http://localhost:8000/v1"}

# What goes to `Server`: by option, the name of its attribute.
_OF_SERVER = {
    "base_url": "base_url",
    "top_logprobs": "top_logprobs",
    "missing_letters": "missing",
    "concurrency": "concurrency",
    "timeout": "timeout",
    "retries": "retries",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast eval`. What is not given stays away: the defaults are those of `evaluate`."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "models",
        nargs="*",
        default=[],
        metavar="MODEL",
        help="a folder, a name on the Hugging Face hub, either with +DELTA.safetensors behind it (what unlearning has"
        " changed), or with a server its name there; several are scored one after the other",
    )

    _add_what(parser.add_argument_group("what to ask"))
    _add_how(parser.add_argument_group("how to ask it"))
    _add_model(parser.add_argument_group("the model"))
    _add_server(parser.add_argument_group("a model that is served (--engine openai or vllm)"))
    _add_output(parser.add_argument_group("output"))
    parser.set_defaults(json=False, quiet=False, timings=False, fail=parser.error)


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tasks", action="append", metavar="NAMES", help="tasks, groups or files, separated by commas")
    group.add_argument(
        "--text",
        action="append",
        metavar="FILE",
        help="a held-out text (.jsonl, .parquet, .txt) to measure perplexity on; once for each",
    )
    group.add_argument("--text-field", metavar="KEY", help="key of a document in a record of it (default text)")
    group.add_argument("--data", metavar="DIR", help="folder with the datasets, in place of the hub")
    add_selection(group)


def _add_how(group: argparse._ArgumentGroup) -> None:
    add_wording(group)
    group.add_argument(
        "--permute-choices",
        choices=("cyclic", "all"),
        help="ask again with the choices in other orders, and report what that changes",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model on the hub")
    group.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="default: the checkpoint's")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    group.add_argument(
        "--devices",
        metavar="DS",
        help="score on several, a process on each: all (GPUs), a number of GPUs, cuda:0,cuda:1 or cpu:2",
    )
    group.add_argument(
        "--parallel",
        choices=("fsdp", "tp"),
        help="with --devices or torchrun: hold one model together that is too large for a device",
    )
    group.add_argument("--peft", metavar="ADAPTER", help="PEFT adapter to put on the model")
    group.add_argument("--revisions", metavar="A,B", help="several revisions of one model, one after the other")
    group.add_argument("--adapters", metavar="A,B", help="several PEFT adapters on one model, one after the other")
    group.add_argument(
        "--deltas",
        metavar="A,B",
        help="several sets of changed tensors of unlearning one model, one after the other",
    )
    group.add_argument(
        "--checkpoints", metavar="DIR", help="all folders checkpoint-N of a training run, in the order of their steps"
    )
    group.add_argument(
        "--max-length",
        type=whole_number(least=1),
        metavar="N",
        help="maximum sequence length (default: the model's)",
    )
    group.add_argument("--trust-remote-code", action="store_true", help="let code that comes with the model run")
    group.add_argument(
        "--allow-missing", action="store_true", help="go on if the checkpoint lacks weights, with random ones"
    )
    group.add_argument(
        "--score-mode",
        choices=("float32", "model"),
        help="precision of log-probabilities; `model` rounds to the model's as lm-eval does (default float32)",
    )
    group.add_argument(
        "--engine",
        choices=("auto", "trie", "padded", *_SERVED),
        help="how to score: by token trie, on padded rows, or auto: by trie if the model can (default auto); or by a"
        " server that speaks OpenAI's protocol, or vLLM's",
    )
    group.add_argument(
        "--tokenizer",
        metavar="T",
        help="folder or hub name of another tokenizer than the model's own; with --engine openai, tokens are then sent",
    )
    group.add_argument(
        "--token-budget",
        type=whole_number_or_auto,
        metavar="N",
        help="maximum tokens per batch, or auto (default auto)",
    )
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory to take, such as 16GB: a model that needs more is streamed, a layer at a time (default: what is"
        " free); on a CPU that of all --devices",
    )
    group.add_argument("--stream", action="store_true", help="stream the model even if it fits")
    group.add_argument(
        "--shards",
        type=whole_number(least=1),
        metavar="S",
        help="score in S parts: with the same S, scores are the same to the bit however many processes score"
        " (default: one part for each)",
    )


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--base-url", metavar="URL", help="where, such as http://localhost:8000/v1 (the default for vllm)"
    )
    group.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable that holds the key (default OPENAI_API_KEY, if there is one)",
    )
    group.add_argument(
        "--concurrency", type=whole_number(least=1), metavar="N", help="maximum concurrent requests (default 32)"
    )
    group.add_argument(
        "--top-logprobs",
        type=whole_number(least=1),
        metavar="N",
        help="how many of the likeliest tokens to ask for (default 20)",
    )
    group.add_argument(
        "--missing-letters",
        choices=("error", "bound", "ask"),
        help="about a letter that is not among those: stop, take their least log-probability, or ask for it by itself"
        " (default error; for vllm ask)",
    )
    group.add_argument(
        "--timeout", type=positive_number, metavar="S", help="seconds that an answer may take (default 120)"
    )
    group.add_argument(
        "--retries",
        type=whole_number(least=0),
        metavar="N",
        help="how often to ask again after 408, 429, 5xx, silence or a cut connection (default 6)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output", metavar="DIR", help="save results here, in lm-eval's format")
    group.add_argument("--log-samples", action="store_true", help="save every question with its scores too")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from where the same run with the same --output was stopped, or read it back if it is finished; of"
        " several models, score the rest",
    )
    group.add_argument(
        "--show-prompts",
        type=whole_number(least=1),
        metavar="N",
        help="score nothing, but print the first N prompts of each task with their continuations and tokens; needs no"
        " weights, only config.json and the tokenizer",
    )
    group.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    group.add_argument("--timings", action="store_true", help="say on stderr where the time went")
    group.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates, prints and saves."""
    _check(arguments)
    if hasattr(arguments, "devices"):
        _check_devices(arguments)
        return devices.run(arguments.devices, arguments.given)
    if arguments.quiet or place_of_process().rank > 0:
        # transformers and huggingface_hub read it when they are imported, which has not happened yet.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    options = {name: value for name, value in vars(arguments).items() if name not in _OWN}
    if hasattr(arguments, "show_prompts"):
        return _show_prompts(arguments, options)
    server = _take_server(arguments, options)
    if server is not None:
        return _evaluate(server, arguments, options)
    if len(arguments.models) > 1 or any(hasattr(arguments, name) for name in _SEVERAL):
        if place_of_process().size > 1 or "shards" in options:
            arguments.fail("several models are scored by one process and without --shards: name one MODEL")
        return _evaluate_many(arguments, options)
    model = _one_model(arguments)
    if "memory" in options or "stream" in options or options.get("resume"):
        # Files are read as their turn comes, or need not be if the run is finished.
        return _evaluate(model, arguments, options)
    with reading_ahead(model, revision=options.get("revision"), peft=options.get("peft")):
        return _evaluate(model, arguments, options)


def _check(arguments: argparse.Namespace) -> None:
    """Ends with usage for options that need or exclude each other."""
    if not (hasattr(arguments, "tasks") or hasattr(arguments, "text")):
        arguments.fail("the following arguments are required: --tasks, or --text for perplexity alone")
    if hasattr(arguments, "text_field") and not hasattr(arguments, "text"):
        arguments.fail("--text-field is of the files of --text")
    for needing in ("log_samples", "resume"):
        if hasattr(arguments, needing) and not hasattr(arguments, "output"):
            arguments.fail(f"--{needing.replace('_', '-')} needs --output")
    if hasattr(arguments, "show_prompts") or getattr(arguments, "engine", None) in _SERVED:
        for way in _SEVERAL:
            if hasattr(arguments, way):
                arguments.fail(f"--{way} is for models that are loaded and scored here")


def _check_devices(arguments: argparse.Namespace) -> None:
    """Ends with usage for what is not done on several devices."""
    for name in ("device", "show_prompts", "allow_missing", *_SEVERAL):
        if hasattr(arguments, name):
            arguments.fail(f"--devices and --{name.replace('_', '-')} exclude each other")
    if getattr(arguments, "engine", None) in _SERVED:
        arguments.fail("--devices is for a model that is loaded and scored here")
    _one_model(arguments)


def _evaluate(model: str | Server, arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from wmdp_fast.evaluation import evaluate

    with _not_said_twice(arguments):
        result: EvalResult | SavedResults = evaluate(model, **options, progress=not arguments.quiet)
    if place_of_process().rank == 0:
        report(result, as_json=arguments.json)
        _notes(result, arguments)
    return 0


@contextlib.contextmanager
def _not_said_twice(arguments: argparse.Namespace) -> Iterator[None]:
    """Inside, what stands below a table is not warned of too: there it goes where the numbers go. JSON has no table."""
    with warnings.catch_warnings():
        if not arguments.json:
            warnings.simplefilter("ignore", OneLetterWarning)
        yield


def _evaluate_many(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    """Scores several models; exit code 1 if one of them failed."""
    from wmdp_fast.several_models import evaluate_many, models_table

    every = []
    with _not_said_twice(arguments):
        for scored in evaluate_many(_specs(arguments, options), **options, progress=not arguments.quiet):
            every.append(scored)
            if scored.result is not None:
                if not arguments.json:
                    print(f"{scored.spec}\n{scored.result.table()}\n", flush=True)
                _notes(scored.result, arguments, several=True)
    if arguments.json:
        found = [{"model": str(one.spec), **_contents(one)} for one in every]
        print(strict_json.dumps(found, indent=2, ensure_ascii=False, default=str))
    elif table := models_table(every):
        print(table)
    sys.stdout.flush()
    failed = [one for one in every if one.error is not None]
    for one in failed:
        print(f"error: {one.spec}: {_failure(one.error)['error']}", file=sys.stderr)
    return 1 if failed else 0


def _contents(scored: ScoredModel) -> dict[str, Any]:
    """What a results file has of a model, or why it failed."""
    if scored.result is None:
        return _failure(scored.error)
    return _raw(scored.result)


def _failure(error: Exception | None) -> dict[str, str]:
    return {} if error is None else {"error": failures.line(error)}


def _specs(arguments: argparse.Namespace, options: dict[str, Any]) -> list[ModelSpec]:
    """The models that are named, in one of five ways."""
    from wmdp_fast.several_models import ModelSpec, checkpoints_of

    ways = [name for name in _SEVERAL if hasattr(arguments, name)]
    if len(ways) > 1 or (ways and len(arguments.models) > 1):
        arguments.fail(
            "several models are named in one way: as MODELs, or by --revisions, --adapters, --deltas or --checkpoints"
        )
    if not ways:
        return [ModelSpec(model) for model in arguments.models]
    [way] = ways
    single = {"revisions": "revision", "adapters": "peft"}.get(way)
    if single in options:
        arguments.fail(f"--{way} is in place of --{single}")
    if way == "checkpoints":
        return checkpoints_of(arguments.checkpoints, *arguments.models)
    model = _one_model(arguments)
    names = [name.strip() for name in getattr(arguments, way).split(",") if name.strip()]
    if way == "deltas":
        return [ModelSpec(f"{model}+{name}") for name in names]
    return [ModelSpec(model, revision=name) if way == "revisions" else ModelSpec(model, peft=name) for name in names]


def _one_model(arguments: argparse.Namespace) -> str:
    if len(arguments.models) != 1:
        arguments.fail("the following arguments are required: MODEL" if not arguments.models else "only one MODEL here")
    return str(arguments.models[0])


def _notes(result: EvalResult | SavedResults, arguments: argparse.Namespace, *, several: bool = False) -> None:
    """What is said on stderr of a result."""
    if isinstance(result, SavedResults):
        # What was said when the model was scored holds of its numbers still.
        below = [] if arguments.json else result.letter_notes()
        for warning in result.warnings:
            if warning not in below:
                warnings.warn(warning, WmdpFastWarning, stacklevel=2)
        if not arguments.quiet:
            print(f"finished before, read from: {result.path}", file=sys.stderr)
        return
    if arguments.timings:
        print(timings_table(result.timings, None if several else result.started), file=sys.stderr)
        if (trunk := result.details.get("shared_trunk")) is not None:
            print(_about_trunk(trunk), file=sys.stderr)
    if result.saved_to is not None and not arguments.quiet:
        print(f"results: {result.saved_to}", file=sys.stderr)


def _about_trunk(trunk: Mapping[str, Any]) -> str:
    """What became of the lower layers that a model seems to share with its neighbors."""
    layers = f"layers 0 to {trunk['layers'] - 1}"
    if trunk["states"] is None:
        return f"{layers} look like a neighbor's, and were run all the same: {trunk['why_not']}"
    what = {"kept": "was kept for the next model", "taken": "is that of a model before"}[trunk["states"]]
    return f"{layers}: their output ({trunk['bytes'] / 1e6:.1f} MB) {what}"


def _show_prompts(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from wmdp_fast.cli import prompts

    if hasattr(arguments, "text"):
        arguments.fail("--show-prompts is for tasks: a text of --text is read as it stands; leave it out")
    if hasattr(arguments, "output"):
        arguments.fail("--show-prompts scores nothing that could be saved; leave --output out")
    if options.get("engine") in _SERVED:
        arguments.fail(
            "--show-prompts needs the tokenizer of a served model: name the folder, or the hub name, that has it and"
            f" config.json as MODEL, and leave --engine {options['engine']} and what belongs to it out"
        )
    _take_server(arguments, options)
    asking = {name: value for name, value in options.items() if name not in _OF_SCORING}
    from wmdp_fast.evaluation import rendered_prompts

    found = rendered_prompts(_one_model(arguments), count=arguments.show_prompts, **asking)
    print(prompts.as_json(found) if arguments.json else prompts.as_text(found))
    return 0


def _take_server(arguments: argparse.Namespace, options: dict[str, Any]) -> Server | None:
    """The server to ask, if one is to be asked; takes what describes it out of `options`."""
    given = {name: options.pop(name) for name in (*_OF_SERVER, "api_key_env") if name in options}
    if options.get("engine") not in _SERVED:
        for name in given:
            arguments.fail(f"--{name.replace('_', '-')} is for a model that is served: --engine openai or vllm")
        return None
    engine = options.pop("engine")
    variable = given.pop("api_key_env", None)
    if variable is not None and variable not in os.environ:
        arguments.fail(f"--api-key-env: there is no environment variable {variable}")
    if "base_url" not in given and _SERVED[engine] is None:
        arguments.fail(f"--engine {engine} needs --base-url, such as http://localhost:8000/v1")
    return Server(
        model=_one_model(arguments),
        protocol=engine,
        api_key=os.environ.get(variable or "OPENAI_API_KEY") or None,
        **{"base_url": _SERVED[engine], **{_OF_SERVER[name]: value for name, value in given.items()}},
    )


def report(result: EvalResult | SavedResults, *, as_json: bool) -> None:
    """Prints a result on stdout, as a table or in lm-eval's JSON."""
    print(strict_json.dumps(_raw(result), indent=2, ensure_ascii=False, default=str) if as_json else result.table())


def _raw(result: EvalResult | SavedResults) -> dict[str, Any]:
    """What a results file has."""
    return dict(result.raw) if isinstance(result, SavedResults) else result.to_json()
