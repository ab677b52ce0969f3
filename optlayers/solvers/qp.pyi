from solvers.qp import *
