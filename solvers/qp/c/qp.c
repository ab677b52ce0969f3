/* Strictly convex quadratic programs on a CPU, one after the other: solved, and differentiated.

   What is not plain (P that is nearly singular, rows that depend on each other where that matters,
   programs without a solution, residuals that are not small) is left to other methods: such an
   element is marked as unsettled, and what it holds is not of use. */

#include <stdint.h>
#include <stdlib.h>

#include "active_set.h"
#include "panels.h"

/* The entry points are compiled once for each kind of processor, see dispatch.c. */
#ifndef LEVEL
#define LEVEL base
#endif
#define JOIN(name, level) name##_##level
#define FOR(name, level) JOIN(name, level)

/* A definite matrix with pivots this small, relative to its diagonal, is left as singular. */
#define SINGULAR 1e-10
/* Violations, in rows of unit length, that are none; relative to the values if those are large. */
#define FEASIBLE 1e-11

/* --- what the caller says: words of eight bytes, all of them ------------------------------------ */

/* One array of a batch, or what the whole batch shares: element i begins at start + i * step. */
typedef struct {
    const double *start;
    int64_t step;
} Part;

typedef struct {
    int64_t n, p, m, boxes;  /* variables, equalities, inequalities, 0 or n bounds */
    int64_t batch;
    Part P, q, G, h, A, b, lb, ub;
} Data;

typedef struct {
    int64_t max_iter;
    Part guess;              /* multipliers whose signs say which rows may be active, and where */
    double *x, *y, *z, *z_box, *s, *objective;
    int64_t *status, *iterations;
    double *primal, *dual, *gap;
    int8_t *side;
} Solution;

typedef struct {
    Part x, y, z, z_box;
    const int8_t *side;
    Part of_x, of_y, of_z, of_box, of_s, of_value;  /* cotangents; NULL for zero */
    double *P, *q, *G, *h, *A, *b, *lb, *ub;         /* gradients; NULL for those not wanted */
    double *a;                                       /* for sums of outer products; or NULL */
} Adjoint;

/* --- memory ------------------------------------------------------------------------------------- */

/* Room for one program, handed out piece by piece; the first time only counted. */
typedef struct {
    char *start;
    size_t used;
} Arena;

INLINE void *take(Arena *arena, size_t bytes) {
    void *piece = arena->start ? arena->start + arena->used : NULL;
    arena->used += (bytes + 63) / 64 * 64;
    return piece;
}

INLINE double *doubles(Arena *arena, long count) { return take(arena, count * sizeof(double)); }

INLINE const double *at(Part part, long i) {
    return part.start ? part.start + i * part.step : NULL;
}

/* --- a program and its factors ------------------------------------------------------------------ */

/* The rows are those of A, of G, and of the identity, as many as a multiple of eight. */
typedef struct {
    long n, rows;         /* multiples of eight */
    double *P, *C;        /* symmetric, and all rows, in panels */
    double *L, *inverse;  /* the Cholesky factor of P */
    double *M, *norm;     /* unit rows of C L^-T, and their lengths; 1 for rows that are zero */
    double *H;            /* M M' if that pays, else NULL */
    double *partial;
    const double *of_P, *of_G, *of_A;  /* what all this was made from */
    int regular;
} Program;

INLINE int shared(const Data *data) {
    return data->batch > 1 && !data->P.step && !data->G.step && !data->A.step;
}

/* Whether products of all rows with each other are cheaper than those that come up on the way. */
INLINE int gram_pays(const Data *data, long rows) {
    long served = shared(data) ? (data->batch < 32 ? data->batch : 32) : 1;
    return rows <= (2 * data->n + 16) * served && rows <= 4096;
}

INLINE void lay_out_program(Program *t, Arena *arena, long n, long rows, int with_gram) {
    t->n = padded(n), t->rows = padded(rows);
    t->P = doubles(arena, t->n * t->n), t->L = doubles(arena, t->n * t->n);
    t->C = doubles(arena, t->rows * t->n), t->M = doubles(arena, t->rows * t->n);
    t->H = with_gram ? doubles(arena, t->rows * t->rows) : NULL;
    t->inverse = doubles(arena, t->n), t->norm = doubles(arena, t->rows);
    t->partial = doubles(arena, t->n * WIDTH);
    t->of_P = t->of_G = t->of_A = NULL, t->regular = 0;
}

