"""Dual Consistency Learning: one decoder, two branches that it cannot tell apart.

Beside the cross-entropy of the answers, the base branch learns (HyperVL, arXiv 2512.14052)
- to make the decoder say what it says behind the large branch: KL divergence of the answer tokens'
  distributions at a temperature, the large one's taken as given (Hinton et al. 2015, with its factor T^2);
- to give the large branch's visual tokens: their squared distance, relative to the length of the latter, and
  the angle between them.
Temperature and weights are ours: the paper states neither.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from hypervl.training.answers import Read, answer_loss

TEMPERATURE = 2.0
_KL_WEIGHT, _FEATURE_WEIGHT = 1.0, 1.0


@dataclass(frozen=True)
class Consistency:
    """Which of the two terms stand beside the cross-entropy; without either it is plain training."""

    kl: bool = True
    features: bool = True


CONSISTENCIES = {
    "both": Consistency(),
    "kl": Consistency(features=False),
    "features": Consistency(kl=False),
    "none": Consistency(False, False),
}


def consistency_losses(
    base: Read, large_logits: Tensor | None = None, large_visual: Tensor | None = None
) -> dict[str, Tensor]:
    """The terms of the base branch's loss, weighted; they are to be summed. Only what is given of the large
    branch has a term, and it gets no gradient."""
    losses = {"answers": answer_loss(base)}
    if large_logits is not None:
        given, wanted = base.logits / TEMPERATURE, large_logits.detach() / TEMPERATURE
        divergence = F.kl_div(
            F.log_softmax(given, -1), F.log_softmax(wanted, -1), reduction="batchmean", log_target=True
        )
        losses["kl"] = _KL_WEIGHT * TEMPERATURE**2 * divergence
    if large_visual is not None:
        losses["features"] = _FEATURE_WEIGHT * feature_distance(base.visual, large_visual.detach())
    return losses


def feature_distance(base: Tensor, large: Tensor) -> Tensor:
    """Of visual tokens [n, hidden]: relative squared distance plus one minus the cosine; 0 where they
    agree."""
    base, large = base.float(), large.float()
    relative = (base - large).pow(2).sum(-1) / large.pow(2).sum(-1).clamp(min=1e-6)
    return relative.mean() + 1 - F.cosine_similarity(base, large, dim=-1).mean()
