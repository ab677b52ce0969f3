"""Matrices that drive the tests of all linear solvers."""

import torch

from optlayers.solvers.linear import (
    CG,
    GMRES,
    LSMR,
    LU,
    MINRES,
    QR,
    BiCGSTAB,
    Cholesky,
    NeumannSeries,
)

DIRECT = [Cholesky(), LU(), QR()]
ITERATIVE = [CG(), MINRES(), GMRES(), BiCGSTAB(), LSMR(), NeumannSeries()]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def symmetric(eigenvalues, batch=3, seed=0):
    """Matrices ``(batch, n, n)`` with these eigenvalues and eigenvectors in no special position."""
    d = torch.as_tensor(eigenvalues, dtype=torch.float64)
    Q = torch.linalg.qr(random(batch, len(d), len(d), seed=seed))[0]
    A = (Q * d) @ Q.mT
    return (A + A.mT) / 2


def nonsymmetric(n, batch=3, seed=0):
    return 3 * torch.eye(n, dtype=torch.float64) + random(batch, n, n, seed=seed) / n**0.5


def near_identity(n, radius, batch=3, seed=0):
    """Matrices ``I - S`` where the largest eigenvalue of ``S`` in magnitude is ``radius``."""
    d = torch.linspace(-radius / 2, radius, n, dtype=torch.float64)
    return torch.eye(n, dtype=torch.float64) - symmetric(d, batch, seed)


ANY_SQUARE = (LU(), QR(), GMRES(), BiCGSTAB(), LSMR())
SYMMETRIC = (*ANY_SQUARE, MINRES())
DEFINITE = (*SYMMETRIC, Cholesky(), CG())
ANY_SHAPE = (QR(), LSMR())
ONE_TO_TEN = torch.linspace(1.0, 10.0, 12)

# Name, matrices (B, m, n), solvers that apply, relative error of x that they may leave.
SYSTEMS = [
    ("definite", symmetric(ONE_TO_TEN), DEFINITE, 1e-8),
    ("indefinite", symmetric(ONE_TO_TEN * (-1) ** torch.arange(12)), SYMMETRIC, 1e-8),
    ("nonsymmetric", nonsymmetric(12), ANY_SQUARE, 1e-8),
    ("condition 1e6", symmetric(torch.logspace(0, -6, 6)), DEFINITE, 1e-3),
    ("diagonal", torch.diag_embed(random(3, 8).abs() + 1), DEFINITE, 1e-8),
    (
        "identity",
        torch.eye(5, dtype=torch.float64).repeat(3, 1, 1),
        (*DEFINITE, NeumannSeries()),
        1e-15,
    ),
    ("one by one", torch.tensor([[[2.0]], [[0.5]], [[1e3]]]).double(), DEFINITE, 1e-14),
    ("negative", -symmetric(ONE_TO_TEN), SYMMETRIC, 1e-8),
    ("contraction", near_identity(6, 0.5), (*DEFINITE, NeumannSeries()), 1e-8),
    ("tall", random(3, 9, 4), ANY_SHAPE, 1e-8),
    ("wide", random(3, 4, 9), ANY_SHAPE, 1e-8),
    ("row", random(3, 1, 5), ANY_SHAPE, 1e-8),
    ("column", random(3, 5, 1), ANY_SHAPE, 1e-8),
]
CASES = [(name, A, solver, rtol) for name, A, solvers, rtol in SYSTEMS for solver in solvers]
IDS = [f"{type(solver).__name__}-{name}" for name, _, solver, _ in CASES]


def matrix_for(solver, n=6, batch=3, seed=0):
    """Matrices that this solver takes, as little special as it allows."""
    if isinstance(solver, (Cholesky, CG)):
        return symmetric(torch.linspace(1.0, 10.0, n), batch, seed)
    if isinstance(solver, MINRES):
        return symmetric(torch.linspace(1.0, 10.0, n) * (-1) ** torch.arange(n), batch, seed)
    if isinstance(solver, NeumannSeries):
        return near_identity(n, 0.5, batch, seed)
    return nonsymmetric(n, batch, seed)


def name_of(solver):
    return type(solver).__name__
