"""Compose the configurations of a grid from a few that are parsed, because to parse one takes a fifth of a second.

Trials whose command lines differ in numbers alone (learning rate, rank, batch size) form a group. Its first command
line is parsed, and once more with each other number in its place: this shows which settings the number changes. A
trial with several other numbers gets the changes of each. A trial is parsed itself where two numbers change the same
setting, or where a number changes which settings there are; so is the most different trial of a group, as a check.

Of many numbers in one place, only some are parsed: those up to 0, the smallest, the middle and the largest, of which
one may be in the first command line. If each of these is itself the value of the settings that it changes, so are the
others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from litpeft.errors import UserError

Words = tuple[str, ...]
Config = dict[str, Any]
Settings = dict[tuple[str, ...], Any]  # {keys from the outermost to the innermost: value}
FEW = 6  # numbers in one place that are all parsed
NUMBER = re.compile(r"(--[^=]+=)(?:[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|true|false)")


def configs_of(command_lines: Sequence[Words], parse: Callable[[Words], Config]) -> list[Config]:
    """Return the configuration of each command line; they share the parts that are equal, so none may be changed.

    Args:
        command_lines: options as `--option=value`, and `--config FILE`.
        parse: returns the configuration of one command line.

    Raises:
        UserError: from `parse`, for the first command line of a group that is not valid.
    """
    groups: dict[Words, list[Words]] = {}
    for words in command_lines:
        groups.setdefault(tuple(map(_without_number, words)), []).append(words)
    found: dict[Words, Config] = {}
    for group in groups.values():
        found |= _composed(group, parse)
    return [found[words] for words in command_lines]


def _without_number(word: str) -> str:
    found = NUMBER.fullmatch(word)
    return found[1] if found else word


def _composed(group: Sequence[Words], parse: Callable[[Words], Config]) -> dict[Words, Config]:
    """Return {command line: configuration} of a group."""
    first = group[0]
    changes = {words: [(place, word) for place, word in enumerate(words) if word != first[place]] for words in group}
    distinct = dict.fromkeys(change for each in changes.values() for change in each)
    places: dict[int, list[str]] = {}
    for place, word in distinct:
        places.setdefault(place, []).append(word)
    if len(changes) <= 2 + sum(min(len(words), FEW) for words in places.values()):  # nothing would be saved
        return {words: parse(words) for words in group}
    base = parse(first)
    before = _settings(base)
    effects = {}
    for place, words in places.items():
        effect = partial(_effect, before, first, place, parse=parse)
        effects |= {(place, word): found for word, found in _effects(words, effect, first[place], before).items()}
    found = {words: _changed(base, [effects[each] for each in own]) for words, own in changes.items()}
    most = max(reversed(changes), key=lambda words: len(changes[words]))
    if found[most] is not None and found[most] != parse(most):  # numbers that act together
        found = dict.fromkeys(found)
    return {words: parse(words) if config is None else config for words, config in found.items()}


def _effects(
    words: Sequence[str], effect: Callable[[str], Settings | None], first: str, before: Settings
) -> dict[str, Settings | None]:
    """Return the settings that each word in one place changes; of many numbers, most are not parsed.

    Args:
        words: the words, without that of the first command line.
        effect: returns the settings that a word changes, found by parsing.
        first: the word of the first command line.
        before: the settings of the first command line.
    """
    numbers = {word: each for word in (first, *words) if (each := _number(word)) is not None}
    above = sorted((word for word in numbers if numbers[word] > 0), key=numbers.__getitem__)
    spread = {above[0], above[len(above) // 2], above[-1]} if above else set()
    parsed = spread.union(words if len(words) <= FEW else set(words).difference(above))
    found = {word: effect(word) for word in words if word in parsed}
    known = dict(found)
    if first in spread:  # what it sets is what the others change
        changed = next((each for each in found.values() if each), {})
        known[first] = {keys: before[keys] for keys in changed}
    kinds = [_kinds(numbers[word], known[word]) for word in spread]
    alike = all(each == kinds[0] for each in kinds) and len({type(numbers[word]) for word in above}) == 1
    kind = kinds[0] if kinds and alike else None
    for word in words:
        if word not in found:
            found[word] = effect(word) if kind is None else {keys: to(numbers[word]) for keys, to in kind.items()}
    return found


def _number(word: str) -> int | float | None:
    """Return the number of `--option=number`, an int where it is written as one; None for true and false."""
    text = word.partition("=")[2]
    if text in ("true", "false"):
        return None
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _kinds(number: float, effect: Settings | None) -> dict[tuple[str, ...], type] | None:
    """Return {keys: type} of the settings that a number changes, if it is itself the value of each; else None."""
    if not effect or any(isinstance(value, bool) or value != number for value in effect.values()):
        return None
    return {keys: type(value) for keys, value in effect.items()}


def _effect(before: Settings, first: Words, place: int, word: str, parse: Callable[[Words], Config]) -> Settings | None:
    """Return the settings that one word changes; None if it changes which settings there are, or is not valid."""
    try:
        after = _settings(parse((*first[:place], word, *first[place + 1 :])))
    except UserError:  # a trial with this word is parsed itself, and says so with its name
        return None
    if after.keys() != before.keys():
        return None
    return {
        keys: value for keys, value in after.items() if value != before[keys] or type(value) is not type(before[keys])
    }


def _settings(config: Mapping[str, Any], within: tuple[str, ...] = ()) -> Settings:
    found: Settings = {}
    for key, value in config.items():
        found |= _settings(value, (*within, key)) if isinstance(value, dict) and value else {(*within, key): value}
    return found


def _changed(base: Config, effects: Sequence[Settings | None]) -> Config | None:
    """Return a configuration with all of these effects, which shares the other parts; None if they cannot be joined."""
    joined: Settings = {}
    for effect in effects:
        if effect is None or effect.keys() & joined.keys():
            return None
        joined |= effect
    copies: dict[tuple[str, ...], Config] = {(): dict(base)}
    for keys, value in joined.items():
        for depth in range(1, len(keys)):
            if keys[:depth] not in copies:
                copies[keys[:depth]] = dict(copies[keys[: depth - 1]][keys[depth - 1]])
                copies[keys[: depth - 1]][keys[depth - 1]] = copies[keys[:depth]]
        copies[keys[:-1]][keys[-1]] = value
    return copies[()]
