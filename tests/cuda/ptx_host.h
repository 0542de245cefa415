// What the instructions of csrc/ptx.h do, on a CPU. Fragments are those of the PTX ISA, as ptx.h gives them.
#pragma once
#include "cuda_host.h"

namespace emu {

// c + sum x[k] y[k] as a tensor core adds, by published measurements: every addend cut to 1 bit below the largest one's
// last place, the sum cut to float32, both toward zero.
template <int K> float dot(float c, const float* x, const float* y) {
  double products[K + 1], exact = c, top = std::fabs(double(c));
  products[K] = c;
  for (int k = 0; k < K; ++k) {
    products[k] = double(x[k]) * y[k];
    exact += products[k];
    top = std::max(top, std::fabs(products[k]));
  }
  if (!std::isfinite(exact) || top < 1e-250) return float(exact);
  uint64_t bits;
  memcpy(&bits, &top, 8);
  bits = (uint64_t(2046 + 24) << 52) - (bits & 0x7ff0000000000000u);  // 2^(24 - exponent of top)
  double scale;
  memcpy(&scale, &bits, 8);
  int sum = 0;
  for (int k = 0; k <= K; ++k) sum += int(products[k] * scale);
  double cut = sum / scale;
  memcpy(&bits, &cut, 8);
  bits &= ~((uint64_t(1) << 29) - 1);
  memcpy(&cut, &bits, 8);
  return float(cut);
}

struct Mma {
  float *upper, *lower;
  const uint32_t *a, *b;
};

template <int K> void multiply(Mma** lanes, const float (&a)[16][K], const float (&b)[8][K]) {
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 2; ++i) {
      const int row = l / 4, col = l % 4 * 2 + i;
      lanes[l]->upper[i] = dot<K>(lanes[l]->upper[i], a[row], b[col]);
      lanes[l]->lower[i] = dot<K>(lanes[l]->lower[i], a[row + 8], b[col]);
    }
}

inline float from_tf32(uint32_t word) {
  if (word & 0x1fff) engine.fail("an operand of mma is not a TF32 value");
  return __uint_as_float(word);
}

inline float from_bf16(uint32_t word, int half) { return __uint_as_float(half ? word & 0xffff0000u : word << 16); }

}  // namespace emu

namespace nftk {

template <class T> T load(const T* p) { return emu::engine.check_global(p, sizeof(T), false), *p; }
template <class T> T reload(const T* p) { return emu::engine.check_global(p, sizeof(T), true), *p; }
template <class T> void store(T* p, T value) {
  emu::engine.check_global(p, sizeof(T), true);
  *p = value;
}

// The destination turns into NaN at once and receives the data only at the wait: the two ends of the time in which the
// hardware may write it.
template <int BYTES> void cp_async(void* dst, const void* src, int used) {
  if (reinterpret_cast<uintptr_t>(dst) % BYTES || reinterpret_cast<uintptr_t>(src) % BYTES)
    emu::engine.fail("misaligned cp.async");
  if (used < 0 || used > BYTES) emu::engine.fail("cp.async of " + std::to_string(used) + " bytes");
  emu::engine.check_shared(dst, BYTES);
  if (used) emu::engine.check_global(src, size_t(used), false);
  memset(dst, 0xff, BYTES);
  emu::engine.current->copies.push_back({dst, src, BYTES, unsigned(used)});
}

inline void cp_async_commit() { emu::engine.current->groups.push_back(emu::engine.current->copies.size()); }

template <int N> void cp_async_wait() {
  auto &copies = emu::engine.current->copies;
  auto &groups = emu::engine.current->groups;
  if (groups.size() <= N) return;
  const size_t done = groups.size() - N, end = groups[done - 1];
  for (size_t i = 0; i < end; ++i) {
    memset(copies[i].dst, 0, copies[i].bytes);
    memcpy(copies[i].dst, copies[i].src, copies[i].used);
  }
  copies.erase(copies.begin(), copies.begin() + std::ptrdiff_t(end));
  groups.erase(groups.begin(), groups.begin() + std::ptrdiff_t(done));
  for (size_t& group : groups) group -= end;
}

inline uint32_t to_tf32(float x) {
  const uint32_t u = __float_as_uint(x);
  if (!std::isfinite(x)) return std::isnan(x) ? 0x7fffe000u : u;
  return (u + 0x1000u) & ~0x1fffu;
}

inline uint32_t to_bf16x2(float low, float high) {
  const auto round = [](float x) {
    const uint32_t u = __float_as_uint(x);
    return std::isnan(x) ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}

inline void mma_tf32(float (&upper)[2], float (&lower)[2], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_PLACE) {
  emu::Mma self{upper, lower, a, b};
  emu::engine.collective(self, [](emu::Mma** lanes) {
    float a[16][8], b[8][8];
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) a[l / 4 + i % 2 * 8][l % 4 + i / 2 * 4] = emu::from_tf32(lanes[l]->a[i]);
      for (int i = 0; i < 2; ++i) b[l / 4][l % 4 + i * 4] = emu::from_tf32(lanes[l]->b[i]);
    }
    emu::multiply<8>(lanes, a, b);
  }, file, line);
}

inline void mma_bf16(float (&upper)[2], float (&lower)[2], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_PLACE) {
  emu::Mma self{upper, lower, a, b};
  emu::engine.collective(self, [](emu::Mma** lanes) {
    float a[16][16], b[8][16];
    for (int l = 0; l < 32; ++l)
      for (int h = 0; h < 2; ++h) {
        for (int i = 0; i < 4; ++i)
          a[l / 4 + i % 2 * 8][l % 4 * 2 + h + i / 2 * 8] = emu::from_bf16(lanes[l]->a[i], h);
        for (int i = 0; i < 2; ++i) b[l / 4][l % 4 * 2 + h + i * 8] = emu::from_bf16(lanes[l]->b[i], h);
      }
    emu::multiply<16>(lanes, a, b);
  }, file, line);
}

inline void mma_f64(double (&upper)[2], double (&lower)[2], double a_upper, double a_lower, double b, EMU_PLACE) {
  struct Mma {
    double *upper, *lower, a_upper, a_lower, b;
  } self{upper, lower, a_upper, a_lower, b};
  emu::engine.collective(self, [](Mma** lanes) {
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 4; ++k) {
          const Mma &a = *lanes[l / 4 * 4 + k], &b = *lanes[(l % 4 * 2 + i) * 4 + k], &d = *lanes[l];
          d.upper[i] = std::fma(a.a_upper, b.b, d.upper[i]);
          d.lower[i] = std::fma(a.a_lower, b.b, d.lower[i]);
        }
  }, file, line);
}

}  // namespace nftk
