// The kernel of tangent_gram. Rows of the result are the samples of the first batch, or in the full form their (a, i),
// columns those of the second; a block makes one tile of one output:
//
//   sum over the terms of the output of  S[row's sample, column's sample] * (sum over channels of A[row] B[column])
//
// The chunks of all terms are one stream through a ring of stages in shared memory. The inner sum is the atom's; it is
// scaled and added to the outer one, both in registers.
#pragma once
#include "tangent_gram_atoms.cuh"

namespace nftk {

// A (slices, n, d, channels) array, strides in elements.
struct Operand {
  const void* data;
  int64_t slice, sample, row;
};

struct Term {
  const void* s;
  int64_t s_stride1, s_stride2;
  Operand a, b;
  // the inner sum goes over `channels` of each of `summed` rows
  int32_t channels, summed, slices, first_output, output_step;
};

// Terms that one launch may have; they travel as a kernel parameter.
constexpr int CAPACITY = 128;

struct Params {
  Term terms[CAPACITY];
  void* out;
  int64_t out_output, out_sample1, out_row1, out_sample2, out_row2;
  // rows and columns of a result, and how many of them a sample has: d in the full form, else 1
  int32_t rows, cols, per_sample;
  // results of one output, one for each i: d in the diagonal form, else 1
  int32_t batch;
  int32_t outputs, term_count, tiles_m, tiles_n;
  int32_t tiles;  // of one result
  bool symmetric, accumulate;
};
static_assert(sizeof(Params) <= 32764, "what parameters of a kernel may have, from CUDA 12.1 on");

struct Position {
  int m, n;
};

// Tiles are taken in bands of BAND rows of tiles, column after column, so that blocks that run at the same time share
// operands in the L2 cache. A symmetric result needs those at or above the diagonal: a band begins at its first column.
constexpr int BAND = 8;

__host__ __device__ inline int band_begin(int band, int tile_m, int tile_n, bool symmetric) {
  return symmetric ? int(int64_t(band) * BAND * tile_m / tile_n) : 0;
}

// Blocks for one result. Some of a symmetric one lie below the diagonal, in the square at a band's beginning.
__host__ __device__ inline int64_t count_tiles(int tiles_m, int tiles_n, int tile_m, int tile_n, bool symmetric) {
  int64_t count = 0;
  for (int band = 0; band * BAND < tiles_m; ++band) {
    const int height = tiles_m - band * BAND < BAND ? tiles_m - band * BAND : BAND;
    count += int64_t(height) * (tiles_n - band_begin(band, tile_m, tile_n, symmetric));
  }
  return count;
}

__device__ inline Position tile_position(int index, const Params& p, int tile_m, int tile_n) {
  for (int band = 0;; ++band) {
    const int height = min(p.tiles_m - band * BAND, BAND), begin = band_begin(band, tile_m, tile_n, p.symmetric);
    const int size = height * (p.tiles_n - begin);
    if (index < size) return {band * BAND + index % height, begin + index / height};
    index -= size;
  }
}

// The terms of one output, in order: each slice of each entry of the table that goes there.
struct Walk {
  const Params& p;
  int output, term = -1, slice = 0, slice_end = 0;

  __device__ Walk(const Params& p, int output) : p(p), output(output) {}

  __device__ const Term& at() const { return p.terms[term]; }

