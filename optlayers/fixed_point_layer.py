"""Fixed points of a module as a module: deep equilibrium models."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from solvers.fixed_point.solver import FixedPointSolver
from solvers.solution import Solution

from .failure import OnFailure, check_policy
from .fixed_point import fixed_point
from .implicit.adjoints import Adjoint, Unrolled


class FixedPointLayer(nn.Module):
    r"""Map an input :math:`u` to the equilibrium :math:`z = f(z, u)` of a module :math:`f`.

    It is a network of infinite depth with tied weights, at the memory of one layer: backward needs
    the equilibrium alone. The first dimension counts independent samples, each with its own number
    of iterations; the parameters of :math:`f` get exact gradients.

    Args:
        module: :math:`f`, called as ``module(z, u)``; returns what has the shape of ``z``.
        solver: By default :class:`~optlayers.solvers.Anderson`.
        adjoint: See :func:`fixed_point`; :class:`Phantom` and :class:`OneStep` are cheap.
        state_shape: Shape of the state :math:`z` of one sample; by default that of ``u``.
        on_failure: See :func:`root`.

    References:
        Bai, Kolter and Koltun, *Deep equilibrium models*, NeurIPS 2019.

    Example:
        >>> import torch, optlayers as ol
        >>> from torch import nn
        >>> class Cell(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = nn.Linear(8, 8)
        ...
        ...     def forward(self, z, u):
        ...         return torch.tanh(0.5 * self.linear(z) + u)
        >>> layer = ol.FixedPointLayer(Cell())
        >>> layer(torch.randn(16, 8)).shape
        torch.Size([16, 8])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        solver: FixedPointSolver | None = None,
        adjoint: Adjoint | Unrolled | None = None,
        state_shape: Sequence[int] | None = None,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__()
        check_policy("FixedPointLayer", on_failure)
        self.module, self.solver, self.adjoint = module, solver, adjoint
        self.state_shape = None if state_shape is None else tuple(state_shape)
        self.on_failure = on_failure

    def forward(self, u: Tensor, *, z0: Tensor | None = None) -> Tensor:
        """The equilibria ``(B, *state_shape)`` of inputs ``(B, ...)``, from ``z0`` or from zero."""
        z: Tensor = self.solve(u, z0=z0).x
        return z

    def solve(self, u: Tensor, *, z0: Tensor | None = None) -> Solution:
        """The same with statuses, iterations and residuals.

        Args:
            u: Inputs ``(B, ...)``.
            z0: Where to start ``(B, *state_shape)``: the equilibria of nearby inputs or of earlier
                weights save most of the iterations. Zeros by default.

        Raises:
            ValueError: If ``z0`` has another shape.
        """
        if torch.is_autocast_enabled(u.device.type):
            # The map runs in the precision of its weights; inputs may come in a lower one.
            dtype = next((p.dtype for p in self.module.parameters()), u.dtype)
            u, z0 = u.to(dtype), None if z0 is None else z0.to(dtype)
        shape = tuple(u.shape[1:]) if self.state_shape is None else self.state_shape
        if z0 is None:
            z0 = torch.zeros((u.shape[0], *shape), dtype=u.dtype, device=u.device)
        elif tuple(z0.shape) != (u.shape[0], *shape):
            raise ValueError(
                f"FixedPointLayer: z0 must have shape {(u.shape[0], *shape)}, one state a sample "
                f"of u; got {tuple(z0.shape)}. Pass state_shape= if the state is not like u."
            )
        return fixed_point(
            self.module,
            z0,
            u,
            batch_ndim=1,
            solver=self.solver,
            adjoint=self.adjoint,
            on_failure=self.on_failure,
        )

    def extra_repr(self) -> str:
        """What was chosen."""
        chosen = {"solver": self.solver, "adjoint": self.adjoint, "state_shape": self.state_shape}
        return ", ".join(f"{name}={value}" for name, value in chosen.items() if value is not None)
