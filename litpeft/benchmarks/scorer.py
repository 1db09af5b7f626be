"""Log-likelihoods of many continuations, each token that they share computed once.

The rows of a benchmark repeat each other: a prompt of examples stands before every question, a question before each of
its answers. Sorted, they are a tree of tokens. It is computed a piece at a time: what all rows of a piece begin with
lies in the model's cache, all that follows is one sequence in which a mask lets each token see its ancestors alone, at
the positions that they have in their rows. So nothing is padded and no cache is copied; the output head is asked only
where a continuation is foretold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

TOKENS = {"cpu": 384, "cuda": 4096}  # of a piece: on a CPU longer ones pay more for the mask than they save
SLICE = 512  # positions whose logits are fp32 at once
CHECKED = 4  # rows, of as many tokens and as many before them, that are computed both ways before the first score
BY_BOOL = ("sdpa", "litpeft")  # ways of attention whose masks may be bool; all others add theirs to the scores

Row = tuple[Sequence[int], Sequence[int]]  # tokens of the context, at least one, and of the continuation
Score = tuple[float, bool]  # natural logarithm of its probability, and whether each token was the likeliest


@dataclass
class Read:
    """A token that a row foretells.

    Attributes:
        row: its number.
        token: what is to come.
    """

    row: int
    token: int


class PrefixScorer:
    """Scores rows of a causal model of transformers as it is: its adapter on, in the caller's mode and autocast.

    Args:
        model: it must take a mask of four dimensions, positions and a cache; `agrees` finds out.
        tokens: computed at once; halved where memory runs out.
        tick: called with how many rows are done so far, of this call; what it raises ends the call.
    """

    def __init__(
        self, model: PreTrainedModel, tokens: int | None = None, tick: Callable[[int], None] | None = None
    ) -> None:
        self.model, self.tick = model, tick or (lambda done: None)
        self.tokens = tokens or TOKENS.get(model.device.type, TOKENS["cuda"])
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._bool = model.config._attn_implementation in BY_BOOL

    def takes(self, row: Row) -> bool:
        """Whether no layer looks back less far than the row is long: a mask of ours would say otherwise."""
        config = self.model.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        if getattr(config, "use_sliding_window", True) is False:
            windows[0] = None
        return all(len(row[0]) + len(row[1]) <= window for window in windows if window)

    def agrees(self, rows: Sequence[Row]) -> bool:
        """Whether short pieces of these rows come out as they do when each is computed alone.

        A model that has another notion of positions, masks or caches (ALiBi, a state that runs through the sequence) is
        far off, by nats; rounding is not.
        """
        begin = rows[0][0][:CHECKED]
        ends = dict.fromkeys(tuple([*context, *continuation][-CHECKED:]) for context, continuation in rows)
        few: list[Row] = [(begin, end) for end in list(ends)[:CHECKED]]
        device = self.model.device.type
        exact = next(self.model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(device)
        try:
            scores = self.score(few, quietly=True)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a model says against such arguments
            return False
        allowed = (1e-3 if exact else 0.2) * CHECKED
        return all(abs(own - self.alone(*row)[0]) <= allowed for (own, _), row in zip(scores, few, strict=True))

    @torch.no_grad()
    def alone(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        """Score a row by itself, the plain way."""
        ids = torch.tensor([[*context, *continuation]], device=self.model.device)
        said = self.model(input_ids=ids[:, :-1]).logits[0, len(context) - 1 :].float().log_softmax(-1)
        following = ids[0, len(context) :]
        return float(said.gather(1, following[:, None]).double().sum()), bool((said.argmax(-1) == following).all())

    @torch.no_grad()
    def score(self, rows: Sequence[Row], quietly: bool = False) -> list[Score]:
        """Score each row.

        Args:
            rows: in any order.
            quietly: without telling how far it is.

        Raises:
            torch.OutOfMemoryError: one token at a time is still too much.
        """
        tree = _Tree(rows)
        run = _Run(self, tree, len(rows))
        first = done = 0
        while first < len(tree.paths):
            last = tree.piece(first, self.tokens)
            try:
                run.piece(first, last)
            except torch.OutOfMemoryError:
                if self.tokens == 1:
                    raise
                self.tokens = max(1, self.tokens // 2)
                run.forget()
                torch.cuda.empty_cache()
                continue
            done += sum(map(len, tree.owners[first:last]))
            first = last
            if not quietly:
                self.tick(done)
        return list(zip(run.sums.tolist(), run.greedy.tolist(), strict=True))

    def logits(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache, wanted: Tensor) -> Tensor:
        """Logits, (wanted, vocabulary), of what follows tokens that come after the cached ones.

        Args:
            ids: (T).
            positions: (T), of each in its row.
            mask: (T, cached + T), True where it may look.
            cache: of the tokens before; gains these.
            wanted: places in `ids`.
        """
        if not self._bool:
            dtype = self.model.get_input_embeddings().weight.dtype
            dtype = dtype if dtype.is_floating_point else torch.float32
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
        options: dict[str, Any] = {"logits_to_keep": wanted} if self._keeps else {}
        out = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=mask[None, None],
            past_key_values=cache,
            use_cache=True,
            **options,
        ).logits[0]
        return out if self._keeps else out[wanted]


class _Tree:
    """The distinct inputs of the rows, sorted; each as the path of its tokens in the tree that they make.

    Attributes:
        paths: of each input, the number of each token in the tree, in the order in which they are met.
        shared: how many tokens an input has in common with the one before.
        tokens: by number.
        reads: by number, what is to be foretold there.
        owners: of each input, the rows that it belongs to.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        inputs: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            inputs.setdefault(_inputs(row), []).append(place)
        ordered = sorted(inputs)
        self.owners = [inputs[ids] for ids in ordered]
        self.shared = [0, *map(_common, ordered, ordered[1:])]
        self.paths: list[np.ndarray] = []
        self.tokens: list[int] = []
        self.reads: dict[int, list[Read]] = {}
        for ids, shared, owners in zip(ordered, self.shared, self.owners, strict=True):
            new = np.arange(len(self.tokens), len(self.tokens) + len(ids) - shared)
            self.tokens += ids[shared:]
            path = np.concatenate([self.paths[-1][:shared], new]) if shared else new
            self.paths.append(path)
            for row in owners:
                context, continuation = rows[row]
                for node, token in zip(path[len(context) - 1 :].tolist(), continuation, strict=True):
                    self.reads.setdefault(node, []).append(Read(row, token))

    def piece(self, first: int, most: int) -> int:
        """One past the last input of a piece: as many as there are with so many tokens beside what all begin with."""
        last, begin, size = first + 1, len(self.paths[first]), 0
        while last < len(self.paths):
            shared = self.shared[last]
            moved = max(0, begin - shared)  # of what all began with, and is no longer
            grown = size + moved + len(self.paths[last]) - shared
            if grown > most:
                break
            last, begin, size = last + 1, min(begin, shared), grown
        return last


