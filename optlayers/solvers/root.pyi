from solvers.root import *
