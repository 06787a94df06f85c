// The backward pass: the loop over time carries the cotangents of the carry alone; the cotangents
// of the pre-activations of a chunk of steps stay in the cache until every weight gradient and the
// gradient of the inputs have been made of them, in products over all rows of the chunk.
#pragma once

#include "sequence.h"

namespace {

template <class Cell>
struct Backward {
  using S = Sizes<Cell>;
  static constexpr int64_t X0 = Cell::XF, H0 = Cell::HF;

  const Member member;
  const JrnnRun& run;
  const Rows<Cell> rows;
  const S sizes;
  const int64_t most, capacity, ld;  // rows of a part; rows of a chunk; row length of `d`
  float *w_x, *w_h;                  // transposed: [panel][column][input or unit]
  // Of a part: d [capacity, ld], carried cotangents [rows, Hp], sums over its rows.
  float *d, *d_h, *d_c, *sums, *sum_x, *sum_h, *sum_extra[3];
  float* d_extra[3];  // of a chunk, which is summed by itself lest small terms be lost
  // Of a member.
  const float **xs, **hs, **ds;
  float **out, **outs_x;
  int32_t* batch;
  bool again = false;  // whether the sums hold something already

  Backward(const JrnnRun& r, int32_t m)
      : member(r, m), run(r), rows{r}, sizes(r), most((r.B + r.parts - 1) / r.parts),
        capacity((most > 96 ? most : 96)), ld(Cell::C * sizes.Hp + 16) {
    layout();
  }

  int64_t x_columns() const { return Cell::XN * sizes.Hp; }
  int64_t h_columns() const { return Cell::HN * sizes.Hp; }
  bool narrow() const { return run.I <= 4; }

  // The units of a slice, in whole vectors.
  Range vectors(int32_t slice) const { return share((run.H + W - 1) / W, slice, run.slices); }
  Range vectors() const { return vectors(member.slice); }

  static constexpr int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

  int64_t layout() {
    Arena arena(run.scratch);
    w_x = arena.floats(x_columns() * padded(run.I));
    w_h = arena.floats(h_columns() * padded(run.H));
    for (int32_t p = 0; p < run.parts; ++p) part(arena, p == member.part);
    for (int32_t m = 0; m < member.size(); ++m) {
      auto** a = arena.pointers<const float*>(capacity);
      auto** b = arena.pointers<const float*>(capacity);
      auto** c = arena.pointers<const float*>(capacity);
      auto** o = arena.pointers<float*>(capacity);
      auto** q = arena.pointers<float*>(capacity);
      auto* i = arena.pointers<int32_t>(most);
      if (m == member.number) xs = a, hs = b, ds = c, out = o, outs_x = q, batch = i;
    }
    return arena.used;
  }

  // Each part has these at a fixed stride from those of the part before.
  void part(Arena& arena, bool own) {
    float* a = arena.floats(capacity * ld);
    float* b = arena.floats(most * sizes.Hp);
    float* c = arena.floats(most * sizes.Hp);
    float* e = arena.floats(Cell::C * sizes.Hp);
    float* f = arena.floats(run.I * x_columns());
    float* g = arena.floats(run.H * h_columns());
    float *x[3], *y[3];
    for (float*& extra : x) extra = arena.floats(sizes.Hp);
    for (float*& extra : y) extra = arena.floats(sizes.Hp);
    if (!own) return;
    d = a, d_h = b, d_c = c, sums = e, sum_x = f, sum_h = g;
    for (int i = 0; i < 3; ++i) sum_extra[i] = x[i], d_extra[i] = y[i];
  }

  int64_t part_stride() {
    Arena arena(nullptr);
    part(arena, false);
    return arena.used;
  }

  // Panels of a transposed matrix: of n columns (inputs or units), kWide vectors to a panel.
  template <class At>
  static void pack_transposed(int64_t columns, int64_t first, int64_t nv, At at, float* to) {
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t v = 0; v < nv * W; ++v) *to++ = at(k, first + v);
  }

