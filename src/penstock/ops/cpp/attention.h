// Attention over paged keys where they lie: nothing is gathered, and the query heads that share a KV head read its keys
// and values once.
//
// Keys are taken 16 at a time from a multiple of 16 on, with a running maximum and sum for each token and head (online
// softmax, as in FlashAttention-2, arXiv 2307.08691). What a token gets depends on its own query and keys alone: not on
// the tokens beside it, nor on how a prompt was cut, nor (blocks of a multiple of 16 tokens) on which block is the first
// one in its table.
//
// One token alone may have its sums taken against a maximum that was fixed beforehand (FlashDecoding++, arXiv 2311.01282):
// nothing is compared or scaled between keys, and a row whose scores leave the bounds is computed again, in the same call.
//
// Keys that several tokens share are read once for all of them, first: runs, from the root of the tree of prefixes on. A
// row's running maximum, sum and values are put down behind a run and taken up by the next one, or by the token's own
// keys. Nothing is merged: every row meets its keys in the order that it would meet them in alone, so the bits are the
// same (runs of a multiple of 16 keys).
#pragma once

#include "simd.h"

namespace penstock {

constexpr int MAX_DIM = 256;  // of a head
constexpr int SUB = 16;       // keys at a time
constexpr int TILE = 32;      // rows of an item that is several tokens; a row is a token's query head
constexpr int MOST_TILE = 64; // rows of any item

struct Segment {  // tokens [first, first + tokens) of the step, the last of which sees `keys` keys; a row of the tables
  int64_t row, first, tokens, keys;
};

struct Unified {  // bounds of (score - phi); strict: for every score, not only for the largest of a row
  float phi, low, high;
  int32_t is_strict;
  int64_t* counts;  // rows computed again, rows
};

struct SharedRun {  // `keys` keys from entry `table` of the run tables on; members [first, stop) read them
  int64_t table, keys, first, stop, level;
};

struct SharedRuns {  // in the order of their levels; members: tokens of the step
  const SharedRun* runs;
  int64_t n_runs;
  const int32_t* tables;
  const int64_t* members;
};

struct Item {  // tokens [start, stop) of a segment, or members of a run; KV heads [head, stop_head)
  const Segment* segment;
  int64_t start, stop, head, stop_head;
  const SharedRun* run = nullptr;
};

constexpr int MOST_LEVELS = 4;

struct Items {  // those of each level of runs in turn, then those of the segments
  std::vector<Item> runs, segments;
  int64_t level_stop[MOST_LEVELS];
  std::vector<char> is_begun;  // by token: a run put something down for it
};

template <class T>
struct Attention {
  const T* q;
  const T* kv;
  const int32_t* tables;
  const Segment* segments;
  T* out;      // [tokens, heads, dim]
  float* lse;  // [tokens, heads], or none
  int64_t q_stride, n_blocks, block_tokens, table_width, n_segments, window;  // window 0: all keys
  int heads, kv_heads, dim;
  float scale, cap;  // cap 0: none
  const Unified* unified;  // or none
  SharedRuns shared;
  float* down;  // what runs put down, by token and head: values, sum, maximum
  const char* is_begun;

  static constexpr int64_t DOWN = 2 * SUB;  // numbers beside the values
  float* put_down(int64_t token, int64_t head) const { return down + (token * heads + head) * (dim + DOWN); }
  static size_t down_bytes(int64_t tokens, int64_t heads, int64_t dim) {
    return tokens * heads * (dim + DOWN) * sizeof(float);
  }

  int share() const { return heads / kv_heads; }

  void list_runs(Items& items, int64_t tokens) const {
    const int64_t tile = TILE / share() > 0 ? TILE / share() : 1;
    items.runs.clear();
    items.is_begun.assign(shared.n_runs ? tokens : 0, 0);
    for (int64_t level = 0, r = 0; level < MOST_LEVELS; level++) {
      for (; r < shared.n_runs && shared.runs[r].level == level; r++) {
        const SharedRun& run = shared.runs[r];
        for (int64_t m = run.first; m < run.stop; m++) items.is_begun[shared.members[m]] = 1;
        for (int64_t start = run.first; start < run.stop; start += tile)
          for (int64_t h = 0; h < kv_heads; h++)
            items.runs.push_back({nullptr, start, start + tile < run.stop ? start + tile : run.stop, h, h + 1, &run});
      }
      items.level_stop[level] = items.runs.size();
    }
  }

