"""Why models cannot be folded, by the package that defines them. Each completes "it cannot be
folded: ...". What folding needs is one sequence of tokens, all of which attend to all others, or to
all in a window of a grid that stays as it is."""

import inspect

from torch import nn

from vitfold.folding.blocks.names import full_name

_CONVOLUTIONS = "it is a convolutional network and has no tokens"
_STAGES = (
    "it is a pyramid of convolutional stages; where it attends, it does so over the map of a stage"
)
_WINDOWS = "its attention is confined to windows"
_WINDOWED_PYRAMID = "its attention is confined to windows, in a pyramid that merges its patches"
_CHANNELS = "it attends across channels, not across tokens"
TEXT = "it reads text, not images"

_TIMM = {
    _CONVOLUTIONS: """
        convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet ghostnet hgnet
        hrnet inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout nasnet
        nfnet pnasnet rdnet regnet repghost repvit resnet resnetv2 rexnet selecsls senet starnet
        tresnet vgg vovnet xception xception_aligned""",
    _STAGES: """
        byobnet cpubone csatv2 efficientformer efficientformer_v2 fastvit iformer lowformer
        metaformer mobilenetv3 mobilenetv5 nextvit shvit swiftformer""",
    _WINDOWED_PYRAMID: """
        efficientvit_msra gcvit hieradet_sam2 nest swin_transformer swin_transformer_v2
        swin_transformer_v2_cr tiny_vit""",
    _CHANNELS: "xcit",
    f"{_CHANNELS}, inside convolutional stages": "edgenext",
    "its attention is factorized, with convolutional positions, on several scales": "coat",
    "its attention is gated by positions on the whole grid": "convit",
    "it carries two sequences, of small and of large patches": "crossvit",
    "its attention alternates between windows and channels, in a pyramid": "davit",
    "it mixes tokens by a state space model, not by attention": "efficientvim",
    "its attention is linear, over the maps of convolutional stages": "efficientvit_mit",
    "it modulates feature maps by convolutions and does not attend": "focalnet",
    "it is a pyramid that pools its tokens, with attention inside units of the image": "hiera",
    "it is a pyramid whose attention has a bias for every pair of places on the grid": "levit",
    "it is a pyramid of convolutions and of attention over maps, windows or grids": "maxxvit",
    "it mixes tokens by matrices of a fixed size, not by attention": "mlp_mixer",
    "it is a pyramid whose attention pools queries and keys": "mvitv2",
    "it is a pyramid that shrinks its tokens by convolutions": "pit visformer",
    "it is a pyramid whose attention reads reduced maps": "pvt_v2",
    "it mixes tokens by recurrence along rows and columns, not by attention": "sequencer",
    "it carries a second sequence of tokens inside every patch": "tnt",
    "its attention alternates between windows and reduced maps, in a pyramid": "twins",
    "it begins with attention over neighbourhoods of a map": "volo",
}