  float* h_panel(int64_t vector) const { return w_h + vector * W * h_columns(); }

  // Calls f(first vector, vectors) for panels of a range of vectors.
  template <class F>
  static void for_panels(Range range, F&& f) {
    for (int64_t v = range.first; v < range.last; v += kWide)
      f(v, range.last - v < kWide ? range.last - v : (int64_t)kWide);
  }

  void pack() {
    int64_t n = 0;
    auto mine = [&] { return n++ % member.size() == member.number; };
    for (int32_t slice = 0; slice < run.slices; ++slice)
      for_panels(vectors(slice), [&](int64_t first, int64_t nv) {
        if (mine())
          pack_transposed(h_columns(), first * W, nv, [&](int64_t k, int64_t v) {
            const int64_t g = h_gate<Cell>(k / sizes.Hp), u = k % sizes.Hp;
            return u < run.H && v < run.H ? run.w_hh[(v * Cell::G + g) * run.H + u] : 0.0f;
          }, h_panel(first));
      });
    if (narrow()) {
      if (mine())
        for (int64_t i = 0; i < run.I; ++i)
          for (int64_t k = 0; k < x_columns(); ++k) {
            const int64_t g = k / sizes.Hp, u = k % sizes.Hp;
            w_x[i * x_columns() + k] =
                u < run.H ? run.w_ih[(i * Cell::G + g) * run.H + u] : 0.0f;
          }
      return;
    }
    for_panels({0, padded(run.I) / W}, [&](int64_t first, int64_t nv) {
      if (mine())
        pack_transposed(x_columns(), first * W, nv, [&](int64_t k, int64_t v) {
          const int64_t g = k / sizes.Hp, u = k % sizes.Hp;
          return u < run.H && v < run.I ? run.w_ih[(v * Cell::G + g) * run.H + u] : 0.0f;
        }, w_x + first * W * x_columns());
    });
  }

  void start() {
    const Range own = vectors();
    const int64_t first = own.first * W;
    for (int64_t b = member.rows.first; b < member.rows.last; ++b) {
      const int64_t i = b - member.rows.first;
      for (int64_t u = first; u < own.last * W; u += W) {
        store(d_h + i * sizes.Hp + u, load(run.d_h_last + b * run.H + u, run.H - u));
        if (Cell::CELL_STATE)
          store(d_c + i * sizes.Hp + u, load(run.d_c_last + b * run.H + u, run.H - u));
        if (run.d_h_initial) store(run.d_h_initial + b * run.H + u, vf{}, run.H - u);
        if (run.d_c_initial) store(run.d_c_initial + b * run.H + u, vf{}, run.H - u);
      }
    }
    if (member.slice == 0) {
      memset(sums, 0, Cell::C * sizes.Hp * sizeof(float));
      for (int e = 0; e < 3; ++e) {
        memset(sum_extra[e], 0, sizes.Hp * sizeof(float));
        memset(d_extra[e], 0, sizes.Hp * sizeof(float));
      }
      // Columns of units beyond H are never written, and must be finite.
      memset(d, 0, capacity * ld * sizeof(float));
    }
  }

  static constexpr int PHASES = 3;
  void phase(int number) { number == 0 ? prepare() : number == 1 ? walk() : reduce(); }

  void prepare() {
    pack();
    start();
  }

