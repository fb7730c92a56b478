// Vectors of 16 floats, loaded from and stored as float32 or bfloat16; threads that work through phases together.
#pragma once

#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <vector>

#define INLINE static inline __attribute__((always_inline))

namespace penstock {

using bf16 = uint16_t;

INLINE __m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
INLINE __m512 load(const float* p) { return _mm512_loadu_ps(p); }
INLINE __m512 load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
INLINE __m512 load(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
INLINE __m512 load(const bf16* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
INLINE void store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
INLINE void store(bf16* p, __m512 v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
INLINE void store(float* p, __m512 v, __mmask16 m) { _mm512_mask_storeu_ps(p, m, v); }
INLINE void store(bf16* p, __m512 v, __mmask16 m) {
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
static thread_local Scratch scratch;

// Threads inside one parallel region. `each` hands items out as threads become free, and returns to all once all are
// done: a layer is one region with a barrier between its phases, not a region per operation.
class Team {
 public:
  static constexpr int MOST_PHASES = 16;
  static constexpr int SPINS = 500;  // some 10 us: a phase ends about then, or somebody was not given a core

  template <class F>
  static void run(int threads, F f) {  // f(team), by every thread
    Team team;
    if (threads <= 1) return f(team);
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
      team.threads_ = omp_get_num_threads();  // the barrier of `single` publishes it
      f(team);
    }
  }

  int threads() const { return threads_; }

  template <class F>
  void each(int phase, int64_t items, F f, int64_t at_once = 1) {  // f(item)
    if (threads_ == 1) {
      for (int64_t i = 0; i < items; i++) f(i);
      return;
    }
    for (int64_t first; (first = next_[phase].fetch_add(at_once, std::memory_order_relaxed)) < items;)
      for (int64_t i = first; i < items && i < first + at_once; i++) f(i);
    wait();
  }

 private:
  void wait() {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
      if (spins < SPINS)
        _mm_pause();
      else
        sched_yield();  // more threads than cores: whoever is missing needs this one
    }
  }

  int threads_ = 1;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
  alignas(64) std::atomic<int64_t> next_[MOST_PHASES] = {};
};

}  // namespace penstock
