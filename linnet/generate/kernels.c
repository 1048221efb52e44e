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

#define INLINE static inline __attribute__((always_inline)) /* With constants for bytes, rows and outputs. */
#define UNROLL _Pragma("GCC unroll 4")
enum { LANES = 8, HALVES = 2, STEP = LANES * HALVES };
enum { MOST_ROWS = 4, MOST_OUTPUTS = 2 }; /* Of a tile. */
enum { BLOCK = 32 };                      /* Outputs whose weights stay in the nearest cache while all rows pass. */
enum { MANY = 64 };                       /* Rows from which on arithmetic takes longer than reading the weights. */

typedef struct {
    const float *x;
    const char *w;
    const float *scale, *bias;
    float *y;
    long in, out;
} Product;

/* 8 weights: codes of one byte, fp16 numbers of two, or fp32 numbers. */
INLINE __m256 widen(const char *w, int bytes) {
    if (bytes == 4) return _mm256_loadu_ps((const float *)w);
    if (bytes == 1) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)w)));
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)w));
}

INLINE float sum(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Rows n ... n + rows of y, columns o ... o + outputs. */
INLINE void tile(const Product *p, int bytes, int rows, int outputs, long n, long o) {
    __m256 sums[HALVES][MOST_ROWS][MOST_OUTPUTS];
    UNROLL for (int half = 0; half < HALVES; half++)
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int output = 0; output < outputs; output++) sums[half][row][output] = _mm256_setzero_ps();
    for (long k = 0; k < p->in; k += STEP)
        UNROLL for (int half = 0; half < HALVES; half++) {
            long at = k + half * LANES;
            __m256 weights[MOST_OUTPUTS];
            UNROLL for (int output = 0; output < outputs; output++)
                weights[output] = widen(p->w + ((o + output) * p->in + at) * bytes, bytes);
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
INLINE void strip(const Product *p, int bytes, int rows, int outputs, long n, long first, long last) {
    long o = first;
    for (; o + outputs <= last; o += outputs) tile(p, bytes, rows, outputs, n, o);
    for (; o < last; o++) tile(p, bytes, rows, 1, n, o);
}

INLINE void product(const Product *p, int bytes, long rows, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long first = 0; first < p->out; first += BLOCK) {
        long last = first + BLOCK < p->out ? first + BLOCK : p->out;
        long n = 0;
        if (rows >= MANY) /* Fewer loads for each multiplication. */
            for (; n + 3 <= rows; n += 3) strip(p, bytes, 3, 2, n, first, last);
        for (; n + 4 <= rows; n += 4) strip(p, bytes, 4, 1, n, first, last);
        if (rows - n == 3) strip(p, bytes, 3, 1, n, first, last);
        if (rows - n == 2) strip(p, bytes, 2, 1, n, first, last);
        if (rows - n == 1) strip(p, bytes, 1, 1, n, first, last);
    }
}

/* x [rows, in], y [rows, out], w [out, in] as codes (bytes = 1), fp16 (2) or fp32 (4), scale and bias [out] or
   null; `in` is a multiple of 16. */
void linnet_product(const float *x, float *y, long rows, int threads, const void *w, int bytes, const float *scale,
                    const float *bias, long out, long in) {
    Product p = {x, w, scale, bias, y, in, out};
    if (bytes == 1)
        product(&p, 1, rows, threads);
    else if (bytes == 2)
        product(&p, 2, rows, threads);
    else
        product(&p, 4, rows, threads);
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
