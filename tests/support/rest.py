"""Cases that say again what others say: `make test-all` runs them, `make test` does not."""

from typing import Any

import pytest


def rest(*cases: Any) -> list[Any]:
    """Values of one parameter, or tuples of several, for `pytest.mark.parametrize`."""
    marks = pytest.mark.exhaustive
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks) for case in cases
    ]
