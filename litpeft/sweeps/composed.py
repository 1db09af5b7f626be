"""Compose the configurations of a grid from a few that are parsed, because to parse one takes a fifth of a second.

Trials whose command lines differ in numbers alone (learning rate, rank, batch size) form a group. Its first command
line is parsed, and once more with each other number in its place: this shows which settings the number changes. A
trial with several other numbers gets the changes of each. A trial is parsed itself where two numbers change the same
setting, or where a number changes which settings there are; so is the most different trial of a group, as a check.

Of many numbers in one place, only some are parsed: those up to 0, the smallest, the middle and the largest. If each of
these is itself the value of the settings that it changes, so are the others. All places with many numbers are tried in
the same command lines: a setting belongs to the place whose number it has. Where that is not clear, each place is tried
alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from litpeft.errors import UserError

Words = tuple[str, ...]
Config = dict[str, Any]
Settings = dict[tuple[str, ...], Any]  # {keys from the outermost to the innermost: value}
Kinds = dict[tuple[str, ...], type]  # {keys: type} of the settings whose value is a number itself
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
    parse = cache(parse)
    base = parse(first)
    before = _settings(base)
    spreads = {place: spread for place, words in places.items() if (spread := _spread(words, first[place]))}
    together = _kinds_together(spreads, first, before, parse)
    effects: dict[tuple[int, str], Settings | None] = {}
    for place, words in places.items():
        effect = partial(_effect, before, first, place, parse=parse)
        kinds = together.get(place) or _kinds_alone(spreads.get(place, ()), first[place], before, effect)
        for word in words:
            number = _number(word)
            composed = kinds and number is not None and number > 0
            effects[place, word] = {keys: to(number) for keys, to in kinds.items()} if composed else effect(word)
    found = {words: _changed(base, [effects[each] for each in own]) for words, own in changes.items()}
    most = max(reversed(changes), key=lambda words: len(changes[words]))
    if found[most] is not None and found[most] != parse(most):  # numbers that act together
        found = dict.fromkeys(found)
    return {words: parse(words) if config is None else config for words, config in found.items()}


def _spread(words: Sequence[str], first: str) -> tuple[str, ...]:
    """Return the words with the smallest, the middle and the largest positive number in a place; () if these are few.

    Args:
        words: the words in the place, without that of the first command line.
        first: the word of the first command line.
    """
    numbers = {word: each for word in (first, *words) if (each := _number(word)) is not None and each > 0}
    if len(words) <= FEW or len(set(map(type, numbers.values()))) != 1:
        return ()
    above = sorted(numbers, key=numbers.__getitem__)
    return above[0], above[len(above) // 2], above[-1]


def _kinds_together(
    spreads: Mapping[int, tuple[str, ...]], first: Words, before: Settings, parse: Callable[[Words], Config]
) -> dict[int, Kinds]:
    """Return {place: what its numbers set}, found with the numbers of all places at once; {} if it is not clear."""
    found: dict[int, Kinds] = {}
    for probe in zip(*spreads.values(), strict=True):
        put = dict(zip(spreads, probe, strict=True))
        effect = _changes(before, tuple(put.get(place, word) for place, word in enumerate(first)), parse)
        if effect is None:
            return {}
        owners = {
            keys: [place for place, word in put.items() if word != first[place] and value == _number(word)]
            for keys, value in effect.items()
        }
        if any(len(each) != 1 for each in owners.values()):
            return {}
        for place, word in put.items():
            own = {keys: value for keys, value in effect.items() if owners[keys] == [place]}
            kinds = _kinds(_number(word), own) if word != first[place] else found.get(place)
            if word != first[place] and (not kinds or found.setdefault(place, kinds) != kinds):
                return {}
    return found if all(_is_set(first[place], kinds, before) for place, kinds in found.items()) else {}


def _kinds_alone(
    spread: Sequence[str], first: str, before: Settings, effect: Callable[[str], Settings | None]
) -> Kinds | None:
    """Return what the numbers in a place set, found with one of them at a time; None if they do not set themselves."""
    kinds = [_kinds(_number(word), effect(word)) for word in spread if word != first]
    if not kinds or not kinds[0] or any(each != kinds[0] for each in kinds):
        return None
    return kinds[0] if first not in spread or _is_set(first, kinds[0], before) else None


def _is_set(word: str, kinds: Kinds, settings: Settings) -> bool:
    """Return whether a positive number is the value of all of these settings; True for other words."""
    number = _number(word)
    return number is None or number <= 0 or _kinds(number, {keys: settings[keys] for keys in kinds}) == kinds


def _number(word: str) -> int | float | None:
    """Return the number of `--option=number`, an int where it is written as one; None for true and false."""
    text = word.partition("=")[2]
    if text in ("true", "false"):
        return None
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _kinds(number: float | None, effect: Settings | None) -> Kinds | None:
    """Return {keys: type} of the settings that a number changes, if it is itself the value of each; else None."""
    if not effect or any(isinstance(value, bool) or value != number for value in effect.values()):
        return None
    return {keys: type(value) for keys, value in effect.items()}


def _effect(before: Settings, first: Words, place: int, word: str, parse: Callable[[Words], Config]) -> Settings | None:
    """Return the settings that one word changes; None if it changes which settings there are, or is not valid."""
    return _changes(before, (*first[:place], word, *first[place + 1 :]), parse)


def _changes(before: Settings, words: Words, parse: Callable[[Words], Config]) -> Settings | None:
    """Return the settings that a command line changes; None if it changes which there are, or is not valid."""
    try:
        after = _settings(parse(words))
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
