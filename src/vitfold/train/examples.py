"""Examples: training images whose order and augmentation the seed alone decides.

What happens to an image depends on the seed, the epoch and its index; which images a step sees
depends on the seed and the step. So a training that goes on after a stop sees what it would have
seen, whatever the number of workers.
"""

import contextlib
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import timm.data
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitfold.data import item, streams
from vitfold.errors import DataError, TrainError
from vitfold.train.recipe import Recipe

Place = tuple[int, int]
"""An epoch, and the index of an image."""

ORDER, IMAGE, STEP = range(3)
"""What random numbers are for; no two purposes share any."""


def seed_all(*key: int) -> None:
    """Start every random generator that augmentations and models use from these numbers."""
    state = numpy.random.SeedSequence(key).generate_state(2)
    random.seed(int(state[0]))
    numpy.random.seed(int(state[0]))
    torch.manual_seed(int(state[1]))


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the random generators of the program as they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)


class Examples(Dataset[Any]):
    """A dataset of labelled images, each augmented by random numbers of its place in the order."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, place: Place) -> Any:
        seed_all(self.seed, IMAGE, *place)
        return item(self.dataset, place[1])


@dataclass(frozen=True)
class Order:
    """Which images each step trains on.

    images: in the dataset.
    batch: images that one process passes through the model at once.
    accumulate: such batches in a step.
    processes, rank: how many share the work, and which one this is.
    """

    images: int
    batch: int
    accumulate: int
    seed: int
    processes: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if not self.steps:
            raise TrainError(
                f"{self.images} images are fewer than the {self.together} of one step: give a "
                "smaller --batch-size"
            )

    @property
    def together(self) -> int:
        """How many images a step has, in all processes."""
        return self.batch * self.accumulate * self.processes

    @property
    def steps(self) -> int:
        """How many steps an epoch has; images that do not fill a step wait for another epoch."""
        return self.images // self.together

    def batches(self, start: int, stop: int) -> Iterator[list[Place]]:
        """The batches of this process, from one step up to another."""
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps)
            if place == 0 or step == start:
                shuffled = self._shuffled(epoch)
            yield from self._of_step(epoch, shuffled[place])

    def _shuffled(self, epoch: int) -> Tensor:
        """`[steps, accumulate, batch]`: indices for this process."""
        generator = torch.Generator()
        state = numpy.random.SeedSequence((self.seed, ORDER, epoch)).generate_state(1)
        generator.manual_seed(int(state[0]))
        every = torch.randperm(self.images, generator=generator)
        shape = (self.steps, self.accumulate, self.processes, self.batch)
        return every[: self.steps * self.together].view(shape)[:, :, self.rank]

    def _of_step(self, epoch: int, indices: Tensor) -> Iterator[list[Place]]:
        for batch in indices.tolist():
            yield [(epoch, index) for index in batch]


def load(examples: Examples, order: Order, start: int, stop: int, workers: int) -> Iterator[Any]:
    """The batches from one step up to another, over as many epochs as they take."""
    places: Any = order.batches(start, stop)  # torch asks for an iterable and declares a sampler
    loader: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=places,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def finish(batches: Iterator[Any]) -> None:
    """End the processes that load batches. An error that is still held keeps them alive, and they
    ignore the signal by which programs end them."""
    shut_down = getattr(batches, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()


def _ignore_signals(_worker: int) -> None:
    """A signal to all processes is answered by the one that trains, after its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def length(images: Any) -> int:
    """How many images a dataset has; a stream is refused."""
    if streams(images):
        raise DataError(
            "a dataset that is read as a stream cannot be shuffled the same way twice: give a "
            "folder, a tar or hfds/..."
        )
    return len(images)


def mixing(recipe: Recipe, classes: int | None) -> Any:
    """timm's Mixup and CutMix, where the recipe asks for them; else None."""
    if not recipe.mix:
        return None
    if classes is None:
        raise TrainError("mixing images takes the number of classes")
    return timm.data.Mixup(**recipe.mix, label_smoothing=recipe.smoothing, num_classes=classes)
