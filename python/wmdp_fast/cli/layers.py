"""`wmdp-fast layers`: which layer to steer, and how far. Options are those of `unlearning.layers.profile_layers`."""

from __future__ import annotations

import argparse
import sys

from wmdp_fast.cli.options import finite_number, whole_number
from wmdp_fast.runtime import strict_json

SUMMARY = "Measure where a model tells forget from retain data, and suggest RMU's layer and coefficient."

_OWN = frozenset({"model", "forget", "retain", "json", "run"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast layers`. What is not given stays away: the defaults are those of the function."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("model", metavar="MODEL", help="a folder, or a name on the Hugging Face hub")
    corpora = parser.add_argument_group("corpora")
    corpora.add_argument("--forget", required=True, metavar="CORPUS", help="a file, a folder, or a corpus by name")
    corpora.add_argument("--retain", default="wikitext", metavar="CORPUS", help="the same (default wikitext)")
    corpora.add_argument("--data", metavar="DIR", help="folder with the corpora, in place of the hub")
    corpora.add_argument("--field", metavar="NAME", help="key or column of the text (default text)")
    corpora.add_argument("--raw-lines", action="store_true", help="forget documents are the file's lines as they stand")
    corpora.add_argument(
        "--min-chars", type=whole_number(least=0), metavar="N", help="skip documents of N characters or fewer"
    )
    corpora.add_argument(
        "--num-documents", type=whole_number(least=2), metavar="N", help="documents of each corpus (default 128)"
    )
    corpora.add_argument(
        "--max-length", type=whole_number(least=2), metavar="N", help="maximum tokens of a document (default 512)"
    )
    model = parser.add_argument_group("the model")
    model.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model on the hub")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="default: the checkpoint's")
    model.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    model.add_argument("--trust-remote-code", action="store_true", help="let code that comes with the model run")
    model.add_argument(
        "--token-budget", type=whole_number(least=1), metavar="N", help="maximum tokens per batch (default 4096)"
    )
    parser.add_argument("--factor", type=finite_number, metavar="X", help="coefficient in mean norms (default 5)")
    parser.add_argument(
        "--pilot", action="store_true", help="find learning rate and alpha with runs of 40 steps on the suggested layer"
    )
    parser.add_argument("--json", action="store_true", default=False, help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints."""
    from wmdp_fast.unlearning.rmu.profile import profile_layers

    options = {name: value for name, value in vars(arguments).items() if name not in _OWN}
    profile = profile_layers(arguments.model, arguments.forget, arguments.retain, note=_note, **options)
    print(strict_json.dumps(profile.to_json(), indent=2, ensure_ascii=False) if arguments.json else profile.table())
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr)
