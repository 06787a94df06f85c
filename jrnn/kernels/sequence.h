// Helpers for forward.h and backward.h: sizes, addresses of the arrays of a step, and packed panels
// of weights.
#pragma once

#include "cells.h"
#include "partition.h"
#include "product.h"

namespace {

// The sizes of a run. Hidden units are divided into panels of UB units (UV vectors of W); Hp is H
// rounded up to whole panels. XV, HV and CV are the numbers of vectors per panel of the input
// product, the recurrent product and all pre-activations.
template <class Cell>
struct Sizes {
  static constexpr int UB = Cell::UV * W;
  static constexpr int XV = Cell::XN * Cell::UV, HV = Cell::HN * Cell::UV, CV = Cell::C * Cell::UV;
  int64_t panels, Hp;
  explicit Sizes(const JrnnRun& run) : panels((run.H + UB - 1) / UB), Hp(panels * UB) {}
};

// Addresses of the arrays of a run for sequence b at step t.
template <class Cell>
struct Rows {
  const JrnnRun& r;

  int64_t length(int64_t b) const {
    if (!r.lengths) return r.T;
    const int64_t n = r.lengths[b];
    return n < 0 ? 0 : n > r.T ? r.T : n;
  }
  int64_t index(int64_t t, int64_t b) const { return t * r.stride + b; }
  bool reset(int64_t t, int64_t b) const { return r.resets && r.resets[index(t, b)]; }
  bool is_first(int64_t t, int64_t b) const { return t == (r.reverse ? length(b) - 1 : 0); }
  int64_t previous(int64_t t) const { return r.reverse ? t + 1 : t - 1; }
  const float* x(int64_t t, int64_t b) const { return r.xs + index(t, b) * r.I; }
  float* y(int64_t t, int64_t b) const { return r.ys + index(t, b) * r.H; }
  float* saved(int64_t t, int64_t b) const { return r.saved + index(t, b) * Cell::SAVED * r.H; }
  float* saved_c(int64_t t, int64_t b) const { return saved(t, b) + (Cell::SAVED - 1) * r.H; }

  // The carry before step t.
  const float* h(int64_t t, int64_t b) const {
    if (reset(t, b)) return r.h_reset + b * r.H;
    return is_first(t, b) ? r.h0 + b * r.H : y(previous(t), b);
  }
  // Without saved arrays, c_last holds the current cell state.
  const float* c(int64_t t, int64_t b) const {
    if (!Cell::CELL_STATE) return nullptr;
    if (reset(t, b)) return r.c_reset + b * r.H;
    if (!r.saved) return r.c_last + b * r.H;
    return is_first(t, b) ? r.c0 + b * r.H : saved_c(previous(t), b);
  }
};

// Packs one panel of the weights w [K, G·H] into [K, N, UB]: for each row and each of N columns,
// the UB units of the panel. Units beyond H are zero. `gate_at(j)` is the gate of column j.
template <class Cell, int N, class GateAt>
void pack_panel(const float* w, int64_t K, int64_t H, int64_t panel, GateAt gate_at, float* out) {
  constexpr int UB = Cell::UV * W;
  const int64_t first = panel * UB, n = H - first < UB ? H - first : UB;
  for (int64_t k = 0; k < K; ++k) {
    for (int j = 0; j < N; ++j, out += UB) {
      const float* from = w + (k * Cell::G + gate_at(j)) * H + first;
      if (n == UB) {
        for (int u = 0; u < UB; u += W) store(out + u, load(from + u));
      } else {
        for (int u = 0; u < UB; ++u) out[u] = u < n ? from[u] : 0.0f;
      }
    }
  }
}

// The gate of column j of the recurrent product.
template <class Cell>
int h_gate(int j) {
  for (int g = 0; g < Cell::G; ++g)
    if (Cell::h_column(g) == Cell::HF + j) return g;
  return 0;
}

}  // namespace
