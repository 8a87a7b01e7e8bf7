/* Products of few rows, and attention to cached keys, for decoding on CPUs.
 *
 * What must hold: a row's result does not depend, to the last bit, on which other rows there are or on how many threads
 * work. So every output is one chain of multiply-adds over its inputs in their order, whatever tile it is computed in,
 * and attention walks the keys in blocks that begin at fixed places.
 *
 * A matrix lies in panels of 16 outputs, [outputs / 16][inputs][16] in float32, [outputs / 16][inputs / 2][16][2] in
 * bfloat16: read once from one end to the other, and already as the processor's dot product of pairs wants them. Where
 * it has none, bfloat16 is widened by shifting: the same panels, and float32 arithmetic.
 *
 * Threads are those of the OpenMP runtime that the caller has loaded (rhea_setup), so that there is one pool.
 */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__AVX512F__) || defined(__AVX__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX512BF16__) && LANES == 16
#define PAIRS 1 /* dot products of pairs of bfloat16 */
#else
#define PAIRS 0
#endif

#define PANEL 16
#define VECTORS (PANEL / LANES) /* of a panel */
#define UNIT 8                  /* panels whose outputs are finished together */
#define MOST_ROWS (LANES == 16 ? 12 : 6) /* of a tile: as many sums as the registers hold */
#define KEYS 64                 /* keys of a block of attention */
#define QUERIES 96              /* query heads that share a block once it is prepared */
#define LARGEST_HEAD 256
#define WORTH_SHARING (1 << 18)
#define KEPT (8 << 20) /* bytes of a thread's own room */
#define CACHED (192 * 1024) /* bytes of a matrix that a core keeps while rows pass by */
#define AHEAD 2048 /* bytes of a panel to be fetched before they are wanted */
#define INLINE static inline __attribute__((always_inline))

typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));

typedef struct {
    const void *panels;
    int64_t inputs, outputs;
    int32_t bfloat16, gated; /* gated: even panels are a gate's, odd ones its partner's */
} Matrix;

/* ---- threads ---- */

typedef void (*Work)(void *);
static void (*omp_parallel)(Work, void *, unsigned, unsigned);
static void (*omp_barrier)(void);
static int (*omp_number)(void), (*omp_size)(void);

void rhea_setup(void *parallel, void *barrier, void *number, void *size) {
    omp_parallel = (void (*)(Work, void *, unsigned, unsigned))parallel;
    omp_barrier = (void (*)(void))barrier;
    omp_number = (int (*)(void))number;
    omp_size = (int (*)(void))size;
}

typedef struct {
    void (*body)(const void *, int thread, int threads);
    const void *job;
} Team;

static void member(void *data) {
    const Team *team = data;
    team->body(team->job, omp_number(), omp_size());
}

/* ``products``: the multiplications to share out; waking others for few takes longer. */
static void together(void (*body)(const void *, int, int), const void *job, int threads, int64_t products) {
    Team team = {body, job};
    if (threads > 1 && omp_parallel && products > WORTH_SHARING)
        omp_parallel(member, &team, (unsigned)threads, 0);
    else
        body(job, 0, 1);
}

INLINE void meet(int threads) {
    if (threads > 1) omp_barrier();
}

/* Room of the calling thread that grows to what it needs and goes with it. */
static pthread_key_t room_key;
static pthread_once_t room_once = PTHREAD_ONCE_INIT;
typedef struct {
    size_t size;
    void *memory;
} Room;

static void leave(void *data) {
    free(((Room *)data)->memory);
    free(data);
}

static void make_key(void) { pthread_key_create(&room_key, leave); }

static void *aligned(size_t bytes) {
    void *memory;
    return posix_memalign(&memory, 64, (bytes + 4095) / 4096 * 4096) ? NULL : memory;
}

/* What is large is not kept: it is ``once`` and to be freed. */
static void *room(size_t bytes, Room *once) {
    if (bytes > KEPT) return once->memory = aligned(bytes);
    pthread_once(&room_once, make_key);
    Room *mine = pthread_getspecific(room_key);
    if (!mine) {
        mine = calloc(1, sizeof *mine);
        if (!mine) return NULL;
        pthread_setspecific(room_key, mine);
    }
    if (mine->size < bytes || !mine->memory) {
        free(mine->memory);
        mine->memory = aligned(bytes);
        mine->size = mine->memory ? bytes : 0;
    }
    return mine->memory;
}

/* ---- vectors ---- */

INLINE F load(const float *at) {
    F x;
    memcpy(&x, at, sizeof x);
    return x;
}
INLINE void store(float *at, F x) { memcpy(at, &x, sizeof x); }
INLINE F all(float x) { return x - (F){0}; }

