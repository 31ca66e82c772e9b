"""Which ops and rules have a CuPy kernel, and which function it is (`base.by_key`)."""
from __future__ import annotations

from ..base import by_key
from . import attention, decode, kernels, sample

KERNELS = by_key({
    "add": {"value": kernels.add},
    "astype": {"value": kernels.astype},
    "sum_to": {"value": kernels.sum_to},
    "embedding_op": {"weight+": kernels.embedding_into},
    "addmm": {"value": kernels.addmm},
    "linear": {"value": kernels.linear},
    "gelu": {"value": kernels.gelu, "joint": kernels.gelu_joint},
    "layer_norm": {"value": kernels.layer_norm, "joint": kernels.layer_norm_joint,
                   "joint+": kernels.layer_norm_joint_into},
    "add_layer_norm": {"value": kernels.add_layer_norm},
    "attention": {"value": attention.attention, "joint": attention.attention_joint},
    "cross_entropy": {"value": kernels.cross_entropy, "logits": kernels.cross_entropy_dlogits},
    "linear_cross_entropy": {"value": kernels.linear_cross_entropy},
    "dropout_op": {"value": kernels.dropout_op},
    # the optimizer and clipping
    "adamw_update": {"value": kernels.adamw_update},
    "sums_of_squares": {"value": kernels.sums_of_squares},
    "scale": {"value": kernels.scale},
    # a step of decoding
    "step_embed": {"value": decode.step_embed},
    "step_linear": {"value": decode.step_linear},
    "step_qkv": {"value": decode.step_qkv},
    "step_attention": {"value": decode.step_attention},
    "step_choose": {"value": sample.step_choose},
    "step_greedy": {"value": sample.step_greedy},
})
