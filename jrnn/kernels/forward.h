// The forward pass: each thread takes its rows and its panels of units through all steps.
#pragma once

#include "sequence.h"

namespace {

template <class Cell>
struct Forward {
  using S = Sizes<Cell>;
  static constexpr int UB = S::UB, CV = S::CV, MOST = tile_rows(CV);

  const Member member;
  const JrnnRun& run;
  const Rows<Cell> rows;
  const S sizes;
  // Shared by all: packed weights. Private: what the rows of a step read, and hoisted products.
  float *w_x, *w_h, *bias, *hoisted;
  const float **xs, **hs;
  int32_t* batch;
  int64_t chunk;

  Forward(const JrnnRun& r, int32_t m) : member(r, m), run(r), rows{r}, sizes(r) { layout(); }

  int64_t layout() {
    Arena arena(run.scratch);
    w_x = arena.floats(sizes.panels * run.I * S::XV * W);
    w_h = arena.floats(sizes.panels * run.H * S::HV * W);
    bias = arena.floats(sizes.panels * CV * W);
    chunk = hoist_steps();
    const int64_t most = (run.B + run.parts - 1) / run.parts;
    const int64_t panels = (sizes.panels + run.slices - 1) / run.slices;
    for (int32_t m = 0; m < member.size(); ++m) {
      const int64_t steps = chunk ? chunk : 1;
      float* z = arena.floats(chunk * most * panels * CV * W);
      auto** x = arena.pointers<const float*>(most * steps);
      auto** h = arena.pointers<const float*>(most);
      auto* b = arena.pointers<int32_t>(most);
      if (m == member.number) hoisted = z, xs = x, hs = h, batch = b;
    }
    return arena.used;
  }

  // With few rows, or many weights, a step is bound by reading weights: those of the input are then
  // read once for several steps. Otherwise, and where steps have padding, the input's product stays
  // in the tile, and costs no memory.
  int64_t hoist_steps() const {
    const int64_t most = (run.B + run.parts - 1) / run.parts;
    const int64_t panels = (sizes.panels + run.slices - 1) / run.slices;
    const int64_t weights = run.I * S::XV * W * panels;
    if (run.I < 8 || run.lengths || (most >= 6 && weights < (1 << 17))) return 0;
    const int64_t steps = 48 / most < 4 ? 4 : 48 / most;
    if (steps * most * panels * CV * W > (1 << 22)) return 0;
    return steps < run.T ? steps : run.T;
  }

  void pack() {
    for (int64_t p = member.number; p < sizes.panels; p += member.size()) {
      pack_panel<Cell, Cell::XN>(run.w_ih, run.I, run.H, p, [](int j) { return j; },
                                 w_x + p * run.I * S::XV * W);
      pack_panel<Cell, Cell::HN>(run.w_hh, run.H, run.H, p, h_gate<Cell>,
                                 w_h + p * run.H * S::HV * W);
      for (int j = 0; j < Cell::C; ++j)
        for (int64_t u = 0; u < UB; ++u) bias[(p * Cell::C + j) * UB + u] = bias_of(j, p * UB + u);
    }
  }

  float bias_of(int column, int64_t u) const {
    if (u >= run.H) return 0;
    float sum = 0;
    if (column >= Cell::XF && column < Cell::XF + Cell::XN)
      sum += run.b[(column - Cell::XF) * run.H + u];
    for (int p = 0; p < 3; ++p)
      if (Cell::bias_column(p) == column && run.extra[p]) sum += run.extra[p][u];
    return sum;
  }

  static constexpr int PHASES = 2;
  void phase(int number) { number == 0 ? prepare() : walk(); }

  void prepare() {
    pack();
    if (Cell::CELL_STATE && !run.saved && member.slice == 0)
      memcpy(run.c_last + member.rows.first * run.H, run.c0 + member.rows.first * run.H,
             member.rows.size() * run.H * sizeof(float));
  }

  void walk() {
    const Range panels = share(sizes.panels, member.slice, run.slices);
    for (int64_t s = 0; s < run.T; ++s) {
      if (chunk && s % chunk == 0) hoist(s, panels);
      const int64_t t = run.reverse ? run.T - 1 - s : s;
      const int64_t active = gather(t);
      for (int64_t p = panels.first; p < panels.last; ++p) {
        const float* z = chunk ? hoisted + ((p - panels.first) * chunk + s % chunk) *
                                               member.rows.size() * CV * W
                               : nullptr;
        for_tiles<MOST>(active, [&](int64_t first, int r) {
          with_constant<MOST>(r, [&](auto R) { tile<decltype(R)::value>(t, p, first, z); });
        });
      }
      member.meet_part();
    }
    finish();
  }

