"""What is around a tower: which models hand out fewer visual tokens, what is refused and why, and
what stays of a fold."""

import contextlib
import copy
import gc
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.hf_hosts import HOSTS as HOLDERS
from support.hf_hosts import host
from support.hf_models import IMAGE, SMALL, VISION, small
from support.models import scatter
from support.vision_language import MODELS, build, inputs, picture
from torch import Tensor, nn

import vitfold
from vitfold.errors import FoldError, MethodError, PlanError, ShapeError, UnsupportedModel
from vitfold.folding import flops
from vitfold.folding.blocks.names import full_name
from vitfold.folding.hosts import Host, hf_tokens, register_host
from vitfold.folding.hosts.registry import HOSTS, host_of

transformers = pytest.importorskip("transformers")

TOME = vitfold.ToMe(r=8)


def reduced(name: str = "Llava", method: Any = TOME) -> Any:
    return vitfold.fold(build(name), method, out="reduced")


def call(model: Any, arguments: dict[str, Any], **more: Any) -> Tensor:
    with torch.no_grad():
        return model(**arguments | more).logits  # type: ignore[no-any-return]


# What is refused.

DESCRIBED = {name.rpartition(".")[2] for name in HOSTS}

OTHERS = [
    name
    for name in HOLDERS
    if name.endswith("Model") or "Depth" in name or "Retrieval" in name
    if name not in DESCRIBED and "Dual" not in name
]


@pytest.mark.parametrize("name", OTHERS)
def test_all_others_are_refused_by_name(name: str) -> None:
    model = host(name)
    with pytest.raises(UnsupportedModel, match=r"out='reduced'.*out='restored'"):
        vitfold.fold(model, TOME, out="reduced")
    assert vitfold.folded(model) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Blip2ForConditionalGeneration", "a fixed number of queries"),
        ("Idefics2ForConditionalGeneration", "a fixed number of queries"),
        ("PaddleOCRVLForConditionalGeneration", "is not described"),
        ("CLIPModel", "nothing in it is known"),
    ],
)
def test_a_reason_is_said(name: str, why: str) -> None:
    model = small(name) if name in SMALL else transformers.CLIPModel(transformers.CLIPConfig())
    with pytest.raises(UnsupportedModel, match=why):
        vitfold.fold(model, "tome", r=1, out="reduced")


def test_a_tower_alone_has_no_host() -> None:
    with pytest.raises(UnsupportedModel, match="nothing in it is known"):
        vitfold.fold(timm.create_model("test_vit"), TOME, out="reduced")
    with pytest.raises(UnsupportedModel, match="nothing in it is known"):
        vitfold.fold(build("Llava").model.vision_tower, TOME, out="reduced")


def test_a_head_that_reads_the_whole_prompt_is_refused() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("PaliGemma").model

        def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Any:
            return self.inner(input_ids=input_ids, pixel_values=pixel_values)

    with pytest.raises(UnsupportedModel, match="every place of the whole prompt"):
        vitfold.fold(Scores(), TOME, out="reduced")


def test_another_word_is_refused() -> None:
    with pytest.raises(MethodError, match="out='short': expected 'restored' or 'reduced'"):
        vitfold.fold(build("Llava"), TOME, out="short")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "method", "why"),
    [
        ("Llava", vitfold.LTMP(), "another number of tokens for every image"),
        ("Llava", vitfold.ToMeAround(r=8), "there again"),
        ("Qwen3VL", vitfold.WardCut(flops=0.7), "another number of tokens for every image"),
        ("Gemma3", vitfold.LGTM(r=8), "cannot go by squares"),
        ("Gemma3", vitfold.DynamicViT(flops=0.7), "squares|class token"),
    ],
)
def test_methods_that_do_not_go_are_refused(name: str, method: Any, why: str) -> None:
    model = build(name)
    with pytest.raises(MethodError, match=why):
        vitfold.fold(model, method, out="reduced")
    assert vitfold.folded(model) is None
    assert not {"forward", "generate", "get_image_features"} & set(vars(model) | vars(model.model))


REFUSED = {
    ("Qwen2_5_VL", "pitome"): "packed images",
    ("Qwen2_5_VL", "mctf"): "packed images",
    **dict.fromkeys(itertools.product(["Gemma3", "Qwen2_5_VL"], ["evit"]), "class token"),
}


@pytest.mark.parametrize("name", ["Llava", "Gemma3", "Qwen2_5_VL"])
@pytest.mark.parametrize("method", ["ward", "drop", "pitome", "mctf", "evit"])
def test_other_methods_go_or_say_why(name: str, method: str) -> None:
    model = build(name)
    arguments = inputs(name, [picture(0)])
    whole = call(model, arguments).shape[1]
    context: Any = contextlib.nullcontext()
    if (name, method) in REFUSED:
        context = pytest.raises(MethodError, match=REFUSED[name, method])
    with context:
        vitfold.fold(model, method, r=8, out="reduced")
        assert call(model, arguments).shape[1] < whole


