"""Names and numbers that the help of commands holds, said again so that help needs no torch; tests
hold them to what they are names of."""

METHODS = (
    "avit",
    "dfe",
    "diffrate",
    "drop",
    "dynamicvit",
    "evit",
    "fisher",
    "fishercut",
    "lgtm",
    "ltmp",
    "mctf",
    "mergedrop",
    "pitome",
    "prune-merge",
    "runlength",
    "tome",
    "tome-around",
    "ward",
    "wardcut",
)
"""The methods that come with vitfold."""

READY = (
    "dfe", "diffrate", "drop", "evit", "lgtm", "mctf", "pitome", "tome", "tome-around", "ward",
)  # fmt: skip
"""Methods that reach a share of the FLOPs without training."""

TRAINING: dict[str, dict[str, object]] = {
    "ltmp": {
        "epochs": 1,
        "smoothing": 0.1,
        "opt": "momentum",
        "lr": None,
        "weight_decay": 0.0,
        "merge": 5e-3,
        "prune": 5e-6,
        "log_every": 1,
    },
    "prune-merge": {"epochs": 30, "opt": "adamw", "lr": 1e-4, "temperature": 20.0},
}
"""What methods do in training otherwise than any model, by fields of their recipes and by keys of
those fields that are mappings; `lr` None: the model itself does not learn."""

KEEP, PRUNE = 0.6, 0.1
"""Shares of patches that Prune and Merge keeps, and prunes, where nobody says otherwise."""

SCOPES = ("global", "block")
"""Over what Prune and Merge ranks patches to keep these shares: all blocks, or each."""

GROUPINGS = ("runs", "centers")
"""Which patches Prune and Merge may merge: neighbours of a row, or those around centres."""

ITERATIONS = 250
"""Batches that its search looks at, where nobody says how many."""

DECODERS = ("linear", "mask")
"""Decoders that a segmenter may have."""

VOID = 255
"""What annotations call a pixel of no class, where nobody says otherwise."""

TARGETS = ("torch", "aoti", "onnx", "openvino")
"""What models are exported for."""

RUNTIMES = ("eager", "compile", "aoti", "onnxruntime", "openvino")
"""What models are measured in."""

ENGINES = ("local", "ray")
"""What a corpus is embedded by."""

MINUTES = 5.0
"""How long a tuning takes, where nobody says otherwise."""
