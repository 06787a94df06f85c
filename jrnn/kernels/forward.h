// The forward pass: each work item computes all steps of its sequences and its panels of units.
#pragma once

#include "sequence.h"

namespace {

template <class Cell>
struct Forward {
  using S = Sizes<Cell>;
  static constexpr int UB = S::UB, CV = S::CV, MAX_ROWS = tile_rows(CV);

  const WorkItem item;
  const JrnnRun& run;
  const Rows<Cell> rows;
  const S sizes;
  float *w_x, *w_h, *bias;  // packed weights, shared by all work items
  // Private to a work item.
  float* hoisted;                  // biases plus input products: [panel][step][row][column]
  const float **x_rows, **h_rows;  // pointers to the inputs and carries of a step
  int32_t* sequences;              // the sequences for which a step is valid
  int64_t chunk;                   // number of steps whose input products are hoisted, or 0

  Forward(const JrnnRun& r, int32_t m) : item(r, m), run(r), rows{r}, sizes(r) { layout(); }

  // Assigns the arrays to the scratch memory; returns its size in floats.
  int64_t layout() {
    Arena arena(run.scratch);
    w_x = arena.floats(sizes.panels * run.I * S::XV * W);
    w_h = arena.floats(sizes.panels * run.H * S::HV * W);
    bias = arena.floats(sizes.panels * CV * W);
    chunk = num_hoisted_steps();
    const int64_t part_rows = (run.B + run.parts - 1) / run.parts;
    const int64_t panels = (sizes.panels + run.slices - 1) / run.slices;
    for (int32_t m = 0; m < item.count(); ++m) {
      const int64_t steps = chunk ? chunk : 1;
      float* z = arena.floats(chunk * part_rows * panels * CV * W);
      auto** x = arena.pointers<const float*>(part_rows * steps);
      auto** h = arena.pointers<const float*>(part_rows);
      auto* b = arena.pointers<int32_t>(part_rows);
      if (m == item.index) hoisted = z, x_rows = x, h_rows = h, sequences = b;
    }
    return arena.used;
  }

  // Returns the number of steps of a chunk. With few rows or many weights, reading the weights
  // limits the speed of a step. The input weights are then read once for a chunk of steps, and the
  // input products are stored. Otherwise, and with padding, with few inputs, or if the products
  // need too much memory, each step computes its input product in the tile, and the result is 0.
  int64_t num_hoisted_steps() const {
    const int64_t part_rows = (run.B + run.parts - 1) / run.parts;
    const int64_t panels = (sizes.panels + run.slices - 1) / run.slices;
    const int64_t weights = run.I * S::XV * W * panels;
    if (run.I < 8 || run.lengths || (part_rows >= 6 && weights < (1 << 17))) return 0;
    const int64_t steps = 48 / part_rows < 4 ? 4 : 48 / part_rows;
    if (steps * part_rows * panels * CV * W > (1 << 22)) return 0;
    return steps < run.T ? steps : run.T;
  }

  // Packs the weights and biases; the work items divide the panels among them.
  void pack() {
    for (int64_t p = item.index; p < sizes.panels; p += item.count()) {
      pack_panel<Cell, Cell::XN>(run.w_ih, run.I, run.H, p, [](int j) { return j; },
                                 w_x + p * run.I * S::XV * W);
      pack_panel<Cell, Cell::HN>(run.w_hh, run.H, run.H, p, h_gate<Cell>,
                                 w_h + p * run.H * S::HV * W);
      for (int j = 0; j < Cell::C; ++j)
        for (int64_t u = 0; u < UB; ++u) bias[(p * Cell::C + j) * UB + u] = bias_of(j, p * UB + u);
    }
  }

  // The bias of column `column` of unit u: b, plus the extra parameter that is added to this column.
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
  void phase(int number) { number == 0 ? initialize() : run_steps(); }

  void initialize() {
    pack();
    if (Cell::CELL_STATE && !run.saved && item.slice == 0)
      memcpy(run.c_last + item.rows.first * run.H, run.c0 + item.rows.first * run.H,
             item.rows.size() * run.H * sizeof(float));
  }

