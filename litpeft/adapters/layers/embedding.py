"""Embeddings with an adapter: nn.Embedding, and those of transformers that multiply their output (Gemma, BART)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.adapters.gain import with_gain
from litpeft.adapters.layers.base import AdaptedLayer
from litpeft.errors import UserError


class AdaptedEmbedding(AdaptedLayer):
    """An embedding with an adapter: c (E[i] + s B A[:, i]), with c = 1 except in Gemma and BART.

    As a matrix, W is Eᵀ (dim, vocabulary).

    A starts at zero and B is random, as in the LoRA authors' code. Dropout does not apply to token ids and is ignored.
    No custom autograd function: the lookup saves only ids, and the product is added in place.
    """

    def take_over(self, base: nn.Embedding) -> None:
        if base.max_norm is not None or base.scale_grad_by_freq or base.sparse:
            raise UserError(
                "model.adapter.targets: embeddings with max_norm, scale_grad_by_freq or sparse are not supported."
            )
        self.weight, self.bias, self.padding_idx = base.weight, None, base.padding_idx
        self.kind, self.scale = type(base), getattr(base, "scalar_embed_scale", getattr(base, "embed_scale", None))
        self.rounds_scale = hasattr(base, "scalar_embed_scale")  # Gemma rounds it to the dtype of the weight, BART not
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.in_features, self.out_features = base.num_embeddings, base.embedding_dim

    def initialise(self, init: str) -> None:
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def matrix(self) -> Tensor:
        return self.weight.T

    def forward(self, ids: Tensor) -> Tensor:  # (...) -> (..., dim)
        out = F.embedding(ids, self.weight).view(-1, self.out_features)
        low = F.embedding(ids.reshape(-1), self.lora_A.T, self.padding_idx).to(out.dtype)  # (N, r)
        out = out.addmm_(low, self.lora_B.to(out.dtype).T, alpha=self.scaling)
        if self.magnitude is not None:
            out = with_gain(out, self.magnitude, self.gain())
        if self.scale is not None:
            out = out * (torch.tensor(self.scale, dtype=out.dtype) if self.rounds_scale else self.scale)
        return out.view(*ids.shape, self.out_features)

    def plain(self, matrix: Tensor) -> nn.Embedding:
        scale = () if self.scale is None else (self.scale,)
        with torch.device("meta"):
            layer = self.kind(self.num_embeddings, self.embedding_dim, self.padding_idx, *scale)
        if self.rounds_scale:
            layer.embed_scale = torch.tensor(self.scale)  # a buffer
        layer.weight = nn.Parameter(matrix.T.contiguous(), requires_grad=False)
        return layer
