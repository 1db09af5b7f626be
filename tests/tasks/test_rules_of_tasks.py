"""Rules of tasks on made-up models: names of metrics, gradients, dtypes, lengths of runs, and labels of a head."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchmetrics
from lightning import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torchmetrics import classification

from litpeft.adapters import LoRA
from litpeft.data import SST2
from litpeft.errors import UserError
from litpeft.ops import products
from litpeft.tasks import SequenceClassification, compute_dtype, head_labels, run_length
from litpeft.tasks.checkpoint_origin import check_complete
from litpeft.tasks.compute_dtype import check_dtype, use_tf32
from litpeft.tasks.gradients import check_gradients, compile_blocks, enable_gradient_checkpointing
from litpeft.tasks.head_labels import match_head_labels
from litpeft.tasks.metrics import CLASSES, OverTargets, check_metrics, choose_metrics
from litpeft.tasks.run_length import total_steps
from litpeft.training.strategies import DDP, FSDP2, parallel_strategy_name
from tests.conftest import QUIET

PATH = "torchmetrics.classification."


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("accuracy", ("accuracy", "logits", "higher", "MulticlassAccuracy")),
        ("ece", ("ece", "probabilities", "lower", "MulticlassCalibrationError")),
        ("binary_f1", ("binary_f1", "second_class", "higher", "BinaryF1Score")),
        (f"{PATH}MulticlassJaccardIndex", ("jaccard_index", "probabilities", "higher", "MulticlassJaccardIndex")),
        (f"{PATH}BinaryJaccardIndex", ("jaccard_index", "second_class", "higher", "BinaryJaccardIndex")),
        (f"{PATH}MulticlassHammingDistance", ("hamming_distance", "probabilities", "lower", "MulticlassHammingDistance")),
        ({"class_path": f"{PATH}MulticlassAUROC", "name": "my auc!"}, ("my_auc_", "probabilities", "higher", "MulticlassAUROC")),
        ({"class_path": "torchmetrics.SumMetric"}, ("sum_metric", "probabilities", None, "SumMetric")),
        ({"class_path": "torchmetrics.SumMetric", "better": "lower"}, ("sum_metric", "probabilities", "lower", "SumMetric")),
        ({"class_path": "torchmetrics.Accuracy", "name": "own"}, ("own", "probabilities", "higher", "MulticlassAccuracy")),
        (f"{PATH}MulticlassROC", ("roc", "probabilities", None, "MulticlassROC")),
    ],
)  # fmt: skip
def test_a_metric_is_named_by_its_class_and_knows_its_direction(given: Any, expected: tuple[Any, ...]) -> None:
    (chosen,) = choose_metrics([given], CLASSES, 3, "probabilities")
    assert (chosen.name, chosen.uses, chosen.better, type(chosen.metric).__name__) == expected


def test_the_number_of_outputs_is_filled_in_and_options_are_given() -> None:
    given = [
        {"class_path": f"{PATH}MulticlassFBetaScore", "init_args": {"beta": 0.5, "num_classes": 7}},
        {"class_path": f"{PATH}MulticlassPrecision", "name": "other"},
        {"class_path": f"{PATH}MultilabelPrecision", "name": "sets"},
    ]
    found = choose_metrics(given, CLASSES, 3, "probabilities")
    assert [each.name for each in found] == ["f_beta_score", "other", "sets"]
    assert (found[0].metric.num_classes, found[0].metric.beta, found[1].metric.num_classes) == (7, 0.5, 3)
    assert found[2].metric.num_labels == 3
    (task,) = choose_metrics([{"class_path": "torchmetrics.Accuracy", "name": "own"}], {}, 3, "label_probabilities")
    assert isinstance(task.metric, classification.MultilabelAccuracy)
    (binary,) = choose_metrics([f"{PATH}BinarySpecificity"], {}, 3, "label_probabilities")
    assert binary.uses == "label_probabilities"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["acuracy"], "model.metrics acuracy: unknown name (did you mean accuracy?); give " + ", ".join(CLASSES) + ", or the path of a class, such as torchmetrics.classification.MulticlassAUROC."),
        (["f1", "f1"], "model.metrics: f1 is taken; give a mapping with class_path and another name."),
        ([{"class_path": "torchmetrics.SumMetric", "name": "loss"}], "model.metrics: loss is taken; give a mapping with class_path and another name."),
        ([{"class_path": "torchmetrics.SumMetric", "name": "step"}], "model.metrics: step is taken; give a mapping with class_path and another name."),
        ([{"name": "x"}], "model.metrics {'name': 'x'}: give a name, a class path, or a mapping with class_path, init_args, name, better."),
        ([{"class_path": "torchmetrics.SumMetric", "better": "more"}], "model.metrics torchmetrics.SumMetric: better must be higher or lower, got 'more'."),
        (["torchmetrics.functional"], "model.metrics torchmetrics.functional: it is no torchmetrics.Metric."),
        (["no.such.Metric"], "model.metrics no.such.Metric: there is no such class."),
        ([f"{PATH}MulticlassF1Score", "torchmetrics.SumMetric", f"{PATH}BinaryF1Score"], "model.metrics: f1_score is taken; give a mapping with class_path and another name."),
    ],
)  # fmt: skip
def test_a_mistake_in_the_metrics_is_the_whole_sentence(given: list[Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        choose_metrics(given, CLASSES, 3, "probabilities")
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("MulticlassConfusionMatrix", "model.metrics confusion_matrix: its result is 9 numbers; it must be a single number."),
        ("MulticlassROC", "model.metrics roc: its result is tuple; it must be a single number."),
        ("MulticlassAUROC", None),
    ],
)  # fmt: skip
def test_a_metric_gives_a_single_number(kind: str, sentence: str | None) -> None:
    chosen = choose_metrics([PATH + kind], {}, 3, "probabilities")
    example = {"probabilities": (torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 1]))}
    if sentence is None:
        check_metrics(chosen, example)
        assert chosen[0].metric.update_count == 0  # the made-up batch does not count
        return
    with pytest.raises(UserError) as error:
        check_metrics(chosen, example)
    assert str(error.value) == sentence


def test_a_metric_over_targets_is_the_mean_of_that_of_each() -> None:
    metric = OverTargets(torchmetrics.MeanAbsoluteError(), 2)
    predictions, targets = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.0, 2.0], [3.0, 2.0]])
    for row in range(2):
        metric.update(predictions[row : row + 1], targets[row : row + 1])
    assert metric.compute() == pytest.approx((0.5 + 1.5) / 2)
    metric.reset()
    metric.update(predictions[:1], targets[:1])
    assert metric.compute() == pytest.approx(0.5)


def parameters(**gradients: bool) -> dict[str, nn.Parameter]:
    """Return parameters; those that are True have a gradient."""
    found = {}
    for name, has in gradients.items():
        found[name.replace("__", ".")] = parameter = nn.Parameter(torch.zeros(2))
        if has:
            parameter.grad = torch.zeros(2)  # a gradient of zero is one
    return found


def test_each_kind_of_tensor_of_an_adapter_gets_a_gradient_in_some_block() -> None:
    check_gradients({}, "none")
    check_gradients(parameters(l__0__A=True, l__1__A=False, l__0__B=True, l__1__B=True), "none")
    for kind, advice in (
        ("none", "the model does not use these layers: leave them out with model.adapter.exclude"),
        ("reentrant", "model.gradient_checkpointing reentrant may be the cause: try the other kind"),
    ):
        with pytest.raises(UserError) as error:
            check_gradients(parameters(l__0__A=True, l__0__B=False, l__1__B=False, m__B=False), kind)
        assert str(error.value) == f"3 tensors of the adapter got no gradient (l.0.B, ...); {advice}."


@pytest.mark.parametrize(
    ("kind", "told"),
    [("none", []), ("reentrant", [{"use_reentrant": True}, "inputs"]), ("non_reentrant", [{"use_reentrant": False}, "no inputs"])],
)  # fmt: skip
def test_gradient_checkpointing_is_turned_on_as_asked(kind: Any, told: list[Any]) -> None:
    found: list[Any] = []
    model = SimpleNamespace(
        supports_gradient_checkpointing=True, gradient_checkpointing_enable=found.append,
        enable_input_require_grads=lambda: found.append("inputs"),
        disable_input_require_grads=lambda: found.append("no inputs"),
    )  # fmt: skip
    enable_gradient_checkpointing(model, kind)
    assert found == told
    model.supports_gradient_checkpointing = False
    if kind != "none":
        with pytest.raises(
            UserError, match=r"^model\.gradient_checkpointing: SimpleNamespace does not support it; leave"
        ):
            enable_gradient_checkpointing(model, kind)


@pytest.mark.parametrize(
    ("name", "device", "has", "said"),
    [
        ("bf16", "cpu", True, ""), ("fp32", "cpu", False, ""), ("fp32", "cuda", False, ""), ("bf16", "cuda", True, ""),
        ("bf16", "cpu", False, "litpeft: model.dtype bf16: this processor has no instructions for it, and with --model.kernels none or --model.compile_blocks true a step takes about ten times as long as in fp32; leave them out, or give --model.dtype fp32.\n"),
        ("bf16", "cuda", False, "litpeft: model.dtype bf16: Tesla T4 has no units for bf16 and is slow in it; give --model.dtype fp16.\n"),
        ("fp16", "cuda", False, ""), ("fp16", "cpu", True, ""),
    ],
)  # fmt: skip
def test_a_device_that_is_slow_in_a_dtype_is_named(
    name: str, device: str, has: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compute_dtype, "cpu_multiplies", lambda dtype: has or dtype == torch.float32)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda of: "Tesla T4")
    check_dtype(name, torch.device(device), kernels=False)
    assert capsys.readouterr().err == said
    check_dtype(name, torch.device(device))  # with kernels only a GPU is slow
    assert capsys.readouterr().err == (said if device == "cuda" else "")


def test_fp16_is_refused_where_torch_cannot_compute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("not implemented for Half")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)
    with pytest.raises(
        UserError, match=r"^model\.dtype fp16: torch cannot compute it on this CPU; give bf16 or fp32\.$"
    ):
        check_dtype("fp16", torch.device("cpu"))
    check_dtype("fp16", torch.device("cuda"))
    check_dtype("bf16", torch.device("cpu"))


def test_tf32_is_set_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((torch.backends.cuda, "matmul"), (torch.backends, "cudnn")):
        monkeypatch.setattr(module, name, SimpleNamespace(allow_tf32=False))
    for tf32, device, expected in (
        (True, "cpu", False),
        (True, "cuda", True),
        (False, "cpu", True),
        (False, "cuda", False),
        (True, "mps", False),
        (True, "meta", False),
    ):
        use_tf32(tf32, torch.device(device))
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is expected


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 30), ({"max_epochs": 3, "accumulate_grad_batches": 4}, 9), ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": 3, "max_steps": 70}, 30), ({"max_steps": 70}, 70), ({"max_epochs": -1, "max_steps": 70}, 70),
        ({}, None), ({"max_epochs": -1}, None), ({"max_epochs": 2, "limit_train_batches": 4}, 8),
        ({"max_epochs": 2, "limit_train_batches": 40}, 20), ({"max_epochs": 2, "limit_train_batches": 0.25}, 4),
        ({"max_epochs": 1, "limit_train_batches": 1.0}, 10), ({"max_epochs": 2, "limit_train_batches": 1}, 2),
    ],
)  # fmt: skip
def test_the_number_of_steps_of_a_run(options: dict[str, Any], steps: int | None) -> None:
    defaults = {"max_epochs": None, "max_steps": -1, "limit_train_batches": None, "accumulate_grad_batches": 1}
    data = SimpleNamespace(num_train_batches=10)
    assert total_steps(SimpleNamespace(datamodule=data, **defaults | options)) == steps


@pytest.mark.parametrize(("estimated", "steps"), [(12.0, 12), (float("inf"), None)])
def test_with_dataloaders_lightning_counts_the_steps(estimated: float, steps: int | None) -> None:
    trainer = SimpleNamespace(datamodule=None, max_epochs=1, max_steps=-1, estimated_stepping_batches=estimated)
    assert total_steps(trainer) == steps


def test_a_checkpoint_without_a_trained_tensor_is_not_written() -> None:
    check_complete(["a", "b", "more"], ["a", "b"])
    with pytest.raises(RuntimeError, match=r"would lack 2 trained tensors \(b, \.\.\.\); a callback removed them, and"):
        check_complete(["a"], ["c", "a", "b"])


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.score = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        with torch.no_grad():
            self.score[2].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("in_file", "names", "new", "matched", "order"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [], None, [0, 1, 2]),
        (["a", "b", "c"], [" A ", "b", "C"], [], None, [0, 1, 2]),
        (["a", "b", "c"], ["c", "a", "B"], [], {"matched_by": "name", "names": {"c": "c", "a": "a", "B": "b"}}, [2, 0, 1]),
        (["x", "y", "z"], ["c", "a", "b"], [], {"matched_by": "number", "names": {"c": "x", "a": "y", "b": "z"}}, [0, 1, 2]),
        (["a", "a", "b"], ["b", "a", "a"], [], {"matched_by": "number", "names": {"b": "a", "a": "b"}}, [0, 1, 2]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["c", "a", "b"], [], None, [0, 1, 2]),
        (["a", "b"], ["b", "a", "c"], [], None, [0, 1, 2]),
        (["a", "b", "c"], ["c", "a", "b"], [f"score.{n}.{leaf}" for n in range(3) for leaf in ("weight", "bias")], None, [0, 1, 2]),
        (["a", "b", "c"], ["c", "a", "b"], ["score.2.weight", "score.2.bias"], None, [0, 1, 2]),
    ],
)  # fmt: skip
def test_the_rows_of_a_head_are_put_into_the_order_of_the_labels(
    in_file: list[str],
    names: list[str],
    new: list[str],
    matched: Any,
    order: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_labels, "labels_in_file", lambda name: in_file)
    model, before = Classifier(), Classifier()
    before.load_state_dict(model.state_dict())
    assert match_head_labels(model, ["score"], new, "some/model", names) == matched
    assert model.score[2].bias.tolist() == order
    assert torch.equal(model.score[2].weight, before.score[2].weight[order])
    for number in (0, 1):  # not the layers before the outputs
        assert torch.equal(model.score[number].weight, before.score[number].weight)


def test_a_head_that_cannot_be_reordered_says_how_to_name_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_labels, "labels_in_file", lambda name: ["a", "b", "c"])
    model = nn.ModuleDict({"score": nn.Conv1d(3, 3, 1)})
    with pytest.raises(UserError) as error:
        match_head_labels(model, ["score"], [], "some/model", ["C", "a", "b"])
    assert str(error.value) == (
        "model.model_name some/model: its labels are in the order a, b, c, and litpeft cannot reorder this head; give "
        "--data.label_names '[a, b, C]'."
    )


@pytest.mark.parametrize("avx", [False, True])
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("onednn", [False, True])
def test_a_cpu_multiplies_bf16_with_avx512_bf16_or_amx(
    avx: bool, amx: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without oneDNN nobody knows, and nothing is said."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert compute_dtype.multiplies_bf16() is (avx or amx or not onednn)


@pytest.mark.parametrize(("answer", "expected"), [(True, True), (False, False), (RuntimeError(), True), (None, True)])
def test_onednn_says_whether_it_computes_16_bit_numbers(
    answer: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say() -> bool:
        if isinstance(answer, Exception):
            raise answer
        return answer

    names = "_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"
    onednn = SimpleNamespace() if answer is None else SimpleNamespace(**dict.fromkeys(names, say))
    monkeypatch.setattr(torch.ops, "mkldnn", onednn)  # without the function: a build of torch without oneDNN
    assert products._slow_on_cpu() == (frozenset() if expected else {torch.bfloat16, torch.float16})


def test_blocks_are_compiled_for_any_length_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: told.append((self, options)))
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2), nn.ReLU()]), "head": nn.Linear(2, 2)})
    compile_blocks(model)
    assert told == [(block, {"dynamic": True}) for block in model["blocks"]]


def test_the_labels_of_a_file_are_in_the_order_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_labels, "local_or_hub", lambda name, option: name)
    for labels, expected in (({2: "c", 0: "a", 1: 7}, ["a", "7", "c"]), (None, []), ({}, [])):
        config = SimpleNamespace(id2label=labels)
        monkeypatch.setattr(head_labels, "AutoConfig", SimpleNamespace(from_pretrained=lambda path, c=config: c))
        assert head_labels.labels_in_file("some/model") == expected


class Refusing(torchmetrics.SumMetric):
    """A metric whose constructor fails."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        raise {each.__name__: each for each in (TypeError, ValueError, RuntimeError, ImportError)}[kind]("not here")


