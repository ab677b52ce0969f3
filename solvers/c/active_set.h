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
/* What is no part of a unit row in the span of others. */
#define ROUNDING 1e-12
/* What a multiplier may have of the wrong sign, relative to the largest, for its rounding. */
#define WRONG_SIGN 1e-13

typedef struct {
    /* What is given. Rows that fill up the last panel have infinite ends. */
    long rows, n, most;          /* at most `most` rows are active at once */
    long stride;                 /* `most`, filled up */
    const double *M, *H;         /* unit rows in panels; their Gram matrix, row by row, or NULL */
    const double *center;        /* values of the rows where nothing is active: -M L^-1 q */
    double *upper, *lower;       /* ends; infinite for the rows that are active */
    double tolerance;            /* violations up to this are none */
    /* The active set: the first `fixed` rows, equalities, have multipliers of any sign. */
    long count, fixed;
    long *row;
    double *sign, *high, *low;   /* the side, and the row's ends */
    double *now;                 /* the multipliers l */
    /* H_aa^-1 = T T' with T upper triangular, column by column and filled up with zeros;
       y = T' (center - ends), and T y, the multipliers for which all active rows are met. */
    double *T, *y, *goal;
    int factored;                /* whether T is the Cholesky factor of H_aa instead, in panels */
    double *inverse;             /* of the diagonal of that */
    double *direction, *column;  /* room for `stride` */
    /* What the active rows span, as an orthonormal basis: the rows of T' M_a, or with H their
       products with all rows, T' H_a, which say as much. One after the other, of length `span`.
       Where T is the Cholesky factor, nothing but room. */
    double *basis, *point;       /* point = basis' y, which is -u, or its products */
    const double *image;         /* a row, or its products, where `project` found them */
    long span;                   /* `n`, or with H `rows` */
    double *values, *u;          /* room for `rows` and `n` */
} ActiveSet;

/* to += scale * from, of vectors filled up with zeros. */
INLINE void add_multiple(double *to, double scale, const double *from, long size) {
    for (long i = 0; i < size; i += WIDTH) store(to + i, load(to + i) + load(from + i) * scale);
}

/* product = T' b, both filled up with zeros. */
INLINE void multiply_T_transposed(const ActiveSet *s, double *product, const double *b) {
    long size = padded(s->count);
    for (long j = 0; j < s->count; j++) product[j] = dot(s->T + j * s->stride, b, padded(j + 1));
    for (long j = s->count; j < size; j++) product[j] = 0.0;
}

/* product = T b. */
INLINE void multiply_T(const ActiveSet *s, double *product, const double *b) {
    combine(product, NULL, s->T, s->stride, NULL, b, s->count, padded(s->count));
}

INLINE void clear(ActiveSet *s) {
    double *filled[] = {s->goal, s->sign, s->now, s->y};
    for (int i = 0; i < 4; i++) memset(filled[i], 0, s->stride * sizeof *filled[i]);
    memset(s->point, 0, s->span * sizeof *s->point);
    s->count = s->fixed = s->factored = 0;
}

/* The values M u of all rows where the active ones are met; returns the row that violates its ends
   most, or -1 if none does by more than the tolerance. */
INLINE long evaluate(ActiveSet *s) {
    double *values = s->values;
    const double *products = s->H ? s->point : values;
    if (!s->H) multiply(values, s->M, s->point, s->rows, s->n);
    vec worst = spread(s->tolerance);
    mask where = {0};
    where -= 1;
    for (long i = 0; i < s->rows; i += WIDTH) {
        vec value = load(s->center + i) - load(products + i);
        store(values + i, value);
        vec violation = larger_number(value - load(s->upper + i), load(s->lower + i) - value);
        mask more = violation > worst, here = {0};
        worst = choose(more, violation, worst);
        where = ((here + i) & more) | (where & ~more);
    }
    double most = largest_number(worst);
    long found = -1;
    for (int c = WIDTH - 1; c >= 0; c--) /* no branch, which the processor could only guess */
        found = worst[c] == most ? where[c] + c : found;
    return most > s->tolerance ? found : -1;
}

