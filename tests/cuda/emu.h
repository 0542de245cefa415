// The engine that runs a CUDA kernel on a CPU: blocks in turn, the threads of a block as fibers of one host thread,
// which switch only at barriers and warp operations. x86-64, Linux, g++. README.md says what it can show.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

namespace emu {

struct Error : std::runtime_error {
  using runtime_error::runtime_error;
};

// A cp.async under way.
struct Copy {
  void* dst;
  const void* src;
  unsigned bytes, used;
};

enum class State { ready, at_barrier, in_warp_operation, exited };

struct Thread {
  unsigned id;
  void* stack;
  State state;
  const char* file;
  int line;
  void* argument;               // of the warp operation
  std::vector<Copy> copies;     // issued, not yet visible
  std::vector<size_t> groups;   // how many of `copies` each committed group ends at
};

// Saves the callee-saved registers and the stack pointer in *save, and goes on from `load`.
__attribute__((naked, noinline)) inline void switch_stack(void** /*save: rdi*/, void* /*load: rsi*/) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15; mov %rsp, (%rdi);"
      "mov %rsi, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

class Engine {
 public:
  uint64_t seed = 0;  // 0: ascending order; otherwise blocks, warps and lanes are shuffled at every barrier
  std::map<const void*, size_t> shared_limit;  // what cudaFuncSetAttribute has asked for
  size_t launches = 0;

  Thread* current = nullptr;
  dim3 grid, block_size;
  uint3 block{};

  void launch(const void* kernel, dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& body) {
    ++launches;
    const size_t limit = shared_limit.count(kernel) ? shared_limit[kernel] : 48 << 10;
    if (shared_bytes > limit)
      throw Error(std::to_string(shared_bytes) + " bytes of shared memory, limit " + std::to_string(limit));
    prepare(blocks, threads, shared_bytes);
    body_ = &body;
    std::vector<unsigned> order(blocks.x);
    for (unsigned i = 0; i < blocks.x; ++i) order[i] = i;
    shuffle(order);
    for (unsigned i : order) {
      block = {i, 0, 0};
      run_block();
      if (!error_.empty()) throw Error(std::exchange(error_, ""));
    }
  }

  unsigned char* shared() const { return shared_; }
  unsigned lane() const { return current->id % 32; }

  [[noreturn]] void fail(const std::string& what) { throw Error(where() + what); }

  // Global memory is what a test says it is.
  void allow(const void* from, size_t bytes, bool writable) { ranges_.push_back({address(from), bytes, writable}); }
  void forbid_all() { ranges_.clear(); }
  void check_global(const void* p, size_t bytes, bool writing) {
    for (const Range& r : ranges_)
      if (address(p) >= r.from && address(p) + bytes <= r.from + r.bytes && (r.writable || !writing)) return;
    fail(std::string(writing ? "write" : "read") + " outside of the arrays");
  }
  void check_shared(const void* p, size_t bytes) {
    if (p < shared_ || static_cast<const unsigned char*>(p) + bytes > shared_ + shared_bytes_)
      fail("outside of shared memory");
  }

  void barrier(const char* file, int line) { wait(State::at_barrier, file, line); }

  // The 32 lanes meet here, each with its own argument; the last to come runs combine(all arguments).
  template <class A, class F> void collective(A& argument, F combine, const char* file, int line) {
    Thread* lanes = &threads_[current->id / 32 * 32];
    current->argument = &argument;
    unsigned& waiting = waiting_[current->id / 32];
    if (++waiting < 32) return wait(State::in_warp_operation, file, line);
    A* arguments[32];
    for (unsigned i = 0; i < 32; ++i) {
      if (i != lane() && (lanes[i].line != line || strcmp(lanes[i].file, file)))
        fail("warp operation at line " + std::to_string(line) + " meets another: " + describe(lanes[i]));
      arguments[i] = static_cast<A*>(lanes[i].argument);
    }
    combine(arguments);
    waiting = 0;
    for (unsigned i = 0; i < 32; ++i) lanes[i].state = State::ready;
  }

 private:
  struct Range {
    uintptr_t from;
    size_t bytes;
    bool writable;
  };
  static constexpr size_t STACK = 64 << 10, PAGE = 4 << 10, ARENA = 256 << 10, MOST_THREADS = 1024;

