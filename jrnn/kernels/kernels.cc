// All kernels, compiled once for each instruction set with -DJRNN_ISA=<name>. This file and what it
// includes must not use templates or inline functions of the standard library: the linker would
// keep one copy of each, perhaps one with instructions that an older machine does not have.
#include "backward.h"
#include "forward.h"

namespace {

template <class Cell>
struct Named {
  using type = Cell;
};

// Calls f(Named<Cell>) with the cell of that number.
template <class F>
void with_cell(int32_t cell, F&& f) {
  switch (cell) {
    case kLstm: return f(Named<Lstm<false, false>>{});
    case kLstmPeepholes: return f(Named<Lstm<true, false>>{});
    case kLstmCoupled: return f(Named<Lstm<false, true>>{});
    case kLstmPeepholesCoupled: return f(Named<Lstm<true, true>>{});
    case kGru: return f(Named<Gru>{});
    case kElmanTanh: return f(Named<Elman<Activation::kTanh>>{});
    case kElmanRelu: return f(Named<Elman<Activation::kRelu>>{});
    case kElmanSigmoid: return f(Named<Elman<Activation::kSigmoid>>{});
    default: return;
  }
}

int32_t gates(int32_t cell) {
  int32_t n = 0;
  with_cell(cell, [&](auto c) { n = decltype(c)::type::G; });
  return n;
}

int32_t saved(int32_t cell) {
  int32_t n = 0;
  with_cell(cell, [&](auto c) { n = decltype(c)::type::SAVED; });
  return n;
}

// Cycles of a step, roughly: products by tiles, bound by arithmetic or by reading the weights; the
// arithmetic of the gates; and the meeting at its end, where each waits for what delayed another.
template <class Cell>
double cost(const JrnnRun& run, int32_t parts, int32_t slices) {
  using S = Sizes<Cell>;
  constexpr int MOST = tile_rows(S::CV);
  const S sizes(run);
  const double rows = (double)((run.B + parts - 1) / parts);
  const double panels = (double)((sizes.panels + slices - 1) / slices);
  const double depth = (double)(run.I + run.H);
  const double bytes = panels * depth * S::CV * W * sizeof(float);
  const double per_cycle = bytes > 900e3 ? 10 : bytes > 24e3 ? 22 : 64;
  const double tiles = (double)(((int64_t)rows + MOST - 1) / MOST);
  const double arithmetic = rows * S::CV * (W == 16 ? 1.0 : 0.5);
  const double reading = S::CV * W * sizeof(float) / per_cycle;
  const double first = arithmetic / tiles;
  const double stall = reading > first ? reading - first : 0;
  return panels * depth * (arithmetic + stall) + rows * panels * Cell::UV * 100 +
         (slices > 1 ? 1000 : 0);
}

// Each part has sums of its own for all weights: this many floats of them are too many.
constexpr int64_t kMostSums = 1 << 24;

int64_t plan(JrnnRun* run, int32_t threads, int32_t seats, int32_t backward) {
  int64_t floats = 0;
  with_cell(run->cell, [&](auto c) {
    using Cell = typename decltype(c)::type;
    const int64_t sums = backward ? (run->I + run->H) * Cell::G * run->H : 0;
    double best = 0;
    run->parts = run->slices = 0;
    for (int32_t parts = 1; parts <= threads && parts <= run->B; ++parts) {
      if (parts > 1 && parts * sums > kMostSums) break;
      const int64_t vectors = (run->H + W - 1) / W;
      int32_t slices = threads / parts;
      if (slices > vectors) slices = (int32_t)vectors;
      const double now = cost<Cell>(*run, parts, slices);
      if (run->parts == 0 || now < best) best = now, run->parts = parts, run->slices = slices;
    }
    if (run->slices > 1 && run->parts * run->slices > seats)
      run->slices = seats > run->parts ? seats / run->parts : 1;
    run->workers = run->parts * run->slices < seats ? run->parts * run->slices : seats;
    float* scratch = run->scratch;
    run->scratch = nullptr;
    floats = backward ? Backward<Cell>(*run, 0).layout() : Forward<Cell>(*run, 0).layout();
    run->scratch = scratch;
  });
  return floats;
}

// Every phase of a worker's members, and all workers meet after each.
template <class Pass>
void work(const JrnnRun& run, int32_t worker) {
  for (int number = 0; number < Pass::PHASES; ++number) {
    if (number) meet(run.barriers, run.workers);
    for (int32_t m = worker; m < run.parts * run.slices; m += run.workers)
      Pass(run, m).phase(number);
  }
}

void forward(const JrnnRun* run, int32_t worker) {
  with_cell(run->cell, [&](auto c) { work<Forward<typename decltype(c)::type>>(*run, worker); });
}

void backward(const JrnnRun* run, int32_t worker) {
  with_cell(run->cell, [&](auto c) { work<Backward<typename decltype(c)::type>>(*run, worker); });
}

constexpr JrnnKernels kernels = {gates, saved, plan, forward, backward};

}  // namespace

#define JRNN_NAME2(isa) jrnn_kernels_##isa
#define JRNN_NAME(isa) JRNN_NAME2(isa)
extern "C" const JrnnKernels* JRNN_NAME(JRNN_ISA)() { return &kernels; }
