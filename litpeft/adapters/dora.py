"""DoRA: LoRA with a trained magnitude for each row of W (Liu et al. 2024, https://arxiv.org/abs/2402.09353)."""

from litpeft.adapters.lora import LoRA


class DoRA(LoRA):
    """Trains a magnitude and a low-rank update: y = m/‖W + sBA‖ ⊙ (x Wᵀ + s (dropout(x) Aᵀ) Bᵀ) + b (equation 5).

    The magnitude m starts as the row norms of W. The norm ‖W + sBA‖ is a constant in backward (section 4.3). Dropout
    applies to the low-rank branch only; PEFT also applies dropout to the frozen branch and so computes x Wᵀ twice.
    """

    name = "dora"
    magnitude = True
