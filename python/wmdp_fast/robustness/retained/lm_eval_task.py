"""Tasks that lm-eval runs, such as GSM8K and IFEval: it is handed the open model, and its results are taken back.

Rule-scored generation is the strongest cheap sign of damage that answers by letter do not show.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from wmdp_fast import _rust
from wmdp_fast.exceptions import WmdpFastError
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.robustness.retained.measure import Figure, RetainedMeasure
from wmdp_fast.scoring.padded import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wmdp_fast.robustness.retained.measure import Unit
    from wmdp_fast.robustness.subject import Subject
    from wmdp_fast.scoring.local import LocalModel

# Prompts that lm-eval runs at once.
_BATCH = 16

# Metrics that are shares of questions; of others the number of trials is not known here.
_SHARES = ("exact_match", "acc", "acc_norm", "prompt_level_strict_acc", "prompt_level_loose_acc")


@dataclass(frozen=True)
class LmEvalTask(RetainedMeasure):
    """A task of lm-eval.

    Attributes:
        task: Its name there, or a YAML file with one, which is called as its file is.
        limit: Only the first questions: a number, or a share below 1.
    """

    kind: ClassVar[str] = "lm_eval"
    task: str
    limit: float | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return Path(self.task).stem if self._is_file else self.task

    @property
    def _is_file(self) -> bool:
        return Path(self.task).is_file()

    def identity(self) -> dict[str, Any]:
        """The task, the hash of its file if it is one, and how many questions."""
        file = {"sha256": hashlib.sha256(Path(self.task).read_bytes()).hexdigest()} if self._is_file else {}
        return {"task": self.name, "limit": self.limit, **file}

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Has lm-eval run the task on the model, through its chat template if it has one.

        Raises:
            WmdpFastError: lm-eval is not installed, does not know the task, or fails.
        """
        model = subject.model
        chat = bool(getattr(model.tokenizer, "chat_template", None))
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise WmdpFastError("lm-eval is not installed; pip install 'wmdp-fast[lm-eval]'") from error
        try:
            with evaluation_mode(model.loaded.model):
                ran: Any = lm_eval.simple_evaluate(
                    HFLM(pretrained=model.loaded.model, tokenizer=model.tokenizer, batch_size=_BATCH),
                    tasks=[self.name],
                    task_manager=self._task_manager(),
                    limit=self.limit,
                    apply_chat_template=chat,
                    bootstrap_iters=0,
                    log_samples=False,
                )
        except Exception as error:
            # Whatever goes wrong in a task that is lm-eval's, a data set out of reach or a package that it lacks.
            if is_out_of_memory(error):
                raise
            raise WmdpFastError(f"lm-eval: {type(error).__name__}: {error}") from error
        return {
            "metrics": _metrics(ran["results"][self.name]),
            "n": ran["n-samples"][self.name]["effective"],
            "chat_template": chat,
            "lm_eval": lm_eval.__version__,
            "command": self.command(model, chat=chat),
        }

    def command(self, model: LocalModel, *, chat: bool) -> str:
        """The command that does the same by itself."""
        words = ["lm-eval", "run", "--model", "hf", "--model_args", f"pretrained={model.name},dtype={model.dtype}"]
        words += ["--tasks", self.name, *(["--include_path", str(Path(self.task).parent)] if self._is_file else [])]
        words += ["--batch_size", str(_BATCH)]
        words += ["--apply_chat_template"] if chat else []
        return shlex.join([*words, *(["--limit", f"{self.limit:g}"] if self.limit is not None else [])])

    def _task_manager(self) -> Any:
        """What finds the task: among lm-eval's own, or beside its file alone."""
        from lm_eval.tasks import TaskManager

        folder = str(Path(self.task).resolve().parent)
        return TaskManager(include_path=folder, include_defaults=False) if self._is_file else TaskManager()


def figures(name: str, found: Mapping[str, Any] | None, why: str) -> list[Figure]:
    """Each metric of the task; Wilson's interval where it is a share of questions."""
    if found is None:
        return [Figure(title=f"{name} (lm-eval)", value=None, why=why)]
    n, way = found["n"], ", chat template" if found["chat_template"] else ""
    shown = []
    for metric, value in found["metrics"].items():
        is_share = metric.partition(",")[0] in _SHARES
        low, high = _rust.wilson(round(value * n), n) if is_share else (None, None)
        unit: Unit = "%" if is_share or metric.startswith("inst_level") else ""
        shown.append(Figure(title=f"{name} {metric} (lm-eval{way})", value=value, low=low, high=high, n=n, unit=unit))
    return shown


def _metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a task by name, with their filter if they have one."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in entry.items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }
