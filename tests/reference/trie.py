"""The token trie, packed the slow and obvious way, and attention over it with a dense mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import torch


@dataclass(frozen=True)
class Row:
    """A token sequence and what is wanted of it: (position, token, index of the target over the whole run)."""

    tokens: tuple[int, ...]
    targets: tuple[tuple[int, int, int], ...] = ()


@dataclass
class Segment:
    """Tokens `begin .. end` of a path; all paths `first_path ..= last_path` have them in common."""

    parent: Segment | None
    path: tuple[int, ...]
    begin: int
    end: int
    last_path: int
    targets: list[tuple[int, int, int]] = field(default_factory=list)

    def ancestors(self) -> list[Segment]:
        above = [] if self.parent is None else self.parent.ancestors()
        return above if self.parent is None else [*above, self.parent]

    @property
    def is_leaf(self) -> bool:
        return self.end == len(self.path)

    def readouts(self, begin: int, end: int) -> list[int]:
        return sorted({position for position, _, _ in self.targets if begin <= position < end})


@dataclass
class Batch:
    """The arrays of one forward pass; see `wmdp_fast.TrieBatch`."""

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    num_carried: int = 0
    segments: list[list[int]] = field(default_factory=list)
    keep: list[list[int]] = field(default_factory=list)
    readouts: list[int] = field(default_factory=list)
    target_readouts: list[int] = field(default_factory=list)
    target_tokens: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    stop: int = 0


def paths_of(rows: list[Row]) -> list[tuple[int, ...]]:
    """The distinct token sequences that are not the beginning of another one, sorted."""
    tokens = {row.tokens for row in rows}
    return sorted(t for t in tokens if not any(other != t and other[: len(t)] == t for other in tokens))


def grow(paths: list[tuple[int, ...]]) -> list[Segment]:
    """The segments, depth-first: a branch is made wherever paths part."""
    segments: list[Segment] = []

    def below(group: list[int], parent: Segment | None, begin: int) -> None:
        first = paths[group[0]]
        if len(group) == 1:
            segments.append(Segment(parent, first, begin, len(first), group[0]))
            return
        shared = min(
            next(n for n, (a, b) in enumerate(zip(first, paths[i], strict=False)) if a != b) for i in group[1:]
        )
        branches = [list(g) for _, g in groupby(group, key=lambda i: paths[i][shared])]
        if shared > begin:
            parent, begin = Segment(parent, first, begin, shared, group[-1]), shared
            segments.append(parent)
        for branch in branches:
            below(branch, parent, begin)

    if paths:
        below(list(range(len(paths))), None, 0)
    return segments


def place_targets(rows: list[Row], paths: list[tuple[int, ...]], segments: list[Segment]) -> None:
    """Gives each target to the segment that holds its position, on the first path that its row lies on."""
    for row in rows:
        path = next(path for path in paths if path[: len(row.tokens)] == row.tokens)
        leaf = next(s for s in segments if s.path == path and s.is_leaf)
        for target in row.targets:
            owner = next(s for s in [*leaf.ancestors(), leaf] if s.begin <= target[0] < s.end)
            owner.targets.append(target)
    for segment in segments:
        segment.targets.sort(key=lambda target: (target[0], target[2]))


def pack(rows: list[Row], token_budget: int, readout_budget: int, start: int = 0) -> list[Batch]:
    """All batches of a run from path `start` on."""
    paths = paths_of(rows)
    segments = grow(paths)
    place_targets(rows, paths, segments)
    segments = [segment for segment in segments if segment.last_path >= start]
    # Pieces: which tokens of which segments each batch runs.
    pieces: list[list[tuple[Segment, int, int]]] = [[]]
    used = readouts = 0
    for segment in segments:
        begin = segment.begin
        while begin < segment.end:
            end = begin
            while (
                end < segment.end
                and used + end - begin < token_budget
                and readouts + len(segment.readouts(begin, end + 1)) <= readout_budget
            ):
                end += 1
            whole = end == segment.end
            if end > begin and (whole or used == 0 or segment.end - segment.begin > token_budget):
                pieces[-1].append((segment, begin, end))
                used += end - begin
                readouts += len(segment.readouts(begin, end))
                begin = end
            if not whole:
                pieces.append([])
                used = readouts = 0
    batches = [batch(pieces, index) for index in range(len(pieces)) if pieces[index]]
    for index, out in enumerate(batches):
        done = [s.last_path + 1 for s, _, end in pieces[index] if s.is_leaf and end == s.end]
        out.stop = max(done, default=batches[index - 1].stop if index else start)
    return batches


def batch(pieces: list[list[tuple[Segment, int, int]]], index: int) -> Batch:
    out = Batch()
    key = 0
    entries: list[tuple[Segment, int, int, int]] = []  # segment, first and last + 1 position, first key
    for segment, begin, end in carried(pieces, index):
        entries.append((segment, begin, end, key))
        key += end - begin
    out.num_carried = key
    for segment, begin, end in pieces[index]:
        entries.append((segment, begin, end, key))
        out.input_ids += segment.path[begin:end]
        out.position_ids += range(begin, end)
        for position in segment.readouts(begin, end):
            for _, token, target in (t for t in segment.targets if t[0] == position):
                out.target_readouts.append(len(out.readouts))
                out.target_tokens.append(token)
                out.targets.append(target)
            out.readouts.append(key - out.num_carried + position - begin)
        key += end - begin
    for segment, begin, end, first in entries:
        below = [f + e - b for s, b, e, f in entries if segment in s.ancestors() or (s is segment and b >= begin)]
        out.segments.append([first, first + end - begin, max(below), begin])
    if index + 1 < len(pieces) and pieces[index + 1]:
        wanted = {id(segment) for segment, _, _ in carried(pieces, index + 1)}
        out.keep = [[first, first + end - begin] for s, begin, end, first in entries if id(s) in wanted]
    return out


def carried(pieces: list[list[tuple[Segment, int, int]]], index: int) -> list[tuple[Segment, int, int]]:
    """What a batch's first piece hangs below, root first."""
    segment, begin, _ = pieces[index][0]
    above = [(s, s.begin, s.end) for s in segment.ancestors()]
    return [*above, (segment, segment.begin, begin)] if begin > segment.begin else above


def visible(layout_segments: list[list[int]], num_carried: int, window: int | None = None) -> torch.Tensor:
    """Which keys each query of a batch sees, bool [T, carried + T], by the rule of one number a token."""
    keys = max(end for _, end, _, _ in layout_segments)
    subtree_end = torch.zeros(keys, dtype=torch.long)
    position = torch.zeros(keys, dtype=torch.long)
    for start, end, subtree, first in layout_segments:
        subtree_end[start:end] = subtree
        position[start:end] = torch.arange(first, first + end - start)
    k = torch.arange(keys)
    q = torch.arange(num_carried, keys).unsqueeze(1)
    seen = (k <= q) & (q < subtree_end)
    return seen if window is None else seen & (position[num_carried:].unsqueeze(1) - position < window)


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax over the visible keys, head by head; query [heads, T, d], key and value [key heads, keys, d]."""
    groups = query.shape[0] // key.shape[0]
    out = []
    for head in range(query.shape[0]):
        scores = query[head] @ key[head // groups].T * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            sink = sinks[head].expand(len(scores), 1)
            weights = torch.cat([scores, sink], dim=1).softmax(-1)[:, :-1]
        else:
            weights = scores.softmax(-1)
        out.append(weights @ value[head // groups])
    return torch.stack(out, dim=1)