def test_videos_are_refused() -> None:
    model = reduced("Qwen2VL")
    arguments = inputs("Qwen2VL", [picture(0)])
    video = {"pixel_values_videos": arguments["pixel_values"]}
    with pytest.raises(UnsupportedModel, match="takes no pixel_values_videos"):
        call(model, arguments, **video)


def test_masks_of_four_axes_are_refused() -> None:
    arguments = inputs("Llava", [picture(0)])
    length = arguments["input_ids"].shape[1]
    with pytest.raises(ShapeError, match=r"takes an attention_mask \[B, L\]"):
        call(reduced(), arguments, attention_mask=torch.zeros(1, 1, length, length))


def test_prompts_that_do_not_fit_their_images_are_refused() -> None:
    arguments = inputs("Llava", [picture(0)])
    arguments["input_ids"][0, 3] = 9
    with pytest.raises(ShapeError, match="63 placeholders, and their images make 64"):
        call(reduced(), arguments)


def test_a_cache_that_holds_tokens_is_refused() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    with torch.no_grad():
        cache = model(**arguments, use_cache=True).past_key_values
    with pytest.raises(FoldError, match="a cache that holds tokens already"):
        call(model, arguments, past_key_values=cache)
    text = {k: v for k, v in arguments.items() if k != "pixel_values"}
    with pytest.raises(FoldError, match="the cache is shorter"):
        model.generate(**text, past_key_values=cache, max_new_tokens=2)


# What stays.


def test_plans_keep_it(tmp_path: Path) -> None:
    model, arguments = reduced("Gemma3"), inputs("Gemma3", [picture(0)])
    before = call(model, arguments)
    assert str(vitfold.folded(model)).endswith(", out='reduced')")
    vitfold.save(model, tmp_path)
    again: Any = vitfold.load(tmp_path, build("Gemma3"))
    assert vitfold.folded(again) == vitfold.folded(model)
    assert torch.equal(call(again, arguments), before)
    plan = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(plan.replace('"reduced"', '"short"'))
    with pytest.raises(PlanError, match="out='short': expected one of restored, reduced"):
        vitfold.load(tmp_path, build("Gemma3"))
    vitfold.save(vitfold.fold(model, TOME), tmp_path)
    assert '"out"' not in (tmp_path / "plan.json").read_text()
    assert vitfold.folded(vitfold.load(tmp_path, model)).out == "restored"  # type: ignore[union-attr]


def test_plans_of_dense_models_are_restored(tmp_path: Path) -> None:
    plan = vitfold.fold(build("Llava"), TOME, out="reduced")
    vitfold.save(plan, tmp_path)
    text = (tmp_path / "plan.json").read_text()
    assert '"out": "reduced"' in text
    other = vitfold.fold(build("PaliGemma"), TOME)
    with pytest.raises(vitfold.VitfoldError):
        vitfold.load(tmp_path, other.model.vision_tower)


def test_copies_are_folds_of_their_own() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    twin = copy.deepcopy(model)
    before = call(twin, arguments)
    vitfold.unfold(model)
    assert call(model, arguments).shape != before.shape
    assert torch.equal(call(twin, arguments), before)


def test_folding_again_changes_what_is_read() -> None:
    model, arguments = build("Llava"), inputs("Llava", [picture(0)])
    whole = call(model, arguments).shape
    vitfold.fold(model, TOME, out="reduced")
    few = call(model, arguments).shape
    assert call(vitfold.fold(model, TOME), arguments).shape == whole
    assert call(vitfold.fold(model, TOME, out="reduced"), arguments).shape == few
    vitfold.unfold(model.model.vision_tower)  # of which what is around it is not told
    assert call(model, arguments).shape == whole
    assert "forward" in vars(vitfold.fold(model, TOME, out="reduced"))
    assert not {"forward", "generate"} & set(vars(vitfold.unfold(model)))


def test_what_was_laid_over_it_is_left_alone() -> None:
    model = build("Llava")
    model.model.forward = model.model.forward
    with pytest.raises(UnsupportedModel, match="the forward of a LlavaModel is replaced"):
        vitfold.fold(model, TOME, out="reduced")
    assert vitfold.folded(model) is None
    del model.model.forward
    vitfold.fold(model, TOME, out="reduced")
    model.model.forward = type(model.model).forward.__get__(model.model)
    with pytest.raises(FoldError, match="a method of a LlavaModel was replaced"):
        vitfold.unfold(model)


