"""What all tests share."""

import pytest
import torch
from hypothesis import settings

# Models here are tiny: threads would spend their time waiting for each other.
torch.set_num_threads(1)

# Nor does a slow machine make a law false.
settings.register_profile("untimed", parent=settings(), deadline=None)
settings.load_profile("untimed")

pytest.register_assert_rewrite("support.cli", "support.compare")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Some tests of training fork, which autograd allows only until other tests start its threads:
    they come first, and the rest of their folder after them."""
    items.sort(
        key=lambda item: (item.path.name != "test_resuming.py", item.path.parent.name != "train")
    )
