// The products of tangent_gram's kernel: what one warp does with one stage of shared memory.
//
// A stage holds, for each row of a tile, 128 bytes of channels, in 4 groups of 32 bytes. Group x of row r lies at
// group(r, x), so that the 16 lanes that read together (4 rows, 4 words of 8 bytes each) meet all 32 banks once. An
// atom multiplies WARP_M rows of A with WARP_N rows of B, STEP groups at a time, and adds to accumulators that are laid
// out as 8 x 8 squares, each lane with two numbers of a square: acc[i][j][e] belongs to row 8i + lane / 4 and column
// 8j + lane % 4 * 2 + e.
//
// Both operands take the channels in the same order, and a sum does not care which: lane t of four reads word t, two
// floats, and the tensor core multiplies them as if they were its channels t and t + 4.
//
// A warpgroup atom (wgmma) fits behind the same loop: the accumulators of m64n128 are those of Tile<128, 128, 16, 128>,
// and a row of a stage is one of its 128-byte swizzle, once group() permutes pieces of 16 bytes by row % 8. It would
// fence the asynchronous proxy before the barrier, and wants its operands rounded or split in memory, as it cuts what
// mma.sync gets rounded in registers; a pass before the loop belongs to it. It waits for a GPU that can prove it.
#pragma once
#include "ptx.h"

