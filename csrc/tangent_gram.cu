// The launcher of tangent_gram: checks, what each form means for the kernel, choice of tile and copies, launches.
#include "tangent_gram.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "tangent_gram.cuh"

namespace nftk {
namespace {

void check(bool right, const std::string& text) {
  if (!right) throw std::invalid_argument("nftk.tangent_gram: " + text);
}

void check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("nftk.tangent_gram: ") + doing + ": " + cudaGetErrorString(error));
}

// Makes a device the current one until the end of the block.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    check(cudaSetDevice(device), "choosing the device");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// Room for a tile beyond the last row, column or channel.
constexpr int64_t MOST = std::numeric_limits<int32_t>::max() - 1024;

void check_sizes(const TangentGram& call) {
  check(call.n1 >= 0 && call.n2 >= 0 && call.d >= 0 && call.outputs >= 0, "sizes must not be negative");
  check(!call.symmetric || call.n1 == call.n2, "a symmetric result must be square");
  check(call.d <= MOST && std::max(call.n1, call.n2) <= MOST / std::max<int64_t>(call.d, 1),
        "samples times rows must stay below 2^31");
  for (size_t i = 0; i < call.entries.size(); ++i) {
    const TangentGramEntry& e = call.entries[i];
    const std::string name = "entry " + std::to_string(i);
    check(e.slices >= 0 && e.channels >= 0, name + " has a negative size");
    check(e.channels <= MOST, name + " has more channels than 2^31");
    const int64_t first = e.first_output, last = first + std::max(e.slices - 1, 0) * int64_t(e.output_step);
    check(e.slices == 0 || (std::min(first, last) >= 0 && std::max(first, last) < call.outputs),
          name + " has slices for outputs " + std::to_string(first) + " to " + std::to_string(last) + " of " +
              std::to_string(call.outputs));
  }
}

std::vector<Term> make_terms(const TangentGram& call) {
  std::vector<Term> terms;
  if (call.d == 0) return terms;
  for (const TangentGramEntry& e : call.entries) {
    if (e.slices == 0 || e.channels == 0) continue;
    Term t{e.s, e.s_stride1, e.s_stride2, {e.a, e.a_slice, e.a_sample, e.a_row}, {e.b, e.b_slice, e.b_sample, e.b_row},
           int32_t(e.channels), 1, e.slices, e.first_output, e.output_step};
    if (call.form == TangentGramForm::trace) {
      // rows that follow each other are more channels of one row
      const bool flat = e.a_row == e.channels && e.b_row == e.channels && call.d <= MOST / e.channels;
      flat ? t.channels *= int32_t(call.d) : t.summed = int32_t(call.d);
    }
    terms.push_back(t);
  }
  return terms;
}

bool aligned(const std::vector<Term>& terms, int64_t bytes, int64_t of_number) {
  for (const Term& t : terms)
    for (const Operand& x : {t.a, t.b})
      if (reinterpret_cast<uintptr_t>(x.data) % uintptr_t(bytes) || x.slice * of_number % bytes ||
          x.sample * of_number % bytes || x.row * of_number % bytes)
        return false;
  return true;
}

int32_t tiles_of(int32_t count, int32_t size) { return (count + size - 1) / size; }

// Cuts the results into the atom's tiles, and returns the number of blocks.
template <class Atom> int64_t cut(Params& p) {
  p.tiles_m = tiles_of(p.rows, Atom::BLOCK_M), p.tiles_n = tiles_of(p.cols, Atom::BLOCK_N);
  const int64_t tiles = count_tiles(p.tiles_m, p.tiles_n, Atom::BLOCK_M, Atom::BLOCK_N, p.symmetric);
  check(tiles <= MOST / p.outputs / p.batch, "the result has more tiles than 2^31; make it in parts");
  p.tiles = int32_t(tiles);
  return tiles * p.batch * p.outputs;
}

template <class Atom, int BYTES> void launch(Params& p, cudaStream_t stream) {
  const int64_t blocks = cut<Atom>(p);
  const auto kernel = tangent_gram_kernel<Atom, BYTES>;
  constexpr int shared_bytes = Ring<Atom>::SHARED_BYTES;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  LAUNCH(kernel, dim3(unsigned(blocks)), dim3(Atom::THREADS), shared_bytes, stream, p);
  check(cudaGetLastError(), "launch");
}

// The terms in as few launches as hold them, the later ones adding to the first.
template <class Atom> void launch_all(Params& p, const std::vector<Term>& terms, cudaStream_t stream) {
  using Number = typename Atom::Number;
  const bool wide = aligned(terms, 16, sizeof(Number));
  size_t done = 0;
  do {
    p.term_count = int32_t(std::min<size_t>(terms.size() - done, CAPACITY));
    std::copy_n(terms.begin() + std::ptrdiff_t(done), p.term_count, p.terms);
    wide ? launch<Atom, 16>(p, stream) : launch<Atom, int(sizeof(Number))>(p, stream);
    p.accumulate = true;
    done += size_t(p.term_count);
  } while (done < terms.size());
}

template <class Large, class Small>
void choose_tile(Params& p, const std::vector<Term>& terms, TangentGramTile tile, int device, cudaStream_t stream) {
  bool large = tile == TangentGramTile::large;
  if (tile == TangentGramTile::automatic) {
    // no record yet: large tiles once they give every multiprocessor one
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "asking for the device");
    large = cut<Large>(p) >= multiprocessors;
  }
  large ? launch_all<Large>(p, terms, stream) : launch_all<Small>(p, terms, stream);
}

}  // namespace

void tangent_gram(const TangentGram& call) {
  check_sizes(call);
  const std::vector<Term> terms = make_terms(call);
  const bool full = call.form == TangentGramForm::full, diagonal = call.form == TangentGramForm::diagonal;

  Params p{};
  p.out = call.out;
  p.out_output = call.out_output;
  p.out_sample1 = call.out_sample1, p.out_sample2 = call.out_sample2;
  p.out_row1 = call.out_row1, p.out_row2 = call.out_row2;
  p.per_sample = full ? int32_t(call.d) : 1;
  p.rows = int32_t(call.n1 * p.per_sample), p.cols = int32_t(call.n2 * p.per_sample);
  p.batch = diagonal ? int32_t(call.d) : 1;
  p.outputs = call.outputs;
  p.symmetric = call.symmetric, p.accumulate = call.accumulate;
  if (p.rows == 0 || p.cols == 0 || p.batch == 0 || p.outputs == 0) return;
  if (terms.empty() && call.accumulate) return;

  const DeviceGuard guard(call.device);
  const auto stream = static_cast<cudaStream_t>(call.stream);
  using Large = Tile<128, 128, 64, 32>;
  using Small = Tile<64, 64, 32, 32>;
  if (call.number == TangentGramNumber::float64)
    choose_tile<Float64<Tile<128, 64, 32, 32>>, Float64<Small>>(p, terms, call.tile, call.device, stream);
  else if (call.precision == TangentGramPrecision::highest)
    choose_tile<Tf32x3<Large>, Tf32x3<Small>>(p, terms, call.tile, call.device, stream);
  else if (call.precision == TangentGramPrecision::tf32)
    choose_tile<Tf32<Large>, Tf32<Small>>(p, terms, call.tile, call.device, stream);
  else
    choose_tile<Bf16<Large>, Bf16<Small>>(p, terms, call.tile, call.device, stream);
}

}  // namespace nftk
