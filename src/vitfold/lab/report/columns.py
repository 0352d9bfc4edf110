"""Names and formats of result columns, for people."""

import re

GFLOPS = "GFLOPs (2 per MAC)"
"""A multiply-add is two operations here, and one in the figures that papers and timm give."""

HEADERS = {
    "model": "model",
    "method": "method",
    "name": "candidate",
    "flops": "FLOPs asked for, of dense",
    "flops_share": "FLOPs, of dense",
    "detail": "details",
    "source": "source",
    "runtime": "runtime",
    "int8": "INT8",
    "images": "images",
    "top1": "top-1",
    "top1_low": "top-1, 95 % from",
    "top1_high": "top-1, 95 % to",
    "top5": "top-5",
    "dense_top1": "top-1, dense",
    "agreement": "agrees with dense",
    "agreement_low": "agrees, 95 % from",
    "agreement_high": "agrees, 95 % to",
    "cosine": "cosine with dense",
    "cosine_low": "cosine, 95 % from",
    "cosine_high": "cosine, 95 % to",
    "cosine_worst": "cosine, worst tenth",
    "recall1": "recall@1",
    "recall1_low": "recall@1, 95 % from",
    "recall1_high": "recall@1, 95 % to",
    "recall10": "recall@10",
    "recall10_low": "recall@10, 95 % from",
    "recall10_high": "recall@10, 95 % to",
    "dense_cosine": "cosine of dense features",
    "dense_cosine_low": "dense features, 95 % from",
    "dense_cosine_high": "dense features, 95 % to",
    "kl": "KL from dense, nats",
    "kl_low": "KL, 95 % from",
    "kl_high": "KL, 95 % to",
    "abs_rel": "depth, relative difference",
    "abs_rel_low": "depth, 95 % from",
    "abs_rel_high": "depth, 95 % to",
    "iou": "IoU with dense",
    "iou_low": "IoU, 95 % from",
    "iou_high": "IoU, 95 % to",
    "gflops": GFLOPS,
    "batch_size": "batch size",
    "images_per_second": "images/s",
    "low": "images/s, 1st quartile",
    "high": "images/s, 3rd quartile",
    "memory_mb": "peak memory, MB",
    "speedup": "speed, x dense",
    "share": "speed, share of bound",
    "eager_speedup": "speed, x dense in eager torch",
    "steady": "machine was quiet",
    "largest_eigenvalue": "largest eigenvalue",
}

PERCENT = (
    "top1", "top1_low", "top1_high", "top5", "dense_top1",
    "agreement", "agreement_low", "agreement_high",
)  # fmt: skip

AT_BATCH = re.compile(r"(images_per_second|speedup|share|steady)_b(\d+)")


def header(name: str) -> str:
    """What a column is called, with its unit: of `images_per_second_b32` that is `images/s, batch
    32`."""
    if at := AT_BATCH.fullmatch(name):
        return f"{HEADERS[at[1]]}, batch {at[2]}"
    return HEADERS.get(name, name.replace("_", " "))


def cell(name: str, value: object) -> str:
    """A figure as a table shows it; those of a CSV file come as text."""
    if value in (None, ""):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in PERCENT and (share := _number(value)) is not None:
        return f"{share:.2%}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None
