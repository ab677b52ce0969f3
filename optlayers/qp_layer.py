"""A quadratic program as a module that learns its own data."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from solvers.qp.solver import QPSolver
from solvers.solution import Solution

from .exact import Exact
from .failure import OnFailure, check_policy
from .qp import qp
from .smoothed import Smoothed


class ProblemData(NamedTuple):
    """The data of a :class:`QPLayer`, as :func:`qp` takes them; None where there is none."""

    P: Tensor
    G: Tensor | None
    h: Tensor | None
    A: Tensor | None
    b: Tensor | None
    lb: Tensor | None


class QPLayer(nn.Module):
    r"""Map ``q`` to the solution of a quadratic program whose other data are learned.

    .. math::

        x(q) = \arg\min_x \tfrac12 x^\top (L L^\top + \epsilon I) x + q^\top x
        \quad\text{s.t.}\quad G x \le G x_0 + s_0,\; A x = A x_0

    and :math:`x \ge 0` if asked for.

    The parameters are :math:`L`, :math:`G`, :math:`A`, a point :math:`x_0` and slacks
    :math:`s_0 > 0`. Whatever values training gives them, the program is strictly convex and
    :math:`x_0` satisfies its constraints, so no step can make it infeasible.

    Args:
        n: Number of variables.
        inequalities: Number of rows of ``G``.
        equalities: Number of rows of ``A``.
        nonnegative: Whether ``x >= 0`` holds as well; :math:`x_0` is then an exponential.
        learn_P: Whether ``P`` has a learned part; otherwise it is ``eps`` times the identity.
        eps: Smallest eigenvalue of ``P``.
        solver: See :func:`qp`.
        adjoint: See :func:`qp`.
        on_failure: See :func:`qp`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If a size is negative, ``n`` is zero or ``eps`` is not positive.

    References:
        Amos and Kolter, *OptNet: differentiable optimization as a layer in neural networks*, ICML
        2017, section 3.

    Example:
        >>> import torch, optlayers as ol
        >>> layer = ol.QPLayer(4, inequalities=3, equalities=1)
        >>> layer(torch.randn(16, 4)).shape
        torch.Size([16, 4])
    """

    def __init__(
        self,
        n: int,
        *,
        inequalities: int = 0,
        equalities: int = 0,
        nonnegative: bool = False,
        learn_P: bool = True,
        eps: float = 0.1,
        solver: QPSolver | None = None,
        adjoint: Exact | Smoothed | None = None,
        on_failure: OnFailure = "raise",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the parameters and initialise them."""
        super().__init__()
        if n < 1 or inequalities < 0 or equalities < 0 or eps <= 0:
            raise ValueError(
                "QPLayer: expected n >= 1, inequalities >= 0, equalities >= 0 and eps > 0; got "
                f"{n}, {inequalities}, {equalities} and {eps}. A P with eigenvalue zero need not "
                "have one solution; keep eps small instead."
            )
        check_policy("QPLayer", on_failure)
        self.n, self.inequalities, self.equalities = n, inequalities, equalities
        self.nonnegative, self.eps = nonnegative, eps
        self.solver, self.adjoint, self.on_failure = solver, adjoint, on_failure

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.L = parameter(n, n) if learn_P else None
        self.G = parameter(inequalities, n) if inequalities else None
        self.A = parameter(equalities, n) if equalities else None
        # x0 itself, or its logarithm where it has to be positive; likewise the slacks.
        self.point = parameter(n) if inequalities or equalities else None
        self.log_slack = parameter(inequalities) if inequalities else None
        # Knows device and type even where there are no parameters.
        self.like: Tensor
        empty = torch.empty(0, device=device, dtype=dtype)
        self.register_buffer("like", empty, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows of length about one, a ``P`` of size one, :math:`x_0` at zero (or one), slack 1."""
        for matrix in (self.L, self.G, self.A):
            if matrix is not None:
                nn.init.normal_(matrix, std=self.n**-0.5)
        for vector in (self.point, self.log_slack):
            if vector is not None:
                nn.init.zeros_(vector)

    def data(self) -> ProblemData:
        """The current problem data, differentiable in the parameters."""
        eye = self.eps * torch.eye(self.n, device=self.like.device, dtype=self.like.dtype)
        P = eye if self.L is None else self.L @ self.L.mT + eye
        lb = torch.zeros_like(eye[0]) if self.nonnegative else None
        h = b = None
        if self.point is not None:
            x0 = self.point.exp() if self.nonnegative else self.point
            if self.A is not None:
                b = self.A @ x0
            if self.G is not None and self.log_slack is not None:
                h = self.G @ x0 + self.log_slack.exp()
        return ProblemData(P, self.G, h, self.A, b, lb)

    def solve(self, q: Tensor, *, warm_start: Solution | None = None) -> Solution:
        """The full solution for ``q`` of shape ``(*batch, n)``."""
        P, G, h, A, b, lb = self.data()
        return qp(
            P, q, G, h, A, b, lb,
            solver=self.solver, adjoint=self.adjoint, warm_start=warm_start,
            on_failure=self.on_failure,
        )  # fmt: skip

    def forward(self, q: Tensor) -> Tensor:
        """The solution ``x`` of shape ``(*batch, n)``."""
        x: Tensor = self.solve(q).x
        return x

    def extra_repr(self) -> str:
        """Sizes, as other modules show them."""
        return (
            f"{self.n}, inequalities={self.inequalities}, equalities={self.equalities}, "
            f"nonnegative={self.nonnegative}, learn_P={self.L is not None}, eps={self.eps}"
        )
