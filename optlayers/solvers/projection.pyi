from solvers.projection import *
