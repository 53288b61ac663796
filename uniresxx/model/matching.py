"""Which query stands for which true instance: the Hungarian method on the loss that each pair would have.

Shapes: E expressions, Q queries, N true instances of all expressions, n of one, h w the mask head's grid, F = h * w.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uniresxx.model.config import LossConfig
from uniresxx.model.heads.instances import InstanceOutput


@torch.no_grad()
def matched_queries(
    output: InstanceOutput,
    truth_Nhw: Tensor,
    valid_Nhw: Tensor,
    expr_of_instance_N: Tensor,
    config: LossConfig,
) -> Tensor:
    """The query of each instance (N); no two instances of an expression share one.

    The costs have the weights of the loss: BCE and dice on the head's grid, and minus the probability to be an
    instance (as DETR, Carion et al. 2020, equation 1).

    Args:
        output: of the instance queries.
        truth_Nhw: share of each cell that the instance covers, 0..1.
        valid_Nhw: cells that show the photo.
        expr_of_instance_N: expression of each instance, ascending; at most Q instances each.
        config: weights.
    """
    logits_NQF = output.masks_EQhw.float().flatten(2)[expr_of_instance_N]
    valid_N1F = valid_Nhw.float().flatten(1)[:, None]
    truth_NQF = (truth_Nhw.float().flatten(1)[:, None] * valid_N1F).expand_as(logits_NQF)
    bce_NQF = F.binary_cross_entropy_with_logits(logits_NQF, truth_NQF, reduction="none") * valid_N1F
    p_NQF = logits_NQF.sigmoid() * valid_N1F
    shared_NQ, sums_NQ = (p_NQF * truth_NQF).sum(2), p_NQF.sum(2) + truth_NQF.sum(2)
    dice_NQ = 1 - (2 * shared_NQ + config.dice_smooth) / (sums_NQ + config.dice_smooth)
    bce_NQ = bce_NQF.sum(2) / valid_N1F.sum(2).clamp(min=1)
    present_NQ = output.presence_EQ.float().sigmoid()[expr_of_instance_N]
    cost_NQ = config.mask * bce_NQ + config.dice * dice_NQ - config.presence * present_NQ
    counts = expr_of_instance_N.bincount(minlength=len(output.presence_EQ)).tolist()
    chosen = [linear_sum_assignment(cost_nQ.numpy())[1] for cost_nQ in cost_NQ.cpu().split(counts)]
    queries_N = torch.tensor([query for query_n in chosen for query in query_n], dtype=torch.long)
    return queries_N.to(expr_of_instance_N.device)
