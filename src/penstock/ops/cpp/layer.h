// A whole decoder layer in one parallel region: norm, attention, norm, gated MLP, with the weights packed as in linear.h.
// Between the phases the threads meet at a barrier (some 0.2 us; a region of its own for each op was 5 us, and the call
// from Python 10). Every rounding is where the separate ops have it, so the result is theirs, bit for bit.
#pragma once

#include "attention.h"
#include "linear.h"
#include "small.h"

namespace penstock {

struct LayerWeights {  // qk_norm: [heads + kv_heads, dim], or none
  const void *input_norm, *mlp_norm, *qk_norm;
  Weight qkv, out, gate_up, down;
  int64_t hidden, heads, kv_heads, dim, window;
  double eps, scale, cap;
  const Unified* unified;  // or none
};

struct LayerStep {  // change: to be added to x first, or none; cosines: none if nothing rotates
  const void *x, *change;
  const float *cosines, *sines;
  void* kv;
  const int64_t* slots;
  const int32_t* tables;
  const Segment* segments;
  void *total, *next_change;  // what goes on: the residual stream, and what is still to be added to it
  SharedRuns shared;
  int64_t tokens, pairs, n_blocks, block_tokens, table_width, n_segments, threads;
};

struct Carver {  // cuts scratch memory
  char* at;
  template <class T>
  T* take(int64_t n) {
    T* found = (T*)at;
    at += (n * sizeof(T) + 63) / 64 * 64;
    return found;
  }
};

template <class T>
struct LayerBuffers {
  T *total, *normed, *qkv, *mixed, *wide, *gated;
  char* integers;

  LayerBuffers(Carver carver, const LayerWeights& w, int64_t tokens) {
    total = carver.take<T>(tokens * w.hidden);
    normed = carver.take<T>(tokens * w.hidden);
    qkv = carver.take<T>(tokens * w.qkv.n);
    mixed = carver.take<T>(tokens * w.out.k);
    wide = carver.take<T>(tokens * w.gate_up.n);
    gated = carver.take<T>(tokens * w.down.k);
    integers = carver.at;
  }
  static size_t bytes(const LayerWeights& w, int64_t tokens) {
    size_t most = 0;
    for (const Weight* m : {&w.qkv, &w.out, &w.gate_up, &w.down}) {
      const size_t needed = Quantized::bytes(tokens, m->k, m->group());
      most = needed > most ? needed : most;
    }
    const LayerBuffers<T> none({nullptr}, w, tokens);
    return (size_t)none.integers + most;
  }
};

// Query and key heads of a token: normed, rotated, in place; its keys and values go to the pool.
template <class T>
void prepare_token(const LayerWeights& w, const LayerStep& s, int64_t t, T* qkv) {
  const int64_t normed_heads = w.heads + w.kv_heads, row = w.kv_heads * w.dim;
  T* keys = qkv + w.heads * w.dim;
  for (int64_t h = 0; h < normed_heads; h++) {
    T* head = qkv + h * w.dim;
    if (w.qk_norm) norm_row<T>(head, nullptr, nullptr, (const T*)w.qk_norm + h * w.dim, w.eps, w.dim, head);
    if (s.cosines) rotate_head(head, s.cosines + t * s.pairs, s.sines + t * s.pairs, s.pairs, w.dim, head);
  }
  T* to = (T*)s.kv + s.slots[t] * row;
  memcpy(to, keys, row * sizeof(T));
  memcpy(to + s.n_blocks * s.block_tokens * row, keys + row, row * sizeof(T));
}

template <class T>
void layer(const LayerWeights& w, const LayerStep& s) {
  const int64_t tokens = s.tokens, some = tokens / (8 * s.threads) + 1;  // rows to hand out at once
  const LayerBuffers<T> b({scratch.get(LayerBuffers<T>::bytes(w, tokens))}, w, tokens);
  Attention<T> attention{b.qkv,      (const T*)s.kv,  s.tables,      s.segments,        b.mixed,
                               nullptr,    w.qkv.n,         s.n_blocks,    s.block_tokens,    s.table_width,
                               s.n_segments, w.window,      (int)w.heads,  (int)w.kv_heads,   (int)w.dim,
                               (float)w.scale, (float)w.cap,  w.unified,     s.shared};
  const Items& items = prepare_attention(attention, s.threads, tokens);
  const auto as_integers = [&](const Weight& m) { return Quantized(b.integers, tokens, m.k, m.group()); };
  const Quantized for_qkv = as_integers(w.qkv), for_out = as_integers(w.out);
  const Quantized for_gate_up = as_integers(w.gate_up), for_down = as_integers(w.down);
  const T *x = (const T*)s.x, *change = (const T*)s.change;
  T *total = (T*)s.total, *next = (T*)s.next_change;

  Team::run(s.threads, [&](Team& team) {
    const auto multiply = [&](int phase, const T* from, const Quantized& a, const Weight& m, T* to) {
      const Product product{tokens, m.panels()};
      team.each(phase, product.items(), [&](int64_t i) { linear_item(i, from, a, tokens, m.k, m, to, m.n); },
                product.at_once(team.threads()));
    };
    const auto round = [&](const Quantized& a, const Weight& m, int64_t t, const T* row) {
      if (m.group()) a.row(t, row, m.k, m.group());
    };
    team.each(0, tokens, [&](int64_t t) {
      const int64_t at = t * w.hidden;
      norm_row<T>(x + at, change ? change + at : nullptr, b.total + at, (const T*)w.input_norm, w.eps, w.hidden,
                  b.normed + at);
      round(for_qkv, w.qkv, t, b.normed + at);
    }, some);
    multiply(1, b.normed, for_qkv, w.qkv, b.qkv);
    team.each(2, tokens, [&](int64_t t) { prepare_token(w, s, t, b.qkv + t * w.qkv.n); }, some);
    attend_phases(team, 10, attention, items);  // phases 10 to 14
    if (w.out.group())
      team.each(4, tokens, [&](int64_t t) { round(for_out, w.out, t, b.mixed + t * w.out.k); }, some);
    multiply(5, b.mixed, for_out, w.out, next);
    team.each(6, tokens, [&](int64_t t) {
      const int64_t at = t * w.hidden;
      norm_row<T>(change ? b.total + at : x + at, next + at, total + at, (const T*)w.mlp_norm, w.eps, w.hidden,
                  b.normed + at);
      round(for_gate_up, w.gate_up, t, b.normed + at);
    }, some);
    multiply(7, b.normed, for_gate_up, w.gate_up, b.wide);
    team.each(8, tokens, [&](int64_t t) {
      gate_row(b.wide + t * w.gate_up.n, w.down.k, b.gated + t * w.down.k);
      round(for_down, w.down, t, b.gated + t * w.down.k);
    }, some);
    multiply(9, b.gated, for_down, w.down, next);
  });
}

}  // namespace penstock
