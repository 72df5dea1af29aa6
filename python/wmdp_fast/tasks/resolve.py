"""What can be evaluated: task and group definitions under lm-eval's names, and local question files as tasks.

`resolve` turns what a user asks for into a `Selection`: tasks in the order lm-eval would run them, the groups above
them, and what the user should be told. Where a task's files come from is `wmdp_fast.data.locate`'s business.

The definitions are those of lm-eval 0.4.13 (`wmdp`, `mmlu`, `mmlu_continuation`) and of the lm-eval task files that
come with Deep Ignorance (O'Brien et al. 2025; `wmdp_bio_robust`, `wmdp_bio_shortcut`, `wmdp_bio_cloze_verified`).
Dataset revisions are pinned where a known-good one exists; lm-eval itself does not pin them.
"""

from __future__ import annotations

import difflib
import errno
import importlib.util
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.data.locate import local_questions, without_extension
from wmdp_fast.exceptions import TaskError
from wmdp_fast.tasks.compat import COMPATS, Compat
from wmdp_fast.tasks.definitions import (
    GROUPS,
    SUBJECTS,
    TAGS,
    TASKS,
    continuation_description,
    letters_description,
    mmlu_continuation_task,
    mmlu_task,
)
from wmdp_fast.tasks.fewshot import check_num_fewshot, with_fewshot_file, with_num_fewshot
from wmdp_fast.tasks.task import DEFAULT_METRICS, Choices, Group, Task
from wmdp_fast.tasks.typed_text import typed_line_breaks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from wmdp_fast.data.locate import QuestionFiles


@dataclass(frozen=True)
class Selection:
    """What `resolve` made of a request.

    Attributes:
        tasks: Each task once, in the order of lm-eval; `num_fewshot` is set on all of them.
        groups: Each group once, parents before their children.
        compat: The lm-eval version whose rules hold.
        warnings: What the user should be told, one sentence each.
    """

    tasks: tuple[Task, ...]
    groups: tuple[Group, ...]
    compat: Compat
    warnings: tuple[str, ...] = ()

    def leaves(self, group: Group) -> tuple[Task, ...]:
        """The tasks below a group at any depth, in order."""
        tasks = {task.name: task for task in self.tasks}
        groups = {other.name: other for other in self.groups}

        def walk(name: str) -> Iterator[Task]:
            if name in groups:
                for child in groups[name].children:
                    yield from walk(child)
            else:
                yield tasks[name]

        return tuple(dict.fromkeys(walk(group.name)))


def _compat(name: str) -> Compat:
    if name not in COMPATS:
        raise TaskError(f"unknown lm-eval version {name!r} to be compatible with; known: {', '.join(COMPATS)}")
    return COMPATS[name]


def without_tasks(compat: str = "current") -> Selection:
    """A selection of no tasks, for runs that only read texts.

    Raises:
        TaskError: The lm-eval version is unknown.
    """
    return Selection(tasks=(), groups=(), compat=_compat(compat))


def resolve(
    names: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    subjects: str | Iterable[str] | None = None,
    num_fewshot: int | None = None,
    template: str | None = None,
    choices: Choices | None = None,
    description: str | None = None,
    fewshot_file: str | os.PathLike[str] | None = None,
    compat: str | Compat = "current",
) -> Selection:
    r"""Turns task names and paths into tasks and groups.

    A name is that of a task, group or tag; commas separate several. A path is a question file, or a folder of them, in
    which every file (or, in the hub's layout, every configuration) becomes a task named after it; several form a group
    named after the folder. A known name wins over a file of that name, which `./name` reaches.

    Args:
        names: What to evaluate.
        subjects: Keep only these MMLU subjects; tasks that are not by subject stay.
        num_fewshot: Few-shot examples for each prompt. None is 0. Tasks defined as 0-shot stay so, and a warning says
            it.
        template: How to ask the questions of local files: as a task of this name does (`mmlu` and `mmlu_continuation`
            with the file's name as the subject), or a Jinja template as in lm-eval's `doc_to_text`. None is MMLU's
            prompt without a description.
        choices: `letters` or `texts` continue the prompts of local files. The default follows `template`; with a Jinja
            template it is `letters` if the template mentions `choices`, else `texts`.
        description: Plain text before the prompts of local files, instead of the template's.
        fewshot_file: A question file whose first questions are the few-shot examples of local files. Without it those
            of `x.jsonl` are in `x_dev.jsonl` beside it.
        compat: The lm-eval version to follow: `0.4.2`, `0.4.9` or `current`.

    Returns:
        The tasks, each with its final `num_fewshot`, their groups, and warnings for the user.

    Raises:
        TaskError: A name, subject, template or version is unknown (close matches are named), an option applies to
            nothing, two files would get the same name, or few-shot examples are asked of files that come without any.
        FileNotFoundError: A path does not exist.
        DataUnavailableError: A folder holds no question file.
    """
    requested = list(_split(names))
    if not requested:
        raise TaskError("no task was named; `wmdp-fast tasks` lists them, and a path of a question file is one too")
    check_num_fewshot(num_fewshot)
    rules = _compat(compat) if isinstance(compat, str) else compat
    tasks, groups = _expand_all(requested, template, choices, description)
    of_files = {"template": template, "choices": choices, "description": description, "fewshot_file": fewshot_file}
    _refuse_without_files(of_files, tasks, requested)
    tasks, groups = _keep_subjects(tasks, groups, subjects)
    if fewshot_file is not None:
        tasks = with_fewshot_file(tasks, Path(fewshot_file), num_fewshot)
    tasks, warnings = with_num_fewshot(tasks, num_fewshot)
    warnings += tuple(typed_line_breaks({"template": template, "description": description}))
    return Selection(tuple(map(rules.task, tasks.values())), tuple(map(rules.group, groups.values())), rules, warnings)


