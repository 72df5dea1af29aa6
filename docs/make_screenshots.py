"""Makes the report of a before and an after of the embedded model, and the pictures of it in docs/images/.

Usage: python docs/make_screenshots.py [--after MODEL] [--keep DIR]

Without --after, noise in one layer stands in for unlearning. MODEL is a folder; if `wmdp-fast unlearn` wrote it, the
report shows the run too. Needs the extras `plots` and `browser`, and Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import wmdp_fast as wf
from wmdp_fast import demo
from wmdp_fast.report import report_html
from wmdp_fast.saved import read_results

IMAGES = Path(__file__).parent / "images"
MOST_BYTES = 150_000

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
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.keep or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        report = make_report(work, arguments.after)
        IMAGES.mkdir(exist_ok=True)
        photograph(report)


def make_report(work: Path, after: Path | None) -> Path:
    """The report of the demo before and after, in `work`."""
    questions = []
    for domain in ("forget", "retain"):
        questions.append(work / f"{domain}.jsonl")
        shutil.copy(demo.questions_path(domain), questions[-1])
    for name, model in (("before", demo.model_path()), ("after", after or damaged(work / "damaged"))):
        if not (work / name).is_dir():
            result = wf.evaluate(model, tasks=questions, dtype="float32", progress=False)
            result.save(work / name, log_samples=True)
    run = after if after is not None and (after / "unlearn.json").is_file() else None
    html = report_html(read_results(work / "after"), read_results(work / "before"), unlearn=run)
    (work / "report.html").write_text(html, encoding="utf-8")
    return work / "report.html"


def damaged(folder: Path) -> Path:
    """The demo's model with noise in the matrices of one layer."""
    import torch
    from transformers import AutoModelForCausalLM

    if not folder.is_dir():
        shutil.copytree(demo.model_path(), folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(0)
        with torch.no_grad():
            for matrix in model.model.layers[2].mlp.parameters():
                matrix += 0.5 * matrix.std() * torch.randn_like(matrix)
        model.save_pretrained(folder)
    return folder


def photograph(report: Path) -> None:
    """The pictures, each under 150 kB."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, scheme, medium in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(report.resolve().as_uri())
            page.emulate_media(media=medium, color_scheme=scheme)
            save(page.screenshot(), IMAGES / f"{name}.png")
            page.close()
        browser.close()


def save(picture: bytes, file: Path) -> None:
    """Writes a picture with as many colours as fit the limit."""
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
