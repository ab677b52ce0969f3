/* Strictly convex quadratic programs on a CPU, one after the other: solved, and differentiated.

   What is not plain (P that is nearly singular, rows that depend on each other where that matters,
   programs without a solution, residuals that are not small) is left to other methods: such an
   element is marked as unsettled, and what it holds is not of use. */

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

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
/* Residuals of a linear system, relative to its terms, that are rounding. */
#define NOTHING_LEFT 1e-13
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
    double *sums;                                    /* such sums over each piece; or NULL */
    double *sum_P, *sum_G, *sum_A;                   /* gradients that they give; NULL if not wanted */
    int8_t *singular;                                /* where there is no regular KKT matrix */
} Adjoint;

/* A call, which any number of threads work on, a piece of the batch at a time. */
typedef struct {
    int64_t done;            /* when the first thread found nothing left, by the monotonic clock, in ns */
    int64_t next, pieces;    /* the first piece that nobody has taken, and how many there are */
    int64_t finished;        /* how many of them are done, where somebody asks */
    int64_t left_over;       /* elements that are unsettled or singular */
    int64_t no_memory;
    double eps_abs, eps_rel;
    Data data;
    union {
        Solution solution;
        Adjoint adjoint;
    } task;
} Job;

/* A piece that nobody else works on, with the elements from `low` to `high`; -1 if none is left. */
INLINE long take_piece(Job *job, long *low, long *high) {
    int64_t piece = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (piece >= job->pieces) {
        struct timespec now;
        if (piece == job->pieces && job->pieces > 1 && !clock_gettime(CLOCK_MONOTONIC, &now))
            job->done = now.tv_sec * 1000000000LL + now.tv_nsec;
        return -1;
    }
    *low = job->data.batch * piece / job->pieces;
    *high = job->data.batch * (piece + 1) / job->pieces;
    return piece;
}

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

/* Rows are those of A, from the next panel on those of G and of the identity. The products of rows
   with each other are kept with the equalities eliminated; where there are so many rows that
   products on the way are cheaper, H is NULL, `fixed` is 0, and equalities are rows like others.
   What a batch shares has inverses as well: they take products with the active rows only, where
   factors take solves one number after the other, and all rows. */
