/* The entry points, in the best version that this processor can run. */

#include <stdint.h>

typedef int64_t Solve(const void *, const void *, int64_t, int64_t, double, double);
typedef int64_t Adjoint(const void *, const void *, int64_t, int64_t);

/* What the structures of qp.c look like; native.py asks whether it knows them. */
int64_t optlayers_qp_interface(void) { return 2; }

extern Solve optlayers_qp_solve_base;
extern Adjoint optlayers_qp_adjoint_base;

#ifdef WITH_LEVELS
extern Solve optlayers_qp_solve_avx2, optlayers_qp_solve_avx512;
extern Adjoint optlayers_qp_adjoint_avx2, optlayers_qp_adjoint_avx512;

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

int64_t optlayers_qp_solve(
    const void *data, const void *out, int64_t low, int64_t high, double eps_abs, double eps_rel
) {
    return BEST(optlayers_qp_solve)(data, out, low, high, eps_abs, eps_rel);
}

int64_t optlayers_qp_adjoint(const void *data, const void *task, int64_t low, int64_t high) {
    return BEST(optlayers_qp_adjoint)(data, task, low, high);
}
