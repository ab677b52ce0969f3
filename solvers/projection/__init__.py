"""Projections onto sets and proximal operators in closed form, on the last dimension."""

from .projections import (
    project_affine,
    project_box,
    project_halfspace,
    project_hyperplane,
    project_l1_ball,
    project_l2_ball,
    project_nonnegative,
    project_simplex,
)
from .proximal import (
    prox_elastic_net,
    prox_group_lasso,
    prox_l1,
    prox_nonnegative_l1,
    prox_ridge,
)

__all__ = [
    "project_affine",
    "project_box",
    "project_halfspace",
    "project_hyperplane",
    "project_l1_ball",
    "project_l2_ball",
    "project_nonnegative",
    "project_simplex",
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_l1",
    "prox_nonnegative_l1",
    "prox_ridge",
]
