// Runs every kernel, forward and backward. `make sanitize` compiles and runs this file for several
// instruction sets, with AddressSanitizer and UndefinedBehaviorSanitizer, and with ThreadSanitizer.
// Each array is a separate allocation of its exact size, so that AddressSanitizer detects accesses
// out of bounds.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "../../jrnn/kernels/kernels.cc"

namespace {

std::mt19937 generator(0);

struct Arrays {
  std::vector<std::vector<float>> buffers;

  float* random(int64_t count) {
    float* values = nan(count);
    std::normal_distribution<float> normal;
    for (int64_t k = 0; k < count; ++k) values[k] = 0.5f * normal(generator);
    return values;
  }

  float* nan(int64_t count) {
    std::vector<float> values(count, std::nanf(""));
    buffers.push_back(std::move(values));
    buffers.back().shrink_to_fit();
    return buffers.back().data();
  }
};

// Calls the kernel in one thread for each worker; worker 0 is the calling thread.
void run_workers(const JrnnRun& run, void (*kernel)(const JrnnRun*, int32_t)) {
  std::vector<std::thread> threads;
  for (int32_t m = 1; m < run.workers; ++m) threads.emplace_back(kernel, &run, m);
  kernel(&run, 0);
  for (std::thread& thread : threads) thread.join();
}

struct Shape {  // number of steps, batch size, input size, hidden size
  int64_t T, B, I, H;
};

// Runs a cell forward without residuals, forward with residuals, and backward. Returns the sum of
// the absolute values of all results. All of them are NaN before the runs, so the sum is not finite
// if the kernels do not write an element.
double sum_of_results(int32_t cell, Shape shape, bool reverse, bool lengths, bool resets,
                      int32_t threads) {
  const int64_t G = kernels.gates(cell), S = kernels.saved(cell);
  const int64_t T = shape.T, B = shape.B, I = shape.I, H = shape.H;
  const bool cell_state = cell <= kLstmPeepholesCoupled;
  generator.seed(7);
  Arrays in, out;
  std::vector<int32_t> length(B);
  std::vector<uint8_t> reset(T * B);
  for (int32_t& n : length) n = (int32_t)(generator() % (T + 2));
  for (uint8_t& r : reset) r = generator() % 3 == 0;
  auto state_in = [&] { return cell_state ? in.random(B * H) : nullptr; };
  auto state_out = [&] { return cell_state ? out.nan(B * H) : nullptr; };

  JrnnRun run{};
  run.cell = cell, run.reverse = reverse;
  run.T = T, run.B = run.stride = B, run.I = I, run.H = H;
  run.lengths = lengths ? length.data() : nullptr;
  run.resets = resets ? reset.data() : nullptr;
  run.xs = in.random(T * B * I), run.w_ih = in.random(I * G * H), run.w_hh = in.random(H * G * H);
  run.b = in.random(G * H);
  const int first = cell == kLstmPeepholesCoupled ? 1 : 0;
  // p_i, p_f and p_o, without p_i if the gates are coupled; or b_hn.
  const int extras = cell == kLstmPeepholes || cell == kLstmPeepholesCoupled ? 3 : cell == kGru;
  for (int e = first; e < extras; ++e) run.extra[e] = in.random(H), run.d_extra[e] = out.nan(H);
  run.h0 = in.random(B * H), run.c0 = state_in();
  if (resets) run.h_reset = in.random(B * H), run.c_reset = state_in();
  run.ys = out.nan(T * B * H), run.h_last = out.nan(B * H), run.c_last = state_out();

  auto run_one = [&](bool backward) {
    run.scratch = nullptr;
    // The number of threads that can run now, from 1 to `threads`.
    const int32_t available = 1 + (int32_t)(generator() % threads);
    const int64_t floats = kernels.plan(&run, threads, available, backward);
    void* scratch = std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    run.scratch = (float*)scratch;
    std::vector<JrnnBarrier> barriers(1 + run.parts);
    run.barriers = barriers.data();
    run_workers(run, backward ? kernels.backward : kernels.forward);
    std::free(scratch);
  };
  run_one(false);
  run.saved = S ? out.nan(T * B * S * H) : nullptr;  // zeros on padding
  run_one(false);
  run.d_ys = in.random(T * B * H), run.d_h_last = in.random(B * H), run.d_c_last = state_in();
  run.d_xs = out.nan(T * B * I), run.d_w_ih = out.nan(I * G * H);
  run.d_w_hh = out.nan(H * G * H), run.d_b = out.nan(G * H);
  run.d_h0 = out.nan(B * H), run.d_c0 = state_out();
  if (resets) run.d_h_reset = out.nan(B * H), run.d_c_reset = state_out();
  run_one(true);

  double total = 0;
  for (const auto& values : out.buffers)
    for (float value : values) total += std::fabs(value);
  return total;
}

}  // namespace

int main() {
  const Shape shapes[] = {{1, 1, 1, 1},  {4, 3, 5, 13}, {5, 7, 9, 16},  {3, 2, 1, 33},
                          {9, 1, 8, 40}, {6, 5, 3, 17}, {2, 40, 4, 70}, {3, 130, 20, 65}};
  int runs = 0;
  for (const Shape& shape : shapes)
    for (int32_t cell = kLstm; cell <= kElmanSigmoid; ++cell)
      for (int options = 0; options < 8; ++options)  // bits: reverse, lengths, resets
        for (int32_t threads = 1; threads <= 3; ++threads) {
          const double total =
              sum_of_results(cell, shape, options & 1, options & 2, options & 4, threads);
          if (!std::isfinite(total)) {
            std::printf("cell %d, H %d, options %d, threads %d: a result is not finite\n", cell,
                        (int)shape.H, options, threads);
            return 1;
          }
          ++runs;
        }
  std::printf("%d runs of forward, forward with residuals, and backward\n", runs);
}
