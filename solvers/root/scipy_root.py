"""SciPy's root finders, one sample after the other: a second opinion, and a reference."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..derivatives import jacobian
from ..iteration import LOOSE, Iterates, Run
from ..solution import Status
from .solver import RootSolver

# Those that take a Jacobian, and what they call their limit.
Method = Literal["hybr", "lm"]
LIMITS: dict[Method, str] = {"hybr": "maxfev", "lm": "maxiter"}


@dataclass(frozen=True)
class ScipyRoot(RootSolver):
    r"""Call :func:`scipy.optimize.root` for each sample.

    The function is evaluated on the whole batch for each sample, so the price of a batch is
    the square of its size: for comparisons and small batches. A result is judged here, by the
    length of the Newton step :math:`J^{-1} F` that was left to take, whatever SciPy claims.

    Attributes:
        max_iter: Evaluations allowed to each sample.
        method: ``"hybr"``, Powell's hybrid method, or ``"lm"``, that of Levenberg and Marquardt;
            both are Minpack's, with exact Jacobians.

    References:
        Moré, Garbow and Hillstrom, *User guide for MINPACK-1*, Argonne National Laboratory, 1980.

    Example:
        >>> import torch
        >>> from optlayers.solvers.root import ScipyRoot
        >>> squares = torch.tensor([[4.0], [9.0]], dtype=torch.float64)
        >>> ScipyRoot().solve(lambda x: x**2 - squares, torch.ones_like(squares)).x
        tensor([[2.],
                [3.]], dtype=torch.float64)
    """

    method: Method = "hybr"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.method not in LIMITS:
            raise ValueError(
                f"ScipyRoot: method must be one of {', '.join(LIMITS)}; got {self.method!r}."
            )

    def iterates(self, F: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """SciPy does not say where it is."""
        raise NotImplementedError("ScipyRoot: SciPy runs the loop; call solve or find.")

    @torch.no_grad()
    def find(self, F: Callable[[Tensor], Tensor], x0: Tensor) -> Run:
        """The same on a flat batch ``(B, n)``."""
        found = [self._sample(F, x0, i) for i in range(len(x0))]
        x = torch.stack([x for x, _ in found]) if found else x0.clone()
        iterations = torch.tensor([count for _, count in found], dtype=torch.long, device=x0.device)
        value = F(x)
        step, _ = torch.linalg.solve_ex(jacobian(F, x), value)
        error = torch.linalg.vector_norm(step, dim=-1)
        norm = torch.linalg.vector_norm(value, dim=-1)
        error = torch.where(norm == 0, 0.0, error)

        eps_abs, eps_rel = self.tolerances(x0.dtype)
        tolerance = eps_abs + eps_rel * torch.linalg.vector_norm(x, dim=-1)
        status = torch.full_like(iterations, int(Status.MAX_ITERATIONS))
        status[iterations < self.max_iter] = Status.NUMERICAL_ERROR  # gave up
        status[error <= LOOSE * tolerance] = Status.SOLVED_INACCURATE
        status[error <= tolerance] = Status.SOLVED
        return Run(x, status, iterations, error, norm, (), None)

    def _sample(self, F: Callable[[Tensor], Tensor], x0: Tensor, i: int) -> tuple[Tensor, int]:
        import scipy.optimize

        def batch(x: Any) -> Tensor:
            whole = x0.clone()
            whole[i] = torch.as_tensor(x, dtype=x0.dtype)
            return whole

        def value(x: Any) -> Any:
            return F(batch(x))[i].cpu().numpy().astype(np.float64)

        def derivative(x: Any) -> Any:
            return jacobian(F, batch(x))[i].cpu().numpy().astype(np.float64)

        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # it tells the same as the status
            result = scipy.optimize.root(
                value,
                x0[i].cpu().numpy().astype(np.float64),
                method=self.method,
                jac=derivative,
                tol=self.tolerances(x0.dtype)[1],
                options={LIMITS[self.method]: self.max_iter},
            )
        if self.verbose:
            print(f"sample {i}: {result.nfev} evaluations. {result.message}")
        return torch.as_tensor(result.x, dtype=x0.dtype).to(x0.device), int(result.nfev)
