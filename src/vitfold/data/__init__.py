"""Images for a model: its preprocessing, and where images come from, labelled or not."""

from vitfold.data.inputs import Renormalized, preprocessing, renormalized
from vitfold.data.photographs import Photographs, PhotographStream, batches, unlabelled
from vitfold.data.sources import AnySource, Source, labelled, untouched
from vitfold.data.subsets import classes_of, evenly, item, limited, loader, shuffled, streams

__all__ = [
    "AnySource",
    "PhotographStream",
    "Photographs",
    "Renormalized",
    "Source",
    "batches",
    "classes_of",
    "evenly",
    "item",
    "labelled",
    "limited",
    "loader",
    "preprocessing",
    "renormalized",
    "shuffled",
    "streams",
    "unlabelled",
    "untouched",
]
