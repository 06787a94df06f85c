// The backward pass. The loop over time computes only the cotangents of the pre-activations and of
// the carry. The former are buffered for a chunk of steps that fits into the cache. The gradients
// of weights and inputs are then computed by matrix products over all rows of the chunk.
#pragma once

#include "sequence.h"

namespace {

template <class Cell>
struct Backward {
  using S = Sizes<Cell>;
  // First columns of the input and of the recurrent product in d, in multiples of Hp.
  static constexpr int64_t X0 = Cell::XF, H0 = Cell::HF;

  const WorkItem item;
  const JrnnRun& run;
  const Rows<Cell> rows;
  const S sizes;
  const int64_t part_rows;  // maximum number of sequences of a part
  const int64_t capacity;   // maximum number of rows of a chunk; a row is one step of one sequence
  const int64_t ld;         // length of a row of `d`
  // Transposed weights: [panel][column][input or unit]; with few inputs, w_x is [input][column].
  float *w_x, *w_h;
  // Shared by the work items of a part: cotangents of the pre-activations d [capacity, ld],
  // cotangents of the carry [part_rows, Hp], and sums over rows. `extra` stands for the peepholes
  // or b_hn, see api.h.
  float *d, *d_h, *d_c, *sum_bias, *sum_x, *sum_h, *sum_extra[3];
  // Sums over one chunk. They are added to sum_extra at the end of the chunk, which loses less
  // precision than adding each row to a large sum.
  float* d_extra[3];
  // Private to a work item: pointers to the rows of a chunk, and the sequences of a step.
  const float **x_rows, **h_rows, **d_rows;
  float **d_h_rows, **d_x_rows;
  int32_t* sequences;
  bool has_sums = false;  // whether a chunk has been added to sum_x and sum_h

  Backward(const JrnnRun& r, int32_t m)
      : item(r, m), run(r), rows{r}, sizes(r), part_rows((r.B + r.parts - 1) / r.parts),
        capacity((part_rows > 96 ? part_rows : 96)), ld(Cell::C * sizes.Hp + 16) {
    layout();
  }

  int64_t x_columns() const { return Cell::XN * sizes.Hp; }
  int64_t h_columns() const { return Cell::HN * sizes.Hp; }
  bool has_few_inputs() const { return run.I <= 4; }

  // The units of a slice, as a range of vectors.
  Range unit_vectors(int32_t slice) const {
    return split_range((run.H + W - 1) / W, slice, run.slices);
  }
  Range unit_vectors() const { return unit_vectors(item.slice); }

  static constexpr int64_t round_up(int64_t n) { return (n + W - 1) / W * W; }

  // Assigns the arrays to the scratch memory; returns its size in floats.
  int64_t layout() {
    Arena arena(run.scratch);
    w_x = arena.floats(x_columns() * round_up(run.I));
    w_h = arena.floats(h_columns() * round_up(run.H));
    for (int32_t p = 0; p < run.parts; ++p) allocate_part(arena, p == item.part);
    for (int32_t m = 0; m < item.count(); ++m) {
      auto** a = arena.pointers<const float*>(capacity);
      auto** b = arena.pointers<const float*>(capacity);
      auto** c = arena.pointers<const float*>(capacity);
      auto** o = arena.pointers<float*>(capacity);
      auto** q = arena.pointers<float*>(capacity);
      auto* i = arena.pointers<int32_t>(part_rows);
      if (m == item.index)
        x_rows = a, h_rows = b, d_rows = c, d_h_rows = o, d_x_rows = q, sequences = i;
    }
    return arena.used;
  }

  // Allocates the arrays of one part, and assigns them if `is_own`. The arrays of the next part
  // follow at a distance of part_stride().
  void allocate_part(Arena& arena, bool is_own) {
    float* a = arena.floats(capacity * ld);
    float* b = arena.floats(part_rows * sizes.Hp);
    float* c = arena.floats(part_rows * sizes.Hp);
    float* e = arena.floats(Cell::C * sizes.Hp);
    float* f = arena.floats(run.I * x_columns());
    float* g = arena.floats(run.H * h_columns());
    float *x[3], *y[3];
    for (float*& extra : x) extra = arena.floats(sizes.Hp);
    for (float*& extra : y) extra = arena.floats(sizes.Hp);
    if (!is_own) return;
    d = a, d_h = b, d_c = c, sum_bias = e, sum_x = f, sum_h = g;
    for (int i = 0; i < 3; ++i) sum_extra[i] = x[i], d_extra[i] = y[i];
  }

  // The number of floats of one part.
  int64_t part_stride() {
    Arena arena(nullptr);
    allocate_part(arena, false);
    return arena.used;
  }

