/* What writing takes most of its time for, on processors with AVX2: products of few rows, attention of one token.

   Products: y = x W^T + b, where x is in 32 bits and the weights W are in 8, 16 or 32. A new token reads each weight once,
   so its time is the memory's, if widening the weights takes no longer. torch's own products for AVX2 take 2.1 (8 bits) and
   1.4 times (16 bits) as long for a token of GPT-2 124M. A tile is some rows times some outputs; its weights are widened
   in registers and used for all of its rows. Every element is summed in the same order, whatever tile it is in: two
   vectors of 8 partial sums, of k % 16 below 8 and above. So a row never depends on its neighbours.

   Attention: of the newest token of each text over the keys and values in its memory, which is plain loops. torch's
   needs a call for each text, 84 us with 129 keys, where this takes 24.

   GELU: torch's splits its input among threads wherever that is, and rounds the ends of each share in another way, so
   that a row would depend on the number of rows where the threads are not 2, 4, 8, ...

   linnet/generate/kernels.py loads them. All numbers are fp32 where nothing else is said. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline)) /* With constants for kind, rows and outputs. */
#define UNROLL _Pragma("GCC unroll 4")
enum { LANES = 8, HALVES = 2, STEP = LANES * HALVES };
enum { MOST_ROWS = 4, MOST_OUTPUTS = 2 }; /* Of a tile. */
enum { BLOCK = 32 };                      /* Outputs whose weights stay in the nearest cache while all rows pass. */
enum { MANY = 64 };                       /* Rows from which on arithmetic takes longer than reading the weights. */

const int linnet_version = 4; /* VERSION of kernels.py: both rise with each change of what is called from there. */

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

/* Outputs first ... last of all rows. */
INLINE void block(const Product *p, Kind kind, long rows, long first, long last) {
    long n = 0;
    if (rows >= MANY) /* Fewer loads for each multiplication. */
        for (; n + 3 <= rows; n += 3) strip(p, kind, 3, 2, n, first, last);
    for (; n + 4 <= rows; n += 4) strip(p, kind, 4, 1, n, first, last);
    if (rows - n == 3) strip(p, kind, 3, 1, n, first, last);
    if (rows - n == 2) strip(p, kind, 2, 1, n, first, last);
    if (rows - n == 1) strip(p, kind, 1, 1, n, first, last);
}

/* The kind is told apart inside of the loop: gcc does not carry a constant from outside into its threads' function. */
static void product(const Product *p, Kind kind, long rows, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long first = 0; first < p->out; first += BLOCK) {
        long last = first + BLOCK < p->out ? first + BLOCK : p->out;
        switch (kind) {
        case INT8: block(p, INT8, rows, first, last); break;
        case FP16: block(p, FP16, rows, first, last); break;
        case BF16: block(p, BF16, rows, first, last); break;
        default: block(p, FP32, rows, first, last);
        }
    }
}

/* Processors with AVX-512 BF16 multiply two pairs of bf16 and add both products to a sum, all at once: here nothing is
   widened, and a sum has two vectors of 16 parts. */
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
    if (kind == PAIRS)
        product_pairs(&p, rows, threads);
    else
        product(&p, kind, rows, threads);
}

/* e^x of 8 numbers of at most 0, below -87 something that is nearly 0: 2^n e^r with |r| <= ln 2 / 2, e^r by its Taylor
   series up to r^7 / 5040, an error of 1e-7. */
INLINE __m256 exponential(__m256 x) {
    const __m256 ln2_high = _mm256_set1_ps(0.693359375f), ln2_low = _mm256_set1_ps(-2.12194440e-4f);
    const float factors[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    x = _mm256_max_ps(_mm256_set1_ps(-87), x); /* NaN stays NaN. */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, ln2_low, _mm256_fnmadd_ps(n, ln2_high, x));
    __m256 series = _mm256_set1_ps(1.f / 5040);
    for (int i = 0; i < 7; i++) series = _mm256_fmadd_ps(series, r, _mm256_set1_ps(factors[i]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(series, _mm256_castsi256_ps(power));
}

/* GELU with tanh (Hendrycks & Gimpel 2016, section 2) of x [count] in place; `count` is a multiple of 8.
   0.5 x (1 + tanh u) = x / (1 + e^-2u); with e^-|2u| nothing overflows. */
void linnet_gelu(float *x, long count, int threads) {
    const __m256 one = _mm256_set1_ps(1), sign = _mm256_set1_ps(-0.f);
#pragma omp parallel for schedule(static) num_threads(threads) if (count > 1 << 14)
    for (long i = 0; i < count; i += LANES) {
        __m256 v = _mm256_loadu_ps(x + i);
        __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(v, v), _mm256_set1_ps(0.044715f), one);
        __m256 u = _mm256_mul_ps(_mm256_mul_ps(v, cubic), _mm256_set1_ps(1.59576912f)); /* 2 sqrt(2 / pi) */
        __m256 small = exponential(_mm256_or_ps(u, sign));
        __m256 share = _mm256_div_ps(_mm256_blendv_ps(one, small, u), _mm256_add_ps(one, small));
        _mm256_storeu_ps(x + i, _mm256_mul_ps(v, share));
    }
}

/* One head of one text: q [size] over keys and values [count, size] -> out [size]. */
static void attend_head(const float *q, const float *keys, const float *values, float *out, long count, long size) {
    long padded = (count + LANES - 1) / LANES * LANES;
    float chances[padded], most = -__builtin_inff();
    __m256 scale = _mm256_div_ps(_mm256_set1_ps(1), _mm256_sqrt_ps(_mm256_set1_ps((float)size)));
    for (long key = 0; key < count; key++) {
        __m256 sums = _mm256_setzero_ps();
        for (long d = 0; d < size; d += LANES)
            sums = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(keys + key * size + d), sums);
        chances[key] = sum(_mm256_mul_ps(sums, scale));
        if (chances[key] > most) most = chances[key];
    }
    for (long key = count; key < padded; key++) chances[key] = -__builtin_inff();
    for (long key = 0; key < padded; key += LANES)
        _mm256_storeu_ps(chances + key, exponential(_mm256_sub_ps(_mm256_loadu_ps(chances + key), _mm256_set1_ps(most))));
    float total = 0;
    memset(out, 0, size * sizeof *out);
    for (long key = 0; key < count; key++) {
        total += chances[key];
        for (long d = 0; d < size; d += LANES) {
            __m256 value = _mm256_loadu_ps(values + key * size + d);
            _mm256_storeu_ps(out + d, _mm256_fmadd_ps(_mm256_set1_ps(chances[key]), value, _mm256_loadu_ps(out + d)));
        }
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
