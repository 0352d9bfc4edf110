"""DFE: a dense feature extractor before the merging begins."""

from dataclasses import dataclass

from vitfold.methods.merging import Late
from vitfold.methods.registry import register


@register("dfe")
@dataclass(frozen=True)
class DFE(Late):
    """ToMe after `skip` dense blocks (default: a sixth of the depth)."""
