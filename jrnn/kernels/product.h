// Matrix products in register tiles: a few rows by a few vectors of columns, kept in registers over
// the whole inner axis.
#pragma once

#include "simd.h"

namespace {

// Rows of a tile that is NV vectors wide: the accumulators, one broadcast and NV weights must fit.
constexpr int tile_rows(int nv) {
  int rows = (JRNN_REGISTERS - nv - 1) / nv;
  return rows > 8 ? 8 : rows < 1 ? 1 : rows;
}

// acc[r][FIRST + v] += rows[r][k] * w[k][v], for N vectors v.
template <int R, int N, int FIRST, int NV>
JRNN_INLINE void accumulate(vf (&acc)[R][NV], const float* const* rows, int64_t K,
                            const float* __restrict w) {
  const float* a[R];
  for (int r = 0; r < R; ++r) a[r] = rows[r];
  for (int64_t k = 0; k < K; ++k) {
    vf b[N];
    for (int v = 0; v < N; ++v) b[v] = load(w + v * W);
    for (int r = 0; r < R; ++r) {
      vf x = splat(a[r][k]);
      for (int v = 0; v < N; ++v) acc[r][FIRST + v] += x * b[v];
    }
    w += N * W;
  }
}

// out[r][v] (+)= sum_k rows[r][k] * w[k][v], of which the first n columns are stored.
template <int R, int NV>
void product_tile(const float* const* rows, int64_t K, const float* w, float* const* out, bool add,
                  int64_t n) {
  vf acc[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = add ? load(out[r] + v * W, n - v * W) : vf{};
  accumulate<R, NV, 0, NV>(acc, rows, K, w);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) store(out[r] + v * W, acc[r][v], n - v * W);
}

// c[r][v] (+)= sum_k a[k][m + r] * d[k * ld + v]
template <int R, int NV>
void outer_tile(const float* const* a, int64_t m, const float* d, int64_t ld, int64_t K, float* c,
                int64_t ldc, bool add) {
  vf acc[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = vf{};
  if (add)
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(c + r * ldc + v * W, 1);
  for (int64_t k = 0; k < K; ++k) {
    const float* x = a[k] + m;
    vf b[NV];
    for (int v = 0; v < NV; ++v) b[v] = load(d + v * W);
    for (int r = 0; r < R; ++r) {
      vf s = splat(x[r]);
      for (int v = 0; v < NV; ++v) acc[r][v] += s * b[v];
    }
    d += ld;
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) {
      float* p = c + r * ldc + v * W;
      store(p, add ? load(p) + acc[r][v] : acc[r][v]);
    }
}

// Calls f<R>(first) for tiles of at most MOST rows that cover `count` rows as evenly as can be.
template <int MOST, class F>
JRNN_INLINE void for_tiles(int64_t count, F&& f) {
  const int64_t tiles = (count + MOST - 1) / MOST;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = count * i / tiles, rows = count * (i + 1) / tiles - first;
    f(first, (int)rows);
  }
}

template <int N>
struct Int {
  static constexpr int value = N;
};

// Calls f(Int<n>) for 1 <= n <= MOST.
template <int MOST, class F>
JRNN_INLINE void with_constant(int n, F&& f) {
  if constexpr (MOST >= 1) {
    if (n == MOST) return f(Int<MOST>{});
    with_constant<MOST - 1>(n, static_cast<F&&>(f));
  }
}

// out[r] (+)= rows[r] · w for all rows; w is one panel, NV vectors wide; n columns are stored.
template <int NV>
void product(const float* const* rows, int64_t count, int64_t K, const float* w, float* const* out,
             bool add, int64_t n) {
  constexpr int MOST = tile_rows(NV);
  for_tiles<MOST>(count, [&](int64_t first, int r) {
    with_constant<MOST>(r, [&](auto R) {
      product_tile<decltype(R)::value, NV>(rows + first, K, w, out + first, add, n);
    });
  });
}

// c (+)= aᵀ · d for M rows of c and NV vectors of columns.
template <int NV>
void outer(const float* const* a, int64_t M, const float* d, int64_t ld, int64_t K, float* c,
           int64_t ldc, bool add) {
  constexpr int MOST = tile_rows(NV);
  for_tiles<MOST>(M, [&](int64_t m, int r) {
    with_constant<MOST>(r, [&](auto R) {
      outer_tile<decltype(R)::value, NV>(a, m, d, ld, K, c + m * ldc, ldc, add);
    });
  });
}

constexpr int kWide = 4;  // vectors in a panel

JRNN_INLINE void product(int nv, const float* const* rows, int64_t count, int64_t K, const float* w,
                         float* const* out, bool add, int64_t n) {
  with_constant<kWide>(nv, [&](auto NV) {
    product<decltype(NV)::value>(rows, count, K, w, out, add, n);
  });
}

JRNN_INLINE void outer(int nv, const float* const* a, int64_t M, const float* d, int64_t ld,
                       int64_t K, float* c, int64_t ldc, bool add) {
  with_constant<kWide>(nv, [&](auto NV) {
    outer<decltype(NV)::value>(a, M, d, ld, K, c, ldc, add);
  });
}

}  // namespace