  // Lists the rows of step t that are no padding, and zeroes the outputs of those that are.
  int64_t gather(int64_t t) {
    int64_t n = 0;
    for (int64_t b = member.rows.first; b < member.rows.last; ++b) {
      if (t >= rows.length(b)) {
        if (member.slice == 0) memset(rows.y(t, b), 0, run.H * sizeof(float));
        continue;
      }
      xs[n] = rows.x(t, b);
      hs[n] = rows.h(t, b);
      batch[n++] = (int32_t)b;
    }
    return n;
  }

  // The input's products for the next steps: [panel][step][row][column].
  void hoist(int64_t s, Range panels) {
    const int64_t steps = run.T - s < chunk ? run.T - s : chunk, n = member.rows.size();
    for (int64_t k = 0; k < steps; ++k)
      for (int64_t i = 0; i < n; ++i)
        xs[k * n + i] = rows.x(run.reverse ? run.T - 1 - s - k : s + k, member.rows.first + i);
    for (int64_t p = panels.first; p < panels.last; ++p) {
      float* z = hoisted + (p - panels.first) * chunk * n * CV * W;
      for_tiles<MOST>(steps * n, [&](int64_t first, int r) {
        with_constant<MOST>(r, [&](auto R) {
          constexpr int N = decltype(R)::value;
          vf acc[N][CV];
          start<N>(acc, p, nullptr);
          accumulate<N, S::XV, Cell::XF * Cell::UV, CV>(acc, xs + first, run.I,
                                                        w_x + p * run.I * S::XV * W);
          for (int i = 0; i < N; ++i)
            for (int v = 0; v < CV; ++v) store(z + ((first + i) * CV + v) * W, acc[i][v]);
        });
      });
    }
  }

  template <int R>
  inline __attribute__((always_inline)) void start(vf (&acc)[R][CV], int64_t p, const float* z) {
    const float* from = z ? z : bias + p * CV * W;
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < CV; ++v) acc[i][v] = load(from + ((z ? i * CV : 0) + v) * W);
  }

  template <int R>
  void tile(int64_t t, int64_t p, int64_t first, const float* z) {
    alignas(64) float a[R][CV * W];
    {
      vf acc[R][CV];
      start<R>(acc, p, z ? z + first * CV * W : nullptr);
      if (!z)
        accumulate<R, S::XV, Cell::XF * Cell::UV, CV>(acc, xs + first, run.I,
                                                      w_x + p * run.I * S::XV * W);
      accumulate<R, S::HV, Cell::HF * Cell::UV, CV>(acc, hs + first, run.H,
                                                    w_h + p * run.H * S::HV * W);
      for (int i = 0; i < R; ++i)
        for (int v = 0; v < CV; ++v) store(a[i] + v * W, acc[i][v]);
    }
    for (int i = 0; i < R; ++i) {
      const int64_t b = batch[first + i];
      const float* c = rows.c(t, b);
      float* saved = run.saved ? rows.saved(t, b) : nullptr;
      float* c_new = !Cell::CELL_STATE ? nullptr
                     : saved           ? rows.saved_c(t, b)
                                       : run.c_last + b * run.H;
      for (int v = 0; v < Cell::UV; ++v) {
        const int64_t u = p * UB + v * W;
        if (u >= run.H) break;
        Step step;
        step.a = a[i] + v * W;
        step.stride = UB;
        step.h = hs[first + i] + u;
        step.c = c ? c + u : nullptr;
        for (int e = 0; e < 3; ++e) step.extra[e] = run.extra[e] ? run.extra[e] + u : nullptr;
        step.y = rows.y(t, b) + u;
        step.c_new = c_new ? c_new + u : nullptr;
        step.saved = saved ? saved + u : nullptr;
        step.H = run.H;
        step.n = run.H - u;
        Cell::forward(step);
      }
    }
  }

  // The last carry, which is that of the last step that was no padding.
  void finish() {
    if (member.slice != 0) return;
    for (int64_t b = member.rows.first; b < member.rows.last; ++b) {
      const int64_t n = rows.length(b), last = run.reverse ? 0 : n - 1;
      memcpy(run.h_last + b * run.H, n ? rows.y(last, b) : run.h0 + b * run.H,
             run.H * sizeof(float));
      if (Cell::CELL_STATE && run.saved)
        memcpy(run.c_last + b * run.H, n ? rows.saved_c(last, b) : run.c0 + b * run.H,
               run.H * sizeof(float));
    }
  }
};

}  // namespace
