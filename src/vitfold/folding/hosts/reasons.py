"""Why models cannot hand out fewer visual tokens, by the package that defines them. Each completes
"it cannot be folded with out='reduced': ..."."""

from torch import nn

_TILES = "it takes an image in tiles, puts them together on a grid, and reads that with line ends"
_QUERIES = "a fixed number of queries reads its patches, so that no fewer tokens would follow"
_WORDS = "its prompts count visual tokens in a way that is not described"

_REASONS = {
    _TILES: """
        llava_next llava_next_video llava_onevision granite4_vision granite_docling cohere2_vision
        perception_lm nemotron_h_omni""",
    _QUERIES: """
        blip_2 instructblip instructblipvideo idefics idefics2 aria git kosmos2 kosmos2_5 blip
        mllama""",
    "it joins the tokens of several layers, the first of which saw them all": "vipllava",
    "it reads two towers, of which only one is folded": "deepseek_vl_hybrid",
    "it marks places of its prompt by hand for what follows": """
        janus colpali colqwen2 colmodernvbert""",
    "it acts, and its actions follow the whole prompt": "pi0",
    "its encoder of text reads visual tokens, and its decoder those": "t5gemma2",
    "its visual tokens are words of a book of its own": "ovis2",
    "its frames are merged by squares whose size each call says": "video_llama_3",
    _WORDS: """
        aya_vision lfm2_vl lighton_ocr mistral_large4 paddleocr_vl got_ocr2 deepseek_ocr2
        unlimited_ocr qianfan_ocr pp_formulanet modernvbert ultravbert shieldgemma2""",
    "its decoder reads the tower by attention, not in a prompt": """
        vision_encoder_decoder pix2struct""",
}

REASONS = {
    f"transformers.models.{package}": why
    for why, packages in _REASONS.items()
    for package in packages.split()
}
"""By `transformers.models.package`."""


def reason(module: nn.Module) -> str | None:
    """Why a module around a trunk hands out no fewer tokens, where that is known."""
    package = ".".join(type(module).__module__.split(".")[:3])
    return REASONS.get(package)
