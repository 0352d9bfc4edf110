"""Prompts and images as transformers' own processors make them, with small vocabularies."""

from typing import Any

import pytest
import torch
from PIL import Image
from support.hf_models import IMAGE
from support.vision_language import area, build

import vitfold

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

Made = tuple[Any, str, bool]
"""A processor, what stands for an image in a text, and whether images come row by row."""


def tokenizer(*special: str) -> Any:
    """One that gives these the numbers that small models know them by."""
    words = ["<unk>", "<s>", "</s>", "what", "is", "this", *(f"w{i}" for i in range(44))]
    vocabulary = {word: number for number, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    kind = transformers.PreTrainedTokenizerFast
    made = kind(tokenizer_object=inner, padding_side="left", **names)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    assert made.convert_tokens_to_ids(special[0]) == IMAGE
    return made


def llava() -> Made:
    side = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)
    options = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    words = tokenizer("<image>")
    return transformers.LlavaProcessor(images, words, patch_size=4, **options), "<image>", False


def idefics() -> Made:
    words = tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    edge = {"longest_edge": 32}
    images = transformers.Idefics3ImageProcessor(
        size=edge, max_image_size=edge, do_image_splitting=False
    )
    return transformers.Idefics3Processor(images, words, image_seq_len=16), "<image>", True


def mistral() -> Made:
    special = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    images = transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8)
    names = dict(zip(("image_token", "image_break_token", "image_end_token"), special, strict=True))
    kind = transformers.PixtralProcessor
    made = kind(images, tokenizer(*special), patch_size=4, spatial_merge_size=2, **names)
    return made, "[IMG]", True


def qwen(kind: str) -> Made:
    special = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    images = transformers.Qwen2VLImageProcessor(
        patch_size=4, temporal_patch_size=2, merge_size=2, min_pixels=256, max_pixels=4096
    )
    videos = transformers.Qwen2VLVideoProcessor(patch_size=4)
    made = getattr(transformers, kind)(images, tokenizer(*special), videos)
    return made, "<|vision_start|><|image_pad|><|vision_end|>", False


PROCESSORS = {
    "Llava": llava,
    "Idefics3": idefics,
    "Mistral3": mistral,
    "Qwen2VL": lambda: qwen("Qwen2VLProcessor"),
    "Qwen2_5_VL": lambda: qwen("Qwen2_5_VLProcessor"),
    "Qwen3VL": lambda: qwen("Qwen3VLProcessor"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_a_processor_makes_goes_in_as_it_is(name: str) -> None:
    processor, image, nested = PROCESSORS[name]()
    first, second = Image.linear_gradient("L"), Image.radial_gradient("L")
    images = [first.convert("RGB").resize((40, 30)), second.convert("RGB").resize((64, 32))]
    texts = [f"what is {image} this", f"{image} is"]
    given = [[one] for one in images] if nested else images
    inputs = dict(processor(images=given, text=texts, return_tensors="pt", padding=True))
    model = build(name)
    with torch.no_grad():
        dense = model(**inputs).logits
        said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        vitfold.fold(model, vitfold.ToMe(r=0), out="reduced")
        assert torch.equal(model(**inputs).logits, dense)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), said)
        vitfold.fold(model, vitfold.ToMe(r=4), out="reduced")
        folded = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    gone = 4 // area(name) * (len(vitfold.folded(model).schedule) - (name == "Llava"))  # type: ignore[union-attr]
    assert folded.shape[1] == dense.shape[1] - gone
    length = inputs["input_ids"].shape[1]
    assert torch.equal(tokens[:, :length], inputs["input_ids"])
    assert tokens.shape[1] > length