INLINE F fma_(F a, F b, F c) {
#if LANES == 16
    return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && LANES == 8
    return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE F choose(I where, F yes, F no) { return (F)((where & (I)yes) | (~where & (I)no)); }

INLINE F widen(const uint16_t *at) {
    H x;
    memcpy(&x, at, sizeof x);
#if LANES == 16
    return (F)((U)_mm512_cvtepu16_epi32((__m256i)x) << 16);
#elif defined(__AVX2__)
    return (F)((U)_mm256_cvtepu16_epi32((__m128i)x) << 16);
#else
    return (F)(__builtin_convertvector(x, U) << 16);
#endif
}
INLINE F low(U pairs) { return (F)(pairs << 16); }
INLINE F high(U pairs) { return (F)(pairs & 0xffff0000u); }

/* To the nearest, ties to even; what is no number stays none. */
INLINE U rounded_bits(F x) {
    U bits = (U)x;
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (U)choose(x == x, (F)(bits & 0xffff0000u), (F)((U)x | 0x00400000u) );
}
INLINE F rounded(F x, int bfloat16) { return bfloat16 ? (F)(rounded_bits(x) & 0xffff0000u) : x; }
INLINE void narrow(uint16_t *at, F x) {
    H bits = __builtin_convertvector(rounded_bits(x) >> 16, H);
    memcpy(at, &bits, sizeof bits);
}
INLINE float widen_one(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}
INLINE uint16_t narrow_one(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE F read_vector(const void *from, int64_t at, int bfloat16) {
    return bfloat16 ? widen((const uint16_t *)from + at) : load((const float *)from + at);
}
INLINE float read_one(const void *from, int64_t at, int bfloat16) {
    return bfloat16 ? widen_one(((const uint16_t *)from)[at]) : ((const float *)from)[at];
}
INLINE void write_vector(void *to, int64_t at, F x, int bfloat16) {
    if (bfloat16)
        narrow((uint16_t *)to + at, x);
    else
        store((float *)to + at, x);
}
INLINE void write_one(void *to, int64_t at, float x, int bfloat16) {
    if (bfloat16)
        ((uint16_t *)to)[at] = narrow_one(x);
    else
        ((float *)to)[at] = x;
}
INLINE const void *step(const void *from, int64_t count, int bfloat16) {
    return (const char *)from + count * (bfloat16 ? 2 : 4);
}
INLINE float sum_of(F x) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += x[lane];
    return total;
}

/* e^x: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (the coefficients of Cephes); two units in the last place. */
INLINE F exponential(F x) {
    F most = all(88.37f), least = all(-87.33f);
    F inside = choose(x > most, most, x);
    inside = choose(inside < least, least, inside); /* what is no number passes both */
    F count = inside * 1.44269504f;
    count = (count + 12582912.0f) - 12582912.0f; /* to the nearest whole number */
    F rest = fma_(count, all(-0.693359375f), inside);
    rest = fma_(count, all(2.12194440e-4f), rest);
    F value = all(1.9875691500e-4f);
    value = fma_(value, rest, all(1.3981999507e-3f));
    value = fma_(value, rest, all(8.3334519073e-3f));
    value = fma_(value, rest, all(4.1665795894e-2f));
    value = fma_(value, rest, all(1.6666665459e-1f));
    value = fma_(value, rest, all(5.0000001201e-1f));
    value = fma_(value, rest * rest, rest) + 1.0f;
    I power = (__builtin_convertvector(count, I) + 127) << 23;
    return choose(x == x, value * (F)power, x);
}

/* ---- tiles: R rows times P panels, over all inputs ---- */

/* Every loop over rows and panels is unrolled, so that the sums live in registers. */
#define EACH(index, count) _Pragma("GCC unroll 16") for (int index = 0; index < (count); index++)

INLINE void tile_float(int R, int P, const float *x, int64_t x_step, const float *panels, int64_t inputs, float *out) {
    F sums[12][8 * VECTORS];
    EACH(r, R) EACH(v, P * VECTORS) sums[r][v] = (F){0};
    for (int64_t k = 0; k < inputs; k++) {
        F values[8 * VECTORS];
        EACH(p, P) __builtin_prefetch(panels + p * inputs * PANEL + k * PANEL + AHEAD / 4);
        EACH(v, P * VECTORS)
            values[v] = load(panels + (v / VECTORS) * inputs * PANEL + k * PANEL + (v % VECTORS) * LANES);
        EACH(r, R) {
            F factor = all(x[r * x_step + k]);
            EACH(v, P * VECTORS) sums[r][v] = fma_(factor, values[v], sums[r][v]);
        }
    }
    EACH(r, R) EACH(v, P * VECTORS) store(out + r * UNIT * PANEL + v * LANES, sums[r][v]);
}

#if PAIRS
typedef uint16_t Row; /* what rows are prepared as, for matrices of bfloat16 */
INLINE void tile_pairs(int R, int P, const Row *x, int64_t x_step, const uint16_t *panels, int64_t inputs, float *out) {
    F sums[12][8];
    EACH(r, R) EACH(p, P) sums[r][p] = (F){0};
    for (int64_t k = 0; k < inputs; k += 2) {
        __m512bh values[8];
        EACH(p, P) __builtin_prefetch(panels + p * inputs * PANEL + k * PANEL + AHEAD / 2);
        EACH(p, P) memcpy(&values[p], panels + p * inputs * PANEL + k * PANEL, 64);
        EACH(r, R) {
            int32_t pair;
            memcpy(&pair, x + r * x_step + k, 4);
            __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
            EACH(p, P) sums[r][p] = (F)_mm512_dpbf16_ps((__m512)sums[r][p], factor, values[p]);
        }
    }
    EACH(r, R) EACH(p, P) store(out + r * UNIT * PANEL + p * LANES, sums[r][p]);
}
#else
typedef float Row;
INLINE void tile_pairs(int R, int P, const Row *x, int64_t x_step, const uint16_t *panels, int64_t inputs, float *out) {
    F sums[12][8 * VECTORS];
    EACH(r, R) EACH(v, P * VECTORS) sums[r][v] = (F){0};
    for (int64_t k = 0; k < inputs; k += 2) {
        U values[8 * VECTORS];
        EACH(p, P) __builtin_prefetch(panels + p * inputs * PANEL + k * PANEL + AHEAD / 2);
        EACH(v, P * VECTORS)
            memcpy(&values[v], panels + (v / VECTORS) * inputs * PANEL + k * PANEL + (v % VECTORS) * 2 * LANES,
                   sizeof(U));
        EACH(r, R) {
            F factor = all(x[r * x_step + k]);
            EACH(v, P * VECTORS) sums[r][v] = fma_(factor, low(values[v]), sums[r][v]);
        }
        EACH(r, R) {
            F factor = all(x[r * x_step + k + 1]);
            EACH(v, P * VECTORS) sums[r][v] = fma_(factor, high(values[v]), sums[r][v]);
        }
    }
    EACH(r, R) EACH(v, P * VECTORS) store(out + r * UNIT * PANEL + v * LANES, sums[r][v]);
}
#endif

/* One row has many panels at once, so that its few chains of sums hide their latency; many rows have few. */
#define WIDTH(R) (LANES == 16 ? ((R) <= 3 ? 8 : (R) <= 6 ? 4 : 2) : (R) <= 1 ? 4 : (R) <= 2 ? 2 : 1)
#define ROWS(NAME, TYPE, R)                                                                            \
    case R:                                                                                            \
        for (; panel + WIDTH(R) <= count; panel += WIDTH(R))                                           \
            NAME(R, WIDTH(R), x, x_step, panels + panel * inputs * PANEL, inputs, out + panel * PANEL); \
        for (; panel < count; panel++)                                                                 \
            NAME(R, 1, x, x_step, panels + panel * inputs * PANEL, inputs, out + panel * PANEL);       \
        break;
#if LANES == 16
#define MORE_ROWS(NAME, TYPE) \
    ROWS(NAME, TYPE, 7) ROWS(NAME, TYPE, 8) ROWS(NAME, TYPE, 9) ROWS(NAME, TYPE, 10) ROWS(NAME, TYPE, 11) \
    ROWS(NAME, TYPE, 12)
#else
#define MORE_ROWS(NAME, TYPE)
#endif
#define TILES(FUNCTION, NAME, TYPE, ROW)                                                                       \
    static __attribute__((noinline)) void FUNCTION(int rows, int count, const ROW *restrict x, int64_t x_step,  \
                                                   const TYPE *restrict panels, int64_t inputs,                \
                                                   float *restrict out) {                                      \
        int panel = 0;                                                                                         \
        switch (rows) {                                                                                        \
            ROWS(NAME, TYPE, 1) ROWS(NAME, TYPE, 2) ROWS(NAME, TYPE, 3) ROWS(NAME, TYPE, 4)                    \
            ROWS(NAME, TYPE, 5) ROWS(NAME, TYPE, 6) MORE_ROWS(NAME, TYPE)                                      \
        }                                                                                                      \
    }
/* Up to MOST_ROWS rows times up to UNIT panels, [rows][UNIT * PANEL]. */
TILES(float_tiles, tile_float, float, float)
TILES(pair_tiles, tile_pairs, uint16_t, Row)

/* ---- rows ---- */

INLINE int64_t padded_inputs(int64_t inputs, int bfloat16) { return bfloat16 ? (inputs + 1) / 2 * 2 : inputs; }

/* Divide by the root mean square and scale, rounding where torch does. */
INLINE void normalise(const void *x, const void *scale, float eps, int64_t width, int bfloat16, float *to) {
    F squares[4] = {{0}};
    float rest = 0;
    int64_t at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES) EACH(v, 4) {
            F values = read_vector(x, at + v * LANES, bfloat16);
            squares[v] = fma_(values, values, squares[v]);
        }
    for (; at < width; at++) rest += read_one(x, at, bfloat16) * read_one(x, at, bfloat16);
    float total = sum_of((squares[0] + squares[1]) + (squares[2] + squares[3])) + rest;
    float inverse = (float)(1.0 / sqrt((double)total / (double)width + eps));
    for (at = 0; at + LANES <= width; at += LANES) {
        F normal = rounded(read_vector(x, at, bfloat16) * inverse, bfloat16);
        store(to + at, rounded(normal * read_vector(scale, at, bfloat16), bfloat16));
    }
    for (; at < width; at++) {
        float normal = read_one(x, at, bfloat16) * inverse;
        if (bfloat16) normal = widen_one(narrow_one(normal));
        normal *= read_one(scale, at, bfloat16);
        to[at] = bfloat16 ? widen_one(narrow_one(normal)) : normal;
    }
}