def test_solving_a_share_copies_no_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("Llava")
    before = sum(p.numel() for p in model.model.vision_tower.parameters())
    copied: list[int] = []
    own = flops._without_values

    def watched(twin: Any) -> Any:
        made = own(twin)
        gc.collect()
        parts = [m for m in gc.get_objects() if type(m).__name__ == "LlavaForConditionalGeneration"]
        copied.append(len(parts))
        assert sum(p.numel() for p in made.parameters()) == before
        return made

    monkeypatch.setattr(flops, "FEW", 0)
    monkeypatch.setattr(flops, "_without_values", watched)
    gc.collect()
    kind = transformers.LlavaForConditionalGeneration
    there = len([m for m in gc.get_objects() if type(m) is kind])
    vitfold.fold(model, "tome", flops=0.7, out="reduced")
    assert len(copied) > 1
    assert set(copied) == {there}


# Generation.


def test_rows_of_a_batch_and_beams() -> None:
    model = reduced()
    arguments = inputs("Llava", [picture(0), picture(1)])
    prompt = arguments["input_ids"]
    beams = model.generate(**arguments, num_beams=3, num_return_sequences=2, max_new_tokens=3)
    assert torch.equal(beams[:, : prompt.shape[1]], prompt.repeat_interleave(2, dim=0))
    one = {k: v[1:] for k, v in arguments.items()}
    alone = model.generate(**one, num_beams=3, num_return_sequences=2, max_new_tokens=3)
    width = min(beams.shape[1], alone.shape[1])
    assert torch.equal(beams[2:, :width], alone[:, :width])


def test_rows_stay_padded_on_their_side() -> None:
    model = reduced()
    arguments = inputs("Llava", [picture(0), picture(1), picture(2)], rows=2)
    ids, mask = arguments["input_ids"], arguments["attention_mask"]
    length = int(mask[1].sum())
    assert length < ids.shape[1]
    turned = {"input_ids": ids.clone(), "attention_mask": mask.clone()}
    for rows in turned.values():
        rows[1] = rows[1].roll(length)
    left, right = call(model, arguments), call(model, arguments, **turned)
    few = length - 16
    torch.testing.assert_close(left[1, -few:], right[1, :few], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(left[0], right[0], rtol=1e-4, atol=1e-4)


def test_caches_of_a_fixed_size() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    plain = model.generate(**arguments, max_new_tokens=4, do_sample=False)
    static = model.generate(
        **arguments, max_new_tokens=4, do_sample=False, cache_implementation="static"
    )
    assert torch.equal(plain, static)


def test_limits_of_a_whole_sequence_count_the_whole_prompt() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    length = arguments["input_ids"].shape[1]
    options = {"do_sample": False, "eos_token_id": 59}
    out = model.generate(**arguments, max_length=length + 3, **options)
    assert out.shape[1] == length + 3
    config = transformers.GenerationConfig(max_length=length + 2, **options)
    assert model.generate(**arguments, generation_config=config).shape[1] == length + 2
    assert config.max_length == length + 2
    told = model.generate(**arguments, max_new_tokens=3, return_dict_in_generate=True, **options)
    assert torch.equal(told.sequences, out)


def test_prompts_as_embeddings() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    expected = call(model, arguments)
    embeds = model.get_input_embeddings()(arguments.pop("input_ids"))
    assert torch.equal(call(model, arguments, inputs_embeds=embeds), expected)


def test_losses_leave_out_what_is_gone() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    labels = arguments["input_ids"].masked_fill(arguments["input_ids"] == IMAGE, -100)
    with torch.no_grad():
        loss = model(**arguments, labels=labels).loss
    logits = call(model, arguments)[:, -3:-1]
    expected = nn.functional.cross_entropy(logits[0], arguments["input_ids"][0, -2:])
    first = call(model, arguments)[0, 0]
    opening = nn.functional.cross_entropy(first, torch.tensor(IMAGE + 2))
    closing_at = call(model, arguments)[0, -4]
    closing = nn.functional.cross_entropy(closing_at, torch.tensor(IMAGE + 3))
    torch.testing.assert_close(loss, (2 * expected + opening + closing) / 4)


def test_words_alone_go_through() -> None:
    model = reduced()
    words = {"input_ids": torch.tensor([[1, 5, 7]])}
    folded = call(model, words)
    assert torch.equal(folded, call(vitfold.unfold(model), words))


def test_the_whole_of_a_sequence_is_read_too() -> None:
    """LLaVA may read class tokens and several layers."""
    model, arguments = build("Llava"), inputs("Llava", [picture(0)])
    extra = torch.tensor([[IMAGE]])
    longer = torch.cat([arguments["input_ids"][:, :2], extra, arguments["input_ids"][:, 2:]], dim=1)
    options = {
        "input_ids": longer,
        "attention_mask": torch.ones_like(longer),
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": 1,
    }
    whole = call(model, arguments, **options)
    vitfold.fold(model, TOME, out="reduced")
    assert call(model, arguments, **options).shape[1] == whole.shape[1] - 8
    options["vision_feature_layer"] = -1
    assert call(model, arguments, **options).shape[1] == whole.shape[1] - 24


def llava(**vision: Any) -> Any:
    """LLaVA with another tower."""
    options = MODELS["Llava"] | {"vision_feature_select_strategy": "full"}
    options |= {"vision_config": VISION | {"image_size": 32} | vision, "vision_feature_layer": -1}
    torch.manual_seed(0)
    kind = transformers.LlavaForConditionalGeneration
    return scatter(kind(transformers.LlavaConfig(**options))).eval()


def test_llava_with_a_tower_of_siglip() -> None:
    model, arguments = llava(model_type="siglip_vision_model"), inputs("Llava", [picture(0)])
    whole = call(model, arguments).shape[1]
    vitfold.fold(model, TOME, out="reduced")
    assert call(model, arguments).shape[1] == whole - 24


def test_llava_with_a_tower_of_pixtral_takes_images_of_several_sizes() -> None:
    model = vitfold.fold(llava(model_type="pixtral"), TOME, out="reduced")
    rows = [[0] * 32 + [1] + [IMAGE] * 32 + [5, 7], [1] + [IMAGE] * 64 + [6, 7]]
    ids, pixels = torch.tensor(rows), torch.zeros(2, 3, 32, 32)
    pixels[0, :, :16], pixels[1] = picture(1, 16, 32), picture(0)
    sizes = torch.tensor([[16, 32], [32, 32]])
    mask = (ids != 0).long()
    together = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_sizes=sizes)
    alone = model(input_ids=ids[:1, 32:], pixel_values=pixels[:1, :, :16], image_sizes=sizes[:1])
    length = alone.logits.shape[1]
    assert length == 35 - 24
    torch.testing.assert_close(together.logits[0, -length:], alone.logits[0], rtol=1e-4, atol=1e-4)


