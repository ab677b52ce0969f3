from solvers.linear import *
