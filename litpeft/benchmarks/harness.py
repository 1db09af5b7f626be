"""Tasks of EleutherAI's lm-evaluation-harness on the model in training, without an export (extra `eval`).

The harness loads the task, builds the prompts and computes the scores. Log-likelihoods come from the model in training,
with shared prefixes computed once (scorer.py); everything else is computed by the harness.
"""

from __future__ import annotations

import contextlib
import copy
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
from litpeft.errors import UserError, did_you_mean
from litpeft.hub.hub import explaining_hub_errors
from litpeft.tasks import FineTuner
from litpeft.tasks.language_modelling import LanguageModelling

TASKS = Path(__file__).parent / "tasks"  # litpeft's tasks, for the include_path of the harness
OURS = ("litpeft_", "lora_insights")  # prefixes of their names
FEW_SHOT_SEED = 1234  # default of the harness for drawing few-shot examples
BOOTSTRAPS = 1000  # bootstrap samples for standard errors of scores that are not means
CPU_BATCH = 16  # batch size for requests that the harness computes; on a GPU the harness finds the largest


class HarnessTask(Benchmark):
    """A task of the harness.

    Args:
        task: task object of the harness.
    """

    def __init__(self, task: Any) -> None:
        self.name, self.task = task.config.task, task

    def check(self, task: FineTuner, data: LightningDataModule, options: Options) -> None:
        if not isinstance(task, LanguageModelling):
            kind = type(task).__name__
            raise UserError(f"benchmarks.tasks {self.name} needs a language model, not {kind}; give held_out instead.")
        if getattr(self.task, "UNSAFE_CODE", False) or getattr(self.task, "MULTIMODAL", False):
            reason = "executes code from the model" if getattr(self.task, "UNSAFE_CODE", False) else "needs images"
            raise UserError(f"benchmarks.tasks {self.name} {reason}; run it with lm-eval on an exported model.")

    def run(self, live: Live) -> Result:
        from lm_eval.evaluator import evaluate

        if "harness" not in live.memory:
            live.memory["harness"] = _live_model(live)
        self.task.set_fewshot_seed(FEW_SHOT_SEED)  # before each evaluation, so that all use the same examples
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
    """Return a result with litpeft's metric names: `acc` for `acc,none`, `exact_match.strict-match` with a filter."""
    values = {key: value for key, value in scores.items() if "," in key and isinstance(value, (int, float))}
    named = {key.removesuffix(",none").replace(",", "."): float(value) for key, value in values.items()}
    errors = {name.replace("_stderr", "", 1): value for name, value in named.items() if "_stderr" in name}
    means = {name: value for name, value in named.items() if "_stderr" not in name}
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    per_item = {}
    for name in means:
        metric, _, only = name.partition(".")
        filtered = [each for each in samples if each["filter"] == (only or "none")]
        if filtered and all(isinstance(each.get(metric), (int, float, bool)) for each in filtered):
            items = [float(each[metric]) for each in filtered]
            if math.isclose(math.fsum(items) / len(items), means[name], rel_tol=1e-6, abs_tol=1e-9):
                per_item[name] = items  # only for means: the items of a perplexity, for example, cannot be tested
    asked = {sample["doc_id"]: [repr(sample["arguments"]), repr(sample["target"])] for sample in samples}
    return Result(
        scores=means,
        items=len(asked),
        standard_errors=errors,
        num_fewshot=num_fewshot,
        fingerprint=hashlib.sha256(repr(sorted(asked.items())).encode()).hexdigest()[:16],
        per_item=per_item,
    )


def _harness_name(name: str, suffix: str = "") -> str:
    """Return the harness's name of a metric."""
    metric, _, only = name.partition(".")
    return f"{metric}{suffix},{only or 'none'}"


class HarnessGroup:
    """A group of tasks whose score the harness aggregates from the scores of its tasks.

    Args:
        group: group object of the harness.
    """

    def __init__(self, group: Any) -> None:
        self.name, self.group = group.name, group

    def result(self, results: dict[str, Result]) -> Result | None:
        """Return the aggregated result; None if the group has no aggregation or the result of a task is missing."""
        names = [task.task_name for task in self.group.get_all_tasks()]
        if not self.group.has_aggregation or not all(name in results for name in names):
            return None
        scores = {}
        for name in names:
            each = results[name]
            scores[name] = {_harness_name(metric): score for metric, score in each.scores.items()} | {
                _harness_name(metric, "_stderr"): error for metric, error in each.standard_errors.items()
            }
            scores[name]["sample_len"] = each.items
        with _quiet():
            found = self.group.aggregate(scores)
        result = _result(found, [], results[names[0]].num_fewshot)
        result.tasks = names
        result.items = sum(results[name].items for name in names)
        prints = repr([results[name].fingerprint for name in names])
        result.fingerprint = hashlib.sha256(prints.encode()).hexdigest()[:16]
        return result