/* A row j in terms of the basis, left in `column`; returns the squared distance to its span. */
INLINE double project(ActiveSet *s, long j) {
    double square;
    memset(s->column, 0, padded(s->count) * sizeof *s->column);
    if (s->H) {
        s->image = s->H + j * s->rows;
        for (long i = 0; i < s->count; i++) s->column[i] = s->basis[i * s->span + j];
        square = s->image[j];
    } else {
        unpack_row(s->u, s->M, s->n, j);
        s->image = s->u;
        for (long i = 0; i < s->count; i++) s->column[i] = dot(s->basis + i * s->span, s->u, s->n);
        square = dot(s->u, s->u, s->n);
    }
    return square - dot(s->column, s->column, padded(s->count));
}

/* Add a row that was projected, active at `end` with the multiplier `now`. */
INLINE void add(ActiveSet *s, long j, double sign, double distance, double end, double now) {
    long k = s->count, span = s->span;
    double *T = s->T + k * s->stride, *w = s->basis + k * span, *minus = s->column;
    double scale = 1.0 / sqrt(distance);
    double y = scale * (s->center[j] - end - dot(s->column, s->y, padded(k)));
    for (long i = 0; i < k; i++) minus[i] = -s->column[i];
    multiply_T(s, T, minus);
    for (long i = 0; i < k; i++) T[i] *= scale;
    memset(T + k, 0, (s->stride - k) * sizeof *T);
    T[k] = scale;
    combine(w, s->image, s->basis, span, NULL, minus, k, span);
    for (long i = 0; i < span; i += WIDTH) {
        vec unit = load(w + i) * scale;
        store(w + i, unit);
        store(s->point + i, load(s->point + i) + unit * y);
    }
    s->y[k] = y;
    add_multiple(s->goal, y, T, padded(k + 1));
    s->row[k] = j, s->sign[k] = sign, s->now[k] = now;
    s->high[k] = s->upper[j], s->low[k] = s->lower[j];
    s->upper[j] = INFINITY, s->lower[j] = -INFINITY;
    s->count++;
}

/* Add a row with the multiplier zero, unless it depends on the active ones. */
INLINE int add_if_independent(ActiveSet *s, long j, double sign, double end) {
    if (s->count == s->most) return 0;
    double distance = project(s, j);
    if (!(distance > DEPENDENT)) return 0;
    add(s, j, sign, distance, end, 0.0);
    return 1;
}

/* Factor H_aa at once for the rows in `row`; 0 where they depend on each other. For them multipliers
   can be solved for, but no row can come or go. */
INLINE int activate(ActiveSet *s, long count) {
    long n = s->n, size = padded(count);
    const long *rows = s->row;
    clear(s);
    for (long i = 0; !s->H && i < count; i++) unpack_row(s->basis + i * n, s->M, n, rows[i]);
    for (long i = 0; i < size; i++) {
        double *to = entry(s->T, size, i, 0);
        for (long k = 0; k < (i / WIDTH + 1) * WIDTH; k++) {
            double product = i == k;
            if (i < count && k < count)
                product = s->H ? s->H[rows[i] * s->rows + rows[k]]
                               : dot(s->basis + i * n, s->basis + k * n, n);
            to[k * WIDTH] = product;
        }
        s->column[i] = 1.0;
    }
    s->count = count, s->factored = 1;
    return cholesky(s->T, s->inverse, s->column, size, DEPENDENT);
}

/* H_aa^-1 b in place of b, which is filled up with zeros; `partial` has room for as many vectors. */
INLINE void solve_active(ActiveSet *s, double *b, double *partial) {
    if (s->factored) {
        solve_lower(b, s->T, s->inverse, padded(s->count));
        solve_upper(b, s->T, s->inverse, padded(s->count), partial);
    } else {
        multiply_T_transposed(s, s->column, b);
        multiply_T(s, b, s->column);
    }
}

/* Columns a and b of a matrix in terms of others, at an angle to them. */
INLINE void rotate(double *a, double *b, double cosine, double sine, long size) {
    for (long r = 0; r < size; r += WIDTH) {
        vec of_a = load(a + r), of_b = load(b + r);
        store(a + r, of_a * cosine - of_b * sine);
        store(b + r, of_b * cosine + of_a * sine);
    }
}

/* Drop the k-th active row: rotations of the columns of T leave its row of T one entry, in the last
   column, and both go. */
