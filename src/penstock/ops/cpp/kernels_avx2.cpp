// The linear layer for CPUs with AVX2, FMA and F16C but not the instructions of kernels.cpp: same packed weights, same
// interface, same order of sums for every number of tokens. The other ops stay in torch there.
//
// Panels are taken by half, 32 outputs: 4 vectors of 8 sums for each of up to 3 tokens leave room for the weights.

#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr int NB = 64, HALF = 32, MOST_ROWS = 3, GROUP8 = 128, GROUP4 = 32;
using bf16 = uint16_t;

struct Weight {  // as in linear.h
  const char* data;
  const float* scale;
  const void* bias;
  int64_t format, n, k;
};

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  const uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline void put(float x, float* to) { *to = x; }
inline void put(float x, bf16* to) {  // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &x, 4);
  *to = std::isnan(x) ? (bits >> 16) | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

struct Quantized {  // by row and group: numbers, a scale, a sum
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> sum;
  int64_t k, n_groups;

  template <class T>
  Quantized(const T* x, int64_t rows, int64_t inputs, int64_t ldx, int group) {
    n_groups = (inputs + group - 1) / group, k = n_groups * group;
    q.assign(rows * k + 4, 0), scale.resize(rows * n_groups), sum.resize(rows * n_groups);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t g = 0; g < n_groups; g++) {
        const int64_t at = g * group, stop = at + group < inputs ? at + group : inputs;
        float top = 0;
        for (int64_t i = at; i < stop; i++) top = std::fmax(top, std::fabs(widen(x[m * ldx + i])));
        const float s = top / 127.f, inverse = s > 0 ? 1.f / s : 0.f;
        int32_t total = 0;
        for (int64_t i = at; i < stop; i++) {
          const int32_t n = (int32_t)std::nearbyint(widen(x[m * ldx + i]) * inverse);
          total += n, q[m * k + i] = (int8_t)n;
        }
        scale[m * n_groups + g] = s, sum[m * n_groups + g] = total;
      }
  }
};

using Sums = float[MOST_ROWS][HALF];

template <int M>
void tile_f32(const char* panel, int half, const float* x, int64_t ldx, int64_t k, Sums& c) {
  __m256 acc[M][4];
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) acc[m][j] = _mm256_setzero_ps();
  const float* w = (const float*)panel + half * HALF;
  for (int64_t i = 0; i < k; i++, w += NB)
    for (int m = 0; m < M; m++) {
      const __m256 a = _mm256_broadcast_ss(x + m * ldx + i);
      for (int j = 0; j < 4; j++) acc[m][j] = _mm256_fmadd_ps(a, _mm256_loadu_ps(w + 8 * j), acc[m][j]);
    }
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) _mm256_storeu_ps(c[m] + 8 * j, acc[m][j]);
}

template <int M>
void tile_bf16(const char* panel, int half, const bf16* x, int64_t ldx, int64_t k, Sums& c) {
  __m256 acc[M][4];
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) acc[m][j] = _mm256_setzero_ps();
  const char* w = panel + half * HALF * 4;
  const __m256i high = _mm256_set1_epi32(0xffff0000);
  for (int64_t i = 0; i < k; i += 2, w += NB * 4)
    for (int j = 0; j < 4; j++) {
      const __m256i both = _mm256_loadu_si256((const __m256i*)(w + 32 * j));
      const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
      const __m256 second = _mm256_castsi256_ps(_mm256_and_si256(both, high));
      for (int m = 0; m < M; m++) {
        acc[m][j] = _mm256_fmadd_ps(_mm256_set1_ps(widen(x[m * ldx + i])), first, acc[m][j]);
        acc[m][j] = _mm256_fmadd_ps(_mm256_set1_ps(widen(x[m * ldx + i + 1])), second, acc[m][j]);
      }
    }
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) _mm256_storeu_ps(c[m] + 8 * j, acc[m][j]);
}

inline __m256i four_of(const int8_t* q) {
  int32_t four;
  memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

template <int M>
void tile_int8(const char* panel, int half, const Quantized& a, int64_t m0, Sums& c) {
  const __m256i offset = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
  memset(c, 0, sizeof(c));
  const char* w = panel + half * HALF * 4;
  for (int64_t g = 0; g < a.n_groups; g++) {
    __m256i acc[M][4];
    for (int m = 0; m < M; m++)
      for (int j = 0; j < 4; j++) acc[m][j] = _mm256_setzero_si256();
    for (int i = 0; i < GROUP8; i += 4, w += NB * 4)
      for (int j = 0; j < 4; j++) {
        // signed numbers up to 127: unsigned ones up to 255 would overflow the 16-bit sums of two products
        const __m256i v = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)(w + 32 * j)), offset);
        const __m256i size = _mm256_abs_epi8(v);
        for (int m = 0; m < M; m++) {
          const __m256i x = _mm256_sign_epi8(four_of(a.q.data() + (m0 + m) * a.k + g * GROUP8 + i), v);
          acc[m][j] = _mm256_add_epi32(acc[m][j], _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), ones));
        }
      }
    for (int m = 0; m < M; m++)
      for (int j = 0; j < 4; j++) {
        const __m256 s = _mm256_set1_ps(a.scale[(m0 + m) * a.n_groups + g]);
        const __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[m][j]), s, _mm256_loadu_ps(c[m] + 8 * j));
        _mm256_storeu_ps(c[m] + 8 * j, sum);
      }
  }
}

