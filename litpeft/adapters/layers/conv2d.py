"""Conv2d with an adapter, for example the patch embedding of a vision transformer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.adapters.functional import with_gain
from litpeft.adapters.layers.base import AdaptedLayer
from litpeft.errors import UserError


class AdaptedConv2d(AdaptedLayer):
    """nn.Conv2d with an adapter: A is a convolution with the same settings and r output channels, B is a 1 x 1 one.

    As a matrix, each group's weight is (out/g, in/g * height * width), so that any number of groups can be merged. No
    custom autograd function: the frozen convolution saves only its input, which A saves too.
    """

    def take_over(self, base: nn.Conv2d) -> None:
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
        return (self.rank, *self.weight.shape[1:]), (self.out_channels, self.rank // self.groups, 1, 1)

    def matrix(self) -> Tensor:
        return self.weight.flatten(1)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, out, H', W')
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._pad_widths, self.padding_mode), 0
        options = {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}
        dropped = F.dropout(x, self.dropout, self.training)
        low = F.conv2d(dropped, self.lora_A.to(x.dtype), **options)  # (N, r, H', W')
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out = F.conv2d(x, self.weight.to(x.dtype), None if self.magnitude is not None else bias, **options)
        out = out + F.conv2d(low, (self.scaling * self.lora_B).to(low.dtype), groups=self.groups)
        if self.magnitude is None:
            return out
        out = with_gain(out, self.magnitude, self.norm(), dim=1)
        return out if bias is None else out + bias.to(out.dtype)[:, None, None]

    def plain(self, matrix: Tensor) -> nn.Conv2d:
        options = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.bias is not None)
        layer = nn.Conv2d(self.in_channels, self.out_channels, *options, self.padding_mode, device="meta")
        layer.weight = nn.Parameter(matrix.view(self.weight.shape), requires_grad=False)
        layer.bias = self.bias
        return layer
