"""Any task of EleutherAI's lm-evaluation-harness on the model in training, nothing exported (extra `eval`).

The harness finds the task, words the prompts, and makes scores of what the model says. What the model says comes from
the live one: log-likelihoods by common beginnings computed once (scorer.py), all else the way of the harness.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import io
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule

from litpeft.benchmarks.base import Benchmark, Live, Options, Result
from litpeft.errors import UserError
from litpeft.hub.hub import asking_hub
from litpeft.tasks import FineTuner
from litpeft.tasks.language_modelling import LanguageModelling

TASKS = Path(__file__).parent / "tasks"  # ours, for the harness's include_path
OURS = ("litpeft_", "lora_insights")  # what their names begin with
FEW_SHOT_SEED = 1234  # the harness's own, by which examples are drawn
BOOTSTRAPS = 1000  # draws for the standard error of a score that is no mean
CPU_BATCH = 16  # rows at once in the harness's own way; on a GPU it finds the most that fit


class HarnessTask(Benchmark):
    """A task of the harness.

    Args:
        task: as the harness has loaded it.
    """

    def __init__(self, task: Any) -> None:
        self.name, self.task = task.config.task, task

    def check(self, task: FineTuner, data: LightningDataModule, options: Options) -> None:
        if not isinstance(task, LanguageModelling):
            kind = type(task).__name__
            raise UserError(f"benchmarks.tasks {self.name} is for language models, and not for {kind}: give held_out.")
        if getattr(self.task, "UNSAFE_CODE", False) or getattr(self.task, "MULTIMODAL", False):
            what = "runs code that the model writes" if getattr(self.task, "UNSAFE_CODE", False) else "needs pictures"
            raise UserError(f"benchmarks.tasks {self.name} {what}; run it by lm-eval itself on an exported model.")

    def run(self, live: Live) -> Result:
        from lm_eval.evaluator import evaluate

        if "harness" not in live.memory:
            live.memory["harness"] = _live_model(live)
        self.task.set_fewshot_seed(FEW_SHOT_SEED)  # each time, else the next evaluation would be asked other examples
        with _quiet() as screen:
            live.memory["harness"].screen = screen
            found = evaluate(
                live.memory["harness"],
                {"tasks": {self.name: self.task}},
                limit=live.options.limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=True,
            )
        return _result(found["results"][self.name], found["samples"][self.name], found["n-shot"][self.name])


def _result(scores: dict[str, Any], samples: Sequence[dict[str, Any]], num_fewshot: int) -> Result:
    """The harness's figures by our names: `acc` of its `acc,none`, `exact_match.strict-match` where it has filters."""
    told = {key: value for key, value in scores.items() if "," in key and isinstance(value, (int, float))}
    named = {key.removesuffix(",none").replace(",", "."): float(value) for key, value in told.items()}
    errors = {name.replace("_stderr", "", 1): value for name, value in named.items() if "_stderr" in name}
    means = {name: value for name, value in named.items() if "_stderr" not in name}
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    kept = {}
    for name in means:
        metric, _, only = name.partition(".")
        own = [each for each in samples if each["filter"] == (only or "none")]
        if own and all(isinstance(each.get(metric), (int, float, bool)) for each in own):
            values = [float(each[metric]) for each in own]
            if math.isclose(math.fsum(values) / len(values), means[name], rel_tol=1e-6, abs_tol=1e-9):
                kept[name] = values  # a perplexity, say, is no mean: its items cannot be tested for it
    asked = {sample["doc_id"]: [repr(sample["arguments"]), repr(sample["target"])] for sample in samples}
    return Result(
        scores=means,
        items=len(asked),
        standard_errors=errors,
        num_fewshot=num_fewshot,
        fingerprint=hashlib.sha256(repr(sorted(asked.items())).encode()).hexdigest()[:16],
        per_item=kept,
    )


def _theirs(name: str, suffix: str = "") -> str:
    """The harness's name of one of our figures."""
    metric, _, only = name.partition(".")
    return f"{metric}{suffix},{only or 'none'}"


class HarnessGroup:
    """Several tasks with a score of their own, which the harness makes of theirs.

    Args:
        group: as the harness has loaded it.
    """

    def __init__(self, group: Any) -> None:
        self.name, self.group = group.name, group

    def result(self, results: dict[str, Result]) -> Result | None:
        """Of the results of its tasks by name; None where one is missing, or the group has no score of its own."""
        names = [task.task_name for task in self.group.get_all_tasks()]
        if not self.group.has_aggregation or not all(name in results for name in names):
            return None
        told = {}
        for name in names:
            own = results[name]
            told[name] = {_theirs(metric): score for metric, score in own.scores.items()} | {
                _theirs(metric, "_stderr"): error for metric, error in own.standard_errors.items()
            }
            told[name]["sample_len"] = own.items
        with _quiet():
            found = self.group.aggregate(told)
        result = _result(found, [], results[names[0]].num_fewshot)
        result.tasks = names
        result.items = sum(results[name].items for name in names)
        prints = repr([results[name].fingerprint for name in names])
        result.fingerprint = hashlib.sha256(prints.encode()).hexdigest()[:16]
        return result


