"""Packages of transformers whose models hold a trunk of another package, and which one unless they
are told otherwise."""

_HF = {
    "beit.modeling_beit.BeitModel": "zoedepth",
    "clip.modeling_clip.CLIPVisionModel": """
        granite4_vision llava llava_next llava_next_video vipllava""",
    "dinov2.modeling_dinov2.Dinov2Backbone": "depth_anything prompt_depth_anything",
    "dinov3_vit.modeling_dinov3_vit.DINOv3ViTBackbone": "chmv2",
    "hgnet_v2.modeling_hgnet_v2.HGNetV2Backbone": """
        d_fine deimv2 pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pp_ocrv5_server_det
        pp_ocrv5_server_rec""",
    "idefics3.modeling_idefics3.Idefics3VisionTransformer": "aria",
    "maskformer.modeling_maskformer_swin.MaskFormerSwinBackbone": "maskformer",
    "pixtral.modeling_pixtral.PixtralVisionModel": "lighton_ocr mistral3 mistral_large4",
    "pp_lcnet.modeling_pp_lcnet.PPLCNetBackbone": "slanet",
    "pp_lcnet_v3.modeling_pp_lcnet_v3.PPLCNetV3Backbone": "pp_ocrv5_mobile_det pp_ocrv5_mobile_rec",
    "pp_lcnet_v4.modeling_pp_lcnet_v4.PPLCNetV4Backbone": """
        pp_ocrv6_medium_det pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec""",
    "qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel": "colqwen2",
    "radio.modeling_radio.RadioModel": "nemotron_h_omni",
    "resnet.modeling_resnet.ResNetBackbone": "tvp upernet",
    "rt_detr.modeling_rt_detr_resnet.RTDetrResNetBackbone": "rt_detr rt_detr_v2",
    "sam3.modeling_sam3.Sam3ViTModel": "sam3_tracker sam3_tracker_video sam3_video",
    "siglip.modeling_siglip.SiglipVisionModel": """
        aya_vision cohere2_vision colmodernvbert colpali deepseek_vl deepseek_vl_hybrid gemma3
        llava_onevision modernvbert paligemma pi0 shieldgemma2 t5gemma2
        ultravbert""",
    "siglip2.modeling_siglip2.Siglip2VisionModel": "lfm2_vl",
    "swin.modeling_swin.SwinBackbone": "grounding_dino mask2former mm_grounding_dino oneformer",
    "tipsv2.modeling_tipsv2.Tipsv2VisionBackbone": "tipsv2_dpt",
    "vit.modeling_vit.ViTModel": "vision_encoder_decoder vision_text_dual_encoder",
    "vitdet.modeling_vitdet.VitDetBackbone": "vitmatte",
}

_TIMM = {
    "eva.Eva": "perception_lm",
    "fastvit.FastVit": "fast_vlm",
    "mobilenetv5.MobileNetV5": "gemma3n",
    "resnet.ResNet": "conditional_detr dab_detr deformable_detr detr table_transformer",
    "swin_transformer.SwinTransformer": "omdet_turbo",
}

HOLDS: dict[str, str] = {
    package: f"{root}.{trunk}"
    for root, trunks in (("transformers.models", _HF), ("timm.models", _TIMM))
    for trunk, packages in trunks.items()
    for package in packages.split()
}
"""The full name of a trunk, by the package that holds it."""
