"""What the classes of a model are called."""

from typing import Any

from torch import nn

from vitfold.tools.answers import classes_of_head


def class_names(model: nn.Module) -> list[str]:
    """A name for every class, by its number where nobody knows another; none without classes."""
    count = classes_of_head(model) or 0
    return _of_config(model, count) or _of_imagenet(model, count) or [
        f"class {number}" for number in range(count)
    ]  # fmt: skip


def _of_config(model: Any, count: int) -> list[str] | None:
    """Those that a checkpoint of transformers says."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, dict) or set(names) != set(range(count)):
        return None
    return [str(names[number]) for number in range(count)]


def _of_imagenet(model: Any, count: int) -> list[str] | None:
    """Those of ImageNet, for a model of timm's that has its classes."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model) if count and hasattr(model, "pretrained_cfg") else None
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    if info.num_classes() != count:
        return None
    return [info.index_to_description(number).split(",")[0] for number in range(count)]