  void run_steps() {
    const Range panels = split_range(sizes.panels, item.slice, run.slices);
    for (int64_t s = 0; s < run.T; ++s) {
      if (chunk && s % chunk == 0) hoist_input_products(s, panels);
      const int64_t t = run.reverse ? run.T - 1 - s : s;
      const int64_t num_rows = list_valid_rows(t);
      for (int64_t p = panels.first; p < panels.last; ++p) {
        const float* z = chunk ? hoisted + ((p - panels.first) * chunk + s % chunk) *
                                               item.rows.size() * CV * W
                               : nullptr;
        for_tiles<MAX_ROWS>(num_rows, [&](int64_t first, int r) {
          with_constant<MAX_ROWS>(
              r, [&](auto R) { compute_tile<decltype(R)::value>(t, p, first, z); });
        });
      }
      item.wait_for_part();
    }
    store_final_carry();
  }

  // Lists the sequences for which step t is valid, and returns their number. Sets the results of
  // all other sequences to zero. Nothing reads their saved arrays, but `jax_debug_nans` checks
  // them.
  int64_t list_valid_rows(int64_t t) {
    int64_t n = 0;
    for (int64_t b = item.rows.first; b < item.rows.last; ++b) {
      if (t >= rows.length(b)) {
        if (item.slice == 0) {
          memset(rows.y(t, b), 0, run.H * sizeof(float));
          if (run.saved) memset(rows.saved(t, b), 0, Cell::SAVED * run.H * sizeof(float));
        }
        continue;
      }
      x_rows[n] = rows.x(t, b);
      h_rows[n] = rows.h(t, b);
      sequences[n++] = (int32_t)b;
    }
    return n;
  }

  // Computes the input products of a chunk, from the step with number s in scan order on.
  void hoist_input_products(int64_t s, Range panels) {
    const int64_t steps = run.T - s < chunk ? run.T - s : chunk, n = item.rows.size();
    for (int64_t k = 0; k < steps; ++k)
      for (int64_t i = 0; i < n; ++i)
        x_rows[k * n + i] = rows.x(run.reverse ? run.T - 1 - s - k : s + k, item.rows.first + i);
    for (int64_t p = panels.first; p < panels.last; ++p) {
      float* z = hoisted + (p - panels.first) * chunk * n * CV * W;
      for_tiles<MAX_ROWS>(steps * n, [&](int64_t first, int r) {
        with_constant<MAX_ROWS>(r, [&](auto R) {
          constexpr int N = decltype(R)::value;
          vf acc[N][CV];
          init_accumulators<N>(acc, p, nullptr);
          accumulate<N, S::XV, Cell::XF * Cell::UV, CV>(acc, x_rows + first, run.I,
                                                        w_x + p * run.I * S::XV * W);
          for (int i = 0; i < N; ++i)
            for (int v = 0; v < CV; ++v) store(z + ((first + i) * CV + v) * W, acc[i][v]);
        });
      });
    }
  }

  // Initializes a tile with hoisted input products `z` or, if `z` is null, with the biases.
  template <int R>
  inline __attribute__((always_inline)) void init_accumulators(vf (&acc)[R][CV], int64_t p,
                                                               const float* z) {
    const float* from = z ? z : bias + p * CV * W;
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < CV; ++v) acc[i][v] = load(from + ((z ? i * CV : 0) + v) * W);
  }

  // Computes R rows of one panel of units: the products, then the gate arithmetic.
  template <int R>
  void compute_tile(int64_t t, int64_t p, int64_t first, const float* z) {
    alignas(64) float a[R][CV * W];
    {
      vf acc[R][CV];
      init_accumulators<R>(acc, p, z ? z + first * CV * W : nullptr);
      if (!z)
        accumulate<R, S::XV, Cell::XF * Cell::UV, CV>(acc, x_rows + first, run.I,
                                                      w_x + p * run.I * S::XV * W);
      accumulate<R, S::HV, Cell::HF * Cell::UV, CV>(acc, h_rows + first, run.H,
                                                    w_h + p * run.H * S::HV * W);
      for (int i = 0; i < R; ++i)
        for (int v = 0; v < CV; ++v) store(a[i] + v * W, acc[i][v]);
    }
    for (int i = 0; i < R; ++i) {
      const int64_t b = sequences[first + i];
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
        step.h = h_rows[first + i] + u;
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

  // Stores the carry of the last valid step of each sequence; the initial carry if there is none.
  void store_final_carry() {
    if (item.slice != 0) return;
    for (int64_t b = item.rows.first; b < item.rows.last; ++b) {
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
