// The handlers that XLA calls. They read buffers into a JrnnRun, request threads, and run the
// kernels of the selected instruction set. This file is compiled for the baseline instruction set.
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

constexpr size_t kHugePage = 2 << 20;

// Requests huge pages for a large buffer, including other data on its first page. Page faults for
// every 4 KiB of newly allocated memory can take longer than the kernel.
void request_huge_pages([[maybe_unused]] const float* p, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  if (!p || bytes < kHugePage / 8) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(p) + bytes - begin,
          MADV_HUGEPAGE);
#endif
}

// Reuses scratch memory between calls, because page faults of new memory take longer than most
// calls.
class ScratchPool {
 public:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  struct Buffer {
    std::unique_ptr<float, Free> data;
    size_t bytes;
  };

  // Returns a buffer of at least `bytes`, whose data is null if the allocation fails.
  Buffer acquire(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (size_t k = 0; k < unused_.size(); ++k) {
        if (unused_[k].bytes < bytes) continue;
        Buffer buffer = std::move(unused_[k]);
        unused_.erase(unused_.begin() + k);
        return buffer;
      }
    }
    const size_t alignment = bytes < kHugePage / 8 ? 4096 : kHugePage;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    Buffer buffer{nullptr, bytes};
    buffer.data.reset(static_cast<float*>(std::aligned_alloc(alignment, bytes)));
    request_huge_pages(buffer.data.get(), bytes);
    return buffer;
  }

  ScratchPool() { unused_.reserve(kMaxBuffers); }

  // Makes a buffer available to later calls. Frees it instead if it is large, and frees the oldest
  // unused buffer if there are too many.
  void release(Buffer buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!buffer.data || buffer.bytes > kMaxBytes) return;
    if (unused_.size() == kMaxBuffers) unused_.erase(unused_.begin());
    unused_.push_back(std::move(buffer));
  }

 private:
  static constexpr size_t kMaxBuffers = 4, kMaxBytes = 64 << 20;
  std::mutex mutex_;
  std::vector<Buffer> unused_;
};

ScratchPool& scratch_pool() {
  // Never destroyed, because a thread may still run when the process exits.
  static ScratchPool* pool = new ScratchPool;
  return *pool;
}

// A team of threads that run concurrently, because the kernels have barriers. Threads of XLA's pool
// may join the calling thread for 300 microseconds; then the team is closed, and threads that
// arrive later return at once. A busy pool therefore makes a call slower but never blocks it. If no
// thread joins in several calls in a row, for example because several CPU devices run concurrently,
// only some of the following calls request threads.
class ThreadTeam {
 public:
  // Runs f(worker) for 0 <= worker < n, where n = prepare(size of the team) is at most that size,
  // or 0 to run nothing. Neither function may throw.
  template <class Prepare, class F>
  static void run(ffi::ThreadPool& pool, int64_t max_threads, Prepare prepare, F f) {
    auto team = std::make_shared<ThreadTeam>();
    std::function<void(int32_t)> work = f;
    team->work_ = &work;
    const bool requests = max_threads > 1 && should_request_threads();
    for (int64_t k = 1; requests && k < max_threads; ++k) pool.Schedule([team] { team->join(); });
    if (requests) team->wait_for_threads(max_threads);
    const int32_t size = team->size_.exchange(kClosed);
    if (requests) failed_requests() = size > 1 ? 0 : failed_requests() + 1;
    team->workers_ = prepare(size);
    team->cores_.move_to_free_core();
    team->started_.store(true, std::memory_order_release);
    if (team->workers_ > 0) f(0);
    spin_until([&] { return team->finished_.load(std::memory_order_acquire) == size - 1; });
  }

 private:
  static constexpr int32_t kClosed = -(1 << 30);
  static constexpr int32_t kMaxFailedRequests = 8, kRetryInterval = 16;

  // The number of successive requests after which no thread joined.
  static std::atomic<int32_t>& failed_requests() {
    static std::atomic<int32_t> count{0};
    return count;
  }

