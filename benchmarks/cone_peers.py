"""The contenders: what turns a problem written in cvxpy into a layer, ours and the peers'."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cone_problems import (
    Cones,
    Family,
    Logistic,
    SparseAttributeQP,
    SparseQP,
    SparseValuesQP,
    SquareSparseQP,
    Written,
)
from torch import Tensor

OURS, OURS_SPARSE = "optlayers", "optlayers, sparsity"
DIFFCP, MOREAU = "cvxpylayers", "cvxpylayers, MOREAU"
DENSE, LSMR = "cvxpylayers, dense", "cvxpylayers, lsmr"
MOREAU_TIGHT = "cvxpylayers, MOREAU, 1e-10"

LARGE = 1000  # Variables.

PACKAGES = ("optlayers", "cvxpy", "clarabel", "cvxpylayers", "diffcp", "scs", "moreau")

Layer = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Contender:
    """One library with one choice of settings.

    Attributes:
        build: Makes a layer of a problem.
        instead: Families that this one writes differently, and how.
        only: Whether it takes part in those families alone.
        not_for: Families of full size that it is spared, and why.
    """

    build: Callable[[Written], Layer]
    instead: Mapping[type[Family], type[Family]] = field(default_factory=dict)
    only: bool = False
    not_for: Mapping[type[Family], str] = field(default_factory=dict)

    def family(self, family: Family) -> Family | None:
        """The family as this contender writes it; none if it does not take part."""
        other = self.instead.get(type(family))
        if other:
            return other(family.n, family.batch)
        return None if self.only else family

    def why_not(self, family: Family) -> str | None:
        """Say why a problem is too large, if it is."""
        return self.not_for.get(type(family)) if family.n >= LARGE else None


def _ours(written: Written) -> Layer:
    import optlayers as ol

    if not hasattr(ol, "CvxpyLayer"):
        raise RuntimeError("this optlayers has no CvxpyLayer: leave ours out with --peers-only")
    return ol.CvxpyLayer(
        written.problem, parameters=written.parameters, variables=[written.variable]
    )


def _cvxpylayers(**settings: Any) -> Callable[[Written], Layer]:
    def build(written: Written) -> Layer:
        from cvxpylayers.torch import CvxpyLayer

        return CvxpyLayer(
            written.problem,
            parameters=written.parameters,
            variables=[written.variable],
            **settings,
        )

    return build


# cvxpylayers hands ``solver_args`` to diffcp. The gradient of its default is wrong by 19 to 31 % in
# dense QPs with 50 and 100 variables whatever the solver's tolerance: the LSQR of its compiled part
# stops early, and takes no tolerance. Its dense adjoint is as right as the solution, which at the
# solver's default tolerance, 1e-4, is not enough: hence 1e-8, which costs little. LSMR, written in
# Python, has tolerances of 1e-10 and is right to five digits or more. With Clarabel in place of SCS
# (``solve_method``) quadratic objectives, which diffcp writes as cones, lose up to three digits,
# and gradients of semidefinite problems are wrong.
EXACT = {"eps": 1e-8}
# Gradients of moreau are off by 1e-5 in second-order and exponential cones at its own tolerance of
# 1e-8. With this one they are right to six digits in exponential cones; in second-order cones
# they stay as they are. Quadratic programs gain nothing.
TIGHT = {"ipm_settings": {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}}
TOO_LARGE = {SparseQP: "not tried: half a gigabyte and half a minute for every element"}
TOO_LARGE[SquareSparseQP] = TOO_LARGE[SparseValuesQP] = TOO_LARGE[SparseQP]

# One of the three large sparse programs is enough to see what minutes for a step mean.
SLOW = dict.fromkeys((SparseQP, SparseValuesQP), "not tried: minutes for a step, see p = n")

CONTENDERS: dict[str, Contender] = {
    OURS: Contender(_ours),
    OURS_SPARSE: Contender(_ours, instead={SparseValuesQP: SparseAttributeQP}, only=True),
    DIFFCP: Contender(_cvxpylayers(), not_for=SLOW),
    DENSE: Contender(_cvxpylayers(solver_args={"mode": "dense", **EXACT}), not_for=TOO_LARGE),
    LSMR: Contender(_cvxpylayers(solver_args={"mode": "lsmr", **EXACT}), not_for=SLOW),
    MOREAU: Contender(_cvxpylayers(solver="MOREAU")),
    MOREAU_TIGHT: Contender(
        _cvxpylayers(solver="MOREAU", solver_args=TIGHT),
        instead={Cones: Cones, Logistic: Logistic},
        only=True,
    ),
}


def is_ours(name: str) -> bool:
    """Whether a contender is ours."""
    return name in (OURS, OURS_SPARSE)
