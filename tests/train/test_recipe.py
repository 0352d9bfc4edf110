"""Recipes: their defaults, what methods want, and what is refused."""

from typing import Any

import pytest

from vitfold.errors import TrainError
from vitfold.train import Recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"sam": 0}, "sam=0"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"mix": {"mixup_alpha": 1.0}, "batch_size": 3}, "batch_size=3: mixing takes an even one"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        Recipe(**options)
