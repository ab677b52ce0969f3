from solvers.cone import *