def _split(names: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """The single names in `names`. A comma separates two, unless the whole is the path of something that exists."""
    for name in [names] if isinstance(names, (str, os.PathLike)) else names:
        if isinstance(name, os.PathLike):
            # A path object is never a task's name, even if it reads like one.
            text = os.fspath(name)
            yield text if os.sep in text else os.path.join(os.curdir, text)  # noqa: PTH118 (Path drops the leading dot)
        elif "," in name and not _exists(name):
            yield from filter(None, (part.strip() for part in name.split(",")))
        elif name.strip():
            yield name.strip()


def _expand_all(
    requested: Iterable[str], template: str | None, choices: Choices | None, description: str | None
) -> tuple[dict[str, Task], dict[str, Group]]:
    """The tasks and groups behind some names and paths, each once, parents before their children."""
    tasks: dict[str, Task] = {}
    groups: dict[str, Group] = {}
    for name in requested:
        for item in _expand(name, template, choices, description):
            _add(item, tasks, groups)
    return tasks, _parents_first(groups)


def _refuse_without_files(options: Mapping[str, object], tasks: dict[str, Task], requested: Iterable[str]) -> None:
    """Raises TaskError if an option for local question files is set and there are none."""
    if any(task.test_files for task in tasks.values()):
        return
    for option, value in options.items():
        if value is not None:
            raise TaskError(
                f"{option} is for question files given by path; {', '.join(requested)} are defined with theirs"
            )


def _expand(
    name: str, template: str | None, choices: Choices | None, description: str | None
) -> Iterator[Task | Group]:
    """The group and tasks behind one name or path; a group comes before what is below it."""
    if name in GROUPS:
        yield GROUPS[name]
        for child in GROUPS[name].children:
            yield from _expand(child, None, None, None)
    elif name in TASKS:
        yield TASKS[name]
    elif name in TAGS:
        yield from (TASKS[task] for task in TAGS[name])
    elif _looks_like_path(name):
        if not _exists(name):
            raise FileNotFoundError(errno.ENOENT, "no such question file or folder", name)
        found = [_local_task(name, files, template, choices, description) for files in local_questions(Path(name))]
        if len(found) > 1:
            folder = _sanitize(Path(name).resolve().name)
            yield Group(folder, folder, tuple(task.name for task in found), found[0].metrics)
        yield from found
    else:
        raise TaskError(
            f"unknown task {name!r}{_file_of(name) or _close(name, [*TASKS, *GROUPS, *TAGS])};"
            " `wmdp-fast tasks` lists all of them;"
            f" {_about_lm_eval(name)}"
        )


def _about_lm_eval(name: str) -> str:
    """Where a task may be known, looked up by the names of lm-eval's files: to load its tasks takes seconds."""
    command = f"`wmdp-fast lm-eval run --model wmdp-fast --model_args pretrained=MODEL --tasks {name}`"
    lm_eval = importlib.util.find_spec("lm_eval")
    folders = lm_eval.submodule_search_locations if lm_eval is not None else None
    if folders and re.fullmatch(r"\w[\w-]*", name) and any((Path(folders[0]) / "tasks").rglob(f"{name}.yaml")):
        return f"lm-eval has one of that name: {command}"
    return "what lm-eval knows beside them runs with `wmdp-fast lm-eval run`"


def _looks_like_path(name: str) -> bool:
    return os.sep in name or without_extension(name) is not None or _exists(name)


def _exists(name: str) -> bool:
    return os.path.exists(name)  # noqa: PTH110 (Path.exists raises on what is too long for a path, as a list of names may be)


def _add(item: Task | Group, tasks: dict[str, Task], groups: dict[str, Group]) -> None:
    known: Task | Group | None = tasks.get(item.name) or groups.get(item.name)
    if known is not None and known != item:
        if isinstance(known, Task) and isinstance(item, Task) and _asks_the_same(known, item):
            return  # the same file by two spellings of its path
        sources = " and ".join(_source(one) for one in (known, item))
        raise TaskError(
            f"{sources} would both be called {item.name!r} in the results; rename one of them, or run them one by one"
        )
    if isinstance(item, Task):
        tasks[item.name] = item
    else:
        groups[item.name] = item


def _asks_the_same(one: Task, other: Task) -> bool:
    """Whether two tasks are the same but for how the paths of their files are written."""

    def resolved(task: Task) -> Task:
        test, fewshot = (tuple(file.resolve() for file in files) for files in (task.test_files, task.fewshot_files))
        return replace(task, dataset="", test_files=test, fewshot_files=fewshot)

    return bool(one.test_files) and resolved(one) == resolved(other)


def _parents_first(groups: dict[str, Group]) -> dict[str, Group]:
    """The groups in the order of a walk from the topmost ones; `mmlu_stem,mmlu` would leave the child first."""
    below = {child for group in groups.values() for child in group.children}
    ordered: dict[str, Group] = {}

    def walk(name: str) -> None:
        if name in groups and name not in ordered:
            ordered[name] = groups[name]
            for child in groups[name].children:
                walk(child)

    for name in groups:
        if name not in below:
            walk(name)
    return ordered


def _source(item: Task | Group) -> str:
    if isinstance(item, Group):
        return f"the group {item.name!r}"
    # As it was given: two spellings of a path may look the same once they are parsed.
    return item.dataset if item.test_files else f"the task {item.name!r}"


def _local_task(
    path: str, files: QuestionFiles, template: str | None, choices: Choices | None, description: str | None
) -> Task:
    name = _sanitize(files.name)
    base = _template_task(template, topic=files.name.replace("_", " "))
    if choices is not None and choices != base.choices:
        base = replace(base, choices=choices, metrics=("acc",) if choices == "letters" else DEFAULT_METRICS)
    return Task(
        name=name,
        alias=name,
        dataset=path,
        config=None,
        test_split=files.test_split,
        fewshot_split=files.fewshot_split,
        description=base.description if description is None else _plain(description),
        doc_to_text=base.doc_to_text,
        choices=base.choices,
        doc_to_target=base.doc_to_target,
        metrics=base.metrics,
        test_files=files.test,
        fewshot_files=files.fewshot,
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _plain(description: str) -> str:
    """A description as lm-eval, which renders it with Jinja, would print it if there is no Jinja in it."""
    if found := re.search(r"\{[{%#]", description):
        raise TaskError(
            f"the description has {found[0]} in it, which is Jinja to lm-eval, rendered for each question; here a"
            " description is plain text: leave it out, or put the text into the template, before the question"
        )
    # Jinja takes every line end for this one.
    return re.sub(r"\r\n?", "\n", description)


def _template_task(template: str | None, topic: str) -> Task:
    """A task whose prompts, description and metrics a local file takes over."""
    if template is None:
        return replace(mmlu_task(topic), description="")
    if template == "mmlu":
        return replace(mmlu_task(topic), description=letters_description(topic))
    if template == "mmlu_continuation":
        return replace(mmlu_continuation_task(topic), description=continuation_description(topic))
    if template in TASKS:
        return TASKS[template]
    if "{{" in template or "{%" in template:
        letters = re.search(r"\bchoices\b", template) is not None
        return replace(
            mmlu_task(topic),
            description="",
            doc_to_text=template,
            choices="letters" if letters else "texts",
            metrics=("acc",) if letters else DEFAULT_METRICS,
        )
    close = _close(template, ["mmlu", "mmlu_continuation", *TASKS])
    raise TaskError(
        f"unknown template {_short(template)}{close}; a Jinja template has {{{{ }}}} in it, e.g. {{{{question}}}}"
    )


def _keep_subjects(
    tasks: dict[str, Task], groups: dict[str, Group], subjects: str | Iterable[str] | None
) -> tuple[dict[str, Task], dict[str, Group]]:
    """Drops the tasks of other subjects, then the groups that have become empty."""
    if subjects is None:
        return tasks, groups
    listed = subjects.split(",") if isinstance(subjects, str) else list(subjects)
    wanted = {subject.strip().replace(" ", "_") for subject in listed} - {""}
    available = sorted({task.subject for task in tasks.values() if task.subject})
    if not wanted:
        raise TaskError("the list of subjects is empty; leave it out to keep all of them")
    for subject in sorted(wanted.difference(available)):
        if subject in SUBJECTS:
            raise TaskError(f"the subject {subject!r} is in none of the tasks asked for")
        raise TaskError(f"unknown subject {subject!r}{_close(subject, available)}")
    tasks = {name: task for name, task in tasks.items() if task.subject is None or task.subject in wanted}
    # Children come after their parents, so that in reverse order a group's children are settled before it.
    kept: dict[str, Group] = {}
    for name, group in reversed(groups.items()):
        children = tuple(child for child in group.children if child in tasks or child in kept)
        if children:
            kept[name] = replace(group, children=children)
    return tasks, dict(reversed(kept.items()))


def _sanitize(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _file_of(name: str) -> str:
    """Names the question file here that is called so but for its extension, if there is one."""
    files = [
        f"{name}.{extension}" for extension in ("csv", "json", "jsonl", "parquet") if _exists(f"{name}.{extension}")
    ]
    return f"; did you mean the file {' or '.join(files)}?" if files else ""


def _close(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
