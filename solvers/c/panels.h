/* Dense linear algebra on matrices of ten to some hundred rows, one after the other.

   A matrix is a stack of panels of WIDTH rows, as many as a vector register has numbers; a panel
   holds its columns one after the other, so one instruction works on all its rows and nothing is
   left over at the end of a row. Rows and columns that fill up the last panel are zero: sizes are
   multiples of WIDTH, but where the comment says otherwise. Every function is inlined into the
   entry points, which are compiled for several processors. */

#ifndef OPTLAYERS_PANELS_H
#define OPTLAYERS_PANELS_H

#include <math.h>
#include <string.h>

#if defined(__AVX512F__)
enum { WIDTH = 8 };
#elif defined(__AVX__)
enum { WIDTH = 4 };
#else
enum { WIDTH = 2 };
#endif

typedef double vec __attribute__((vector_size(8 * WIDTH)));
typedef long long mask __attribute__((vector_size(8 * WIDTH)));

#define INLINE static inline __attribute__((always_inline))

INLINE long padded(long size) { return (size + WIDTH - 1) / WIDTH * WIDTH; }

INLINE vec load(const double *from) { return *(const vec *)from; }

INLINE void store(double *to, vec value) { *(vec *)to = value; }

INLINE vec spread(double value) {
    vec all = {0.0};
    return all + value;
}

INLINE double sum(vec v) {
    double total = 0.0;
    for (int c = 0; c < WIDTH; c++) total += v[c];
    return total;
}

INLINE vec choose(mask first, vec a, vec b) { return (vec)(((mask)a & first) | ((mask)b & ~first)); }

/* The larger one, or what is not a number. */
INLINE vec larger_of(vec a, vec b) { return choose((a > b) | (a != a), a, b); }

INLINE vec size_of(vec v) { return larger_of(v, -v); }

/* Whether a comparison holds somewhere. */
INLINE int any(mask comparison) {
    long long found = 0;
    for (int c = 0; c < WIDTH; c++) found |= comparison[c];
    return found != 0;
}

INLINE double largest_of(vec v) {
    double found = v[0];
    for (int c = 1; c < WIDTH; c++) found = v[c] > found || v[c] != v[c] ? v[c] : found;
    return found;
}

/* The larger one, or b where a is not a number. */
INLINE vec larger_number(vec a, vec b) { return choose(a > b, a, b); }

/* The largest of the numbers. */
INLINE double largest_number(vec v) {
    for (int half = WIDTH / 2; half; half /= 2)
        for (int c = 0; c < half; c++) v[c] = v[c + half] > v[c] ? v[c + half] : v[c];
    return v[0];
}

/* The largest absolute value of the numbers in a vector that is filled up with zeros. */
INLINE double largest(const double *v, long size) {
    vec found = {0.0};
    for (long i = 0; i < size; i += WIDTH) {
        vec number = load(v + i);
        found = larger_number(larger_number(number, -number), found);
    }
    return largest_number(found);
}

/* Where panels with `columns` columns keep the entry (i, k); the next column is WIDTH further on. */
INLINE double *entry(double *panels, long columns, long i, long k) {
    return panels + i / WIDTH * WIDTH * columns + k * WIDTH + i % WIDTH;
}

/* Copy a row-major matrix into rows `first` on of panels with `columns` columns. */
INLINE void pack(double *panels, long columns, long first, const double *from, long rows, long n) {
    for (long i = 0; i < rows; i++) {
        double *to = entry(panels, columns, first + i, 0);
        for (long k = 0; k < n; k++) to[k * WIDTH] = from[i * n + k];
    }
}

/* acc[c] -= A b_c for WIDTH columns b_c: a tile of a product, of `length` terms. */
INLINE void subtract_product(vec acc[WIDTH], const double *A, const double *B, long length) {
    vec sums[WIDTH];
    for (int c = 0; c < WIDTH; c++) sums[c] = acc[c];
    for (long k = 0; k < length; k++) {
        vec a = load(A + k * WIDTH);
        for (int c = 0; c < WIDTH; c++) sums[c] -= a * B[k * WIDTH + c];
    }
    for (int c = 0; c < WIDTH; c++) acc[c] = sums[c];
}

