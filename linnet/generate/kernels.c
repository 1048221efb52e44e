/* What writing takes most of its time for, on processors with AVX2: products of few rows, attention of one token.

   Products: y = x W^T + b, where x is in 32 bits and the weights W are in 8, 16 or 32. A new token reads each weight once,
   so its time is the memory's, if widening the weights takes no longer. torch's own products for AVX2 take 2.1 (8 bits) and
   1.4 times (16 bits) as long for a token of GPT-2 124M. A tile is some rows times some outputs; its weights are widened
   in registers and used for all of its rows. Every element is summed in the same order, whatever tile it is in: two
   vectors of 8 partial sums, of k % 16 below 8 and above. So a row never depends on its neighbours.

   Attention: of the newest token of each text over the keys and values in its memory, which is plain loops. torch's
   needs a call for each text, 84 us with 129 keys, where this takes 12.

   linnet/generate/kernels.py loads them. All numbers are fp32 where nothing else is said. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline)) /* With constants for kind, rows and outputs. */
#define UNROLL _Pragma("GCC unroll 4")
enum { LANES = 8, HALVES = 2, STEP = LANES * HALVES };
enum { MOST_ROWS = 4, MOST_OUTPUTS = 2 }; /* Of a tile. */
enum { BLOCK = 32 };                      /* Outputs whose weights stay in the nearest cache while all rows pass. */
enum { MANY = 64 };                       /* Rows from which on arithmetic takes longer than reading the weights. */

/* Of the weights; the numbers are those of kernels.py. PAIRS: weights and x in bf16, multiplied by twos. */
typedef enum { INT8, FP16, BF16, FP32, PAIRS } Kind;

typedef struct {
    const float *x; /* Of PAIRS bf16. */
    const char *w;
    const float *scale, *bias;
    float *y;
    long in, out;
} Product;

INLINE int bytes_of(Kind kind) { return kind == INT8 ? 1 : kind == FP32 ? 4 : 2; }

/* 8 weights. */
INLINE __m256 widen(const char *w, Kind kind) {
    if (kind == FP32) return _mm256_loadu_ps((const float *)w);
    if (kind == INT8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)w)));
    __m128i sixteen = _mm_loadu_si128((const __m128i *)w);
    if (kind == FP16) return _mm256_cvtph_ps(sixteen);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(sixteen), 16));
}

INLINE float sum(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Rows n ... n + rows of y, columns o ... o + outputs. */
INLINE void tile(const Product *p, Kind kind, int rows, int outputs, long n, long o) {
    __m256 sums[HALVES][MOST_ROWS][MOST_OUTPUTS];
    UNROLL for (int half = 0; half < HALVES; half++)
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int output = 0; output < outputs; output++) sums[half][row][output] = _mm256_setzero_ps();
    for (long k = 0; k < p->in; k += STEP)
        UNROLL for (int half = 0; half < HALVES; half++) {
            long at = k + half * LANES;
            __m256 weights[MOST_OUTPUTS];
            UNROLL for (int output = 0; output < outputs; output++)
                weights[output] = widen(p->w + ((o + output) * p->in + at) * bytes_of(kind), kind);
            UNROLL for (int row = 0; row < rows; row++) {
                __m256 x = _mm256_loadu_ps(p->x + (n + row) * p->in + at);
                UNROLL for (int output = 0; output < outputs; output++)
                    sums[half][row][output] = _mm256_fmadd_ps(x, weights[output], sums[half][row][output]);
            }
        }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int output = 0; output < outputs; output++) {
            float y = sum(_mm256_add_ps(sums[0][row][output], sums[1][row][output]));
            if (p->scale) y *= p->scale[o + output];
            if (p->bias) y += p->bias[o + output];
            p->y[(n + row) * p->out + o + output] = y;
        }
}

/* Tiles of these rows, side by side. */
INLINE void strip(const Product *p, Kind kind, int rows, int outputs, long n, long first, long last) {
    long o = first;
    for (; o + outputs <= last; o += outputs) tile(p, kind, rows, outputs, n, o);
    for (; o < last; o++) tile(p, kind, rows, 1, n, o);
}

INLINE void product(const Product *p, Kind kind, long rows, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long first = 0; first < p->out; first += BLOCK) {
        long last = first + BLOCK < p->out ? first + BLOCK : p->out;
        long n = 0;
        if (rows >= MANY) /* Fewer loads for each multiplication. */
            for (; n + 3 <= rows; n += 3) strip(p, kind, 3, 2, n, first, last);
        for (; n + 4 <= rows; n += 4) strip(p, kind, 4, 1, n, first, last);
        if (rows - n == 3) strip(p, kind, 3, 1, n, first, last);
        if (rows - n == 2) strip(p, kind, 2, 1, n, first, last);
        if (rows - n == 1) strip(p, kind, 1, 1, n, first, last);
    }
}

