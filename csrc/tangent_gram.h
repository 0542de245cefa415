// out[o][a, i, b, j] = sum over the terms of output o of S[a, b] <A[a, i, :], B[b, j, :]>, all outputs in one launch.
// Plain pointers, sizes and strides: knows neither torch, Python nor CUDA's headers. Strides count elements and may be
// anything, 0 and negative too; only channels lie next to each other.
#pragma once
#include <cstdint>
#include <vector>

namespace nftk {

// One S and a stack of pairs (A, B), the slices. Slice q is a term of output first_output + q * output_step.
struct TangentGramEntry {
  const void* s;  // (n1, n2)
  int64_t s_stride1, s_stride2;
  const void* a;  // (slices, n1, d, channels)
  int64_t a_slice, a_sample, a_row;
  const void* b;  // (slices, n2, d, channels)
  int64_t b_slice, b_sample, b_row;
  int64_t channels;
  int32_t slices, first_output, output_step;  // output_step 0: all slices are terms of one output
};

enum class TangentGramForm {
  full,      // out[o][a, i, b, j]
  trace,     // out[o][a, b]: i == j, summed; out_row1 and out_row2 are not used
  diagonal,  // out[o][a, i, b]: i == j, at out_row1 + out_row2 times i
};
enum class TangentGramNumber { float32, float64 };  // of S, A, B and out
enum class TangentGramPrecision { highest, tf32, bf16 };  // of the products of float32; sums are always in float32
// How much of out a block makes. Only tuning and tests name one.
enum class TangentGramTile { automatic, small, large };

struct TangentGram {
  std::vector<TangentGramEntry> entries;
  void* out;
  int64_t out_output, out_sample1, out_row1, out_sample2, out_row2;
  int64_t n1, n2, d;
  int32_t outputs;
  TangentGramForm form;
  // n1 == n2 and, by the caller's word, B is A and S is symmetric: only one half is computed, from S above the
  // diagonal, and written twice, so that out is exactly symmetric
  bool symmetric;
  bool accumulate;  // add to what out holds; otherwise an output without terms becomes 0
  TangentGramNumber number;
  TangentGramPrecision precision;  // float64 knows only its own
  TangentGramTile tile;
  int device;
  void* stream;  // cudaStream_t
};

// Launches and returns; nothing is allocated, and no value is read back. Deterministic. Out must not overlap an input
// or itself. Throws std::invalid_argument for sizes that make no sense, std::runtime_error with CUDA's own words.
void tangent_gram(const TangentGram& call);

}  // namespace nftk
