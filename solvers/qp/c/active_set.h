/* Which rows are active: a dual active-set method on the Gram matrix of the rows.

   With P = L L', u = L' x + L^-1 q and M the rows of C L^-T at unit length, a strictly convex
   program asks for the shortest u with lower <= M u <= upper; u = -M' l for multipliers l that are
   zero but on the active rows, and there H_aa l = -ends for H = M M'. All but H lives in the space
   of rows. The iterates are dual feasible: multipliers have their signs, rows may be violated; the
   row that is violated most is added, a row whose multiplier would change its sign is dropped.

   References: Goldfarb and Idnani, A numerically stable dual method for solving strictly convex
   quadratic programs, Mathematical Programming 27 (1983), section 3; Arnstrom, Bemporad and
   Axehill, A dual active-set solver for embedded quadratic programming using recursive LDL'
   updates, IEEE Trans. Automatic Control 67 (2022), algorithm 1. */

#ifndef OPTLAYERS_ACTIVE_SET_H
#define OPTLAYERS_ACTIVE_SET_H

#include "panels.h"

/* A unit row whose squared distance to the span of the active ones is less depends on them. */
#define DEPENDENT 1e-11
/* What a multiplier may have of the wrong sign, relative to the largest, for its rounding. */
#define WRONG_SIGN 1e-13

typedef struct {
    /* What is given. `rows` is a multiple of eight; rows that fill up have infinite ends. */
    long rows, n, most;          /* at most `most` rows are active at once */
    const double *M, *H;         /* unit rows in panels; their Gram matrix, row by row, or NULL */
    const double *center;        /* values of the rows where nothing is active: -M L^-1 q */
    double *upper, *lower;       /* ends; infinite for the rows that are active */
    double tolerance;            /* violations up to this are none */
    /* The active set: the first `fixed` rows, equalities, have multipliers of any sign. */
    long count, fixed;
    long *row;
    double *sign, *high, *low;   /* the side, and the row's ends */
    double *now;                 /* the multipliers l */
    /* R'R = H_aa with stride `most`, the inverses of its diagonal, y = R'^-1 (center - ends). */
    double *R, *inverse, *y;
    double *candidate, *column;  /* room for `most` */
    double *values, *u;          /* room for `rows` and `n` */
} ActiveSet;

/* The values M u of all rows at the multipliers. */
INLINE void evaluate(ActiveSet *s) {
    double *values = s->values;
    if (!s->H) {
        memset(values, 0, s->rows * sizeof *values);
        for (long i = 0; i < s->count; i++) values[s->row[i]] = s->now[i];
        multiply_transposed(s->u, s->M, values, s->rows, s->n);
        multiply(values, s->M, s->u, s->rows, s->n);
        for (long i = 0; i < s->rows; i++) values[i] = s->center[i] - values[i];
        return;
    }
    for (long i = 0; i < s->rows; i += WIDTH) {
        vec acc = load(s->center + i), other = {0.0};
        const double *H = s->H + i;
        long k = 0;
        for (; k + 2 <= s->count; k += 2) {
            acc -= load(H + s->row[k] * s->rows) * s->now[k];
            other -= load(H + s->row[k + 1] * s->rows) * s->now[k + 1];
        }
        for (; k < s->count; k++) acc -= load(H + s->row[k] * s->rows) * s->now[k];
        store(values + i, acc + other);
    }
}

/* b := R'^-1 b, of the first `count` rows. */
INLINE void solve_R_transposed(const ActiveSet *s, double *b, long count) {
    for (long i = 0; i < count; i++) {
        const double *R = s->R + i * s->most;
        double found = b[i] *= s->inverse[i];
        for (long j = i + 1; j < count; j++) b[j] -= found * R[j];
    }
}

/* b := R^-1 b. */
INLINE void solve_R(const ActiveSet *s, double *b, long count) {
    for (long i = count - 1; i >= 0; i--) {
        const double *R = s->R + i * s->most;
        double acc = 0.0;
        for (long j = i + 1; j < count; j++) acc += R[j] * b[j];
        b[i] = (b[i] - acc) * s->inverse[i];
    }
}

/* R'^-1 H_aj for a row j, left in `column`; returns the squared distance to the active rows. */
INLINE double project(ActiveSet *s, long j) {
    double square;
    if (s->H) {
        const double *H = s->H + j * s->rows;
        for (long i = 0; i < s->count; i++) s->column[i] = H[s->row[i]];
        square = H[j];
    } else {
        const double *M = s->M + j / WIDTH * WIDTH * s->n + j % WIDTH;
        for (long k = 0; k < s->n; k++) s->u[k] = M[k * WIDTH];
        multiply(s->values, s->M, s->u, s->rows, s->n);
        for (long i = 0; i < s->count; i++) s->column[i] = s->values[s->row[i]];
        square = s->values[j];
    }
    solve_R_transposed(s, s->column, s->count);
    double along = 0.0;
    for (long i = 0; i < s->count; i++) along += s->column[i] * s->column[i];
    return square - along;
}

