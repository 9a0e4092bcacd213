"""What every rival prints and draws, so that they do the same work and can be compared."""

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure


class Scores(NamedTuple):
    """Means over some images: cross-entropy in nats, and the share of hits."""

    loss: float
    accuracy: float


class History:
    """Keep the metrics of every epoch, epoch 0 (the untrained network) first."""

    def __init__(self, num_epochs: int) -> None:
        self._num_epochs = num_epochs
        self._columns: dict[str, list[float]] = {}

    def add(self, *, train: Scores, test: Scores, scale: float) -> None:
        """Keep and print one epoch."""
        values = {
            "scale": scale,
            "train loss": train.loss,
            "train accuracy": train.accuracy,
            "test loss": test.loss,
            "test accuracy": test.accuracy,
        }
        for name, value in values.items():
            self._columns.setdefault(name, []).append(value)
        epoch = len(self._columns["scale"]) - 1
        print(
            f"epoch {epoch}/{self._num_epochs}  "
            f"train loss {train.loss:.4f} acc {train.accuracy:.4f}  "
            f"test loss {test.loss:.4f} acc {test.accuracy:.4f}  scale {scale:.6g}",
            flush=True,
        )

    def plot(self, path: Path) -> None:
        """Draw the five panels of the notebook, each with its best value marked."""
        figure = Figure(figsize=(20, 4.5), layout="constrained")
        for panel, (name, values) in zip(figure.subplots(1, 5), self._columns.items(), strict=True):
            panel.plot(values, linewidth=3)
            if name == "scale":
                panel.set_yscale("log", base=2)
            else:
                best = (max if "accuracy" in name else min)(values)
                panel.scatter(values.index(best), best, s=100, label=f"best {best:.4f}")
                panel.legend(frameon=False)
            panel.set_title(name)
            panel.set_xlabel("epoch")
        figure.savefig(path)
