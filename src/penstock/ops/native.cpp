// The CPU kernels of Penstock behind a C interface. `native.py` compiles this file with -march=native and calls it;
// what each function computes is said by the reference in torch beside its caller.
//
// A linear layer has one loop for every number of tokens: tiles of up to MR tokens by 64 outputs, summed over the
// inputs in one order. So a token's result does not depend on its company, and one token alone streams the weights.
// Weights lie as the loop reads them: by 64 outputs, then inputs, so that a tile is one run of memory.

#include <immintrin.h>
#include <omp.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int NB = 64;         // outputs of a tile: 4 vectors
constexpr int GROUP8 = 128;    // inputs that share an activation scale, 8-bit weights
constexpr int GROUP4 = 32;     // the same for 4-bit weights, whose scales have it too
constexpr int MAX_DIM = 256;   // of a head
constexpr int MAX_SHARE = 32;  // query heads to a KV head
constexpr int KEYS = 64;       // keys of a tile of attention

using bf16 = uint16_t;

INLINE __m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
INLINE __m512 load(const float* p) { return _mm512_loadu_ps(p); }
INLINE __m512 load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
INLINE __m512 load(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
INLINE __m512 load(const bf16* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
INLINE void store(float* p, __m512 v, __mmask16 m = 0xffff) { _mm512_mask_storeu_ps(p, m, v); }
INLINE void store(bf16* p, __m512 v, __mmask16 m = 0xffff) {
  _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v));
}
// as if it had been stored and loaded
INLINE __m512 rounded(__m512 v, const float*) { return v; }
INLINE __m512 rounded(__m512 v, const bf16*) { return widen((__m256i)_mm512_cvtneps_pbh(v)); }
INLINE __mmask16 tail(int64_t left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

INLINE __m512 vexp(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-103.f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.f / 5040);
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

struct Scratch {  // of the calling thread, kept: a step asks for the same sizes again and again
  char* data = nullptr;
  size_t size = 0;
  char* get(size_t n) {
    if (n > size) {
      free(data);
      data = (char*)aligned_alloc(64, size = (n + 4095) / 4096 * 4096);
      if (!data) abort();
    }
    return data;
  }
  ~Scratch() { free(data); }
};
thread_local Scratch scratch;

// ---- linear ----

// In assembly, for GCC 12 gives the sum of its intrinsic another register than the summand: with 24 sums at once it
// spilled them all, and a tile ran at half the speed (207 against 386 GOP/s on one Zen 4 core).
INLINE void add_dots(__m512i& acc, __m512i w, __m512i x) { asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x)); }

template <int MR>
INLINE void clear(__m512 (&acc)[MR][4]) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[m][j] = _mm512_setzero_ps();
}

template <int MR, class T>
INLINE void put(const __m512 (&acc)[MR][4], T* y, int64_t ldy, int64_t n_left) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
      if (n_left > 16 * j) store(y + m * ldy + 16 * j, acc[m][j], tail(n_left - 16 * j));
}

struct F32 {
  using X = float;
  static constexpr int MR = 6;
  static int64_t panel_bytes(int64_t k) { return k * NB * 4; }
  template <int M, class Y>
  static void tile(const void* wv, const X* x, int64_t ldx, int64_t k, Y* y, int64_t ldy, int64_t n_left) {
    const float* w = (const float*)wv;
    __m512 acc[M][4];
    clear(acc);
    for (int64_t i = 0; i < k; i++, w += NB) {
      const __m512 w0 = load(w), w1 = load(w + 16), w2 = load(w + 32), w3 = load(w + 48);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const __m512 a = _mm512_set1_ps(x[m * ldx + i]);
        acc[m][0] = _mm512_fmadd_ps(a, w0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(a, w1, acc[m][1]);
        acc[m][2] = _mm512_fmadd_ps(a, w2, acc[m][2]);
        acc[m][3] = _mm512_fmadd_ps(a, w3, acc[m][3]);
      }
    }
    put(acc, y, ldy, n_left);
  }
};