@pytest.mark.parametrize("kind", ["TypeError", "ValueError", "RuntimeError", "ImportError"])
def test_a_metric_that_cannot_be_made_says_why(kind: str) -> None:
    path = f"{__name__}.Refusing"
    with pytest.raises(UserError, match=rf"^model\.metrics {path}: not here$"):
        choose_metrics([{"class_path": path, "init_args": {"kind": kind}}], {}, 3, "probabilities")


@pytest.mark.parametrize(
    ("saved", "interval", "moved"),
    [(4, "step", True), (None, "step", False), (8, "step", False), (4, "epoch", False), (4, None, False)],
)
def test_a_schedule_is_continued_if_the_run_has_another_length(
    saved: int | None, interval: str | None, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(run_length, "fast_forward", lambda *given: told.append(given))
    schedules = [] if interval is None else [SimpleNamespace(interval=interval, scheduler="the schedule")]
    trainer = SimpleNamespace(lr_scheduler_configs=schedules, optimizers=["the optimizer"], global_step=3)
    fresh = {"optimizer": "new optimizer", "lr_scheduler": {"scheduler": "new schedule"}}
    task = SimpleNamespace(trainer=trainer, total_steps=lambda: 8, configure_optimizers=lambda: fresh)
    run_length.continue_schedule(task, saved)
    expected = [("the schedule", "the optimizer", ("new optimizer", "new schedule"), 3)]
    assert told == (expected if moved else [])


class Loses(Callback):
    """Loses the gradients of an adapter, or the numbers in a head, at a batch."""

    def __init__(self, gradients: bool = False, nan_at: int = -1) -> None:
        self.gradients, self.nan_at = gradients, nan_at

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, number: int) -> None:
        if number == self.nan_at:
            task.backbone.classifier.weight.data.fill_(torch.nan)

    def on_before_optimizer_step(self, trainer: Any, task: Any, optimizer: Any) -> None:
        if self.gradients:
            for parameter in task.adapter.added(task.backbone).values():
                parameter.grad = None