class _Run:
    """The state of one call: what is cached, and what has been read."""

    def __init__(self, scorer: PrefixScorer, tree: _Tree, rows: int) -> None:
        self.scorer, self.tree = scorer, tree
        self.device = scorer.model.device
        self.sums = torch.zeros(rows, dtype=torch.float64)
        self.greedy = torch.ones(rows, dtype=torch.bool)
        self.read = np.zeros(len(tree.tokens), dtype=bool)
        self.forget()

    def forget(self) -> None:
        """Start with an empty cache."""
        self.cache, self.cached = DynamicCache(), np.empty(0, dtype=np.int64)

    def piece(self, first: int, last: int) -> None:
        """Compute the inputs from `first` to before `last`."""
        paths, shared = self.tree.paths[first:last], self.tree.shared[first + 1 : last]
        begin = min(shared, default=len(paths[0]))
        self._enter(paths[0][:begin])
        if last == first + 1:
            return
        own = [paths[0][begin:], *(path[max(begin, s) :] for path, s in zip(paths[1:], shared, strict=True))]
        nodes = np.concatenate(own)
        local = {node: place for place, node in enumerate(nodes.tolist())}
        sees, depths = np.zeros((len(nodes), len(nodes)), dtype=bool), np.empty(len(nodes), dtype=np.int64)
        place = 0
        for path, part in zip(paths, own, strict=True):
            depth = len(path) - len(part)
            parent = local.get(int(path[depth - 1])) if depth > begin else None
            for _ in part:
                if parent is not None:
                    sees[place] = sees[parent]
                sees[place, place] = True
                depths[place], parent = depth, place
                place, depth = place + 1, depth + 1
        mask = np.concatenate([np.ones((len(nodes), begin), dtype=bool), sees], axis=1)
        self._compute(nodes, depths, mask)
        self.cache.crop(-len(nodes))

    def _enter(self, path: np.ndarray) -> None:
        """Have the cache hold just these tokens."""
        kept = _common(self.cached, path)
        if len(self.cached) > kept:
            self.cache.crop(kept - len(self.cached))
        self.cached = path[:kept]
        while len(self.cached) < len(path):
            done = len(self.cached)
            part = path[done : done + self.scorer.tokens]
            mask = np.tri(len(part), done + len(part), done, dtype=bool)
            self._compute(part, np.arange(done, done + len(part)), mask)
            self.cached = path[: done + len(part)]

    def _compute(self, nodes: np.ndarray, depths: np.ndarray, mask: np.ndarray) -> None:
        """Run the model on these tokens, and read what is to be read and has not been."""
        numbers = nodes.tolist()
        wanted = [i for i, node in enumerate(numbers) if not self.read[node] and node in self.tree.reads]
        logits = self.scorer.logits(
            torch.tensor([self.tree.tokens[node] for node in numbers], device=self.device),
            torch.from_numpy(depths).to(self.device),
            torch.from_numpy(mask).to(self.device),
            self.cache,
            torch.tensor(wanted or [0], device=self.device),  # no model takes an empty list
        )
        for start in range(0, len(wanted), SLICE):
            part = wanted[start : start + SLICE]
            said = logits[start : start + SLICE].float().log_softmax(-1)
            reads = [(place, read) for place, i in enumerate(part) for read in self.tree.reads[numbers[i]]]
            places = torch.tensor([place for place, _ in reads], device=self.device)
            tokens = torch.tensor([read.token for _, read in reads], device=self.device)
            owners = torch.tensor([read.row for _, read in reads])
            logs, likeliest = said[places, tokens].double().cpu(), (said.argmax(-1)[places] == tokens).cpu()
            self.sums.index_add_(0, owners, logs)  # from here on no memory can run out: nothing is added twice
            self.greedy[owners[~likeliest]] = False
            self.read[nodes[part]] = True


def _inputs(row: Row) -> tuple[int, ...]:
    """What a model has to read: the last token of the continuation is foretold alone."""
    return (*row[0], *row[1][:-1])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    most = min(len(one), len(other))
    if isinstance(one, np.ndarray):
        differ = np.flatnonzero(one[:most] != other[:most])
        return int(differ[0]) if len(differ) else most
    low, high = 0, most
    while low < high:  # compared in C
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