def find(names: Sequence[str], options: Options) -> tuple[list[HarnessTask], list[HarnessGroup]]:
    """Return the tasks and groups for names, groups, tags, patterns (`litpeft_blimp_*`) or YAML files, without repeats.

    Raises:
        UserError: the harness is not installed, a task does not exist, or its items cannot be loaded.
    """
    with _quiet():
        try:
            import lm_eval.models.huggingface  # noqa: F401 (needs what its extra `hf` brings)
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(f"benchmarks.tasks {names[0]} needs lm-eval: pip install 'litpeft[eval]'.") from error
        ours = all(
            name.startswith(OURS) or Path(name).is_file() for name in names
        )  # indexing the harness's 14,000 tasks takes seven seconds
        metadata = {"data_dir": options.data_dir} if options.data_dir else {}
        manager = TaskManager(include_path=str(TASKS), include_defaults=not ours, metadata=metadata)
    wanted: dict[str, None] = {}
    for name in names:
        matching = [name] if Path(name).is_file() else manager.match_tasks([name])
        if not matching:
            raise UserError(f"benchmarks.tasks: lm-eval has no task {name!r}{did_you_mean(name, manager.all_tasks)}.")
        wanted |= dict.fromkeys(matching)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in wanted:
        loaded = _load(manager, name)
        tasks |= {key: task for key, task in loaded["tasks"].items() if key not in tasks}
        groups |= loaded.get("groups", {})
    for task in tasks.values():
        if task.get_config("num_fewshot") != 0 and options.num_fewshot is not None:  # a task that sets 0 requires 0
            task.set_config("num_fewshot", options.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
    return [HarnessTask(task) for task in tasks.values()], [HarnessGroup(group) for group in groups.values()]


def _load(manager: Any, name: str) -> dict[str, Any]:
    instead = "their data files with benchmarks.data_dir" if name.startswith(OURS) else "litpeft_ tasks with files"
    try:
        with explaining_hub_errors(name, "benchmarks.tasks", instead), _quiet():
            return manager.load([name])
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"benchmarks.tasks {name}: its items lack {error}.") from error
    except Exception as error:  # third-party YAML, templates and code
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"benchmarks.tasks {name} cannot be loaded: {type(error).__name__}: {reason}.") from error


def _live_model(live: Live) -> Any:
    """Return the model in training as a model of the harness that scores with shared prefixes where possible."""
    from lm_eval.models.huggingface import HFLM

    class LiveModel(HFLM):
        screen: Any = None  # the real standard error output while `_quiet` redirects it

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            rows = [self._cut(context, continuation) for _, context, continuation in requests]
            known = live.memory.setdefault("scores", {})  # MC1 and MC2 share many answers
            scorer = live.scorer(rows) if self.backend == "causal" and rows else None
            new = list(dict.fromkeys(row for row in rows if row not in known))
            ours = [row for row in new if scorer is not None and scorer.takes(row)]
            if ours:
                known.update(zip(ours, live.score(ours), strict=True))
            left = [row for row in new if row not in known]
            if left:
                rest = [(None, list(context), list(continuation)) for context, continuation in left]
                scores = super()._loglikelihood_tokens(rest, disable_tqdm=True, override_bs=override_bs)
                known.update(zip(left, scores, strict=True))
                live.tick(len(rows), len(rows))
            return [known[row] for row in rows]

        def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
            """Truncate a row from the left to the maximum length of the model, as the harness does."""
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
    with _quiet(), _no_weight_tying(model):
        return LiveModel(
            pretrained=model,
            tokenizer=copy.deepcopy(live.data.tokenizer),  # the harness changes the padding token
            batch_size=batch,
            softmax_dtype=torch.float32,
        )


@contextlib.contextmanager
def _no_weight_tying(model: torch.nn.Module) -> Iterator[None]:
    """Disable `tie_weights` inside the with block, because an adapter may have separated tied weights."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Silence the harness and its libraries inside the with block; yields the real standard error output."""
    screen, before = sys.stderr, logging.root.manager.disable
    single = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # avoids forking a process that uses a GPU for bootstraps
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
