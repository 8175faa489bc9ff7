"""The `torch` backend: the factorised algebra of docs/design.md in plain PyTorch, with its own backward pass.

Nothing d x d is kept for the backward pass but the frozen weight itself, and no gradient travels through a chain of
d x d intermediates: `build` reduces a projection to three thin tensors (u, U, V), equation (3), and every gradient
comes back through them, equation (4).
"""

from mora_kernels.numerics import gram as gram
from mora_kernels.torch.linear import mora_linear as mora_linear
from mora_kernels.torch.weight import effective_weight as effective_weight

__all__ = ["effective_weight", "gram", "mora_linear"]
