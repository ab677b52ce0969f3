"""What the linear solvers share: the entry points, and what they accept."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..iteration import Run
from ..solution import Solution
from .operator import LinearOperator

Preconditioner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearSolver(ABC):
    """Base of the linear solvers; a subclass provides ``find``."""

    # Whether there must be as many equations as unknowns.
    square: ClassVar[bool] = True

    def solve(
        self,
        A: Tensor | LinearOperator,
        b: Tensor,
        *,
        x0: Tensor | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> Solution:
        r"""Solve :math:`A x = b` for every sample of a batch.

        Args:
            A: Matrices ``(*batch, m, n)``; leading dimensions broadcast against those of ``b``, and
                a single matrix is factored once. Or an operator on flat batches ``(B, n)``, where
                ``B`` is the number of samples in ``b``.
            b: Right-hand sides ``(*batch, m)``.
            x0: Where to start ``(*batch, n)``; by default at zero. Direct solvers ignore it.
            preconditioner: Maps ``(B, n)`` to the product with an approximate inverse of each
                matrix, ``(B, n)``. Direct solvers ignore it.

        Returns:
            A solution whose ``primal_residual`` is :math:`\|b - A x\|_2`, computed from ``x``.
            Solvers of least squares have in ``dual_residual`` :math:`\|A^\top (b - A x)\|_2`.

        Raises:
            ValueError: If shapes do not fit.
            TypeError: If types do not fit.
        """
        where = f"{type(self).__name__}.solve"
        n: int | None
        if isinstance(A, Tensor):
            operator, batch, n = self._wrap(where, A, b)
        else:
            operator, batch, n = A, b.shape[:-1], None if x0 is None else x0.shape[-1]
        count = batch.numel()
        flat_b = b.expand(*batch, b.shape[-1]).reshape(count, b.shape[-1])
        flat_x0 = None
        if x0 is not None:
            if x0.shape[-1] != n or x0.dtype != b.dtype:
                raise ValueError(
                    f"{where}: x0 must have shape (*batch, {n}) and the type of b, {b.dtype}; "
                    f"got {tuple(x0.shape)} and {x0.dtype}."
                )
            flat_x0 = x0.expand(*batch, x0.shape[-1]).reshape(count, x0.shape[-1])
        run = self.find(operator, flat_b, flat_x0, preconditioner)
        residual, normal = run.error, None
        if run.value is not None:
            residual, normal = run.value, run.error.reshape(batch)
        return Solution(
            run.x.reshape(*batch, run.x.shape[-1]),
            run.status.reshape(batch),
            run.iterations.reshape(batch),
            primal_residual=residual.reshape(batch),
            dual_residual=normal,
            history=None if run.history is None else run.history.reshape(-1, *batch),
        )

    @abstractmethod
    def find(
        self,
        A: LinearOperator,
        b: Tensor,
        x0: Tensor | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> Run:
        r"""The same on a flat batch, with ``b`` ``(B, m)`` and ``x0`` ``(B, n)``.

        The ``error`` of what is returned is :math:`\|b - A x\|_2`; solvers of least squares have
        that in ``value``, and :math:`\|A^\top (b - A x)\|_2` in ``error``.
        """

    def _wrap(self, where: str, A: Tensor, b: Tensor) -> tuple[LinearOperator, torch.Size, int]:
        if A.ndim < 2 or b.ndim < 1:
            raise ValueError(
                f"{where}: A must have shape (*batch, m, n) and b (*batch, m); "
                f"got {tuple(A.shape)} and {tuple(b.shape)}."
            )
        if A.dtype != b.dtype or not A.is_floating_point():
            raise TypeError(
                f"{where}: A and b must have the same floating-point type; got {A.dtype} and "
                f"{b.dtype}. Convert one of them."
            )
        m, n = A.shape[-2:]
        if b.shape[-1] != m:
            raise ValueError(
                f"{where}: b must have shape (*batch, {m}) because A has {m} rows; got "
                f"{tuple(b.shape)}." + (" Did you mean A.mT?" if b.shape[-1] == n else "")
            )
        if self.square and m != n:
            raise ValueError(
                f"{where}: A must be square; got {m} by {n}. QR and LSMR solve least squares."
            )
        try:
            batch = torch.broadcast_shapes(A.shape[:-2], b.shape[:-1])
        except RuntimeError:
            raise ValueError(
                f"{where}: the leading dimensions of A and b must broadcast; got "
                f"{tuple(A.shape[:-2])} and {tuple(b.shape[:-1])}."
            ) from None
        if A.shape[:-2].numel() == 1:  # one for all
            return LinearOperator.of(A.reshape(1, m, n)), batch, n
        return LinearOperator.of(A.expand(*batch, m, n).reshape(batch.numel(), m, n)), batch, n

    def _unknowns(self, A: LinearOperator, b: Tensor, x0: Tensor | None) -> Tensor:
        """Zeros ``(B, n)``: how many unknowns there are is not always in the arguments."""
        if A.dense is not None:
            n = A.dense.shape[-1]
        elif x0 is not None:
            n = x0.shape[-1]
        else:
            n = b.shape[-1] if self.square else A.T.matvec(b).shape[-1]
        return b.new_zeros(b.shape[0], n)
