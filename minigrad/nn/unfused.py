"""The functions of `minigrad.nn.functional`, with each fused op replaced by its definition."""
from ..fused import dropout
from ..fused.attention import attention_unfused as attention
from ..fused.cross_entropy import cross_entropy_unfused as cross_entropy
from ..fused.gelu import gelu_unfused as gelu
from ..fused.layer_norm import add_layer_norm_unfused as add_layer_norm
from ..fused.layer_norm import layer_norm_unfused as layer_norm
from ..fused.linear_cross_entropy import linear_cross_entropy_unfused as linear_cross_entropy
from ..fused.softmax import log_softmax_unfused as log_softmax
from ..fused.softmax import softmax_unfused as softmax
from ..ops.elementwise import tanh
from ..ops.index import embedding
from ..ops.linalg import addmm_unfused as addmm
from ..ops.linalg import linear_unfused as linear
from ..ops.linalg import matmul
from ..ops.shape import join_heads, split_heads
from .functional import relu

__all__ = ["add_layer_norm", "addmm", "attention", "cross_entropy", "dropout", "embedding", "gelu",
           "join_heads", "layer_norm", "linear", "linear_cross_entropy", "log_softmax", "matmul",
           "relu", "softmax", "split_heads", "tanh"]
