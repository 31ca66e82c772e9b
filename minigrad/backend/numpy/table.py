"""The faster NumPy kernels, by op and rule (`base.by_key`)."""
from __future__ import annotations

from ..base import by_key
from . import attention, kernels, linear_cross_entropy, packed_linear

KERNELS = by_key({
    "sum_to": {"value": kernels.sum_to},
    "broadcast_to": {"value": kernels.broadcast_to},
    "embedding_op": {"weight+": kernels.embedding_into},
    "addmm": {"value": kernels.addmm},
    "packed_linear": {"value": packed_linear.packed_linear},
    "gelu": {"value": kernels.gelu, "joint": kernels.gelu_joint},
    "layer_norm": {"value": kernels.layer_norm, "joint": kernels.layer_norm_joint},
    "attention": {"value": attention.attention, "joint": attention.attention_joint},
    "cross_entropy": {"value": kernels.cross_entropy, "logits": kernels.cross_entropy_dlogits},
    "linear_cross_entropy": {"value": linear_cross_entropy.linear_cross_entropy,
                             "x": linear_cross_entropy.times,
                             "weight": linear_cross_entropy.times},
    "dropout_op": {"value": kernels.dropout},
    "adamw_update": {"value": kernels.adamw_update},
})
