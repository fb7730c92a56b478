// What a layer does to rows between its products: each in one pass, rounded where the ops in torch round.
#pragma once

#include "simd.h"

namespace penstock {

// A row normed to the root of its mean square, of x + residual if there is one; that sum goes to `total`.
template <class T>
INLINE void norm_row(const T* x, const T* residual, T* total, const T* weight, float eps, int64_t dim, T* out) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t d = 0; d < dim; d += 16) {
    const __mmask16 m = tail(dim - d);
    __m512 v = load(x + d, m);
    if (residual) {
      v = rounded(_mm512_add_ps(v, load(residual + d, m)), x);
      store(total + d, v, m);
    }
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const __m512 s = _mm512_set1_ps(1.f / std::sqrt(_mm512_reduce_add_ps(squares) / dim + eps));
  const T* from = residual ? total : x;
  for (int64_t d = 0; d < dim; d += 16) {
    const __mmask16 m = tail(dim - d);
    store(out + d, _mm512_mul_ps(load(weight + d, m), rounded(_mm512_mul_ps(load(from + d, m), s), x)), m);
  }
}

// silu(gate) * up of a row [gate | up]
template <class T>
INLINE void gate_row(const T* x, int64_t width, T* out) {
  const __m512 one = _mm512_set1_ps(1.f);
  for (int64_t d = 0; d < width; d += 16) {
    const __mmask16 m = tail(width - d);
    const __m512 gate = load(x + d, m), up = load(x + width + d, m);
    const __m512 silu = _mm512_div_ps(gate, _mm512_add_ps(one, vexp(_mm512_sub_ps(_mm512_setzero_ps(), gate))));
    store(out + d, _mm512_mul_ps(rounded(silu, x), up), m);
  }
}

// A head rotated by the angles of its token; x and out may be the same.
template <class T>
INLINE void rotate_head(const T* x, const float* cosines, const float* sines, int64_t pairs, int64_t dim, T* out) {
  for (int64_t d = 0; d < pairs; d += 16) {
    const __mmask16 m = tail(pairs - d);
    const __m512 a = load(x + d, m), b = load(x + pairs + d, m), c = load(cosines + d, m), s = load(sines + d, m);
    store(out + d, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)), m);
    store(out + pairs + d, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)), m);
  }
  if (out != x) memcpy(out + 2 * pairs, x + 2 * pairs, (dim - 2 * pairs) * sizeof(T));
}

constexpr int64_t SPLIT = 65536;  // elements from which a second thread pays

template <class F>
void over_rows(int threads, int64_t rows, int64_t row_elements, F f) {
  if (rows * row_elements < SPLIT) threads = 1;
  Team::run(threads, [&](Team& team) { team.each(0, rows, f, rows / (4 * team.threads()) + 1); });
}

}  // namespace penstock
