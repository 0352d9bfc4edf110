"""A class for every pixel: a ViT as encoder, and what makes classes of its tokens."""

from vitfold.segment.decoders import DECODERS, Linear, MaskTransformer
from vitfold.segment.models import create_segmenter, saved_classes
from vitfold.segment.scenes import SPLITS, VOID, Labels, Scenes, also, classes_in, open_scenes
from vitfold.segment.score import Report, score
from vitfold.segment.segmenter import Segmenter
from vitfold.segment.windows import slide

__all__ = [
    "DECODERS",
    "Labels",
    "Linear",
    "MaskTransformer",
    "Report",
    "SPLITS",
    "Scenes",
    "Segmenter",
    "VOID",
    "also",
    "classes_in",
    "create_segmenter",
    "open_scenes",
    "saved_classes",
    "score",
    "slide",
]