  static bool should_request_threads() {
    static std::atomic<uint32_t> calls{0};
    return failed_requests() < kMaxFailedRequests || calls++ % kRetryInterval == 0;
  }

  void join() {
    // If its queue is full, the pool runs the function in the thread that schedules it.
    if (std::this_thread::get_id() == leader_) return;
    int32_t worker = size_.load();
    do {
      if (worker < 0) return;
    } while (!size_.compare_exchange_weak(worker, worker + 1));
    {
      std::lock_guard<std::mutex> lock(mutex_);
      joined_.notify_one();
    }
    spin_until([&] { return started_.load(std::memory_order_acquire); });
    if (worker < workers_) {
      cores_.move_to_free_core();
      (*work_)(worker);
    }
    finished_.fetch_add(1, std::memory_order_release);
  }

  // Waits until the team has `max_threads` threads, for at most 300 microseconds. Spins only for a
  // short time: the system may schedule a joining thread on the core of the waiting thread, where
  // it cannot run until the waiting thread sleeps.
  void wait_for_threads(int64_t max_threads) {
    const auto start = std::chrono::steady_clock::now();
    auto is_complete = [&] { return size_.load() >= max_threads; };
    while (!is_complete()) {
      if (std::chrono::steady_clock::now() > start + std::chrono::microseconds(20)) {
        std::unique_lock<std::mutex> lock(mutex_);
        joined_.wait_until(lock, start + std::chrono::microseconds(300), is_complete);
        return;
      }
      jrnn_relax();
    }
  }

  template <class F>
  static void spin_until(F condition) {
    for (int spins = 0; !condition(); ++spins)
      spins < JRNN_SPINS ? jrnn_relax() : std::this_thread::sleep_for(std::chrono::microseconds(1));
  }

  // The cores that the threads of a team use. The system may wake two threads on the same core, and
  // leave them there for longer than a call takes. A thread whose core is used by another thread of
  // the team moves to a free core that its affinity mask allows. The mask is restored afterwards.
  class Cores {
   public:
    void move_to_free_core() {
#if defined(__linux__)
      if (mark_used(sched_getcpu())) return;
      cpu_set_t allowed, others;
      if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
      CPU_ZERO(&others);
      for (int core = 0; core < kCores; ++core)
        if (CPU_ISSET(core, &allowed) && !used_[core].load()) CPU_SET(core, &others);
      if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
      sched_setaffinity(0, sizeof allowed, &allowed);
      mark_used(sched_getcpu());
#endif
    }

   private:
    static constexpr int kCores = 1024;  // size of a cpu_set_t

    // Returns false if the core was already marked.
    bool mark_used(int core) { return core < 0 || core >= kCores || !used_[core].exchange(true); }

    std::atomic<bool> used_[kCores]{};
  };

  const std::thread::id leader_ = std::this_thread::get_id();
  Cores cores_;
  std::atomic<int32_t> size_{1}, finished_{0};
  std::atomic<bool> started_{false};
  std::mutex mutex_;
  std::condition_variable joined_;
  int32_t workers_ = 0;
  std::function<void(int32_t)>* work_ = nullptr;
};

// Iterates over the operands of a call. An operand without elements is an absent array, read as
// null.
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

// Iterates over the results of a call, like Arguments, and requests huge pages for them.
class Results {
 public:
  explicit Results(ffi::RemainingRets rets) : rets_(rets) {}
  float* next() {
    auto buffer = rets_.get<ffi::AnyBuffer>(index_++);
    if (!buffer.has_value() || (*buffer)->element_count() == 0) return nullptr;
    auto* p = static_cast<float*>((*buffer)->untyped_data());
    request_huge_pages(p, (*buffer)->size_bytes());
    return p;
  }

 private:
  ffi::RemainingRets rets_;
  size_t index_ = 0;
};

