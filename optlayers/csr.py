"""Sparse tensors on their way into and out of derivatives."""

from typing import Any

import torch
from torch import Tensor

from solvers.cone.cone_program import ConeProgram
from solvers.matrix import Matrix


class _Values(torch.autograd.Function):
    """The entries of a CSR tensor; torch's own method loses second derivatives without a word."""

    @staticmethod
    def forward(t: Tensor) -> Tensor:
        return t.values().clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        (t,) = inputs
        ctx.crow, ctx.col, ctx.shape = t.crow_indices(), t.col_indices(), t.shape

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        parts = ctx.crow, ctx.col, cotangents[0]
        return torch.sparse_csr_tensor(*parts, size=ctx.shape, check_invariants=False)


def with_derivatives(M: Matrix, t: Tensor) -> Matrix:
    """The matrix of a tensor, such that the tensor gets gradients if it is sparse."""
    if t.layout == torch.strided or not t.requires_grad:
        return M
    values: Tensor = _Values.apply(t)  # type: ignore[no-untyped-call]
    return M.with_values(values)


def program_with_derivatives(program: ConeProgram, P: Tensor | None, A: Tensor) -> ConeProgram:
    """The program of these tensors, such that sparse ones get gradients."""
    program.A = with_derivatives(program.A, A)
    if program.P is not None and P is not None:
        program.P = with_derivatives(program.P, P)
    return program