/* The symmetric part of P, and its factor. */
INLINE int factor(Program *t, const double *P, long n) {
    double *diagonal = t->partial;
    for (long i = 0; i < n; i++) {
        double *to = t->P + i / WIDTH * WIDTH * t->n + i % WIDTH;
        for (long k = 0; k < n; k++) to[k * WIDTH] = 0.5 * (P[i * n + k] + P[k * n + i]);
        diagonal[i] = P[i * n + i];
    }
    memcpy(t->L, t->P, t->n * t->n * sizeof *t->L);
    for (long i = n; i < t->n; i++) {
        t->L[i / WIDTH * WIDTH * t->n + i * WIDTH + i % WIDTH] = 1.0;
        diagonal[i] = 1.0;
    }
    return cholesky(t->L, t->inverse, diagonal, t->n, SINGULAR);
}

/* M and norm from C. */
INLINE void transform(Program *t) {
    memcpy(t->M, t->C, t->rows * t->n * sizeof *t->M);
    for (long i = 0; i < t->rows; i += WIDTH) {
        double *panel = t->M + i * t->n;
        solve_panel(panel, t->L, t->inverse, t->n);
        vec square = {0.0}, scale;
        for (long k = 0; k < t->n; k++) {
            vec v = load(panel + k * WIDTH);
            square += v * v;
        }
        for (int c = 0; c < WIDTH; c++) {
            t->norm[i + c] = square[c] != 0.0 ? sqrt(square[c]) : 1.0;
            scale[c] = 1.0 / t->norm[i + c];
        }
        for (long k = 0; k < t->n; k++)
            store(panel + k * WIDTH, load(panel + k * WIDTH) * scale);
    }
}

/* Everything that the vectors do not enter, unless the element before had the same matrices. */
INLINE int prepare(Program *t, const Data *data, long i) {
    const double *P = at(data->P, i), *G = at(data->G, i), *A = at(data->A, i);
    int same_P = P == t->of_P, same_C = G == t->of_G && A == t->of_A;
    if (same_P && (same_C || !t->regular)) return t->regular;
    if (!same_P) t->regular = factor(t, P, data->n);
    t->of_P = P;
    if (!t->regular) return 0;
    if (A && A != t->of_A) pack(t->C, t->n, 0, A, data->p, data->n);
    if (G && G != t->of_G) pack(t->C, t->n, data->p, G, data->m, data->n);
    t->of_G = G, t->of_A = A;
    for (long k = 0, row = data->p + data->m; k < data->boxes; k++, row++)
        t->C[row / WIDTH * WIDTH * t->n + k * WIDTH + row % WIDTH] = 1.0;
    transform(t);
    if (t->H) gram(t->H, t->M, t->rows, t->n);
    return 1;
}

/* --- solving ------------------------------------------------------------------------------------ */

/* Room for the vectors of one program. */
typedef struct {
    Program program;
    ActiveSet set;
    double *q, *lower, *upper, *x, *nu, *w, *l, *Px, *Cx, *pull, *e;
} Solving;

INLINE void lay_out_solving(Solving *s, Arena *arena, const Data *data) {
    long count = data->p + data->m + data->boxes;
    lay_out_program(&s->program, arena, data->n, count, gram_pays(data, count));
    long n = s->program.n, rows = s->program.rows, most = data->n < count ? data->n : count;
    double **of_n[] = {&s->q, &s->x, &s->w, &s->Px, &s->pull, &s->set.u};
    double **of_rows[] = {&s->lower, &s->upper, &s->nu, &s->l, &s->Cx, &s->e,
                          &s->set.upper, &s->set.lower, &s->set.values};
    double **of_most[] = {&s->set.sign, &s->set.high, &s->set.low, &s->set.now, &s->set.inverse,
                          &s->set.y, &s->set.candidate, &s->set.column};
    for (size_t i = 0; i < sizeof of_n / sizeof *of_n; i++) *of_n[i] = doubles(arena, n);
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++) *of_rows[i] = doubles(arena, rows);
    for (size_t i = 0; i < sizeof of_most / sizeof *of_most; i++) *of_most[i] = doubles(arena, most);
    double *center = doubles(arena, rows);
    s->set.row = take(arena, most * sizeof(long));
    s->set.R = doubles(arena, most * most);
    s->set.rows = rows, s->set.n = n, s->set.most = most;
    s->set.M = s->program.M, s->set.H = s->program.H, s->set.center = center;
}

