// All kernels, compiled once for each instruction set with -DJRNN_ISA=<name>. This file and its
// headers must not use templates or inline functions of the standard library. The linker keeps one
// copy of each, which may contain instructions that an older CPU does not support.
#include "backward.h"
#include "forward.h"

namespace {

template <class Cell>
struct CellType {
  using type = Cell;
};

// Calls f(CellType<Cell>{}) for a number of JrnnCell; does nothing for an unknown number.
template <class F>
void with_cell(int32_t cell, F&& f) {
  switch (cell) {
    case kLstm: return f(CellType<Lstm<false, false>>{});
    case kLstmPeepholes: return f(CellType<Lstm<true, false>>{});
    case kLstmCoupled: return f(CellType<Lstm<false, true>>{});
    case kLstmPeepholesCoupled: return f(CellType<Lstm<true, true>>{});
    case kGru: return f(CellType<Gru>{});
    case kElmanTanh: return f(CellType<Elman<Activation::kTanh>>{});
    case kElmanRelu: return f(CellType<Elman<Activation::kRelu>>{});
    case kElmanSigmoid: return f(CellType<Elman<Activation::kSigmoid>>{});
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

// A rough estimate of the CPU cycles of a step: the matrix products, which are limited by
// arithmetic or by reading the weights; the gate arithmetic; and the barrier at the end of the
// step.
template <class Cell>
double cycles_per_step(const JrnnRun& run, int32_t parts, int32_t slices) {
  using S = Sizes<Cell>;
  constexpr int MAX_ROWS = tile_rows(S::CV);
  const S sizes(run);
  const double rows = (double)((run.B + parts - 1) / parts);
  const double panels = (double)((sizes.panels + slices - 1) / slices);
  const double inner = (double)(run.I + run.H);
  const double bytes = panels * inner * S::CV * W * sizeof(float);
  const double bytes_per_cycle = bytes > 900e3 ? 10 : bytes > 24e3 ? 22 : 64;
  const double tiles = (double)(((int64_t)rows + MAX_ROWS - 1) / MAX_ROWS);
  const double arithmetic = rows * S::CV * (W == 16 ? 1.0 : 0.5);
  const double reading = S::CV * W * sizeof(float) / bytes_per_cycle;
  const double overlap = arithmetic / tiles;  // arithmetic while the weights are read
  const double stall = reading > overlap ? reading - overlap : 0;
  return panels * inner * (arithmetic + stall) + rows * panels * Cell::UV * 100 +
         (slices > 1 ? 1000 : 0);
}

// Each part has its own sums of weight gradients. kMaxSumFloats limits their total size in floats.
constexpr int64_t kMaxSumFloats = 1 << 24;

int64_t plan(JrnnRun* run, int32_t threads, int32_t available, int32_t backward) {
  int64_t floats = 0;
  with_cell(run->cell, [&](auto c) {
    using Cell = typename decltype(c)::type;
    const int64_t sums = backward ? (run->I + run->H) * Cell::G * run->H : 0;
    double best = 0;
    run->parts = run->slices = 0;
    for (int32_t parts = 1; parts <= threads && parts <= run->B; ++parts) {
      if (parts > 1 && parts * sums > kMaxSumFloats) break;
      const int64_t vectors = (run->H + W - 1) / W;
      int32_t slices = threads / parts;
      if (slices > vectors) slices = (int32_t)vectors;
      const double cycles = cycles_per_step<Cell>(*run, parts, slices);
      if (run->parts == 0 || cycles < best) best = cycles, run->parts = parts, run->slices = slices;
    }
    if (run->slices > 1 && run->parts * run->slices > available)
      run->slices = available > run->parts ? available / run->parts : 1;
    run->workers = run->parts * run->slices < available ? run->parts * run->slices : available;
    float* scratch = run->scratch;
    run->scratch = nullptr;
    floats = backward ? Backward<Cell>(*run, 0).layout() : Forward<Cell>(*run, 0).layout();
    run->scratch = scratch;
  });
  return floats;
}

// Runs all phases of the work items of a worker, with a barrier between phases.
template <class Pass>
void work(const JrnnRun& run, int32_t worker) {
  for (int number = 0; number < Pass::PHASES; ++number) {
    if (number) wait_at_barrier(run.barriers, run.workers);
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
