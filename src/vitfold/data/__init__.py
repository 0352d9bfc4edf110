"""Images for a model: its preprocessing, and where labelled images come from."""

from vitfold.data.inputs import Renormalized, data_config, preprocessing, renormalized
from vitfold.data.sources import AnySource, Source, labelled, untouched
from vitfold.data.subsets import classes_of, evenly, item, limited, loader, shuffled, streams

__all__ = [
    "AnySource",
    "Renormalized",
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
    "shuffled",
    "streams",
    "untouched",
]