/* ---- products ---- */

typedef struct {
    const Matrix *matrix;
    const void *x, *scale, *residual;
    void *out, *prepared;
    int64_t rows, start, stop;
    float eps;
    int32_t wide; /* the output is float32 */
} Product;

INLINE size_t prepared_size(int bfloat16) { return bfloat16 ? sizeof(Row) : sizeof(float); }

static void prepare_row(const Product *job, int64_t row, int64_t inputs) {
    const Matrix *matrix = job->matrix;
    int bfloat16 = matrix->bfloat16;
    int64_t width = matrix->inputs;
    const void *x = step(job->x, row * width, bfloat16);
    void *to = (char *)job->prepared + row * inputs * (int64_t)prepared_size(bfloat16);
    if (!bfloat16) {
        normalise(x, job->scale, job->eps, width, 0, to);
        return;
    }
#if PAIRS
    uint16_t *target = to;
    if (job->scale) {
        float normal[width];
        normalise(x, job->scale, job->eps, width, 1, normal);
        for (int64_t at = 0; at < width; at++) target[at] = narrow_one(normal[at]);
    } else
        memcpy(target, x, (size_t)width * 2);
#else
    float *target = to;
    if (job->scale)
        normalise(x, job->scale, job->eps, width, 1, target);
    else {
        int64_t at = 0;
        for (; at + LANES <= width; at += LANES) store(target + at, widen((const uint16_t *)x + at));
        for (; at < width; at++) target[at] = widen_one(((const uint16_t *)x)[at]);
    }
#endif
    if (inputs > width) target[width] = 0;
}