  // Longest first: what is handed out last should be short.
  void list(Items& all, int threads, int64_t tokens) const {
    list_runs(all, tokens);
    std::vector<Item>& items = all.segments;
    items.clear();
    const int64_t tile = TILE / share() > 0 ? TILE / share() : 1;
    const int64_t most_heads = MOST_TILE / share();
    for (int64_t s = 0; s < n_segments; s++) {
      const Segment& seg = segments[s];
      if (seg.tokens == 1) {
        // all heads of a token together read whole blocks; few tokens are cut so that every thread has work
        int64_t heads_each = kv_heads * n_segments / (2 * threads);
        heads_each = heads_each < 1 ? 1 : heads_each > most_heads ? most_heads : heads_each;
        for (int64_t h = 0; h < kv_heads; h += heads_each)
          items.push_back({&seg, 0, 1, h, h + heads_each < kv_heads ? h + heads_each : kv_heads});
      } else {
        for (int64_t stop = seg.tokens; stop > 0; stop -= tile)
          for (int64_t h = 0; h < kv_heads; h++) items.push_back({&seg, stop > tile ? stop - tile : 0, stop, h, h + 1});
      }
    }
  }
};

INLINE __m512 sums(const __m512 (&a)[16]) {  // lane i: the sum over a[i], added in the same order for every i
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

struct Wide {  // 32 numbers of a query
  __m512 low, high;
};
INLINE Wide take(const float* p) { return {load(p), load(p + 16)}; }
INLINE __m512bh take(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
INLINE __m512 dot(__m512 acc, const Wide& a, const float* b) {
  return _mm512_fmadd_ps(a.high, load(b + 16), _mm512_fmadd_ps(a.low, load(b), acc));
}
INLINE __m512 dot(__m512 acc, __m512bh a, const bf16* b) {
  return _mm512_dpbf16_ps(acc, a, (__m512bh)_mm512_loadu_si512(b));
}

// The products of ROWS (1 or 2) queries with 16 keys.
template <int ROWS, class T>
INLINE void scores(__m512 (&s)[ROWS], const T* const (&q)[ROWS], const T* const* keys, int dim) {
  constexpr int AT_ONCE = 16 / ROWS;
  __m512 half[ROWS];
#pragma GCC unroll 2
  for (int part = 0; part < ROWS; part++) {
    __m512 acc[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) acc[i] = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += 32) {
      const auto a = take(q[0] + d), b = take(q[ROWS - 1] + d);
#pragma GCC unroll 16
      for (int i = 0; i < AT_ONCE; i++) {
        const T* key = keys[part * AT_ONCE + i] + d;
        acc[i] = dot(acc[i], a, key);
        if (ROWS == 2) acc[8 + i] = dot(acc[8 + i], b, key);
      }
    }
    half[part] = sums(acc);
  }
  s[0] = ROWS == 1 ? half[0] : _mm512_shuffle_f32x4(half[0], half[ROWS - 1], 0x44);
  if (ROWS == 2) s[ROWS - 1] = _mm512_shuffle_f32x4(half[0], half[ROWS - 1], 0xee);
}

// Values as the products want them: float32 as they lie, bfloat16 in pairs of keys.
INLINE void pair_up(const float* const*, int, float*) {}
INLINE void pair_up(const bf16* const* values, int dim, bf16* pairs) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                       36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int j = 0; j < SUB; j += 2)
    for (int d = 0; d < dim; d += 32) {
      const __m512i a = _mm512_loadu_si512(values[j] + d), b = _mm512_loadu_si512(values[j + 1] + d);
      _mm512_store_si512(pairs + j * dim + 2 * d, _mm512_permutex2var_epi16(a, low, b));
      _mm512_store_si512(pairs + j * dim + 2 * d + 32, _mm512_permutex2var_epi16(a, high, b));
    }
}