def test_compiled_models_say_the_same() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    expected = call(model, arguments)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(call(compiled, arguments), expected)
    torch._dynamo.reset()
    model.model.vision_tower.compile(backend="eager")
    with pytest.raises(FoldError, match="not the tower"):
        call(model, arguments)
    torch._dynamo.reset()


def test_pickles_are_folded() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    again = pickle.loads(pickle.dumps(model))
    assert vitfold.folded(again) == vitfold.folded(model)
    assert torch.equal(call(again, arguments), call(model, arguments))


def test_adapters_around_a_model() -> None:
    peft = pytest.importorskip("peft")
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    expected, said = call(model, arguments), model.generate(**arguments, max_new_tokens=3)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
    around = peft.get_peft_model(model, config)
    torch.testing.assert_close(call(around, arguments), expected)
    assert torch.equal(around.generate(**arguments, max_new_tokens=3), said)


def test_one_more_host_is_one_class() -> None:
    class Own(transformers.PaliGemmaModel):
        pass

    with pytest.raises(UnsupportedModel, match=r"is described by .*HFPaliGemma already"):
        register_host(type("Mine", (Host,), {"models": (transformers.PaliGemmaModel,)}))
    model = build("PaliGemma")
    model.model.__class__ = Own
    assert isinstance(host_of(model.model), hf_tokens.HFPaliGemma), "a subclass counts"

    class OwnHost(hf_tokens.HFPaliGemma):
        models = (Own,)

    register_host(OwnHost)
    try:
        vitfold.fold(model, TOME, out="reduced")
        assert isinstance(host_of(model.model), OwnHost)
        assert call(model, inputs("PaliGemma", [picture(0)])).shape[1] == 45
    finally:
        HOSTS.pop(full_name(Own))


@pytest.mark.parametrize("name", ["Gemma3", "InternVL"])
def test_squares_merge_place_by_place(name: str) -> None:
    model, arguments = reduced(name), inputs(name, [picture(0)])
    trace = vitfold.trace(model, arguments)
    groups = trace.groups()
    assert groups.shape == (8, 8)
    assert len(groups.unique()) == 64 - 24
    squares = groups.view(4, 2, 4, 2).transpose(1, 2).flatten(2).flatten(0, 1)
    for cells in squares:
        alike = (squares == cells).any(dim=1)
        assert torch.equal(squares[alike], cells.expand(int(alike.sum()), -1))
    assert trace.draw(0).size


def test_runs_are_seen_from_outside() -> None:
    model, arguments = reduced(), inputs("Llava", [picture(0)])
    trace = vitfold.trace(model, arguments)
    assert [counts[0] for counts in trace.counts] == [57, 49, 41]
