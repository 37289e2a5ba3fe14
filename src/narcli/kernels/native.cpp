// All layers of the transformer, and the draw of tokens, for processors with AVX-512.
//
// Everything that is multiplied, weights, keys and values alike, lies in panels of 64 columns: for each step
// over the inner dimension the 64 columns side by side, in bfloat16 two inner values of a column together. One
// kernel multiplies rows by a panel. A row's sums never depend on how many rows there are.
//
// Built without OpenMP's library, on purpose: the calls find the one that torch has loaded, so that there is
// one pool of threads. Loaded and checked by native.py.

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

namespace {

using bf16 = uint16_t;

constexpr long PANEL = 64;    // columns
constexpr int LANES = 16;     // float32 in a vector
constexpr int VECTORS = 4;    // in a row of a panel
constexpr int TILE = 6;       // most rows at once: 24 sums in registers
constexpr long QUERIES = 24;  // rows of attention at once
constexpr float EPS = 1e-5f;  // transformer.NORM_EPS

template <typename T> constexpr long UNIT = sizeof(T) == 2 ? 2 : 1;  // inner values of a column side by side

inline long ceil_div(long a, long b) { return (a + b - 1) / b; }
inline long round_up(long a, long b) { return ceil_div(a, b) * b; }
// Elements between rows of a matrix: an odd number of 64 bytes or of 128, so that rows do not share cache sets.
inline long stride(long columns) { return (ceil_div(columns, 32) | 1) * 32; }
inline __mmask16 first(long count) {
    return count >= LANES ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
}

inline __m512 get(const float* from, __mmask16 m) { return _mm512_maskz_loadu_ps(m, from); }
inline __m512 get(const bf16* from, __mmask16 m) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, from)), 16);
}
inline void put(float* to, __m512 v, __mmask16 m) { _mm512_mask_storeu_ps(to, m, v); }
inline void put(bf16* to, __m512 v, __mmask16 m) {
    _mm256_mask_storeu_epi16(to, m, (__m256i)_mm512_cvtneps_pbh(v));
}

// Pairs (a, b) by angles, whose sines have the signs -, +.
inline __m512 rotated(__m512 v, __m512 cos, __m512 sin) {
    return _mm512_fmadd_ps(v, cos, _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), sin));
}

inline __m512 exponential(__m512 x) {
    // Beyond these it is 0 or infinite. The order keeps what is not a number.
    x = _mm512_min_ps(_mm512_set1_ps(104), _mm512_max_ps(_mm512_set1_ps(-104), x));
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    // Cody and Waite: the logarithm of 2 in two parts.
    __m512 r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 sum = _mm512_set1_ps(1.0f / 5040);
    for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
    return _mm512_scalef_ps(sum, whole);
}

inline __m512 add_products(__m512 sum, const bf16* a, __m512 b) {
    int pair;
    memcpy(&pair, a, 4);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
}
inline __m512 add_products(__m512 sum, const float* a, __m512 b) {
    return _mm512_fmadd_ps(_mm512_set1_ps(*a), b, sum);
}

