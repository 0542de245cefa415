#include "transpose.h"

#include <algorithm>

namespace nftk {

template <class T>
void transpose(T* out, int64_t out_stride, const T* x, int64_t x_stride, int64_t rows, int64_t cols) {
  // the cache lines of a block, read and written, stay in the first cache
  constexpr int64_t block = 32;
  for (int64_t row = 0; row < rows; row += block) {
    const int64_t last_row = std::min(rows, row + block);
    for (int64_t col = 0; col < cols; col += block) {
      const int64_t last_col = std::min(cols, col + block);
      for (int64_t c = col; c < last_col; ++c)
        for (int64_t r = row; r < last_row; ++r) out[c * out_stride + r] = x[r * x_stride + c];
    }
  }
}

template void transpose(float*, int64_t, const float*, int64_t, int64_t, int64_t);
template void transpose(double*, int64_t, const double*, int64_t, int64_t, int64_t);

}  // namespace nftk
