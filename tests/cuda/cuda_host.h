// The CUDA names that csrc's kernels and launchers use, over the engine of emu.h.
#pragma once
#include <cmath>

#include "emu.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define DYNAMIC_SHARED(name) unsigned char* const name = emu::engine.shared()
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                              \
  emu::last_device = emu::device, emu::last_stream = stream,                                \
  emu::engine.launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, [=] { kernel(__VA_ARGS__); })
// A barrier or warp operation takes its caller's place, so that threads that meet at different ones are told.
#define EMU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct ThreadIndex {
  unsigned x;
};
#define threadIdx (ThreadIndex{emu::engine.current->id})
#define blockIdx (emu::engine.block)

struct alignas(8) float2 {
  float x, y;
};
using std::fma;
using std::max;
using std::min;

inline void __syncthreads(EMU_PLACE) { emu::engine.barrier(file, line); }

inline uint32_t __float_as_uint(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
inline float __uint_as_float(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

namespace emu {
inline int device = 0, last_device = -1;
inline void* last_stream = nullptr;
constexpr int DEVICES = 2, MULTIPROCESSORS = 4;
constexpr int MOST_SHARED = 99 << 10;  // of a block on sm_86, sm_89 and sm_120, which have least
}  // namespace emu

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid argument";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = emu::device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emu::DEVICES) return cudaErrorInvalidDevice;
  return emu::device = device, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = emu::MULTIPROCESSORS, cudaSuccess;
}
template <class F> cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emu::MOST_SHARED) return cudaErrorInvalidValue;
  emu::engine.shared_limit[reinterpret_cast<const void*>(kernel)] = size_t(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
