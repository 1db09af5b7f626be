"""The two ends of the scale: everything trains, or nothing but the head."""

from torch import nn

from litpeft.adapters.base import Adapter


class Full(Adapter):
    """Full fine-tuning: every weight trains, held in fp32 and computed in the model's dtype by autocast.

    What mixed-precision training does (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740): bf16 weights would
    lose updates smaller than 1/256 of the weight.
    """

    name = "none"
    trains_base = True
    default_lr = 2e-5  # the middle of BERT's own range, https://arxiv.org/abs/1810.04805 appendix A.3

    def adapt(self, model: nn.Module) -> None:
        model.requires_grad_(True)
        model.float()


class Frozen(Adapter):
    """The base stays as it is; only the head (and what no checkpoint holds) trains. Linear probing."""

    name = "frozen"
    default_lr = 1e-3

    def adapt(self, model: nn.Module) -> None:
        """Nothing: `apply` has frozen the base, and trains the head."""
