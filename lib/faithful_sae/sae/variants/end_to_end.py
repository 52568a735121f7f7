"""End-to-end: TopK SAEs that keep what the language model does with an activation, not the
activation (Braun et al. 2024, arXiv 2405.12241).

    D / s^2 loss = kl KL + downstream mean over later blocks of FVU_l + local FVU
    KL    mean over positions of KL(p || p_hat) of the next token, in nats
    FVU_l of the residual stream behind block l, as the model computes it from x_hat in place of x

With downstream = local = 0 it is the paper's e2e, with local = 0 its e2e + downstream; kl = 0 and
local = 1 is TopK. Streams are the hooked block's and all later ones'. The paper has an L1 penalty
where this has k, and mean squared errors, which grow from block to block, where this has their
shares of the variance, so that weights mean the same for every model. AuxK is TopK's, of the local
error: dead latents are revived by what x_hat lacks, which by default does not move x_hat.
"""

import torch.nn.functional as F
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.in_context import InContext
from faithful_sae.sae.variants.base import Moment, spread
from faithful_sae.sae.variants.topk import OwnDistance


class EndToEnd(settings.EndToEnd, OwnDistance):
    """TopK SAEs that keep what the language model does with an activation."""

    def distance(self, x: Tensor, error: Tensor, moment: Moment) -> Tensor:
        scale = spread(x).square()
        loss = self.local * error.square().sum(-1).mean() / scale
        if self.kl or self.downstream:
            batch = moment.batch
            found = batch.run(batch.rows(x + error))
            if self.kl:
                loss = loss + self.kl * divergence(batch, found.logits)
            if self.downstream:
                pairs = zip(batch.original.streams, found.streams, strict=True)
                lost = [_unexplained(a[batch.measured], b[batch.measured]) for a, b in pairs]
                loss = loss + self.downstream * sum(lost) / len(lost)
        return scale / x.shape[-1] * loss


def divergence(batch: InContext, logits: Tensor) -> Tensor:
    """Mean over the positions measured of KL from the model's own next-token distributions to those
    of logits [R, T, V], in nats.
    """
    log_p = F.log_softmax(batch.original.logits[batch.measured], -1)
    log_q = F.log_softmax(logits[batch.measured], -1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _unexplained(x, x_hat):
    """FVU of x_hat [N, D]."""
    return (x_hat - x).square().sum() / (x - x.mean(0)).square().sum()
