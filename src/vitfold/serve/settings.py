"""How a corpus is embedded: what the numbers in its directory depend on."""

from dataclasses import dataclass, fields
from typing import Any

import torch

from vitfold.errors import DataError, nearest
from vitfold.exporting.runtime import Runtime

DTYPES = ("float32", "float16")

AMP = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """What a resumed run has to have in common with the one before.

    dtype: of embeddings, as they are stored.
    amp: the lower precision of the model's own arithmetic; None: full.
    tokens: whether dense features are stored too, in half precision.
    threads: how many the model computes with, on a CPU.
    """

    dtype: str = "float32"
    amp: str | None = None
    tokens: bool = False
    runtime: str = "eager"
    batch_size: int = 64
    shard_size: int = 1024
    threads: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise DataError(f"dtype {self.dtype!r}: expected {' or '.join(DTYPES)}")
        if self.amp is not None and self.amp not in AMP:
            raise DataError(f"amp {self.amp!r}{nearest(self.amp, AMP)}: expected bfloat16, float16")
        for name in ("batch_size", "shard_size", "threads"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)}: expected a number from 1 up")
        Runtime(self.runtime)

    @property
    def lower(self) -> torch.dtype | None:
        """The dtype of mixed precision; None of full."""
        return None if self.amp is None else AMP[self.amp]

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return dict(vars(self))

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "Settings":
        """What `to_json` gave."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})
