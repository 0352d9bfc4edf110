"""Looking into models: why tokens can be merged, and what merging does to a model."""

from vitfold.lab.analysis.merged import merged_similarity
from vitfold.lab.analysis.positions import position_similarity
from vitfold.lab.analysis.sharpness import sharpness
from vitfold.lab.analysis.similarity import Similarity, token_similarity

__all__ = [
    "Similarity",
    "merged_similarity",
    "position_similarity",
    "sharpness",
    "token_similarity",
]