// out[r] = out[r] * keep[r] + p[r] . values, over C vectors of features from `d` on
template <int R, int C>
INLINE void add_values(float* out, const float* keep, const bf16* p, const bf16* const*, const bf16* pairs, int dim, int d) {
  __m512 acc[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
      acc[r][c] = _mm512_mul_ps(load(out + r * dim + d + 16 * c), _mm512_set1_ps(keep[r]));
#pragma GCC unroll 2
  for (int j = 0; j < SUB; j += 2) {
    __m512bh v[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) v[c] = (__m512bh)_mm512_load_si512(pairs + j * dim + 2 * d + 32 * c);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      int32_t pair;
      memcpy(&pair, p + r * SUB + j, 4);
      const __m512bh w = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], w, v[c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) store(out + r * dim + d + 16 * c, acc[r][c]);
}
template <int R, int C>
INLINE void add_values(float* out, const float* keep, const float* p, const float* const* values, const float*, int dim,
                       int d) {
  __m512 acc[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
      acc[r][c] = _mm512_mul_ps(load(out + r * dim + d + 16 * c), _mm512_set1_ps(keep[r]));
  for (int j = 0; j < SUB; j++) {
    __m512 v[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) v[c] = load(values[j] + d + 16 * c);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const __m512 w = _mm512_set1_ps(p[r * SUB + j]);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) acc[r][c] = _mm512_fmadd_ps(w, v[c], acc[r][c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) store(out + r * dim + d + 16 * c, acc[r][c]);
}

template <int R, class T>
INLINE void add_values_of(float* out, const float* keep, const T* p, const T* const* values, const T* pairs, int dim) {
  int d = 0;
  for (; d + 64 <= dim; d += 64) add_values<R, 4>(out, keep, p, values, pairs, dim, d);
  if (d < dim) add_values<R, 2>(out, keep, p, values, pairs, dim, d);
}

INLINE __m512 capped(__m512 s, float cap) {  // cap * tanh(s / cap)
  const __m512 one = _mm512_set1_ps(1.f), two = _mm512_set1_ps(2.f);
  const __m512 e = vexp(_mm512_mul_ps(s, _mm512_set1_ps(2.f / cap)));
  return _mm512_mul_ps(_mm512_set1_ps(cap), _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one))));
}

// Running maximum and sum of each row of an item, and the values added so far.
template <class T>
struct Rows {
  alignas(64) float out[MOST_TILE * MAX_DIM];
  alignas(64) float total[MOST_TILE][SUB];
  alignas(64) T p[MOST_TILE * SUB];
  float top[MOST_TILE], keep[MOST_TILE];
  alignas(64) float most[MOST_TILE][SUB];  // against a fixed maximum: the largest and the least scores so far, by lane
  alignas(64) float least[MOST_TILE][SUB];

  void clear_unified(int n, const Unified& u) {
    for (int r = 0; r < n; r++) {
      top[r] = u.phi, keep[r] = 1.f;
      store(most[r], _mm512_set1_ps(-std::numeric_limits<float>::infinity()));
      store(least[r], _mm512_set1_ps(std::numeric_limits<float>::infinity()));
    }
  }
  void add_unified(int r, __m512 s, __mmask16 seen, const Unified& u) {
    store(most[r], _mm512_mask_max_ps(load(most[r]), seen, load(most[r]), s));
    if (u.is_strict) store(least[r], _mm512_mask_min_ps(load(least[r]), seen, load(least[r]), s));
    const __m512 weights = _mm512_maskz_mov_ps(seen, vexp(_mm512_sub_ps(s, _mm512_set1_ps(u.phi))));
    store(p + r * SUB, weights);
    store(total[r], _mm512_add_ps(load(total[r]), weights));
  }
  bool is_bad(int r, const Unified& u) const {
    const float best = _mm512_reduce_max_ps(load(most[r])) - u.phi;
    const float judged = u.is_strict ? _mm512_reduce_min_ps(load(least[r])) - u.phi : best;
    return !(best < u.high) || !(judged > u.low);
  }

  void clear(int n, int dim) {
    memset(out, 0, (size_t)n * dim * sizeof(float));
    memset(total, 0, (size_t)n * sizeof(total[0]));
    for (int r = 0; r < n; r++) top[r] = -std::numeric_limits<float>::infinity();
  }
  void put_down(int r, int dim, float* to) const {
    memcpy(to, out + (size_t)r * dim, dim * sizeof(float));
    memcpy(to + dim, total[r], sizeof(total[r]));
    to[dim + SUB] = top[r];
  }
  void take_up(int r, int dim, const float* from) {
    memcpy(out + (size_t)r * dim, from, dim * sizeof(float));
    memcpy(total[r], from + dim, sizeof(total[r]));
    top[r] = from[dim + SUB];
  }
  void skip(int r) {
    keep[r] = 1.f;
    memset(p + r * SUB, 0, SUB * sizeof(T));
  }
  void add(int r, __m512 s, __mmask16 seen) {
    const float before = top[r];
    s = _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()), seen, s);
    const float best = _mm512_reduce_max_ps(s), now = best > before ? best : before;
    top[r] = now;
    keep[r] = before == now ? 1.f : _mm512_cvtss_f32(vexp(_mm512_set1_ps(before - now)));
    const __m512 weights = _mm512_maskz_mov_ps(seen, vexp(_mm512_sub_ps(s, _mm512_set1_ps(now))));
    store(p + r * SUB, weights);
    store(total[r], _mm512_fmadd_ps(load(total[r]), _mm512_set1_ps(keep[r]), weights));
  }
};