struct Bf16 {
  using X = bf16;
  static constexpr int MR = 6;
  static int64_t panel_bytes(int64_t k) { return k * NB * 2; }
  template <int M, class Y>
  static void tile(const void* wv, const X* x, int64_t ldx, int64_t k, Y* y, int64_t ldy, int64_t n_left) {
    const char* w = (const char*)wv;
    __m512 acc[M][4];
    clear(acc);
    for (int64_t i = 0; i < k; i += 2, w += 256) {
      const __m512bh w0 = (__m512bh)_mm512_load_si512(w), w1 = (__m512bh)_mm512_load_si512(w + 64);
      const __m512bh w2 = (__m512bh)_mm512_load_si512(w + 128), w3 = (__m512bh)_mm512_load_si512(w + 192);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        int32_t pair;
        memcpy(&pair, x + m * ldx + i, 4);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
        acc[m][0] = _mm512_dpbf16_ps(acc[m][0], w0, a);
        acc[m][1] = _mm512_dpbf16_ps(acc[m][1], w1, a);
        acc[m][2] = _mm512_dpbf16_ps(acc[m][2], w2, a);
        acc[m][3] = _mm512_dpbf16_ps(acc[m][3], w3, a);
      }
    }
    put(acc, y, ldy, n_left);
  }
};

// Activations as 8-bit integers: by group of inputs a scale, and the sum that takes the weights' offset away.
struct Quantized {
  int8_t* q;
  float* scale;
  int32_t* sum;
  int64_t k, n_groups;  // k: padded to whole groups

  static size_t bytes(int64_t rows, int64_t k, int group) {
    const int64_t groups = (k + group - 1) / group;
    return rows * groups * (group + 8) + 64;
  }
  Quantized(char* at, int64_t rows, int64_t inputs, int group) {
    n_groups = (inputs + group - 1) / group;
    k = n_groups * group;
    q = (int8_t*)at;
    scale = (float*)(at + rows * k);
    sum = (int32_t*)(scale + rows * n_groups);
  }
  template <int GROUP, class X>
  void row(int64_t m, const X* x, int64_t inputs) {
    for (int64_t g = 0; g < n_groups; g++) {
      const int64_t at = g * GROUP;
      __m512 v[GROUP / 16], top = _mm512_setzero_ps();
      for (int i = 0; i < GROUP / 16; i++) {
        const int64_t left = inputs - at - 16 * i;
        v[i] = left > 0 ? load(x + at + 16 * i, tail(left)) : _mm512_setzero_ps();
        top = _mm512_max_ps(top, _mm512_abs_ps(v[i]));
      }
      const float s = _mm512_reduce_max_ps(top) / 127.f;
      const __m512 inverse = _mm512_set1_ps(s > 0 ? 1.f / s : 0.f);
      __m512i total = _mm512_setzero_si512();
      for (int i = 0; i < GROUP / 16; i++) {
        const __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
        total = _mm512_add_epi32(total, n);
        _mm_storeu_si128((__m128i*)(q + m * k + at + 16 * i), _mm512_cvtsepi32_epi8(n));
      }
      scale[m * n_groups + g] = s;
      sum[m * n_groups + g] = _mm512_reduce_add_epi32(total);
    }
  }
};

template <int M, class Y>
INLINE void put_scaled(float (&c)[M][NB], const float* scale, Y* y, int64_t ldy, int64_t n_left) {
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4 && n_left > 16 * j; j++) {
      __m512 v = load(c[m] + 16 * j);
      if (scale) v = _mm512_mul_ps(v, load(scale + 16 * j));
      store(y + m * ldy + 16 * j, v, tail(n_left - 16 * j));
    }
}

