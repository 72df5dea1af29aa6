"""Reading a checkpoint that is not in the page cache: by this package, and by `cat` and `dd` on the same files.

    python benches/cold_reading.py FOLDER [--gigabytes 2] [--rounds 3]

It writes three shards of random numbers into FOLDER (once) and reads them in turns: by `cat FILES >/dev/null`, by
`dd iflag=direct` past the page cache, by `ReadAhead` alone, and by `ReadAhead` while another process imports torch and
transformers, as the command line does it. Before each reading the files are dropped from the page cache, which takes no
root; how much of them was still there is printed, for a figure with that is none of a cold reading. To be run alone on
the machine: with 2 GB and 3 rounds it takes a minute at 0.5 GB/s. Beneath a virtual machine's disk there may be a cache
of the host, which nothing here can drop: then the first round, and files larger than that cache, are the ones to trust.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from first_second import drop
from wmdp_fast._rust import ReadAhead

_SHARDS = 3
_BLOCK = 8 << 20

# Prints how long the reading took. Imports go on meanwhile, and are not waited for.
_BESIDE_IMPORTS = """
import os, sys, threading, time
from wmdp_fast._rust import ReadAhead
begun = time.perf_counter()
ahead = ReadAhead(sys.argv[1:])
def wait():
    ahead.wait()
    print(time.perf_counter() - begun, flush=True)
    os._exit(0)
threading.Thread(target=wait).start()
import torch
from transformers import AutoModelForCausalLM
"""


def make_shards(folder: Path, size: int) -> None:
    """Safetensors files of so many bytes together; random, since some disks store other bytes in less."""
    folder.mkdir(parents=True)
    each = size // _SHARDS // _BLOCK * _BLOCK
    for number in range(1, _SHARDS + 1):
        header = json.dumps({f"layer.{number}": {"dtype": "U8", "shape": [each], "data_offsets": [0, each]}}).encode()
        with (folder / f"model-{number:05d}-of-{_SHARDS:05d}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in range(each // _BLOCK):
                file.write(os.urandom(_BLOCK))


def by_cat(files: list[Path]) -> float:
    """Seconds of `cat FILES >/dev/null`."""
    return _seconds(["cat", *map(str, files)])


def by_direct_reads(files: list[Path]) -> float:
    """Seconds of `dd iflag=direct`, a file after the other."""
    return sum(_seconds(["dd", f"if={file}", "of=/dev/null", "bs=8M", "iflag=direct", "status=none"]) for file in files)


def by_read_ahead(files: list[Path]) -> float:
    """Seconds of this package's threads."""
    begun = time.perf_counter()
    ahead = ReadAhead(files)
    ahead.wait()
    seconds = time.perf_counter() - begun
    if ahead.why_skipped is not None:
        sys.exit(f"nothing was read: {ahead.why_skipped}")
    return seconds


def beside_imports(files: list[Path]) -> float:
    """Seconds of this package's threads in a process that imports torch and transformers meanwhile."""
    command = [sys.executable, "-c", _BESIDE_IMPORTS, *map(str, files)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


WAYS = {
    "cat": by_cat,
    "dd iflag=direct": by_direct_reads,
    "read ahead": by_read_ahead,
    "read ahead beside imports": beside_imports,
}


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def _share_cached(files: list[Path]) -> float:
    """The share of files that is in the page cache, as `fincore` of util-linux says it."""
    command = ["fincore", "--bytes", "--noheadings", "--raw", "--output", "RES,SIZE", *map(str, files)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    cached, size = (sum(column) for column in zip(*(map(int, line.split()) for line in lines), strict=True))
    return cached / size


def main() -> None:
    """Reads in all ways by turns, and prints each one's rate and its share of `cat`'s."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    shards = given.folder / f"cold-{given.gigabytes:g}-gigabytes"
    if not shards.is_dir():
        make_shards(shards, int(given.gigabytes * 1e9))
    files = sorted(shards.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) / 1e9
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(given.rounds):
        for name, read in WAYS.items():
            drop(shards)
            cached = _share_cached(files)
            rates[name].append(size / read(files))
            print(f"round {number + 1}: {name} {rates[name][-1]:.2f} GB/s ({cached:.1%} of it was cached before)")
    cat = statistics.median(rates["cat"])
    for name, found in rates.items():
        middle = statistics.median(found)
        print(f"{name}: {middle:.2f} GB/s ({min(found):.2f} to {max(found):.2f}), {middle / cat:.0%} of cat")


if __name__ == "__main__":
    main()
