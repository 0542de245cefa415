// Plain loops, compiled once for each width of vector registers and chosen when they run: a build serves every x86 CPU,
// and no file needs flags of its own.
#pragma once
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__GNUC__)  // clang too
#define NFTK_X86 1
#else
#define NFTK_X86 0
#endif

// For the loops, a lambda, and for every function that they call: only what is inlined gets the wider registers.
#define NFTK_INLINE __attribute__((always_inline))

namespace nftk {

enum class VectorWidth { baseline, avx2, avx512 };

// The widest that this CPU and its operating system have.
inline VectorWidth widest_vectors() {
#if NFTK_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    return wide ? VectorWidth::avx512 : VectorWidth::avx2;
  }
#endif
  return VectorWidth::baseline;
}

inline const char* name(VectorWidth width) {
  return width == VectorWidth::avx512 ? "avx512" : width == VectorWidth::avx2 ? "avx2" : "baseline";
}

#if NFTK_X86
template <class Loops> __attribute__((noinline, target("avx2,fma"))) void run_avx2(const Loops& loops) { loops(); }
template <class Loops>
__attribute__((noinline, target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))) void run_avx512(const Loops& loops) {
  loops();
}
#endif

// Runs `loops`, compiled for a width that this CPU has.
template <class Loops> void with_vectors(VectorWidth width, const Loops& loops) {
  if (width > widest_vectors()) throw std::invalid_argument(std::string("this CPU has no ") + name(width));
#if NFTK_X86
  if (width == VectorWidth::avx512) return run_avx512(loops);
  if (width == VectorWidth::avx2) return run_avx2(loops);
#endif
  loops();
}

}  // namespace nftk