  // Packs `nv` vectors of a transposed matrix, starting at `first_element`: at(k, v) for each
  // column k.
  template <class At>
  static void pack_transposed(int64_t columns, int64_t first_element, int64_t nv, At at,
                              float* to) {
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t v = 0; v < nv * W; ++v) *to++ = at(k, first_element + v);
  }

  float* h_panel(int64_t vector) const { return w_h + vector * W * h_columns(); }

  // Calls f(first vector, number of vectors) for each panel of a range of vectors.
  template <class F>
  static void for_panels(Range range, F&& f) {
    for (int64_t v = range.first; v < range.last; v += kPanelVectors)
      f(v, range.last - v < kPanelVectors ? range.last - v : (int64_t)kPanelVectors);
  }

  // Packs the weights; the work items divide the panels among them.
  void pack() {
    int64_t n = 0;
    auto is_mine = [&] { return n++ % item.count() == item.index; };
    for (int32_t slice = 0; slice < run.slices; ++slice)
      for_panels(unit_vectors(slice), [&](int64_t first, int64_t nv) {
        if (is_mine())
          pack_transposed(h_columns(), first * W, nv, [&](int64_t k, int64_t v) {
            const int64_t g = h_gate<Cell>(k / sizes.Hp), u = k % sizes.Hp;
            return u < run.H && v < run.H ? run.w_hh[(v * Cell::G + g) * run.H + u] : 0.0f;
          }, h_panel(first));
      });
    if (has_few_inputs()) {
      if (is_mine())
        for (int64_t i = 0; i < run.I; ++i)
          for (int64_t k = 0; k < x_columns(); ++k) {
            const int64_t g = k / sizes.Hp, u = k % sizes.Hp;
            w_x[i * x_columns() + k] =
                u < run.H ? run.w_ih[(i * Cell::G + g) * run.H + u] : 0.0f;
          }
      return;
    }
    for_panels({0, round_up(run.I) / W}, [&](int64_t first, int64_t nv) {
      if (is_mine())
        pack_transposed(x_columns(), first * W, nv, [&](int64_t k, int64_t v) {
          const int64_t g = k / sizes.Hp, u = k % sizes.Hp;
          return u < run.H && v < run.I ? run.w_ih[(v * Cell::G + g) * run.H + u] : 0.0f;
        }, w_x + first * W * x_columns());
    });
  }

  void init_gradients() {
    const Range own = unit_vectors();
    const int64_t first = own.first * W;
    for (int64_t b = item.rows.first; b < item.rows.last; ++b) {
      const int64_t i = b - item.rows.first;
      for (int64_t u = first; u < own.last * W; u += W) {
        store(d_h + i * sizes.Hp + u, load(run.d_h_last + b * run.H + u, run.H - u));
        if (Cell::CELL_STATE)
          store(d_c + i * sizes.Hp + u, load(run.d_c_last + b * run.H + u, run.H - u));
        if (run.d_h_reset) store(run.d_h_reset + b * run.H + u, vf{}, run.H - u);
        if (run.d_c_reset) store(run.d_c_reset + b * run.H + u, vf{}, run.H - u);
      }
    }
    if (item.slice == 0) {
      memset(sum_bias, 0, Cell::C * sizes.Hp * sizeof(float));
      for (int e = 0; e < 3; ++e) {
        memset(sum_extra[e], 0, sizes.Hp * sizeof(float));
        memset(d_extra[e], 0, sizes.Hp * sizeof(float));
      }
      // Columns of units beyond H are never written, but products read them: they must be finite.
      memset(d, 0, capacity * ld * sizeof(float));
    }
  }

  static constexpr int PHASES = 3;
  void phase(int number) {
    number == 0 ? initialize() : number == 1 ? run_steps() : reduce_parts();
  }

  void initialize() {
    pack();
    init_gradients();
  }

  void run_steps() {
    int64_t num_rows = 0;
    for (int64_t s = run.T - 1; s >= 0; --s) {
      const int64_t t = run.reverse ? run.T - 1 - s : s;
      if (num_rows + item.rows.size() > capacity) {
        accumulate_gradients(num_rows);
        num_rows = 0;
      }
      const int64_t n = list_valid_rows(t, num_rows);
      for (int64_t i = 0; i < n; ++i)
        differentiate_row(t, sequences[i], h_rows[num_rows + i], d + (num_rows + i) * ld);
      item.wait_for_part();
      for (int64_t i = 0; i < n; ++i) {
        d_rows[i] = d + (num_rows + i) * ld + H0 * sizes.Hp;
        d_h_rows[i] = d_h + (sequences[i] - item.rows.first) * sizes.Hp;
      }
      for_panels(unit_vectors(), [&](int64_t first, int64_t nv) {
        with_offset(d_h_rows, n, first * W, [&] {
          product((int)nv, d_rows, n, h_columns(), h_panel(first), d_h_rows, Cell::HAS_DIRECT_PATH,
                  nv * W);
        });
      });
      if (run.resets) apply_resets(t, n);
      num_rows += n;
    }
    accumulate_gradients(num_rows);
    store_initial_carry_grads();
  }

