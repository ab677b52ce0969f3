"""The one place where the implicit function theorem lives."""

from .function import ImplicitProblem, solve_implicitly

__all__ = ["ImplicitProblem", "solve_implicitly"]
