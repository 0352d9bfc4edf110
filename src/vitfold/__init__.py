"""vitfold: vision transformers with fewer tokens."""

from vitfold.fold import fold, unfold
from vitfold.methods import DFE, LGTM, Drop, ToMe

__all__ = ["DFE", "LGTM", "Drop", "ToMe", "fold", "unfold"]
