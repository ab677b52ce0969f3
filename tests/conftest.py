"""Settings for all tests."""

import os

# Two processes that both spin in OpenMP wait for each other; small problems gain nothing from it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
