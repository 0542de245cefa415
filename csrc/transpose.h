// A matrix written across another, on the CPU: torch copies such a matrix entry by entry along its rows, five times slower.
#pragma once
#include <cstdint>

namespace nftk {

// out (cols, rows) = x (rows, cols)^T; strides are between rows, in entries of T, and the two share no memory.
template <class T>
void transpose(T* out, int64_t out_stride, const T* x, int64_t x_stride, int64_t rows, int64_t cols);

}  // namespace nftk
