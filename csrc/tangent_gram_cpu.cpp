#include "tangent_gram_cpu.h"

#include <algorithm>

namespace nftk {

template <class T>
void scale_add(const ScaleAdd<T>& call, int64_t first_row, int64_t last_row, VectorWidth width) {
  constexpr int64_t block = 512;  // columns: 4 KB of factors in double stay in L1
  with_vectors(width, [&]() NFTK_INLINE {
    const int64_t cols = call.n2 * call.d;
    for (int64_t row = first_row; row < last_row;) {
      // the rows of one example share its factors
      const int64_t a = row / call.d, end = std::min((a + 1) * call.d, last_row);
      for (int64_t col = 0; col < cols; col += block) {
        const int64_t width_here = std::min(block, cols - col);
        T factors[block];
        // each factor d times, so that the loop over columns below is one of vectors whatever d is
        int64_t b = col / call.d, left = (b + 1) * call.d - col;
        for (int64_t c = 0; c < width_here; ++b, left = call.d) {
          const T factor = call.s[a * call.s_stride1 + b * call.s_stride2];
          for (const int64_t stop = std::min(c + left, width_here); c < stop; ++c) factors[c] = factor;
        }
        for (int64_t r = row; r < end; ++r) {
          T* __restrict out = call.out + r * call.out_stride + col;
          const T* __restrict product = call.product + r * call.product_stride + col;
          if (call.accumulate)
            for (int64_t c = 0; c < width_here; ++c) out[c] += factors[c] * product[c];
          else
            for (int64_t c = 0; c < width_here; ++c) out[c] = factors[c] * product[c];
        }
      }
      row = end;
    }
  });
}

template <class T>
void mirror(T* x, int64_t stride, int64_t first_row, int64_t last_row, int64_t first_col, int64_t last_col) {
  // a block goes through a buffer, so that memory is read and written in whole cache lines: 32 floats are two
  constexpr int64_t block = 32;
  T buffer[block][block];
  for (int64_t row = first_row; row < last_row; row += block) {
    const int64_t rows = std::min(block, last_row - row);
    // nothing right of the diagonal lies left of row + 1
    for (int64_t col = std::max(first_col, row + 1); col < last_col; col += block) {
      const int64_t cols = std::min(block, last_col - col);
      for (int64_t r = 0; r < rows; ++r) {
        // below the diagonal another thread may be writing
        for (int64_t c = std::max<int64_t>(0, row + r + 1 - col); c < cols; ++c)
          buffer[c][r] = x[(row + r) * stride + col + c];
      }
      for (int64_t c = 0; c < cols; ++c) {
        // of column col + c only the rows above the diagonal
        const int64_t above = std::min(rows, col + c - row);
        for (int64_t r = 0; r < above; ++r) x[(col + c) * stride + row + r] = buffer[c][r];
      }
    }
  }
}

template void scale_add(const ScaleAdd<float>&, int64_t, int64_t, VectorWidth);
template void scale_add(const ScaleAdd<double>&, int64_t, int64_t, VectorWidth);
template void mirror(float*, int64_t, int64_t, int64_t, int64_t, int64_t);
template void mirror(double*, int64_t, int64_t, int64_t, int64_t, int64_t);

}  // namespace nftk