struct Int8 {  // weights + 128, for the instruction takes unsigned by signed; a float32 scale by output
  static constexpr int MR = 6, GROUP = GROUP8;
  static int64_t panel_bytes(int64_t k) { return (k + GROUP - 1) / GROUP * GROUP * NB; }
  template <int M, class Y>
  static void tile(const void* wv, const float* w_scale, const Quantized& a, int64_t m0, Y* y, int64_t ldy,
                   int64_t n_left) {
    const char* w = (const char*)wv;
    alignas(64) float c[M][NB];
    for (int64_t g = 0; g < a.n_groups; g++) {
      __m512i acc[M][4];
      const int8_t* q = a.q + m0 * a.k + g * GROUP;
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const __m512i start = _mm512_set1_epi32(-128 * a.sum[(m0 + m) * a.n_groups + g]);
        acc[m][0] = acc[m][1] = acc[m][2] = acc[m][3] = start;
      }
      for (int i = 0; i < GROUP; i += 4, w += 256) {
        const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
        const __m512i w2 = _mm512_load_si512(w + 128), w3 = _mm512_load_si512(w + 192);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          int32_t four;
          memcpy(&four, q + m * a.k + i, 4);
          const __m512i b = _mm512_set1_epi32(four);
          add_dots(acc[m][0], w0, b);
          add_dots(acc[m][1], w1, b);
          add_dots(acc[m][2], w2, b);
          add_dots(acc[m][3], w3, b);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const __m512 s = _mm512_set1_ps(a.scale[(m0 + m) * a.n_groups + g]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          const __m512 before = g ? load(c[m] + 16 * j) : _mm512_setzero_ps();
          store(c[m] + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m][j]), s, before));
        }
      }
    }
    put_scaled<M>(c, w_scale, y, ldy, n_left);
  }
};

struct Int4 {  // by group of 32 inputs: 64 float16 scales, then weights + 8, inputs i and i + 4 in one byte
  static constexpr int MR = 4, GROUP = GROUP4, GROUP_BYTES = NB * (2 + GROUP / 2);
  static int64_t panel_bytes(int64_t k) { return (k + GROUP - 1) / GROUP * GROUP_BYTES; }
  template <int M, class Y>
  static void tile(const void* wv, const float*, const Quantized& a, int64_t m0, Y* y, int64_t ldy, int64_t n_left) {
    const char* w = (const char*)wv;
    alignas(64) float c[M][NB];
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t g = 0; g < a.n_groups; g++, w += GROUP_BYTES) {
      __m512i acc[M][4];
      const int8_t* q = a.q + m0 * a.k + g * GROUP;
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const __m512i start = _mm512_set1_epi32(-8 * a.sum[(m0 + m) * a.n_groups + g]);
        acc[m][0] = acc[m][1] = acc[m][2] = acc[m][3] = start;
      }
      for (int i = 0; i < GROUP; i += 8) {
        const char* at = w + NB * 2 + 32 * i;
        __m512i first[4], second[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          const __m512i both = _mm512_load_si512(at + 64 * j);
          first[j] = _mm512_and_si512(both, low);
          second[j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          int32_t four[2];
          memcpy(four, q + m * a.k + i, 8);
          const __m512i b0 = _mm512_set1_epi32(four[0]), b1 = _mm512_set1_epi32(four[1]);
#pragma GCC unroll 4
          for (int j = 0; j < 4; j++) {
            add_dots(acc[m][j], first[j], b0);
            add_dots(acc[m][j], second[j], b1);
          }
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const __m512 w_scale = _mm512_cvtph_ps(_mm256_load_si256((const __m256i*)(w + 32 * j)));
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const __m512 s = _mm512_mul_ps(w_scale, _mm512_set1_ps(a.scale[(m0 + m) * a.n_groups + g]));
          const __m512 before = g ? load(c[m] + 16 * j) : _mm512_setzero_ps();
          store(c[m] + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m][j]), s, before));
        }
      }
    }
    put_scaled<M>(c, nullptr, y, ldy, n_left);
  }
};

template <class F>
INLINE void by_rows(int most, int64_t rows, F f) {  // calls f(first row, constant number of rows)
  int64_t m = 0;
  for (; m + most <= rows; m += most) most == 6 ? f(m, std::integral_constant<int, 6>()) : f(m, std::integral_constant<int, 4>());
  switch (rows - m) {
    case 5: f(m, std::integral_constant<int, 5>()); break;
    case 4: f(m, std::integral_constant<int, 4>()); break;
    case 3: f(m, std::integral_constant<int, 3>()); break;
    case 2: f(m, std::integral_constant<int, 2>()); break;
    case 1: f(m, std::integral_constant<int, 1>()); break;
  }
}

template <class F>
void in_parallel(int threads, int64_t items, F f) {  // f(item), items handed out as threads become free
  if (threads <= 1 || items <= 1) {
    for (int64_t i = 0; i < items; i++) f(i);
    return;
  }
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(i);
}

