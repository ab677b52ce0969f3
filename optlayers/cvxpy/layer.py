"""A convex problem written in cvxpy as a module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from solvers.batch import broadcast_shapes
from solvers.cone.solver import ConeSolver
from solvers.qp.solver import QPSolver
from solvers.solution import Solution, Status, register

from ..exact import Exact, check_adjoint
from ..failure import OnFailure, check_policy, paint
from ..smoothed import Smoothed
from .canonical import canonicalise
from .compatibility import solver_of
from .data import Parts, evaluate
from .forms import form_of
from .outputs import outputs_of
from .parameters import ParameterSlot

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(eq=False, repr=False)
class CvxpySolution(Solution):
    """A solution whose ``x`` is the tuple of the values that the layer was asked for.

    Attributes:
        canonical: The solution of the problem that was really solved, for a warm start.
    """

    canonical: Solution | None = None


register(CvxpySolution, "optlayers.CvxpySolution")


class CvxpyLayer(nn.Module):
    r"""Map the parameters of a convex problem to its solution.

    .. math::

        x^\star(\theta) = \arg\min_x f(x; \theta) \quad\text{s.t.}\quad
        g(x; \theta) \le 0,\; h(x; \theta) = 0

    The problem is taken apart once, when the layer is made: its canonical data are affine in the
    parameters, so that a forward pass is one sparse product and a batched solve. Problems that are
    quadratic programs are solved as such, without the auxiliary variables that cvxpy adds.

    Calls take one tensor for each parameter, of its shape behind any leading batch dimensions,
    which broadcast against each other. They return one tensor for each variable, of the type of the
    arguments; the computation runs in float64.

    Args:
        problem: A problem that follows cvxpy's rules for parameters (DPP).
        parameters: All its parameters, in the order in which tensors are given.
        variables: Variables, and dual variables of constraints (``constraint.dual_variables[0]``),
            in the order in which values are returned.
        gp: Whether it is a geometric program.
        solver: An object of :mod:`optlayers.solvers`; by default chosen by the problem.
        adjoint: :class:`Exact` (default) or :class:`Smoothed`.
        on_failure: What to do about elements of a batch without a solution, see :func:`qp`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the problem is not convex, has integers or breaks the rules for parameters,
            or if parameters or variables are not those of the problem.

    References:
        Agrawal, Amos, Barratt, Boyd, Diamond and Kolter, *Differentiable convex optimization
        layers*, NeurIPS 2019.

    Example:
        >>> import cvxpy as cp, torch, optlayers as ol
        >>> x, target = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - target)), [cp.norm(x) <= 1])
        >>> layer = ol.CvxpyLayer(problem, parameters=[target], variables=[x])
        >>> (point,) = layer(torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> point
        tensor([[0.6000, 0.8000],
                [0.0000, 0.5000]])
    """

    def __init__(
        self,
        problem: "cp.Problem",
        parameters: "Sequence[cp.Parameter]",
        variables: "Sequence[cp.Variable]",
        *,
        gp: bool = False,
        solver: QPSolver | ConeSolver | str | None = None,
        adjoint: Exact | Smoothed | None = None,
        on_failure: OnFailure = "raise",
        solver_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the problem apart."""
        super().__init__()
        check_policy("CvxpyLayer", on_failure)
        check_adjoint("CvxpyLayer", adjoint)
        self.adjoint = adjoint
        self.on_failure = on_failure
        program = canonicalise(problem, parameters, variables, gp=gp)
        self._program = program
        self._slots, self._gp, self._maximize = program.parameters, program.gp, program.maximize
        self._set_up(solver_of(solver, solver_args))

    def _set_up(self, solver: QPSolver | ConeSolver | None) -> None:
        self._solver = solver
        self._form = form_of(self._program, solver)
        self._parts = Parts(self._slots, self._form.maps)
        self._outputs = outputs_of(self._form.slots)

    def forward(
        self,
        *parameters: Tensor,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: Solution | None = None,
    ) -> tuple[Tensor, ...]:
        """Solve for every element of the batch.

        Args:
            *parameters: A tensor for each parameter ``(*batch, *shape)``.
            solver_args: What cvxpylayers takes; deprecated.
            warm_start: What :meth:`solve` returned for a similar batch; it only saves time.

        Returns:
            A tensor for each variable ``(*batch, *shape)``.

        Raises:
            TypeError: If an argument is not a floating-point tensor.
            ValueError: If there are too few or too many, or shapes do not fit.
            SolverError: If elements have no solution and the policy is to raise.
        """
        return self.solve(*parameters, solver_args=solver_args, warm_start=warm_start).x  # type: ignore[no-any-return]

    def solve(
        self,
        *parameters: Tensor,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: Solution | None = None,
    ) -> CvxpySolution:
        """Solve, and return all that is known.

        Args:
            *parameters: As for a call.
            solver_args: As for a call.
            warm_start: As for a call.

        Returns:
            A :class:`Solution` whose ``x`` is the tuple of values, with statuses, residuals and the
            objective in the user's sign. Dual values are among ``x`` where they were asked for.
        """
        layer = self
        if solver_args:
            layer = self._with_arguments(solver_args)
        return layer._solve(parameters, warm_start)

    def _with_arguments(self, solver_args: Mapping[str, Any]) -> "CvxpyLayer":
        solver = solver_of(self._solver, solver_args)
        if solver == self._solver:
            return self
        other = CvxpyLayer.__new__(CvxpyLayer)
        other.__dict__.update(self.__dict__)
        other._set_up(solver)
        return other

    def _solve(self, parameters: tuple[Tensor, ...], warm_start: Solution | None) -> CvxpySolution:
        values, dtype = _check(self._slots, parameters)
        like = values[0] if values else torch.empty(0, dtype=torch.float64)
        bad = None
        if self.on_failure != "raise":
            values, bad = _without_rubbish(self._slots, values)
        elif not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()):
            _check_values(self._slots, values)  # elsewhere solvers complain, about their own data
        data = evaluate(self._parts, self._slots, values, like)
        if bad is not None:
            data["q"] = torch.where(bad[..., None], torch.nan, data["q"])
        if isinstance(warm_start, CvxpySolution):
            warm_start = warm_start.canonical
        found = self._form.solve(data, self.adjoint, warm_start, self.on_failure, dtype)
        x, z = self._form.primal(data, found), self._form.dual(data, found)
        objective = found.objective
        assert objective is not None
        if self.on_failure != "raise":
            # The data that turn the solution into these must not get a gradient either.
            solved = found.status <= int(Status.SOLVED_INACCURATE)
            x, z, objective = (paint(t, solved) for t in (x, z, objective))
        objective = -objective if self._maximize else objective
        objective = objective.exp() if self._gp else objective

        def cast(t: Tensor) -> Tensor:
            return t.to(dtype.to_complex() if t.is_complex() else dtype)

        return CvxpySolution(
            tuple(cast(output.value(x, z)) for output in self._outputs),
            found.status,
            found.iterations,
            objective=cast(objective),
            primal_residual=found.primal_residual,
            dual_residual=found.dual_residual,
            duality_gap=found.duality_gap,
            canonical=found,
        )

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        names = ", ".join(f"{slot.name} {slot.shape}" for slot in self._slots)
        rows, n = self._program.A.shape
        return f"parameters=[{names}], canonical variables={n}, rows={rows}"


