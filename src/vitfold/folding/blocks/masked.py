"""Attention of training passes: over all tokens, by a mask through which thresholds learn."""

from typing import ClassVar

import torch
from torch import Tensor

from vitfold.folding.blocks.own import OwnAttend, logits, received
from vitfold.tokens.masked import Masked

EPS = 1e-5
"""What a row of attention gets on top while training, spread over it."""

FAR = 60.0
"""How far above what counts a logit may be: the term of what is gone stays finite, and becomes
zero."""


class MaskedAttend(OwnAttend):
    """Attention with a softmax whose terms are multiplied by the mask."""

    state: Masked
    scores_tokens: ClassVar[bool] = False

    def sizes(self, x: Tensor) -> Tensor | None:
        return self.state.log_weight(x)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        scores = logits(q, k, bias, scale)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        terms = (scores - self._most(scores)).clamp(max=FAR).exp()
        terms = terms * self.state.count.to(terms.dtype)[:, None, None]
        eps = EPS if self.state.soft else 0.0
        weights = (terms + eps / terms.shape[-1]) / (terms.sum(dim=-1, keepdim=True) + eps)
        score = received(weights, self.state.here) if self.scores_tokens else None
        return weights.to(v.dtype) @ v, score

    def _most(self, scores: Tensor) -> Tensor:
        """The highest of every row: in training of all, as the paper has it; else of what still
        counts, since what is gone may be so far above that nothing would be left beside it."""
        if not self.state.soft:
            scores = scores.masked_fill(~self.state.here[:, None, None], float("-inf"))
        return scores.amax(dim=-1, keepdim=True).detach()


class ScoredMaskedAttend(MaskedAttend):
    """Masked attention that also gives the attention that each token received."""

    scores_tokens: ClassVar[bool] = True
