"""What cannot be a layer is refused here, before cvxpy is asked to canonicalise it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cvxpy as cp


def check_arguments(
    problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]
) -> None:
    """Refuse arguments that do not belong together.

    Args:
        problem: The user's problem.
        parameters: All of its parameters, each once.
        variables: Some of its variables and of the dual variables of its constraints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If parameters or variables are not those of the problem.
    """
    import cvxpy as cp

    if not isinstance(problem, cp.Problem):
        raise TypeError(
            f"CvxpyLayer: expected a cvxpy.Problem, got {type(problem).__name__}. Pass "
            "cvxpy.Problem(objective, constraints)."
        )
    _check_sequence("parameters", parameters, cp.Parameter)
    _check_sequence("variables", variables, cp.Variable)

    own = {parameter.id: parameter for parameter in problem.parameters()}
    given = {parameter.id: parameter for parameter in parameters}
    missing, extra = own.keys() - given.keys(), given.keys() - own.keys()
    if len(given) != len(parameters) or missing or extra:
        counts = Counter(parameter.id for parameter in parameters)
        twice = [key for key, count in counts.items() if count > 1]
        raise ValueError(
            "CvxpyLayer: expected `parameters` to have every parameter of the problem once; "
            + _list("missing", [own[key] for key in missing])
            + _list("not in the problem", [given[key] for key in extra])
            + _list("given twice", [given[key] for key in twice])
            + "pass them in the order in which the layer is to take their values."
        )

    own_ids = {variable.id for variable in problem.variables()}
    if not own_ids:
        raise ValueError(
            "CvxpyLayer: expected a problem with variables, got one without. Compute its value "
            "with torch instead."
        )
    dual_ids = {dual.id for c in problem.constraints for dual in c.dual_variables}
    strangers = [v for v in variables if v.id not in own_ids and v.id not in dual_ids]
    if strangers:
        raise ValueError(
            "CvxpyLayer: expected `variables` to be variables of the problem or dual variables of "
            f"its constraints; {_names(strangers)} {'is' if len(strangers) == 1 else 'are'} "
            "neither. Pass what is in problem.variables() or constraint.dual_variables."
        )
    if not variables:
        raise ValueError(
            "CvxpyLayer: expected at least one variable to return, got none. Pass, for example, "
            "problem.variables()."
        )


def check_problem(problem: cp.Problem, *, gp: bool) -> None:
    """Refuse problems whose canonical form is not a convex program affine in the parameters.

    Args:
        problem: The user's problem.
        gp: Whether to treat it as a geometric program.

    Raises:
        ValueError: If the problem is not convex, not parametrised as it must be, or has integers.
    """
    if problem.is_mixed_integer():
        discrete = [
            v for v in problem.variables() if v.attributes["boolean"] or v.attributes["integer"]
        ]
        raise ValueError(
            "CvxpyLayer: expected continuous variables, as solutions of integer programs have no "
            f"useful derivative; {_names(discrete) or 'a constraint'} is discrete. Relax it, for "
            "example to bounds=[0, 1]."
        )
    rules = "DGP" if gp else "DCP"
    if not (problem.is_dgp() if gp else problem.is_dcp()):
        raise ValueError(
            f"CvxpyLayer: expected a problem that follows the {rules} rules; these parts do not: "
            f"{_offenders(problem, gp=gp, dpp=False)}. {_other_rules(problem, gp=gp)}"
        )
    untyped: Any = problem  # the annotations of cvxpy have holes
    dpp = untyped.is_dpp("dgp") if gp else untyped.is_dpp("dcp", quad_form_dpp="qp")
    if not dpp:
        hint = "" if gp or not untyped.is_dgp(dpp=True) else " As it is, gp=True would accept it."
        raise ValueError(
            "CvxpyLayer: expected a problem that follows the DPP rules, under which its data is "
            f"affine in the parameters; these parts do not: {_offenders(problem, gp=gp, dpp=True)}"
            ". Replace products of parameters, and other functions of them, by new parameters that "
            "are computed with torch; quad_form(x, P) with a parameter P with PSD=True is fine in "
            f"the objective, but not in constraints.{hint}"
        )
    for constraint in problem.constraints:
        # cvxpy reads these exponents once and does not list them among the parameters.
        exponents = getattr(constraint, "alpha", None)
        if exponents is not None and exponents.parameters():
            raise ValueError(
                "CvxpyLayer: expected the exponents of power cones to be constant; those of "
                f"{constraint} depend on {_names(exponents.parameters())}. Give them values."
            )


def _check_sequence(name: str, given: Any, kind: type) -> None:
    """Refuse anything but a list or tuple of the kind."""
    if not isinstance(given, list | tuple):
        raise TypeError(
            f"CvxpyLayer: expected `{name}` to be a list or tuple, got {type(given).__name__}. "
            f"Write [{name[0]}] for a single one."
        )
    for item in given:
        if not isinstance(item, kind):
            hint = "constraint.dual_variables[0]" if kind.__name__ == "Variable" else "a constant"
            raise TypeError(
                f"CvxpyLayer: expected `{name}` to have cvxpy.{kind.__name__} objects only, got "
                f"{type(item).__name__}. If it is not one, perhaps you want {hint}."
            )


def _other_rules(problem: cp.Problem, *, gp: bool) -> str:
    if gp:
        return "Without gp=True it is accepted." if problem.is_dcp() else "Rewrite them."
    if problem.is_dgp():
        return "It is a geometric program: pass gp=True."
    if problem.is_dqcp():
        return "It is quasiconvex, which needs a sequence of problems: rewrite it."
    return "Rewrite them with the functions of cvxpy whose curvature is known."


def _offenders(problem: cp.Problem, *, gp: bool, dpp: bool) -> str:
    """Name the smallest expressions that break the rules, at most three."""
    from cvxpy.utilities import scopes

    def holds(node: Any) -> bool:
        return bool(node.is_dgp(dpp=dpp) if gp else node.is_dcp(dpp=dpp))

    def smallest(node: Any) -> Iterator[Any]:
        broken = [arg for arg in node.args if not holds(arg)]
        for arg in broken:
            yield from smallest(arg)
        if not broken:
            yield node

    found: list[str] = []
    for part in (problem.objective, *problem.constraints):
        # Only objectives may have quad_form(x, P) with a parameter P.
        relaxed = dpp and part is problem.objective
        with scopes.quad_form_dpp_scope() if relaxed else nullcontext():
            if not holds(part):
                found += [str(node) for node in smallest(part)]
    found = list(dict.fromkeys(found))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(text if len(text) <= 200 else text[:197] + "..." for text in found[:3]) + more


def _names(items: Sequence[Any]) -> str:
    return ", ".join(str(item.name()) for item in items)


def _list(what: str, items: Sequence[Any]) -> str:
    return f"{what}: {_names(sorted(items, key=lambda item: item.id))}; " if items else ""