  __device__ bool next() {
    if (++slice < slice_end) return true;
    while (++term < p.term_count) {
      const Term& t = at();
      const int beyond = output - t.first_output;
      if (t.output_step == 0) {
        slice = 0, slice_end = t.slices;
        if (beyond == 0) return true;
      } else if (beyond % t.output_step == 0) {
        slice = beyond / t.output_step, slice_end = slice + 1;
        if (slice >= 0 && slice < t.slices) return true;
      }
    }
    return false;
  }
};

// Sample and row in it of a row or column of the tile; sample -1 lies outside.
struct Place {
  int sample, row;
};

// The ring of stages, and beside it the places of the tile's rows and columns.
template <class Atom> struct Ring {
  using Number = typename Atom::Number;
  static constexpr int COUNT = 3;  // 96 KB of 128 x 128 tiles: fits all of sm_80, sm_86, sm_89, sm_90, sm_100, sm_120
  static constexpr int CHANNELS = ROW_BYTES / int(sizeof(Number)), GROUP = CHANNELS / GROUPS;
  static constexpr int A_BYTES = Atom::BLOCK_M * ROW_BYTES, BYTES = A_BYTES + Atom::BLOCK_N * ROW_BYTES;
  static constexpr int SHARED_BYTES = COUNT * BYTES + (Atom::BLOCK_M + Atom::BLOCK_N) * int(sizeof(Place));
};

// Copies the chunks of all terms of an output to the stages, BYTES at a time.
template <class Atom, int BYTES> class Loader {
 public:
  __device__ Loader(const Params& p, int output, int batch, const Place* places)
      : walk_(p, output), batch_(batch), places_(places), more_(walk_.next()) {}

  // Begins with the next chunk, and makes one group of copies of it; an empty one past the end.
  __device__ void start(unsigned char* stage) {
    if (more_) {
      const Term& t = walk_.at();
      copy<Atom::BLOCK_M>(stage, places_, t.a, t.channels);
      copy<Atom::BLOCK_N>(stage + Ring<Atom>::A_BYTES, places_ + Atom::BLOCK_M, t.b, t.channels);
      channel_ += Ring<Atom>::CHANNELS;
      if (channel_ >= t.channels) {
        channel_ = 0;
        if (++row_ == t.summed) row_ = 0, more_ = walk_.next();
      }
    }
    cp_async_commit();
  }

 private:
  using Number = typename Atom::Number;

  template <int ROWS> __device__ void copy(unsigned char* to, const Place* places, const Operand& from, int channels) {
    constexpr int WIDTH = BYTES / int(sizeof(Number)), COPIES = ROW_BYTES / BYTES;
    const Number* base = static_cast<const Number*>(from.data) + walk_.slice * from.slice + (batch_ + row_) * from.row;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * COPIES; i += Atom::THREADS) {
      const int row = i / COPIES, at = i % COPIES, channel = channel_ + at * WIDTH;
      const Place place = places[row];
      // zeros beyond the last channel, and rows of zeros beyond the last row; a copy of nothing needs no valid source
      const int left = place.sample < 0 ? 0 : max(min(channels - channel, WIDTH), 0);
      const Number* source = left ? base + place.sample * from.sample + place.row * from.row + channel : base;
      const int x = at * BYTES;
      cp_async<BYTES>(to + group(row, x / GROUP_BYTES) * GROUP_BYTES + x % GROUP_BYTES, source,
                      left * int(sizeof(Number)));
    }
  }

  Walk walk_;
  int batch_;
  const Place* places_;
  int row_ = 0, channel_ = 0;
  bool more_;
};

// A lane's numbers of a warp's part of the tile.
template <class Number, int M, int N> using Sums = Number[M][N][2];

// sum += S * acc; acc = 0. `rows` and `cols` are the places of this lane's first row and column.
template <class Number, int M, int N>
__device__ __forceinline__ void add_scaled(Sums<Number, M, N>& sum, Sums<Number, M, N>& acc, const Term& t,
                                           const Place* rows, const Place* cols) {
#pragma unroll
  for (int i = 0; i < M; ++i) {
    // a row or column outside has zeros in acc, and takes any number of S
    const Number* s = static_cast<const Number*>(t.s) + max(rows[i * 8].sample, 0) * t.s_stride1;
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        // volatile: read again for each row, as the offsets of all columns at once do not fit beside the sums
        const int sample2 = *const_cast<const volatile int*>(&cols[j * 8 + e].sample);
        sum[i][j][e] = fma(load(s + max(sample2, 0) * t.s_stride2), acc[i][j][e], sum[i][j][e]);
        acc[i][j][e] = 0;
      }
  }
}

template <class Number> __device__ __forceinline__ void put(Number* out, Number value, bool accumulate) {
  store(out, accumulate ? reload(out) + value : value);
}