  void walk() {
    int64_t held = 0;
    for (int64_t s = run.T - 1; s >= 0; --s) {
      const int64_t t = run.reverse ? run.T - 1 - s : s;
      if (held + member.rows.size() > capacity) {
        gather(held);
        held = 0;
      }
      const int64_t n = list(t, held);
      for (int64_t i = 0; i < n; ++i) arithmetic(t, batch[i], hs[held + i], d + (held + i) * ld);
      member.meet_part();
      for (int64_t i = 0; i < n; ++i) {
        ds[i] = d + (held + i) * ld + H0 * sizes.Hp;
        out[i] = d_h + (batch[i] - member.rows.first) * sizes.Hp;
      }
      for_panels(vectors(), [&](int64_t first, int64_t nv) {
        offset(out, n, first * W, [&] {
          product((int)nv, ds, n, h_columns(), h_panel(first), out, Cell::DIRECT, nv * W);
        });
      });
      if (run.resets) restart(t, n);
      held += n;
    }
    gather(held);
    finish();
  }

  template <class F>
  static void offset(float** pointers, int64_t n, int64_t by, F&& f) {
    for (int64_t i = 0; i < n; ++i) pointers[i] += by;
    f();
    for (int64_t i = 0; i < n; ++i) pointers[i] -= by;
  }

  // Lists the rows of step t that are no padding; the gradient of inputs on padding is zero.
  int64_t list(int64_t t, int64_t held) {
    int64_t n = 0;
    for (int64_t b = member.rows.first; b < member.rows.last; ++b) {
      float* d_x = run.d_xs + rows.at(t, b) * run.I;
      if (t >= rows.length(b)) {
        if (member.slice == 0) memset(d_x, 0, run.I * sizeof(float));
        continue;
      }
      xs[held + n] = rows.x(t, b);
      hs[held + n] = rows.h(t, b);
      outs_x[held + n] = d_x;
      batch[n++] = (int32_t)b;
    }
    return n;
  }

  void arithmetic(int64_t t, int64_t b, const float* h, float* d_row) {
    const int64_t i = b - member.rows.first;
    const Range own = vectors();
    const float* c = rows.c(t, b);
    const float* saved = Cell::SAVED ? rows.saved(t, b) : nullptr;
    const float* y = rows.y(t, b);
    const float* d_y = run.d_ys + rows.at(t, b) * run.H;
    for (int64_t u = own.first * W; u < own.last * W; u += W) {
      BackStep step;
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
      float* carried = d_h + i * sizes.Hp + u;
      store(carried, Cell::backward(step, load(d_y + u, step.n) + load(carried)));
    }
  }

  // Where the step began with a reset, what would flow on to the carry belongs to the initial one.
  void restart(int64_t t, int64_t n) {
    const Range own = vectors();
    for (int64_t j = 0; j < n; ++j) {
      const int64_t b = batch[j], i = b - member.rows.first;
      if (!rows.reset(t, b)) continue;
      for (int64_t u = own.first * W; u < own.last * W; u += W) {
        move(run.d_h_initial + b * run.H + u, d_h + i * sizes.Hp + u, run.H - u);
        if (Cell::CELL_STATE)
          move(run.d_c_initial + b * run.H + u, d_c + i * sizes.Hp + u, run.H - u);
      }
    }
  }

  static void move(float* to, float* from, int64_t n) {
    store(to, load(to, n) + load(from), n);
    store(from, vf{});
  }

  // All that is summed over rows, for the chunk that `d` holds.
  void gather(int64_t n) {
    member.meet_part();
    if (n) {
      weights(xs, run.I, X0, x_columns(), sum_x, n);
      weights(hs, run.H, H0, h_columns(), sum_h, n);
      biases(n);
      inputs(share(n, member.slice, run.slices));
      again = true;
    }
    member.meet_part();
  }

  void weights(const float* const* a, int64_t M, int64_t first, int64_t columns, float* sum,
               int64_t n) {
    for_panels(share(columns / W, member.slice, run.slices), [&](int64_t v, int64_t nv) {
      outer((int)nv, a, M, d + first * sizes.Hp + v * W, ld, n, sum + v * W, columns, again);
    });
  }

