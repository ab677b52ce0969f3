"""Projections onto cones as a differentiable function."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.batch import broadcast_shapes
from solvers.cone.cone import Cone
from solvers.cone.product import ConeProduct

from .implicit.batching import batch_first, sum_to
from .implicit.chosen import pull, push
from .implicit.conic_system import NO_SECOND_DERIVATIVE
from .implicit.function import Tensors, plainly, solve_implicitly


def cone_projection(v: Tensor, cones: Sequence[Cone], *, mu: float = 0.0) -> Tensor:
    r"""The nearest point of a product of cones, differentiably.

    .. math::

        \Pi_K(v) = \arg\min_{s \in K} \tfrac12 \|s - v\|^2

    or, for :math:`\mu > 0`, its smooth relative with :math:`\mu f(s)` added, :math:`f` the barrier
    of the cones. At kinks one element of the generalised Jacobian is the derivative. Second
    derivatives exist for zero, nonnegative, box and second-order cones, and raise for the others.

    Args:
        v: ``(*batch, m)``.
        cones: Cone objects whose sizes add up to ``m``, as :func:`cone_program` takes them.
        mu: Smoothing :math:`\mu`; not for box and dual cones.

    Returns:
        ``(*batch, m)``, of the type of ``v``.

    Raises:
        TypeError: If ``v`` is not a real floating-point tensor, or something else is no cone.
        ValueError: If the sizes do not fit.

    Example:
        >>> import torch, optlayers as ol
        >>> v = torch.tensor([0.0, 3.0, 4.0], requires_grad=True)
        >>> s = ol.cone_projection(v, [ol.SecondOrderCone(3)])
        >>> s
        tensor([2.5000, 1.5000, 2.0000], grad_fn=...)
        >>> torch.autograd.grad(s[0], v)[0]
        tensor([0.5000, 0.3000, 0.4000])
    """
    product = ConeProduct.of(cones)
    given: object = v  # whatever the annotation says
    if not isinstance(given, Tensor) or not v.is_floating_point():
        got = f"{v.dtype} tensor" if isinstance(given, Tensor) else type(v).__name__
        raise TypeError(
            f"cone_projection: v must be a real floating-point tensor; got {got}. Convert it, e.g. "
            "torch.as_tensor(v, dtype=torch.float64)."
        )
    if v.ndim < 1 or v.shape[-1] != product.rows:
        raise ValueError(
            f"cone_projection: v must have shape (*batch, {product.rows}) because the cones have "
            f"{product.rows} rows; got {tuple(v.shape)}. Check the sizes of the cones."
        )
    return solve_implicitly(_Projection(product, mu), v)[0]


@dataclass(frozen=True)
class _Projection:
    """The projection as an implicit problem; its input is ``v``."""

    cones: ConeProduct
    mu: float

    @property
    def differentiable(self) -> int:
        """The projection."""
        return 1

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Project."""
        with plainly(inputs) as (v,):
            return (self.cones.project(v, self.mu).clone(),)

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shape of the projection."""
        (v,) = inputs
        assert v is not None
        return (v.new_empty(v.shape),)

    def _along(self, v: Tensor | None, w: Tensor | None) -> Tensor | None:
        if w is None:
            return None
        return solve_implicitly(_Derivative(self.cones, self.mu), v, w)[0]

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """The Jacobian is symmetric."""
        return [self._along(inputs[0], cotangents[0])]

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """The Jacobian times the tangent."""
        return [self._along(inputs[0], tangents[0])]

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["_Projection", Tensors]:
        """A batch dimension more."""
        return self, batch_first(dims, inputs, (1,))


@dataclass(frozen=True)
class _Derivative:
    """The product of the Jacobian at ``v`` with ``w``, which are the inputs."""

    cones: ConeProduct
    mu: float

    @property
    def differentiable(self) -> int:
        """The product."""
        return 1

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Multiply."""
        with plainly(inputs) as (v, w):
            shape = broadcast_shapes(v.shape, w.shape)
            product = self.cones.derivative(v.expand(shape), w.expand(shape), self.mu)
            return (product.clone(),)

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shape of the product."""
        v, w = (t for t in inputs if t is not None)
        return (v.new_empty(broadcast_shapes(v.shape, w.shape)),)

    def _moving(self, v: Tensor, w: Tensor) -> Tensor:
        if not self.cones.smooth:
            raise NotImplementedError(f"cone_projection: {NO_SECOND_DERIVATIVE}")
        return self.cones.derivative(v, w, self.mu)

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """The Jacobian is symmetric, and differentiated for itself."""
        v, w = (t for t in inputs if t is not None)
        g = cotangents[0]
        if g is None:
            return [None, None]
        shape = outputs[0].shape
        at_v = None
        if needed[0]:
            (at_v,) = pull(self._moving, [v.expand(shape), w.expand(shape)], [0], g)
            at_v = sum_to(at_v, v.shape)
        return [at_v, sum_to(solve_implicitly(self, v, g)[0], w.shape) if needed[1] else None]

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """Both parts of the product rule."""
        v, w = (t for t in inputs if t is not None)
        d_v, d_w = tangents[:2]
        shape = outputs[0].shape
        pushed = torch.zeros_like(outputs[0])
        if d_w is not None:
            pushed = pushed + solve_implicitly(self, v, d_w)[0]
        if d_v is not None:
            points = [v.expand(shape), w.expand(shape)]
            pushed = pushed + push(self._moving, points, [0], [d_v.expand(shape)])
        return [pushed]

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["_Derivative", Tensors]:
        """A batch dimension more."""
        return self, batch_first(dims, inputs, (1, 1))
