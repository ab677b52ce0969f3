"""Quadratic programs."""

from .quadratic_program import QuadraticProgram

__all__ = ["QuadraticProgram"]
