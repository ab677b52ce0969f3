from solvers.minimize import *