INLINE void read_ends(Solving *s, const Data *data, long i) {
    const double *b = at(data->b, i), *h = at(data->h, i);
    const double *lb = at(data->lb, i), *ub = at(data->ub, i);
    long p = data->p, m = data->m, boxes = data->boxes;
    for (long k = 0; k < s->program.rows; k++) s->lower[k] = -INFINITY, s->upper[k] = INFINITY;
    for (long k = 0; k < p; k++) s->lower[k] = s->upper[k] = b[k];
    for (long k = 0; k < m; k++) s->upper[p + k] = h[k];
    for (long k = 0; k < boxes; k++) {
        if (lb) s->lower[p + m + k] = lb[k];
        if (ub) s->upper[p + m + k] = ub[k];
    }
}

/* The active rows and their multipliers; 0 where there is no solution, or none that is found. */
INLINE int find_active_rows(Solving *s, const double *guess, long count, long *iterations) {
    Program *t = &s->program;
    ActiveSet *set = &s->set;
    double *center = (double *)set->center, largest = 1.0;
    multiply(center, t->M, s->w, t->rows, t->n);
    set->count = 0;
    for (long k = 0; k < t->rows; k++) {
        center[k] = -center[k];
        double size = fabs(center[k]);
        largest = size > largest ? size : largest;
        set->upper[k] = s->upper[k] / t->norm[k], set->lower[k] = s->lower[k] / t->norm[k];
    }
    set->tolerance = FEASIBLE * largest;
    for (long k = 0; k < t->rows; k++)
        if (s->lower[k] == s->upper[k]) {
            double distance = set->count < set->most ? project(set, k) : 0.0;
            if (!(distance > DEPENDENT)) return 0;
            add(set, k, 0.0, distance, set->upper[k], 0.0);
        }
    set->fixed = set->count;
    for (long k = 0; guess && k < count; k++) {
        double sign = guess[k] > 0.0 ? 1.0 : -1.0, end = sign > 0.0 ? set->upper[k] : set->lower[k];
        if (!(guess[k] != 0.0) || guess[k] != guess[k] || isinf(end) || set->count == set->most)
            continue;
        double distance = project(set, k);
        if (distance > DEPENDENT) add(set, k, sign, distance, end, 0.0);
    }
    return walk(set, iterations);
}

/* x and nu from the multipliers of the active rows, or their corrections from what is left over. */
INLINE void step(Solving *s) {
    Program *t = &s->program;
    multiply_transposed(s->pull, t->M, s->l, t->rows, t->n);
    for (long k = 0; k < t->n; k++) s->w[k] = -s->w[k] - s->pull[k];
    solve_upper(s->w, t->L, t->inverse, t->n, t->partial);
    for (long k = 0; k < t->n; k++) s->x[k] += s->w[k];
    for (long k = 0; k < t->rows; k++) s->nu[k] += s->l[k] / t->norm[k];
}

/* The products with the matrices at x and nu. */
INLINE void measure(Solving *s) {
    Program *t = &s->program;
    multiply(s->Px, t->P, s->x, t->n, t->n);
    multiply(s->Cx, t->C, s->x, t->rows, t->n);
    multiply_transposed(s->pull, t->C, s->nu, t->rows, t->n);
}

/* One correction by the factors for what rounding left. */
INLINE void refine(Solving *s) {
    Program *t = &s->program;
    ActiveSet *set = &s->set;
    for (long k = 0; k < t->n; k++) s->w[k] = s->q[k] + s->Px[k] + s->pull[k];
    solve_lower(s->w, t->L, t->inverse, t->n);
    multiply(s->e, t->M, s->w, t->rows, t->n);
    double *change = set->candidate;
    for (long k = 0; k < set->count; k++) {
        long row = set->row[k];
        double end = set->sign[k] < 0 ? s->lower[row] : s->upper[row];
        change[k] = (s->Cx[row] - end) / t->norm[row] - s->e[row];
    }
    solve_R_transposed(set, change, set->count);
    solve_R(set, change, set->count);
    memset(s->l, 0, t->rows * sizeof *s->l);
    for (long k = 0; k < set->count; k++) s->l[set->row[k]] = change[k];
    step(s);
}