/* Finish one row of a unit whose sums begin at output ``first``. */
INLINE void finish(const Product *job, const float *sums, int64_t row, int64_t first, int64_t count) {
    const Matrix *matrix = job->matrix;
    int bfloat16 = matrix->bfloat16, out_bfloat16 = bfloat16 && !job->wide;
    int64_t width = job->stop - job->start, from = first < job->start ? job->start - first : 0;
    if (first + count > job->stop) count = job->stop - first;
    int64_t at = from, place = row * width + first - job->start;
    for (; at + LANES <= count; at += LANES) {
        F value = load(sums + at);
        if (job->residual)
            value = rounded(value, bfloat16) + read_vector(job->residual, place + at, bfloat16);
        write_vector(job->out, place + at, value, out_bfloat16);
    }
    for (; at < count; at++) {
        float value = sums[at];
        if (job->residual)
            value = (bfloat16 ? widen_one(narrow_one(value)) : value) + read_one(job->residual, place + at, bfloat16);
        write_one(job->out, place + at, value, out_bfloat16);
    }
}

/* The same for silu(gate) * partner. */
INLINE void finish_gated(const Product *job, const float *sums, int64_t row, int64_t first, int64_t count) {
    int bfloat16 = job->matrix->bfloat16;
    int64_t width = job->matrix->outputs / 2;
    for (int64_t panel = 0; panel < count / PANEL; panel += 2)
        for (int64_t lane = 0; lane < PANEL; lane += LANES) {
            int64_t at = (first + panel * PANEL) / 2 + lane;
            F gate = rounded(load(sums + panel * PANEL + lane), bfloat16);
            F partner = rounded(load(sums + (panel + 1) * PANEL + lane), bfloat16);
            F value = rounded(gate / (1.0f + exponential(-gate)), bfloat16) * partner;
            if (at + LANES <= width)
                write_vector(job->out, row * width + at, value, bfloat16);
            else
                for (int64_t one = 0; at + one < width; one++)
                    write_one(job->out, row * width + at + one, value[one], bfloat16);
        }
}

static void product_part(const void *data, int thread, int threads) {
    const Product *job = data;
    const Matrix *matrix = job->matrix;
    int bfloat16 = matrix->bfloat16;
    int64_t inputs = padded_inputs(matrix->inputs, bfloat16);
    const char *x = job->x;
    if (job->prepared) {
        for (int64_t row = job->rows * thread / threads; row < job->rows * (thread + 1) / threads; row++)
            prepare_row(job, row, inputs);
        meet(threads);
        x = job->prepared;
    }
    int64_t row_bytes = inputs * (int64_t)prepared_size(bfloat16), panel_bytes = inputs * PANEL * (bfloat16 ? 2 : 4);
    int64_t begin = job->start / PANEL, end = (job->stop + PANEL - 1) / PANEL;
    int64_t pairs = (end - begin + 1) / 2;
    int64_t panel = begin + pairs * thread / threads * 2, last = begin + pairs * (thread + 1) / threads * 2;
    if (last > end) last = end;
    int64_t chunks = (job->rows + MOST_ROWS - 1) / MOST_ROWS, group = last - panel;
    if (chunks > 1) { /* the panels that stay while all rows pass by */
        group = CACHED / panel_bytes / UNIT * UNIT;
        if (group < UNIT) group = CACHED / panel_bytes / 2 * 2;
        if (group < 2) group = 2;
    }
    float sums[MOST_ROWS * UNIT * PANEL] __attribute__((aligned(64)));
    for (; panel < last; panel += group)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            int64_t row = job->rows * chunk / chunks, rows = job->rows * (chunk + 1) / chunks - row;
            const void *from = x + row * row_bytes;
            for (int64_t unit = panel; unit < panel + group && unit < last; unit += UNIT) {
                int64_t count = panel + group < last ? panel + group - unit : last - unit;
                if (count > UNIT) count = UNIT;
                const void *panels = (const char *)matrix->panels + unit * panel_bytes;
                if (bfloat16)
                    pair_tiles((int)rows, (int)count, from, inputs, panels, inputs, sums);
                else
                    float_tiles((int)rows, (int)count, from, inputs, panels, inputs, sums);
                for (int64_t each = 0; each < rows; each++) {
                    const float *mine = sums + each * UNIT * PANEL;
                    if (matrix->gated)
                        finish_gated(job, mine, row + each, unit * PANEL, count * PANEL);
                    else
                        finish(job, mine, row + each, unit * PANEL, count * PANEL);
                }
            }
        }
}

INLINE size_t prepared_bytes(const Matrix *matrix, int64_t rows) {
    return (size_t)(rows * padded_inputs(matrix->inputs, matrix->bfloat16)) * prepared_size(matrix->bfloat16);
}

/* Describe a product; ``prepared`` is room for its rows as the tiles want them. */
static Product product_of(const Matrix *matrix, const void *x, void *out, int64_t rows, void *prepared) {
    Product job = {matrix, x, NULL, NULL, out, NULL, rows, 0, matrix->outputs, 0, 0};
    if (matrix->gated) job.stop = (matrix->outputs / 2 + PANEL - 1) / PANEL * PANEL * 2;
    if (matrix->bfloat16 && (!PAIRS || matrix->inputs % 2)) job.prepared = prepared;
    return job;
}

static Product normed_product(const Matrix *matrix, const void *x, const void *scale, float eps, void *out,
                              int64_t rows, void *prepared) {
    Product job = product_of(matrix, x, out, rows, prepared);
    job.scale = scale, job.eps = eps, job.prepared = prepared;
    return job;
}

/* out [rows, stop - start] = x times the outputs [start, stop), in float32 if ``wide``; of a gated matrix all, as
 * [rows, outputs / 2]. Return 0, or 1 if there is no memory. */
