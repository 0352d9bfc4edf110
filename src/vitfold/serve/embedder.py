"""What a model gives for images: embeddings, and dense features where they are asked for."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import timm.data
import torch
from torch import Tensor, nn

from vitfold.data.inputs import normalize
from vitfold.errors import DataError, UnsupportedModel, one_line
from vitfold.exporting.runtime import Runtime
from vitfold.folding.families import processor
from vitfold.serve.decoding import Decoded, Preparation
from vitfold.serve.settings import Settings
from vitfold.tokens.modes import evaluating, mixed
from vitfold.tools.looks import Look, head_of, look
from vitfold.tools.wants import data_config

Rows = tuple[Any, Any]
"""Embeddings `[B, D]` and dense features `[B, N]` of images; None where there are none."""

SIDES = ("get_image_features", "encode_image")
"""Methods of models that read text too, for images alone: transformers' and open_clip's."""


class ImageSide(nn.Module):
    """The side of images of a model that reads text too: projected embeddings."""

    def __init__(self, model: Any, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, images: Tensor) -> Any:
        """What the model gives for `[B, C, H, W]` alone."""
        return getattr(self.model, self.method)(images)


def image_side(model: nn.Module) -> nn.Module:
    """The model as one of images."""
    method = next((name for name in SIDES if hasattr(model, name)), None)
    return model if method is None else ImageSide(model, method)


def preparation_of(model: Any) -> Preparation:
    """How a model wants its images: as its configuration says, or that of its checkpoint."""
    config = getattr(model, "config", None)
    checkpoint = getattr(config, "name_or_path", None)
    if checkpoint and processor.of(config) is None:
        with contextlib.suppress(Exception):  # where it cannot be fetched, there is none
            processor.put(config, processor.read(str(checkpoint)))
    try:
        return Preparation(data_config(model))
    except UnsupportedModel:
        if not getattr(model, "pretrained_cfg", None):
            warnings.warn(
                f"a {type(model).__name__} does not say how it wants its images: they are prepared "
                "as timm does by default",
                stacklevel=2,
            )
        return Preparation(timm.data.resolve_data_config({}, model=model))


class Embedder:
    """A model in its runtime, on its device."""

    def __init__(
        self, model: nn.Module, preparation: Preparation, settings: Settings, device: torch.device
    ) -> None:
        self.preparation, self.settings, self.device = preparation, settings, device
        self.model = image_side(model.to(device))
        self.runtime = Runtime(settings.runtime)
        with self.computing():
            self.served = self.model if self.runtime.eager else self.runtime.answering(self.model)
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.float32)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Within it, torch computes as the settings say, and keeps nothing for gradients."""
        before = torch.get_num_threads()
        if self.device.type == "cpu" and before != self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        try:
            with torch.inference_mode(), evaluating(self.model):
                yield
        finally:
            torch.set_num_threads(before)

    def prepared(self, pixels: Any) -> Tensor:
        """`[B, C, H, W]` as the model takes it, from 8 bits."""
        images = torch.from_numpy(pixels).to(self.device)
        return normalize(images, self.preparation.config).to(self.dtype)

    def __call__(self, decoded: Decoded) -> Rows:
        """What the model gives for a batch."""
        images = self.prepared(decoded.pixels)
        with self.computing(), mixed(self.device, self.settings.lower):
            seen = look(self.served, images)
            embedding = self._whole(seen)
            dense = self._dense(seen, images) if self.settings.tokens else None
        if embedding is None and dense is None:
            raise DataError(
                f"a {type(self.model).__name__} gives dense features and nothing for an image as a "
                "whole: give --tokens (tokens=True) to keep them"
            )
        return _rows(embedding, self.settings.dtype), _rows(dense, "float16")

    def _whole(self, seen: Look) -> Tensor | None:
        """What stands for an image. In another runtime nothing is seen of what a head reads."""
        if seen.embedding is None and not self.runtime.eager and head_of(self.model) is not None:
            raise DataError(
                f"a {type(self.model).__name__} in {self.runtime} shows its logits alone: make it "
                "without a head (num_classes=0), or leave out --runtime"
            )
        if seen.embedding is not None:
            return seen.embedding
        return seen.logits if seen.logits is not None and seen.logits.dim() == 2 else None

    def _dense(self, seen: Look, images: Tensor) -> Tensor:
        """Features of every place: those in the same output, or timm's by a call of their own."""
        if seen.dense is not None:
            return seen.dense
        if seen.logits is not None and seen.logits.dim() > 2:
            return seen.logits
        features = getattr(self.model, "forward_features", None)
        if features is None or not self.runtime.eager:
            raise DataError(
                f"a {type(self.model).__name__} in {self.runtime} shows no dense features: leave "
                "out --tokens (tokens=True)"
            )
        return next(x for x in (features(images),) if isinstance(x, Tensor))

    def shapes(self) -> dict[str, list[int] | None]:
        """What it gives for an image, by a trial: the lengths of an embedding, and the shape of
        dense features."""
        blank = Decoded(np.zeros((1, *self.preparation.shape), np.uint8), None, [None])
        images = self.prepared(blank.pixels)
        try:
            embedding, dense = self(blank)
        except DataError:
            raise
        except Exception as error:  # a model of a user's own raises what it likes
            shape = list(images.shape)
            raise UnsupportedModel(
                f"a {type(self.model).__name__} does not take images {shape}: {one_line(error)}"
            ) from error
        return {
            "embedding": None if embedding is None else list(embedding.shape[1:]),
            "tokens": None if dense is None else list(dense.shape[1:]),
        }


def _rows(values: Tensor | None, dtype: str) -> Any:
    """The numbers of each image, as they are stored."""
    if values is None:
        return None
    with np.errstate(over="ignore"):  # what is no number any more is told of each image
        return values.float().cpu().numpy().astype(dtype)