@pytest.mark.parametrize(
    ("callback", "step", "sentence"),
    [
        (Loses(gradients=True), 0, "8 tensors of the adapter got no gradient"),
        (Loses(nan_at=0), 0, r"the training loss is nan at step 0 \(batch 0 of epoch 0, learning rate 0.001\)"),
        (Loses(nan_at=3), 3, r"the training loss is nan at step 3 \(batch 3 of epoch 0, learning rate 0.001\)"),
    ],
)
def test_a_run_on_a_cpu_ends_before_the_step_that_would_spoil_its_weights(
    callback: Callback, step: int, sentence: str, tiny_model: str, sentences: dict[str, str]
) -> None:
    data = SST2(train_file=sentences["train"], val_file=sentences["val"], batch_size=2)
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    task = SequenceClassification(tiny_model, adapter=LoRA(rank=2, targets=["query", "value"]), optimizer=optimizer)
    trainer = Trainer(**QUIET | {"max_steps": 6, "limit_val_batches": 0, "callbacks": [callback]}, log_every_n_steps=50)
    with pytest.raises(UserError, match=sentence):
        trainer.fit(task, data)
    assert trainer.global_step == step


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"label_smoothing": 0.0}, True), ({"label_smoothing": 0.99}, True), ({"label_smoothing": 1.0}, False),
        ({"label_smoothing": -0.01}, False), ({"num_labels": 1}, True), ({"num_labels": 0}, False),
        ({"class_weights": [0.0, 1.0]}, True), ({"class_weights": [-0.1, 1.0]}, False),
    ],
)  # fmt: skip
def test_the_limits_of_a_classifier(options: dict[str, Any], allowed: bool) -> None:
    if allowed:
        assert {name: getattr(SequenceClassification("x", **options), name) for name in options} == options
    else:
        with pytest.raises(UserError, match=rf"^model\.{next(iter(options))} must "):
            SequenceClassification("x", **options)


@pytest.mark.parametrize(
    ("strategy", "name"), [(DDP(), "ddp"), (FSDP2(), "fsdp2"), (SingleDeviceStrategy(), "one_device")]
)
def test_the_record_names_the_strategy(strategy: Any, name: str) -> None:
    assert parallel_strategy_name(strategy) == name
