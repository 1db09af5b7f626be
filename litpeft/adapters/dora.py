"""DoRA: direction and magnitude of a weight trained apart (Liu et al. 2024, https://arxiv.org/abs/2402.09353)."""

from litpeft.adapters.lora import LoRA


class DoRA(LoRA):
    """y = m/‖W + sBA‖ ⊙ (x Wᵀ + s (dropout(x) Aᵀ) Bᵀ) + b, the paper's equation 5; the bias is not scaled.

    The magnitude m starts as the norm of W's rows and trains with A and B. The norm below it is a constant in backward
    (section 4.3). Dropout falls on the adapter's branch alone: PEFT drops from the frozen branch as well, where it is
    scaled, and so needs the frozen product twice.
    """

    name = "dora"
    magnitude = True