INLINE double larger(double a, double b) { return a > b || a != a ? a : b; }

/* Whether the residuals are what is asked for; as `measure` of judge.py says it. */
INLINE int judge(
    const Solving *s, const Data *data, double eps_abs, double eps_rel, const Solution *out, long i
) {
    long count = data->p + data->m + data->boxes;
    double quadratic = 0.0, linear = 0.0, support = 0.0, primal = 0.0, dual = 0.0;
    double of_primal = 0.0, of_dual = 0.0;
    for (long k = 0; k < data->n; k++) {
        quadratic += s->x[k] * s->Px[k], linear += s->x[k] * s->q[k];
        dual = larger(fabs(s->Px[k] + s->q[k] + s->pull[k]), dual);
        of_dual = larger(larger(fabs(s->Px[k]), fabs(s->pull[k])), larger(fabs(s->q[k]), of_dual));
    }
    for (long k = 0; k < count; k++) {
        double nu = s->nu[k];
        if (nu != 0.0) support += nu * (nu > 0 ? s->upper[k] : s->lower[k]);
        primal = larger(larger(s->Cx[k] - s->upper[k], s->lower[k] - s->Cx[k]), primal);
        of_primal = larger(fabs(s->Cx[k]), of_primal);
    }
    double gap = fabs(quadratic + linear + support);
    double of_gap = fabs(quadratic) + fabs(linear) + fabs(support);
    out->objective[i] = 0.5 * quadratic + linear;
    out->primal[i] = primal, out->dual[i] = dual, out->gap[i] = gap;
    return primal <= eps_abs + eps_rel * of_primal && dual <= eps_abs + eps_rel * of_dual &&
           gap <= eps_abs + eps_rel * of_gap;
}

INLINE void copy(double *to, const double *from, long i, long size) {
    memcpy(to + i * size, from, size * sizeof *to);
}

INLINE int solve_one(
    Solving *s, const Data *data, const Solution *out, double eps_abs, double eps_rel, long i
) {
    Program *t = &s->program;
    ActiveSet *set = &s->set;
    long n = data->n, count = data->p + data->m + data->boxes;
    if (!prepare(t, data, i)) return 0;
    read_ends(s, data, i);
    memset(s->q, 0, t->n * sizeof *s->q);
    memcpy(s->q, at(data->q, i), n * sizeof *s->q);
    memcpy(s->w, s->q, t->n * sizeof *s->w);
    solve_lower(s->w, t->L, t->inverse, t->n);
    long iterations = out->max_iter;
    if (!find_active_rows(s, at(out->guess, i), count, &iterations)) return 0;
    memset(s->l, 0, t->rows * sizeof *s->l);
    for (long k = 0; k < set->count; k++) s->l[set->row[k]] = set->now[k];
    memset(s->x, 0, t->n * sizeof *s->x);
    memset(s->nu, 0, t->rows * sizeof *s->nu);
    step(s);
    measure(s);
    refine(s);
    for (long k = set->fixed; k < set->count; k++)
        if (set->sign[k] * s->nu[set->row[k]] < 0.0) s->nu[set->row[k]] = 0.0;
    measure(s);
    out->iterations[i] = iterations;
    copy(out->x, s->x, i, n);
    copy(out->y, s->nu, i, data->p);
    copy(out->z, s->nu + data->p, i, data->m);
    copy(out->z_box, s->nu + data->p + data->m, i, data->boxes);
    for (long k = 0; k < data->m; k++)
        out->s[i * data->m + k] = s->upper[data->p + k] - s->Cx[data->p + k];
    for (long k = 0; k < count; k++) {
        double nu = s->nu[k];
        out->side[i * count + k] =
            nu > 0.0 ? 1 : nu < 0.0 ? -1 : s->lower[k] == s->upper[k];
    }
    return judge(s, data, eps_abs, eps_rel, out, i);
}

/* Solve the elements `low` to `high`; `status` is 0 for those that are solved, else 1. Returns how
   many are not, or -1 if there is no memory. */