INLINE void drop(ActiveSet *s, long k) {
    s->upper[s->row[k]] = s->high[k], s->lower[s->row[k]] = s->low[k];
    long last = s->count - 1, stride = s->stride;
    for (long i = k; i < last; i++) {
        double *a = s->T + i * stride, *b = a + stride;
        double length = sqrt(a[k] * a[k] + b[k] * b[k]);
        double cosine = b[k] / length, sine = a[k] / length, y = s->y[i];
        double *of_basis = s->basis + i * s->span;
        rotate(a, b, cosine, sine, padded(i + 2));
        rotate(of_basis, of_basis + s->span, cosine, sine, s->span);
        s->y[i] = cosine * y - sine * s->y[i + 1];
        s->y[i + 1] = cosine * s->y[i + 1] + sine * y;
    }
    for (long i = k; i < last; i++) {
        double *T = s->T + i * stride;
        memmove(T + k, T + k + 1, (i + 1 - k) * sizeof *T);
        T[i + 1] = 0.0;
        s->row[i] = s->row[i + 1], s->sign[i] = s->sign[i + 1], s->now[i] = s->now[i + 1];
        s->high[i] = s->high[i + 1], s->low[i] = s->low[i + 1];
    }
    s->count = last;
    s->sign[last] = s->now[last] = 0.0;
    memset(s->goal, 0, stride * sizeof *s->goal);
    multiply_T(s, s->goal, s->y);
    combine(s->point, NULL, s->basis, s->span, NULL, s->y, last, s->span);
}

/* Go along `direction` as far as the signs of the multipliers allow, but not beyond `limit`; returns
   the active row that stops it, or -1. What has the wrong sign by no more than `least` is let be. */
INLINE long advance(ActiveSet *s, double least, double *limit) {
    long found = -1;
    for (long i = s->fixed; i < s->count; i++) {
        double slope = s->sign[i] * s->direction[i], room = s->sign[i] * s->now[i];
        if (slope < 0.0 && room + *limit * slope < -least) {
            double t = room > 0.0 ? -room / slope : 0.0;
            if (t < *limit) *limit = t, found = i;
        }
    }
    if (found >= 0)
        for (long i = 0; i < s->count; i++) s->now[i] += *limit * s->direction[i];
    return found;
}

/* Go to where all active rows are met, or as far as the signs allow; returns what `advance` does. */
INLINE long advance_to_goal(ActiveSet *s) {
    mask wrong = {0};
    for (long i = 0; i < s->count; i += WIDTH) wrong |= load(s->sign + i) * load(s->goal + i) < 0.0;
    if (any(wrong)) { /* most often none */
        double limit = 1.0;
        for (long i = 0; i < s->count; i += WIDTH)
            store(s->direction + i, load(s->goal + i) - load(s->now + i));
        long found = advance(s, WRONG_SIGN * largest(s->goal, s->count), &limit);
        if (found >= 0) return found;
    }
    for (long i = 0; i < s->count; i += WIDTH) store(s->now + i, load(s->goal + i));
    return -1;
}

/* Go from one active set to the next until no row is violated. Returns whether that came to pass:
   not where rows contradict each other, and not within `iterations`, which is set to those used. */
INLINE int walk(ActiveSet *s, long *iterations) {
    long most = *iterations;
    for (*iterations = 0; *iterations < most;) {
        ++*iterations;
        long stopped = advance_to_goal(s);
        if (stopped >= 0) {
            drop(s, stopped);
            continue;
        }
        long j = evaluate(s);
        if (j < 0) return 1;
        double sign = s->values[j] > s->upper[j] ? 1.0 : -1.0, now = 0.0, distance;
        double end = sign > 0 ? s->upper[j] : s->lower[j];
        /* While the row depends on active ones its multiplier grows at their cost. */
        while ((distance = project(s, j)) <= DEPENDENT || s->count == s->most) {
            multiply_T(s, s->direction, s->column);
            for (long i = 0; i < s->count; i++)
                s->direction[i] *= fabs(s->direction[i]) > ROUNDING ? -sign : 0.0;
            double limit = INFINITY;
            stopped = advance(s, 0.0, &limit);
            if (stopped < 0) return 0;
            now += limit * sign;
            drop(s, stopped);
        }
        add(s, j, sign, distance, end, now);
    }
    return 0;
}

#endif