typedef struct {
    long n, fixed, rows;         /* filled up; the first `fixed` rows are equalities */
    long eliminated;             /* how many they are: p, or 0 */
    double *P, *C;               /* symmetric, and all rows, in panels */
    double *L, *inverse;         /* the Cholesky factor of P */
    double *M, *norm;            /* unit rows of C L^-T; their lengths, 1 for rows that are zero */
    double *E, *E_inverse, *X;   /* M M' = (E; X) (E; X)' + (0; H), with E lower triangular */
    double *H;
    double *W, *Q, *R;           /* row-major P^-1, unit rows of C P^-1, and C; or NULL. Where they
                                    are, M holds what Q does */
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

INLINE void lay_out_program(Program *t, Arena *arena, const Data *data, int with_gram) {
    long rest = data->p + data->m + data->boxes;
    t->eliminated = with_gram ? data->p : 0;
    rest = padded(rest - t->eliminated);
    t->n = padded(data->n), t->fixed = padded(t->eliminated), t->rows = t->fixed + rest;
    t->P = doubles(arena, t->n * t->n), t->L = doubles(arena, t->n * t->n);
    t->C = doubles(arena, t->rows * t->n), t->M = doubles(arena, t->rows * t->n);
    t->E = doubles(arena, t->fixed * t->fixed), t->E_inverse = doubles(arena, t->fixed);
    t->X = doubles(arena, rest * t->fixed);
    t->H = with_gram ? doubles(arena, rest * rest) : NULL;
    int inverts = with_gram && shared(data);
    t->W = inverts ? doubles(arena, t->n * t->n) : NULL;
    t->Q = inverts ? doubles(arena, t->rows * t->n) : NULL;
    t->R = inverts ? doubles(arena, (t->rows > t->n ? t->rows : t->n) * t->n) : NULL;
    t->inverse = doubles(arena, t->n), t->norm = doubles(arena, t->rows);
    t->partial = doubles(arena, (t->n > t->fixed ? t->n : t->fixed) * WIDTH);
    t->of_P = t->of_G = t->of_A = NULL, t->regular = 0;
}

/* Where the program keeps a row of the user's, counted in A, then G, then bounds. */
INLINE long place(const Program *t, long row) {
    return row < t->eliminated ? row : t->fixed + row - t->eliminated;
}

/* The symmetric part of P, and its factor. */
INLINE int factor(Program *t, const double *P, long n) {
    double *diagonal = t->partial;
    for (long i = 0; i < n; i++) {
        double *to = entry(t->P, t->n, i, 0);
        for (long k = 0; k < n; k++) to[k * WIDTH] = 0.5 * (P[i * n + k] + P[k * n + i]);
        diagonal[i] = P[i * n + i];
    }
    memcpy(t->L, t->P, t->n * t->n * sizeof *t->L);
    for (long i = n; i < t->n; i++) *entry(t->L, t->n, i, i) = diagonal[i] = 1.0;
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

/* The products of the rows; 0 where equalities depend on each other. */
INLINE int relate(Program *t) {
    if (!t->H) return 1;
    long n = t->n, fixed = t->fixed, rest = t->rows - fixed;
    const double *M = t->M + fixed * n;
    for (long i = 0; i < fixed; i += WIDTH) multiply_rows(t->E + i * fixed, t->M + i * n, t->M, i, n);
    for (long i = 0; i < fixed; i++) {
        t->partial[i] = 1.0;
        if (i >= t->eliminated) *entry(t->E, fixed, i, i) = 1.0;
    }
    if (!cholesky(t->E, t->E_inverse, t->partial, fixed, DEPENDENT)) return 0;
    for (long i = 0; i < rest; i += WIDTH) {
        multiply_rows(t->X + i * fixed, M + i * n, t->M, fixed - WIDTH, n);
        solve_panel(t->X + i * fixed, t->E, t->E_inverse, fixed);
    }
    gram(t->H, M, t->X, rest, n, fixed);
    return 1;
}

/* P^-1 = L^-T L^-1, and what is made with it. */
INLINE void invert(Program *t) {
    long n = t->n;
    double *U = t->R, *products = t->partial; /* U is L^-T in panels, as long as there is no R */
    memset(U, 0, n * n * sizeof *U);
    for (long i = 0; i < n; i++) *entry(U, n, i, i) = 1.0;
    for (long i = 0; i < n; i += WIDTH) solve_panel(U + i * n, t->L, t->inverse, n);
    gram(t->W, U, NULL, n, n, 0);
    for (long i = 0; i < t->rows; i += WIDTH) {
        multiply_rows(products, t->M + i * n, U, n - WIDTH, n);
        memcpy(t->M + i * n, products, WIDTH * n * sizeof *products);
    }
    unpack(t->Q, t->M, t->rows, n);
    unpack(t->R, t->C, t->rows, n);
}

/* Everything that the vectors do not enter, unless the element before had the same matrices. */
INLINE int prepare(Program *t, const Data *data, long i) {
    const double *P = at(data->P, i), *G = at(data->G, i), *A = at(data->A, i);
    if (P == t->of_P && G == t->of_G && A == t->of_A) return t->regular;
    int same_P = P == t->of_P && t->regular;
    t->of_P = P, t->regular = same_P || factor(t, P, data->n);
    if (!t->regular) return 0;
    long n = data->n, p = data->p, m = data->m;
    if (A && A != t->of_A) pack(t->C, t->n, place(t, 0), A, p, n);
    if (G && G != t->of_G) pack(t->C, t->n, place(t, p), G, m, n);
    t->of_G = G, t->of_A = A;
    for (long k = 0; k < data->boxes; k++) *entry(t->C, t->n, place(t, p + m + k), k) = 1.0;
    transform(t);
    t->regular = relate(t);
    if (t->regular && t->W) invert(t);
    return t->regular;
}

/* --- the KKT system on the active rows ---------------------------------------------------------- */

/* Elements whose outer products are not in their sums yet: each row of those is fetched and stored
   once for SOME of them. */
enum { SOME = 8 };

typedef struct {
    long count;
    double *x, *a_x;             /* one after the other, filled up with zeros */
    double *of_x, *of_a;         /* for each row of the sums, what they are multiplied by: of a_x,
                                    for those of A and G */
} Waiting;

/* Room for the vectors of one program. */
typedef struct {
    Program program;
    ActiveSet set;               /* of the rows that are not eliminated */
    double *q, *lower, *upper;
    double *x, *nu;              /* the solution, and of the KKT system in general */
    double *r_x, *r_nu;          /* a right-hand side; entries of rows that are not active are not read */
    double *w, *step, *d, *l, *center;
    double *Px, *Cx, *pull;      /* products with x and nu */
    double length;               /* of L' x, which bounds what unit rows make of it */
    long *in_force;              /* the eliminated rows and the active ones: where the program keeps */
    double *weights;             /*   them, and room for a number each */
    long *kept;                  /* where `prepare_active` keeps the user's rows; -1 for nowhere */
    double *adjoint;             /* a of solve_adjoint, where nobody keeps it */
    Waiting waiting;
} Solving;

INLINE void lay_out_solving(
    Solving *s, Arena *arena, const Data *data, int with_gram, int with_sums
) {
    lay_out_program(&s->program, arena, data, with_gram);
    ActiveSet *set = &s->set;
    long n = s->program.n, rows = s->program.rows, fixed = s->program.fixed;
    long most = data->n < rows - fixed ? data->n : rows - fixed;
    double **of_n[] = {&s->q, &s->x, &s->r_x, &s->w, &s->step, &s->Px, &s->pull, &set->u};
    double **of_rows[] = {&s->lower, &s->upper, &s->nu, &s->r_nu, &s->d, &s->l, &s->center, &s->Cx,
                          &set->upper, &set->lower, &set->values};
    double **of_most[] = {&set->sign, &set->high, &set->low, &set->now,
                          &set->y, &set->goal, &set->direction, &set->column, &set->inverse};
    for (size_t i = 0; i < sizeof of_n / sizeof *of_n; i++) *of_n[i] = doubles(arena, n);
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++) *of_rows[i] = doubles(arena, rows);
    for (size_t i = 0; i < sizeof of_most / sizeof *of_most; i++) *of_most[i] = doubles(arena, padded(most));
    set->span = with_gram ? rows - fixed : n;
    set->basis = doubles(arena, most * set->span), set->point = doubles(arena, set->span);
    set->row = take(arena, most * sizeof(long));
    s->in_force = take(arena, (s->program.eliminated + most) * sizeof(long));
    s->weights = doubles(arena, s->program.eliminated + most);
    s->kept = take(arena, (data->p + data->m + data->boxes) * sizeof(long));
    s->adjoint = doubles(arena, data->n + data->p + data->m + data->boxes);
    long some = with_sums ? SOME : 0, of_sums = data->n + data->p + data->m;
    s->waiting = (Waiting){
        0, doubles(arena, some * n), doubles(arena, some * n),
        doubles(arena, some * of_sums), doubles(arena, some * (of_sums - data->n)),
    };
    set->T = doubles(arena, padded(most) * padded(most));
    set->rows = rows - fixed, set->n = n, set->most = most, set->stride = padded(most);
    set->M = s->program.M + fixed * n, set->H = s->program.H, set->center = s->center + fixed;
}

/* Room for one program at a time; NULL if there is no memory. */
INLINE void *make_room(Solving *s, const Data *data, int with_gram, int with_sums) {
    Arena arena = {NULL, 0};
    lay_out_solving(s, &arena, data, with_gram, with_sums);
    arena = (Arena){aligned_alloc(64, arena.used), 0};
    if (!arena.start) return NULL;
    lay_out_solving(s, &arena, data, with_gram, with_sums);
    memset(s->program.P, 0, s->program.n * s->program.n * sizeof(double));
    memset(s->program.C, 0, s->program.rows * s->program.n * sizeof(double));
    return arena.start;
}

/* Multipliers l of unit rows, from those of the active set, which are in `now` and zero where no row
   is active; of the eliminated ones from E^-1 d, in place of which they come. */
INLINE void spread_multipliers(Solving *s, const double *now) {
    Program *t = &s->program;
    const ActiveSet *set = &s->set;
    long fixed = t->fixed;
    double *of_fixed = s->l, *of_rest = s->l + fixed;
    memset(of_rest, 0, (t->rows - fixed) * sizeof *s->l);
    for (long i = 0; i < set->count; i++) {
        const double *X = entry(t->X, fixed, set->row[i], 0);
        of_rest[set->row[i]] = now[i];
        for (long k = 0; k < fixed; k++) of_fixed[k] -= X[k * WIDTH] * now[i];
    }
    solve_upper(of_fixed, t->E, t->E_inverse, fixed, t->partial);
}

/* Multipliers l of unit rows with M_a M_a' l_a = d_a, zero where a row is not active. */
INLINE void solve_multipliers(Solving *s) {
    Program *t = &s->program;
    ActiveSet *set = &s->set;
    long fixed = t->fixed;
    double *right = set->direction, *of_fixed = s->l;
    memcpy(of_fixed, s->d, fixed * sizeof *s->l);
    solve_lower(of_fixed, t->E, t->E_inverse, fixed);
    memset(right, 0, set->stride * sizeof *right);
    for (long i = 0; i < set->count; i++) {
        const double *X = entry(t->X, fixed, set->row[i], 0);
        right[i] = s->d[fixed + set->row[i]];
        for (long k = 0; k < fixed; k++) right[i] -= X[k * WIDTH] * of_fixed[k];
    }
    solve_active(set, right, t->partial);
    spread_multipliers(s, right);
}

/* Which rows are in force; returns how many. */
INLINE long list_rows_in_force(Solving *s) {
    const Program *t = &s->program;
    long count = 0;
    for (; count < t->eliminated; count++) s->in_force[count] = count;
    for (long i = 0; i < s->set.count; i++) s->in_force[count++] = t->fixed + s->set.row[i];
    return count;
}

/* Add to x and nu what belongs to the multipliers l, with L^-1 r_x or r_x itself in w. */
INLINE void add_step(Solving *s, long count) {
    Program *t = &s->program;
    if (t->W) {
        for (long i = 0; i < count; i++) {
            long row = s->in_force[i];
            s->weights[i] = s->l[row];
            s->nu[row] += s->l[row] / t->norm[row];
        }
        combine(s->pull, NULL, t->Q, t->n, s->in_force, s->weights, count, t->n);
        combine(s->step, NULL, t->W, t->n, NULL, s->w, t->n, t->n);
        for (long k = 0; k < t->n; k++) s->x[k] += s->step[k] - s->pull[k];
        return;
    }
    multiply_transposed(s->pull, t->M, s->l, t->rows, t->n);
    for (long k = 0; k < t->n; k++) s->w[k] -= s->pull[k];
    solve_upper(s->w, t->L, t->inverse, t->n, t->partial);
    for (long k = 0; k < t->n; k++) s->x[k] += s->w[k];
    for (long i = 0; i < t->rows; i++) s->nu[i] += s->l[i] / t->norm[i];
}

/* Add to x and nu the solution of the KKT system for the right-hand side r_x, r_nu. */
INLINE void solve_kkt(Solving *s, long count) {
    Program *t = &s->program;
    memcpy(s->w, s->r_x, t->n * sizeof *s->w);
    if (t->W) {
        memset(s->d, 0, t->fixed * sizeof *s->d);
        for (long i = 0; i < count; i++) {
            long row = s->in_force[i];
            s->d[row] = dot(t->Q + row * t->n, s->w, t->n) - s->r_nu[row] / t->norm[row];
        }
    } else {
        solve_lower(s->w, t->L, t->inverse, t->n);
        multiply(s->d, t->M, s->w, t->rows, t->n);
        for (long i = 0; i < t->rows; i++) s->d[i] -= s->r_nu[i] / t->norm[i];
    }
    solve_multipliers(s);
    add_step(s, count);
}

/* The products with the matrices at x and nu; C x perhaps for rows in force only. */
INLINE void measure(Solving *s, long count, int all_rows) {
    Program *t = &s->program;
    multiply(s->Px, t->P, s->x, t->n, t->n);
    if (all_rows || !t->R) {
        multiply(s->Cx, t->C, s->x, t->rows, t->n);
    } else {
        for (long i = 0; i < count; i++)
            s->Cx[s->in_force[i]] = dot(t->R + s->in_force[i] * t->n, s->x, t->n);
    }
    s->length = sqrt(dot(s->x, s->Px, t->n));
    if (t->R) {
        for (long i = 0; i < count; i++) s->weights[i] = s->nu[s->in_force[i]];
        combine(s->pull, NULL, t->R, t->n, s->in_force, s->weights, count, t->n);
    } else {
        multiply_transposed(s->pull, t->C, s->nu, t->rows, t->n);
    }
}

/* Take what x and nu solve off the right-hand side; whether more than rounding is left of it. */
INLINE int leaves_something(Solving *s, long count) {
    const Program *t = &s->program;
    vec of_x = {0.0}, size_x = {0.0};
    for (long k = 0; k < t->n; k += WIDTH) {
        vec Px = load(s->Px + k), pull = load(s->pull + k), left = load(s->r_x + k) - (Px + pull);
        store(s->r_x + k, left);
        of_x = larger_of(size_of(left), of_x);
        size_x = larger_of(larger_of(size_of(Px), size_of(pull)), size_x);
    }
    double of_nu = 0.0;
    for (long i = 0; i < count; i++) {
        long row = s->in_force[i];
        s->r_nu[row] -= s->Cx[row];
        double left = fabs(s->r_nu[row]) / t->norm[row];
        of_nu = left > of_nu || left != left ? left : of_nu;
    }
    return !(largest_of(of_x) <= NOTHING_LEFT * largest_of(size_x) &&
             of_nu <= NOTHING_LEFT * s->length);
}

/* The solution of the KKT system, with one correction where rounding left something, and the
   products with it; returns how many rows are in force. Its beginning may be known: L^-1 r_x in w
   and, as `spread_multipliers` takes them, multipliers in the active set and in d. */
INLINE long solve_kkt_well(Solving *s, int is_begun, int all_rows) {
    long count = list_rows_in_force(s);
    memset(s->x, 0, s->program.n * sizeof *s->x);
    memset(s->nu, 0, s->program.rows * sizeof *s->nu);
    if (is_begun) {
        memcpy(s->l, s->d, s->program.fixed * sizeof *s->l);
        spread_multipliers(s, s->set.now);
        add_step(s, count);
    } else {
        solve_kkt(s, count);
    }
    measure(s, count, all_rows);
    if (leaves_something(s, count)) {
        solve_kkt(s, count);
        measure(s, count, all_rows);
    }
    return count;
}

/* --- solving ------------------------------------------------------------------------------------ */

INLINE void read_vectors(Solving *s, const Data *data, long i) {
    Program *t = &s->program;
    const double *q = at(data->q, i), *b = at(data->b, i), *h = at(data->h, i);
    const double *lb = at(data->lb, i), *ub = at(data->ub, i);
    long p = data->p, m = data->m;
    memset(s->q, 0, t->n * sizeof *s->q);
    memcpy(s->q, q, data->n * sizeof *s->q);
    for (long k = 0; k < t->rows; k++) s->lower[k] = -INFINITY, s->upper[k] = INFINITY;
    for (long k = 0; k < p; k++) s->lower[place(t, k)] = s->upper[place(t, k)] = b[k];
    for (long k = 0; k < m; k++) s->upper[place(t, p + k)] = h[k];
    for (long k = 0; k < data->boxes; k++) {
        if (lb) s->lower[place(t, p + m + k)] = lb[k];
        if (ub) s->upper[place(t, p + m + k)] = ub[k];
    }
}

/* The active rows; 0 where there is no solution, or none that is found. */
INLINE int find_active_rows(Solving *s, const double *guess, long count, long *iterations) {
    Program *t = &s->program;
    ActiveSet *set = &s->set;
    long fixed = t->fixed, eliminated = t->eliminated;
    for (long k = 0; k < t->n; k++) s->w[k] = -s->q[k];
    if (!t->W) solve_lower(s->w, t->L, t->inverse, t->n);
    multiply(s->center, t->M, s->w, t->rows, t->n);
    memset(s->d, 0, fixed * sizeof *s->d);
    for (long k = 0; k < eliminated; k++) s->d[k] = s->center[k] - s->upper[k] / t->norm[k];
    solve_lower(s->d, t->E, t->E_inverse, fixed);
    multiply(set->values, t->X, s->d, set->rows, fixed);
    double *center = s->center + fixed, largest = 1.0;
    for (long k = 0; k < set->rows; k++) {
        center[k] -= set->values[k];
        double size = fabs(center[k]);
        largest = size > largest ? size : largest;
        set->upper[k] = s->upper[fixed + k] / t->norm[fixed + k];
        set->lower[k] = s->lower[fixed + k] / t->norm[fixed + k];
    }
    set->tolerance = FEASIBLE * largest;
    clear(set);
    for (long k = 0; k < set->rows; k++)
        if (set->upper[k] == set->lower[k] && !add_if_independent(set, k, 0.0, set->upper[k]))
            return 0;
    set->fixed = set->count;
    for (long i = eliminated; guess && i < count; i++) {
        long k = i - eliminated;
        double sign = guess[i] > 0.0 ? 1.0 : -1.0, end = sign > 0.0 ? set->upper[k] : set->lower[k];
        if (fabs(guess[i]) > 0.0 && !isinf(end)) add_if_independent(set, k, sign, end);
    }
    return walk(set, iterations);
}

/* Whether the residuals are what is asked for; as `measure` of judge.py says it. */
INLINE int judge(
    const Solving *s, double eps_abs, double eps_rel, const Solution *out, long i
) {
    vec xPx = {0.0}, xq = {0.0}, ends = {0.0};
    vec of_primal = {0.0}, of_dual = {0.0}, size_primal = {0.0}, size_dual = {0.0};
    for (long k = 0; k < s->program.n; k += WIDTH) {
        vec x = load(s->x + k), Px = load(s->Px + k), q = load(s->q + k), pull = load(s->pull + k);
        xPx += x * Px, xq += x * q;
        of_dual = larger_of(size_of(Px + q + pull), of_dual);
        size_dual = larger_of(size_of(Px), larger_of(size_of(pull), size_dual));
        size_dual = larger_of(size_of(q), size_dual);
    }
    for (long k = 0; k < s->program.rows; k += WIDTH) {
        vec Cx = load(s->Cx + k), nu = load(s->nu + k), zero = {0.0};
        vec upper = load(s->upper + k), lower = load(s->lower + k);
        /* Zero times an infinite end means zero. */
        ends += nu * choose(nu > zero, upper, choose(nu == zero, zero, lower));
        of_primal = larger_of(larger_of(Cx - upper, lower - Cx), of_primal);
        size_primal = larger_of(size_of(Cx), size_primal);
    }
    double quadratic = sum(xPx), linear = sum(xq), support = sum(ends);
    double primal = largest_of(of_primal), dual = largest_of(of_dual);
    double gap = fabs(quadratic + linear + support);
    double of_gap = fabs(quadratic) + fabs(linear) + fabs(support);
    out->objective[i] = 0.5 * quadratic + linear;
    out->primal[i] = primal, out->dual[i] = dual, out->gap[i] = gap;
    return primal + dual + gap < INFINITY && primal <= eps_abs + eps_rel * largest_of(size_primal) &&
           dual <= eps_abs + eps_rel * largest_of(size_dual) &&
           gap <= eps_abs + eps_rel * of_gap;
}

INLINE void copy(double *to, const double *from, long i, long size) {
    if (size) memcpy(to + i * size, from, size * sizeof *to);
}

INLINE int solve_one(
    Solving *s, const Data *data, const Solution *out, double eps_abs, double eps_rel, long i
) {
    Program *t = &s->program;
    ActiveSet *set = &s->set;
    long n = data->n, p = data->p, m = data->m, count = p + m + data->boxes;
    if (!prepare(t, data, i)) return 0;
    read_vectors(s, data, i);
    long iterations = out->max_iter;
    if (!find_active_rows(s, at(out->guess, i), count, &iterations)) return 0;
    for (long k = 0; k < t->n; k++) s->r_x[k] = -s->q[k];
    memset(s->r_nu, 0, t->rows * sizeof *s->r_nu);
    for (long k = 0; k < t->eliminated; k++) s->r_nu[k] = s->upper[k];
    for (long k = 0; k < set->count; k++) {
        long row = t->fixed + set->row[k];
        s->r_nu[row] = set->sign[k] < 0.0 ? s->lower[row] : s->upper[row];
    }
    long in_force = solve_kkt_well(s, 1, 1);
    /* Rounding may give a multiplier the other sign; whether it was only that shows in the residuals. */
    int changed = 0;
    for (long k = set->fixed; k < set->count; k++) {
        double *nu = s->nu + t->fixed + set->row[k];
        if (set->sign[k] * *nu < 0.0) *nu = 0.0, changed = 1;
    }
    if (changed) measure(s, in_force, 1);
    out->iterations[i] = iterations;
    copy(out->x, s->x, i, n);
    copy(out->y, s->nu, i, p);
    copy(out->z, s->nu + place(t, p), i, m);
    copy(out->z_box, s->nu + place(t, p + m), i, data->boxes);
    for (long k = 0; k < m; k++)
        out->s[i * m + k] = s->upper[place(t, p + k)] - s->Cx[place(t, p + k)];
    for (long k = 0; k < count; k++) {
        long row = place(t, k);
        int sign = (s->nu[row] > 0.0) - (s->nu[row] < 0.0);
        /* Without a branch, which the processor could only guess. */
        out->side[i * count + k] = sign + (!sign & (s->lower[row] == s->upper[row]));
    }
    return judge(s, eps_abs, eps_rel, out, i);
}

/* Solve; `status` is 0 for elements that are settled, else 1. */
void FOR(optlayers_qp_solve, LEVEL)(Job *job) {
    const Data *data = &job->data;
    const Solution *out = &job->task.solution;
    Solving s;
    void *room = make_room(&s, data, gram_pays(data, data->p + data->m + data->boxes), 0);
    int64_t unsettled = 0;
    for (long i, high; room && take_piece(job, &i, &high) >= 0;)
        for (; i < high; i++) {
            out->status[i] = !solve_one(&s, data, out, job->eps_abs, job->eps_rel, i);
            unsettled += out->status[i];
        }
    free(room);
    __atomic_fetch_add(&job->left_over, unsettled, __ATOMIC_RELAXED);
    if (!room) __atomic_store_n(&job->no_memory, 1, __ATOMIC_RELAXED);
}

/* --- derivatives -------------------------------------------------------------------------------- */

/* A program without its inactive rows, unless all elements share one; with the active rows in the set. */
INLINE int prepare_active(Solving *s, const Data *data, const int8_t *side, long i) {
    Program *t = &s->program;
    ActiveSet *set = &s->set;
    long n = data->n, p = data->p, count = p + data->m + data->boxes;
    if (shared(data)) {
        for (long row = 0; row < count; row++) s->kept[row] = place(t, row);
        if (!prepare(t, data, i)) return 0;
    } else {
        const double *P = at(data->P, i), *G = at(data->G, i);
        if (P != t->of_P) t->regular = factor(t, P, n);
        t->of_P = P;
        if (!t->regular) return 0;
        long active = 0;
        for (long row = 0; row < count; row++)
            s->kept[row] = row < p ? row : side[row] ? t->fixed + active++ : -1;
        if (active > set->most) return 0; /* there is no room for more rows in the program */
        set->rows = padded(active), t->rows = t->fixed + set->rows;
        memset(t->C + t->fixed * t->n, 0, set->rows * t->n * sizeof *t->C);
        if (p) pack(t->C, t->n, 0, at(data->A, i), p, n);
        for (long row = p; row < count; row++) {
            if (s->kept[row] < 0) continue;
            if (row < p + data->m)
                pack(t->C, t->n, s->kept[row], G + (row - p) * n, 1, n);
            else
                *entry(t->C, t->n, s->kept[row], row - p - data->m) = 1.0;
        }
        transform(t);
        if (!relate(t)) return 0;
    }
    long active = 0;
    for (long row = t->eliminated; row < count; row++) {
        if (!side[row]) continue;
        if (active == set->most) return 0;
        set->row[active++] = s->kept[row] - t->fixed;
    }
    return activate(set, active);
}

/* a = -K^-1 g for cotangents g of x and of the multipliers. */
INLINE int solve_adjoint(Solving *s, const Data *data, const Adjoint *task, double *a, long i) {
    Program *t = &s->program;
    long n = data->n, p = data->p, m = data->m, count = p + m + data->boxes;
    const double *g_x = at(task->of_x, i), *g_s = m ? at(task->of_s, i) : NULL;
    const double *g[] = {at(task->of_y, i), at(task->of_z, i), at(task->of_box, i)};
    const int8_t *side = task->side + i * count;
    memset(a, 0, (n + count) * sizeof *a);
    /* Most often none: of elements that failed, and where a loss looks at a part of the batch. */
    const double *given[] = {g_x, g[0], g[1], g[2], g_s};
    long sizes[] = {n, p, m, data->boxes, m};
    int asked = 0;
    for (int j = 0; j < 5; j++)
        for (long k = 0; given[j] && k < sizes[j]; k++) asked |= given[j][k] != 0.0;
    if (!asked) return 1;
    if (!prepare_active(s, data, side, i)) return 0;
    memset(s->r_x, 0, t->n * sizeof *s->r_x);
    memset(s->r_nu, 0, t->rows * sizeof *s->r_nu);
    for (long k = 0; g_x && k < n; k++) s->r_x[k] = -g_x[k];
    for (long j = 0; g_s && j < m; j++) { /* s = h - G x */
        const double *row = at(data->G, i) + j * n;
        for (long k = 0; k < n; k++) s->r_x[k] += row[k] * g_s[j];
    }
    long first[] = {0, p, p + m, count};
    for (int j = 0; j < 3; j++)
        for (long row = first[j]; g[j] && row < first[j + 1]; row++)
            if (side[row] && s->kept[row] >= 0) s->r_nu[s->kept[row]] = -g[j][row - first[j]];
    solve_kkt_well(s, 0, 0);
    memcpy(a, s->x, n * sizeof *a);
    for (long row = 0; row < count; row++)
        if (s->kept[row] >= 0) a[n + row] = s->nu[s->kept[row]];
    for (long j = 0; g_s && j < m; j++) a[n + p + j] -= g_s[j];
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
   theorem, half of it in the products. Nothing but zeros where the KKT matrix is singular. */
INLINE void pull_back(const Data *data, const Adjoint *task, double *a, long i) {
    long n = data->n, p = data->p, m = data->m, boxes = data->boxes;
    const double *x = at(task->x, i), *value = task->singular[i] ? NULL : at(task->of_value, i);
    struct { const double *solution; long first, size; double *matrix, *vector; } part[] = {
        {at(task->y, i), n, p, task->A, task->b},
        {at(task->z, i), n + p, m, task->G, task->h},
        {at(task->z_box, i), n + p + m, boxes, NULL, NULL},
    };
    double half = value ? 0.5 * *value : 0.0;
    const int8_t *side = task->side + i * (p + m + boxes) + p + m;
    for (long k = 0; k < n; k++) a[k] += half * x[k];
    if (task->P) outer(task->P + i * n * n, a, x, x, a, 0.5, n, n);
    if (task->q) for (long k = 0; k < n; k++) task->q[i * n + k] = a[k] + half * x[k];
    for (int j = 0; j < 3; j++) {
        double *of_rows = a + part[j].first;
        const double *solution = part[j].solution;
        for (long k = 0; k < part[j].size; k++) of_rows[k] += half * solution[k];
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

/* Add the gradients of P, A and G by the elements that wait to the sums of their piece, which are
   under each other in rows filled up to a multiple of eight. That of P is a_x x', whose symmetric
   part it is. */
INLINE void add_waiting(Waiting *t, const Data *data, double *sums, long piece) {
    long n = data->n, size = padded(n), rows = n + data->p + data->m, stride = (n + 7) / 8 * 8;
    for (long r = 0; r < rows; r++) {
        double *row = sums + (piece * rows + r) * stride;
        combine(row, row, t->x, size, NULL, t->of_x + r * SOME, t->count, size);
        if (r < n) continue;
        combine(row, row, t->a_x, size, NULL, t->of_a + (r - n) * SOME, t->count, size);
    }
    t->count = 0;
}

INLINE void wait_for_others(
    Waiting *t, const Data *data, const Adjoint *task, const double *a, long i
) {
    long n = data->n, p = data->p, m = data->m, size = padded(n), e = t->count++;
    const double *y = at(task->y, i), *z = at(task->z, i);
    double *x = t->x + e * size, *a_x = t->a_x + e * size;
    memcpy(x, at(task->x, i), n * sizeof *x);
    memcpy(a_x, a, n * sizeof *a_x);
    for (long k = n; k < size; k++) x[k] = a_x[k] = 0.0;
    for (long r = 0; r < n + p + m; r++) t->of_x[r * SOME + e] = a[r];
    for (long r = 0; r < p; r++) t->of_a[r * SOME + e] = y[r];
    for (long r = 0; r < m; r++) t->of_a[(p + r) * SOME + e] = z[r];
}

/* The gradients of P, A and G, from the sums of all pieces, in their order. */
INLINE void add_pieces(const Data *data, const Adjoint *task, long pieces) {
    long n = data->n, p = data->p, m = data->m, stride = (n + 7) / 8 * 8, size = (n + p + m) * stride;
    double *sums = task->sums;
    for (long piece = 1; piece < pieces; piece++) add_multiple(sums, 1.0, sums + piece * size, size);
    for (long i = 0; task->sum_P && i < n; i++)
        for (long k = 0; k < n; k++)
            task->sum_P[i * n + k] = 0.5 * (sums[i * stride + k] + sums[k * stride + i]);
    for (long i = 0; task->sum_A && i < p; i++) copy(task->sum_A, sums + (n + i) * stride, i, n);
    for (long i = 0; task->sum_G && i < m; i++) copy(task->sum_G, sums + (n + p + i) * stride, i, n);
}

/* Gradients; those of elements that have no regular KKT matrix are zero. */
void FOR(optlayers_qp_adjoint, LEVEL)(Job *job) {
    const Data *data = &job->data;
    const Adjoint *task = &job->task.adjoint;
    Solving s;
    long size = data->n + data->p + data->m + data->boxes;
    int with_gram = !shared(data) || gram_pays(data, size - data->n);
    void *room = make_room(&s, data, with_gram, task->sums != NULL);
    int64_t singular = 0;
    for (long i, high, piece; room && (piece = take_piece(job, &i, &high)) >= 0;) {
        for (; i < high; i++) {
            double *a = task->a ? task->a + i * size : s.adjoint;
            task->singular[i] = !solve_adjoint(&s, data, task, a, i);
            singular += task->singular[i];
            pull_back(data, task, a, i);
            if (!task->sums || task->singular[i]) continue;
            wait_for_others(&s.waiting, data, task, a, i);
            if (s.waiting.count == SOME) add_waiting(&s.waiting, data, task->sums, piece);
        }
        if (!task->sums) continue;
        add_waiting(&s.waiting, data, task->sums, piece);
        if (__atomic_add_fetch(&job->finished, 1, __ATOMIC_ACQ_REL) == job->pieces)
            add_pieces(data, task, job->pieces);
    }
    free(room);
    __atomic_fetch_add(&job->left_over, singular, __ATOMIC_RELAXED);
    if (!room) __atomic_store_n(&job->no_memory, 1, __ATOMIC_RELAXED);
}
