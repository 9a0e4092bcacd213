"""Predict the classes of images with a checkpoint of a run."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int
from scipy.special import softmax

from plateau_train.api.evaluation import choose_weights, find_places
from plateau_train.api.options import as_path, for_python
from plateau_train.api.training import StartDevices
from plateau_train.config import Resolved
from plateau_train.data.images import read_images, take_images
from plateau_train.errors import ConfigError
from plateau_train.report.console import Column, Table
from plateau_train.report.rows import Columns, Row, to_columns, to_html
from plateau_train.run.directory import RunDirectory
from plateau_train.training import setup
from plateau_train.training.program import enable_compilation_cache
from plateau_train.training.scoring import predict as predict_logits

log = logging.getLogger("plateau_train")

MOST_SHOWN = 20  # images in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """The classes of images that a checkpoint of a run predicts.

    ``logits`` has a row for each image and a column for each of the ``classes``.
    """

    run: Path
    epoch: int
    replica: int
    seed: int
    title: str  # describes the checkpoint
    files: Sequence[str]  # the name of each image
    classes: Sequence[str]
    logits: Float32[np.ndarray, "n classes"]

    @cached_property
    def probabilities(self) -> Float32[np.ndarray, "n classes"]:
        """The softmax of the logits."""
        return softmax(self.logits, axis=1)

    @property
    def predicted(self) -> Int[np.ndarray, " n"]:
        """The number of the most likely class of each image."""
        return self.logits.argmax(axis=1)

    @for_python()
    def rows(self, *, top: int = 1) -> list[Row]:
        """Return a row for each image and each of its ``top`` most likely classes, or of all.

        Raises ``ConfigError`` for a number below 1.
        """
        if not isinstance(top, int | np.integer) or top < 1:
            problem = f"--top must be a whole number from 1, got {top}"
            raise ConfigError(problem, hint="leave it out for the most likely class")
        rankings = np.argsort(-self.logits, axis=1, kind="stable")[:, :top].tolist()
        return [
            {"file": file, "rank": rank, "class": self.classes[number]}
            | {"class_number": number, "probability": float(probabilities[number])}
            for file, probabilities, ranking in zip(
                self.files, self.probabilities, rankings, strict=True
            )
            for rank, number in enumerate(ranking, start=1)
        ]

    @property
    def results(self) -> Columns:
        """The most likely class of each image and its probability, as columns."""
        return to_columns(self.rows())

    def table(self, *, top: int = 1, caption: str = "") -> Table:
        """Return a table with a line for each image; raises as ``rows``."""
        rows, num_ranks = self.rows(top=top), min(top, len(self.classes))
        lines = [
            {"file": rows[start]["file"]}
            | {str(row["rank"]): row for row in rows[start : start + num_ranks]}
            for start in range(0, len(rows), num_ranks)
        ]
        columns = [Column("file", "file", is_number=False)]
        for rank in range(1, num_ranks + 1):
            omit = 0 if rank == 1 else num_ranks - rank + 1  # the least likely class first
            title = "class" if rank == 1 else f"class {rank}"
            columns += [
                Column(f"{rank}.class", title, is_number=False, omit=omit),
                Column(f"{rank}.probability", "probability", ".4f", omit=omit),
            ]
        return Table(lines, columns, caption)

    def __repr__(self) -> str:
        num_images = f"{len(self.files)} image{'s' * (len(self.files) != 1)}"
        return f"Predictions({num_images}, {str(self.run)!r}, {self.title})"

    def _repr_html_(self) -> str:
        first = replace(self, files=self.files[:MOST_SHOWN], logits=self.logits[:MOST_SHOWN])
        num_images = len(self.files)
        cut = f": the first {MOST_SHOWN} of {num_images:,} images" * (num_images > MOST_SHOWN)
        return to_html(first.table(caption=f"{self.title}{cut}"))


def predict(
    path: Path,
    images: Any,
    places: Resolved,
    start_devices: StartDevices,
    *,
    which: str = "best",
    replica: int | None = None,
    resize: bool = False,
) -> Predictions:
    """Predict the classes of images, which are an array or paths, with a checkpoint of a run.

    ``which`` and ``replica`` choose the weights, as in ``evaluate``; ``places`` says where the code
    of the network is now. Raises as ``evaluate``, and ``DataError`` for what cannot be read as
    images of the size that the run has, or of any size with ``resize``.
    """
    run = RunDirectory.find(path)
    checkpoint, _, number, title = choose_weights(run, which, replica)
    manifest = checkpoint.manifest
    dataset = manifest.environment.dataset
    files, pixels = _read(images, dataset.image_shape, resize=resize)
    log.info(f"{run}, {title}")
    settings = find_places(run, manifest, places)
    start_devices(manifest.environment.threads)
    enable_compilation_cache(places.settings.data.cache_dir)
    setup.permit_model(run, manifest.environment, settings.model, places)
    logits = predict_logits(checkpoint, settings.model, pixels, number)
    where = run.path, manifest.epoch, number, settings.run.seeds[number]
    return Predictions(*where, title, files, dataset.class_names, logits)


def _read(
    images: Any, image_shape: tuple[int, int, int], *, resize: bool
) -> tuple[list[str], np.ndarray]:
    """Return the name and the pixels of each image of an array, or of files and folders."""
    if isinstance(images, str | os.PathLike):
        images = [images]
    if isinstance(images, Iterator):  # such as the paths of glob
        images = [*images]
    has_paths = isinstance(images, list | tuple) and any(
        isinstance(each, str | os.PathLike) for each in images
    )
    if has_paths:
        return read_images([as_path(each) for each in images], image_shape, resize=resize)
    return take_images(images, image_shape, resize=resize)