// R rows times a panel: R times 64 sums. Meanwhile the next panel is fetched, from `ahead`, `pace` bytes a step.
// A function of its own, so that what is done with the sums takes none of its registers.
template <int R, typename T>
__attribute__((noinline)) void tile(const T* a, long lda, const T* panel, long steps, const char* ahead, long pace,
                                    __m512* out) {
    __m512 sums[R][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_setzero_ps();
    for (long k = 0; k < steps; ++k) {
        __m512 b[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            b[v] = _mm512_loadu_ps((const float*)panel + VECTORS * LANES * k + LANES * v);
        for (long line = 0; line < pace; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T1);
        ahead += pace;
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = add_products(sums[r][v], a + r * lda + UNIT<T> * k, b[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) out[r * VECTORS + v] = sums[r][v];
}

// All rows times a panel, in tiles of about equal size: sink(row, sums).
template <typename T, typename Sink>
inline void product(long rows, const T* a, long lda, const T* panel, long steps, const T* next, const Sink& sink) {
    static constexpr decltype(&tile<1, T>) TILES[] = {tile<1, T>, tile<2, T>, tile<3, T>,
                                                      tile<4, T>, tile<5, T>, tile<6, T>};
    __m512 sums[TILE * VECTORS];
    const long tiles = ceil_div(rows, TILE);
    // With one tile nothing is left to do while the next panel comes; the processor fetches it by itself.
    const long pace = next && tiles > 1 ? PANEL * 4 / tiles : 0;
    const char* ahead = (const char*)next;
    for (long i = 0; i < tiles; ++i) {
        const long row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
        TILES[count - 1](a + row * lda, lda, panel, steps, ahead, pace, sums);
        for (long r = 0; r < count; ++r) sink(row + r, sums + r * VECTORS);
        ahead += pace * steps;
    }
}

struct Share {  // what this thread does of `count` things
    long begin, end;
    explicit Share(long count)
        : begin(count * omp_get_thread_num() / omp_get_num_threads()),
          end(count * (omp_get_thread_num() + 1) / omp_get_num_threads()) {}
};

// Rows times a weight of `columns`: sink(panel, row, sums).
template <typename T, typename Sink>
inline void multiply(long rows, const T* a, long inner, const T* weight, long columns, const Sink& sink) {
    const long steps = ceil_div(inner, UNIT<T>), size = steps * UNIT<T> * PANEL;
    const Share share(ceil_div(columns, PANEL));
    for (long p = share.begin; p < share.end; ++p) {
        const T* panel = weight + p * size;
        product(rows, a, stride(inner), panel, steps, p + 1 < share.end ? panel + size : nullptr,
                [&](long row, const __m512* sums) { sink(p, row, sums); });
    }
}

template <typename T> void normalise(long rows, long dim, const float* x, const float* weight, T* to, long ldt) {
    const Share share(rows);
    for (long row = share.begin; row < share.end; ++row) {
        const float* from = x + row * dim;
        __m512 squares = _mm512_setzero_ps();
        for (long k = 0; k < dim; k += LANES) {
            const __m512 v = get(from + k, first(dim - k));
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        const __m512 scale = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / dim + EPS));
        for (long k = 0; k < dim; k += LANES) {
            const __mmask16 m = first(dim - k);
            const __m512 v = _mm512_mul_ps(get(from + k, m), scale);
            put(to + row * ldt + k, _mm512_mul_ps(v, get(weight + k, m)), m);
        }
    }
}

}  // namespace

extern "C" {

struct Layer {
    const float *attention_norm, *ffn_norm;
    const void *qkv, *out, *gate_up, *down;
    const float* head_norm;  // of the head that reads this layer, or null
};

struct Step {
    long batch, fed, past, layers, dim, heads, ffn;
    long outputs;  // heads that predict
    long threads;
    long room, cache_layer;  // positions that the cache has, and its elements from layer to layer
    void* cache;             // of each sample and head the keys, then the values, both as panels
    const float *cos, *sin;  // (fed, head_dim), of `rotated`, or null
    const uint8_t* seen;     // (batch, fed, known) by its strides, or null
    long seen_batch, seen_query;
    long known;              // leading positions that are attended to
    const int64_t* slots;    // (fed,) positions of what is fed, or null: those from `past` on, the last ones known
};
}

namespace {

template <typename T> struct Scratch {  // of one thread
    T *q, *weights;
    float *scores, *total;

    static long elements(long known) { return QUERIES * stride(round_up(known, PANEL)); }
    static long bytes(long queries, long known) {  // whole cache lines
        return round_up(elements(known) * (sizeof(T) + 4) + QUERIES * 4 + queries * sizeof(T), 64);
    }
    Scratch(char* memory, long known) {
        scores = (float*)memory;
        total = scores + elements(known);
        weights = (T*)(total + QUERIES);
        q = weights + elements(known);
    }
};

// Keys and values of one head as panels of 64 positions, and of 64 columns for `room` positions.
template <typename T> struct Memory {
    T *keys, *values;
    long width, room;

    // Columns from c on, of position `at`. Alone: what is stored at the position beside it stays.
    void store(long at, long c, __m512 key, __m512 value, bool alone) {
        // Side by side in a panel are one float32 or two bfloat16: moved as an int in both formats.
        int units[LANES];
        put((T*)units, key, 0xffff);
        int* to = (int*)(keys + at / PANEL * PANEL * width) + c / UNIT<T> * PANEL + at % PANEL;
        for (long u = 0; u < std::min<long>(LANES, width - c) / UNIT<T>; ++u) to[u * PANEL] = units[u];
        float* place = (float*)values + (c / PANEL * room + at) / UNIT<T> * PANEL + c % PANEL;
        if constexpr (UNIT<T> == 1) {
            put(place, value, 0xffff);
        } else {  // the second of two positions leaves the first as it is, which else clears the second
            const __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
            const __m512i pair = at % 2 ? _mm512_slli_epi32(bits, 16) : bits;
            const __mmask32 own = at % 2 ? 0xaaaaaaaa : alone ? 0x55555555 : 0xffffffff;
            _mm512_mask_storeu_epi16(place, own, pair);
        }
    }
};

// Some queries, at most QUERIES, over the known positions. `seen` may be null, or tells what each of them sees.
template <typename T>
void attend(long rows, const T* q, long ldq, const Memory<T>& memory, long known, const uint8_t* seen,
            long seen_query, T* to, long ldt, const Scratch<T>& scratch) {
    const long width = memory.width, lds = stride(round_up(known, PANEL));
    const float scale = 1 / sqrtf((float)width);
    for (long p = 0; p < ceil_div(known, PANEL); ++p)
        product(rows, q, ldq, memory.keys + p * PANEL * width, width / UNIT<T>, (const T*)nullptr,
                [&](long row, const __m512* sums) {
                    for (int v = 0; v < VECTORS; ++v)
                        _mm512_storeu_ps(scratch.scores + row * lds + p * PANEL + v * LANES, sums[v]);
                });
    for (long row = 0; row < rows; ++row) {
        float* score = scratch.scores + row * lds;
        if (seen)
            for (long j = 0; j < known; ++j)
                if (!seen[row * seen_query + j]) score[j] = -INFINITY;
        __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
        for (long j = 0; j < known; j += LANES)
            most = _mm512_mask_max_ps(most, first(known - j), most, _mm512_loadu_ps(score + j));
        most = _mm512_set1_ps(_mm512_reduce_max_ps(most) * scale);
        for (long j = 0; j < known; j += LANES) {
            const __m512 above = _mm512_fmsub_ps(_mm512_loadu_ps(score + j), _mm512_set1_ps(scale), most);
            // What is not seen is exactly 0, and so is what lies behind the last position.
            const __mmask16 m = first(known - j) & _mm512_cmp_ps_mask(above, _mm512_set1_ps(-100), _CMP_NLE_UQ);
            const __m512 e = _mm512_maskz_mov_ps(m, exponential(above));
            total = _mm512_add_ps(total, e);
            put(scratch.weights + row * lds + j, e, 0xffff);
        }
        scratch.total[row] = 1 / _mm512_reduce_add_ps(total);
    }
    for (long c = 0; c < width; c += PANEL)
        product(rows, scratch.weights, lds, memory.values + c * memory.room, ceil_div(known, UNIT<T>),
                (const T*)nullptr, [&](long row, const __m512* sums) {
                    const __m512 share = _mm512_set1_ps(scratch.total[row]);
                    for (int v = 0; v < VECTORS; ++v)
                        put(to + row * ldt + c + v * LANES, _mm512_mul_ps(sums[v], share),
                            first(width - c - v * LANES));
                });
}

// One head of one sample: rotate and store its new keys and values, then attend.
template <typename T>
void attention(const Step& s, long sample, long head, const float* qkv, T* cache, T* to, long ldt,
               const Scratch<T>& scratch) {
    const long width = s.dim / s.heads, known = s.known, ldq = stride(width);
    T* keys = cache + (sample * s.heads + head) * s.room * (width + round_up(width, PANEL));
    Memory<T> memory{keys, keys + s.room * width, width, s.room};
    for (long i = 0; i < s.fed; ++i) {
        const float* row = qkv + (sample * s.fed + i) * 3 * s.dim + head * width;
        for (long c = 0; c < width; c += LANES) {
            const __mmask16 m = first(width - c);
            __m512 q = get(row + c, m), k = get(row + s.dim + c, m);
            if (s.cos) {
                const __m512 cos = get(s.cos + i * width + c, m);
                const __m512 sin = get(s.sin + i * width + c, m);
                q = rotated(q, cos, sin), k = rotated(k, cos, sin);
            }
            put(scratch.q + i * ldq + c, q, m);
            memory.store(s.slots ? s.slots[i] : s.past + i, c, k, get(row + 2 * s.dim + c, m), s.slots);
        }
    }
    for (long begin = 0; begin < s.fed; begin += QUERIES)
        attend(std::min(QUERIES, s.fed - begin), scratch.q + begin * ldq, ldq, memory, known,
               s.seen ? s.seen + sample * s.seen_batch + begin * s.seen_query : nullptr, s.seen_query,
               to + (sample * s.fed + begin) * ldt + head * width, ldt, scratch);
}

template <typename T> int forward(const Step& s, const Layer* layers, float* x, float* states) {
    const long rows = s.batch * s.fed, lda = stride(s.dim), ldh = stride(s.ffn), known = s.known;
    const long own = Scratch<T>::bytes(s.fed * stride(s.dim / s.heads), known);
    const long shared = round_up(rows * (lda * 2 + ldh) * sizeof(T) + rows * 3 * s.dim * 4, 64);
    char* memory = (char*)aligned_alloc(64, shared + own * s.threads);
    if (!memory) return 1;
    T* a = (T*)memory;
    T* attended = a + rows * lda;
    T* hidden = attended + rows * lda;
    float* qkv = (float*)(hidden + rows * ldh);
#pragma omp parallel num_threads((int)s.threads)
    {
        const Scratch<T> scratch(memory + shared + own * omp_get_thread_num(), known);
        const auto add = [&](long p, long row, const __m512* sums) {
            float* to = x + row * s.dim + p * PANEL;
            for (int v = 0; v < VECTORS; ++v) {
                const __mmask16 m = first(s.dim - p * PANEL - v * LANES);
                put(to + v * LANES, _mm512_add_ps(get(to + v * LANES, m), sums[v]), m);
            }
        };
        long output = 0;
        for (long l = 0; l < s.layers; ++l) {
            const Layer& layer = layers[l];
            normalise(rows, s.dim, x, layer.attention_norm, a, lda);
#pragma omp barrier
            multiply(rows, a, s.dim, (const T*)layer.qkv, 3 * s.dim, [&](long p, long row, const __m512* sums) {
                for (int v = 0; v < VECTORS; ++v)
                    put(qkv + row * 3 * s.dim + p * PANEL + v * LANES, sums[v],
                        first(3 * s.dim - p * PANEL - v * LANES));
            });
#pragma omp barrier
            const Share share(s.batch * s.heads);
            for (long i = share.begin; i < share.end; ++i)
                attention(s, i / s.heads, i % s.heads, qkv, (T*)s.cache + l * s.cache_layer, attended, lda, scratch);
#pragma omp barrier
            multiply(rows, attended, s.dim, (const T*)layer.out, s.dim, add);
#pragma omp barrier
            normalise(rows, s.dim, x, layer.ffn_norm, a, lda);
#pragma omp barrier
            multiply(rows, a, s.dim, (const T*)layer.gate_up, 2 * s.ffn, [&](long p, long row, const __m512* sums) {
                for (int v = 0; v < 2; ++v) {  // half a panel of gates, then what they open
                    const __m512 closed = exponential(_mm512_sub_ps(_mm512_setzero_ps(), sums[v]));
                    const __m512 gate = _mm512_div_ps(sums[v], _mm512_add_ps(_mm512_set1_ps(1), closed));
                    const long column = p * PANEL / 2 + v * LANES;
                    put(hidden + row * ldh + column, _mm512_mul_ps(gate, sums[v + 2]), first(s.ffn - column));
                }
            });
#pragma omp barrier
            multiply(rows, hidden, s.ffn, (const T*)layer.down, s.dim, add);
#pragma omp barrier
            if (layer.head_norm) {
                normalise(rows, s.dim, x, layer.head_norm, states + s.dim * output, s.dim * s.outputs);
                ++output;
            }
        }
    }
    free(memory);
    return 0;
}

// Self-attention of (batch, n, 3 heads width) queries, keys and values: (batch, n, heads width).
template <typename T>
int attend_all(long batch, long n, long heads, long width, const T* qkv, T* out, long threads) {
    const long room = round_up(n, PANEL), own = Scratch<T>::bytes(0, n), dim = heads * width;
    const long packed = round_up(room * (width + round_up(width, PANEL)) * sizeof(T), 64);
    char* all = (char*)aligned_alloc(64, (own + packed) * threads);
    if (!all) return 1;
#pragma omp parallel num_threads((int)threads)
    {
        char* mine = all + (own + packed) * omp_get_thread_num();
        const Scratch<T> scratch(mine + packed, n);
        Memory<T> memory{(T*)mine, (T*)mine + room * width, width, room};
        const Share share(batch * heads);
        for (long i = share.begin; i < share.end; ++i) {
            const long start = i / heads * n, column = i % heads * width;
            for (long j = 0; j < n; ++j)
                for (long c = 0; c < width; c += LANES) {
                    const T* key = qkv + (start + j) * 3 * dim + dim + column + c;
                    memory.store(j, c, get(key, first(width - c)), get(key + dim, first(width - c)), false);
                }
            for (long begin = 0; begin < n; begin += QUERIES)
                attend(std::min(QUERIES, n - begin), qkv + (start + begin) * 3 * dim + column, 3 * dim, memory, n,
                       (const uint8_t*)nullptr, 0, out + (start + begin) * dim + column, dim, scratch);
        }
    }
    free(all);
    return 0;
}

template <typename T>
int linear(long rows, long inner, long columns, const float* x, const T* weight, float* out, long threads) {
    const long lda = stride(inner);
    T* a = (T*)aligned_alloc(64, round_up(rows * lda * sizeof(T), 64));
    if (!a) return 1;
#pragma omp parallel num_threads((int)threads)
    {
        const Share share(rows);
        for (long row = share.begin; row < share.end; ++row)
            for (long k = 0; k < inner; k += LANES) {
                const __mmask16 m = first(inner - k);
                put(a + row * lda + k, get(x + row * inner + k, m), m);
            }
#pragma omp barrier
        multiply(rows, a, inner, weight, columns, [&](long p, long row, const __m512* sums) {
            for (int v = 0; v < VECTORS; ++v)
                put(out + row * columns + p * PANEL + v * LANES, sums[v], first(columns - p * PANEL - v * LANES));
        });
    }
    free(a);
    return 0;
}

// The k-th largest of values that are not NaN. They are rearranged.
float kth_largest(float* values, long count, long k) {
    // As integers in the order of the numbers; halves of what is left of their range are dropped.
    int* keys = (int*)values;
    int low = INT32_MAX, high = INT32_MIN;
    for (long i = 0; i < count; ++i) {
        keys[i] ^= keys[i] >> 31 & INT32_MAX;
        low = std::min(low, keys[i]), high = std::max(high, keys[i]);
    }
    while (low < high) {
        const int middle = high - (int)(((int64_t)high - low) / 2);  // above low
        const __m512i at = _mm512_set1_epi32(middle);
        long above = 0;
        for (long i = 0; i < count; i += LANES)
            above += _mm_popcnt_u32(
                _mm512_mask_cmpge_epi32_mask(first(count - i), _mm512_loadu_si512(keys + i), at));
        const bool up = above >= k;
        if (up)
            low = middle;
        else
            high = middle - 1, k -= above;
        long kept = 0;
        for (long i = 0; i < count; i += LANES) {
            const __m512i v = _mm512_loadu_si512(keys + i);
            const __mmask16 over = _mm512_cmpge_epi32_mask(v, at);
            const __mmask16 stay = (up ? over : ~over) & first(count - i);
            _mm512_storeu_si512(keys + kept, _mm512_maskz_compress_epi32(stay, v));
            kept += _mm_popcnt_u32(stay);
        }
        count = kept;
    }
    low ^= low >> 31 & INT32_MAX;
    float found;
    memcpy(&found, &low, 4);
    return found;
}

constexpr long BLOCK = 64;  // values that are summed before they are told apart

// As `draw` in sampling.py, of one row; -1 if its logits are not numbers. `scratch` holds twice the columns and
// a vector each.
long draw(const float* logits, long columns, double uniform, float temperature, long top_k, float* scratch) {
    float *values = scratch, *other = scratch + round_up(columns, BLOCK);
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (long i = 0; i < columns; i += LANES)
        most = _mm512_mask_max_ps(most, first(columns - i), most, get(logits + i, first(columns - i)));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __mmask16 wrong = 0;
    for (long i = 0; i < columns; i += LANES) {
        const __mmask16 m = first(columns - i);
        const __m512 v = _mm512_sub_ps(get(logits + i, m), most);
        wrong |= _mm512_mask_cmp_ps_mask(m, v, v, _CMP_UNORD_Q);
        _mm512_storeu_ps(values + i, _mm512_div_ps(v, _mm512_set1_ps(temperature)));
    }
    if (wrong) return -1;
    float least = -INFINITY;
    if (top_k > 0 && top_k < columns) {
        memcpy(other, values, columns * 4);
        least = kth_largest(other, columns, top_k);
    }
    float* sums = other;  // of blocks
    double total = 0;
    for (long begin = 0; begin < columns; begin += BLOCK) {
        __m512 sum = _mm512_setzero_ps();
        for (long i = begin; i < begin + BLOCK; i += LANES) {
            const __m512 v = _mm512_loadu_ps(values + i);
            const __mmask16 kept = first(columns - i) & _mm512_cmp_ps_mask(v, _mm512_set1_ps(least), _CMP_GE_OQ);
            const __m512 e = _mm512_maskz_mov_ps(kept, exponential(v));
            _mm512_storeu_ps(values + i, e);
            sum = _mm512_add_ps(sum, e);
        }
        total += sums[begin / BLOCK] = _mm512_reduce_add_ps(sum);
    }
    const double target = uniform * total;
    double sum = 0;
    long last = 0;
    for (long begin = 0; begin < columns; begin += BLOCK) {
        if (sum + sums[begin / BLOCK] > target) {
            double inner = sum;
            for (long i = begin; i < std::min(begin + BLOCK, columns); ++i) {
                inner += values[i];
                if (values[i] > 0) last = i;
                if (inner > target) return i;
            }
            return last;  // the block's own sum was rounded up
        }
        sum += sums[begin / BLOCK];
    }
    return -1;  // not reached: the sums come out as before, and target is below the last
}

}  // namespace

extern "C" {

uint32_t narcli_source() { return SOURCE; }  // which version of this file

int narcli_draw(long rows, long columns, const float* logits, const float* uniform, float temperature, long top_k,
                int64_t* tokens, long threads) {
    const long own = 2 * round_up(columns, BLOCK) + 2 * LANES;
    float* scratch = (float*)aligned_alloc(64, own * threads * 4);
    if (!scratch) return 1;
#pragma omp parallel num_threads((int)threads)
    {
        const Share share(rows);
        for (long row = share.begin; row < share.end; ++row)
            tokens[row] = draw(logits + row * columns, columns, uniform[row], temperature, top_k,
                               scratch + own * omp_get_thread_num());
    }
    free(scratch);
    return 0;
}

// The k-th largest value of each row, k from 1 to `columns`.
int narcli_kth_largest(long rows, long columns, const float* values, long k, float* out, long threads) {
    const long own = round_up(columns, BLOCK) + 2 * LANES;
    float* scratch = (float*)aligned_alloc(64, own * threads * 4);
    if (!scratch) return 1;
#pragma omp parallel num_threads((int)threads)
    {
        const Share share(rows);
        float* mine = scratch + own * omp_get_thread_num();
        for (long row = share.begin; row < share.end; ++row) {
            memcpy(mine, values + row * columns, columns * 4);
            out[row] = kth_largest(mine, columns, k);
        }
    }
    free(scratch);
    return 0;
}

int narcli_forward_float32(const Step* s, const Layer* layers, float* x, float* states) {
    return forward<float>(*s, layers, x, states);
}
int narcli_forward_bfloat16(const Step* s, const Layer* layers, float* x, float* states) {
    return forward<bf16>(*s, layers, x, states);
}
int narcli_attend_float32(long batch, long n, long heads, long width, const float* qkv, float* out, long threads) {
    return attend_all(batch, n, heads, width, qkv, out, threads);
}
int narcli_attend_bfloat16(long batch, long n, long heads, long width, const bf16* qkv, bf16* out, long threads) {
    return attend_all(batch, n, heads, width, qkv, out, threads);
}
int narcli_linear_float32(long rows, long inner, long columns, const float* x, const float* w, float* out, long threads) {
    return linear(rows, inner, columns, x, w, out, threads);
}
int narcli_linear_bfloat16(long rows, long inner, long columns, const float* x, const bf16* w, float* out, long threads) {
    return linear(rows, inner, columns, x, w, out, threads);
}
}
