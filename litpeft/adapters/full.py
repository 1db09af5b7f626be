"""The baselines: full fine-tuning, a frozen base with a trained head, and the model as it is."""

from torch import nn

from litpeft.adapters.base import Adapter


class Full(Adapter):
    """Full fine-tuning: trains every parameter.

    Parameters are stored in fp32 and products are computed in the compute dtype with autocast (mixed precision,
    Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740), since bf16 parameters lose updates below 1/256 of
    their value.
    """

    name = "none"
    trains_base = True
    default_lr = 2e-5  # middle of the range that BERT's authors used, https://arxiv.org/abs/1810.04805 appendix A.3

    def adapt(self, model: nn.Module) -> None:
        model.requires_grad_(True)
        model.float()


class Frozen(Adapter):
    """Linear probing: trains only the head and the newly initialised parameters."""

    name = "frozen"
    default_lr = 1e-3

    def adapt(self, model: nn.Module) -> None:
        """Do nothing: `apply` freezes the base and trains the head."""


class Untrained(Adapter):
    """Trains nothing: the run only evaluates the model as it is, a reference for what training changes."""

    name = "untrained"
    trains = False

    def adapt(self, model: nn.Module) -> None:
        """Do nothing."""