template <class W, class Y>
void dense(const Y* x, int64_t rows, int64_t k, int64_t ldx, const char* w, Y* y, int64_t n, int threads) {
  in_parallel(threads, (n + NB - 1) / NB, [&](int64_t b) {
    by_rows(W::MR, rows, [&](int64_t m, auto count) {
      W::template tile<decltype(count)::value>(w + b * W::panel_bytes(k), x + m * ldx, ldx, k, y + m * n + b * NB, n,
                                               n - b * NB);
    });
  });
}

template <class W, class Y>
void quantized(const Y* x, int64_t rows, int64_t k, int64_t ldx, const char* w, const float* scale, Y* y, int64_t n,
               int threads) {
  Quantized a(scratch.get(Quantized::bytes(rows, k, W::GROUP)), rows, k, W::GROUP);
  in_parallel(rows * k < 16384 ? 1 : threads, (rows + 7) / 8, [&](int64_t i) {
    for (int64_t m = 8 * i; m < rows && m < 8 * i + 8; m++) a.template row<W::GROUP>(m, x + m * ldx, k);
  });
  in_parallel(threads, (n + NB - 1) / NB, [&](int64_t b) {
    by_rows(W::MR, rows, [&](int64_t m, auto count) {
      W::template tile<decltype(count)::value>(w + b * W::panel_bytes(k), scale ? scale + b * NB : nullptr, a, m,
                                               y + m * n + b * NB, n, n - b * NB);
    });
  });
}

// ---- attention of one token over its paged keys ----

INLINE __m512 sums(const __m512 (&a)[16]) {  // lane i: the sum over a[i]
  __m512 t[8], u[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512d p = _mm512_castps_pd(t[2 * i]), q = _mm512_castps_pd(t[2 * i + 1]);
    u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
  }
  const __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
  const __m512 x = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(v, x, 0x88), _mm512_shuffle_f32x4(v, x, 0xdd));
}

INLINE __m512 dot(__m512 acc, const float* a, const float* b) {
  acc = _mm512_fmadd_ps(load(a), load(b), acc);
  return _mm512_fmadd_ps(load(a + 16), load(b + 16), acc);
}
INLINE __m512 dot(__m512 acc, const bf16* a, const bf16* b) {
  return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
}

template <class T>
struct Paged {
  const T* keys;
  const T* values;
  const int32_t* table;
  int64_t block_tokens, stride;  // stride: elements from one token to the next
  int64_t offset(int64_t key) const {
    return ((int64_t)table[key / block_tokens] * block_tokens + key % block_tokens) * stride;
  }
};

template <int G, class T>
INLINE void add_values(float* out, const float* weights, const T* values, const int64_t* at, int n, int dim) {
  for (int d = 0; d < dim; d += 32) {
    __m512 acc[G][2];
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) acc[g][0] = load(out + g * MAX_DIM + d), acc[g][1] = load(out + g * MAX_DIM + d + 16);
    for (int j = 0; j < n; j++) {
      const __m512 v0 = load(values + at[j] + d), v1 = load(values + at[j] + d + 16);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) {
        const __m512 p = _mm512_set1_ps(weights[g * KEYS + j]);
        acc[g][0] = _mm512_fmadd_ps(p, v0, acc[g][0]);
        acc[g][1] = _mm512_fmadd_ps(p, v1, acc[g][1]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) store(out + g * MAX_DIM + d, acc[g][0]), store(out + g * MAX_DIM + d + 16, acc[g][1]);
  }
}