/* Add a row that was projected, active at `end` with the multiplier `now`. */
INLINE void add(ActiveSet *s, long j, double sign, double distance, double end, double now) {
    long k = s->count++;
    double rest = s->center[j] - end;
    for (long i = 0; i < k; i++) {
        s->R[i * s->most + k] = s->column[i];
        rest -= s->column[i] * s->y[i];
    }
    s->R[k * s->most + k] = sqrt(distance);
    s->inverse[k] = 1.0 / s->R[k * s->most + k];
    s->y[k] = rest * s->inverse[k];
    s->row[k] = j, s->sign[k] = sign, s->now[k] = now;
    s->high[k] = s->upper[j], s->low[k] = s->lower[j];
    s->upper[j] = INFINITY, s->lower[j] = -INFINITY;
}

/* Drop the k-th active row: rotations make R triangular again. */
INLINE void drop(ActiveSet *s, long k) {
    s->upper[s->row[k]] = s->high[k], s->lower[s->row[k]] = s->low[k];
    long last = --s->count, stride = s->most;
    double *spike = s->column, of_y = s->y[k];
    for (long j = k; j < last; j++) {
        spike[j] = s->R[k * stride + j + 1];
        s->row[j] = s->row[j + 1], s->sign[j] = s->sign[j + 1], s->now[j] = s->now[j + 1];
        s->high[j] = s->high[j + 1], s->low[j] = s->low[j + 1];
    }
    for (long i = 0; i < k; i++)
        memmove(s->R + i * stride + k, s->R + i * stride + k + 1, (last - k) * sizeof *s->R);
    for (long i = k; i < last; i++) {
        double *to = s->R + i * stride, *from = to + stride + 1;
        double length = sqrt(from[i] * from[i] + spike[i] * spike[i]);
        double cosine = from[i] / length, sine = spike[i] / length, y = s->y[i + 1];
        for (long j = i; j < last; j++) {
            double moved = cosine * from[j] + sine * spike[j];
            spike[j] = cosine * spike[j] - sine * from[j];
            to[j] = moved;
        }
        s->inverse[i] = 1.0 / length;
        s->y[i] = cosine * y + sine * of_y;
        of_y = cosine * of_y - sine * y;
    }
}

/* The active inequality whose multiplier first reaches zero on the way now + t step, 0 <= t < limit,
   or -1; t is left in `limit`. */
INLINE long blocking(const ActiveSet *s, const double *step, double least, double *limit) {
    long found = -1;
    for (long i = s->fixed; i < s->count; i++)
        if (s->sign[i] * step[i] < -least) {
            double t = -s->now[i] / step[i];
            if (t < *limit) *limit = t, found = i;
        }
    return found;
}

/* Go from one active set to the next until no row is violated. Returns whether that came to pass:
   not where rows contradict each other, and not within `iterations`, which is set to those used. */
INLINE int walk(ActiveSet *s, long *iterations) {
    long most = *iterations;
    for (*iterations = 0; *iterations < most;) {
        ++*iterations;
        /* To where the active rows are met, or as far as the signs allow. */
        double *step = s->candidate, largest = 0.0, limit = 1.0;
        memcpy(step, s->y, s->count * sizeof *step);
        solve_R(s, step, s->count);
        for (long i = 0; i < s->count; i++) {
            double size = fabs(step[i]);
            largest = size > largest ? size : largest;
        }
        long dropped = -1;
        for (long i = s->fixed; i < s->count; i++)
            if (s->sign[i] * step[i] < -WRONG_SIGN * largest) {
                double t = s->now[i] / (s->now[i] - step[i]);
                if (t < limit) limit = t, dropped = i;
            }
        if (dropped >= 0) {
            for (long i = 0; i < s->count; i++) s->now[i] += limit * (step[i] - s->now[i]);
            drop(s, dropped);
            continue;
        }
        memcpy(s->now, step, s->count * sizeof *step);
        evaluate(s);
        double worst = s->tolerance;
        long j = -1;
        for (long i = 0; i < s->rows; i++) {
            double above = s->values[i] - s->upper[i], below = s->lower[i] - s->values[i];
            double violation = above > below ? above : below;
            if (violation > worst) worst = violation, j = i;
        }
        if (j < 0) return 1;
        double sign = s->values[j] > s->upper[j] ? 1.0 : -1.0, now = 0.0, distance;
        double end = sign > 0 ? s->upper[j] : s->lower[j];
        /* While the row depends on active ones its multiplier grows at their cost. */
        while ((distance = project(s, j)) <= DEPENDENT || s->count == s->most) {
            double *direction = s->candidate;
            limit = INFINITY;
            for (long i = 0; i < s->count; i++) direction[i] = -sign * s->column[i];
            solve_R(s, direction, s->count);
            dropped = blocking(s, direction, 1e-12, &limit);
            if (dropped < 0) return 0;
            for (long i = 0; i < s->count; i++) s->now[i] += limit * direction[i];
            now += limit * sign;
            drop(s, dropped);
        }
        add(s, j, sign, distance, end, now);
    }
    return 0;
}

#endif
