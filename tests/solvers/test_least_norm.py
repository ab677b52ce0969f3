import pytest
import torch

from solvers._threads import calm
from solvers.least_norm import least_norm


def singular(batch: int, n: int, seed: int) -> torch.Tensor:
    """Symmetric and indefinite, of every rank down to zero."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(batch, n, n, generator=generator, dtype=torch.float64))
    values = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    values = values.sign() * (0.5 + values.abs())
    ranks = torch.arange(batch)[:, None] % (n + 1)
    values = values * (torch.arange(n) < ranks)
    return Q @ (values[..., None] * Q.mT)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_it_is_what_the_pseudoinverse_gives(n):
    K = singular(2 * n + 3, n, n)
    K = 0.5 * (K + K.mT)
    right = torch.randn(len(K), n, 2, dtype=torch.float64)
    expected = torch.linalg.pinv(K, hermitian=True, rtol=1e-10) @ right
    torch.testing.assert_close(least_norm(K, right), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n", [3, 7, 12, 23, 33])
def test_each_is_solved_as_if_it_were_alone(n):
    K = singular(20, n, n)
    K[::3] = 0.5 * (K[::3] + K[::3].mT)
    right = torch.randn(len(K), n, 1, dtype=torch.float64)
    with calm():
        whole = least_norm(K, right)
        for i in range(len(K)):
            assert torch.equal(least_norm(K[i : i + 1], right[i : i + 1])[0], whole[i])
        some = torch.tensor([17, 3, 4, 11])
        assert torch.equal(least_norm(K[some], right[some]), whole[some])


def test_scales_far_from_one():
    K = torch.tensor([[[1e12, 0.0, 0.0], [0.0, 1e-8, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    right = torch.tensor([[[1e12], [2e-8], [0.0]]], dtype=torch.float64)
    expected = torch.tensor([[[1.0], [2.0], [0.0]]], dtype=torch.float64)
    torch.testing.assert_close(least_norm(K, right), expected)
