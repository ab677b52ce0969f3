"""Equilibria, hypergradients and curve fits, and their exact answers by nobody's layer.

Each problem is data as tensors, and a reference in float64 for exactly these data: where they are
rounded to float32, the reference is that of the rounded data.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Answer(NamedTuple):
    """What a layer should give: the solution, and the gradients of a loss of it."""

    x: Tensor
    gradients: tuple[Tensor, ...]


def normal(seed: int, *shape: int) -> Tensor:
    """Gaussian entries."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- equilibria -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equilibrium:
    r"""Rows :math:`z = \tanh(W z + u)`; the loss is ``(z * weight).sum()``."""

    W: Tensor
    u: Tensor
    weight: Tensor

    @classmethod
    def random(
        cls, d: int, batch: int, dtype: torch.dtype, lipschitz: float, *, slow: bool = False
    ) -> "Equilibrium":
        """A Gaussian matrix scaled to a spectral norm, its spectral radius being half as large.

        With ``slow`` it is symmetric, so that the radius is the norm, and the inputs are small, so
        that tanh has a slope of about one.
        """
        W, u = normal(0, d, d), normal(1, batch, d)
        if slow:
            W, u = W + W.mT, 0.01 * u
        W = W * (lipschitz / torch.linalg.matrix_norm(W, 2))
        return cls(*(t.to(dtype) for t in (W, u, normal(2, batch, d))))

    def radius(self) -> float:
        """Spectral radius of the map's Jacobian at the first sample's equilibrium."""
        z = self.answer().x[0]
        return float(torch.linalg.eigvals((1 - z * z)[:, None] * self.W.double()).abs().max())

    def residual(self, z: Tensor) -> float:
        """Largest length of f(z) - z relative to z over the samples."""
        z, W, u = z.detach().double(), self.W.double(), self.u.double()
        change = torch.tanh(z @ W.mT + u) - z
        return float((change.norm(dim=-1) / z.norm(dim=-1)).max())

    def answer(self) -> Answer:
        """By plain iteration in float64 until nothing changes, forward and backward."""
        W, u, weight = self.W.double(), self.u.double(), self.weight.double()
        z, pulled = torch.zeros_like(u), weight
        for _ in range(10_000):
            z, before = torch.tanh(z @ W.mT + u), z
            if (z - before).norm() <= 1e-15 * z.norm():
                break
        slope = 1 - z * z
        for _ in range(10_000):
            pulled, before = weight + (slope * pulled) @ W, pulled
            if (pulled - before).norm() <= 1e-15 * pulled.norm():
                break
        inner = slope * pulled
        return Answer(z, (inner.mT @ z, inner))