  const std::function<void()>* body_ = nullptr;
  void* main_ = nullptr;
  unsigned char *stacks_ = nullptr, *arena_ = nullptr, *shared_ = nullptr;
  size_t shared_bytes_ = 0;
  std::vector<Thread> threads_;
  std::vector<unsigned> waiting_, warp_order_, lane_order_;
  std::vector<Range> ranges_;
  std::mt19937_64 random_;
  std::string error_;

  static uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }
  void shuffle(std::vector<unsigned>& order) {
    if (seed) std::shuffle(order.begin(), order.end(), random_);
  }
  void wait(State state, const char* file, int line) {
    current->state = state, current->file = file, current->line = line;
    switch_stack(&current->stack, main_);
  }
  std::string where() const {
    return "block " + std::to_string(block.x) + " thread " + std::to_string(current->id) + ": ";
  }
  static std::string describe(const Thread& t) {
    static const char* names[] = {"running", "at __syncthreads, line ", "at a warp operation, line ", "exited"};
    const bool stands = t.state == State::at_barrier || t.state == State::in_warp_operation;
    return names[int(t.state)] + (stands ? std::to_string(t.line) : "");
  }

  static void entry();
  void prepare(dim3 blocks, dim3 threads, size_t shared_bytes);
  void run_block();
};

inline Engine engine;

inline void Engine::entry() {
  try {
    (*engine.body_)();
  } catch (const std::exception& e) {
    engine.error_ = e.what();
  }
  engine.wait(State::exited, "", 0);
}

inline void Engine::prepare(dim3 blocks, dim3 threads, size_t shared_bytes) {
  grid = blocks, block_size = threads;
  if (threads.x % 32 || threads.x > MOST_THREADS || threads.y * threads.z * blocks.y * blocks.z != 1)
    throw Error("the engine knows one dimension, and whole warps only");
  const auto map = [](size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Error("no memory for the engine");
    return static_cast<unsigned char*>(p);
  };
  if (!stacks_) {
    stacks_ = map(MOST_THREADS * STACK);
    for (size_t i = 0; i < MOST_THREADS; ++i) mprotect(stacks_ + i * STACK, PAGE, PROT_NONE);
    arena_ = map(ARENA + PAGE);
    mprotect(arena_ + ARENA, PAGE, PROT_NONE);  // an access past the end of shared memory faults
  }
  shared_bytes_ = (shared_bytes + 127) / 128 * 128;
  if (shared_bytes_ > ARENA) throw Error("too much shared memory");
  shared_ = arena_ + ARENA - shared_bytes_;
  random_.seed(seed);
  threads_.assign(threads.x, {});
  waiting_.assign(threads.x / 32, 0);
  warp_order_.resize(threads.x / 32);
  for (unsigned i = 0; i < warp_order_.size(); ++i) warp_order_[i] = i;
  lane_order_.resize(32);
  for (unsigned i = 0; i < 32; ++i) lane_order_[i] = i;
}

inline void Engine::run_block() {
  memset(shared_, 0xff, shared_bytes_);  // NaN in every floating format, -1 in integers
  for (unsigned i = 0; i < threads_.size(); ++i) {
    // six registers, the entry, and a null return address
    void** top = reinterpret_cast<void**>(stacks_ + (i + 1) * STACK) - 8;
    std::fill(top, top + 8, nullptr);
    top[6] = reinterpret_cast<void*>(&Engine::entry);
    threads_[i] = {i, top, State::ready, "", 0, nullptr, {}, {}};
  }
  std::fill(waiting_.begin(), waiting_.end(), 0);
  for (;;) {
    for (Thread& t : threads_) t.state = State::ready;
    shuffle(warp_order_);
    shuffle(lane_order_);
    for (unsigned warp : warp_order_) {
      for (bool moved = true; moved;) {
        moved = false;
        for (unsigned lane : lane_order_) {
          current = &threads_[warp * 32 + lane];
          if (current->state != State::ready) continue;
          moved = true;
          switch_stack(&main_, current->stack);
          if (!error_.empty()) return;
        }
      }
    }
    // every fiber has stopped: either all have exited, or all wait at one and the same barrier
    const Thread& first = threads_[0];
    for (Thread& t : threads_)
      if (t.state != first.state || t.line != first.line || t.state == State::in_warp_operation) {
        current = &t;
        error_ = where() + "barrier divergence: " + describe(t) + ", while thread 0 is " + describe(first);
        return;
      }
    if (first.state == State::exited) return;
  }
}

}  // namespace emu