_TRANSFORMERS = {
    _CONVOLUTIONS: """
        align bit convnext convnextv2 dinov3_convnext edgetam edgetam_video efficientnet hgnet_v2
        mobilenet_v1 mobilenet_v2 pp_lcnet pp_lcnet_v3 pp_lcnet_v4 regnet resnet
        rt_detr.modeling_rt_detr_resnet superpoint textnet uvdoc""",
    _STAGES: "efficientloftr mobilevit mobilevitv2 poolformer swiftformer",
    _WINDOWED_PYRAMID: "donut maskformer.modeling_maskformer_swin swin swinv2",
    _WINDOWS: "swin2sr",
    f"{_WINDOWS}, in a pyramid that pools its queries": "sam2 sam2_video",
    f"{_WINDOWS} in most blocks, of images that come packed": "exaone4_5 qwen2_5_omni",
    "each of its blocks adds a token for itself, by which frames pass messages": "x_clip",
    "it groups its tokens between stages, by attention that assigns each to one group": "groupvit",
    "it has several trunks that fold: fold one of them": "depth_pro video_llava",
    "it has no encoder of images: a language model reads their patches": "fuyu",
    "it is a pyramid whose attention projects by convolutions": "cvt",
    "it matches key points, and reads no patches": "lightglue superglue",
    "it mixes tokens by convolutions in some of its layers": "lfm3_vl",
    "it modulates feature maps by convolutions and does not attend": "focalnet",
    "it is a pyramid that pools its tokens, with attention inside units of the image": "hiera",
    "it reads images as words of a code book, which convolutions make": "chameleon emu3",
    (
        "it attends over time at each place, then over space in each frame, on the whole grid; "
        "where it does not, by a softmax of its own that takes no bias"
    ): "timesformer",
    "it adds queries before its last blocks, which run frame by frame": "videomt",
    "it reads pixels one after the other, each attending to those before": "imagegpt",
    "it is a pyramid whose attention has a bias for every pair of places on the grid": "levit",
    "its attention alternates between windows and channels, in a pyramid": "florence2",
    "its attention has positions along the rows and columns of the grid, and takes no bias": (
        "seggpt"
    ),
    "its attention is causal, so that the order of patches counts, wherever none is padded": (
        "phi4_multimodal"
    ),
    "its attention is confined to neighbourhoods, in a pyramid": "dinat",
    "its patches come packed, in the order of the squares that a projector merges": """
        ernie4_5_vl_moe glm46v glm4v glm4v_moe glm_ocr qwen3_5 qwen3_5_moe
        qwen3_omni_moe""",
    "its sequence mixes words with patches": "layoutlmv2 layoutlmv3 udop vilt",
    "its tokens are latents that read the image, not patches": "perceiver",
    "it is a pyramid whose attention reads reduced maps": "pvt pvt_v2 segformer glpn",
    "it reads proteins, not images": "evolla",
    TEXT: "layoutlm mistral4",
}

REASONS: dict[str, str] = {
    f"{root}.{package}": why
    for root, reasons in (("timm.models", _TIMM), ("transformers.models", _TRANSFORMERS))
    for why, packages in reasons.items()
    for package in packages.split()
}
"""By `library.models.package`, or by a module of it."""


def reason(cls: type) -> str | None:
    """Why a class of models cannot be folded, where that is known."""
    for base in cls.__mro__:
        why = reason_for(base.__module__)
        if why is not None:
            return why
    return TEXT if _reads_text(cls) else None


def reason_for(module: str) -> str | None:
    """Why the classes of a module of a library cannot be folded, where that is known."""
    return REASONS.get(module) or REASONS.get(".".join(module.split(".")[:3]))


def _reads_text(cls: type) -> bool:
    """Whether a model of transformers takes words, and no images beside them."""
    if not cls.__module__.startswith("transformers.models.") or not hasattr(cls, "forward"):
        return False
    named = set(inspect.signature(cls.forward).parameters)
    return "input_ids" in named and not named & {"pixel_values", "images", "image_embeds"}


TWINS = {
    "torchvision.models.vision_transformer.VisionTransformer": (
        "timm has the same model, which folds: timm.create_model('vit_base_patch16_224')"
    ),
    "clip.model.VisionTransformer": (
        "open_clip and timm have the same model, which folds: "
        "timm.create_model('vit_base_patch16_clip_224.openai')"
    ),
}
"""Where the same architecture is found with a family."""


def advice(model: nn.Module) -> str:
    """What can be done where no family describes a model."""
    twins = (TWINS.get(full_name(cls)) for m in model.modules() for cls in type(m).__mro__)
    describe = "describe it to vitfold.register_family (docs/adding-a-family.md)"
    twin = next((twin for twin in twins if twin), None)
    return (
        f"{twin}; or {describe}" if twin else f"{describe}, or take a model of timm or transformers"
    )
