// A linear layer: one loop for every number of tokens, in tiles of up to 6 tokens by 64 outputs, summed over the inputs
// in one order. So a token's result does not depend on its company, and one token alone streams the weights.
//
// Weights lie as the loop reads them: panels of 64 outputs, within one by inputs, so that a panel is one run of memory.
// A panel is taken in runs of inputs that fit the first cache beside the tokens' own; between runs the sums of a block
// of tokens wait in a buffer. While a run is multiplied the next is asked for, evenly: all at once, the first tile would
// wait for memory and the others leave it idle (16 tokens, bfloat16: 130 of 194 GFLOP/s of one core).
#pragma once

#include "simd.h"

namespace penstock {

constexpr int NB = 64;          // outputs of a panel: 4 vectors
constexpr int MOST_ROWS = 6;    // tokens of a tile
constexpr int BLOCK_ROWS = 96;  // tokens whose sums wait between runs
constexpr int GROUP8 = 128;     // inputs that share an activation scale, 8-bit weights
constexpr int GROUP4 = 32;      // the same for 4-bit weights, whose scales have it too
constexpr int FEW_TILES = 4;    // up to which memory may hold the products back

enum Format : int64_t { FLOAT32, BFLOAT16, INT8, INT4 };

struct Weight {  // [n, k]; scale: by output, of INT8 only; bias: none, or [n] of the activations' type
  const char* data;
  const float* scale;
  const void* bias;
  int64_t format, n, k;
  int group() const { return format == INT8 ? GROUP8 : format == INT4 ? GROUP4 : 0; }
  int64_t panels() const { return (n + NB - 1) / NB; }
};

// Activations as 8-bit integers: by group of inputs a scale, and the sum that takes the weights' offset away.
struct Quantized {
  int8_t* q;
  float* scale;
  int32_t* sum;
  int64_t k, n_groups;  // k: padded to whole groups

  static size_t bytes(int64_t rows, int64_t k, int group) {
    if (!group) return 0;
    const int64_t groups = (k + group - 1) / group;
    return (rows * groups * (group + 8) + 127) / 64 * 64;
  }
  Quantized(char* at, int64_t rows, int64_t inputs, int group) {
    n_groups = group ? (inputs + group - 1) / group : 0;
    k = n_groups * group;
    q = (int8_t*)at;
    scale = (float*)(at + rows * k);
    sum = (int32_t*)(scale + rows * n_groups);
  }
  template <class X>
  void row(int64_t m, const X* x, int64_t inputs, int group) const {
    group == GROUP8 ? row_by<GROUP8>(m, x, inputs) : row_by<GROUP4>(m, x, inputs);
  }

 private:
  template <int GROUP, class X>
  void row_by(int64_t m, const X* x, int64_t inputs) const {
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

// In assembly, for GCC 12 gives the sum of its intrinsic another register than the summand: with 24 sums at once it
// spilled them all, and a tile ran at half the speed (207 against 386 GOP/s on one Zen 4 core).
INLINE void add_dots(__m512i& acc, __m512i w, __m512i x) { asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x)); }

template <int LINES>
INLINE void ask(const char*& at) {
#pragma GCC unroll 4
  for (int i = 0; i < LINES; i++) _mm_prefetch(at + 64 * i, _MM_HINT_T0);
  at += 64 * LINES;
}

template <int M>
INLINE void get(__m512 (&acc)[M][4], const float* c) {
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[m][j] = load(c + m * NB + 16 * j);
}

template <int M>
INLINE void put(const __m512 (&acc)[M][4], float* c) {
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) store(c + m * NB + 16 * j, acc[m][j]);
}

// A function of its own: inlined into its caller, GCC 12 kept the 24 sums of a tile in memory.
#define NOINLINE __attribute__((noinline))

// Each format: RUN inputs of a panel at a time. tile() adds the products of a run to the sums c of M tokens, and asks for
// LINES cache lines from `asked` on with each of its steps.

