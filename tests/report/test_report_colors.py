"""The report's colors are told apart by readers with any kind of color blindness, and stand out from the page.

Color blindness is simulated as in Machado, Oliveira and Fernandes 2009 (doi:10.1109/TVCG.2009.113, severity 1) in
linear RGB; distances are CIE 1976's in CIELAB, where 2.3 is about what one just sees.
"""

from __future__ import annotations

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest

SIGHT = {
    "all cones": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no blue": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
# Runs share a figure with each other, and what is forgotten and kept with the first two of them.
SEEN_TOGETHER = (("before", "after", "third", "fourth"), ("before", "after", "forget", "retain"))


def schemes() -> dict[str, dict[str, str]]:
    """The page's colors by name, for each of light, dark and print."""
    css = resources.files("wmdp_fast.report").joinpath("style.css").read_text(encoding="utf-8")
    found = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    return dict(zip(("light", "dark", "print"), found, strict=True))


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    share = XYZ @ np.clip(light, 0, 1) / WHITE
    x, y, z = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    """WCAG's."""
    darker, lighter = sorted(float(linear(color) @ XYZ[1]) for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
@pytest.mark.parametrize("sight", SIGHT)
def test_series_are_told_apart(scheme, sight):
    colors = schemes()[scheme]
    seen = {name: lab(SIGHT[sight] @ linear(colors[name])) for names in SEEN_TOGETHER for name in names}
    for names in SEEN_TOGETHER:
        for one, other in combinations(names, 2):
            assert np.linalg.norm(seen[one] - seen[other]) > 22, (one, other)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colors_stand_out_from_the_page(scheme):
    colors = schemes()[scheme]
    for name in ("before", "after", "third", "fourth"):
        assert contrast(colors[name], colors["paper"]) >= 3, name
    for name in ("ink", "soft", "forget", "retain", "link"):  # these are text, too
        for ground in ("paper", "raised"):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