// the query heads q[0 .. share) over keys [begin, n_keys); out and lse follow the heads
template <class T>
void attend(const T* q, const Paged<T>& kv, int64_t begin, int64_t n_keys, int share, int dim, float scale, T* out, float* lse) {
  alignas(64) float scores[MAX_SHARE * KEYS], sum_out[MAX_SHARE * MAX_DIM];
  float top[MAX_SHARE], total[MAX_SHARE];
  int64_t at[KEYS];
  for (int g = 0; g < share; g++) {
    top[g] = -std::numeric_limits<float>::infinity(), total[g] = 0;
    memset(sum_out + g * MAX_DIM, 0, dim * sizeof(float));
  }
  for (int64_t first = begin; first < n_keys; first += KEYS) {
    const int n = n_keys - first < KEYS ? n_keys - first : KEYS;
    for (int j = 0; j < KEYS; j++) {
      at[j] = j < n ? kv.offset(first + j) : at[n - 1];  // what fills a vector up is a key of this sequence, hidden below
      for (int d = 0; j < n && d < dim; d += 64 / sizeof(T)) _mm_prefetch((const char*)(kv.values + at[j] + d), _MM_HINT_T0);
    }
    for (int g = 0; g < share; g++) {
      float* row = scores + g * KEYS;
      __m512 best = _mm512_set1_ps(top[g]);
      for (int j = 0; j < n; j += 16) {
        __m512 acc[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) acc[i] = _mm512_setzero_ps();
        for (int d = 0; d < dim; d += 32)
#pragma GCC unroll 16
          for (int i = 0; i < 16; i++) acc[i] = dot(acc[i], q + g * dim + d, kv.keys + at[j + i] + d);
        const __m512 s = _mm512_mul_ps(sums(acc), _mm512_set1_ps(scale));
        store(row + j, s);
        best = _mm512_mask_max_ps(best, tail(n - j), best, s);
      }
      const float new_top = _mm512_reduce_max_ps(best);
      const float keep = std::exp(top[g] - new_top);
      __m512 added = _mm512_setzero_ps();
      for (int j = 0; j < n; j += 16) {
        const __m512 p = _mm512_maskz_mov_ps(tail(n - j), vexp(_mm512_sub_ps(load(row + j), _mm512_set1_ps(new_top))));
        store(row + j, p);
        added = _mm512_add_ps(added, p);
      }
      total[g] = total[g] * keep + _mm512_reduce_add_ps(added);
      if (top[g] != new_top)
        for (int d = 0; d < dim; d += 16)
          store(sum_out + g * MAX_DIM + d, _mm512_mul_ps(load(sum_out + g * MAX_DIM + d), _mm512_set1_ps(keep)));
      top[g] = new_top;
    }
    for (int64_t j = first + KEYS; j < n_keys && j < first + 2 * KEYS; j++)
      for (int d = 0; d < dim; d += 64 / sizeof(T)) _mm_prefetch((const char*)(kv.keys + kv.offset(j) + d), _MM_HINT_T0);
    int g = 0;
    for (; g + 4 <= share; g += 4) add_values<4>(sum_out + g * MAX_DIM, scores + g * KEYS, kv.values, at, n, dim);
    for (; g + 2 <= share; g += 2) add_values<2>(sum_out + g * MAX_DIM, scores + g * KEYS, kv.values, at, n, dim);
    for (; g < share; g++) add_values<1>(sum_out + g * MAX_DIM, scores + g * KEYS, kv.values, at, n, dim);
  }
  for (int g = 0; g < share; g++) {
    const __m512 inverse = _mm512_set1_ps(1.f / total[g]);
    for (int d = 0; d < dim; d += 16) store(out + g * dim + d, _mm512_mul_ps(load(sum_out + g * MAX_DIM + d), inverse));
    lse[g] = top[g] + std::log(total[g]);
  }
}

template <class T>
void attend_all(const T* q, int64_t q_stride, const T* kv, int64_t n_blocks, const int32_t* tables, int64_t table_width,
                const int64_t* rows, int64_t n_rows, int64_t block_tokens, int heads, int kv_heads, int dim, float scale,
                int64_t window, T* out, float* lse, int threads) {
  const int share = heads / kv_heads;
  in_parallel(threads, n_rows * kv_heads, [&](int64_t item) {
    const int64_t* row = rows + item / kv_heads * 3;  // segment, token, keys
    const int64_t kv_head = item % kv_heads, head = row[1] * heads + kv_head * share;
    const Paged<T> paged{kv + kv_head * dim, kv + n_blocks * block_tokens * kv_heads * dim + kv_head * dim,
                         tables + row[0] * table_width, block_tokens, (int64_t)kv_heads * dim};
    const int64_t begin = window && row[2] > window ? row[2] - window : 0;
    attend(q + row[1] * q_stride + kv_head * share * dim, paged, begin, row[2], share, dim, scale, out + head * dim, lse + head);
  });
}