struct F32 {
  using X = float;
  static constexpr int RUN = 64;
  static int64_t panel_bytes(int64_t k) { return k * NB * 4; }
  template <int M, int LINES>
  static NOINLINE void tile(const char* wc, const X* x, int64_t ldx, int64_t k0, int64_t n, const char* asked, float* c) {
    const float* w = (const float*)wc + k0 * NB;
    __m512 acc[M][4];
    get(acc, c);
    for (int64_t i = k0; i < k0 + n; i++, w += NB) {
      ask<LINES>(asked);
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
    put(acc, c);
  }
};

struct Bf16 {  // k is even: inputs are read in pairs
  using X = bf16;
  static constexpr int RUN = 128;
  static int64_t panel_bytes(int64_t k) { return k * NB * 2; }
  template <int M, int LINES>
  static NOINLINE void tile(const char* wc, const X* x, int64_t ldx, int64_t k0, int64_t n, const char* asked, float* c) {
    const char* w = wc + k0 * NB * 2;
    __m512 acc[M][4];
    get(acc, c);
    for (int64_t i = k0; i < k0 + n; i += 2, w += 256) {
      ask<LINES>(asked);
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
    put(acc, c);
  }
};

// GROUP inputs of unsigned weights by signed activations; OFFSET: what was added to make the weights unsigned.
template <int M, int GROUP, int OFFSET, int LINES>
INLINE void dots(__m512i (&acc)[M][4], const char* w, const int8_t* q, int64_t ldq, const int32_t* sum, int64_t ldsum,
                 const char* asked) {
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
    acc[m][0] = acc[m][1] = acc[m][2] = acc[m][3] = _mm512_set1_epi32(-OFFSET * sum[m * ldsum]);
  for (int i = 0; i < GROUP; i += 4, w += 256) {
    ask<LINES>(asked);
    const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
    const __m512i w2 = _mm512_load_si512(w + 128), w3 = _mm512_load_si512(w + 192);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      int32_t four;
      memcpy(&four, q + m * ldq + i, 4);
      const __m512i b = _mm512_set1_epi32(four);
      add_dots(acc[m][0], w0, b);
      add_dots(acc[m][1], w1, b);
      add_dots(acc[m][2], w2, b);
      add_dots(acc[m][3], w3, b);
    }
  }
}

struct Int8 {  // weights + 128, for the instruction takes unsigned by signed; a float32 scale by output
  static constexpr int GROUP = GROUP8, RUN = GROUP8;
  static int64_t panel_bytes(int64_t k) { return (k + GROUP - 1) / GROUP * GROUP * NB; }
  static int64_t run_bytes(int64_t inputs) { return inputs * NB; }
  template <int M, int LINES>
  static NOINLINE void tile(const char* w, const Quantized& a, int64_t m0, int64_t k0, int64_t, char*, const char* asked,
                            float* c) {
    const int64_t at = m0 * a.n_groups + k0 / GROUP;
    __m512i acc[M][4];
    dots<M, GROUP, 128, LINES>(acc, w + k0 * NB, a.q + m0 * a.k + k0, a.k, a.sum + at, a.n_groups, asked);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const __m512 s = _mm512_set1_ps(a.scale[at + m * a.n_groups]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++)
        store(c + m * NB + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m][j]), s, load(c + m * NB + 16 * j)));
    }
  }
  static void unpack(const char*, int64_t, int64_t, char*) {}
};

struct Int4 {  // by group of 32 inputs: 64 float16 scales, then weights + 8, inputs i and i + 4 in one byte
  static constexpr int GROUP = GROUP4, RUN = 128, GROUP_BYTES = NB * (2 + GROUP / 2);
  static constexpr int MOST_PACKED = 4;  // tokens for which unpacking a run first does not pay
  static int64_t panel_bytes(int64_t k) { return (k + GROUP - 1) / GROUP * GROUP_BYTES; }

  INLINE void halves(const char* at, __m512i& first, __m512i& second) {
    const __m512i low = _mm512_set1_epi8(15), both = _mm512_load_si512(at);
    first = _mm512_and_si512(both, low);
    second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }

