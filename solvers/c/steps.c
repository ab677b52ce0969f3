/* What became of every sample in a step of an iterative method: see iteration.py.

   A step moves some numbers a sample, and Python would take longer to look at them than it takes to
   move them. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum { SOLVED, SOLVED_INACCURATE, MAX_ITERATIONS, NUMERICAL_ERROR = 5 };

/* Words of eight bytes, all of them. */
typedef struct {
    /* The method's next step. */
    const void *x, *start;          /* (count, n) both; start, or NULL where errors are given */
    const void *error, *scale;      /* (count), or NULL: |x - start|; (count), or NULL: |x| */
    int64_t k;                      /* its number; counted on here */
    /* What came of it. */
    int64_t better;                 /* samples that are better than before */
    int64_t left;                   /* samples that go on */
    int64_t slow;                   /* those of them that are not fast */
    /* What has been so far. */
    double *last_error, *best_error, *best_ratio, *ratio_before;
    int64_t *iterations, *status;
    uint8_t *running, *is_better, *fast;  /* fast: with an error that halved at every step */
    /* What does not change. */
    int64_t count, n, is_single, keeps_last, patience, max_iter;
    double eps_abs, eps_rel, tiny, loose, least_progress;
} Step;

static double at(const void *numbers, int64_t i, int64_t is_single) {
    return is_single ? ((const float *)numbers)[i] : ((const double *)numbers)[i];
}

/* From x to start, or to zero if that is NULL. The order of the sum does not depend on where in
   memory the numbers are. */
#define DISTANCE(name, Number)                                                     \
    static double name(const Number *x, const Number *start, int64_t n) {          \
        double sums[8] = {0};                                                      \
        int64_t i = 0;                                                             \
        for (; i + 8 <= n; i += 8)                                                 \
            for (int j = 0; j < 8; j++) {                                          \
                double step = x[i + j] - (start ? (double)start[i + j] : 0.0);     \
                sums[j] += step * step;                                            \
            }                                                                      \
        for (; i < n; i++) {                                                       \
            double step = x[i] - (start ? (double)start[i] : 0.0);                 \
            sums[0] += step * step;                                                \
        }                                                                          \
        for (int j = 1; j < 8; j++)                                                \
            sums[0] += sums[j];                                                    \
        return sqrt(sums[0]);                                                      \
    }
DISTANCE(distance_of_singles, float)
DISTANCE(distance_of_doubles, double)

/* The same of a sample. */
static double distance(const Step *s, const void *start, int64_t i) {
    int64_t from = i * s->n;
    if (s->is_single)
        return distance_of_singles((const float *)s->x + from,
                                   start ? (const float *)start + from : NULL, s->n);
    return distance_of_doubles((const double *)s->x + from,
                               start ? (const double *)start + from : NULL, s->n);
}

static void begin(Step *s) {
    for (int64_t i = 0; i < s->count; i++) {
        s->last_error[i] = s->best_error[i] = INFINITY;
        s->best_ratio[i] = s->ratio_before[i] = INFINITY;
        s->iterations[i] = 0;
        s->status[i] = MAX_ITERATIONS;
        s->running[i] = s->fast[i] = 1;
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
    s->better = s->left = s->slow = 0;
    for (int64_t i = 0; i < s->count; i++) {
        s->is_better[i] = 0;
        if (!s->running[i])
            continue;
        double scale = s->scale ? at(s->scale, i, s->is_single) : distance(s, NULL, i);
        double tolerance = s->eps_abs + s->eps_rel * scale;
        double error = s->error ? at(s->error, i, s->is_single) : distance(s, s->start, i);
        s->fast[i] = s->fast[i] && error < 0.5 * s->last_error[i];
        s->last_error[i] = error;
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
            s->slow += !s->fast[i];
            continue;
        }
        int64_t failed = isnan(error) ? NUMERICAL_ERROR : MAX_ITERATIONS;
        s->status[i] = has_arrived                      ? SOLVED
                       : s->best_ratio[i] <= s->loose ? SOLVED_INACCURATE
                                                      : failed;
    }
    s->k++;
}