def find(names: Sequence[str], options: Options) -> tuple[list[HarnessTask], list[HarnessGroup]]:
    """The tasks of these names, groups, tags, patterns such as `litpeft_blimp_*`, or YAML files; each once, in order.

    Raises:
        UserError: the harness is not installed, there is no such task, or its items cannot be had.
    """
    with _quiet():
        try:
            import lm_eval.models.huggingface  # noqa: F401 (needs what its extra `hf` brings)
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(f"benchmarks.tasks {names[0]} needs lm-eval: pip install 'litpeft[eval]'.") from error
        ours = all(
            name.startswith(OURS) or Path(name).is_file() for name in names
        )  # the index of its 14,000 takes seven seconds
        metadata = {"data_dir": options.data_dir} if options.data_dir else {}
        manager = TaskManager(include_path=str(TASKS), include_defaults=not ours, metadata=metadata)
    known = manager.all_tasks
    wanted: dict[str, None] = {}
    for name in names:
        matching = [name] if Path(name).is_file() else manager.match_tasks([name])
        if not matching:
            close = difflib.get_close_matches(name, known, n=1)
            guess = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"benchmarks.tasks: lm-eval has no task {name!r}{guess}.")
        wanted |= dict.fromkeys(matching)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in wanted:
        loaded = _load(manager, name)
        tasks |= {key: task for key, task in loaded["tasks"].items() if key not in tasks}
        groups |= loaded.get("groups", {})
    for task in tasks.values():
        if task.get_config("num_fewshot") != 0 and options.num_fewshot is not None:  # 0 is part of a task's definition
            task.set_config("num_fewshot", options.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
    return [HarnessTask(task) for task in tasks.values()], [HarnessGroup(group) for group in groups.values()]


def _load(manager: Any, name: str) -> dict[str, Any]:
    instead = "the released files by benchmarks.data_dir" if name.startswith(OURS) else "litpeft_ tasks with files"
    try:
        with asking_hub(name, "benchmarks.tasks", instead), _quiet():
            return manager.load([name])
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"benchmarks.tasks {name}: its items lack {error}.") from error
    except Exception as error:  # YAML, templates and code of others: a package that is not there, a key misspelt
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"benchmarks.tasks {name} cannot be loaded: {type(error).__name__}: {reason}.") from error


def _live_model(live: Live) -> Any:
    """The model in training as one of the harness's, whose log-likelihoods are computed our way where that can be."""
    from lm_eval.models.huggingface import HFLM

    class LiveModel(HFLM):
        screen: Any = None  # the standard error output, while ours hides what the harness says

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            rows = [self._cut(context, continuation) for _, context, continuation in requests]
            known = live.memory.setdefault("scores", {})  # MC1 and MC2 ask for many answers twice
            scorer = live.scorer(rows) if self.backend == "causal" and rows else None
            new = list(dict.fromkeys(row for row in rows if row not in known))
            ours = [row for row in new if scorer is not None and scorer.takes(row)]
            if ours:
                known.update(zip(ours, live.score(ours), strict=True))
            left = [row for row in new if row not in known]
            if left:
                asked = [(None, list(context), list(continuation)) for context, continuation in left]
                said = super()._loglikelihood_tokens(asked, disable_tqdm=True, override_bs=override_bs)
                known.update(zip(left, said, strict=True))
                live.tick(len(rows), len(rows))
            return [known[row] for row in rows]

        def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
            """What fits into the model, cut from the left, as the harness does."""
            if not continuation:
                raise ValueError("an answer has no tokens")
            if self.backend != "causal":
                return tuple(context), tuple(continuation)
            whole = (*context, *continuation)[-(self.max_length + 1) :]
            return whole[: -len(continuation)], tuple(continuation)

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            with contextlib.redirect_stderr(self.screen or sys.stderr):
                return super().generate_until(requests, disable_tqdm=not sys.__stderr__.isatty())

    model = live.task.backbone
    batch = live.options.batch_size or (CPU_BATCH if model.device.type == "cpu" else "auto")
    with _quiet(), _left_alone(model):
        return LiveModel(
            pretrained=model,
            tokenizer=copy.deepcopy(live.data.tokenizer),  # it would be given another padding token
            batch_size=batch,
            softmax_dtype=torch.float32,
        )


@contextlib.contextmanager
def _left_alone(model: torch.nn.Module) -> Iterator[None]:
    """Within, its weights are not tied anew: what an adapter has parted stays so."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Within, what the harness and its libraries print is not shown; yields where errors are printed else."""
    screen, before = sys.stderr, logging.root.manager.disable
    single = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # a standard error is not worth forking a process with a GPU for
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield screen
    finally:
        logging.disable(before)
        if single is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = single