  // Many tokens: the run's weights as bytes, unpacked once for all tiles.
  static void unpack(const char* wv, int64_t k0, int64_t n, char* bytes) {
    const char* w = wv + k0 / GROUP * GROUP_BYTES;
    for (int64_t g = 0; g < n / GROUP; g++, w += GROUP_BYTES)
      for (int i = 0; i < GROUP; i += 8)
        for (int j = 0; j < 4; j++) {
          __m512i first, second;
          halves(w + NB * 2 + 32 * i + 64 * j, first, second);
          char* to = bytes + (g * GROUP + i) * NB + 64 * j;
          _mm512_store_si512(to, first);
          _mm512_store_si512(to + 256, second);
        }
  }
  template <int M>
  INLINE void add(const __m512i (&acc)[M][4], const char* w, const float* a_scale, int64_t ldscale, float* c) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512 w_scale = _mm512_cvtph_ps(_mm256_load_si256((const __m256i*)(w + 32 * j)));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const __m512 s = _mm512_mul_ps(w_scale, _mm512_set1_ps(a_scale[m * ldscale]));
        store(c + m * NB + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m][j]), s, load(c + m * NB + 16 * j)));
      }
    }
  }
  static int64_t run_bytes(int64_t inputs) { return inputs / GROUP * GROUP_BYTES; }
  template <int M, int LINES>
  static void tile(const char* wv, const Quantized& a, int64_t m0, int64_t k0, int64_t n, char* bytes, const char* asked,
                   float* c) {
    const char* w = wv + k0 / GROUP * GROUP_BYTES;
    for (int64_t g = 0; g < n / GROUP; g++, w += GROUP_BYTES, asked += GROUP_BYTES / 4 * LINES) {
      const int64_t at = m0 * a.n_groups + k0 / GROUP + g;
      const int8_t* q = a.q + m0 * a.k + k0 + g * GROUP;
      if (M > MOST_PACKED || bytes)
        add_bytes<M, LINES>(bytes + g * GROUP * NB, w, q, a.k, a.sum + at, a.scale + at, a.n_groups, asked, c);
      else
        add_packed<M < MOST_PACKED ? M : MOST_PACKED>(w, q, a.k, a.sum + at, a.scale + at, a.n_groups, asked, c);
    }
  }
  template <int M, int LINES>
  static NOINLINE void add_bytes(const char* bytes, const char* w, const int8_t* q, int64_t ldq, const int32_t* sum,
                                 const float* scale, int64_t n_groups, const char* asked, float* c) {
    __m512i acc[M][4];
    dots<M, GROUP, 8, LINES>(acc, bytes, q, ldq, sum, n_groups, asked);  // asks for 8 of 18 lines
    add<M>(acc, w, scale, n_groups, c);
  }
  template <int M>
  static NOINLINE void add_packed(const char* w, const int8_t* q, int64_t ldq, const int32_t* sum, const float* scale,
                                  int64_t n_groups, const char* asked, float* c) {
    __m512i acc[M][4];
    ask<2>(asked);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
      acc[m][0] = acc[m][1] = acc[m][2] = acc[m][3] = _mm512_set1_epi32(-8 * sum[m * n_groups]);
#pragma GCC unroll 4
    for (int i = 0; i < GROUP; i += 8) {
      ask<4>(asked);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        __m512i first, second;
        halves(w + NB * 2 + 32 * i + 64 * j, first, second);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          int32_t four[2];
          memcpy(four, q + m * ldq + i, 8);
          add_dots(acc[m][j], first, _mm512_set1_epi32(four[0]));
          add_dots(acc[m][j], second, _mm512_set1_epi32(four[1]));
        }
      }
    }
    add<M>(acc, w, scale, n_groups, c);
  }
};

template <int N>
using Constant = std::integral_constant<int, N>;

template <class F>
INLINE void with_rows(int64_t rows, F f) {
  switch (rows) {
    case 1: return f(Constant<1>());
    case 2: return f(Constant<2>());
    case 3: return f(Constant<3>());
    case 4: return f(Constant<4>());
    case 5: return f(Constant<5>());
    default: return f(Constant<MOST_ROWS>());
  }
}

// Tiles of a run: calls f(first row, rows, lines to ask for with each step), the last two constants. A step of one tile
// is 4 lines of a run, so one tile asks for 4, two for 2 each, and of many the first four for one each.
template <class F>
INLINE void by_tiles(int64_t rows, F f) {
  const int64_t tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t m = t * MOST_ROWS;
    with_rows(rows - m, [&](auto count) {
      if (tiles == 1) return f(m, count, Constant<4>());
      if (tiles == 2 || (tiles == 3 && t == 0)) return f(m, count, Constant<2>());
      if (t < FEW_TILES) return f(m, count, Constant<1>());
      f(m, count, Constant<0>());
    });
  }
}

// From the sums of a token to its outputs: the weights' scale, the rounding of the type, then the bias.
template <class Y>
INLINE void put_row(const float* c, const float* scale, const Y* bias, Y* y, int64_t n_left) {
  for (int j = 0; j < 4 && n_left > 16 * j; j++) {
    const __mmask16 m = tail(n_left - 16 * j);
    __m512 v = load(c + 16 * j);
    if (scale) v = _mm512_mul_ps(v, load(scale + 16 * j));
    if (bias) v = _mm512_add_ps(rounded(v, y), load(bias + 16 * j, m));
    store(y + 16 * j, v, m);
  }
}

struct Product {  // items: blocks of tokens by panels
  int64_t rows, panels;
  int64_t items() const { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS * panels; }
  int64_t at_once(int threads) const { return rows > BLOCK_ROWS ? 1 : panels / (16 * threads) + 1; }
};

