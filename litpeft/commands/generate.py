"""`litpeft generate`: answer prompts with the model of a run, on the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from litpeft.commands.parser import CommandParser
from litpeft.commands.sampling import add_answering_options, check_answering_options
from litpeft.errors import UserError

DESCRIPTION = """answer prompts with the model of a run, on the screen

Each prompt is rendered with the template that the model was trained with. A classifier, regression or image model
answers with its label and probabilities, or its value. `litpeft predict` writes the same to a file.
"""


def main(arguments: list[str]) -> int:
    parser = CommandParser("generate", description=DESCRIPTION)
    add_answering_options(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a text, or the path of an image; may be given several times"
    )
    parser.add_argument(
        "--file", type=Path, help="a .txt file with a prompt per line, or a file as --data.predict_file takes it"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="prompts that are answered together (default: 8)")
    options = parser.parse_args(arguments)
    generation = check_answering_options(options)
    if (options.prompt is None) == (options.file is None):
        raise UserError("litpeft generate: give --prompt, once or several times, or --file.")
    if options.prompt and not all(prompt.strip() for prompt in options.prompt):
        raise UserError("--prompt must not be empty.")
    if options.file and not options.file.exists():
        raise UserError(f"--file {options.file}: there is no such file.")
    if options.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, got {options.batch_size}.")
    try:
        _generate(options, generation)
    except KeyboardInterrupt:
        return 130
    return 0


def _generate(options: Any, generation: dict[str, Any]) -> None:
    import torch  # slow imports, only now: mistakes in the options were reported before

    from litpeft.cli.answering_models import load_models
    from litpeft.cli.console import quieten
    from litpeft.cli.speaker import Speaker
    from litpeft.commands.chat_sides import LabellingSide, shown, side_of
    from litpeft.tasks.language_modelling import LanguageModelling

    quieten()
    [model] = load_models(options.run_dir, None, options.accelerator)
    if not isinstance(model.run.model, LanguageModelling):
        side = side_of(model, generation, options)
        assert isinstance(side, LabellingSide)
        answers = [(text, shown(found)) for text, found in _labelled(side, options)]
    else:
        speaker = Speaker(model.run.model, model.run.datamodule, generation)
        prompts = _prompts(options, model.run.datamodule)
        torch.manual_seed(options.seed)
        if len(prompts) == 1:
            speaker.stream(speaker.fitting(prompts[0][0]), lambda piece: print(piece, end="", flush=True))
            print()
            return
        texts = [turns[-1]["content"] for turns, _ in prompts]
        answers = zip(texts, speaker.answers(prompts, options.batch_size), strict=True)
    for number, (text, answer) in enumerate(answers):  # those of a language model come batch by batch
        print(f"{chr(10) if number else ''}> {text}\n{answer}", flush=True)


def _prompts(options: Any, data: Any) -> list[tuple[list[dict[str, Any]], Any]]:
    """Return the conversations to answer, each with its tools or None."""
    from litpeft.data.files import read_rows
    from litpeft.data.messages import Unusable, conversation, find_columns

    found: list[tuple[list[dict[str, Any]], Any]] = []
    if given := options.prompt or _lines_of(options.file):
        found = [([{"role": "user", "content": text}], None) for text in given]
    else:
        named = getattr(data, "columns_given", {})
        for place, row in read_rows(options.file, {}):
            columns = find_columns(row, named, answered=False)
            if columns is None:
                raise UserError(
                    f"--file {place}: no column has prompts; it has: {', '.join(row)}; name one prompt or messages."
                )
            try:
                turns, tools = conversation(row, columns)
            except Unusable as error:
                raise UserError(f"--file {place}: {error}.") from error
            found.append((turns[:-1] if turns[-1]["role"] == "assistant" else turns, tools))
    if options.system:
        start = {"role": "system", "content": options.system}
        found = [(turns if turns[0]["role"] == "system" else [start, *turns], tools) for turns, tools in found]
    return found


def _labelled(side: Any, options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each text, or path of an image, with its prediction."""
    from litpeft.cli.given_rows import predict_file

    if given := options.prompt or _lines_of(options.file):
        yield from zip(given, side.predictions([side.parts(text) for text in given]), strict=True)
        return
    run = side.model.run
    with TemporaryDirectory() as scratch:
        path, data = str(options.file), run.datamodule
        for row in predict_file(run.model, data, path, options.accelerator, Path(scratch)):
            yield row.pop("text"), row


def _lines_of(file: Path | None) -> list[str]:
    """Return the lines of a .txt file; an empty list for other files."""
    from litpeft.runs.safe_read import read_text

    if file is None or file.suffix != ".txt":
        return []
    lines = [line.strip() for line in read_text(file, "--file").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--file {file}: the file has no lines.")
    return lines