  // Calls f while `by` is added to n pointers.
  template <class F>
  static void with_offset(float** pointers, int64_t n, int64_t by, F&& f) {
    for (int64_t i = 0; i < n; ++i) pointers[i] += by;
    f();
    for (int64_t i = 0; i < n; ++i) pointers[i] -= by;
  }

  // Lists the sequences for which step t is valid, and returns their number. Sets the gradient of
  // inputs on padding to zero. `num_rows` is the number of rows that the chunk already has.
  int64_t list_valid_rows(int64_t t, int64_t num_rows) {
    int64_t n = 0;
    for (int64_t b = item.rows.first; b < item.rows.last; ++b) {
      float* d_x = run.d_xs + rows.index(t, b) * run.I;
      if (t >= rows.length(b)) {
        if (item.slice == 0) memset(d_x, 0, run.I * sizeof(float));
        continue;
      }
      x_rows[num_rows + n] = rows.x(t, b);
      h_rows[num_rows + n] = rows.h(t, b);
      d_x_rows[num_rows + n] = d_x;
      sequences[n++] = (int32_t)b;
    }
    return n;
  }

  // Runs the backward step of one sequence: writes d, updates d_h and d_c, and adds to d_extra.
  void differentiate_row(int64_t t, int64_t b, const float* h, float* d_row) {
    const int64_t i = b - item.rows.first;
    const Range own = unit_vectors();
    const float* c = rows.c(t, b);
    const float* saved = Cell::SAVED ? rows.saved(t, b) : nullptr;
    const float* y = rows.y(t, b);
    const float* d_y = run.d_ys + rows.index(t, b) * run.H;
    for (int64_t u = own.first * W; u < own.last * W; u += W) {
      BackwardStep step;
      step.saved = saved ? saved + u : nullptr;
      step.y = y + u;
      step.h = h + u;
      step.c = c ? c + u : nullptr;
      for (int e = 0; e < 3; ++e) {
        step.extra[e] = run.extra[e] ? run.extra[e] + u : nullptr;
        step.d_extra[e] = d_extra[e] + u;
      }
      step.d = d_row + u;
      step.stride = sizes.Hp;
      step.d_c = d_c + i * sizes.Hp + u;
      step.H = run.H;
      step.n = run.H - u;
      float* d_carry = d_h + i * sizes.Hp + u;
      store(d_carry, Cell::backward(step, load(d_y + u, step.n) + load(d_carry)));
    }
  }

  // Where a step begins with a reset, adds the cotangent of the carry before the step to that of
  // the reset carry, and sets the former to zero. `n` is the number of sequences for which the step
  // is valid.
  void apply_resets(int64_t t, int64_t n) {
    const Range own = unit_vectors();
    for (int64_t j = 0; j < n; ++j) {
      const int64_t b = sequences[j], i = b - item.rows.first;
      if (!rows.reset(t, b)) continue;
      for (int64_t u = own.first * W; u < own.last * W; u += W) {
        move_gradient(run.d_h_reset + b * run.H + u, d_h + i * sizes.Hp + u, run.H - u);
        if (Cell::CELL_STATE)
          move_gradient(run.d_c_reset + b * run.H + u, d_c + i * sizes.Hp + u, run.H - u);
      }
    }
  }

  // Adds the first n lanes at `from` to those at `to`, and sets `from` to zero.
  static void move_gradient(float* to, float* from, int64_t n) {
    store(to, load(to, n) + load(from), n);
    store(from, vf{});
  }

  // Adds the n rows of a chunk to the gradients of weights and biases, and computes those of its
  // inputs.
  void accumulate_gradients(int64_t n) {
    item.wait_for_part();
    if (n) {
      accumulate_weight_grad(x_rows, run.I, X0, x_columns(), sum_x, n);
      accumulate_weight_grad(h_rows, run.H, H0, h_columns(), sum_h, n);
      accumulate_bias_grads(n);
      compute_input_grads(split_range(n, item.slice, run.slices));
      has_sums = true;
    }
    item.wait_for_part();
  }

