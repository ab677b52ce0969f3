from solvers.fixed_point import *