/* Replace columns `first` to `first + WIDTH` of a panel x by those of x L^-T, the earlier ones done. */
INLINE void solve_tile(double *x, const double *L_panel, const double *inverse, long first) {
    vec acc[WIDTH];
    for (int c = 0; c < WIDTH; c++) acc[c] = load(x + (first + c) * WIDTH);
    subtract_product(acc, x, L_panel, first);
    const double *corner = L_panel + first * WIDTH;
    for (int c = 0; c < WIDTH; c++) {
        for (int d = 0; d < c; d++) acc[c] -= acc[d] * corner[d * WIDTH + c];
        acc[c] *= inverse[first + c];
        store(x + (first + c) * WIDTH, acc[c]);
    }
}

/* Rows X L^-T in place of one panel of rows X. */
INLINE void solve_panel(double *x, const double *L, const double *inverse, long n) {
    for (long first = 0; first < n; first += WIDTH)
        solve_tile(x, L + first * n, inverse, first);
}

/* The Cholesky factor L of a symmetric matrix, in its place, and the inverses of its diagonal.

   The diagonal of what was factored is in `diagonal`; a pivot that is not above `least` times its
   entry (nor is one that is not a number) ends it. Returns whether all were. Where the matrix is
   filled up it has ones on the diagonal. */
INLINE int cholesky(double *L, double *inverse, const double *diagonal, long n, double least) {
    for (long i = 0; i < n; i += WIDTH) {
        double *panel = L + i * n;
        for (long j = 0; j < i; j += WIDTH) solve_tile(panel, L + j * n, inverse, j);
        vec acc[WIDTH];
        for (int c = 0; c < WIDTH; c++) acc[c] = load(panel + (i + c) * WIDTH);
        subtract_product(acc, panel, panel, i);
        for (int c = 0; c < WIDTH; c++) {
            double pivot = acc[c][c];
            if (!(pivot > least * diagonal[i + c])) return 0;
            inverse[i + c] = 1.0 / sqrt(pivot);
            acc[c] *= inverse[i + c];
            for (int d = c + 1; d < WIDTH; d++) acc[d] -= acc[c] * acc[c][d];
            for (int r = 0; r < c; r++) acc[c][r] = 0.0;
            store(panel + (i + c) * WIDTH, acc[c]);
        }
        memset(panel + (i + WIDTH) * WIDTH, 0, (n - i - WIDTH) * WIDTH * sizeof *panel);
    }
    return 1;
}

/* One panel of the products A B' of rows with `n` columns, up to the columns from `last` on. */
INLINE void multiply_rows(double *product, const double *A, const double *B, long last, long n) {
    for (long j = 0; j <= last; j += WIDTH) {
        vec acc[WIDTH] = {{0.0}};
        subtract_product(acc, A, B + j * n, n);
        for (int c = 0; c < WIDTH; c++) store(product + (j + c) * WIDTH, -acc[c]);
    }
}

/* Row-major H = M M' - X X', symmetric, for `rows` rows of `n` and of `m` columns. */
INLINE void gram(double *H, const double *M, const double *X, long rows, long n, long m) {
    for (long i = 0; i < rows; i += WIDTH)
        for (long j = 0; j <= i; j += WIDTH) {
            vec acc[WIDTH] = {{0.0}};
            subtract_product(acc, M + i * n, M + j * n, n);
            for (int c = 0; c < WIDTH; c++) acc[c] = -acc[c];
            subtract_product(acc, X + i * m, X + j * m, m);
            for (int c = 0; c < WIDTH; c++) {
                store(H + (j + c) * rows + i, acc[c]);
                for (int r = 0; r < WIDTH; r++) H[(i + r) * rows + j + c] = acc[c][r];
            }
        }
}

/* y = A x for panels of `rows` rows and `columns` columns. */
INLINE void multiply(double *y, const double *A, const double *x, long rows, long columns) {
    for (long i = 0; i < rows; i += WIDTH) {
        const double *a = A + i * columns;
        vec even = {0.0}, odd = {0.0}, even2 = {0.0}, odd2 = {0.0};
        long k = 0;
        for (; k + 4 <= columns; k += 4) {
            even += load(a + k * WIDTH) * x[k];
            odd += load(a + (k + 1) * WIDTH) * x[k + 1];
            even2 += load(a + (k + 2) * WIDTH) * x[k + 2];
            odd2 += load(a + (k + 3) * WIDTH) * x[k + 3];
        }
        for (; k < columns; k++) even += load(a + k * WIDTH) * x[k];
        store(y + i, (even + even2) + (odd + odd2));
    }
}

