"""Hypothesis strategies for cases: valid command lines and files with one or two changes."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from litpeft.cli import lightning_cli
from litpeft.cli.class_options import CLASSES, arguments_of
from litpeft.runs.record import FIELDS
from litpeft.sweeps.experiment import KEYS
from tests.fuzz.values import ARGUMENTS, TREES
from tests.fuzz.watch import Case
from tests.fuzz.world import EXPERIMENT, LINES, LORA, QLORA, nested

Draw = Callable[[st.SearchStrategy], Any]
CLASS_OPTIONS = ("model", "data", "model.adapter", "model.optimizer", "model.scheduler")
# cases with these options, which need a process, a network or minutes, are built but not trained
NOT_TRAINED = (
    "num_workers",
    "compile_blocks",
    "strategy",
    "profiler",
    "measure_peak",
    "benchmarks",
    "plugins",
    "logger",
)
NOT_TRAINED += ("callbacks", "detect_anomaly", "num_nodes", "devices")
HELP = ("help", "print_config", "config")


def known_options() -> list[str]:
    """Return every option of `fit`, including those of its classes."""
    found: list[str] = []

    class OptionCollector(lightning_cli.LitPeftCLI):
        def setup_parser(self, *arguments: Any) -> None:
            super().setup_parser(*arguments)
            found.extend(action.dest for action in self._subcommand_parsers["fit"]._actions)
            raise SystemExit

    with suppress(SystemExit):
        OptionCollector("fit", [])
    options = [name for name in found if name.rpartition(".")[2] not in HELP]
    kinds = {path: kind for path, kind in CLASSES.items() if path in CLASS_OPTIONS}
    return options + [f"{path}.{name}" for path, kind in kinds.items() for name in sorted(arguments_of(kind))]


OPTIONS = known_options()


def _typo(draw: Draw, name: str) -> str:
    place, letter = draw(st.integers(0, len(name))), draw(st.sampled_from("aexz_.-0é"))
    kind = draw(st.sampled_from(["add", "drop", "swap", "upper", "double"]))
    if kind == "drop":
        return name[:place] + name[place + 1 :]
    if kind == "swap":
        return name[:place] + name[place : place + 2][::-1] + name[place + 2 :]
    if kind == "upper":
        return name.upper()
    return name[:place] + (letter if kind == "add" else name[max(0, place - 1) : place]) + name[place:]


def _last(option: str) -> str:
    """Return the last part of an option name."""
    return option.rpartition(".")[2]


@st.composite
def lines(draw: Draw, verb: str = "fit") -> Case:
    """Return a command line with one or two changed options."""
    pairs = list(draw(st.sampled_from(LINES)).items())
    named: list[str] = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        place = draw(st.integers(0, len(pairs) - 1)) if pairs else 0
        kind = draw(
            st.sampled_from(["value", "value", "extra", "extra", "extra", "typo", "drop", "again", "order", "foreign"])
        )
        option, value = pairs[place] if pairs else ("data", "SST2")
        if kind == "value":
            value = draw(ARGUMENTS)
            pairs[place : place + 1] = [(option, value)]
        elif kind == "extra":
            option, value = draw(st.sampled_from(OPTIONS)), draw(ARGUMENTS)
            pairs.append((option, value))
            named += ["trainer.devices"] if option == "trainer.num_nodes" else []
        elif kind == "typo":
            pairs[place : place + 1] = [(_typo(draw, option), value)]
        elif kind == "drop":
            del pairs[place : place + 1]
        elif kind == "again":
            pairs.append((option, draw(ARGUMENTS)))
        elif kind == "order":
            pairs = draw(st.permutations(pairs))
        else:
            option, value = draw(st.sampled_from(sorted((LORA | QLORA).items())))
            pairs.append((option, value))
        named += [option, *(name for name, _ in pairs)] if option in CLASS_OPTIONS or kind == "order" else [option]
        named += ["data.tokenizer"] if option == "model.model_name" else []  # its default is the model name
        named += ["--data"] if value == "--data" else []  # parsed as an option
        # the message for an option of an unnamed class names the option that takes the class
        named += [
            f"{above}{end}"
            for above in CLASS_OPTIONS[2:]
            if option.startswith(f"{above}.") and above not in dict(pairs)
            for end in (": ", " names no class")
        ]
        # messages about the content of a file name the file
        # isfile is False for invalid file names
        named += [value] if option.endswith("_file") and os.path.isfile(value) else []
        if kind == "typo":
            named += [pairs[place][0]]
    return _fit(draw, verb, pairs, named)


def _fit(draw: Draw, verb: str, pairs: list[tuple[str, str]], named: list[str]) -> Case:
    place = draw(st.sampled_from(["out", "existing", "existing", "existing overwritten"])) if verb == "fit" else ""
    arguments = [
        word
        for option, value in pairs
        for word in ([f"--{option}={value}"] if draw(st.booleans()) else [f"--{option}", value])
    ]
    if place:
        arguments += ["--run_dir", place.split()[0], *(["--overwrite"] if "over" in place else [])]
        named = [*named, *(["existing"] if place == "existing" else [])]
    heavy = any(word.startswith("--") and any(name in word for name in NOT_TRAINED) for word in arguments)
    trained = place != "existing" and not heavy and draw(st.integers(0, 4)) == 0
    return Case(
        [verb, *arguments],
        {},
        sorted({_last(name) for name in named if name} | {name for name in named if name}),
        trained,
    )


Path_ = tuple[Any, ...]


def _nodes(tree: Any, at: Path_ = ()) -> list[Path_]:
    found = [at] if at else []
    if isinstance(tree, dict):
        found += [path for key, value in tree.items() for path in _nodes(value, (*at, key))]
    elif isinstance(tree, list):
        found += [path for place, value in enumerate(tree) for path in _nodes(value, (*at, place))]
    return found


def _changed_tree(draw: Draw, tree: Any, extra: list[str]) -> tuple[Any, list[str]]:
    """Return a copy with one changed node, and the names that a message about the change may contain."""
    tree = copy.deepcopy(tree)
    *above, last = draw(st.sampled_from(_nodes(tree)))
    branch = tree
    for key in above:
        branch = branch[key]
    kind = draw(st.sampled_from(["value", "value", "value", "name", "drop", "list", "extra"]))
    named = [str(key) for key in [*above, last] if isinstance(key, str) and key not in ("init_args", "class_path")]
    if kind == "value" or isinstance(branch, list):
        branch[last] = draw(TREES)
    elif kind == "drop":
        del branch[last]
    elif kind == "list":
        branch[last] = [branch[last]]
    elif kind == "name":
        name = _typo(draw, last) if isinstance(last, str) else draw(TREES.filter(lambda key: isinstance(key, str)))
        branch[name] = branch.pop(last)
        named.append(name)
    else:
        name = draw(st.sampled_from(extra))
        branch[name] = draw(TREES)
        named.append(name)
    return tree, named


def _changed_text(draw: Draw, text: str) -> str:
    """Return the UTF-8 bytes as Latin-1 text, with a change."""
    raw = text.encode("utf-8", "surrogatepass").decode("latin-1")
    place = draw(st.integers(0, len(raw)))
    kind = draw(
        st.sampled_from(["insert", "insert", "cut", "replace", "binary", "empty", "mark", "twice", "long", "utf16"])
    )
    bits = [
        *("\0", "\t", "\xff", "\xfe\xff", "&a ", "*a ", "<<: *a\n", "!!python/name:os.system "),
        *("---\n", "...\n", "- "),
    ]
    bits += [
        ": ",
        "#",
        "%YAML 9\n",
        "{",
        "[",
        "'",
        '"',
        "|\n",
        "!t ",
        "? ",
        "\r",
        "\xe2\x80\xa8",
        "\xed\xb3\xbf",
        "\x85",
    ]
    bits += ["\n", ",", "1e400", "&x [*x, *x]", "!!binary xx", "!!timestamp x", "2001-13-45", "!!float x", "!!int x"]
    if kind == "insert":
        return raw[:place] + draw(st.sampled_from(bits)) + raw[place:]
    if kind == "replace":
        return raw[:place] + draw(st.binary(max_size=6)).decode("latin-1") + raw[place + draw(st.integers(0, 8)) :]
    if kind == "binary":
        return draw(st.binary(max_size=40)).decode("latin-1")
    changed = {"cut": raw[:place], "empty": "", "mark": "\xef\xbb\xbf" + raw, "twice": raw + raw}
    changed |= {"long": raw + "#" + "x" * 1_000_000, "utf16": text.encode("utf-16", "replace").decode("latin-1")}
    return changed[kind]


def _dumped(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


@st.composite
def files(draw: Draw, verb: str = "fit") -> Case:
    """Return a `fit` with a configuration file whose tree or text is changed."""
    pairs = draw(st.sampled_from(LINES))
    tree = nested(pairs)
    extra = [_last(option) for option in OPTIONS] + ["class_path", "init_args", "fit", "dict_kwargs", "__path__"]
    named = ["case.yaml"]
    if draw(st.booleans()):
        tree, more = _changed_tree(draw, tree, extra)
        named += more + (list(pairs) if {"model", "data"} & set(more[:1]) and len(more) == 1 else [])
        named += [_last(option) for option in pairs] if set(more) & {"model", "data", "adapter", "optimizer"} else []
        content = _dumped(tree).encode("utf-8", "surrogatepass").decode("latin-1")
    else:
        content = _changed_text(draw, _dumped(tree))
        named += [part for option in pairs for part in option.split(".")]
    case = _fit(draw, verb, [("config", "case/case.yaml")], named)
    case.files["case/case.yaml"] = content
    case.trained &= not any(name in content for name in NOT_TRAINED)
    return case


@st.composite
def sweeps(draw: Draw) -> Case:
    """Return a `sweep` with a changed experiment file; the sweep stops before its trials run."""
    if draw(st.integers(0, 2)):
        tree, named = _changed_tree(draw, EXPERIMENT, [*KEYS, "model", *OPTIONS[::7]])
        content = _dumped(tree).encode("utf-8", "surrogatepass").decode("latin-1")
    else:
        content, named = _changed_text(draw, _dumped(EXPERIMENT)), []
    options = []
    if not draw(st.integers(0, 5)):
        options = [f"--{draw(st.sampled_from(OPTIONS))}={draw(ARGUMENTS)}"]
        named.append(options[0].partition("=")[0].removeprefix("--"))
    names = ["case.yaml", *named, *(_last(name) for name in named)]
    return Case(
        ["sweep", "case/case.yaml", "--dir", "out", *options],
        {"case/case.yaml": content},
        [n for n in names if n],
        not draw(st.integers(0, 39)),
    )


@st.composite
def comparisons(draw: Draw) -> Case:
    """Return a `compare` or `report` with one changed file of a run, or a changed command line."""
    verb = draw(st.sampled_from(["compare", "compare", "compare", "report"]))
    arguments, written, named = [verb, "runs"], {}, ["runs"]
    kind = draw(st.sampled_from(["record", "record", "record", "examples", "items", "sweep", "arguments", "arguments"]))
    run = "runs/lora/seed0"
    if kind == "arguments":
        option = draw(
            st.sampled_from(
                [
                    *("--by", "--baseline", "--figures", "--target", "--format", "--examples", "--output", "-o"),
                    *("--x", "--bye"),
                ]
            )
        )
        value = draw(ARGUMENTS.filter(lambda text: text not in ("..", ".") and "existing" not in text))
        if option in ("-o", "--output"):
            value = f"out/{value}"
        arguments += [f"{option}={value}"] if option.startswith("--") and draw(st.booleans()) else [option, value]
        named = [option, "-o", "arguments", "no such folder", "--bye", "argument"]
    else:
        name = {"record": "record.json", "examples": "val_examples.json", "items": "benchmark_items/step-000100.json"}
        place = "runs/sweep.yaml" if kind == "sweep" else f"{run}/{name[kind]}"
        text = Path(place).read_text("utf-8")
        if draw(st.integers(0, 3)):
            read, dump = (yaml.safe_load, _dumped) if kind == "sweep" else (json.loads, json.dumps)
            fields = [*FIELDS, "results", "scores", "fingerprint"]
            tree, _ = _changed_tree(draw, read(text), fields)
            content = dump(tree).encode("utf-8", "surrogatepass").decode("latin-1")
        else:
            content = _changed_text(draw, text)
        written = {place.replace("runs/", "case/runs/", 1): content}
        if kind != "sweep":  # with all files of all runs
            for other in ("lora/seed0", "lora/seed1", "dora/seed0", "dora/seed1"):
                for file in ("record.json", "val_examples.json", "benchmark_items/step-000100.json"):
                    content = Path(f"runs/{other}/{file}").read_text("utf-8")
                    written.setdefault(f"case/runs/{other}/{file}", content)
        else:
            for adapter in ("lora", "dora"):
                written[f"case/runs/{adapter}/seed0/record.json"] = Path(f"runs/{adapter}/seed0/record.json").read_text(
                    "utf-8"
                )
        arguments[1] = "case/runs"
        named = ["case/runs", "seed0", "lora", "dora", "val_accuracy", "--by"]
        if draw(st.booleans()) and verb == "compare":
            arguments += ["--format", draw(st.sampled_from(["json", "csv", "markdown", "latex"]))]
    if verb == "report" and not any(word.startswith(("-o", "--output")) for word in arguments):
        arguments += ["-o", "out/report.html"]
    return Case(arguments, written, named)


@st.composite
def finished(draw: Draw) -> Case:
    """Return a verb on a finished run whose record, configuration or checkpoint is changed."""
    verb = draw(st.sampled_from(["validate", "test", "predict", "evaluate", "export", "fit"]))
    name = draw(st.sampled_from(["record.json", "record.json", "config.yaml", "config.yaml", "checkpoint"]))
    if name == "checkpoint":
        name = f"checkpoints/step-000001/{draw(st.sampled_from(['SHA256SUMS', 'loop.pt', 'trainable.safetensors']))}"
        content = _changed_text(draw, Path(f"finished/{name}").read_bytes().decode("latin-1"))
    else:
        text = Path(f"finished/{name}").read_text("utf-8")
        if draw(st.booleans()):
            read, dump = (yaml.safe_load, _dumped) if name == "config.yaml" else (json.loads, json.dumps)
            tree, _ = _changed_tree(
                draw, read(text), [*FIELDS] if name == "record.json" else [_last(o) for o in OPTIONS]
            )
            content = dump(tree).encode("utf-8", "surrogatepass").decode("latin-1")
        else:
            content = _changed_text(draw, text)
    arguments = {
        "evaluate": ["evaluate", "existing", "--tasks", "held_out", "--accelerator", "cpu"],
        "export": ["export", "existing", "out/model", "--format", "merged"],
        "test": ["test", "--run_dir", "existing", "--data.test_file", "val.tsv"],
        "fit": ["fit", "--run_dir", "existing", "--resume", "--trainer.max_steps", "2"],
    }.get(verb, [verb, "--run_dir", "existing"])
    named = ["existing", "checkpoint", "model", "data", "trainer", "--", "seed_everything", "required"]
    return Case(arguments, {f"existing/{name}": content}, named, trained=True)


@st.composite
def plans(draw: Draw) -> Case:
    """Return an `estimate` or `find_lr` with changed options."""
    verb = draw(st.sampled_from(["estimate", "estimate", "find_lr"]))
    case = draw(lines(verb))
    verb_options = {
        "estimate": ["--device", "--tokens", "--compare"],
        "find_lr": ["--steps", "--lowest", "--highest", "--compare"],
    }
    if draw(st.booleans()):
        option, value = draw(st.sampled_from(verb_options[verb])), draw(ARGUMENTS)
        case.arguments += [option, value]
        case.named += [option, option.strip("-")]
    if verb == "find_lr":
        # below the minimum, so that an otherwise valid case is refused and does not train
        case.arguments[1:1] = ["--steps", "2"]
        case.named += ["--steps"]
    if verb == "estimate":
        case.named += ["--tokens"]
    return case


EVERY = {  # kind of case -> (strategy, weight)
    "fit, command line": (lines, 26),
    "fit, YAML": (files, 20),
    "sweep": (sweeps, 26),
    "compare and report": (comparisons, 22),
    "finished runs": (finished, 2),  # each case takes a second
    "estimate and find_lr": (plans, 4),
}