def slow_linear_map(d: int, largest: float) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with eigenvalues spread evenly from zero, and an offset."""
    Q = torch.linalg.qr(normal(3, d, d))[0]
    spread = torch.linspace(0, largest, d, dtype=torch.float64)
    return (Q * spread) @ Q.mT, normal(4, d)


# --- hypergradients -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regression:
    r"""Linear models with a penalty per feature, and the loss on validation data.

    Training minimises :math:`\ell(X w, y) + \frac12 \sum_j \lambda_j w_j^2`, where :math:`\ell` is
    a mean over rows: half the squared errors, or the logistic loss of labels 1 and -1.
    """

    logistic: bool
    X: Tensor
    y: Tensor
    X_validation: Tensor
    y_validation: Tensor
    penalty: Tensor

    @classmethod
    def random(cls, logistic: bool, dtype: torch.dtype, n: int = 500, d: int = 100) -> "Regression":
        """Targets are a linear model's with noise, or their signs."""
        X, X_validation, w = normal(0, n, d), normal(1, n, d), normal(2, d) / d**0.5
        y, y_validation = X @ w + 0.5 * normal(3, n), X_validation @ w + 0.5 * normal(4, n)
        if logistic:
            y, y_validation = y.sign(), y_validation.sign()
        penalty = 0.05 * torch.exp(normal(5, d))
        tensors = (X, y, X_validation, y_validation, penalty)
        return cls(logistic, *(t.to(dtype) for t in tensors))

    def loss(self, w: Tensor, X: Tensor, y: Tensor) -> Tensor:
        """The mean over rows."""
        predicted = X @ w
        if self.logistic:
            return softplus(-y * predicted).mean()
        return 0.5 * (predicted - y).square().mean()

    def training(self, w: Tensor, penalty: Tensor) -> Tensor:
        """What is minimised."""
        return self.loss(w, self.X, self.y) + 0.5 * (penalty * w.square()).sum()

    def validation(self, w: Tensor) -> Tensor:
        """What is differentiated."""
        return self.loss(w, self.X_validation, self.y_validation)

    def answer(self) -> Answer:
        """By Newton's method with written out derivatives, and a dense solve."""
        X, y, Xv, yv, penalty = (
            t.detach().double()
            for t in (self.X, self.y, self.X_validation, self.y_validation, self.penalty)
        )
        w = torch.zeros_like(penalty)
        for _ in range(30):
            slope, bend = self._derivatives(X @ w, y)
            H = X.mT @ (bend[:, None] * X) / len(y) + torch.diag(penalty)
            step = torch.linalg.solve(H, X.mT @ slope / len(y) + penalty * w)
            w = w - step
            if step.norm() <= 1e-15 * w.norm():
                break
        of_validation = Xv.mT @ self._derivatives(Xv @ w, yv)[0] / len(yv)
        return Answer(w, (-torch.linalg.solve(H, of_validation) * w,))

    def _derivatives(self, predicted: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.logistic:
            wrong = torch.sigmoid(-y * predicted)
            return -y * wrong, wrong * (1 - wrong)
        return predicted - y, torch.ones_like(y)


# --- curve fits -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    r"""Noisy samples of curves :math:`a e^{-k t} + c`, and starts far from a, k, c.

    The loss of the fitted parameters is ``(x * weight).sum()``, differentiated in the samples.
    """

    t: Tensor
    y: Tensor
    start: Tensor
    weight: Tensor
    truth: Tensor

    @classmethod
    def random(cls, curves: int = 128, points: int = 50) -> "Curves":
        """Every curve has decayed to a good part by its last point."""
        generator = torch.Generator().manual_seed(0)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(curves, generator=generator, dtype=torch.float64)

        truth = torch.stack([uniform(1, 3), uniform(0.5, 2), uniform(-0.5, 0.5)], -1)
        start = torch.stack([uniform(0, 5), uniform(0, 5), uniform(-1, 1)], -1)
        t = torch.linspace(0, 4, points, dtype=torch.float64)
        y = cls.curve(truth, t) + 0.02 * normal(1, curves, points)
        return cls(t, y, start, normal(2, curves, 3), truth)

    @staticmethod
    def curve(x: Tensor, t: Tensor) -> Tensor:
        """Curves with parameters ``(..., 3)`` at ``t``."""
        a, k, c = (p[..., None] for p in x.unbind(-1))
        return a * torch.exp(-k * t) + c

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """What the fit leaves of the samples."""
        return self.curve(x, self.t) - y

    def answer(self) -> Answer:
        """By Newton's method from the truth with written out derivatives, and a dense solve."""
        x = self.truth
        for _ in range(50):
            J, H, gradient = self._derivatives(x)
            step = torch.linalg.solve(H, gradient[..., None])[..., 0]
            x = x - step
            if step.norm() <= 1e-14 * x.norm():
                break
        solved = torch.linalg.solve(H, self.weight[..., None])
        return Answer(x, ((J @ solved)[..., 0],))

    def _derivatives(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Jacobians, Hessians with all second derivatives, gradients."""
        a, k, _ = (p[:, None] for p in x.unbind(-1))
        decay = torch.exp(-k * self.t)
        J = torch.stack([decay, -a * self.t * decay, torch.ones_like(decay)], -1)
        r = self.residual(x, self.y)
        H = J.mT @ J
        mixed = (r * -self.t * decay).sum(-1)
        H[:, 0, 1] += mixed
        H[:, 1, 0] += mixed
        H[:, 1, 1] += (r * a * self.t.square() * decay).sum(-1)
        return J, H, (J.mT @ r[..., None])[..., 0]