template <class W, class Y>
void dense_item(int64_t item, const Y* x, int64_t rows, int64_t ldx, const Weight& w, Y* y, int64_t ldy) {
  alignas(64) float c[BLOCK_ROWS * NB];
  const int64_t b = item % w.panels(), first = item / w.panels() * BLOCK_ROWS;
  const int64_t n = rows - first < BLOCK_ROWS ? rows - first : BLOCK_ROWS;
  const char* panel = w.data + b * W::panel_bytes(w.k);
  const int64_t run = n > FEW_TILES * MOST_ROWS ? W::RUN : W::RUN / 2;  // few tokens: room for the next run
  memset(c, 0, n * NB * sizeof(float));
  for (int64_t k0 = 0; k0 < w.k; k0 += run) {
    const int64_t left = w.k - k0 < run ? w.k - k0 : run;
    const char* asked = panel + W::panel_bytes(k0 + left);
    by_tiles(n, [&](int64_t m, auto count, auto lines) {
      W::template tile<decltype(count)::value, decltype(lines)::value>(panel, x + (first + m) * ldx, ldx, k0, left, asked,
                                                                       c + m * NB);
      asked += W::panel_bytes(left) / 4 * decltype(lines)::value;
    });
  }
  for (int64_t m = 0; m < n; m++)
    put_row(c + m * NB, (const float*)nullptr, w.bias ? (const Y*)w.bias + b * NB : nullptr, y + (first + m) * ldy + b * NB,
            w.n - b * NB);
}

template <class W, class Y>
void quantized_item(int64_t item, const Quantized& a, int64_t rows, const Weight& w, Y* y, int64_t ldy) {
  alignas(64) float c[BLOCK_ROWS * NB];
  alignas(64) char bytes[W::RUN * NB];
  const int64_t b = item % w.panels(), first = item / w.panels() * BLOCK_ROWS;
  const int64_t n = rows - first < BLOCK_ROWS ? rows - first : BLOCK_ROWS;
  const char* panel = w.data + b * W::panel_bytes(w.k);
  char* unpacked = std::is_same<W, Int4>::value && n > Int4::MOST_PACKED ? bytes : nullptr;
  memset(c, 0, n * NB * sizeof(float));
  for (int64_t k0 = 0; k0 < a.k; k0 += W::RUN) {
    const int64_t left = a.k - k0 < W::RUN ? a.k - k0 : W::RUN;
    const char* asked = panel + W::run_bytes(k0 + left);
    if (unpacked) W::unpack(panel, k0, left, unpacked);
    by_tiles(n, [&](int64_t m, auto count, auto lines) {
      W::template tile<decltype(count)::value, decltype(lines)::value>(panel, a, first + m, k0, left, unpacked, asked,
                                                                       c + m * NB);
      asked += W::run_bytes(left) / 4 * decltype(lines)::value;
    });
  }
  for (int64_t m = 0; m < n; m++)
    put_row(c + m * NB, w.scale ? w.scale + b * NB : nullptr, w.bias ? (const Y*)w.bias + b * NB : nullptr,
            y + (first + m) * ldy + b * NB, w.n - b * NB);
}

// One item of x @ w.T + bias; `a` holds x already rounded if the weights are integers.
template <class T>
void linear_item(int64_t item, const T* x, const Quantized& a, int64_t rows, int64_t ldx, const Weight& w, T* y,
                 int64_t ldy) {
  if (w.format == INT8) return quantized_item<Int8>(item, a, rows, w, y, ldy);
  if (w.format == INT4) return quantized_item<Int4>(item, a, rows, w, y, ldy);
  using Dense = typename std::conditional<std::is_same<T, float>::value, F32, Bf16>::type;
  dense_item<Dense>(item, x, rows, ldx, w, y, ldy);
}

template <class T>
void linear(const T* x, int64_t rows, int64_t ldx, const Weight& w, T* y, int threads) {
  const int group = w.group();
  const Quantized a(scratch.get(Quantized::bytes(rows, w.k, group)), rows, w.k, group);
  const Product product{rows, w.panels()};
  Team::run(threads, [&](Team& team) {
    if (group) team.each(0, rows, [&](int64_t m) { a.row(m, x + m * ldx, w.k, group); }, 8);
    team.each(1, product.items(), [&](int64_t i) { linear_item(i, x, a, rows, ldx, w, y, w.n); },
              product.at_once(team.threads()));
  });
}

}  // namespace penstock
