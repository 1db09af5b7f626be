"""Configurations composed of a few parsed ones are those that parsing each command line gives."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from litpeft.errors import UserError
from litpeft.sweeps.composed import configs_of
from litpeft.sweeps.experiment import read_experiment
from litpeft.sweeps.resolve import _Resolving, resolve

Words = tuple[str, ...]


class Parser:
    """A parser of `--name=number` that counts what it parses; `rule` may change the settings."""

    def __init__(self, rule: Any = lambda settings: None) -> None:
        self.rule, self.parsed = rule, 0

    def __call__(self, words: Words) -> dict[str, Any]:
        self.parsed += 1
        settings = {word[2:].partition("=")[0]: yaml.safe_load(word.partition("=")[2]) for word in words}
        found = {"model": {"kind": "x", **settings}, "data": {"rows": None, "names": []}}
        self.rule(found)
        return found


def grid(**axes: list[Any]) -> list[Words]:
    return [
        tuple(f"--{name}={value}" for name, value in zip(axes, point, strict=True)) for point in product(*axes.values())
    ]


def check(parser: Parser, lines: list[Words]) -> int:
    """Check the configurations against parsing each line, types included; return the number of lines parsed."""
    found = configs_of(lines, parser)
    parsed, expected = parser.parsed, [parser(line) for line in lines]
    assert list(map(repr, found)) == list(map(repr, expected))
    return parsed


def test_a_grid_of_numbers_needs_one_parse_for_each_number() -> None:
    lines = grid(lr=["1e-4", "0.001", "3.0e-3"], rank=[2, 4, 8, 16], decay=[0, 0.1], own=["true", "false"])
    assert check(Parser(), lines) == 1 + (2 + 3 + 1 + 1) + 1


def test_of_many_numbers_in_one_place_a_few_are_parsed() -> None:
    rates = [f"{number}.0e-5" for number in range(1, 1001)]
    assert check(Parser(), grid(lr=rates)) == 1 + 2
    lines = grid(lr=[rates[500], *rates[:500], *rates[501:]])  # the first is neither the smallest nor the largest
    assert check(Parser(), lines) == 1 + 2
    assert check(Parser(), grid(lr=[rates[9], *rates[:9], *rates[10:]])) == 1 + 3


def test_the_numbers_of_several_places_are_parsed_together() -> None:
    axes = {"lr": [f"{number}.0e-5" for number in range(1, 11)], "rank": range(1, 11), "decay": range(-2, 8)}
    assert check(Parser(), grid(**axes)) == 1 + 3 + 2  # -1 and 0 themselves
    assert check(Parser(), grid(own=["true", "false"], size=[1, 2], **axes)) == 1 + 3 + 2 + (1 + 1) + 1
    refused = Parser()

    def parse(words: Words) -> dict[str, Any]:
        if words[0] != "--lr=1.0e-5" and words[1] == "--rank=10":
            raise UserError("too much")
        return refused(words)

    with pytest.raises(UserError, match="too much"):
        configs_of(grid(**axes), parse)


def test_places_with_equal_numbers_or_another_rule_are_parsed_alone() -> None:
    assert check(Parser(), grid(a=range(1, 11), b=range(1, 11))) == 1 + 2 + (2 + 2)

    def twice(found: dict[str, Any]) -> None:
        found["data"]["rows"] = 2 * found["model"]["b"]

    assert check(Parser(twice), grid(a=range(1, 11), b=range(21, 31))) == 1 + 1 + (2 + 9) + 1

    def product_of_both(found: dict[str, Any]) -> None:
        found["data"]["rows"] = found["model"]["a"] * found["model"]["b"]

    check(Parser(product_of_both), grid(a=range(1, 9), b=range(21, 29)))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("a setting that is computed", lambda found: found["data"].update(rows=found["model"]["a"] // 10)),
        ("another type above a limit", lambda found: found["model"].update(a=float(found["model"]["a"]))),
        ("a constant", lambda found: found["data"].update(rows=7 if found["model"]["a"] > 1 else None)),
        ("true above a limit", lambda found: found["data"].update(rows=found["model"]["a"] > 12)),
        ("a setting that goes", lambda found: found["data"].pop("rows") if found["model"]["a"] == 24 else None),
    ],
)
def test_many_numbers_are_parsed_where_one_is_not_the_value_of_what_it_changes(name: str, rule: Any) -> None:
    check(Parser(rule), grid(a=range(1, 25)))


def test_many_numbers_of_which_some_are_written_as_integers_are_parsed() -> None:
    check(Parser(), grid(a=[1, 2, "3.0", 4, "5e0", 6, 7, 8, 9, 10]))


@pytest.mark.parametrize("none", [-1, 0])
def test_a_first_number_that_stands_for_none_does_not_make_the_others_parsed(none: int) -> None:
    """As trainer.max_steps -1, which stands for no limit."""

    def unlimited(found: dict[str, Any]) -> None:
        for name, number in found["model"].items():
            found["model"][name] = None if number == none else number

    lines = grid(steps=[none, *range(1, 31)], size=range(101, 131))
    assert check(Parser(unlimited), lines) == 1 + 3  # small, middle and large numbers of both together


def test_words_are_never_composed() -> None:
    lines = grid(optimizer=["adam", "sgd"], name=["a", "b"], rank=[1, 2])
    assert check(Parser(), lines) == len(lines)


def test_numbers_that_change_the_same_setting_are_parsed_together() -> None:
    def steps(found: dict[str, Any]) -> None:
        found["data"]["rows"] = found["model"]["steps"] * found["model"]["size"]

    assert check(Parser(steps), grid(steps=[1, 2, 3], size=[4, 5, 6], lr=[0.1, 0.2, 0.3, 0.4])) < 36


def test_numbers_that_act_only_together_are_noticed() -> None:
    def both(found: dict[str, Any]) -> None:
        if found["model"]["a"] == found["model"]["b"] == 3:
            found["data"]["rows"] = 9

    lines = grid(a=[1, 2, 3], b=[1, 2, 3])
    check(Parser(both), lines)


def test_a_number_that_adds_or_removes_settings_is_parsed() -> None:
    def more(found: dict[str, Any]) -> None:
        if found["model"]["a"] > 2:
            found["data"]["more"] = {"rows": found["model"]["b"]}
        if found["model"]["a"] > 3:
            del found["data"]["names"]

    check(Parser(more), grid(a=[1, 2, 3, 4], b=[1, 2, 3]))


def test_a_part_that_is_shared_is_not_changed_by_another_trial() -> None:
    found = configs_of(grid(a=[1, 2, 3], b=[1, 2, 3]), Parser())
    assert [(each["model"]["a"], each["model"]["b"]) for each in found] == list(product([1, 2, 3], [1, 2, 3]))
    assert found[0]["data"] is found[8]["data"]


EXPERIMENT = {
    "configs": ["base", "sst2", "lora", "adamw"],
    "options": {"model.model_name": "roberta-base"},
    "axes": {
        "model.optimizer.lr": [1e-4, 1e-3, 3e-3],
        "model.scheduler.warmup": [0.06, 5],
        "trainer.max_steps": [-1, 7],
        "trainer.max_epochs": [1, 2],
    },
}


def write(tmp_path: Path, **axes: Any) -> str:
    content = EXPERIMENT | {"axes": EXPERIMENT["axes"] | axes}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return str(tmp_path / "mine.yaml")


def test_the_configurations_of_an_experiment_are_those_of_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = read_experiment(write(tmp_path)).trials
    assert len(trials) == 24
    parsed: list[int] = []
    run = _Resolving._run
    monkeypatch.setattr(_Resolving, "_run", lambda self: parsed.append(1) or run(self))
    found = resolve(trials)
    assert len(parsed) < 16
    for trial in trials[::5]:
        assert repr(found[trial.name]) == repr(_Resolving("fit", list(trial.arguments)).resolved), trial.label


@pytest.mark.parametrize(("option", "value"), [("trainer.max_steps", 0), ("model.scheduler.warmup", 10**40)])
def test_a_number_that_is_refused_is_said_with_its_trial(tmp_path: Path, option: str, value: int) -> None:
    trials = read_experiment(write(tmp_path, **{option: [*EXPERIMENT["axes"][option], value]})).trials
    with pytest.raises(UserError, match=rf"trial lr=0\.0001,.*={value}.*: {option} must "):
        resolve(trials)


PLACES = {"a": ("x",), "b": ("p", "y"), "c": ("p", "q", "r"), "d": ("p", "q", "s", "t"), "e": ("u", "v", "w")}
RULES: dict[str, Any] = {
    "itself": lambda number, found: number,
    "float": lambda number, found: float(number),
    "square": lambda number, found: number * number,
    "at most ten": lambda number, found: min(number, 10),
    "sign": lambda number, found: number > 0,
    "with a part": lambda number, found: found.setdefault("more", {}).update(big=number > 5) or number,
    "with a part if large": lambda number, found: (found.update(large=number) if number > 5 else None) or number,
    "also elsewhere": lambda number, found: found.setdefault("p", {}).update(copy=number) or number,
    "refused if negative": lambda number, found: number if number >= 0 else _refuse(number),
}
WORDS = st.sampled_from(["1", "2", "3", "7", "12", "0", "-4", "0.5", "2.5", "1e-3", "1e2", "+3", "true", "false"])


def _refuse(number: float) -> None:
    raise UserError(f"{number} is negative.")


def parser_of(rules: dict[str, str]) -> Any:
    """Return a parser in which each option sets a place by its rule."""

    def parse(words: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {"p": {"fixed": 1, "q": {}}, "fixed": {"inner": [1]}}
        for word in words:
            name, _, text = word.removeprefix("--").partition("=")
            number = (
                text == "true"
                if text in ("true", "false")
                else int(text)
                if text.strip("+-").isdecimal()
                else float(text)
            )
            inner = found
            *outer, last = PLACES[name]
            for key in outer:
                inner = inner.setdefault(key, {})
            inner[last] = RULES[rules[name]](number, found)
        return found

    return parse


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_any_grid_has_the_configurations_of_its_command_lines(data: st.DataObject) -> None:
    """Whatever numbers set, alone or together: the configurations are those that each command line has by itself."""
    names = data.draw(st.lists(st.sampled_from(list(PLACES)), min_size=1, max_size=3, unique=True))
    allowed = list(RULES) if len(names) == 1 else [rule for rule in RULES if "part" not in rule]  # act together
    rules = {name: data.draw(st.sampled_from(allowed)) for name in names}
    values = {
        name: data.draw(st.lists(WORDS, min_size=1, max_size=9 if len(names) < 3 else 4, unique=True)) for name in names
    }
    lines = [
        tuple(f"--{name}={text}" for name, text in zip(names, point, strict=True))
        for point in product(*values.values())
    ]
    lines = data.draw(st.permutations(lines))
    parse = parser_of(rules)
    try:
        expected = [parse(words) for words in lines]
    except UserError:
        with pytest.raises(UserError, match="is negative"):
            configs_of(lines, parse)
        return
    found = configs_of(lines, parse)
    assert repr(found) == repr(expected)  # with the types of numbers and the order of keys