  void accumulate_weight_grad(const float* const* a, int64_t M, int64_t first, int64_t columns,
                              float* sum, int64_t n) {
    for_panels(split_range(columns / W, item.slice, run.slices), [&](int64_t v, int64_t nv) {
      outer((int)nv, a, M, d + first * sizes.Hp + v * W, ld, n, sum + v * W, columns, has_sums);
    });
  }

  void accumulate_bias_grads(int64_t n) {
    const Range own = split_range(Cell::C * sizes.Hp / W, item.slice, run.slices);
    for (int64_t v = own.first; v < own.last; ++v) {
      vf total = {};
      for (int64_t k = 0; k < n; ++k) total += load(d + k * ld + v * W);
      store(sum_bias + v * W, load(sum_bias + v * W) + total);
    }
    if (item.slice != 0) return;
    for (int e = 0; e < 3; ++e)
      for (int64_t u = 0; run.extra[e] && u < sizes.Hp; u += W) {
        store(sum_extra[e] + u, load(sum_extra[e] + u) + load(d_extra[e] + u));
        store(d_extra[e] + u, vf{});
      }
  }

  void compute_input_grads(Range own) {
    for (int64_t k = own.first; k < own.last; ++k) d_rows[k] = d + k * ld + X0 * sizes.Hp;
    if (has_few_inputs()) {
      for (int64_t k = own.first; k < own.last; ++k)
        for (int64_t i = 0; i < run.I; ++i) {
          vf total = {};
          for (int64_t c = 0; c < x_columns(); c += W)
            total += load(d_rows[k] + c) * load(w_x + i * x_columns() + c);
          d_x_rows[k][i] = sum(total);
        }
      return;
    }
    for_panels({0, round_up(run.I) / W}, [&](int64_t first, int64_t nv) {
      with_offset(d_x_rows + own.first, own.size(), first * W, [&] {
        product((int)nv, d_rows + own.first, own.size(), x_columns(), w_x + first * W * x_columns(),
                d_x_rows + own.first, false, run.I - first * W);
      });
    });
  }

  // Stores the cotangents of the initial carry, and sets sum_x and sum_h to zero if all steps were
  // padding.
  void store_initial_carry_grads() {
    const Range own = unit_vectors();
    for (int64_t b = item.rows.first; b < item.rows.last; ++b) {
      const int64_t i = b - item.rows.first;
      for (int64_t u = own.first * W; u < own.last * W; u += W) {
        store(run.d_h0 + b * run.H + u, load(d_h + i * sizes.Hp + u), run.H - u);
        if (Cell::CELL_STATE)
          store(run.d_c0 + b * run.H + u, load(d_c + i * sizes.Hp + u), run.H - u);
      }
    }
    if (!has_sums && item.slice == 0) {
      memset(sum_x, 0, run.I * x_columns() * sizeof(float));
      memset(sum_h, 0, run.H * h_columns() * sizeof(float));
    }
  }

  // Adds the sums of all parts to obtain the gradients of the parameters.
  void reduce_parts() {
    const int64_t stride = part_stride();
    const Range x = split_range(run.I, item.index, item.count());
    for (int64_t k = x.first; k < x.last; ++k)
      for (int g = 0; g < Cell::G; ++g)
        add_parts(in_first_part(sum_x) + k * x_columns() + g * sizes.Hp, stride,
                  run.d_w_ih + (k * Cell::G + g) * run.H);
    const Range h = split_range(run.H, item.index, item.count());
    for (int64_t k = h.first; k < h.last; ++k)
      for (int g = 0; g < Cell::G; ++g)
        add_parts(in_first_part(sum_h) + k * h_columns() + (Cell::h_column(g) - H0) * sizes.Hp,
                  stride, run.d_w_hh + (k * Cell::G + g) * run.H);
    if (item.index != 0) return;
    for (int g = 0; g < Cell::G; ++g)
      add_parts(in_first_part(sum_bias) + (X0 + g) * sizes.Hp, stride, run.d_b + g * run.H);
    for (int e = 0; e < 3; ++e)
      if (run.d_extra[e])
        add_parts(Cell::bias_column(e) < 0
                      ? in_first_part(sum_extra[e])
                      : in_first_part(sum_bias) + Cell::bias_column(e) * sizes.Hp,
                  stride, run.d_extra[e]);
  }

  // The address in the first part of an array of this part.
  const float* in_first_part(const float* array) { return array - item.part * part_stride(); }

  // Stores the sum over all parts of the H floats at `from`, an address in the first part.
  void add_parts(const float* from, int64_t stride, float* to) const {
    for (int64_t u = 0; u < run.H; u += W) {
      vf total = load(from + u);
      for (int32_t p = 1; p < run.parts; ++p) total += load(from + p * stride + u);
      store(to + u, total, run.H - u);
    }
  }
};

}  // namespace
