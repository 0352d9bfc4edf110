"""The books of one forward pass: what has become of every token so far. Immutable.

`Ledger` is for images that all have the same number of tokens, `Packed` for images that each keep
their own, `Masked` for training: there no token leaves, and a mask says which are still there.
`Woven` is for patches that matrices mix, and restore.
"""

from vitfold.ledger.masked import Mark, Masked
from vitfold.ledger.packed import Packed
from vitfold.ledger.rows import Ledger
from vitfold.ledger.woven import Woven

__all__ = ["Ledger", "Mark", "Masked", "Packed", "Woven"]