// Reads the operands that the forward and the backward pass have in common.
ffi::Error read_inputs(ffi::RemainingArgs args, Arguments& inputs, JrnnRun& run) {
  auto xs = args.get<ffi::AnyBuffer>(2), w_hh = args.get<ffi::AnyBuffer>(4);
  if (!xs.has_value() || !w_hh.has_value() || xs->dimensions().size() != 3 ||
      w_hh->dimensions().size() != 2)
    return ffi::Error::InvalidArgument(
        "jrnn: xs must have shape [T, B, I], and w_hh shape [H, G*H]");
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
  run.h_reset = inputs.next<const float>();
  run.c_reset = inputs.next<const float>();
  return ffi::Error::Success();
}

ffi::Error out_of_memory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                    "jrnn: the scratch memory of the kernels cannot be allocated");
}

// Runs one pass: requests threads if the pass is not small, divides the work, and allocates scratch
// memory.
ffi::Error execute(ffi::ThreadPool& pool, JrnnRun run, bool backward) {
  const JrnnKernels* kernels = jrnn_kernels();
  const double flops = 2.0 * run.T * run.B * (run.I + run.H) * kernels->gates(run.cell) * run.H;
  const int64_t max_threads = flops < 1e6 || pool.num_threads() < 1 ? 1 : pool.num_threads();
  std::vector<JrnnBarrier> barriers(1 + max_threads);
  run.barriers = barriers.data();
  ScratchPool::Buffer scratch{nullptr, 0};
  auto prepare = [&](int32_t available) -> int32_t {
    const int64_t floats =
        kernels->plan(&run, static_cast<int32_t>(max_threads), available, backward);
    scratch = scratch_pool().acquire(static_cast<size_t>(floats) * sizeof(float));
    run.scratch = scratch.data.get();
    return run.scratch ? run.workers : 0;
  };
  auto run_kernel = [&](int32_t worker) {
    backward ? kernels->backward(&run, worker) : kernels->forward(&run, worker);
  };
  ThreadTeam::run(pool, max_threads, prepare, run_kernel);
  if (!run.scratch) return out_of_memory();
  scratch_pool().release(std::move(scratch));
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, int32_t cell, bool reverse, ffi::RemainingArgs args,
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
  if (kernels->gates(cell) == 0)
    return ffi::Error::InvalidArgument("jrnn: the number of the cell is unknown");
  if (run.saved && rets.get<ffi::AnyBuffer>(3).value()->dimensions()[2] != kernels->saved(cell))
    return ffi::Error::InvalidArgument("jrnn: `saved` must have shape [T, B, saved arrays, H]");
  // This result is not written. XLA later reuses its memory, which gets huge pages here.
  outputs.next();
  return execute(pool, run, false);
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

ffi::Error Backward(ffi::ThreadPool pool, int32_t cell, bool reverse, int32_t groups,
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
  run.d_h_reset = outputs.next();
  run.d_c_reset = outputs.next();

  // The batch consists of groups of sequences, each with its own gradients of the parameters.
  run.B /= groups;
  const int64_t gates = jrnn_kernels()->gates(cell), saved = jrnn_kernels()->saved(cell);
  auto advance = [](auto*& p, int64_t by) {
    if (p) p += by;
  };
  for (int32_t g = 0; g < groups; ++g) {
    if (ffi::Error error = execute(pool, run, true); error.failure()) return error;
    advance(run.lengths, run.B);
    advance(run.resets, run.B);
    advance(run.xs, run.B * run.I);
    advance(run.d_xs, run.B * run.I);
    advance(run.saved, run.B * saved * run.H);
    for (float** p : {&run.ys, &run.d_h0, &run.d_c0, &run.d_h_reset, &run.d_c_reset})
      advance(*p, run.B * run.H);
    for (const float** p : {&run.h0, &run.c0, &run.h_reset, &run.c_reset, &run.d_ys,
                            &run.d_h_last, &run.d_c_last})
      advance(*p, run.B * run.H);
    advance(run.d_w_ih, run.I * gates * run.H);
    advance(run.d_w_hh, run.H * gates * run.H);
    advance(run.d_b, gates * run.H);
    for (auto& d_extra : run.d_extra) advance(d_extra, run.H);
  }
  return ffi::Error::Success();
} catch (const std::bad_alloc&) {
  return out_of_memory();
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
