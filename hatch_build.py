"""Compile ``solvers/c`` while the package is built, where there is a C compiler.

Without one the package is complete, and slower where problems are small.
"""

import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "solvers/c"
LIBRARY = f"{SOURCES}/native.so"
# Sums may be reordered; NaN and infinity keep their meaning.
FLAGS = "-O3 -std=gnu11 -fPIC -fno-math-errno -fno-trapping-math -fassociative-math"
FLAGS += " -fno-signed-zeros -Wno-psabi"
# The same code for the processors of a family: the library chooses when it runs.
LEVELS = {"avx512": "-march=skylake-avx512", "avx2": "-march=haswell", "base": ""}


class Compile(BuildHookInterface):  # type: ignore[type-arg]
    """Put the library beside its sources, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel with the library is for this platform, without it for all."""
        try:
            compile_library(Path(self.root))
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"No C compiler that can do it, so without {LIBRARY}: {error}")
            with suppress(OSError):  # a checkout that may not be written to
                (Path(self.root) / LIBRARY).unlink(missing_ok=True)
            return
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"
        build_data["pure_python"] = False
        build_data["artifacts"].append(LIBRARY)


def compile_library(root: Path) -> None:
    """Compile each version of the code at the same time, then put them together."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    sources = root / SOURCES
    many = platform.machine().lower() in ("x86_64", "amd64")
    levels = LEVELS if many else {"base": ""}
    with tempfile.TemporaryDirectory() as folder:
        objects, running = [], []
        for level, option in levels.items():
            objects.append(f"{folder}/{level}.o")
            command = [*compiler, *FLAGS.split(), *option.split(), f"-DLEVEL={level}", "-c"]
            command += [str(sources / "qp.c"), "-o", objects[-1]]
            running.append((command, subprocess.Popen(command)))
        for command, process in running:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, command)
        # A new file in its place: processes that have the old one loaded keep it.
        made = sources / f"native.{os.getpid()}.so"
        define = ["-DWITH_LEVELS"] if many else []
        command = [*compiler, *FLAGS.split(), *define, "-shared"]
        command += [str(sources / f"{part}.c") for part in ("dispatch", "steps", "systems")]
        command += objects
        subprocess.run([*command, "-o", str(made), "-lm"], check=True)
        made.replace(root / LIBRARY)
