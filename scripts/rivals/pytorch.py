"""The experiment in PyTorch on the CPU, written well (tuned) or as people write it (default).

Both do all that a run of plateau-train does: the untrained network scored on both splits, training
and evaluation every epoch, the plateau rule on means of 200 steps, a checkpoint an epoch, the plot.
"""

# Only the benchmark needs it.
# pyright: reportMissingImports=false

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from history import History, Scores
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

BATCH_SIZE = 128
LEARNING_RATE = 0.01
ACCUMULATION_SIZE = 200
# PyTorch lowers the rate after more than this many observations without improvement, which is
# patience 5 as optax counts.
PATIENCE = 4
# Images that are scored at once where nothing has to be remembered for gradients.
EVALUATION_SIZE = 1000

Batch = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--style", choices=STYLES, required=True)
    parser.add_argument("--data", type=Path, required=True, help=".npz with the decoded arrays")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with np.load(arguments.data) as arrays:
        train, test = (
            (
                torch.from_numpy(arrays[f"{split}_images"]),
                torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64)),
            )
            for split in ("train", "test")
        )
    STYLES[arguments.style](train, test, arguments.epochs, arguments.output)


def make_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 1000),
        nn.ReLU(),
        nn.Linear(1000, 1000),
        nn.ReLU(),
        nn.Linear(1000, 10),
    )


def make_scheduler(optimizer: Adam) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=PATIENCE, threshold=1e-4)


def find_scale(optimizer: Adam) -> float:
    return optimizer.param_groups[0]["lr"] / LEARNING_RATE


def save(
    path: Path, model: nn.Module, optimizer: Adam, scheduler: ReduceLROnPlateau, epoch: int
) -> None:
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    torch.save(state, path)


def tuned(train: Batch, test: Batch, num_epochs: int, output: Path) -> None:
    """Keep the bytes of the images in memory, wait for no number that is not needed, and flush."""
    # XLA does the same. Before the first operation: the threads that it starts take it over.
    torch.set_flush_denormal(True)
    model = make_model()
    optimizer = Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    scheduler = make_scheduler(optimizer)
    history = History(num_epochs)
    images, labels = train
    num_steps = len(labels) // BATCH_SIZE
    step, window = 0, torch.zeros(())

    def evaluate(split: Batch) -> Scores:
        loss, hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        with torch.inference_mode():
            for some, classes in zip(
                *(column.split(EVALUATION_SIZE) for column in split), strict=True
            ):
                logits = model(some.float().div_(255))
                loss += functional.cross_entropy(logits, classes, reduction="sum")
                hits += (logits.argmax(1) == classes).sum()
        return Scores(loss.item() / len(split[1]), hits.item() / len(split[1]))

    history.add(train=evaluate(train), test=evaluate(test), scale=1)
    for epoch in range(1, num_epochs + 1):
        total, hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        order = torch.randperm(len(labels))[: num_steps * BATCH_SIZE]
        for indices in order.split(BATCH_SIZE):
            classes = labels[indices]
            logits = model(images[indices].float().div_(255))
            loss = functional.cross_entropy(logits, classes)
            optimizer.zero_grad()
            loss.backward()
            with torch.inference_mode():
                total += loss
                window += loss
                hits += (logits.argmax(1) == classes).sum()
            step += 1
            if step % ACCUMULATION_SIZE == 0:
                scheduler.step(window.item() / ACCUMULATION_SIZE)
                window.zero_()
            optimizer.step()
        scores = Scores(total.item() / num_steps, hits.item() / len(order))
        save(output / "checkpoint.pt", model, optimizer, scheduler, epoch)
        history.add(train=scores, test=evaluate(test), scale=find_scale(optimizer))
    history.plot(output / "plot.png")


def default(train: Batch, test: Batch, num_epochs: int, output: Path) -> None:
    """Write the tutorials' loop: a data set of floats, a DataLoader, defaults everywhere."""

    def loader(split: Batch, *, training: bool) -> DataLoader:
        images, labels = split
        return DataLoader(
            TensorDataset(images.float() / 255, labels),
            batch_size=BATCH_SIZE,
            shuffle=training,
            drop_last=training,
        )

    train_loader, test_loader = loader(train, training=True), loader(test, training=False)
    model = make_model()
    criterion = nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=LEARNING_RATE)
    scheduler = make_scheduler(optimizer)
    history = History(num_epochs)
    window: list[float] = []

    def evaluate(batches: Iterable[Batch]) -> Scores:
        model.eval()
        loss, hits, count = 0.0, 0, 0
        with torch.no_grad():
            for images, labels in batches:
                logits = model(images)
                loss += criterion(logits, labels).item() * len(labels)
                hits += (logits.argmax(1) == labels).sum().item()
                count += len(labels)
        return Scores(loss / count, hits / count)

    history.add(train=evaluate(train_loader), test=evaluate(test_loader), scale=1)
    for epoch in range(1, num_epochs + 1):
        model.train()
        total, hits, count = 0.0, 0, 0
        for images, labels in train_loader:
            optimizer.zero_grad()
            logits = model(images)
            loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            window.append(loss.item())
            total += loss.item() * len(labels)
            hits += (logits.argmax(1) == labels).sum().item()
            count += len(labels)
            if len(window) == ACCUMULATION_SIZE:
                scheduler.step(sum(window) / len(window))
                window.clear()
        scores = Scores(total / count, hits / count)
        save(output / "checkpoint.pt", model, optimizer, scheduler, epoch)
        history.add(train=scores, test=evaluate(test_loader), scale=find_scale(optimizer))
    history.plot(output / "plot.png")


STYLES: dict[str, Callable[[Batch, Batch, int, Path], None]] = {"tuned": tuned, "default": default}

if __name__ == "__main__":
    main()
