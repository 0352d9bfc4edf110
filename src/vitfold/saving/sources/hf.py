"""transformers as a source: classes from a list, and configurations that these know."""

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from vitfold.errors import DataError, PlanError, missing
from vitfold.folding.families import processor
from vitfold.folding.families.hf import MODELS
from vitfold.saving import fields
from vitfold.saving.sources.base import Source

UNSAVED = (
    "BeitForSemanticSegmentation",
    "BeitBackbone",
    "DeepseekOcr2ForConditionalGeneration",
    "DeepseekOcr2Model",
    "DeepseekOcr2VisionModel",
    "GotOcr2ForConditionalGeneration",
    "GotOcr2Model",
    "InternVLForConditionalGeneration",
    "InternVLModel",
    "PPFormulaNetForConditionalGeneration",
    "PPFormulaNetModel",
    "PaddleOCRVisionModel",
    "PaddleOCRVLModel",
    "PaddleOCRVLForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2VLModel",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLModel",
    "Qwen2_5_VisionTransformerPretrainedModel",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLModel",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3VLMoeModel",
    "Qwen3VLMoeVisionModel",
    "Qwen3VLVisionModel",
    "SLANeXtForTableRecognition",
    "Sam3LiteTextModel",
    "Sam3Model",
    "UnlimitedOcrForConditionalGeneration",
    "UnlimitedOcrModel",
    "UnlimitedOcrVisionModel",
    "VitPoseForPoseEstimation",
)
"""Classes that a configuration and weights alone do not make again as they were, or of which nobody
has tried it: to load what is saved of them, give the model."""

CLASSES = tuple(name for names in MODELS.values() for name in names if name not in UNSAVED)

TWO_TOWERS = ("CLIPModel", "SiglipModel", "Siglip2Model")
"""Classes that read text too."""

ATTENTION = ("eager", "sdpa", "flex_attention")
"""Implementations that come with torch: any other name could fetch a kernel and run it."""

CHECKPOINT = r"[A-Za-z0-9_][\w.-]{0,100}(/[A-Za-z0-9_][\w.-]{0,100})?"

LEFT_OUT = ("transformers_version", "dtype", "_name_or_path", "model_type", "architectures")
"""What a configuration says of where it comes from."""

LABELS = ("id2label", "label2id")

COUNTS = {
    "num_hidden_layers": 256,
    "num_attention_heads": 512,
    "auxiliary_num_convs": 256,
    "num_labels": 2**17,
}
"""What is made one by one, and the most of it."""


def library() -> Any:
    """The library transformers, or an error that names the extra."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise missing("transformers", "hf") from None


class Transformers(Source):
    """Classes from a list, and configurations that these know."""

    def identify(self, model: nn.Module) -> str | None:
        """The name of the class of a model."""
        name = type(model).__name__
        if name not in CLASSES or not type(model).__module__.startswith("transformers."):
            return None
        return name if getattr(library(), name, None) is type(model) else None

    def arguments(self, model: Any) -> dict[str, Any]:
        """The configuration of a model, its attention implementation and its checkpoint."""
        config = model.config
        known = type(config)().to_dict()
        arguments: dict[str, Any] = {
            "config": _known(config.to_dict(), known),
            "attention": config._attn_implementation,
            "checkpoint": None,
            "images": processor.of(config),
        }
        checkpoint = str(config.name_or_path)
        if fields.matches(checkpoint, CHECKPOINT) and not Path(checkpoint).exists():
            arguments["checkpoint"] = checkpoint
        return arguments

    def check(self, name: object, arguments: object) -> None:
        """Refuse classes that are not listed, and numbers that make a model without end."""
        fields.choice("model.name", name, CLASSES)
        names = ("config", "attention", "checkpoint", "images")
        if isinstance(arguments, dict):
            arguments = {"images": None, **arguments}
        values = fields.record("model.arguments", arguments, names)
        fields.choice("model.arguments.attention", values["attention"], ATTENTION)
        if values["checkpoint"] is not None:
            expected = "the name of a checkpoint on the hub, or null"
            fields.text("model.arguments.checkpoint", values["checkpoint"], CHECKPOINT, expected)
        _check_numbers("model.arguments.config", values["config"])
        if values["images"] is not None:
            _check_images("model.arguments.images", values["images"])

    def build(self, name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
        """The model, from its configuration alone or with the weights of its checkpoint."""
        cls = getattr(library(), name)
        _check_keys("model.arguments.config", arguments["config"], cls.config_class().to_dict())
        config = cls.config_class.from_dict(
            dict(arguments["config"]),
            attn_implementation=arguments["attention"],
            name_or_path=arguments["checkpoint"] or "",
        )
        processor.put(config, arguments.get("images"))
        if not pretrained:
            return cls(config)  # type: ignore[no-any-return]
        if arguments["checkpoint"] is None:
            raise LookupError("it was not loaded from a checkpoint on the hub")
        # Only safetensors: the other format is a pickle.
        return cls.from_pretrained(  # type: ignore[no-any-return]
            arguments["checkpoint"], config=config, use_safetensors=True, trust_remote_code=False
        )


def _known(config: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that its class knows; those on the hub carry more."""
    own = {key: value for key, value in config.items() if key in known and key not in LEFT_OUT}
    for key, value in own.items():
        if _nested(key, known[key]):
            own[key] = _known(value, known[key])
    labels = own.get("id2label") or {}
    if all(label == f"LABEL_{index}" for index, label in labels.items()):
        # The names that say nothing: for 21,841 classes they would outgrow the plan.
        own = {key: value for key, value in own.items() if key not in LABELS}
        own["num_labels"] = len(labels)
    return own


def _nested(key: str, default: object) -> bool:
    return isinstance(default, dict) and key not in LABELS


def _check_images(path: str, images: object) -> None:
    if not isinstance(images, dict) or not images.keys() <= set(processor.FIELDS):
        raise fields.refusal(
            path, images, "an object with the fields of an image processor, or null"
        )
    try:
        processor.translated(images)
    except DataError as error:
        raise PlanError(f"{fields.FILE}: {path}: {error}") from error


def _check_numbers(path: str, config: object) -> None:
    if not isinstance(config, dict):
        raise fields.refusal(path, config, "an object with the configuration's fields")
    for key, value in config.items():
        inner = fields.join(path, key)
        if isinstance(value, dict) and key not in LABELS:
            _check_numbers(inner, value)
        elif key in COUNTS:
            fields.integer(inner, value, 0, COUNTS[key])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            fields.number(inner, value, -(2**24), 2**24)


def _check_keys(path: str, config: dict[str, Any], known: dict[str, Any]) -> None:
    for key, value in config.items():
        inner = fields.join(path, key)
        if key not in (*known, "num_labels") or key in LEFT_OUT:
            raise PlanError(f"{fields.FILE}: {inner} is unknown to the class of the configuration")
        if _nested(key, known.get(key)):
            if not isinstance(value, dict):
                raise fields.refusal(inner, value, "an object")
            _check_keys(inner, value, known[key])


SOURCE = Transformers()
