"""Convolutions with an adapter, for example the patch embedding of a vision transformer, or SqueezeBERT's layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.adapters.gain import with_gain
from litpeft.adapters.layers.base import AdaptedLayer
from litpeft.errors import UserError


class AdaptedConvolution(AdaptedLayer):
    """A convolution with an adapter: A is one with the same settings and r output channels, B has a kernel of size 1.

    As a matrix, each group's weight is (out/g, in/g * kernel size), so that any number of groups can be merged. No
    custom autograd function: the frozen convolution saves only its input, which A saves too.
    """

    kind: type[nn.Conv1d] | type[nn.Conv2d]
    convolve: Callable[..., Tensor]

    def take_over(self, base: nn.Conv1d | nn.Conv2d) -> None:
        super().take_over(base)
        sizes = ("kernel_size", "in_channels", "out_channels")
        for name in ("stride", "padding", "dilation", "groups", "padding_mode", *sizes):
            setattr(self, name, getattr(base, name))
        self.in_features, self.out_features = base.in_channels, base.out_channels
        self._pad_widths = base._reversed_padding_repeated_twice  # as F.pad takes them

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.rank % self.groups:
            raise UserError(
                f"model.adapter.rank {self.rank} must be a multiple of the {self.groups} groups of a convolution."
            )
        ones = [1] * len(self.kernel_size)
        return (self.rank, *self.weight.shape[1:]), (self.out_channels, self.rank // self.groups, *ones)

    def matrix(self) -> Tensor:
        return self.weight.flatten(1)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, *sizes) -> (N, out, *sizes')
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._pad_widths, self.padding_mode), 0
        options = {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}
        dropped = F.dropout(x, self.dropout, self.training)
        low = self.convolve(dropped, self.lora_A.to(x.dtype), **options)  # (N, r, *sizes')
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out = self.convolve(x, self.weight.to(x.dtype), None if self.magnitude is not None else bias, **options)
        out = out + self.convolve(low, (self.scaling * self.lora_B).to(low.dtype), groups=self.groups)
        if self.magnitude is None:
            return out
        out = with_gain(out, self.magnitude, self.gain(), dim=1)
        return out if bias is None else out + bias.to(out.dtype).view(-1, *[1] * len(self.kernel_size))

    def plain(self, matrix: Tensor) -> nn.Conv1d | nn.Conv2d:
        options = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.bias is not None)
        layer = self.kind(self.in_channels, self.out_channels, *options, self.padding_mode, device="meta")
        layer.weight = nn.Parameter(matrix.view(self.weight.shape), requires_grad=False)
        layer.bias = self.bias
        return layer


class AdaptedConv1d(AdaptedConvolution):
    """nn.Conv1d with an adapter (not GPT-2's Conv1D, which is a linear layer)."""

    kind, convolve = nn.Conv1d, staticmethod(F.conv1d)


class AdaptedConv2d(AdaptedConvolution):
    """nn.Conv2d with an adapter."""

    kind, convolve = nn.Conv2d, staticmethod(F.conv2d)
