"""Looking into models: why tokens can be merged, and what merging does to a model."""

from vitfold.analysis.merged import merged_similarity
from vitfold.analysis.positions import position_similarity
from vitfold.analysis.sharpness import sharpness
from vitfold.analysis.similarity import Similarity, token_similarity

__all__ = [
    "Similarity",
    "merged_similarity",
    "position_similarity",
    "sharpness",
    "token_similarity",
]
