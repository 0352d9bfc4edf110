"""Images for a model: as it wants them, and where labelled ones come from."""

from vitfold.data.looks import Renormalized, data_config, preprocessing, renormalized, scene_look
from vitfold.data.parts import classes_of, evenly, item, limited, loader, shuffled, streams
from vitfold.data.sources import AnySource, DigitsSource, SceneSource, Source, labelled, untouched

__all__ = [
    "AnySource",
    "DigitsSource",
    "Renormalized",
    "SceneSource",
    "Source",
    "classes_of",
    "data_config",
    "evenly",
    "item",
    "labelled",
    "limited",
    "loader",
    "preprocessing",
    "renormalized",
    "scene_look",
    "shuffled",
    "streams",
    "untouched",
]