int rhea_product(const Matrix *matrix, const void *x, void *out, int64_t rows, int64_t start, int64_t stop,
                 int32_t wide, int32_t threads) {
    if (rows < 1 || start >= stop) return 0;
    Room kept = {0, NULL};
    void *prepared = room(prepared_bytes(matrix, rows), &kept);
    if (!prepared) return 1;
    Product job = product_of(matrix, x, out, rows, prepared);
    if (!matrix->gated) job.start = start, job.stop = stop;
    job.wide = wide;
    together(product_part, &job, threads, rows * matrix->inputs * (job.stop - job.start));
    free(kept.memory);
    return 0;
}

/* The bytes of a matrix in panels. */
int64_t rhea_panel_bytes(int64_t inputs, int64_t outputs, int32_t bfloat16, int32_t gated) {
    int64_t panels = gated ? (outputs / 2 + PANEL - 1) / PANEL * 2 : (outputs + PANEL - 1) / PANEL;
    return panels * padded_inputs(inputs, bfloat16) * PANEL * (bfloat16 ? 2 : 4);
}

/* Ask for large pages where they fit wholly, before the memory is touched. */
void rhea_large_pages(void *memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t page = 2 << 20, first = ((uintptr_t)memory + page - 1) / page * page;
    uintptr_t last = ((uintptr_t)memory + (uintptr_t)bytes) / page * page;
    if (last > first) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

/* Copy ``rows`` rows of weights [rows, inputs], the first of which is row ``first`` of all, into the panels, which were
 * zeros. */
void rhea_pack(const Matrix *matrix, const void *weight, int64_t first, int64_t rows) {
    int64_t width = matrix->inputs, inputs = padded_inputs(width, matrix->bfloat16), half = matrix->outputs / 2;
    for (int64_t row = 0, few; row < rows; row += few) { /* the rows that go to one panel together */
        int64_t all = first + row, within = matrix->gated ? all % half : all, lane = within % PANEL;
        int64_t panel = matrix->gated ? within / PANEL * 2 + all / half : within / PANEL, base = panel * inputs * PANEL;
        few = rows - row < PANEL - lane ? rows - row : PANEL - lane;
        if (matrix->gated && half - within < few) few = half - within;
        for (int64_t k = 0; k < width; k++)
            for (int64_t each = 0; each < few; each++) {
                int64_t from = (row + each) * width + k;
                if (matrix->bfloat16)
                    ((uint16_t *)matrix->panels)[base + k / 2 * 2 * PANEL + (lane + each) * 2 + k % 2] =
                        ((const uint16_t *)weight)[from];
                else
                    ((float *)matrix->panels)[base + k * PANEL + lane + each] = ((const float *)weight)[from];
            }
    }
}

/* ---- norm ---- */

void rhea_norm(const void *x, const void *scale, float eps, void *out, int64_t rows, int64_t width, int32_t bfloat16) {
    float normal[width];
    for (int64_t row = 0; row < rows; row++) {
        normalise(step(x, row * width, bfloat16), scale, eps, width, bfloat16, normal);
        for (int64_t at = 0; at < width; at++) write_one(out, row * width + at, normal[at], bfloat16);
    }
}

/* ---- attention ---- */

typedef struct {
    const void *projected; /* [tokens, (heads + 2 groups) channels]: queries, keys, values */
    const void *cosines, *sines; /* [tokens, channels]; the first half of the sines is negated */
    const void *query_scale, *key_scale; /* of the norms of single heads, or none */
    void *cache; /* [slots, 2, groups, length, channels]: keys, values */
    const int64_t *slots, *positions; /* of each token; it sees what its slot holds up to its own position */
    void *out; /* [tokens, heads channels] */
    int64_t tokens, heads, groups, channels, length;
    float eps;
    int32_t bfloat16;
} Attention;

typedef struct {
    const Attention *call;
    char *queries;  /* [groups, tokens, heads / groups, channels], as rows are prepared */
    int64_t *pieces; /* [count, 2]: first token and number of tokens, all of one slot */
    int64_t count, next;
} Attending;

INLINE int64_t whole_panels(int64_t channels) { return (channels + PANEL - 1) / PANEL; }

/* What the next block will read; it is no fault if there is none. */
INLINE void ahead(const char *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
}

/* The place of a slot's keys (part 0) or values (part 1) of one group. */
INLINE char *cached(const Attention *call, int64_t slot, int64_t part, int64_t group) {
    int64_t row = ((slot * 2 + part) * call->groups + group) * call->length * call->channels;
    return (char *)call->cache + row * (call->bfloat16 ? 2 : 4);
}

static void read_head(const Attention *call, const void *from, const void *scale, const float *cosines,
                      const float *sines, float *to) {
    int64_t channels = call->channels, half = channels / 2;
    float head[LARGEST_HEAD];
    if (scale)
        normalise(from, scale, call->eps, channels, call->bfloat16, head);
    else
        for (int64_t c = 0; c < channels; c++) head[c] = read_one(from, c, call->bfloat16);
    for (int64_t c = 0; c < half; c++) {
        to[c] = head[c] * cosines[c] + head[c + half] * sines[c];
        to[c + half] = head[c + half] * cosines[c + half] + head[c] * sines[c + half];
    }
}

/* Rotate a token's queries and keys; keep its keys and values. */
static void place_token(const Attending *job, int64_t token) {
    const Attention *call = job->call;
    int bfloat16 = call->bfloat16;
    int64_t channels = call->channels, heads = call->heads, groups = call->groups, shared = heads / groups;
    float cosines[LARGEST_HEAD], sines[LARGEST_HEAD], head[LARGEST_HEAD];
    for (int64_t c = 0; c < channels; c++) {
        cosines[c] = read_one(call->cosines, token * channels + c, bfloat16);
        sines[c] = read_one(call->sines, token * channels + c, bfloat16);
    }
    const void *from = step(call->projected, token * (heads + 2 * groups) * channels, bfloat16);
    for (int64_t h = 0; h < heads; h++) {
        read_head(call, step(from, h * channels, bfloat16), call->query_scale, cosines, sines, head);
        int64_t row = ((h / shared) * call->tokens + token) * shared + h % shared;
        char *to = job->queries + row * channels * (int64_t)prepared_size(bfloat16);
        for (int64_t c = 0; c < channels; c++) {
#if PAIRS
            write_one(to, c, head[c], bfloat16);
#else
            ((float *)to)[c] = bfloat16 ? widen_one(narrow_one(head[c])) : head[c];
#endif
        }
    }
    for (int64_t g = 0; g < groups; g++) {
        int64_t slot = call->slots[token], at = call->positions[token] * channels;
        read_head(call, step(from, (heads + g) * channels, bfloat16), call->key_scale, cosines, sines, head);
        char *keys = cached(call, slot, 0, g), *values = cached(call, slot, 1, g);
        for (int64_t c = 0; c < channels; c++) write_one(keys, at + c, head[c], bfloat16);
        memcpy((char *)step(values, at, bfloat16), step(from, (heads + groups + g) * channels, bfloat16),
               (size_t)channels * (bfloat16 ? 2 : 4));
    }
}

/* Panels of keys: words of 32 bits (a float32, or a pair of bfloat16) of LANES keys change places with the keys. */
INLINE void turn_words(const char *const *keys, int64_t word, uint32_t *to) {
#if LANES == 16
#define ZIP(a, b, c, d) \
    a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12
#define OTHER 16
#elif LANES == 8
#define ZIP(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4
#define OTHER 8
#else
#define ZIP(a, b, c, d) a, b, c, d
#define OTHER 4
#endif
    U rows[4];
    EACH(r, 4) EACH(quarter, LANES / 4) memcpy((uint32_t *)&rows[r] + quarter * 4, keys[quarter * 4 + r] + word * 4, 16);
    U a = __builtin_shufflevector(rows[0], rows[1], ZIP(0, OTHER, 1, OTHER + 1));
    U b = __builtin_shufflevector(rows[0], rows[1], ZIP(2, OTHER + 2, 3, OTHER + 3));
    U c = __builtin_shufflevector(rows[2], rows[3], ZIP(0, OTHER, 1, OTHER + 1));
    U d = __builtin_shufflevector(rows[2], rows[3], ZIP(2, OTHER + 2, 3, OTHER + 3));
    U turned[4] = {
        __builtin_shufflevector(a, c, ZIP(0, 1, OTHER, OTHER + 1)),
        __builtin_shufflevector(a, c, ZIP(2, 3, OTHER + 2, OTHER + 3)),
        __builtin_shufflevector(b, d, ZIP(0, 1, OTHER, OTHER + 1)),
        __builtin_shufflevector(b, d, ZIP(2, 3, OTHER + 2, OTHER + 3)),
    };
    EACH(w, 4) memcpy(to + (word + w) * PANEL, &turned[w], sizeof(U));
}

static void turn_keys(const Attention *call, const char *keys, int64_t count, uint32_t *to) {
    static const float nothing[LARGEST_HEAD];
    int64_t words = call->channels / (call->bfloat16 ? 2 : 1), bytes = call->channels * (call->bfloat16 ? 2 : 4);
    for (int64_t first = 0; first < count; first += LANES) {
        const char *rows[LANES];
        for (int64_t lane = 0; lane < LANES; lane++) {
            rows[lane] = first + lane < count ? keys + (first + lane) * bytes : (const char *)nothing;
            ahead(keys + (first + lane + KEYS) * bytes, bytes);
        }
        uint32_t *panel = to + first / PANEL * words * PANEL + first % PANEL;
        int64_t word = 0;
        for (; word + 4 <= words; word += 4) turn_words(rows, word, panel);
        for (; word < words; word++)
            for (int64_t lane = 0; lane < LANES; lane++) memcpy(panel + word * PANEL + lane, rows[lane] + word * 4, 4);
    }
}

/* Panels of values in float32, [channels / 16][count][16]. */
static void spread_values(const Attention *call, const void *values, int64_t count, float *to) {
    int64_t channels = call->channels, row_bytes = channels * (call->bfloat16 ? 2 : 4);
    for (int64_t key = 0; key < count; key++) {
        ahead((const char *)values + (key + KEYS) * row_bytes, row_bytes);
        for (int64_t panel = 0; panel < whole_panels(channels); panel++) {
            float *row = to + (panel * count + key) * PANEL;
            int64_t from = key * channels + panel * PANEL;
            if ((panel + 1) * PANEL <= channels)
                EACH(v, VECTORS) store(row + v * LANES, read_vector(values, from + v * LANES, call->bfloat16));
            else
                for (int64_t lane = 0; lane < PANEL; lane++)
                    row[lane] = panel * PANEL + lane < channels ? read_one(values, from + lane, call->bfloat16) : 0;
        }
    }
}

/* What a block of keys adds to the softmax of one row: its largest score, its sum, and the chances; return by how much
 * what was gathered before must be scaled. */
INLINE float weigh(const float *scores, float scale, int64_t seen, int64_t count, float *most, float *sum,
                   float *chances) {
    F best = all(-INFINITY);
    I lane = {0};
    for (int each = 0; each < LANES; each++) lane[each] = each;
    for (int64_t at = 0; at < seen; at += LANES) {
        I inside = lane + (int32_t)at < (I){0} + (int32_t)seen;
        F score = choose(inside, load(scores + at) * scale, all(-INFINITY));
        best = choose(score > best, score, choose(score == score, best, score));
    }
    float largest = *most;
    for (int each = 0; each < LANES; each++)
        if (!(best[each] <= largest)) largest = best[each];
    F total = {0};
    for (int64_t at = 0; at < count; at += LANES) {
        I inside = lane + (int32_t)at < (I){0} + (int32_t)seen;
        F chance = choose(inside, exponential(load(scores + at) * scale - largest), all(0));
        total += chance;
        store(chances + at, chance);
    }
    float fading = exponential(all(*most - largest))[0];
    *most = largest;
    *sum = *sum * fading + sum_of(total);
    return fading;
}

/* Everything of one group's queries of one piece. */
static void attend_piece(const Attending *job, int64_t first, int64_t tokens, int64_t group) {
    const Attention *call = job->call;
    int bfloat16 = call->bfloat16;
    int64_t channels = call->channels, shared = call->heads / call->groups, rows = tokens * shared;
    int64_t panels = whole_panels(channels), width = panels * PANEL, slot = call->slots[first], all_keys = 0;
    int64_t row_bytes = channels * (int64_t)prepared_size(bfloat16);
    float scale = 1.0f / sqrtf((float)channels);
    float most[QUERIES], sums[QUERIES], gathered[QUERIES * width] __attribute__((aligned(64)));
    uint32_t keys[KEYS * channels] __attribute__((aligned(64)));
    float values[KEYS * width] __attribute__((aligned(64)));
    float scores[MOST_ROWS * UNIT * PANEL] __attribute__((aligned(64))), chances[MOST_ROWS * KEYS];
    float fading[MOST_ROWS];
    const char *queries = job->queries + (group * call->tokens + first) * shared * row_bytes;
    for (int64_t row = 0; row < rows; row++) most[row] = -INFINITY, sums[row] = 0;
    memset(gathered, 0, (size_t)(rows * width) * sizeof(float));
    for (int64_t token = first; token < first + tokens; token++)
        if (call->positions[token] >= all_keys) all_keys = call->positions[token] + 1;
    for (int64_t block = 0; block < all_keys; block += KEYS) {
        int64_t count = all_keys - block < KEYS ? all_keys - block : KEYS;
        turn_keys(call, step(cached(call, slot, 0, group), block * channels, bfloat16), count, keys);
        spread_values(call, step(cached(call, slot, 1, group), block * channels, bfloat16), count, values);
        for (int64_t row = 0; row < rows; row += MOST_ROWS) {
            int64_t some = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
            if (bfloat16)
                pair_tiles((int)some, (int)whole_panels(count), (const Row *)(queries + row * row_bytes), channels,
                           (const uint16_t *)keys, channels, scores);
            else
                float_tiles((int)some, (int)whole_panels(count), (const float *)(queries + row * row_bytes), channels,
                            (const float *)keys, channels, scores);
            for (int64_t each = 0; each < some; each++) {
                int64_t seen = call->positions[first + (row + each) / shared] + 1 - block;
                float *mine = chances + each * KEYS;
                if (seen > 0)
                    fading[each] = weigh(scores + each * UNIT * PANEL, scale, seen < count ? seen : count, count,
                                         &most[row + each], &sums[row + each], mine);
                else {
                    memset(mine, 0, KEYS * sizeof(float));
                    fading[each] = 1;
                }
            }
            for (int64_t panel = 0; panel < panels; panel += UNIT) {
                int64_t few = panels - panel < UNIT ? panels - panel : UNIT;
                float_tiles((int)some, (int)few, chances, KEYS, values + panel * count * PANEL, count, scores);
                for (int64_t each = 0; each < some; each++)
                    for (int64_t at = 0; at < few * PANEL; at += LANES) {
                        float *to = gathered + (row + each) * width + panel * PANEL + at;
                        store(to, fma_(load(to), all(fading[each]), load(scores + each * UNIT * PANEL + at)));
                    }
            }
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        int64_t to = ((first + row / shared) * call->heads + group * shared + row % shared) * channels;
        for (int64_t c = 0; c < channels; c++)
            write_one(call->out, to + c, gathered[row * width + c] / sums[row], bfloat16);
    }
}

static void attention_part(const void *data, int thread, int threads) {
    Attending *job = (Attending *)data;
    int64_t tokens = job->call->tokens, groups = job->call->groups;
    for (int64_t token = tokens * thread / threads; token < tokens * (thread + 1) / threads; token++)
        place_token(job, token);
    meet(threads);
    for (;;) {
        int64_t one = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (one >= job->count * groups) return;
        const int64_t *piece = job->pieces + one / groups * 2;
        attend_piece(job, piece[0], piece[1], one % groups);
    }
}

/* Part the tokens into runs of one slot, of which a block of keys serves all at once; return all multiplications. */
static int64_t part_tokens(Attending *job) {
    const Attention *call = job->call;
    int64_t most = QUERIES / (call->heads / call->groups), products = 0;
    job->count = job->next = 0;
    for (int64_t token = 0; token < call->tokens; token++) {
        int64_t *last = job->pieces + (job->count - 1) * 2;
        products += (call->positions[token] + 1) * call->heads * call->channels * 2;
        if (job->count && call->slots[last[0]] == call->slots[token] && last[1] < most)
            last[1]++;
        else {
            job->pieces[job->count * 2] = token;
            job->pieces[job->count++ * 2 + 1] = 1;
        }
    }
    return products;
}

/* ---- decoder layers ---- */

typedef struct {
    const Matrix *inward, *outward, *gate, *down;
    const void *attention_scale, *mlp_scale, *query_scale, *key_scale; /* of norms; those of heads or none */
    int64_t heads, groups, channels;
    float attention_eps, mlp_eps, head_eps;
} Layer;

typedef struct {
    const void *cosines, *sines;
    const int64_t *slots, *positions;
    int64_t tokens;
} Batch;

typedef struct {
    Product inward, outward, gate, down;
    Attention attention;
    Attending attending;
} Whole;

typedef struct {
    Whole *layers;
    int64_t count;
} Stack;

static void stack_part(const void *data, int thread, int threads) {
    const Stack *stack = data;
    for (int64_t each = 0; each < stack->count; each++) {
        Whole *job = stack->layers + each;
        product_part(&job->inward, thread, threads);
        meet(threads);
        attention_part(&job->attending, thread, threads);
        meet(threads);
        product_part(&job->outward, thread, threads);
        meet(threads);
        product_part(&job->gate, thread, threads);
        meet(threads);
        product_part(&job->down, thread, threads);
        meet(threads);
    }
}

static char *take(char **memory, size_t bytes) {
    char *taken = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return taken;
}

/* The residual stream [tokens, dim] after ``count`` layers of equal sizes; the keys and values of the tokens are kept
 * in ``caches``, [slots, 2, groups, length, channels] for each layer. Return 0, or 1 if there is no memory. */
int rhea_layers(const Layer *layers, int64_t count, const Batch *batch, const void *x, void *out, void *const *caches,
                int64_t length, int32_t threads) {
    const Layer *first = layers;
    int64_t rows = batch->tokens, dim = first->inward->inputs, wide = first->inward->outputs;
    int64_t width = first->heads * first->channels, inner = first->down->inputs;
    int bfloat16 = first->inward->bfloat16;
    if (rows < 1 || count < 1) return 0;
    const Matrix *matrices[] = {first->inward, first->outward, first->gate, first->down};
    size_t size = bfloat16 ? 2 : 4, each_row[] = {(size_t)wide, (size_t)width, (size_t)dim, (size_t)inner};
    size_t prepared = 0, queries = (size_t)(rows * width) * sizeof(float), bytes = 0;
    int64_t products = 0;
    for (int each = 0; each < 4; each++) {
        bytes += (size_t)rows * each_row[each] * size + 64;
        products += rows * matrices[each]->inputs * matrices[each]->outputs;
        if (prepared_bytes(matrices[each], rows) > prepared) prepared = prepared_bytes(matrices[each], rows);
    }
    Room kept = {0, NULL};
    bytes += prepared + queries + (size_t)rows * 16 + (size_t)count * sizeof(Whole) + 4 * 64;
    char *memory = room(bytes, &kept);
    if (!memory) return 1;
    Stack stack = {(Whole *)take(&memory, (size_t)count * sizeof(Whole)), count};
    char *projected = take(&memory, (size_t)(rows * wide) * size);
    char *attended = take(&memory, (size_t)(rows * width) * size);
    char *middle = take(&memory, (size_t)(rows * dim) * size);
    char *hidden = take(&memory, (size_t)(rows * inner) * size);
    char *ready = take(&memory, prepared);
    char *turned = take(&memory, queries);
    int64_t *pieces = (int64_t *)take(&memory, (size_t)rows * 16);
    for (int64_t each = 0; each < count; each++) {
        const Layer *layer = layers + each;
        const void *from = each ? out : x;
        Whole *job = stack.layers + each;
        job->attention = (Attention){projected, batch->cosines, batch->sines, layer->query_scale, layer->key_scale,
                                     caches[each], batch->slots, batch->positions, attended, rows, layer->heads,
                                     layer->groups, layer->channels, length, layer->head_eps, bfloat16};
        job->attending = (Attending){&job->attention, turned, pieces, 0, 0};
        job->inward =
            normed_product(layer->inward, from, layer->attention_scale, layer->attention_eps, projected, rows, ready);
        job->outward = product_of(layer->outward, attended, middle, rows, ready);
        job->gate = normed_product(layer->gate, middle, layer->mlp_scale, layer->mlp_eps, hidden, rows, ready);
        job->down = product_of(layer->down, hidden, out, rows, ready);
        job->outward.residual = from;
        job->down.residual = middle;
        if (each)
            job->attending.count = stack.layers->attending.count;
        else
            products += part_tokens(&job->attending);
    }
    together(stack_part, &stack, threads, products);
    free(kept.memory);
    return 0;
}

/* ---- positions ---- */

/* Cosines and signed sines [tokens, channels] of positions times frequencies [channels / 2]. */
void rhea_rotary(const int64_t *positions, int64_t tokens, const float *frequencies, int64_t channels, void *cosines,
                 void *sines, int32_t bfloat16) {
    int64_t half = channels / 2;
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t c = 0; c < half; c++) {
            float angle = (float)positions[token] * frequencies[c], cosine = cosf(angle), sine = sinf(angle);
            int64_t at = token * channels + c;
            write_one(cosines, at, cosine, bfloat16);
            write_one(cosines, at + half, cosine, bfloat16);
            write_one(sines, at, -sine, bfloat16);
            write_one(sines, at + half, sine, bfloat16);
        }
}

/* ---- noise ---- */

/* SplitMix64 of keys [rows] and token ids, [columns] or with ``each`` [rows, columns], as uniform float32 in (0, 1). */
void rhea_uniform(const int64_t *keys, int64_t rows, const int64_t *ids, int64_t columns, int32_t each, float *out) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++) {
            uint64_t z = (uint64_t)ids[(each ? row * columns : 0) + column] + 1;
            z = (uint64_t)keys[row] + z * 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            float uniform = ((float)(uint32_t)((z ^ (z >> 31)) >> 32) + 0.5f) * 0x1p-32f;
            out[row * columns + column] = uniform < 1.0f - 0x1p-24f ? uniform : 1.0f - 0x1p-24f;
        }
}
