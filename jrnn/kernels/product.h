// Matrix products in register tiles. A tile is a few rows by a few vectors of columns; it stays in
// registers during the loop over the inner axis, of size K. In comments, `(+)=` adds to the result
// if the argument `add` is true, and overwrites it otherwise.
#pragma once

#include "simd.h"

namespace {

// The number of rows of a tile of NV vectors. The accumulators, one broadcast value and NV vectors
// of weights must fit into the registers.
constexpr int tile_rows(int nv) {
  int rows = (JRNN_REGISTERS - nv - 1) / nv;
  return rows > 8 ? 8 : rows < 1 ? 1 : rows;
}

// acc[r][FIRST + v] += sum_k rows[r][k] * w[k][v], for N vectors v.
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

// out[r][v] (+)= sum_k rows[r][k] * w[k][v] for the first n columns.
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

// c[r * ldc + j] (+)= sum_k a[k][m + r] * d[k * ld + j] for R rows r and the columns j of NV
// vectors.
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

// Calls f(first, rows) for tiles of nearly equal size, at most MAX_ROWS, that cover `count` rows.
template <int MAX_ROWS, class F>
JRNN_INLINE void for_tiles(int64_t count, F&& f) {
  const int64_t tiles = (count + MAX_ROWS - 1) / MAX_ROWS;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = count * i / tiles, rows = count * (i + 1) / tiles - first;
    f(first, (int)rows);
  }
}

template <int N>
struct IntConstant {
  static constexpr int value = N;
};

// Calls f(IntConstant<n>{}) for 1 <= n <= MAX_ROWS, so that f can use n as a template argument.
template <int MAX_ROWS, class F>
JRNN_INLINE void with_constant(int n, F&& f) {
  if constexpr (MAX_ROWS >= 1) {
    if (n == MAX_ROWS) return f(IntConstant<MAX_ROWS>{});
    with_constant<MAX_ROWS - 1>(n, static_cast<F&&>(f));
  }
}

// out[r] (+)= rows[r] · w for all rows and the first n columns; w is a panel of NV vectors.
template <int NV>
void product(const float* const* rows, int64_t count, int64_t K, const float* w, float* const* out,
             bool add, int64_t n) {
  constexpr int MAX_ROWS = tile_rows(NV);
  for_tiles<MAX_ROWS>(count, [&](int64_t first, int r) {
    with_constant<MAX_ROWS>(r, [&](auto R) {
      product_tile<decltype(R)::value, NV>(rows + first, K, w, out + first, add, n);
    });
  });
}

// c (+)= aᵀ · d for M rows and NV vectors of columns of c. `a` has a pointer to each of its K rows;
// ld and ldc are the distances between the rows of d and of c.
template <int NV>
void outer(const float* const* a, int64_t M, const float* d, int64_t ld, int64_t K, float* c,
           int64_t ldc, bool add) {
  constexpr int MAX_ROWS = tile_rows(NV);
  for_tiles<MAX_ROWS>(M, [&](int64_t m, int r) {
    with_constant<MAX_ROWS>(r, [&](auto R) {
      outer_tile<decltype(R)::value, NV>(a, m, d, ld, K, c + m * ldc, ldc, add);
    });
  });
}

constexpr int kPanelVectors = 4;  // maximum number of vectors of a panel

JRNN_INLINE void product(int nv, const float* const* rows, int64_t count, int64_t K, const float* w,
                         float* const* out, bool add, int64_t n) {
  with_constant<kPanelVectors>(nv, [&](auto NV) {
    product<decltype(NV)::value>(rows, count, K, w, out, add, n);
  });
}

JRNN_INLINE void outer(int nv, const float* const* a, int64_t M, const float* d, int64_t ld,
                       int64_t K, float* c, int64_t ldc, bool add) {
  with_constant<kPanelVectors>(nv, [&](auto NV) {
    outer<decltype(NV)::value>(a, M, d, ld, K, c, ldc, add);
  });
}

}  // namespace
