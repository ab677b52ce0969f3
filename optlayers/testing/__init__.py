"""Checks for a layer of your own: values, derivatives of every order, and torch's transforms."""

from .layer import check_layer
from .report import Check, Report

__all__ = ["Check", "Report", "check_layer"]
