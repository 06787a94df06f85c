// The handlers that XLA calls: they read buffers into a JrnnRun, gather a team of threads, and run
// the kernels of the best instruction set. Compiled for the oldest machine.
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "api.h"
#include "dispatch.h"
#include "handlers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr size_t kLargePage = 2 << 20;

// Asks for large pages for all of the memory, where the system gives them on request: a fault for
// each 4 KiB of fresh memory can cost more than the layer. What shares a page with it has its part.
void advise([[maybe_unused]] const float* p, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  if (!p || bytes < kLargePage / 8) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p) / kLargePage * kLargePage;
  madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(p) + bytes - begin,
          MADV_HUGEPAGE);
#endif
}

// Scratch memory is kept from call to call: fresh pages cost more than most calls compute.
class Pool {
 public:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  using Block = std::unique_ptr<float, Free>;
  struct Held {
    Block block;
    size_t bytes;
  };

  Held take(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (size_t k = 0; k < kept_.size(); ++k) {
        if (kept_[k].bytes < bytes) continue;
        Held held = std::move(kept_[k]);
        kept_.erase(kept_.begin() + k);
        return held;
      }
    }
    const size_t alignment = bytes < kLargePage / 8 ? 4096 : kLargePage;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    Held held{Block(static_cast<float*>(std::aligned_alloc(alignment, bytes))), bytes};
    advise(held.block.get(), bytes);
    return held;
  }

  Pool() { kept_.reserve(kMostBlocks); }

  void give(Held held) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!held.block || held.bytes > kMostBytes) return;
    if (kept_.size() == kMostBlocks) kept_.erase(kept_.begin());
    kept_.push_back(std::move(held));
  }

 private:
  static constexpr size_t kMostBlocks = 4, kMostBytes = 64 << 20;
  std::mutex mutex_;
  std::vector<Held> kept_;
};

Pool& pool() {
  static Pool* pool = new Pool;  // never destroyed: a thread may still run when the process ends
  return *pool;
}

// Threads that run at the same time, since the kernels make them wait for each other. Those of the
// runtime's pool that come within a moment take a seat; then the door closes, and who is late goes.
// So a busy pool costs speed and never hangs. While it stays busy, as where several devices of one
// CPU run at once, it is asked now and then alone.
class Team {
 public:
  // Runs f(worker) for 0 <= worker < n, with n = prepare(seats taken) at most the seats taken, and 0
  // to run nothing. Neither may throw.
  template <class Prepare, class F>
  static void run(ffi::ThreadPool& threads, int64_t most, Prepare prepare, F f) {
    auto team = std::make_shared<Team>();
    std::function<void(int32_t)> work = f;
    team->work_ = &work;
    const bool asking = most > 1 && worth_asking();
    for (int64_t k = 1; asking && k < most; ++k) threads.Schedule([team] { team->join(); });
    if (asking) team->wait_for_seats(most);
    const int32_t seats = team->seats_.exchange(kClosed);
    if (asking) refusals() = seats > 1 ? 0 : refusals() + 1;
    team->workers_ = prepare(seats);
    team->cores_.claim();
    team->go_.store(true, std::memory_order_release);
    if (team->workers_ > 0) f(0);
    spin([&] { return team->done_.load(std::memory_order_acquire) == seats - 1; });
  }

 private:
  static constexpr int32_t kClosed = -(1 << 30);
  static constexpr int32_t kPatience = 8, kRarely = 16;

  // How often in a row nobody has come.
  static std::atomic<int32_t>& refusals() {
    static std::atomic<int32_t> count{0};
    return count;
  }

  static bool worth_asking() {
    static std::atomic<uint32_t> calls{0};
    return refusals() < kPatience || calls++ % kRarely == 0;
  }

  void join() {
    // A pool whose queue is full runs what it is given at once, in the thread that gave it.
    if (std::this_thread::get_id() == leader_) return;
    int32_t seat = seats_.load();
    do {
      if (seat < 0) return;
    } while (!seats_.compare_exchange_weak(seat, seat + 1));
    {
      std::lock_guard<std::mutex> lock(mutex_);
      taken_.notify_one();
    }
    spin([&] { return go_.load(std::memory_order_acquire); });
    if (seat < workers_) {
      cores_.claim();
      (*work_)(seat);
    }
    done_.fetch_add(1, std::memory_order_release);
  }

  // A thread that is woken may be put behind this one on the same core, and stay there for as long
  // as this one spins; so it sleeps soon.
  void wait_for_seats(int64_t most) {
    const auto start = std::chrono::steady_clock::now();
    auto complete = [&] { return seats_.load() >= most; };
    while (!complete()) {
      if (std::chrono::steady_clock::now() > start + std::chrono::microseconds(20)) {
        std::unique_lock<std::mutex> lock(mutex_);
        taken_.wait_until(lock, start + std::chrono::microseconds(300), complete);
        return;
      }
      jrnn_relax();
    }
  }

