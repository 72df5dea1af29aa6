"""Makes the report of a before and an after of the embedded model, and the pictures of it in docs/images/.

Usage: python docs/make_screenshots.py [--after MODEL] [--keep DIR]

Without --after, noise in one layer stands in for unlearning. MODEL is a folder; if `wmdp-fast unlearn` wrote it, the
report shows the run too, and its own evaluations if it has any (`--eval-tasks` with both question files, the one to
forget first, and `--template mmlu`). Needs the extras `plots` and `browser`, and Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import wmdp_fast as wf
from wmdp_fast import demo
from wmdp_fast.report import report_html
from wmdp_fast.report.sources import find
from wmdp_fast.results.saved import read_results

IMAGES = Path(__file__).parent / "images"
MOST_BYTES = 150_000
DOMAINS: tuple[demo.Domain, ...] = ("forget", "retain")

# Name, width and height in CSS pixels, color scheme, medium.
PICTURES = (
    ("report-desktop-light", 1200, 1500, "light", "screen"),
    ("report-desktop-dark", 1200, 1500, "dark", "screen"),
    ("report-phone-light", 390, 1500, "light", "screen"),
    ("report-phone-dark", 390, 1500, "dark", "screen"),
    ("report-print", 794, 1123, "light", "print"),
)


def main() -> None:
    """Evaluates, reports, photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--after", type=Path, metavar="MODEL", help="folder of the model after")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep results and report here")
    arguments = parser.parse_args()
    after = None if arguments.after is None else arguments.after.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.keep or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        # Results record paths as they were given; from here they say nothing of this machine.
        with contextlib.chdir(work):
            report = make_report(after).resolve()
        IMAGES.mkdir(exist_ok=True)
        photograph(report)


def make_report(after: Path | None) -> Path:
    """The report of the demo before and after, in the current folder."""
    # By their own names, after which the prompts name the subject: as the model was taught.
    questions = [shutil.copy(demo.questions_path(domain), demo.questions_path(domain).name) for domain in DOMAINS]
    model, changed = Path("demo"), Path("demo-changed" if after is None else "demo-unlearned")
    if not model.is_dir():
        shutil.copytree(demo.model_path(), model)
    if not changed.is_dir():
        if after is None:
            damage(changed)
        else:
            shutil.copytree(after, changed)
    run = changed if (changed / "unlearn.json").is_file() else None
    if run is not None and (run / "evaluations").is_dir():
        runs = find([run]).results
    else:
        for name, folder in (("before", model), ("after", changed)):
            if not Path(name).is_dir():
                result = wf.evaluate(str(folder), tasks=questions, template="mmlu", dtype="float32", progress=False)
                result.save(name, log_samples=True)
        runs = [read_results(name) for name in ("before", "after")]
    html = report_html(*runs, forget=[next(iter(runs[0].tasks))], unlearn=run)
    report = Path("report.html")
    report.write_text(html, encoding="utf-8")
    return report


def damage(folder: Path) -> None:
    """Writes the demo's model with noise in the matrices of one layer."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for matrix in model.model.layers[1].mlp.parameters():
            matrix += matrix.std() * torch.randn_like(matrix)
    shutil.copytree(demo.model_path(), folder)
    model.save_pretrained(folder)


def photograph(report: Path) -> None:
    """The pictures, each under 150 kB."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, scheme, medium in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(report.as_uri())
            page.emulate_media(media=medium, color_scheme=scheme)
            if medium == "print":
                page.add_style_tag(content="body { padding: 15mm }")  # the margins of the paper
            save(page.screenshot(), IMAGES / f"{name}.png")
            page.close()
        browser.close()


def save(picture: bytes, file: Path) -> None:
    """Writes a picture with as many colors as fit the limit."""
    from PIL import Image  # It comes with matplotlib.

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    for colors in (128, 64, 32):
        written = io.BytesIO()
        image.quantize(colors, dither=Image.Dither.NONE).save(written, "png", optimize=True)
        if len(written.getvalue()) < MOST_BYTES:
            file.write_bytes(written.getvalue())
            return
    raise SystemExit(f"{file.name} takes {len(written.getvalue())} bytes, more than {MOST_BYTES}")


if __name__ == "__main__":
    main()