template <int M>
void tile_int4(const char* panel, int half, const Quantized& a, int64_t m0, Sums& c) {
  constexpr int GROUP_BYTES = NB * (2 + GROUP4 / 2);
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  memset(c, 0, sizeof(c));
  for (int64_t g = 0; g < a.n_groups; g++) {
    const char* w = panel + g * GROUP_BYTES;
    __m256i acc[M][4];
    for (int m = 0; m < M; m++)
      for (int j = 0; j < 4; j++) acc[m][j] = _mm256_set1_epi32(-8 * a.sum[(m0 + m) * a.n_groups + g]);
    for (int i = 0; i < GROUP4; i += 8)
      for (int j = 0; j < 4; j++) {
        const __m256i both = _mm256_loadu_si256((const __m256i*)(w + NB * 2 + 32 * i + half * HALF * 4 + 32 * j));
        const __m256i first = _mm256_and_si256(both, low);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        for (int m = 0; m < M; m++) {
          const int8_t* q = a.q.data() + (m0 + m) * a.k + g * GROUP4 + i;
          const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(first, four_of(q)),
                                                 _mm256_maddubs_epi16(second, four_of(q + 4)));
          acc[m][j] = _mm256_add_epi32(acc[m][j], _mm256_madd_epi16(pairs, ones));
        }
      }
    for (int j = 0; j < 4; j++) {
      const __m256 w_scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(w + 2 * (half * HALF + 8 * j))));
      for (int m = 0; m < M; m++) {
        const __m256 s = _mm256_mul_ps(w_scale, _mm256_set1_ps(a.scale[(m0 + m) * a.n_groups + g]));
        const __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[m][j]), s, _mm256_loadu_ps(c[m] + 8 * j));
        _mm256_storeu_ps(c[m] + 8 * j, sum);
      }
    }
  }
}

int64_t panel_bytes(const Weight& w) {
  switch (w.format) {
    case 0: return w.k * NB * 4;
    case 1: return w.k * NB * 2;
    case 2: return (w.k + GROUP8 - 1) / GROUP8 * GROUP8 * NB;
    default: return (w.k + GROUP4 - 1) / GROUP4 * NB * (2 + GROUP4 / 2);
  }
}

template <int M, class T>
void tile(const Weight& w, const char* panel, int half, const T* x, int64_t ldx, const Quantized* a, int64_t m0, Sums& c) {
  if (w.format == 2) return tile_int8<M>(panel, half, *a, m0, c);
  if (w.format == 3) return tile_int4<M>(panel, half, *a, m0, c);
  if constexpr (std::is_same<T, float>::value)
    tile_f32<M>(panel, half, x + m0 * ldx, ldx, w.k, c);
  else
    tile_bf16<M>(panel, half, x + m0 * ldx, ldx, w.k, c);
}

template <class T>
void linear(const T* x, int64_t rows, int64_t ldx, const Weight& w, T* y, int threads) {
  const int group = w.format == 2 ? GROUP8 : w.format == 3 ? GROUP4 : 0;
  Quantized* a = group ? new Quantized(x, rows, w.k, ldx, group) : nullptr;
  const int64_t halves = (w.n + HALF - 1) / HALF;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t b = 0; b < halves; b++) {
    const char* panel = w.data + b / 2 * panel_bytes(w);
    Sums c;
    for (int64_t m0 = 0; m0 < rows; m0 += MOST_ROWS) {
      const int64_t count = rows - m0 < MOST_ROWS ? rows - m0 : MOST_ROWS;
      if (count == 1) tile<1>(w, panel, b % 2, x, ldx, a, m0, c);
      if (count == 2) tile<2>(w, panel, b % 2, x, ldx, a, m0, c);
      if (count == 3) tile<3>(w, panel, b % 2, x, ldx, a, m0, c);
      for (int64_t m = 0; m < count; m++)
        for (int64_t j = 0; j < HALF && b * HALF + j < w.n; j++) {
          const int64_t n = b * HALF + j;
          put(w.scale ? c[m][j] * w.scale[n] : c[m][j], y + (m0 + m) * w.n + n);
        }
    }
  }
  delete a;
}

}  // namespace

extern "C" void penstock_linear(int64_t is_bf16, const void* x, int64_t rows, int64_t ldx, const Weight* w, void* y,
                                int64_t threads) {
  if (is_bf16)
    linear((const bf16*)x, rows, ldx, *w, (bf16*)y, threads);
  else
    linear((const float*)x, rows, ldx, *w, (float*)y, threads);
}
