/* Small dense systems, one after the other, and how large vectors are: see systems.py.

   LU factorisation with row exchanges, PIVOTS columns at a time, so that what is below and to the
   right of them is read and written once for all of them. Singular matrices give what is not
   finite, or is no solution: whoever asks looks at residuals. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

enum { PIVOTS = 4 };

/* Words of eight bytes, all of them. */
typedef struct {
    const void *M, *v, *w;         /* (count, n, n), (columns, count, n), (count, n) */
    void *u, *x;                   /* as v and w */
    int64_t count, n, columns, is_single;
    int64_t u_crossed, x_crossed;  /* whether to solve with M' for them */
    int64_t no_memory;             /* nothing was done; set here */
} Systems;

static double at(const void *numbers, int64_t i, int64_t is_single) {
    return is_single ? ((const float *)numbers)[i] : ((const double *)numbers)[i];
}

static void put(void *numbers, int64_t i, double value, int64_t is_single) {
    if (is_single)
        ((float *)numbers)[i] = (float)value;
    else
        ((double *)numbers)[i] = value;
}

static void exchange(double *a, double *b, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        double t = a[j];
        a[j] = b[j];
        b[j] = t;
    }
}

/* to -= scale * from. */
static void subtract(double *restrict to, double scale, const double *restrict from, int64_t n) {
    for (int64_t j = 0; j < n; j++)
        to[j] -= scale * from[j];
}

/* P A = L U in place of A; L has ones on its diagonal. Row k was exchanged with row[k]. */
static void factor(double *A, int64_t *row, int64_t n) {
    for (int64_t first = 0; first < n; first += PIVOTS) {
        int64_t end = first + PIVOTS < n ? first + PIVOTS : n;
        for (int64_t k = first; k < end; k++) {
            row[k] = k;
            for (int64_t i = k + 1; i < n; i++)
                if (fabs(A[i * n + k]) > fabs(A[row[k] * n + k]))
                    row[k] = i;
            if (row[k] != k)
                exchange(A + k * n, A + row[k] * n, n);
            double inverse = 1.0 / A[k * n + k];
            for (int64_t i = k + 1; i < n; i++) {
                A[i * n + k] *= inverse;
                subtract(A + i * n + k + 1, A[i * n + k], A + k * n + k + 1, end - k - 1);
            }
        }
        for (int64_t k = first + 1; k < end; k++)
            for (int64_t i = first; i < k; i++)
                subtract(A + k * n + end, A[k * n + i], A + i * n + end, n - end);
        const double *top = A + first * n;
        for (int64_t i = end; i < n; i++) {
            double *restrict a = A + i * n;
            const double *l = a + first;
            for (int64_t j = end; j < n; j++)  /* there are none but below four whole rows */
                a[j] -= l[0] * top[j] + l[1] * top[n + j] + l[2] * top[2 * n + j] +
                        l[3] * top[3 * n + j];
        }
    }
}

/* b becomes the solution of A b = b. */
static void solve(const double *A, const int64_t *row, double *b, int64_t n) {
    for (int64_t k = 0; k < n; k++)
        exchange(b + k, b + row[k], 1);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++)
            b[i] -= A[i * n + j] * b[j];
    for (int64_t i = n - 1; i >= 0; i--) {
        for (int64_t j = i + 1; j < n; j++)
            b[i] -= A[i * n + j] * b[j];
        b[i] /= A[i * n + i];
    }
}

/* The same for A' b = b. */
static void solve_transposed(const double *A, const int64_t *row, double *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        b[i] /= A[i * n + i];
        subtract(b + i + 1, b[i], A + i * n + i + 1, n - i - 1);
    }
    for (int64_t i = n - 1; i >= 0; i--)
        subtract(b, b[i], A + i * n, i);
    for (int64_t k = n - 1; k >= 0; k--)
        exchange(b + k, b + row[k], 1);
}

void optlayers_lu(Systems *s) {
    int64_t n = s->n, is_single = s->is_single;
    double *A = malloc((n * n + n) * sizeof *A), *b = A + n * n;
    int64_t *row = malloc(n * sizeof *row);
    s->no_memory = !A || !row;
    for (int64_t i = 0; i < s->count && !s->no_memory; i++) {
        for (int64_t j = 0; j < n * n; j++)
            A[j] = at(s->M, i * n * n + j, is_single);
        factor(A, row, n);
        for (int64_t c = 0; c <= s->columns; c++) {
            int is_v = c < s->columns;
            const void *from = is_v ? s->v : s->w;
            void *to = is_v ? s->u : s->x;
            int64_t start = (is_v ? c * s->count + i : i) * n;
            for (int64_t j = 0; j < n; j++)
                b[j] = at(from, start + j, is_single);
            if (is_v ? s->u_crossed : s->x_crossed)
                solve_transposed(A, row, b, n);
            else
                solve(A, row, b, n);
            for (int64_t j = 0; j < n; j++)
                put(to, start + j, b[j], is_single);
        }
    }
    free(A);
    free(row);
}

/* Words of eight bytes, all of them. */
typedef struct {
    const void *a, *b, *least;  /* (rows, n) twice; (count), or NULL */
    void *ratio;                /* |a| / (|b| + floor) and at least `least` (rows) */
    int64_t rows, n, count, is_single;
    double floor;
    double largest;             /* NaN if there is one; set here */
} Ratios;

static double length(const void *a, int64_t start, int64_t n, int64_t is_single) {
    double sum = 0.0;
    for (int64_t j = start; j < start + n; j++)
        sum += at(a, j, is_single) * at(a, j, is_single);
    return sqrt(sum);
}

void optlayers_ratios(Ratios *r) {
    r->largest = 0.0;
    for (int64_t i = 0; i < r->rows; i++) {
        double a = length(r->a, i * r->n, r->n, r->is_single);
        double ratio = a / (length(r->b, i * r->n, r->n, r->is_single) + r->floor);
        double least = r->least ? at(r->least, i % r->count, r->is_single) : 0.0;
        if (least > ratio || isnan(least))
            ratio = least;
        put(r->ratio, i, ratio, r->is_single);
        if (!(ratio <= r->largest))  /* and NaN stays */
            r->largest = isnan(r->largest) ? r->largest : ratio;
    }
}
