"""Makes `optlayers.solvers` another name for the top-level package `solvers`.

Both names give the very same modules, `optlayers.solvers.qp` and `solvers.qp` for example: with two
copies of a class, `isinstance` would be false for half of its instances.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

ALIAS = "optlayers.solvers"


def refuse_a_shadow() -> None:
    """Check that `import solvers` gives the package installed along with this one.

    It is looked up without being run: a user's `solvers.py` that imports optlayers would otherwise
    import itself.

    Raises:
        ImportError: If a file or folder of the same name comes first, or the package is missing.
    """
    if "solvers" in sys.modules:
        found = getattr(sys.modules["solvers"], "__file__", None) or "a module made by hand"
    else:
        spec = find_spec("solvers")
        if spec is None or spec.origin is None:
            raise ImportError(
                "optlayers: the package `solvers`, a part of it, is missing; reinstall optlayers."
            )
        found = spec.origin

    path, expected = Path(found), Path(__file__).resolve().parent.parent / "solvers"
    if path.resolve().parent != expected:
        kind, path = ("folder", path.parent) if path.stem == "__init__" else ("file", path)
        raise ImportError(
            f"optlayers: {path} hides the package `solvers`, a part of optlayers; "
            f"give your {kind} another name."
        )


class _AliasFinder(MetaPathFinder, Loader):
    """Answers the import of `optlayers.solvers...` with the module `solvers...`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != ALIAS and not fullname.startswith(f"{ALIAS}."):
            return None
        # None for a module that does not exist: Python then raises with the name the user wrote.
        return ModuleSpec(fullname, self) if find_spec(_real_name(fullname)) else None

    def exec_module(self, module: ModuleType) -> None:
        # An import gives whatever stands in sys.modules when the module has been run.
        sys.modules[module.__name__] = import_module(_real_name(module.__name__))


def _real_name(fullname: str) -> str:
    return fullname.removeprefix("optlayers.")


refuse_a_shadow()
sys.meta_path.insert(0, _AliasFinder())

from . import solvers as solvers  # noqa: E402 (it cannot be found before)