// BYTES: width of the copies, to which all operands must be aligned. One block a multiprocessor is enough: with fewer
// registers, for more blocks, sums would spill.
template <class Atom, int BYTES>
__global__ void __launch_bounds__(Atom::THREADS, 1) tangent_gram_kernel(const __grid_constant__ Params p) {
  using Number = typename Atom::Number;
  using Word = typename Atom::Word;
  using Stages = Ring<Atom>;
  DYNAMIC_SHARED(shared);
  Place* const places = reinterpret_cast<Place*>(shared + Stages::COUNT * Stages::BYTES);

  // the last output first: in a network it has the most terms, and long blocks must not come last
  const int result = int(blockIdx.x) / p.tiles, output = p.outputs - 1 - result / p.batch, batch = result % p.batch;
  const Position tile = tile_position(int(blockIdx.x) % p.tiles, p, Atom::BLOCK_M, Atom::BLOCK_N);
  const int row0 = tile.m * Atom::BLOCK_M, col0 = tile.n * Atom::BLOCK_N;
  if (p.symmetric && col0 + Atom::BLOCK_N <= row0) return;

  for (int i = threadIdx.x; i < Atom::BLOCK_M + Atom::BLOCK_N; i += Atom::THREADS) {
    const bool of_row = i < Atom::BLOCK_M;
    const int index = of_row ? row0 + i : col0 + i - Atom::BLOCK_M;
    const bool inside = index < (of_row ? p.rows : p.cols);
    places[i] = inside ? Place{index / p.per_sample, index % p.per_sample} : Place{-1, 0};
  }
  __syncthreads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / Atom::WARPS_N * Atom::WARP_M, warp_col = warp % Atom::WARPS_N * Atom::WARP_N;
  // places of this lane's first row and column
  const Place* const rows = places + warp_row + lane / 4;
  const Place* const cols = places + Atom::BLOCK_M + warp_col + lane % 4 * 2;

  Sums<Number, Atom::SQUARES_M, Atom::SQUARES_N> sum = {}, acc = {};
  Loader<Atom, BYTES> loader(p, output, batch, places);
#pragma unroll
  for (int s = 0; s < Stages::COUNT - 1; ++s) loader.start(shared + s * Stages::BYTES);

  int stage = 0, run = 0;
  Walk walk(p, output);
  while (walk.next()) {
    const Term& t = walk.at();
    for (int row = 0; row < t.summed; ++row) {
      for (int channel = 0; channel < t.channels; channel += Stages::CHANNELS) {
        cp_async_wait<Stages::COUNT - 2>();
        // this chunk is there for everyone, and everyone has left the one before, whose stage comes next
        __syncthreads();
        loader.start(shared + (stage + Stages::COUNT - 1) % Stages::COUNT * Stages::BYTES);
        const unsigned char* chunk = shared + stage * Stages::BYTES;
        const auto* a = reinterpret_cast<const Word*>(chunk + warp_row * ROW_BYTES);
        const auto* b = reinterpret_cast<const Word*>(chunk + Stages::A_BYTES + warp_col * ROW_BYTES);
        const int groups = min((t.channels - channel + Stages::GROUP - 1) / Stages::GROUP, GROUPS);
        // one body: unrolled, it takes registers that are not there
#pragma unroll 1
        for (int step = 0; step < groups; step += Atom::STEP) Atom::multiply(a, b, lane, step, acc);
        stage = (stage + 1) % Stages::COUNT;
        const bool last = row + 1 == t.summed && channel + Stages::CHANNELS >= t.channels;
        if (++run == Atom::LONGEST_RUN || last) add_scaled(sum, acc, t, rows, cols), run = 0;
      }
    }
  }

  Number* const out = static_cast<Number*>(p.out) + output * p.out_output + batch * (p.out_row1 + p.out_row2);
  const auto first = [&p](Place x) { return x.sample * p.out_sample1 + x.row * p.out_row1; };
  const auto second = [&p](Place x) { return x.sample * p.out_sample2 + x.row * p.out_row2; };
#pragma unroll
  for (int i = 0; i < Atom::SQUARES_M; ++i) {
    const Place x = rows[i * 8];
    Number *const of_row = out + first(x), *const of_col = out + second(x);
#pragma unroll
    for (int j = 0; j < Atom::SQUARES_N; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Place y = cols[j * 8 + e];
        // from the places, so that no index stays in a register while the sums grow
        const int row = x.sample * p.per_sample + x.row, col = y.sample * p.per_sample + y.row;
        if (x.sample < 0 || y.sample < 0 || (p.symmetric && row > col)) continue;
        put(of_row + second(y), sum[i][j][e], p.accumulate);
        if (p.symmetric && row != col) put(of_col + first(y), sum[i][j][e], p.accumulate);
      }
  }
}

}  // namespace nftk