  void biases(int64_t n) {
    const Range own = share(Cell::C * sizes.Hp / W, member.slice, run.slices);
    for (int64_t v = own.first; v < own.last; ++v) {
      vf total = {};
      for (int64_t k = 0; k < n; ++k) total += load(d + k * ld + v * W);
      store(sums + v * W, load(sums + v * W) + total);
    }
    if (member.slice != 0) return;
    for (int e = 0; e < 3; ++e)
      for (int64_t u = 0; run.extra[e] && u < sizes.Hp; u += W) {
        store(sum_extra[e] + u, load(sum_extra[e] + u) + load(d_extra[e] + u));
        store(d_extra[e] + u, vf{});
      }
  }

  void inputs(Range own) {
    for (int64_t k = own.first; k < own.last; ++k) ds[k] = d + k * ld + X0 * sizes.Hp;
    if (narrow()) {
      for (int64_t k = own.first; k < own.last; ++k)
        for (int64_t i = 0; i < run.I; ++i) {
          vf total = {};
          for (int64_t c = 0; c < x_columns(); c += W)
            total += load(ds[k] + c) * load(w_x + i * x_columns() + c);
          outs_x[k][i] = sum(total);
        }
      return;
    }
    for_panels({0, padded(run.I) / W}, [&](int64_t first, int64_t nv) {
      offset(outs_x + own.first, own.size(), first * W, [&] {
        product((int)nv, ds + own.first, own.size(), x_columns(), w_x + first * W * x_columns(),
                outs_x + own.first, false, run.I - first * W);
      });
    });
  }

  // The cotangents of the first carry.
  void finish() {
    const Range own = vectors();
    for (int64_t b = member.rows.first; b < member.rows.last; ++b) {
      const int64_t i = b - member.rows.first;
      for (int64_t u = own.first * W; u < own.last * W; u += W) {
        store(run.d_h0 + b * run.H + u, load(d_h + i * sizes.Hp + u), run.H - u);
        if (Cell::CELL_STATE)
          store(run.d_c0 + b * run.H + u, load(d_c + i * sizes.Hp + u), run.H - u);
      }
    }
    if (!again && member.slice == 0) {
      memset(sum_x, 0, run.I * x_columns() * sizeof(float));
      memset(sum_h, 0, run.H * h_columns() * sizeof(float));
    }
  }

  // The gradients out of the sums of all parts.
  void reduce() {
    const int64_t stride = part_stride();
    const Range x = share(run.I, member.number, member.size());
    for (int64_t k = x.first; k < x.last; ++k)
      for (int g = 0; g < Cell::G; ++g)
        add_parts(first_part(sum_x) + k * x_columns() + g * sizes.Hp, stride,
                  run.d_w_ih + (k * Cell::G + g) * run.H);
    const Range h = share(run.H, member.number, member.size());
    for (int64_t k = h.first; k < h.last; ++k)
      for (int g = 0; g < Cell::G; ++g)
        add_parts(first_part(sum_h) + k * h_columns() + (Cell::h_column(g) - H0) * sizes.Hp, stride,
                  run.d_w_hh + (k * Cell::G + g) * run.H);
    if (member.number != 0) return;
    for (int g = 0; g < Cell::G; ++g)
      add_parts(first_part(sums) + (X0 + g) * sizes.Hp, stride, run.d_b + g * run.H);
    for (int e = 0; e < 3; ++e)
      if (run.d_extra[e])
        add_parts(Cell::bias_column(e) < 0
                      ? first_part(sum_extra[e])
                      : first_part(sums) + Cell::bias_column(e) * sizes.Hp,
                  stride, run.d_extra[e]);
  }

  const float* first_part(const float* own) { return own - member.part * part_stride(); }

  void add_parts(const float* from, int64_t stride, float* to) const {
    for (int64_t u = 0; u < run.H; u += W) {
      vf total = load(from + u);
      for (int32_t p = 1; p < run.parts; ++p) total += load(from + p * stride + u);
      store(to + u, total, run.H - u);
    }
  }
};

}  // namespace