def _check(
    slots: Sequence[ParameterSlot], parameters: Sequence[Tensor]
) -> tuple[list[Tensor], torch.dtype]:
    """The values in double precision, and the type that results have."""
    if len(parameters) != len(slots):
        names = ", ".join(slot.name for slot in slots)
        raise ValueError(
            f"CvxpyLayer: expected {len(slots)} tensors, one for each parameter ({names}); got "
            f"{len(parameters)}. Give them in the order of the `parameters` argument."
        )
    values = []
    dtype: torch.dtype | None = None
    for slot, t in zip(slots, parameters, strict=True):
        given: object = t  # whatever the annotations say
        if not isinstance(given, Tensor) or not (t.is_floating_point() or t.is_complex()):
            got = f"{t.dtype} tensor" if isinstance(given, Tensor) else type(t).__name__
            raise TypeError(
                f"CvxpyLayer: parameter {slot.name} must be a floating-point tensor; got {got}. "
                "Convert it, e.g. with torch.as_tensor(value, dtype=torch.float64)."
            )
        if t.is_complex() and not slot.is_complex:
            raise TypeError(
                f"CvxpyLayer: parameter {slot.name} is real; got a {t.dtype} tensor. Declare it "
                "with complex=True, or pass the real part."
            )
        if tuple(t.shape[max(t.ndim - len(slot.shape), 0) :]) != slot.shape:
            raise ValueError(
                f"CvxpyLayer: parameter {slot.name} must have shape (*batch, "
                f"{', '.join(map(str, slot.shape))}); got {tuple(t.shape)}. Leading dimensions are "
                "the batch; are the tensors in the order of the `parameters` argument?"
            )
        real = t.dtype.to_real() if t.is_complex() else t.dtype
        dtype = real if dtype is None else torch.promote_types(dtype, real)
        if t.layout != torch.strided:
            t = t.to_dense()
        values.append(t.to(torch.complex128) if t.is_complex() else t.to(torch.float64))
    try:
        broadcast_shapes(
            *(t.shape[: t.ndim - len(s.shape)] for s, t in zip(slots, values, strict=True))
        )
    except ValueError:
        shapes = ", ".join(
            f"{s.name} {tuple(t.shape[: t.ndim - len(s.shape)])}"
            for s, t in zip(slots, values, strict=True)
        )
        raise ValueError(
            f"CvxpyLayer: the leading (batch) dimensions must broadcast against each other; got "
            f"{shapes}. Insert dimensions of size 1 where a parameter is shared."
        ) from None
    return values, torch.get_default_dtype() if dtype is None else dtype