// ---- small ones ----

constexpr int64_t SPLIT = 65536;  // elements from which a second thread pays

INLINE int64_t pieces(int64_t rows, int64_t row_elements, int threads) {
  return rows * row_elements < SPLIT ? 1 : (rows < 4 * threads ? rows : 4 * threads);
}

template <class T>
void rms_norm(const T* x, int64_t tokens, int64_t heads, int64_t dim, int64_t token_stride, int64_t head_stride,
              const T* weight, int64_t weight_stride, float eps, const T* residual, T* total, T* out, int threads) {
  const int64_t n = tokens * heads, n_pieces = pieces(n, dim, threads);
  in_parallel(threads, n_pieces, [&](int64_t piece) {
    for (int64_t i = n * piece / n_pieces; i < n * (piece + 1) / n_pieces; i++) {
      const T* in = x + i / heads * token_stride + i % heads * head_stride;
      const T* w = weight + i % heads * weight_stride;
      __m512 squares = _mm512_setzero_ps();
      for (int64_t d = 0; d < dim; d += 16) {
        const __mmask16 m = tail(dim - d);
        __m512 v = load(in + d, m);
        if (residual) {
          v = rounded(_mm512_add_ps(v, load(residual + i * dim + d, m)), in);
          store(total + i * dim + d, v, m);
        }
        squares = _mm512_fmadd_ps(v, v, squares);
      }
      const __m512 s = _mm512_set1_ps(1.f / std::sqrt(_mm512_reduce_add_ps(squares) / dim + eps));
      const T* from = residual ? total + i * dim : in;
      for (int64_t d = 0; d < dim; d += 16) {
        const __mmask16 m = tail(dim - d);
        store(out + i * dim + d, _mm512_mul_ps(load(w + d, m), rounded(_mm512_mul_ps(load(from + d, m), s), in)), m);
      }
    }
  });
}

template <class T>
void gated_silu(const T* x, int64_t rows, int64_t width, T* out, int threads) {
  const int64_t n_pieces = pieces(rows, width, threads);
  in_parallel(threads, n_pieces, [&](int64_t piece) {
    for (int64_t i = rows * piece / n_pieces; i < rows * (piece + 1) / n_pieces; i++)
      for (int64_t d = 0; d < width; d += 16) {
        const __mmask16 m = tail(width - d);
        const __m512 gate = load(x + 2 * i * width + d, m), up = load(x + (2 * i + 1) * width + d, m);
        const __m512 one = _mm512_set1_ps(1.f);
        const __m512 silu = _mm512_div_ps(gate, _mm512_add_ps(one, vexp(_mm512_sub_ps(_mm512_setzero_ps(), gate))));
        store(out + i * width + d, _mm512_mul_ps(rounded(silu, x), up), m);
      }
  });
}

template <class T>
void rope(const T* x, int64_t tokens, int64_t heads, int64_t dim, int64_t token_stride, int64_t head_stride,
          const float* cosines, const float* sines, int64_t pairs, T* out, int threads) {
  const int64_t n = tokens * heads, n_pieces = pieces(n, dim, threads);
  in_parallel(threads, n_pieces, [&](int64_t piece) {
    for (int64_t i = n * piece / n_pieces; i < n * (piece + 1) / n_pieces; i++) {
      const T* in = x + i / heads * token_stride + i % heads * head_stride;
      const float *c = cosines + i / heads * pairs, *s = sines + i / heads * pairs;
      T* to = out + i * dim;
      for (int64_t d = 0; d < pairs; d += 16) {
        const __mmask16 m = tail(pairs - d);
        const __m512 a = load(in + d, m), b = load(in + pairs + d, m), cd = load(c + d, m), sd = load(s + d, m);
        store(to + d, _mm512_fmsub_ps(a, cd, _mm512_mul_ps(b, sd)), m);
        store(to + pairs + d, _mm512_fmadd_ps(b, cd, _mm512_mul_ps(a, sd)), m);
      }
      memcpy(to + 2 * pairs, in + 2 * pairs, (dim - 2 * pairs) * sizeof(T));
    }
  });
}

}  // namespace

