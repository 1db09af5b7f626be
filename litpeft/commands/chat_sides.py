"""The sides of a chat: a model that answers in turns, or one that labels what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from litpeft.cli.answering_models import AnsweringModel
from litpeft.cli.given_rows import predict_given
from litpeft.cli.speaker import Speaker
from litpeft.errors import UserError
from litpeft.tasks.language_modelling import LanguageModelling

MOST_SHOWN = 5  # probabilities of a prediction


class Side(Protocol):
    """One model of a chat.

    Attributes:
        name: name for the user.
        asks_for: what the user types, for a hint.
    """

    name: str
    asks_for: str

    def answer(self, text: str, write: Callable[[str], None]) -> None:
        """Answer a text, and pass the answer to `write` in pieces."""

    def reset(self) -> None:
        """Forget the conversation."""

    def saved(self) -> list[dict[str, Any]]:
        """Return the conversation as rows of a JSON Lines file."""


class SpeakingSide:
    """A language model with its own history of the conversation.

    Args:
        model: the model.
        generation: arguments of the model's `generate`.
        system: system text that the conversation begins with.
        seed: random seed of sampling; each answer depends on it and on the number of turns before the answer only.

    Raises:
        UserError: the run was trained on plain text, which has no turns.
    """

    asks_for = "a question"

    def __init__(self, model: AnsweringModel, generation: Mapping[str, Any], system: str | None, seed: int) -> None:
        self.name, self._model, self._seed = model.name, model, seed
        self._speaker = Speaker(model.run.model, model.run.datamodule, generation)
        if not self._speaker.has_turns:
            raise UserError(f"{model.run.run_dir} was trained on plain text, without turns; use litpeft generate.")
        self._start = [{"role": "system", "content": system}] if system else []
        self.turns = list(self._start)

    def answer(self, text: str, write: Callable[[str], None]) -> None:
        turns = [*self.turns, {"role": "user", "content": text}]
        read = self._speaker.fitting(turns)
        if len(read) < len(turns):
            write(f"[the oldest {len(turns) - len(read)} turns do not fit into the model's context] ")
        torch.manual_seed(self._seed + len(turns))
        with self._model.ready():
            answer = self._speaker.stream(read, write)
        if answer:  # else Ctrl-C came before the first word
            self.turns = [*turns, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        self.turns = list(self._start)

    def saved(self) -> list[dict[str, Any]]:
        return [{"messages": self.turns, "model": self.name}] if len(self.turns) > len(self._start) else []


class LabellingSide:
    """A classifier, regression model or image model, which labels each text or image by itself.

    Args:
        model: the model.
        accelerator: as `--trainer.accelerator`.
    """

    def __init__(self, model: AnsweringModel, accelerator: str) -> None:
        self.name, self.model, self._accelerator = model.name, model, accelerator
        data = model.run.datamodule
        columns = getattr(data, "text_columns", ())
        self._columns = columns if len(columns) > 1 else ()
        pair = f"{' and '.join(self._columns)}, with a tab between them"
        self.asks_for = pair if self._columns else "the path of an image" if hasattr(data, "image_column") else "a text"
        self._rows: list[dict[str, Any]] = []

    def answer(self, text: str, write: Callable[[str], None]) -> None:
        [found] = self.predictions([self.parts(text)])
        self._rows.append({"text": text} | found | {"model": self.name})
        write(shown(found))

    def parts(self, text: str) -> str | list[str]:
        """Return a text as the model takes it: in parts, if it was trained on several columns.

        Raises:
            UserError: the text has more or fewer parts.
        """
        if not self._columns:
            return text
        if len(parts := text.split("\t")) != len(self._columns):
            raise UserError(f"the model takes {self.asks_for}.")
        return parts

    def predictions(self, given: list[Any]) -> list[dict[str, Any]]:
        """Return a prediction for each text, list of texts, or path of an image."""
        run = self.model.run
        with TemporaryDirectory() as scratch, self.model.ready():
            try:
                return predict_given(run.model, run.datamodule, given, self._accelerator, Path(scratch))
            except UserError as error:
                raise UserError(str(error).replace(f"{scratch}/texts.jsonl", "the text")) from error

    def reset(self) -> None:
        self._rows = []

    def saved(self) -> list[dict[str, Any]]:
        return self._rows


def side_of(model: AnsweringModel, generation: Mapping[str, Any], options: Any) -> Side:
    """Return the side of a model.

    Args:
        model: the model.
        generation: arguments of the model's `generate`.
        options: the options of the command.

    Raises:
        UserError: an option is for language models only.
    """
    if isinstance(model.run.model, LanguageModelling):
        return SpeakingSide(model, generation, options.system, options.seed)
    if options.system:
        raise UserError(f"--system is for language models, and {model.run.run_dir} predicts labels; leave it out.")
    return LabellingSide(model, options.accelerator)


def shown(prediction: Mapping[str, Any]) -> str:
    """Return a prediction as text: label or labels, and probabilities, or values."""
    if "values" in prediction:
        return ", ".join(f"{name} {value:.4g}" for name, value in prediction["values"].items())
    if "response" in prediction:
        return prediction["response"]
    likely = sorted(prediction["probabilities"].items(), key=lambda pair: -pair[1])
    more = ", ..." if len(likely) > MOST_SHOWN else ""
    listed = ", ".join(f"{name} {probability:.1%}" for name, probability in likely[:MOST_SHOWN])
    labels = [prediction["label"]] if "label" in prediction else prediction["labels"]
    return f"{', '.join(labels) or 'no label'} ({listed}{more})"