  template <class F>
  static void spin(F done) {
    for (int spins = 0; !done(); ++spins)
      spins < JRNN_SPINS ? jrnn_relax() : std::this_thread::sleep_for(std::chrono::microseconds(1));
  }

  // The system may wake two threads on one core, and leave them there for longer than a call takes.
  // Who finds its core taken is moved to one that is not, if it may run on one, and is then as free
  // to be moved as before.
  class Cores {
   public:
    void claim() {
#if defined(__linux__)
      if (take(sched_getcpu())) return;
      cpu_set_t allowed, others;
      if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
      CPU_ZERO(&others);
      for (int core = 0; core < kCores; ++core)
        if (CPU_ISSET(core, &allowed) && !taken_[core].load()) CPU_SET(core, &others);
      if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
      sched_setaffinity(0, sizeof allowed, &allowed);
      take(sched_getcpu());
#endif
    }

   private:
    static constexpr int kCores = 1024;  // of a cpu_set_t

    bool take(int core) { return core < 0 || core >= kCores || !taken_[core].exchange(true); }

    std::atomic<bool> taken_[kCores]{};
  };

  const std::thread::id leader_ = std::this_thread::get_id();
  Cores cores_;
  std::atomic<int32_t> seats_{1}, done_{0};
  std::atomic<bool> go_{false};
  std::mutex mutex_;
  std::condition_variable taken_;
  int32_t workers_ = 0;
  std::function<void(int32_t)>* work_ = nullptr;
};

// Steps through the buffers of a call; one without elements stands for an absent array.
class Arguments {
 public:
  explicit Arguments(ffi::RemainingArgs args) : args_(args) {}
  template <class T>
  T* next() {
    auto buffer = args_.get<ffi::AnyBuffer>(index_++);
    if (!buffer.has_value() || buffer->element_count() == 0) return nullptr;
    return static_cast<T*>(buffer->untyped_data());
  }

 private:
  ffi::RemainingArgs args_;
  size_t index_ = 0;
};

class Results {
 public:
  explicit Results(ffi::RemainingRets rets) : rets_(rets) {}
  float* next() {
    auto buffer = rets_.get<ffi::AnyBuffer>(index_++);
    if (!buffer.has_value() || (*buffer)->element_count() == 0) return nullptr;
    auto* p = static_cast<float*>((*buffer)->untyped_data());
    advise(p, (*buffer)->size_bytes());
    return p;
  }

 private:
  ffi::RemainingRets rets_;
  size_t index_ = 0;
};

// What both passes are given first.
ffi::Error read_inputs(ffi::RemainingArgs args, Arguments& inputs, JrnnRun& run) {
  auto xs = args.get<ffi::AnyBuffer>(2), w_hh = args.get<ffi::AnyBuffer>(4);
  if (!xs.has_value() || !w_hh.has_value() || xs->dimensions().size() != 3 ||
      w_hh->dimensions().size() != 2)
    return ffi::Error::InvalidArgument("jrnn: xs must be [T, B, I] and w_hh [H, G*H]");
  run.T = xs->dimensions()[0];
  run.B = run.stride = xs->dimensions()[1];
  run.I = xs->dimensions()[2];
  run.H = w_hh->dimensions()[0];
  run.lengths = inputs.next<const int32_t>();
  run.resets = inputs.next<const uint8_t>();
  run.xs = inputs.next<const float>();
  run.w_ih = inputs.next<const float>();
  run.w_hh = inputs.next<const float>();
  run.b = inputs.next<const float>();
  for (auto& extra : run.extra) extra = inputs.next<const float>();
  run.h0 = inputs.next<const float>();
  run.c0 = inputs.next<const float>();
  run.h_initial = inputs.next<const float>();
  run.c_initial = inputs.next<const float>();
  return ffi::Error::Success();
}

ffi::Error no_memory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jrnn: no memory for the kernels to work in");
}