// Where 16 keys from `first` on lie; what fills up the 16 is a key that some row of the item sees, hidden later.
template <class T>
INLINE void locate(const Attention<T>& a, const int32_t* table, int64_t first, int64_t least, int64_t stop, int64_t* at) {
  const int64_t stride = (int64_t)a.kv_heads * a.dim;
  if (a.block_tokens % SUB == 0 && first >= least && first + SUB <= stop) {  // all in one block
    const int64_t block = table[first / a.block_tokens], slot = block * a.block_tokens + first % a.block_tokens;
    for (int j = 0; j < SUB; j++) at[j] = (slot + j) * stride;
    return;
  }
  for (int j = 0; j < SUB; j++) {
    const int64_t key = first + j < least ? least : first + j < stop ? first + j : stop - 1;
    at[j] = ((int64_t)table[key / a.block_tokens] * a.block_tokens + key % a.block_tokens) * stride;
  }
}

template <class T>
INLINE void ask_for(const T* p, int dim) {
  for (int d = 0; d < dim; d += 64 / (int)sizeof(T)) _mm_prefetch((const char*)(p + d), _MM_HINT_T1);
}

// UNIFIED: returns the rows that must be computed again, as bits. Else `only`: the rows that are wanted.
template <class T, bool UNIFIED>
uint64_t attend(const Attention<T>& a, const Item& item, uint64_t only) {
  Rows<T> rows;
  alignas(64) T pairs[std::is_same<T, float>::value ? 1 : SUB * MAX_DIM];
  const int share = a.share(), dim = a.dim, tokens = item.stop - item.start, per_head = tokens * share;
  const int n_rows = per_head * (item.stop_head - item.head);
  const int64_t stride = (int64_t)a.kv_heads * dim;
  const SharedRun* run = item.run;
  const int64_t first_position = run ? run->keys - 1 : item.segment->keys - item.segment->tokens + item.start;
  const int64_t last_stop = run ? run->keys : first_position + tokens;  // keys that any row sees: [least, last_stop)
  const int64_t least = a.window && first_position + 1 > a.window ? first_position + 1 - a.window : 0;
  const T* values_of_layer = a.kv + a.n_blocks * a.block_tokens * stride;
  const int32_t* table = run ? a.shared.tables + run->table : a.tables + item.segment->row * a.table_width;
  const auto token_at = [&](int64_t t) {
    return run ? a.shared.members[item.start + t] : item.segment->first + item.start + t;
  };
  const auto token_of = [&](int r) { return token_at(r % per_head / share); };
  const auto head_of = [&](int r) { return (item.head + r / per_head) * share + r % share; };
  if (run ? run->level > 0 : tokens == 1 && a.is_begun && a.is_begun[token_at(0)])
    for (int r = 0; r < n_rows; r++) rows.take_up(r, dim, a.put_down(token_of(r), head_of(r)));
  else
    rows.clear(n_rows, dim);
  if (UNIFIED) rows.clear_unified(n_rows, *a.unified);
  for (int64_t first = least / SUB * SUB; first < last_stop; first += SUB) {
    int64_t at[SUB], next[SUB];
    locate(a, table, first, least, last_stop, at);
    // many tokens wait for arithmetic, not for memory; of a run there may be few
    const bool asks = (tokens == 1 || run) && first + SUB < last_stop;
    if (asks) locate(a, table, first + SUB, least, last_stop, next);
    int r = 0;
    for (int64_t head = item.head; head < item.stop_head; head++) {
      const T *keys[SUB], *values[SUB];
      for (int j = 0; j < SUB; j++) {
        keys[j] = a.kv + at[j] + head * dim, values[j] = values_of_layer + at[j] + head * dim;
        if (asks) ask_for(a.kv + next[j] + head * dim, dim), ask_for(values_of_layer + next[j] + head * dim, dim);
      }
      pair_up(values, dim, pairs);
      const int head_row = r;
      for (int t = 0; t < tokens; t++) {
        const int64_t stop = run ? last_stop : first_position + t + 1, begin = a.window && stop > a.window ? stop - a.window : 0;
        if (first >= stop || first + SUB <= begin) {
          for (int g = 0; g < share; g++) rows.skip(r++);
          continue;
        }
        __mmask16 seen = tail(stop - first);
        if (begin > first) seen &= (__mmask16)(0xffffu << (begin - first));
        const T* q = a.q + token_at(t) * a.q_stride + head * share * dim;
        const __m512 scale = _mm512_set1_ps(a.scale);
        for (int g = 0; g < share; g += 2) {
          const bool is_pair = g + 1 < share;
          __m512 s[2];
          if (is_pair) {
            scores<2, T>(s, {q + g * dim, q + (g + 1) * dim}, keys, dim);
          } else {
            __m512 one[1];
            scores<1, T>(one, {q + g * dim}, keys, dim);
            s[0] = one[0];
          }
          for (int i = 0; i <= (int)is_pair; i++) {
            __m512 scaled = _mm512_mul_ps(s[i], scale);
            if (a.cap != 0) scaled = capped(scaled, a.cap);
            if (UNIFIED)
              rows.add_unified(r++, scaled, seen, *a.unified);
            else
              rows.add(r++, scaled, seen);
          }
        }
      }
      int i = head_row;
      for (; i + 4 <= r; i += 4) add_values_of<4>(rows.out + i * dim, rows.keep + i, rows.p + i * SUB, values, pairs, dim);
      for (; i + 2 <= r; i += 2) add_values_of<2>(rows.out + i * dim, rows.keep + i, rows.p + i * SUB, values, pairs, dim);
      for (; i < r; i++) add_values_of<1>(rows.out + i * dim, rows.keep + i, rows.p + i * SUB, values, pairs, dim);
    }
  }
  uint64_t bad = 0;
  for (int r = 0; r < n_rows; r++) {
    if (UNIFIED && rows.is_bad(r, *a.unified)) {
      bad |= uint64_t(1) << r;
      continue;
    }
    if (!(only >> r & 1)) continue;
    const int64_t token = token_of(r), head = head_of(r);
    if (run) {
      rows.put_down(r, dim, a.put_down(token, head));
      continue;
    }
    const float total = _mm512_reduce_add_ps(load(rows.total[r]));
    const __m512 inverse = _mm512_set1_ps(1.f / total);
    T* out = a.out + (token * a.heads + head) * dim;
    for (int d = 0; d < dim; d += 16) store(out + d, _mm512_mul_ps(load(rows.out + r * dim + d), inverse));
    if (a.lse) a.lse[token * a.heads + head] = rows.top[r] + std::log(total);
  }
  return bad;
}

