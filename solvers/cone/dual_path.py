"""What the cones without a central path of their dual say."""

from .cone import Number, is_positive


def refuse_central_path_of_dual(dual: bool, mu: Number, where: str) -> None:
    """Raise if a point of the central path is asked of a dual cone."""
    if dual and is_positive(mu):
        raise NotImplementedError(
            f"{where}: a dual cone has no central path here, because the conjugate of the barrier "
            f"has no closed form; got dual=True and mu = {mu}. Project with mu=0, or state the "
            "problem with the primal cone."
        )
