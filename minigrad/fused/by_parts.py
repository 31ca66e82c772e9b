"""The unfused definitions under the names of the fused ops, so that a model can run on either."""
from . import dropout
from .attention import attention_by_parts as attention
from .cross_entropy import cross_entropy_by_parts as cross_entropy
from .gelu import gelu_by_parts as gelu
from .layer_norm import add_layer_norm_by_parts as add_layer_norm
from .layer_norm import layer_norm_by_parts as layer_norm
from .linear_cross_entropy import linear_cross_entropy_by_parts as linear_cross_entropy
from .softmax import log_softmax_by_parts as log_softmax
from .softmax import softmax_by_parts as softmax

__all__ = ["add_layer_norm", "attention", "cross_entropy", "dropout", "gelu", "layer_norm",
           "linear_cross_entropy", "log_softmax", "softmax"]