extern "C" {

void penstock_linear(int64_t format, int64_t is_bf16, const void* x, int64_t rows, int64_t k, int64_t ldx, const void* w,
                     const float* scale, void* y, int64_t n, int64_t threads) {
  const char* panels = (const char*)w;
  if (format == 0) dense<F32>((const float*)x, rows, k, ldx, panels, (float*)y, n, threads);
  if (format == 1) dense<Bf16>((const bf16*)x, rows, k, ldx, panels, (bf16*)y, n, threads);
  if (format == 2 && is_bf16) quantized<Int8>((const bf16*)x, rows, k, ldx, panels, scale, (bf16*)y, n, threads);
  if (format == 2 && !is_bf16) quantized<Int8>((const float*)x, rows, k, ldx, panels, scale, (float*)y, n, threads);
  if (format == 3 && is_bf16) quantized<Int4>((const bf16*)x, rows, k, ldx, panels, nullptr, (bf16*)y, n, threads);
  if (format == 3 && !is_bf16) quantized<Int4>((const float*)x, rows, k, ldx, panels, nullptr, (float*)y, n, threads);
}

void penstock_attend(int64_t is_bf16, const void* q, int64_t q_stride, const void* kv, int64_t n_blocks,
                     const int32_t* tables, int64_t table_width, const int64_t* rows, int64_t n_rows,
                     int64_t block_tokens, int64_t heads, int64_t kv_heads, int64_t dim, double scale, int64_t window,
                     void* out, float* lse, int64_t threads) {
  if (is_bf16)
    attend_all((const bf16*)q, q_stride, (const bf16*)kv, n_blocks, tables, table_width, rows, n_rows, block_tokens,
               heads, kv_heads, dim, scale, window, (bf16*)out, lse, threads);
  else
    attend_all((const float*)q, q_stride, (const float*)kv, n_blocks, tables, table_width, rows, n_rows, block_tokens,
               heads, kv_heads, dim, scale, window, (float*)out, lse, threads);
}

void penstock_rms_norm(int64_t is_bf16, const void* x, int64_t tokens, int64_t heads, int64_t dim, int64_t token_stride,
                       int64_t head_stride, const void* weight, int64_t weight_stride, double eps, const void* residual,
                       void* total, void* out, int64_t threads) {
  if (is_bf16)
    rms_norm((const bf16*)x, tokens, heads, dim, token_stride, head_stride, (const bf16*)weight, weight_stride, eps,
             (const bf16*)residual, (bf16*)total, (bf16*)out, threads);
  else
    rms_norm((const float*)x, tokens, heads, dim, token_stride, head_stride, (const float*)weight, weight_stride, eps,
             (const float*)residual, (float*)total, (float*)out, threads);
}

void penstock_gated_silu(int64_t is_bf16, const void* x, int64_t rows, int64_t width, void* out, int64_t threads) {
  if (is_bf16)
    gated_silu((const bf16*)x, rows, width, (bf16*)out, threads);
  else
    gated_silu((const float*)x, rows, width, (float*)out, threads);
}

void penstock_rope(int64_t is_bf16, const void* x, int64_t tokens, int64_t heads, int64_t dim, int64_t token_stride,
                   int64_t head_stride, const float* cosines, const float* sines, int64_t pairs, void* out,
                   int64_t threads) {
  if (is_bf16)
    rope((const bf16*)x, tokens, heads, dim, token_stride, head_stride, cosines, sines, pairs, (bf16*)out, threads);
  else
    rope((const float*)x, tokens, heads, dim, token_stride, head_stride, cosines, sines, pairs, (float*)out, threads);
}

void penstock_write_kv(const void* k, const void* v, int64_t k_stride, int64_t v_stride, int64_t row_bytes, void* pool,
                       int64_t half_bytes, const int64_t* slots, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++) {
    char* to = (char*)pool + slots[t] * row_bytes;
    memcpy(to, (const char*)k + t * k_stride, row_bytes);
    memcpy(to + half_bytes, (const char*)v + t * v_stride, row_bytes);
  }
}
}
