"""`wmdp-fast bench`: how fast something is, beside the usual tools in the same run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.cli.options import whole_number, whole_number_or_auto, whole_numbers
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import check_file, write_whole

if TYPE_CHECKING:
    from wmdp_fast.bench.report import BenchReport

SUMMARY = "Measure speed, beside that of other tools in the same run."

_DTYPES = ("float32", "bfloat16", "float16", "auto")

# What `run` takes itself; everything else goes to the benchmark.
_OWN = frozenset({"benchmark", "fail", "json", "report", "run"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one subcommand for each benchmark."""
    benchmarks = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    summary = "Time everything before the model: questions read, rendered, tokenized and cut into batches."
    data = benchmarks.add_parser("data", help=summary, description=summary)
    data.add_argument("--tasks", required=True, metavar="NAMES", help="tasks, groups or files, separated by commas")
    data.add_argument(
        "--tokenizer", required=True, type=Path, metavar="PATH", help="tokenizer.json, or a folder with one"
    )
    data.add_argument("--data", metavar="DIR", help="folder with the datasets, in place of the hub")
    data.add_argument("--num-fewshot", type=whole_number(least=0), default=0, metavar="N", help="examples (default 0)")
    data.add_argument("--against", action="append", default=[], choices=("lm-eval",), help="a baseline to compare with")
    data.add_argument(
        "--sample",
        type=whole_number(least=1),
        default=200,
        metavar="N",
        help="questions a baseline prepares (default 200)",
    )
    _add_output(data)
    data.set_defaults(benchmark=_data)
    _add_eval(benchmarks)
    _add_unlearn(benchmarks)
    _add_embed(benchmarks)


def _add_unlearn(benchmarks: Any) -> None:
    from wmdp_fast.bench.shapes import SHAPES

    summary = "Time a step of unlearning: seconds, arithmetic against the machine's own, peak memory."
    parser = benchmarks.add_parser("unlearn", help=summary, description=summary)
    parser.add_argument(
        "--method",
        type=_benched_methods,
        default=("rmu",),
        metavar="NAMES",
        help="rmu (default), graddiff, npo, rr, or several, comma-separated; graddiff and npo train all layers",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder of a model")
    parser.add_argument(
        "--shape", choices=SHAPES, help="in place of a model: this shape, random weights (default smollm2-135m)"
    )
    parser.add_argument(
        "--against",
        type=_rmu_baselines,
        default=(),
        metavar="BASELINES",
        help="plain, of rmu also truncated, or both with a comma between",
    )
    parser.add_argument("--layer-id", type=whole_number(least=0), default=7, metavar="L", help="default 7")
    parser.add_argument(
        "--update-layer-ids", type=whole_numbers, metavar="L,...", help="default: that layer and the two below it"
    )
    parser.add_argument("--parameters", default="mlp.down_proj", metavar="ROLE", help="default mlp.down_proj")
    parser.add_argument(
        "--mode",
        choices=("reference", "masked"),
        default="reference",
        help="wmdp-fast's: to the plain algorithm's bits (default), or as fast as it can",
    )
    parser.add_argument("--batch-size", type=whole_number(least=1), default=4, metavar="N", help="default 4")
    parser.add_argument("--length", type=whole_number(least=1), default=512, metavar="N", help="tokens (default 512)")
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="documents to train on in place of random tokens; not of rmu, whose are all as long",
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="folder of a tokenizer for that text (default the model's)")
    parser.add_argument("--steps", type=whole_number(least=1), default=4, metavar="N", help="timed steps (default 4)")
    _add_machine(parser, dtype="bfloat16")
    _add_output(parser)
    parser.set_defaults(benchmark=_unlearn, fail=parser.error)


def _add_eval(benchmarks: Any) -> None:
    from wmdp_fast.bench.shapes import SHAPES, WORKLOADS

    summary = "Time scoring: whole process, each phase, arithmetic against the machine's own, peak memory."
    parser = benchmarks.add_parser("eval", help=summary, description=summary)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder of a model")
    parser.add_argument("--shape", choices=SHAPES, help="in place of a model: one of this shape with random weights")
    parser.add_argument("--tasks", metavar="NAMES", help="tasks, groups or files, separated by commas")
    parser.add_argument("--workload", choices=WORKLOADS, help="in place of tasks: made-up questions of such lengths")
    parser.add_argument("--tokenizer", metavar="DIR", help="folder of a tokenizer, for a shape that is to do tasks")
    parser.add_argument("--data", metavar="DIR", help="folder with the datasets, in place of the hub")
    parser.add_argument(
        "--num-fewshot", type=whole_number(least=0), default=0, metavar="N", help="examples (default 0)"
    )
    parser.add_argument("--limit", type=whole_number(least=1), metavar="N", help="only N questions of each task")
    _add_machine(parser, dtype="float32")
    parser.add_argument(
        "--token-budget",
        type=whole_number_or_auto,
        default="auto",
        metavar="N",
        help="maximum tokens per batch (default auto)",
    )
    parser.add_argument(
        "--engine", dest="worker", choices=("auto", "trie", "padded"), default="auto", help="default auto"
    )
    parser.add_argument(
        "--compile", action="store_true", dest="compiled", help="compile norms and feed-forward blocks first"
    )
    parser.add_argument(
        "--against",
        type=_baselines,
        default=(),
        metavar="BASELINES",
        help="lm-eval, padded, vllm, evalution, or several separated by commas",
    )
    parser.add_argument(
        "--peer-batch-size",
        dest="batch_sizes",
        type=_batch_sizes,
        default=(16,),
        metavar="N,...",
        help="lm-eval's rows, or auto (default 16); with several, separated by commas, it is run with each",
    )
    parser.add_argument(
        "--peer-python",
        dest="pythons",
        type=_peer_python,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the Python of the environment that vllm or evalution is in (default this one); may be repeated",
    )
    _add_output(parser)
    parser.set_defaults(benchmark=_eval)