def _is_allowed(slot: ParameterSlot, t: Tensor) -> Tensor:
    """Which entries are finite, and positive if their logarithm is taken."""
    return t.isfinite() & (t > 0) if _is_logarithmic(slot) else t.isfinite()


def _is_logarithmic(slot: ParameterSlot) -> bool:
    return any(piece.transform == "log" for piece in slot.pieces)


def _check_values(slots: Sequence[ParameterSlot], values: Sequence[Tensor]) -> None:
    for slot, t in zip(slots, values, strict=True):
        array, positive = t.numpy(force=True), _is_logarithmic(slot)  # a fifth of torch's price
        if not (np.isfinite(array).all() and (not positive or (array > 0).all())):
            good = _is_allowed(slot, t)
            raise ValueError(
                f"CvxpyLayer: parameter {slot.name} must be finite{' and positive' * positive}; "
                f"got {int((~good).sum())} entries that are not, of {t.numel()}. Mend the data, or "
                "pass on_failure='ignore' to get NaN for these elements only."
            )


def _without_rubbish(
    slots: Sequence[ParameterSlot], values: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor | None]:
    """Ones in place of values that are not finite (or have no logarithm), and which those are.

    A NaN that entered a product would come back in gradients, where zero times NaN is NaN.
    """
    clean, bad = [], None
    for slot, t in zip(slots, values, strict=True):
        core = len(slot.shape)
        good = _is_allowed(slot, t)
        good = good.flatten(-core).all(-1) if core else good
        clean.append(torch.where(good.reshape((*good.shape, *[1] * core)), t, 1.0))
        bad = ~good if bad is None else bad | ~good
    return clean, bad
