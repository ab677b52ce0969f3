"""check_layer finds what is wrong with a layer, and says what."""

import pytest
import torch
from torch import nn

from optlayers.testing import check_layer

X = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64)


class Cube(torch.autograd.Function):
    """x^3, right in every respect; the broken ones below change one thing each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


class WrongBackward(Cube):
    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] ** 2 * g


class OnceDifferentiable(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class DetachedBackward(Cube):
    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * g


class WrongJvp(Cube):
    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] ** 2 * tangent


class NoTangent(Cube):
    @staticmethod
    def jvp(ctx, tangent):
        return torch.zeros_like(tangent)


@torch.library.custom_op("optlayers_tests::cube", mutates_args=())
def cube_op(x: torch.Tensor) -> torch.Tensor:
    return x**3


cube_op.register_fake(torch.empty_like)
cube_op.register_autograd(
    lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class WrongVmap(Cube):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x):
        return WrongVmap.apply(x.flip(in_dims[0])), in_dims[0]


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Captured(nn.Module):
    """Its parameter gets no gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(X.clone())

    def forward(self, x):
        return x * self.weight.detach()


class Forgetful(Captured):
    """Its weight is no part of the state, so that a copy from the state differs."""

    def forward(self, x):
        return x * self.weight * self.scale

    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def __getstate__(self):
        return {**self.__dict__, "scale": 2.0}


def failures(layer, *inputs, **options):
    options.setdefault("compile", False)
    with pytest.raises(AssertionError) as caught:
        check_layer(layer, inputs or [X], **options)
    return str(caught.value)


def test_a_right_layer_passes():
    report = check_layer(lambda x, w: (torch.tanh(w @ x), x.sum()), [X, torch.outer(X, X)])
    assert not report.failures
    assert {"triple backward", "vmap(jacfwd(jacfwd))", "compile backward"} <= {
        check.name for check in report.checks
    }
    assert str(report).endswith(f"{len(report.checks)} of {len(report.checks)} hold")


@pytest.mark.parametrize(
    ("layer", "caught"),
    [
        (lambda x: x.detach() ** 3, ["backward", "gradcheck"]),
        (lambda x: x * x.detach() ** 2, ["backward", "gradcheck"]),
        (WrongBackward.apply, ["backward", "gradcheck", "jvp", "dot products"]),
        (OnceDifferentiable.apply, ["double backward", "hessian", "gradgradcheck"]),
        (DetachedBackward.apply, ["double backward", "gradgradcheck"]),
        (WrongJvp.apply, ["gradcheck forward", "jvp", "jacfwd", "hessian", "dot products"]),
        (NoTangent.apply, ["gradcheck forward", "jvp", "jacfwd", "jacfwd(jacfwd)", "vmap(jvp)"]),
        (cube_op, ["gradcheck forward", "jvp", "jacfwd", "grad"]),
        (WrongVmap.apply, ["vmap", "vmap over other dimensions", "grad of vmap"]),
        (Noisy(), ["value", "no_grad", "inference_mode"]),
        (lambda x: x.mul_(1.0) + x.add_(1e-3), ["inputs unmodified"]),
        (lambda x: x * x.sum().item(), ["backward", "vmap"]),
        (Captured(), ["backward"]),
        (Forgetful(), ["pickle", "deepcopy"]),
    ],
    ids=[
        "detached", "half detached", "wrong backward", "once differentiable", "detached backward",
        "wrong jvp", "zero jvp", "no jvp", "wrong vmap", "noisy", "in place", "number", "captured",
        "forgetful",
    ],
)  # fmt: skip
def test_a_broken_layer_is_caught(layer, caught):
    text = failures(layer)
    named = {line[:34].strip() for line in text.splitlines()[1:]}
    assert set(caught) <= {name.strip() for name in named}