def _add_embed(benchmarks: Any) -> None:
    summary = "Time lm-eval with the model `wmdp-fast` beside lm-eval with its own `hf`."
    parser = benchmarks.add_parser("embed", help=summary, description=summary)
    parser.add_argument("model", metavar="MODEL", help="a folder, or a name on the Hugging Face hub")
    parser.add_argument("--tasks", metavar="NAMES", help="tasks to ask beside the made-up ones")
    parser.add_argument("--data", metavar="DIR", help="folder with their datasets, in place of the hub")
    parser.add_argument(
        "--num-fewshot", type=whole_number(least=0), default=0, metavar="N", help="examples (default 0)"
    )
    parser.add_argument(
        "--limit",
        type=whole_number(least=1),
        default=8,
        metavar="N",
        help="questions of each task; of the made-up documents a quarter (default 8)",
    )
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="default float32")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu or cuda:N (default cpu)")
    parser.add_argument(
        "--batch-size", type=whole_number_or_auto, default=8, metavar="N", help="of hf: a number or auto (default 8)"
    )
    _add_output(parser)
    parser.set_defaults(benchmark=_embed)


def _add_machine(parser: argparse.ArgumentParser, *, dtype: str) -> None:
    parser.add_argument("--dtype", choices=_DTYPES, default=dtype, help=f"default {dtype}")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there too, as Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Runs a benchmark and prints its report."""
    if arguments.report is not None:
        check_file(arguments.report)
    made: BenchReport | list[BenchReport] = arguments.benchmark(arguments)
    reports = made if isinstance(made, list) else [made]
    if arguments.json:
        objects = [report.to_json() for report in reports]
        print(strict_json.dumps(objects[0] if len(objects) == 1 else objects, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(report.table() for report in reports))
    if arguments.report is not None:
        write_whole(arguments.report, "\n".join(report.markdown() for report in reports))
    failures = [failure for report in reports for failure in report.failures]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _data(arguments: argparse.Namespace) -> BenchReport:
    from wmdp_fast.bench.data import bench_data

    return bench_data(**_options(arguments))


def _eval(arguments: argparse.Namespace) -> BenchReport:
    from wmdp_fast.bench.eval import bench_eval
    from wmdp_fast.bench.worker import Job

    options = _options(arguments)
    contest = {name: options.pop(name) for name in ("against", "batch_sizes", "pythons")}
    return bench_eval(Job(**options), **contest)


def _unlearn(arguments: argparse.Namespace) -> list[BenchReport]:
    from wmdp_fast.bench.method_job import MethodJob
    from wmdp_fast.bench.methods import bench_method
    from wmdp_fast.bench.rmu_worker import Job
    from wmdp_fast.bench.unlearn import bench_unlearn

    options = _options(arguments)
    against, methods = options.pop("against"), options.pop("method")
    if arguments.shape is None and arguments.model is None:
        options["shape"] = "smollm2-135m"
    _check_text(arguments)
    of_rmu, of_others = {"layer_id", "update_layer_ids", "mode"}, {"text", "tokenizer"}
    others = {name: value for name, value in options.items() if name not in of_rmu}
    options = {name: value for name, value in options.items() if name not in of_others}
    return [
        bench_unlearn(Job(**options), against)
        if method == "rmu"
        else bench_method(MethodJob(method=method, **others), [one for one in against if one == "plain"])
        for method in methods
    ]


def _check_text(arguments: argparse.Namespace) -> None:
    if "rmu" in arguments.method and arguments.text is not None:
        arguments.fail("--text is for other methods: the documents that rmu is timed on are all of one length")
    if arguments.tokenizer is not None and arguments.text is None:
        arguments.fail("--tokenizer is for a text (--text), which there is none of")


def _embed(arguments: argparse.Namespace) -> BenchReport:
    from wmdp_fast.bench.embed import bench_embed

    return bench_embed(**_options(arguments))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a benchmark takes: each option is the parameter of its function or job of that name."""
    return {name: value for name, value in vars(arguments).items() if name not in _OWN}


def _baselines(text: str) -> tuple[str, ...]:
    return _known_baselines(text, ("lm-eval", "padded", "vllm", "evalution"))


def _peer_python(text: str) -> tuple[str, str]:
    name, given, python = text.partition("=")
    if not (name and given and python):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH, as in vllm=/opt/vllm/bin/python")
    return name, python


def _batch_sizes(text: str) -> tuple[int | str, ...]:
    return tuple(dict.fromkeys(whole_number_or_auto(part.strip()) for part in text.split(",")))


def _benched_methods(text: str) -> tuple[str, ...]:
    known = ("rmu", "graddiff", "npo", "rr")
    methods = tuple(dict.fromkeys(text.split(",")))
    if unknown := [method for method in methods if method not in known]:
        raise argparse.ArgumentTypeError(f"no benchmark of {unknown[0]!r}; there are {', '.join(known)}")
    return methods


def _rmu_baselines(text: str) -> tuple[str, ...]:
    return _known_baselines(text, ("plain", "truncated"))


def _known_baselines(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    baselines = tuple(dict.fromkeys(text.split(",")))
    if unknown := [baseline for baseline in baselines if baseline not in known]:
        raise argparse.ArgumentTypeError(f"unknown baseline {unknown[0]!r}; known: {', '.join(known)}")
    return baselines