int64_t FOR(optlayers_qp_solve, LEVEL)(
    const Data *data, const Solution *out, int64_t low, int64_t high, double eps_abs, double eps_rel
) {
    Solving s;
    Arena arena = {NULL, 0};
    lay_out_solving(&s, &arena, data);
    size_t bytes = arena.used;
    arena = (Arena){aligned_alloc(64, bytes), 0};
    if (!arena.start) return -1;
    lay_out_solving(&s, &arena, data);
    memset(s.program.P, 0, s.program.n * s.program.n * sizeof(double));
    memset(s.program.C, 0, s.program.rows * s.program.n * sizeof(double));
    int64_t unsettled = 0;
    for (long i = low; i < high; i++) {
        out->status[i] = !solve_one(&s, data, out, eps_abs, eps_rel, i);
        unsettled += out->status[i];
    }
    free(arena.start);
    return unsettled;
}

/* --- derivatives -------------------------------------------------------------------------------- */

/* The KKT system on the active rows: a program that has no others. */
typedef struct {
    Program all, active;
    double *S, *S_inverse, *ones, *S_partial;
    long *row, count, schur;  /* the active rows; how many, and as a multiple of eight */
    double *r_x, *r_a, *t_x, *t_a, *w, *l, *e, *x;
    double *a;
} Deriving;

INLINE void lay_out_deriving(Deriving *d, Arena *arena, const Data *data) {
    long count = data->p + data->m + data->boxes;
    if (shared(data)) lay_out_program(&d->all, arena, data->n, count, gram_pays(data, count));
    lay_out_program(&d->active, arena, data->n, count, 0);
    long n = d->active.n, rows = d->active.rows;
    d->S = doubles(arena, rows * rows);
    double **of_n[] = {&d->r_x, &d->t_x, &d->w, &d->x};
    double **of_rows[] = {&d->S_inverse, &d->ones, &d->r_a, &d->t_a, &d->l, &d->e};
    for (size_t i = 0; i < sizeof of_n / sizeof *of_n; i++) *of_n[i] = doubles(arena, n);
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++) *of_rows[i] = doubles(arena, rows);
    d->S_partial = doubles(arena, rows * WIDTH);
    d->row = take(arena, count * sizeof(long));
    d->a = doubles(arena, data->n + count);
}

/* Copy row `from` of panels to row `to` of others. */
INLINE void copy_row(double *target, long to, const double *source, long from, long n) {
    target += to / WIDTH * WIDTH * n + to % WIDTH;
    source += from / WIDTH * WIDTH * n + from % WIDTH;
    for (long k = 0; k < n * WIDTH; k += WIDTH) target[k] = source[k];
}

INLINE const double *row_of(const Data *data, long i, long row) {
    if (row < data->p) return at(data->A, i) + row * data->n;
    return at(data->G, i) + (row - data->p) * data->n;
}

/* Factors of the KKT matrix on the rows that are active; 0 where it is nearly singular. */
INLINE int factor_active(Deriving *d, const Data *data, const int8_t *side, long i) {
    Program *t = &d->active;
    long n = t->n, count = data->p + data->m + data->boxes, k = 0;
    for (long row = 0; row < count; row++)
        if (side[row]) d->row[k++] = row;
    d->count = k, d->schur = t->rows = padded(k);
    memset(t->C, 0, t->rows * n * sizeof *t->C);
    if (shared(data)) {
        Program *all = &d->all;
        if (!prepare(all, data, i)) return 0;
        t->P = all->P, t->L = all->L, t->inverse = all->inverse;
        memset(t->M, 0, t->rows * n * sizeof *t->M);
        for (long j = 0; j < k; j++) {
            copy_row(t->C, j, all->C, d->row[j], n);
            copy_row(t->M, j, all->M, d->row[j], n);
            t->norm[j] = all->norm[d->row[j]];
        }
        for (long j = k; j < t->rows; j++) t->norm[j] = 1.0;
    } else {
        const double *P = at(data->P, i);
        if (P != t->of_P) t->regular = factor(t, P, data->n);
        t->of_P = P;
        if (!t->regular) return 0;
        for (long j = 0; j < k; j++)
            if (d->row[j] < data->p + data->m)
                pack(t->C, n, j, row_of(data, i, d->row[j]), 1, data->n);
            else
                t->C[j / WIDTH * WIDTH * n + (d->row[j] - data->p - data->m) * WIDTH + j % WIDTH] = 1.0;
        transform(t);
    }
    for (long row = 0; row < t->rows; row += WIDTH)
        for (long column = 0; column <= row; column += WIDTH) {
            vec acc[WIDTH] = {{0.0}};
            subtract_product(acc, t->M + row * n, t->M + column * n, n);
            for (int c = 0; c < WIDTH; c++)
                store(d->S + row * t->rows + (column + c) * WIDTH, -acc[c]);
        }
    for (long j = 0; j < t->rows; j++) {
        d->ones[j] = 1.0;
        if (j >= k) d->S[j / WIDTH * WIDTH * t->rows + j * WIDTH + j % WIDTH] = 1.0;
    }
    return cholesky(d->S, d->S_inverse, d->ones, t->rows, DEPENDENT);
}