namespace nftk {

constexpr int ROW_BYTES = 128, GROUP_BYTES = 32, GROUPS = ROW_BYTES / GROUP_BYTES, GROUP_WORDS = 4;

// Position of a group in a stage, in groups.
__host__ __device__ inline int group(int row, int x) { return row * GROUPS + (x ^ row % GROUPS); }

// Tile of a block and of each of its warps; a warp's part is made of 8 x 8 squares.
template <int BM, int BN, int WM, int WN> struct Tile {
  static constexpr int BLOCK_M = BM, BLOCK_N = BN, WARP_M = WM, WARP_N = WN;
  static constexpr int WARPS_N = BN / WN, THREADS = BM / WM * WARPS_N * 32;
  static constexpr int SQUARES_M = WM / 8, SQUARES_N = WN / 8;
};

// Position of a lane's word, in words.
__device__ __forceinline__ int word(int lane, int square, int step) {
  return square * 8 * GROUPS * GROUP_WORDS + group(lane / 4, step) * GROUP_WORDS + lane % 4;
}

// x = big + small up to 2^-22 of x, both TF32.
__device__ __forceinline__ void split(float x, uint32_t& big, uint32_t& small) {
  big = to_tf32(x);
  small = to_tf32(x - __uint_as_float(big));
}

// float32 from three TF32 products; what is lost is the product of the two small parts.
template <class T> struct Tf32x3 : T {
  using Number = float;
  using Word = float2;
  // groups that one step takes; chunks that may add up before they are scaled, so that long sums are made of short ones
  static constexpr int STEP = 1, LONGEST_RUN = 16;

  __device__ static void multiply(const float2* a, const float2* b, int lane, int step,
                                  float (&acc)[T::SQUARES_M][T::SQUARES_N][2]) {
    uint32_t b_big[T::SQUARES_N][2], b_small[T::SQUARES_N][2];
#pragma unroll
    for (int j = 0; j < T::SQUARES_N; ++j) {
      const float2 x = b[word(lane, j, step)];
      split(x.x, b_big[j][0], b_small[j][0]);
      split(x.y, b_big[j][1], b_small[j][1]);
    }
#pragma unroll
    for (int i = 0; i < T::SQUARES_M; i += 2) {
      uint32_t a_big[4], a_small[4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 x = a[word(lane, i + h, step)];
        split(x.x, a_big[h], a_small[h]);
        split(x.y, a_big[h + 2], a_small[h + 2]);
      }
      // tensor cores truncate as they add, so that a long sum in them drifts toward zero: 8 channels each, and the
      // float32 adders, which round, do the rest
      float part[T::SQUARES_N][2][2] = {};
#pragma unroll
      for (int j = 0; j < T::SQUARES_N; ++j) mma_tf32(part[j][0], part[j][1], a_small, b_big[j]);
#pragma unroll
      for (int j = 0; j < T::SQUARES_N; ++j) mma_tf32(part[j][0], part[j][1], a_big, b_small[j]);
#pragma unroll
      for (int j = 0; j < T::SQUARES_N; ++j) mma_tf32(part[j][0], part[j][1], a_big, b_big[j]);
#pragma unroll
      for (int j = 0; j < T::SQUARES_N; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          acc[i + h][j][0] += part[j][h][0];
          acc[i + h][j][1] += part[j][h][1];
        }
    }
  }
};

// Operands rounded to TF32, 2^-11, or to BF16, 2^-8. A run stays in the tensor cores: each addition there cuts up to
// 2^-23 of the sum, which makes at most 2^-17 over 512 channels by 8, and 2^-16 over 2,048 by 16.
template <class T> struct Tf32 : T {
  using Number = float;
  using Word = float2;
  static constexpr int STEP = 1, LONGEST_RUN = 16;

  __device__ static void multiply(const float2* a, const float2* b, int lane, int step,
                                  float (&acc)[T::SQUARES_M][T::SQUARES_N][2]) {
    uint32_t right[T::SQUARES_N][2];
#pragma unroll
    for (int j = 0; j < T::SQUARES_N; ++j) {
      const float2 x = b[word(lane, j, step)];
      right[j][0] = to_tf32(x.x), right[j][1] = to_tf32(x.y);
    }
#pragma unroll
    for (int i = 0; i < T::SQUARES_M; i += 2) {
      const float2 x = a[word(lane, i, step)], y = a[word(lane, i + 1, step)];
      const uint32_t left[4] = {to_tf32(x.x), to_tf32(y.x), to_tf32(x.y), to_tf32(y.y)};
#pragma unroll
      for (int j = 0; j < T::SQUARES_N; ++j) mma_tf32(acc[i][j], acc[i + 1][j], left, right[j]);
    }
  }
};

template <class T> struct Bf16 : T {
  using Number = float;
  using Word = float2;
  static constexpr int STEP = 2, LONGEST_RUN = 64;

  __device__ static void multiply(const float2* a, const float2* b, int lane, int step,
                                  float (&acc)[T::SQUARES_M][T::SQUARES_N][2]) {
    uint32_t right[T::SQUARES_N][2];
#pragma unroll
    for (int j = 0; j < T::SQUARES_N; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) right[j][h] = rounded(b[word(lane, j, step + h)]);
#pragma unroll
    for (int i = 0; i < T::SQUARES_M; i += 2) {
      const uint32_t left[4] = {rounded(a[word(lane, i, step)]), rounded(a[word(lane, i + 1, step)]),
                                rounded(a[word(lane, i, step + 1)]), rounded(a[word(lane, i + 1, step + 1)])};
#pragma unroll
      for (int j = 0; j < T::SQUARES_N; ++j) mma_bf16(acc[i][j], acc[i + 1][j], left, right[j]);
    }
  }

 private:
  __device__ static uint32_t rounded(float2 x) { return to_bf16x2(x.x, x.y); }
};

template <class T> struct Float64 : T {
  using Number = double;
  using Word = double;
  static constexpr int STEP = 1, LONGEST_RUN = 32;

  __device__ static void multiply(const double* a, const double* b, int lane, int step,
                                  double (&acc)[T::SQUARES_M][T::SQUARES_N][2]) {
    double right[T::SQUARES_N];
#pragma unroll
    for (int j = 0; j < T::SQUARES_N; ++j) right[j] = b[word(lane, j, step)];
#pragma unroll
    for (int i = 0; i < T::SQUARES_M; i += 2) {
      const double upper = a[word(lane, i, step)], lower = a[word(lane, i + 1, step)];
#pragma unroll
      for (int j = 0; j < T::SQUARES_N; ++j) mma_f64(acc[i][j], acc[i + 1][j], upper, lower, right[j]);
    }
  }
};

}  // namespace nftk
