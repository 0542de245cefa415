// What the CPU form of tangent_gram does around its matrix products. Plain pointers, strides in elements; each call
// works in one thread on a part that the caller names, and calls on parts apart from each other may run at once.
// T is float or double.
#pragma once
#include <cstdint>

#include "vector_width.h"

namespace nftk {

// out[r, b d + j] = s[r / d, b] product[r, b d + j], or += where accumulate: one term's products, scaled pair by pair.
template <class T> struct ScaleAdd {
  T* out;  // (n1 d, n2 d)
  int64_t out_stride;
  const T* product;  // (n1 d, n2 d), apart from out
  int64_t product_stride;
  const T* s;  // (n1, n2)
  int64_t s_stride1, s_stride2;
  int64_t n2, d;
  bool accumulate;
};

// Rows first_row <= r < last_row of it.
template <class T>
void scale_add(const ScaleAdd<T>& call, int64_t first_row, int64_t last_row, VectorWidth width = widest_vectors());

// x[c, r] = x[r, c] for first_row <= r < last_row, first_col <= c < last_col, r < c: a tile of the upper triangle of a
// square matrix, written below the diagonal too.
template <class T>
void mirror(T* x, int64_t stride, int64_t first_row, int64_t last_row, int64_t first_col, int64_t last_col);

}  // namespace nftk
