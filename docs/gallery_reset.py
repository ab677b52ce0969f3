"""What one example of the gallery sets does not reach the next: they share a process."""

import os
from typing import Any


def reset(gallery_conf: dict[str, Any], fname: str) -> None:
    """Give torch its own settings again."""
    import torch

    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(os.cpu_count() or 1)