/* Processors with AVX-512 BF16 multiply two pairs of bf16 and add both products to a sum, all at once. */
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
enum { PAIRED = 32 };

INLINE AVX512 void tile_pairs(const Product *p, int rows, long n, long o) {
    const uint16_t *x = (const uint16_t *)p->x + n * p->in, *w = (const uint16_t *)p->w + o * p->in;
    __m512 sums[HALVES][MOST_ROWS];
    UNROLL for (int half = 0; half < HALVES; half++)
        UNROLL for (int row = 0; row < rows; row++) sums[half][row] = _mm512_setzero_ps();
    for (long k = 0; k < p->in; k += HALVES * PAIRED)
        UNROLL for (int half = 0; half < HALVES; half++) {
            long at = k + half * PAIRED;
            __m512bh weights = (__m512bh)_mm512_loadu_si512(w + at);
            UNROLL for (int row = 0; row < rows; row++)
                sums[half][row] = _mm512_dpbf16_ps(
                    sums[half][row], (__m512bh)_mm512_loadu_si512(x + row * p->in + at), weights);
        }
    UNROLL for (int row = 0; row < rows; row++) {
        float y = _mm512_reduce_add_ps(_mm512_add_ps(sums[0][row], sums[1][row]));
        p->y[(n + row) * p->out + o] = p->bias ? y + p->bias[o] : y;
    }
}

static AVX512 void product_pairs(const Product *p, long rows, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long first = 0; first < p->out; first += BLOCK) {
        long last = first + BLOCK < p->out ? first + BLOCK : p->out;
        long n = 0;
        for (; n + 4 <= rows; n += 4)
            for (long o = first; o < last; o++) tile_pairs(p, 4, n, o);
        for (; n < rows; n++)
            for (long o = first; o < last; o++) tile_pairs(p, 1, n, o);
    }
}

/* x [rows, in], y [rows, out], w [out, in], scale and bias [out] or null; `in` is a multiple of 16, of PAIRS 64. */
void linnet_product(const void *x, float *y, long rows, int threads, const void *w, int kind, const float *scale,
                    const float *bias, long out, long in) {
    Product p = {x, w, scale, bias, y, in, out};
    switch (kind) {
    case INT8: product(&p, INT8, rows, threads); break;
    case FP16: product(&p, FP16, rows, threads); break;
    case BF16: product(&p, BF16, rows, threads); break;
    case FP32: product(&p, FP32, rows, threads); break;
    case PAIRS: product_pairs(&p, rows, threads); break;
    }
}

/* One head of one text: q [size] over keys and values [count, size] -> out [size]. */
static void attend_head(const float *q, const float *keys, const float *values, float *out, long count, long size) {
    float chances[count], most = -INFINITY, total = 0, scale = 1 / sqrtf(size);
    for (long key = 0; key < count; key++) {
        __m256 sums = _mm256_setzero_ps();
        for (long d = 0; d < size; d += LANES)
            sums = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(keys + key * size + d), sums);
        chances[key] = sum(sums) * scale;
        if (chances[key] > most) most = chances[key];
    }
    memset(out, 0, size * sizeof *out);
    for (long key = 0; key < count; key++) {
        float chance = expf(chances[key] - most);
        total += chance;
        for (long d = 0; d < size; d++) out[d] += chance * values[key * size + d];
    }
    for (long d = 0; d < size; d++) out[d] /= total;
}

/* qkv [texts, 3, heads, size] -> out [texts, heads, size]. `table` [3, texts]: where the memory of each text is, which is
   [layers, 2, heads, room, size], its room, and the place of the new key and value; all up to there are seen. `size` is
   a multiple of 8. */
void linnet_attend(const float *qkv, float *out, const int64_t *table, long texts, long layer, long heads, long size,
                   int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (long item = 0; item < texts * heads; item++) {
        long text = item / heads, head = item % heads;
        long room = table[texts + text], place = table[2 * texts + text];
        const float *q = qkv + (text * 3 * heads + head) * size;
        float *keys = (float *)table[text] + (layer * 2 * heads + head) * room * size;
        float *values = keys + heads * room * size;
        memcpy(keys + place * size, q + heads * size, size * sizeof *q);
        memcpy(values + place * size, q + 2 * heads * size, size * sizeof *q);
        attend_head(q, keys, values, out + item * size, place + 1, size);
    }
}
