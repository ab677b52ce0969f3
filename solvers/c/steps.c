/* What became of every sample in a step of an iterative method: see iteration.py.

   A step moves some numbers a sample, and Python would take longer to look at them than it takes to
   move them. */

#include <math.h>
#include <stdint.h>

enum { SOLVED, SOLVED_INACCURATE, MAX_ITERATIONS, NUMERICAL_ERROR = 5 };

/* Words of eight bytes, all of them. */
typedef struct {
    /* The method's next step. */
    const void *x, *error, *scale;  /* (count, n); (count); (count), or NULL for the norm of x */
    int64_t k;                      /* its number; counted on here */
    /* What came of it. */
    int64_t better;                 /* samples that are better than before */
    int64_t left;                   /* samples that go on */
    /* What has been so far. */
    double *best_error, *best_ratio, *ratio_before;
    int64_t *iterations, *status;
    uint8_t *running, *is_better;
    /* What does not change. */
    int64_t count, n, is_single, keeps_last, patience, max_iter;
    double eps_abs, eps_rel, tiny, loose, least_progress;
} Step;

static double at(const void *numbers, int64_t i, int64_t is_single) {
    return is_single ? ((const float *)numbers)[i] : ((const double *)numbers)[i];
}

#define LENGTH(name, Number)                                                 \
    static double name(const Number *x, int64_t n) {                         \
        double sums[8] = {0};                                                \
        int64_t i = 0;                                                       \
        for (; i + 8 <= n; i += 8)                                           \
            for (int j = 0; j < 8; j++)                                      \
                sums[j] += (double)x[i + j] * x[i + j];                      \
        for (; i < n; i++)                                                   \
            sums[0] += (double)x[i] * x[i];                                  \
        for (int j = 1; j < 8; j++)                                          \
            sums[0] += sums[j];                                              \
        return sqrt(sums[0]);                                                \
    }
LENGTH(length_of_singles, float)
LENGTH(length_of_doubles, double)

static double scale_of(const Step *s, int64_t i) {
    if (s->scale)
        return at(s->scale, i, s->is_single);
    return s->is_single ? length_of_singles((const float *)s->x + i * s->n, s->n)
                        : length_of_doubles((const double *)s->x + i * s->n, s->n);
}

static void begin(Step *s) {
    for (int64_t i = 0; i < s->count; i++) {
        s->best_error[i] = s->best_ratio[i] = s->ratio_before[i] = INFINITY;
        s->iterations[i] = 0;
        s->status[i] = MAX_ITERATIONS;
        s->running[i] = 1;
    }
}

/* Who made no progress for a while, near the tolerance. */
static int is_stuck(const Step *s, int64_t i) {
    return s->best_ratio[i] > s->least_progress * s->ratio_before[i] &&
           s->best_ratio[i] <= s->loose;
}

void optlayers_step(Step *s) {
    if (s->k == 0)
        begin(s);
    int looks_back = s->patience > 0 && s->k % s->patience == s->patience - 1;
    int is_last = s->k == s->max_iter;
    s->better = s->left = 0;
    for (int64_t i = 0; i < s->count; i++) {
        s->is_better[i] = 0;
        if (!s->running[i])
            continue;
        double tolerance = s->eps_abs + s->eps_rel * scale_of(s, i);
        double error = at(s->error, i, s->is_single);
        double ratio = error / (tolerance > s->tiny ? tolerance : s->tiny);
        int is_finite = isfinite(error) && isfinite(tolerance);  /* the norm may overflow */
        int has_arrived = is_finite && error <= tolerance;
        if (is_finite && (s->keeps_last || ratio < s->best_ratio[i])) {
            s->is_better[i] = 1;
            s->better++;
            s->best_error[i] = error;
            s->best_ratio[i] = ratio;
        }
        s->running[i] = !(has_arrived || isnan(error));
        if (looks_back) {
            s->running[i] = s->running[i] && !is_stuck(s, i);
            s->ratio_before[i] = s->best_ratio[i];
        }
        if (s->running[i] && !is_last) {
            s->iterations[i]++;
            s->left++;
            continue;
        }
        int64_t failed = isnan(error) ? NUMERICAL_ERROR : MAX_ITERATIONS;
        s->status[i] = has_arrived                      ? SOLVED
                       : s->best_ratio[i] <= s->loose ? SOLVED_INACCURATE
                                                      : failed;
    }
    s->k++;
}
