// The PTX instructions that the kernels use, one wrapper each, and the few spellings that differ where the kernels run
// on a CPU for tests: there, ptx_host.h of tests/cuda has the same names.
#pragma once
#ifndef __CUDACC__
#include "ptx_host.h"
#else
#include <cuda_runtime.h>

#include <cstdint>

#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

namespace nftk {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// An input: never written while the kernel runs.
template <class T> __device__ __forceinline__ T load(const T* p) { return __ldg(p); }
// The result.
template <class T> __device__ __forceinline__ T reload(const T* p) { return *p; }
template <class T> __device__ __forceinline__ void store(T* p, T value) { *p = value; }

// Starts copying BYTES (4, 8 or 16) to shared memory: `used` bytes of src, then zeros.
template <int BYTES> __device__ __forceinline__ void cp_async(void* dst, const void* src, int used) {
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(used)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(dst)), "l"(src), "n"(BYTES),
                 "r"(used)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups are under way.
template <int N> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// The nearest TF32 value, ties away from zero, as the bits of a float.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// The nearest BF16 values, ties to even; `low` in the lower half.
__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// Fragments are those of the PTX ISA, "Matrix fragments": g = lane / 4, t = lane % 4. D is given as its upper and its
// lower 8 rows: upper[i] = D[g][2t + i], lower[i] = D[g + 8][2t + i].

// D += A B^T for A 16x8, B 8x8, TF32: a[i] = A[g + 8(i%2)][t + 4(i/2)], b[i] = B[g][t + 4i].
__device__ __forceinline__ void mma_tf32(float (&upper)[2], float (&lower)[2], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// D += A B^T for A 16x16, B 8x16, BF16, two to a word: a[i] = A[g + 8(i%2)][2t + 8(i/2) ..], b[i] = B[g][2t + 8i ..].
__device__ __forceinline__ void mma_bf16(float (&upper)[2], float (&lower)[2], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// D += A B^T for A 16x4, B 8x4, FP64: a_upper = A[g][t], a_lower = A[g + 8][t], b = B[g][t].
__device__ __forceinline__ void mma_f64(double (&upper)[2], double (&lower)[2], double a_upper, double a_lower,
                                        double b) {
#if __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+d"(upper[0]), "+d"(upper[1]), "+d"(lower[0]), "+d"(lower[1])
      : "d"(a_upper), "d"(a_lower), "d"(b));
#else
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%4}, {%6}, {%0,%1};\n\t"
      "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%2,%3}, {%5}, {%6}, {%2,%3};"
      : "+d"(upper[0]), "+d"(upper[1]), "+d"(lower[0]), "+d"(lower[1])
      : "d"(a_upper), "d"(a_lower), "d"(b));
#endif
}

}  // namespace nftk
#endif
