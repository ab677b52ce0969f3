"""What the compiler leaves alone; imported when it is there, since telling it so loads it."""

import torch

from .find import find

# Modules get other parameters while they are called, which the compiler cannot follow.
find_uncompiled = torch.compiler.disable(
    find,
    reason="optlayers: with a module among the parameters this runs uncompiled, which needs "
    "fullgraph=False. Or pass its tensors, and call it by torch.func.functional_call.",
)
