// The CPU kernels of Penstock behind a C interface. `native.py` compiles this file with -march=native and calls it;
// what each function computes is said by the reference in torch beside its caller.

#include "layer.h"

using namespace penstock;

extern "C" {

void penstock_linear(int64_t is_bf16, const void* x, int64_t rows, int64_t ldx, const Weight* w, void* y,
                     int64_t threads) {
  if (is_bf16)
    linear((const bf16*)x, rows, ldx, *w, (bf16*)y, threads);
  else
    linear((const float*)x, rows, ldx, *w, (float*)y, threads);
}

void penstock_layer(int64_t is_bf16, const LayerWeights* weights, const LayerStep* step) {
  if (is_bf16)
    layer<bf16>(*weights, *step);
  else
    layer<float>(*weights, *step);
}

void penstock_attend(int64_t is_bf16, const void* q, int64_t q_stride, const void* kv, int64_t n_blocks,
                     const int32_t* tables, int64_t table_width, const int64_t* segments, int64_t n_segments,
                     int64_t block_tokens, int64_t heads, int64_t kv_heads, int64_t dim, double scale, int64_t window,
                     double cap, const SharedRun* runs, int64_t n_runs, const int32_t* run_tables,
                     const int64_t* members, int64_t tokens, void* out, float* lse, const Unified* unified,
                     int64_t threads) {
  const auto run = [&](auto type) {
    using T = decltype(type);
    attend_all(Attention<T>{(const T*)q, (const T*)kv, tables, (const Segment*)segments, (T*)out, lse, q_stride,
                            n_blocks, block_tokens, table_width, n_segments, window, (int)heads, (int)kv_heads,
                            (int)dim, (float)scale, (float)cap, unified, {runs, n_runs, run_tables, members}},
               threads, tokens);
  };
  is_bf16 ? run(bf16()) : run(float());
}

void penstock_rms_norm(int64_t is_bf16, const void* x, int64_t tokens, int64_t heads, int64_t dim, int64_t token_stride,
                       int64_t head_stride, const void* weight, int64_t weight_stride, double eps, const void* residual,
                       void* total, void* out, int64_t threads) {
  const auto run = [&](auto type) {
    using T = decltype(type);
    over_rows(threads, tokens * heads, dim, [&](int64_t i) {
      norm_row<T>((const T*)x + i / heads * token_stride + i % heads * head_stride,
                  residual ? (const T*)residual + i * dim : nullptr, residual ? (T*)total + i * dim : nullptr,
                  (const T*)weight + i % heads * weight_stride, eps, dim, (T*)out + i * dim);
    });
  };
  is_bf16 ? run(bf16()) : run(float());
}

void penstock_gated_silu(int64_t is_bf16, const void* x, int64_t rows, int64_t width, void* out, int64_t threads) {
  const auto run = [&](auto type) {
    using T = decltype(type);
    over_rows(threads, rows, width,
              [&](int64_t i) { gate_row((const T*)x + 2 * i * width, width, (T*)out + i * width); });
  };
  is_bf16 ? run(bf16()) : run(float());
}

void penstock_rope(int64_t is_bf16, const void* x, int64_t tokens, int64_t heads, int64_t dim, int64_t token_stride,
                   int64_t head_stride, const float* cosines, const float* sines, int64_t pairs, void* out,
                   int64_t threads) {
  const auto run = [&](auto type) {
    using T = decltype(type);
    over_rows(threads, tokens * heads, dim, [&](int64_t i) {
      rotate_head((const T*)x + i / heads * token_stride + i % heads * head_stride, cosines + i / heads * pairs,
                  sines + i / heads * pairs, pairs, dim, (T*)out + i * dim);
    });
  };
  is_bf16 ? run(bf16()) : run(float());
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
