/* The entry points, in the best version that this processor can run. */

#include <stdint.h>

typedef void Work(void *);

/* What the structures look like; _native.py asks whether it knows them. */
int64_t optlayers_interface(void) { return 9; }

extern Work optlayers_qp_solve_base, optlayers_qp_adjoint_base;

#ifdef WITH_LEVELS
extern Work optlayers_qp_solve_avx2, optlayers_qp_solve_avx512;
extern Work optlayers_qp_adjoint_avx2, optlayers_qp_adjoint_avx512;

static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512cd");
}

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

#define BEST(name) (has_avx512() ? name##_avx512 : has_avx2() ? name##_avx2 : name##_base)
#else
#define BEST(name) name##_base
#endif

void optlayers_qp_solve(void *job) { BEST(optlayers_qp_solve)(job); }

void optlayers_qp_adjoint(void *job) { BEST(optlayers_qp_adjoint)(job); }
