// A cell over a sequence: which row reads what at which step, and the panels of packed weights.
#pragma once

#include "cells.h"
#include "product.h"
#include "team.h"

namespace {

// The sizes of a run of one cell. Units come in panels of UB; Hp is H rounded up to whole panels.
template <class Cell>
struct Sizes {
  static constexpr int UB = Cell::UV * W;
  static constexpr int XV = Cell::XN * Cell::UV, HV = Cell::HN * Cell::UV, CV = Cell::C * Cell::UV;
  int64_t panels, Hp;
  explicit Sizes(const JrnnRun& run) : panels((run.H + UB - 1) / UB), Hp(panels * UB) {}
};

// Where the arrays of a run hold sequence b at step t.
template <class Cell>
struct Rows {
  const JrnnRun& r;

  int64_t length(int64_t b) const {
    if (!r.lengths) return r.T;
    const int64_t given = r.lengths[b];
    return given < 0 ? 0 : given > r.T ? r.T : given;
  }
  int64_t at(int64_t t, int64_t b) const { return t * r.stride + b; }
  bool reset(int64_t t, int64_t b) const { return r.resets && r.resets[at(t, b)]; }
  bool first(int64_t t, int64_t b) const { return t == (r.reverse ? length(b) - 1 : 0); }
  int64_t before(int64_t t) const { return r.reverse ? t + 1 : t - 1; }
  const float* x(int64_t t, int64_t b) const { return r.xs + at(t, b) * r.I; }
  float* y(int64_t t, int64_t b) const { return r.ys + at(t, b) * r.H; }
  float* saved(int64_t t, int64_t b) const { return r.saved + at(t, b) * Cell::SAVED * r.H; }
  float* saved_c(int64_t t, int64_t b) const { return saved(t, b) + (Cell::SAVED - 1) * r.H; }

  const float* h(int64_t t, int64_t b) const {
    if (reset(t, b)) return r.h_initial + b * r.H;
    return first(t, b) ? r.h0 + b * r.H : y(before(t), b);
  }
  // Without saved arrays the cell state lives in c_last.
  const float* c(int64_t t, int64_t b) const {
    if (!Cell::CELL_STATE) return nullptr;
    if (reset(t, b)) return r.c_initial + b * r.H;
    if (!r.saved) return r.c_last + b * r.H;
    return first(t, b) ? r.c0 + b * r.H : saved_c(before(t), b);
  }
};

// One panel of weights: for each k, the gates' units side by side; columns beyond H are zero.
// `gate_at(j)` is the gate in the j-th of the panel's columns.
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

template <class Cell>
int h_gate(int j) {
  for (int g = 0; g < Cell::G; ++g)
    if (Cell::h_column(g) == Cell::HF + j) return g;
  return 0;
}

}  // namespace