ffi::Error execute(ffi::ThreadPool& threads, JrnnRun run, bool backward) {
  const JrnnKernels* kernels = jrnn_kernels();
  const double work = 2.0 * run.T * run.B * (run.I + run.H) * kernels->gates(run.cell) * run.H;
  const int64_t most = work < 1e6 || threads.num_threads() < 1 ? 1 : threads.num_threads();
  std::vector<JrnnBarrier> barriers(1 + most);
  run.barriers = barriers.data();
  Pool::Held scratch{nullptr, 0};
  auto prepare = [&](int32_t seats) -> int32_t {
    const int64_t floats = kernels->plan(&run, static_cast<int32_t>(most), seats, backward);
    scratch = pool().take(static_cast<size_t>(floats) * sizeof(float));
    run.scratch = scratch.block.get();
    return run.scratch ? run.workers : 0;
  };
  auto body = [&](int32_t worker) {
    backward ? kernels->backward(&run, worker) : kernels->forward(&run, worker);
  };
  Team::run(threads, most, prepare, body);
  if (!run.scratch) return no_memory();
  pool().give(std::move(scratch));
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool threads, int32_t cell, bool reverse, ffi::RemainingArgs args,
                   ffi::RemainingRets rets) try {
  const JrnnKernels* kernels = jrnn_kernels();
  JrnnRun run{};
  run.cell = cell;
  run.reverse = reverse;
  Arguments inputs(args);
  if (ffi::Error error = read_inputs(args, inputs, run); error.failure()) return error;
  Results outputs(rets);
  run.ys = outputs.next();
  run.h_last = outputs.next();
  run.c_last = outputs.next();
  run.saved = outputs.next();
  if (kernels->gates(cell) == 0) return ffi::Error::InvalidArgument("jrnn: there is no such cell");
  if (run.saved && rets.get<ffi::AnyBuffer>(3).value()->dimensions()[2] != kernels->saved(cell))
    return ffi::Error::InvalidArgument("jrnn: `saved` must be [T, B, saved arrays of the cell, H]");
  outputs.next();  // room: not written, only asked for in large pages
  return execute(threads, run, false);
} catch (const std::bad_alloc&) {
  return no_memory();
}

ffi::Error Backward(ffi::ThreadPool threads, int32_t cell, bool reverse, int32_t groups,
                    ffi::RemainingArgs args, ffi::RemainingRets rets) try {
  JrnnRun run{};
  run.cell = cell;
  run.reverse = reverse;
  Arguments inputs(args);
  if (ffi::Error error = read_inputs(args, inputs, run); error.failure()) return error;
  run.ys = inputs.next<float>();
  run.saved = inputs.next<float>();
  run.d_ys = inputs.next<const float>();
  run.d_h_last = inputs.next<const float>();
  run.d_c_last = inputs.next<const float>();
  Results outputs(rets);
  run.d_xs = outputs.next();
  run.d_w_ih = outputs.next();
  run.d_w_hh = outputs.next();
  run.d_b = outputs.next();
  for (auto& d_extra : run.d_extra) d_extra = outputs.next();
  run.d_h0 = outputs.next();
  run.d_c0 = outputs.next();
  run.d_h_initial = outputs.next();
  run.d_c_initial = outputs.next();

  // Each group of sequences has gradients of the parameters of its own.
  run.B /= groups;
  const int64_t gates = jrnn_kernels()->gates(cell), saved = jrnn_kernels()->saved(cell);
  auto move = [](auto*& p, int64_t by) {
    if (p) p += by;
  };
  for (int32_t g = 0; g < groups; ++g) {
    if (ffi::Error error = execute(threads, run, true); error.failure()) return error;
    move(run.lengths, run.B);
    move(run.resets, run.B);
    move(run.xs, run.B * run.I);
    move(run.d_xs, run.B * run.I);
    move(run.saved, run.B * saved * run.H);
    for (float** p : {&run.ys, &run.d_h0, &run.d_c0, &run.d_h_initial, &run.d_c_initial})
      move(*p, run.B * run.H);
    for (const float** p : {&run.h0, &run.c0, &run.h_initial, &run.c_initial, &run.d_ys,
                            &run.d_h_last, &run.d_c_last})
      move(*p, run.B * run.H);
    move(run.d_w_ih, run.I * gates * run.H);
    move(run.d_w_hh, run.H * gates * run.H);
    move(run.d_b, gates * run.H);
    for (auto& d_extra : run.d_extra) move(d_extra, run.H);
  }
  return ffi::Error::Success();
} catch (const std::bad_alloc&) {
  return no_memory();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jrnn_forward, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int32_t>("cell")
                                  .Attr<bool>("reverse")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jrnn_backward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int32_t>("cell")
                                  .Attr<bool>("reverse")
                                  .Attr<int32_t>("groups")
                                  .RemainingArgs()
                                  .RemainingRets());

const JrnnHandler jrnn_handlers[] = {
    {"jrnn_forward", reinterpret_cast<void*>(jrnn_forward)},
    {"jrnn_backward", reinterpret_cast<void*>(jrnn_backward)},
    {nullptr, nullptr},
};
