"""The live progress bar."""

from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Rich's bar, with epochs counted from one, and no number of epochs where steps end the run."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs or -1
        return f"Epoch {current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")
