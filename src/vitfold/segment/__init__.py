"""A class for every pixel: a ViT as encoder, a decoder, images with annotations, and scores."""

from vitfold.segment.decoders import DECODERS, Linear, MaskTransformer
from vitfold.segment.metrics import Report, score
from vitfold.segment.models import create_segmenter, saved_classes
from vitfold.segment.scenes import VOID, Labels, Scenes, classes_in, open_scenes
from vitfold.segment.segmenter import Segmenter
from vitfold.segment.sources import SceneSource, scene_transform
from vitfold.segment.windows import slide

__all__ = [
    "DECODERS",
    "Labels",
    "Linear",
    "MaskTransformer",
    "Report",
    "SceneSource",
    "Scenes",
    "Segmenter",
    "VOID",
    "classes_in",
    "create_segmenter",
    "open_scenes",
    "saved_classes",
    "scene_transform",
    "score",
    "slide",
]