/* Add the solution for the right-hand side r to t. */
INLINE void solve_active(Deriving *d) {
    Program *t = &d->active;
    memcpy(d->w, d->r_x, t->n * sizeof *d->w);
    solve_lower(d->w, t->L, t->inverse, t->n);
    multiply(d->l, t->M, d->w, t->rows, t->n);
    for (long j = 0; j < t->rows; j++) d->l[j] -= d->r_a[j] / t->norm[j];
    solve_lower(d->l, d->S, d->S_inverse, t->rows);
    solve_upper(d->l, d->S, d->S_inverse, t->rows, d->S_partial);
    multiply_transposed(d->x, t->M, d->l, t->rows, t->n);
    for (long k = 0; k < t->n; k++) d->w[k] -= d->x[k];
    solve_upper(d->w, t->L, t->inverse, t->n, t->partial);
    for (long k = 0; k < t->n; k++) d->t_x[k] += d->w[k];
    for (long j = 0; j < t->rows; j++) d->t_a[j] += d->l[j] / t->norm[j];
}

/* a = -K^-1 g for cotangents g of x and of the multipliers, in `d->a`. */
INLINE int solve_adjoint(Deriving *d, const Data *data, const Adjoint *task, long i) {
    Program *t = &d->active;
    long n = data->n, p = data->p, m = data->m, count = p + m + data->boxes;
    const double *g_x = at(task->of_x, i), *g_s = at(task->of_s, i);
    const double *g[] = {at(task->of_y, i), at(task->of_z, i), at(task->of_box, i)};
    memset(d->a, 0, (n + count) * sizeof *d->a);
    if (!m) g_s = NULL;
    /* Most often none: of elements that failed, and where a loss looks at a part of the batch. */
    const double *given[] = {g_x, g[0], g[1], g[2], g_s};
    long sizes[] = {n, p, m, data->boxes, m};
    int any = 0;
    for (int j = 0; j < 5; j++)
        for (long k = 0; given[j] && k < sizes[j]; k++) any |= given[j][k] != 0.0;
    if (!any) return 1;
    if (!factor_active(d, data, task->side + i * count, i)) return 0;
    memset(d->r_x, 0, t->n * sizeof *d->r_x);
    memset(d->t_x, 0, t->n * sizeof *d->t_x);
    memset(d->r_a, 0, t->rows * sizeof *d->r_a);
    memset(d->t_a, 0, t->rows * sizeof *d->t_a);
    if (g_x) for (long k = 0; k < n; k++) d->r_x[k] = -g_x[k];
    if (g_s)  /* s = h - G x */
        for (long j = 0; j < m; j++) {
            const double *row = at(data->G, i) + j * n;
            for (long k = 0; k < n; k++) d->r_x[k] += row[k] * g_s[j];
        }
    for (long j = 0; j < d->count; j++) {
        long row = d->row[j], part = row < p ? 0 : row < p + m ? 1 : 2;
        long first[] = {0, p, p + m};
        if (g[part]) d->r_a[j] = -g[part][row - first[part]];
    }
    solve_active(d);
    /* Once more for what rounding left. */
    multiply(d->w, t->P, d->t_x, t->n, t->n);
    multiply_transposed(d->x, t->C, d->t_a, t->rows, t->n);
    for (long k = 0; k < t->n; k++) d->r_x[k] -= d->w[k] + d->x[k];
    multiply(d->e, t->C, d->t_x, t->rows, t->n);
    for (long j = 0; j < t->rows; j++) d->r_a[j] -= d->e[j];
    solve_active(d);
    memcpy(d->a, d->t_x, n * sizeof *d->a);
    for (long j = 0; j < d->count; j++) d->a[n + d->row[j]] = d->t_a[j];
    if (g_s) for (long j = 0; j < m; j++) d->a[n + p + j] -= g_s[j];
    return 1;
}

