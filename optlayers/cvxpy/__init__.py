"""Convex problems written in cvxpy as differentiable layers."""

from .layer import CvxpyLayer

__all__ = ["CvxpyLayer"]