template <class T>
void attend(const Attention<T>& a, const Item& item) {
  uint64_t wanted = ~uint64_t(0);
  const bool is_begun = item.run || (a.is_begun && a.is_begun[item.segment->first]);  // with a maximum of its own
  if (a.unified && !is_begun && item.segment->tokens == 1) {
    wanted = attend<T, true>(a, item, wanted);
    const int64_t rows = a.share() * (item.stop_head - item.head);
    __atomic_fetch_add(a.unified->counts + 1, rows, __ATOMIC_RELAXED);
    if (!wanted) return;
    __atomic_fetch_add(a.unified->counts, __builtin_popcountll(wanted), __ATOMIC_RELAXED);
  }
  attend<T, false>(a, item, wanted);
}

// Levels of runs, one after the other, then what each segment reads alone. Takes MOST_LEVELS phases and one more.
template <class T>
INLINE void attend_phases(Team& team, int phase, const Attention<T>& a, const Items& items) {
  for (int64_t level = 0, start = 0; level < MOST_LEVELS; start = items.level_stop[level++])
    if (const int64_t n = items.level_stop[level] - start)
      team.each(phase + level, n, [&](int64_t i) { attend(a, items.runs[start + i]); });
  team.each(phase + MOST_LEVELS, items.segments.size(), [&](int64_t i) { attend(a, items.segments[i]); });
}

static thread_local Items kept_items;
static thread_local Scratch put_down_scratch;

// What an attention needs before its phases run; of the calling thread, good until its next one.
template <class T>
INLINE const Items& prepare_attention(Attention<T>& a, int threads, int64_t tokens) {
  a.list(kept_items, threads, tokens);
  a.is_begun = a.shared.n_runs ? kept_items.is_begun.data() : nullptr;
  a.down = a.shared.n_runs ? (float*)put_down_scratch.get(Attention<T>::down_bytes(tokens, a.heads, a.dim)) : nullptr;
  return kept_items;
}

template <class T>
void attend_all(Attention<T> a, int threads, int64_t tokens) {
  const Items& items = prepare_attention(a, threads, tokens);
  Team::run(threads, [&](Team& team) { attend_phases(team, 0, a, items); });
}

}  // namespace penstock
