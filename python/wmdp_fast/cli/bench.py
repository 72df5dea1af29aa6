"""`wmdp-fast bench`: how fast something is, beside the usual tools in the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.cli.options import whole_number

if TYPE_CHECKING:
    import argparse

    from wmdp_fast.bench.report import BenchReport

SUMMARY = "Measure speed, beside that of other tools in the same run."


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
    data.add_argument("--against", action="append", default=[], choices=("lm-eval",), help="a peer to compare with")
    data.add_argument(
        "--sample", type=whole_number(least=1), default=200, metavar="N", help="questions a peer prepares (default 200)"
    )
    data.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    data.set_defaults(benchmark=_data)

    summary = "Time lm-eval with the model `wmdp-fast` beside lm-eval with its own `hf`."
    embed = benchmarks.add_parser("embed", help=summary, description=summary)
    embed.add_argument("model", metavar="MODEL", help="a folder, or a name on the Hugging Face hub")
    embed.add_argument("--tasks", metavar="NAMES", help="tasks to ask beside the made-up ones")
    embed.add_argument("--data", metavar="DIR", help="folder with their datasets, in place of the hub")
    embed.add_argument("--num-fewshot", type=whole_number(least=0), default=0, metavar="N", help="examples (default 0)")
    embed.add_argument("--limit", type=whole_number(least=1), default=8, metavar="N", help="questions (default 8)")
    embed.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    embed.add_argument("--device", default="cpu", metavar="D", help="cpu or cuda:N (default cpu)")
    embed.add_argument("--batch-size", default="8", metavar="N", help="of hf: a number or auto (default 8)")
    embed.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    embed.set_defaults(benchmark=_embed)


def run(arguments: argparse.Namespace) -> int:
    """Runs a benchmark and prints its report."""
    report: BenchReport = arguments.benchmark(arguments)
    print(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if arguments.json else report.table())
    return 0


def _data(arguments: argparse.Namespace) -> BenchReport:
    from wmdp_fast.bench.data import bench_data

    return bench_data(
        tasks=arguments.tasks,
        tokenizer=arguments.tokenizer,
        data=arguments.data,
        num_fewshot=arguments.num_fewshot,
        against=arguments.against,
        sample=arguments.sample,
    )


def _embed(arguments: argparse.Namespace) -> BenchReport:
    from wmdp_fast.bench.embed import bench_embed

    return bench_embed(
        model=arguments.model,
        tasks=arguments.tasks,
        data=arguments.data,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        dtype=arguments.dtype,
        device=arguments.device,
        batch_size=arguments.batch_size,
    )
