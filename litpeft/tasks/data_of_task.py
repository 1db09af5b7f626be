"""The data that a task learns from: a data module, or plain dataloaders with what the task itself knows about them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from litpeft.data import FineTuneData
from litpeft.errors import UserError
from litpeft.hub.hub import explaining_hub_errors, local_or_hub

if TYPE_CHECKING:
    from typing_extensions import Self


class PlainData:
    """Stands for the data module where a trainer gets dataloaders.

    Args:
        model_name: name of the model, whose tokenizer is used.
        label_names: names of the model's outputs; None if nobody has given their number.
        task: class of the task, for messages.
    """

    max_length = 0  # the dataloaders decide
    labels = None

    def __init__(self, model_name: str, label_names: list[str] | None, task: str) -> None:
        self.model_name, self._label_names, self._task = model_name, label_names, task

    @property
    def label_names(self) -> list[str]:
        """Names of the model's outputs.

        Raises:
            UserError: nobody has given their number.
        """
        if self._label_names is None:
            raise UserError(
                f"{self._task} does not know the number of labels: dataloaders do not have it; give num_labels, as in "
                f"{self._task}({self.model_name!r}, num_labels=2), or a data module of litpeft such as SST2."
            )
        return self._label_names

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model."""
        with explaining_hub_errors(self.model_name, "model.model_name", "a local folder"):
            path = local_or_hub(self.model_name, "model.model_name", "tokenizer_config.json")
            tokenizer = AutoTokenizer.from_pretrained(path)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def stops(self) -> tuple[list[int], list[str]]:
        """Token ids and texts that end an answer."""
        end = self.tokenizer.eos_token_id
        return ([] if end is None else [end]), []

    def class_counts(self, split: str) -> dict[str, int]:
        """Raise a UserError: the rows of dataloaders are not counted."""
        raise UserError("balanced weights need a data module of litpeft; give the weights as a list of numbers.")


class DataOfTask:
    """What a task does with its data outside of the command line.

    Attributes:
        model_name: name of the model.
        backbone: the model; None until it is built.
        num_labels: number of outputs of the model, for dataloaders.
        known_label_names: names of the outputs that the backbone was built with.
    """

    model_name: str
    num_labels: int | None = None
    known_label_names: list[str] | None = None

    @property
    def data(self) -> Any:
        """The data module of the trainer; what stands for it where the trainer has dataloaders."""
        found = getattr(self._trainer, "datamodule", None)
        if isinstance(found, FineTuneData) or hasattr(found, "label_names") or hasattr(found, "tokenizer"):
            return found
        return self.plain_data()

    def plain_data(self) -> PlainData:
        """Return what is known about dataloaders."""
        numbers = None if self.num_labels is None else [str(number) for number in range(self.num_labels)]
        return PlainData(self.model_name, self.known_label_names or numbers, type(self).__name__)

    def setup_model(self, data: L.LightningDataModule | None = None, device: str | torch.device | None = None) -> Self:
        """Load the model and apply the adapter now, so that the parameters exist before `fit`; return the task.

        Args:
            data: the data module that the task will learn from; None for dataloaders.
            device: the device that the model will be trained on: `cpu` or `cuda`; by default a GPU if there is one.
        """
        if self.backbone is not None:
            return self
        if data is None:
            data = self.plain_data()
        elif isinstance(data, FineTuneData) and not data.rows:
            if data.tokenizer_name is None:
                data.tokenizer_name = self.model_name
            data.prepare_data()
            data.setup("fit")
        self.build(data, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        return self

    def take_data(self, data: L.LightningDataModule) -> None:
        """Use the built model for another data set with the same labels: take over what its outputs mean there."""

    def check_batch(self, batch: Any, *needed: str) -> None:
        """Raise a UserError if a batch is no mapping with these tensors."""
        if not isinstance(batch, dict) and not hasattr(batch, "keys"):
            raise UserError(
                f"{type(self).__name__} takes batches that are dictionaries with {' and '.join(needed)}, and the "
                f"dataloader gives a {type(batch).__name__}."
            )
        if missing := [name for name in needed if name not in batch]:
            raise UserError(
                f"{type(self).__name__}: the batches have no {missing[0]}; they have {', '.join(batch) or 'nothing'}."
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.check_batch(batch, "labels")

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.check_batch(batch, "labels")

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.check_batch(batch, "labels")

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> Any:
        """Raise a UserError that names what to use: a checkpoint has neither base weights nor the options."""
        raise UserError(
            f"{cls.__name__}.load_from_checkpoint({str(checkpoint_path)!r}): a checkpoint holds only the trained "
            "tensors; for a run of litpeft, use litpeft.load_run(RUN_DIR).model(); for a checkpoint of your own "
            f"Trainer, make the task again as {cls.__name__}(...) and give ckpt_path to fit, validate, test or predict."
        )


def with_rows(batch: Any, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return predictions with the number of each row in its file, where the batch has it."""
    if "row" not in batch:
        return found
    return [{"row": row} | each for row, each in zip(batch["row"].tolist(), found, strict=True)]