/* The matrix a b' + c d', of `rows` rows and `n` columns. */
INLINE void outer(
    double *to, const double *a, const double *b, const double *c, const double *d, double scale,
    long rows, long n
) {
    for (long i = 0; i < rows; i++) {
        double left = scale * a[i], right = scale * c[i];
        for (long k = 0; k < n; k++) to[i * n + k] = left * b[k] + right * d[k];
    }
}

/* Gradients from a, by outer products with the solution; those of the objective by the envelope
   theorem, half of it in the products. */
INLINE void pull_back(const double *given, const Data *data, const Adjoint *task, double *a, long i) {
    long n = data->n, p = data->p, m = data->m, boxes = data->boxes;
    const double *x = at(task->x, i), *value = at(task->of_value, i);
    struct { const double *solution; long first, size; double *matrix, *vector; } part[] = {
        {at(task->y, i), n, p, task->A, task->b},
        {at(task->z, i), n + p, m, task->G, task->h},
        {at(task->z_box, i), n + p + m, boxes, NULL, NULL},
    };
    double half = value ? 0.5 * *value : 0.0;
    const int8_t *side = task->side + i * (p + m + boxes) + p + m;
    for (long k = 0; k < n; k++) a[k] = given[k] + half * x[k];
    if (task->P) outer(task->P + i * n * n, a, x, x, a, 0.5, n, n);
    if (task->q) for (long k = 0; k < n; k++) task->q[i * n + k] = a[k] + half * x[k];
    for (int j = 0; j < 3; j++) {
        double *of_rows = a + part[j].first;
        const double *solution = part[j].solution;
        for (long k = 0; k < part[j].size; k++)
            of_rows[k] = given[part[j].first + k] + half * solution[k];
        if (part[j].matrix)
            outer(part[j].matrix + i * part[j].size * n, of_rows, x, solution, a, 1.0, part[j].size, n);
        if (part[j].vector)
            for (long k = 0; k < part[j].size; k++)
                part[j].vector[i * part[j].size + k] = -(of_rows[k] + half * solution[k]);
    }
    const double *box = a + n + p + m;
    for (long k = 0; k < boxes; k++) {
        double end = -(box[k] + half * part[2].solution[k]);
        if (task->lb) task->lb[i * n + k] = side[k] < 0 ? end : 0.0;
        if (task->ub) task->ub[i * n + k] = side[k] > 0 ? end : 0.0;
    }
}

/* Gradients of the elements `low` to `high`. Returns how many have no regular KKT matrix, at the
   first of which it stops, or -1 if there is no memory. */
int64_t FOR(optlayers_qp_adjoint, LEVEL)(const Data *data, const Adjoint *task, int64_t low, int64_t high) {
    Deriving d;
    Arena arena = {NULL, 0};
    lay_out_deriving(&d, &arena, data);
    size_t bytes = arena.used;
    arena = (Arena){aligned_alloc(64, bytes), 0};
    if (!arena.start) return -1;
    lay_out_deriving(&d, &arena, data);
    Program *programs[] = {&d.active, shared(data) ? &d.all : NULL};
    for (int j = 0; j < 2 && programs[j]; j++) {
        memset(programs[j]->P, 0, programs[j]->n * programs[j]->n * sizeof(double));
        memset(programs[j]->C, 0, programs[j]->rows * programs[j]->n * sizeof(double));
    }
    long size = data->n + data->p + data->m + data->boxes;
    int64_t singular = 0;
    for (long i = low; i < high && !singular; i++) {
        singular = !solve_adjoint(&d, data, task, i);
        if (!singular) pull_back(d.a, data, task, task->a ? task->a + i * size : d.a, i);
    }
    free(arena.start);
    return singular;
}
