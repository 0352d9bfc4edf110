"""Names and numbers that the help of commands holds, said again so that help needs no torch; tests
hold them to what they are names of."""

METHODS = (
    "avit",
    "dfe",
    "drop",
    "dynamicvit",
    "evit",
    "lgtm",
    "ltmp",
    "mergedrop",
    "prune-merge",
    "tome",
    "tome-around",
    "ward",
    "wardcut",
)
"""The methods that come with vitfold."""

DECODERS = ("linear", "mask")
"""Those of a segmenter."""

VOID = 255
"""What annotations call a pixel of no class, where nobody says otherwise."""
