"""`wmdp-fast attack`: how much of what a model has unlearned comes back, and to whom."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.read_ahead import reading_ahead
from wmdp_fast.cli.asking import add_selection, add_wording, asked
from wmdp_fast.cli.options import finite_number, limit, whole_number
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.own_code import FORM
from wmdp_fast.runtime.tables import in_columns
from wmdp_fast.scoring.server import Server

if TYPE_CHECKING:
    from collections.abc import Mapping

SUMMARY = "Attack a model that has unlearned something, and say how much comes back."

_PASSED = (
    "tasks", "base", "never_learned", "attacks", "budget", "utility", "utility_text", "utility_limit", "slack",
    "utility_keyword", "general_text", "near_text", "write", "write_tokens", "lm_eval_tasks",
    "mt_bench_questions",
    "mt_bench_references", "judge_prompts", "forget", "related", "unrelated", "output", "card", "controls", "seed",
    "tokenizer", "revision", "peft", "dtype", "device", "devices", "trust_remote_code", "engine", "data",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast attack`. What is not given stays away: the defaults are those of the function."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="the unlearned model: a folder, a name on the hub, or BASE+DELTA.safetensors",
    )
    parser.add_argument("--list", action="store_true", default=False, help="list the attacks")
    parser.add_argument("--base", metavar="MODEL", help="the model before unlearning, the control of every attack")
    parser.add_argument("--never-learned", metavar="MODEL", help="a model that never had the knowledge")

    questions = parser.add_argument_group("what was unlearned")
    questions.add_argument("--tasks", action="append", metavar="NAMES", help="tasks, groups and question files")
    questions.add_argument("--data", metavar="DIR", help="folder with datasets and corpora, in place of the hub")
    add_selection(questions)
    add_wording(questions)

    attacks = parser.add_argument_group("attacks")
    attacks.add_argument(
        "--attacks",
        action="append",
        metavar="NAMES",
        help=f"`all` (default), or names from --list, comma-separated; {FORM} for one of your own",
    )
    attacks.add_argument(
        "--budget", choices=("quick", "standard", "full"), help="how many settings are tried (default standard)"
    )
    attacks.add_argument("--seed", type=whole_number(least=0), metavar="N", help="of all that is drawn (default 0)")
    attacks.add_argument("--forget", metavar="CORPUS", help="text on what was unlearned, for attacks that train")
    attacks.add_argument("--related", metavar="CORPUS", help="text on its neighborhood")
    attacks.add_argument("--unrelated", metavar="CORPUS", help="any other text (default: some that comes with it)")

    _add_utility(parser.add_argument_group("what must not be lost, or an attack does not count"))
    _add_kept(parser.add_argument_group("what was to be kept, measured without an attack"))
    _add_models(parser.add_argument_group("the models"))

    output = parser.add_argument_group("output")
    output.add_argument("--output", metavar="DIR", help="folder for results; what is done there is not done again")
    output.add_argument("--card", action="store_true", help="write what was found into README.md of the model's folder")
    output.add_argument(
        "--controls", metavar="DIR", help="another model's --output, whose runs on the same controls are taken over"
    )
    output.add_argument("--json", action="store_true", default=False, help="print JSON instead of the table")
    output.add_argument("--quiet", action="store_true", default=False, help="no progress and no notes on stderr")


def _add_utility(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--utility", action="append", metavar="NAMES", help="tasks on what should have been kept")
    group.add_argument(
        "--utility-text", action="append", metavar="FILE", help="held-out text whose perplexity to measure"
    )
    group.add_argument(
        "--utility-limit", type=limit, metavar="N", help="only the first N questions or documents of each"
    )
    group.add_argument(
        "--slack", type=finite_number, metavar="X", help="share of utility that may be lost (default 0.1)"
    )


def _add_kept(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--utility-keyword",
        metavar="WORD",
        help="a word of what was unlearned, to ask the --utility questions with it in place of a wrong choice too"
        " (published: SARS-CoV-2)",
    )
    group.add_argument(
        "--general-text",
        metavar="FILE",
        help="text on anything else, for perplexity and KL from the base (default: some that comes with it)",
    )
    group.add_argument(
        "--near-text", metavar="FILE", help="the same on the neighborhood, of text that nothing was trained on"
    )
    group.add_argument(
        "--write",
        type=whole_number(least=1),
        metavar="N",
        help="go on with the first words of N documents each of --forget, --related and --unrelated, and count what"
        " repeats, refuses, is empty or unlikely by the base; the texts are in DIR/texts",
    )
    group.add_argument(
        "--write-tokens", type=whole_number(least=1), metavar="N", help="most tokens of each text (default 64)"
    )
    group.add_argument(
        "--lm-eval-tasks",
        action="append",
        metavar="NAMES",
        help="tasks that lm-eval runs, such as gsm8k,ifeval, or YAML files of tasks",
    )
    group.add_argument(
        "--mt-bench-questions",
        metavar="FILE",
        help="FastChat's question.jsonl, to answer it; answers are in DIR/mt_bench, in FastChat's format",
    )
    group.add_argument(
        "--judge-url", metavar="URL", help="server of a judge of these answers, as OpenAI's clients take it"
    )
    group.add_argument("--judge-model", metavar="NAME", help="the judge's name there")
    group.add_argument("--judge-prompts", metavar="FILE", help="FastChat's judge_prompts.jsonl, which a judge needs")
    group.add_argument(
        "--mt-bench-references",
        metavar="FILE",
        help="FastChat's reference answers, which its judges see for math, reasoning and coding",
    )
    group.add_argument(
        "--judge-api-key-env", metavar="VARIABLE", help="environment variable with its key (default OPENAI_API_KEY)"
    )


def _add_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tokenizer", metavar="NAME", help="tokenizer, if it is not the model folder's own")
    group.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model on the hub")
    group.add_argument("--peft", metavar="ADAPTER", help="PEFT adapter to put on the model")
    group.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="default: the checkpoint's")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    group.add_argument(
        "--devices",
        metavar="DS",
        help="attack on several, a process on each: all (GPUs), a number of GPUs, cuda:0,cuda:1 or cpu:2",
    )
    group.add_argument("--engine", choices=("auto", "trie", "padded"), help="how to score (default auto)")
    group.add_argument("--trust-remote-code", action="store_true", help="let code that comes with a model run")


def run(arguments: argparse.Namespace) -> int:
    """Attacks, and prints what came back."""
    given = vars(arguments)
    if arguments.list:
        return _list()
    needed = {"model": "MODEL", "tasks": "--tasks NAMES"}
    if missing := [shown for name, shown in needed.items() if name not in given]:
        print(f"error: {' and '.join(missing)} must be given; see `wmdp-fast attack --help`", file=sys.stderr)
        return 2
    options: dict[str, Any] = {name: given[name] for name in _PASSED if name in given}
    try:
        options |= _judge(given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with reading_ahead(arguments.model, revision=options.get("revision"), peft=options.get("peft")):
        from wmdp_fast.robustness.api import attack

        result = attack(
            arguments.model,
            eval_options=asked(arguments),
            progress=not arguments.quiet,
            note=None if arguments.quiet else _note,
            **options,
        )
    print(strict_json.dumps(result.to_json()) if arguments.json else result)
    return 0


def _judge(given: Mapping[str, Any]) -> dict[str, Any]:
    """The judge as an option of `attack`, if one is named.

    Raises:
        ValueError: Its name, its address or its key is missing.
    """
    named = [name for name in ("judge_url", "judge_model", "judge_api_key_env") if name in given]
    if not named:
        return {}
    if "judge_url" not in given or "judge_model" not in given:
        raise ValueError("a judge needs --judge-url and --judge-model")
    variable = given.get("judge_api_key_env")
    if variable is not None and variable not in os.environ:
        raise ValueError(f"--judge-api-key-env: there is no environment variable {variable}")
    key = os.environ.get(variable or "OPENAI_API_KEY") or None
    return {"judge": Server(given["judge_url"], given["judge_model"], api_key=key)}


def _list() -> int:
    from wmdp_fast.robustness.attacks.catalog import ATTACKS

    rows = [("attack", "needs", "what it does")]
    rows += [(attack.name, attack.access, attack.summary) for attack in ATTACKS.values()]
    print("\n".join([*in_columns(rows, "lll", has_header=True), "", f"{FORM} names one of your own."]))
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr)
