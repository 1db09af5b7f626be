"""Log-likelihoods of many continuations, with shared prefixes computed once.

Benchmark rows share prefixes: few-shot examples before every question, a question before each of its answers. Sorted
rows form a tree of tokens, which is computed in pieces. The prefix shared by all rows of a piece is in the model's
cache. All other tokens of the piece form one sequence, with a mask that shows each token its ancestors only, at their
positions in the row. Nothing is padded, no cache is copied, and the output head runs only where a continuation token
is predicted.
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

TOKENS = {"cpu": 384, "cuda": 4096}  # tokens per piece; longer pieces on a CPU lose more to the mask than they save
SLICE = 512  # positions whose logits are converted to fp32 at a time
CHECKED = 4  # number of rows, and of tokens and prefix tokens per row, that `agrees` computes both ways
BOOL_MASKS = ("sdpa", "litpeft")  # attention implementations that take boolean masks; others need additive masks

Row = tuple[Sequence[int], Sequence[int]]  # token ids of the context (at least one) and of the continuation
Score = tuple[float, bool]  # log-likelihood in nats; whether every token was the most likely one (greedy)


@dataclass
class Read:
    """A token to predict.

    Attributes:
        row: number of the row.
        token: id of the continuation token.
    """

    row: int
    token: int


class PrefixScorer:
    """Score rows with a causal transformers model, with its adapter active, in the caller's mode and autocast.

    Args:
        model: the model; it must accept a 4-D mask, position ids and a cache, which `agrees` checks.
        tokens: tokens per piece; halved when memory runs out.
        tick: called with the number of rows done in this call; an exception from it ends the call.
    """

    def __init__(
        self, model: PreTrainedModel, tokens: int | None = None, tick: Callable[[int], None] | None = None
    ) -> None:
        self.model, self.tick = model, tick or (lambda done: None)
        self.tokens = tokens or TOKENS.get(model.device.type, TOKENS["cuda"])
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._bool = model.config._attn_implementation in BOOL_MASKS

    def takes(self, row: Row) -> bool:
        """Return whether a row fits in the attention window of every layer; our mask would ignore a sliding window."""
        config = self.model.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        if getattr(config, "use_sliding_window", True) is False:
            windows[0] = None
        return all(len(row[0]) + len(row[1]) <= window for window in windows if window)

    def agrees(self, rows: Sequence[Row]) -> bool:
        """Return whether short pieces of these rows get the same scores as when each row is computed separately.

        A model with other positions, masks or caches (ALiBi, recurrent state) differs by whole nats, far more than
        rounding.
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
        except Exception:  # the model rejects these arguments
            return False
        allowed = (1e-3 if exact else 0.2) * CHECKED
        return all(
            abs(score - self.score_single(*row)[0]) <= allowed for (score, _), row in zip(scores, few, strict=True)
        )

    @torch.no_grad()
    def score_single(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        """Score one row in a forward pass of its own."""
        ids = torch.tensor([[*context, *continuation]], device=self.model.device)
        log_probs = self.model(input_ids=ids[:, :-1]).logits[0, len(context) - 1 :].float().log_softmax(-1)
        following = ids[0, len(context) :]
        total = float(log_probs.gather(1, following[:, None]).double().sum())
        return total, bool((log_probs.argmax(-1) == following).all())

    @torch.no_grad()
    def score(self, rows: Sequence[Row], quietly: bool = False) -> list[Score]:
        """Score each row.

        Args:
            rows: rows in any order.
            quietly: do not report progress.

        Raises:
            torch.OutOfMemoryError: memory runs out even with one token per piece.
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
        """Return the logits (wanted, vocabulary) after tokens that follow the cached tokens.

        Args:
            ids: token ids, (T,).
            positions: position of each token in its row, (T,).
            mask: (T, cached + T) bool, True where a token may attend.
            cache: cache of the earlier tokens; extended by these tokens.
            wanted: indices into `ids`.
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
    """The distinct inputs of the rows, sorted, as a prefix tree.

    Attributes:
        paths: node numbers of the tokens of each input.
        shared: length of the prefix that each input shares with the input before it.
        tokens: token id of each node.
        reads: node number -> continuation tokens to predict there.
        owners: rows of each input.
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
        """Return the end (exclusive) of the piece from `first` on with at most `most` tokens after its prefix."""
        last, begin, size = first + 1, len(self.paths[first]), 0
        while last < len(self.paths):
            shared = self.shared[last]
            moved = max(0, begin - shared)  # tokens of the old prefix that the longer piece no longer shares
            grown = size + moved + len(self.paths[last]) - shared
            if grown > most:
                break
            last, begin, size = last + 1, min(begin, shared), grown
        return last


class _Run:
    """The state of one `score` call: the cache and the scores so far."""

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
        """Compute the inputs from `first` to `last` (exclusive)."""
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
        """Make the cache hold exactly the tokens of this path."""
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
        """Run the model on these nodes and add the log-probabilities of continuation tokens that are not scored yet."""
        numbers = nodes.tolist()
        wanted = [i for i, node in enumerate(numbers) if not self.read[node] and node in self.tree.reads]
        logits = self.scorer.logits(
            torch.tensor([self.tree.tokens[node] for node in numbers], device=self.device),
            torch.from_numpy(depths).to(self.device),
            torch.from_numpy(mask).to(self.device),
            self.cache,
            torch.tensor(wanted or [0], device=self.device),  # an empty index would fail
        )
        for start in range(0, len(wanted), SLICE):
            part = wanted[start : start + SLICE]
            log_probs = logits[start : start + SLICE].float().log_softmax(-1)
            reads = [(place, read) for place, i in enumerate(part) for read in self.tree.reads[numbers[i]]]
            places = torch.tensor([place for place, _ in reads], device=self.device)
            tokens = torch.tensor([read.token for _, read in reads], device=self.device)
            owners = torch.tensor([read.row for _, read in reads])
            logs, likeliest = log_probs[places, tokens].double().cpu(), (log_probs.argmax(-1)[places] == tokens).cpu()
            self.sums.index_add_(0, owners, logs)  # no memory can run out from here on, so nothing is added twice
            self.greedy[owners[~likeliest]] = False
            self.read[nodes[part]] = True


def _inputs(row: Row) -> tuple[int, ...]:
    """Return the input of a row: context and continuation without the last token, which is only predicted."""
    return (*row[0], *row[1][:-1])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    most = min(len(one), len(other))
    if isinstance(one, np.ndarray):
        differ = np.flatnonzero(one[:most] != other[:most])
        return int(differ[0]) if len(differ) else most
    low, high = 0, most
    while low < high:  # slices are compared in C
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