/* y = A' w for panels of `rows` rows and `columns` columns. */
INLINE void multiply_transposed(
    double *y, const double *A, const double *w, long rows, long columns
) {
    for (long k = 0; k < columns; k++) {
        vec acc = {0.0};
        for (long i = 0; i < rows; i += WIDTH)
            acc += load(A + i * columns + k * WIDTH) * load(w + i);
        y[k] = sum(acc);
    }
}

/* `width` times WIDTH entries of y + the sum of weights[i] times row rows[i] of a row-major matrix;
   of its first rows if `rows` is NULL. All in registers: each is stored once. */
INLINE void combine_some(
    double *to, const double *y, const double *A, long stride, const long *rows,
    const double *weights, long count, int width
) {
    vec acc[4] = {{0.0}};
    for (int c = 0; y && c < width; c++) acc[c] = load(y + c * WIDTH);
    for (long i = 0; i < count; i++) {
        const double *row = A + (rows ? rows[i] : i) * stride;
        for (int c = 0; c < width; c++) acc[c] += load(row + c * WIDTH) * weights[i];
    }
    for (int c = 0; c < width; c++) store(to + c * WIDTH, acc[c]);
}

/* The same for `columns` entries; y may be NULL for zero. */
INLINE void combine(
    double *to, const double *y, const double *A, long stride, const long *rows,
    const double *weights, long count, long columns
) {
    for (long k = 0; k < columns; k += 4 * WIDTH) {
        const double *from = y ? y + k : NULL;
        switch ((columns - k) / WIDTH) {
        case 1: combine_some(to + k, from, A + k, stride, rows, weights, count, 1); break;
        case 2: combine_some(to + k, from, A + k, stride, rows, weights, count, 2); break;
        case 3: combine_some(to + k, from, A + k, stride, rows, weights, count, 3); break;
        default: combine_some(to + k, from, A + k, stride, rows, weights, count, 4);
        }
    }
}

/* Row i of panels, one number after the other. */
INLINE void unpack_row(double *to, const double *panels, long columns, long i) {
    const double *from = entry((double *)panels, columns, i, 0);
    for (long k = 0; k < columns; k++) to[k] = from[k * WIDTH];
}

/* Row-major from panels of `rows` rows. */
INLINE void unpack(double *to, const double *panels, long rows, long columns) {
    for (long i = 0; i < rows; i++) unpack_row(to + i * columns, panels, columns, i);
}

INLINE double dot(const double *a, const double *b, long size) {
    vec acc = {0.0};
    for (long i = 0; i < size; i += WIDTH) acc += load(a + i) * load(b + i);
    return sum(acc);
}

/* L^-1 w in place of w. */
INLINE void solve_lower(double *w, const double *L, const double *inverse, long n) {
    for (long i = 0; i < n; i += WIDTH) {
        const double *panel = L + i * n;
        vec acc = load(w + i), other = {0.0};
        for (long k = 0; k < i; k += 2) {
            acc -= load(panel + k * WIDTH) * w[k];
            other -= load(panel + (k + 1) * WIDTH) * w[k + 1];
        }
        acc += other;
        for (int c = 0; c < WIDTH; c++) {
            double found = acc[c] * inverse[i + c];
            acc -= load(panel + (i + c) * WIDTH) * found;
            w[i + c] = found;
        }
    }
}

/* L^-T w in place of w; `partial` has room for `n` vectors. */
INLINE void solve_upper(double *w, const double *L, const double *inverse, long n, double *partial) {
    memset(partial, 0, n * WIDTH * sizeof *partial);
    for (long i = n - WIDTH; i >= 0; i -= WIDTH) {
        const double *panel = L + i * n;
        for (int c = WIDTH - 1; c >= 0; c--) {
            double found = w[i + c] - sum(load(partial + (i + c) * WIDTH));
            const double *column = panel + (i + c) * WIDTH;
            for (int d = WIDTH - 1; d > c; d--) found -= column[d] * w[i + d]; /* the latest last */
            w[i + c] = found * inverse[i + c];
        }
        vec solved = load(w + i);
        for (long k = 0; k < i; k++)
            store(partial + k * WIDTH, load(partial + k * WIDTH) + load(panel + k * WIDTH) * solved);
    }
}

#endif
