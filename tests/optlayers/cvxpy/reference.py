"""Parametrised problems solved twice: by Clarabel from the canonical data, and by cvxpy."""

import clarabel
import numpy as np
import scipy.sparse as sp

from optlayers.cvxpy.canonical import canonicalise

TOLERANCES = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
CONES = {
    "zero": clarabel.ZeroConeT,
    "nonneg": clarabel.NonnegativeConeT,
    "soc": clarabel.SecondOrderConeT,
    "psd": clarabel.PSDTriangleConeT,
    "exp": lambda _: clarabel.ExponentialConeT(),
    "pow": clarabel.PowerConeT,
    "genpow": lambda argument: clarabel.GenPowerConeT(list(argument[0]), argument[1]),
}


def solve(P, q, A, b, cones):
    """Primal and dual solution and value of a cone program."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    for name, value in TOLERANCES.items():
        setattr(settings, name, value)
    P = sp.csc_matrix((q.size, q.size)) if P is None else sp.csc_matrix(sp.triu(P))
    cones = [CONES[kind](argument) for kind, argument in cones]
    solution = clarabel.DefaultSolver(P, q, sp.csc_matrix(A), b, cones, settings).solve()
    assert str(solution.status) in {"Solved", "AlmostSolved"}
    return np.array(solution.x), np.array(solution.z), solution.obj_val


def parameter_vector(program, values):
    entries = [slot.entries(value) for slot, value in zip(program.parameters, values, strict=True)]
    return np.concatenate([np.empty(0), *entries])


def solve_program(program, theta):
    P = None if program.P is None else program.P.at(theta)
    q, d, A, b = (part.at(theta) for part in (program.q, program.d, program.A, program.b))
    x, z, value = solve(P, q, A, b, program.cones)
    return x, z, value + d[0]


def users_value(program, value):
    value = -value if program.maximize else value
    return np.exp(value) if program.gp else value


def assign(parameters, values):
    for parameter, value in zip(parameters, values, strict=True):
        if parameter.sparse_idx is None:
            parameter.value = value
        else:
            entries = value[parameter.sparse_idx]
            parameter.value_sparse = sp.coo_array(
                (entries, parameter.sparse_idx), shape=parameter.shape
            )


def value_of(variable):
    value = variable.value if variable.sparse_idx is None else variable.value_sparse
    value = value.toarray() if sp.issparse(value) else np.asarray(value)
    # Of single cones and matrices cvxpy returns duals with an axis more than the variable has.
    return value.reshape(variable.shape)


def solve_by_cvxpy(case):
    """The value of the problem, and the values of the variables."""
    assign(case.parameters, case.values)
    dimensions = [variable.ndim for variable in case.problem.variables()]
    # Above matrices cvxpy warns that it takes another backend than the default.
    backend = "SCIPY" if max(dimensions) > 2 else None
    value = case.problem.solve("CLARABEL", gp=case.gp, canon_backend=backend, **TOLERANCES)
    return value, [value_of(variable) for variable in case.variables]


def canonical(case):
    return canonicalise(case.problem, case.parameters, case.variables, gp=case.gp)
