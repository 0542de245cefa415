// nftk._C: the only file that knows Python. Its users are nftk's own operations, which check values and allocate; here
// counts, dtypes and shapes are checked as far as memory is at stake. nftk/_C.pyi says what Python sees.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "layer_recursion.h"
#include "tangent_gram.h"
#include "transpose.h"
#include "vector_width.h"

namespace py = pybind11;

namespace {

void check(bool right, const std::string& text) {
  if (!right) throw std::invalid_argument("nftk._C." + text);
}

// The member of `values` with a name.
template <class Enum>
Enum choice(const char* argument, const std::string& given, std::initializer_list<std::pair<const char*, Enum>> values) {
  std::string names;
  for (const auto& [name, value] : values) {
    if (given == name) return value;
    names += std::string(names.empty() ? "" : ", ") + name;
  }
  throw std::invalid_argument(std::string("nftk._C: ") + argument + " must be one of " + names + ", got " + given);
}

nftk::VectorWidth vector_width(const std::string& vectors) {
  if (vectors == "auto") return nftk::widest_vectors();
  using nftk::VectorWidth;
  return choice<VectorWidth>("vectors", vectors, {{"baseline", VectorWidth::baseline}, {"avx2", VectorWidth::avx2},
                                                  {"avx512", VectorWidth::avx512}});
}

// In the order of LayerRecursionEntry.
using RecursionEntry = std::tuple<int, int64_t, double, double, double, double, double, double, double>;

template <class T, class S>
void layer_recursion_of(std::vector<nftk::RecursionLayer> layers, uintptr_t gap, std::array<int64_t, 2> gap_strides,
                        std::array<int64_t, 2> sizes, uintptr_t rows1, uintptr_t rows2, uintptr_t out,
                        std::array<int64_t, 3> out_strides, uintptr_t weights, int64_t outputs, bool tangent,
                        bool symmetric, int threads, nftk::VectorWidth width) {
  nftk::LayerRecursion<T, S> call{};
  call.layers = std::move(layers);
  call.gap = reinterpret_cast<const S*>(gap), call.gap_stride = gap_strides[0];
  call.n1 = sizes[0], call.n2 = sizes[1];
  call.rows1 = reinterpret_cast<const T*>(rows1), call.rows2 = reinterpret_cast<const T*>(rows2);
  call.out = reinterpret_cast<S*>(out), call.out_stride = out_strides[0], call.out_row = out_strides[1];
  call.weights = reinterpret_cast<const double*>(weights), call.outputs = outputs;
  call.tangent = tangent, call.symmetric = symmetric, call.threads = threads;
  const py::gil_scoped_release release;
  nftk::layer_recursion(call, width);
}

void layer_recursion(const std::vector<RecursionEntry>& entries, uintptr_t gap, std::array<int64_t, 2> gap_strides,
                     std::array<int64_t, 2> sizes, uintptr_t rows1, uintptr_t rows2, uintptr_t out,
                     std::array<int64_t, 3> out_strides, uintptr_t weights, int64_t outputs, bool tangent,
                     bool symmetric, const std::string& number, bool wide, int threads, const std::string& vectors) {
  std::vector<nftk::RecursionLayer> layers;
  for (const auto& [kind, order, slope, w, b, own_weight, own_bias, r, own_readout] : entries) {
    check(0 <= kind && kind <= static_cast<int>(nftk::RecursionKind::series), "layer_recursion: kind is unknown");
    check(order >= 0, "layer_recursion: order must be at least 0");
    layers.push_back({static_cast<nftk::RecursionKind>(kind), order, slope, w, b, own_weight, own_bias, r, own_readout});
  }
  check(sizes[0] >= 0 && sizes[1] >= 0, "layer_recursion: sizes must be at least 0");
  if (sizes[0] == 0 || sizes[1] == 0 || layers.empty()) return;
  check(gap && rows1 && rows2 && out, "layer_recursion: tensors must have memory, got address 0");
  check((gap_strides[1] == 1 || sizes[1] == 1) && (out_strides[2] == 1 || sizes[1] == 1),
        "layer_recursion: columns must lie next to each other");
  check(!symmetric || sizes[0] == sizes[1], "layer_recursion: symmetric must go with as many rows as columns");
  const nftk::VectorWidth width = vector_width(vectors);
  check(number == "float32" || number == "float64", "layer_recursion: number must be float32 or float64");
  const auto run = number == "float64" ? layer_recursion_of<double, double>
                   : wide              ? layer_recursion_of<double, float>
                                       : layer_recursion_of<float, float>;
  run(std::move(layers), gap, gap_strides, sizes, rows1, rows2, out, out_strides, weights, outputs, tangent, symmetric,
      threads, width);
}

void gaps_from_gram(uintptr_t gram, int64_t stride, std::array<int64_t, 3> sizes, uintptr_t u1, uintptr_t u2,
                    double near, bool upper, const std::string& number, int threads) {
  const auto [n1, n2, m] = sizes;
  if (n1 <= 0 || n2 <= 0) return;
  check(gram && ((u1 && u2) || m == 0), "gaps_from_gram: tensors must have memory, got address 0");
  check(!upper || n1 == n2, "gaps_from_gram: upper must go with as many rows as columns");
  check(number == "float32" || number == "float64", "gaps_from_gram: number must be float32 or float64");
  const auto *a = reinterpret_cast<const double*>(u1), *b = reinterpret_cast<const double*>(u2);
  const py::gil_scoped_release release;
  if (number == "float32")
    nftk::gaps_from_gram<float>({reinterpret_cast<float*>(gram), stride, n1, n2, m, a, b, near, upper, threads});
  else
    nftk::gaps_from_gram<double>({reinterpret_cast<double*>(gram), stride, n1, n2, m, a, b, near, upper, threads});
}

void transpose(uintptr_t out, int64_t out_stride, uintptr_t x, int64_t x_stride, std::array<int64_t, 2> sizes,
               const std::string& number) {
  const auto [rows, cols] = sizes;
  if (rows <= 0 || cols <= 0) return;
  check(out && x, "transpose: tensors must have memory, got address 0");
  check(out_stride >= rows && x_stride >= cols, "transpose: rows must not overlap");
  check(number == "float32" || number == "float64", "transpose: number must be float32 or float64");
  const py::gil_scoped_release release;
  if (number == "float32")
    nftk::transpose(reinterpret_cast<float*>(out), out_stride, reinterpret_cast<const float*>(x), x_stride, rows, cols);
  else
    nftk::transpose(reinterpret_cast<double*>(out), out_stride, reinterpret_cast<const double*>(x), x_stride, rows, cols);
}

#ifdef NFTK_CUDA
// In the order of TangentGramEntry; a count that is wrong is a TypeError of pybind11's.
using Strides2 = std::array<int64_t, 2>;
using Strides3 = std::array<int64_t, 3>;
using Entry = std::tuple<uintptr_t, Strides2, uintptr_t, Strides3, uintptr_t, Strides3, int64_t, int32_t, int32_t, int32_t>;

void tangent_gram(const std::vector<Entry>& entries, uintptr_t out, std::array<int64_t, 5> out_strides,
                  std::array<int64_t, 3> sizes, int32_t outputs, const std::string& form, bool symmetric,
                  bool accumulate, const std::string& number, const std::string& precision, const std::string& tile,
                  int device, uintptr_t stream) {
  using nftk::TangentGramForm;
  using nftk::TangentGramNumber;
  using nftk::TangentGramPrecision;
  using nftk::TangentGramTile;
  const auto pointer = [](uintptr_t address) { return reinterpret_cast<void*>(address); };
  nftk::TangentGram call{};
  const auto [n1, n2, d] = sizes;
  const bool empty = n1 == 0 || n2 == 0 || d == 0;
  for (const auto& [s, s_strides, a, a_strides, b, b_strides, channels, slices, first_output, output_step] : entries) {
    check((s && a && b) || empty || channels == 0 || slices == 0, "tangent_gram: entries must have memory, got address 0");
    call.entries.push_back({pointer(s), s_strides[0], s_strides[1], pointer(a), a_strides[0], a_strides[1],
                            a_strides[2], pointer(b), b_strides[0], b_strides[1], b_strides[2], channels, slices,
                            first_output, output_step});
  }
  check(out || empty || outputs == 0, "tangent_gram: out must have memory, got address 0");
  call.out = pointer(out);
  call.out_output = out_strides[0], call.out_sample1 = out_strides[1], call.out_row1 = out_strides[2];
  call.out_sample2 = out_strides[3], call.out_row2 = out_strides[4];
  call.n1 = n1, call.n2 = n2, call.d = d;
  call.outputs = outputs;
  call.form = choice<TangentGramForm>(
      "form", form,
      {{"full", TangentGramForm::full}, {"trace", TangentGramForm::trace}, {"diagonal", TangentGramForm::diagonal}});
  call.symmetric = symmetric;
  call.accumulate = accumulate;
  call.number = choice<TangentGramNumber>(
      "number", number, {{"float32", TangentGramNumber::float32}, {"float64", TangentGramNumber::float64}});
  call.precision = choice<TangentGramPrecision>("precision", precision,
                                                {{"highest", TangentGramPrecision::highest},
                                                 {"tf32", TangentGramPrecision::tf32},
                                                 {"bf16", TangentGramPrecision::bf16}});
  call.tile = choice<TangentGramTile>("tile", tile, {{"automatic", TangentGramTile::automatic},
                                                     {"small", TangentGramTile::small},
                                                     {"large", TangentGramTile::large}});
  call.device = device;
  call.stream = pointer(stream);
  const py::gil_scoped_release release;
  nftk::tangent_gram(call);
}
#endif

// What this file was built by and for; setup.py defines the words.
py::dict build_info() {
  py::dict info;
#ifdef NFTK_CUDA
  info["cuda"] = true;
  info["cuda_version"] = NFTK_CUDA_VERSION;
  info["why_no_cuda"] = py::none();
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["why_no_cuda"] = NFTK_WHY_NO_CUDA;
#endif
  py::list architectures;
#ifdef NFTK_CUDA
  for (const char* name : {NFTK_CUDA_ARCHITECTURES}) architectures.append(name);
#endif
  info["architectures"] = architectures;
#ifdef __clang__
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["vectors"] = nftk::name(nftk::widest_vectors());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using py::arg;
  m.doc() = "The compiled parts of nftk: csrc/, without torch.";
  m.def("build_info", &build_info);
  m.def("layer_recursion", &layer_recursion, arg("layers"), py::kw_only(), arg("gap"), arg("gap_strides"), arg("sizes"),
        arg("rows1"), arg("rows2"), arg("out"), arg("out_strides"), arg("weights"), arg("outputs"), arg("tangent"),
        arg("symmetric"), arg("number"), arg("wide"), arg("threads"), arg("vectors") = "auto");
  m.def("gaps_from_gram", &gaps_from_gram, py::kw_only(), arg("gram"), arg("stride"), arg("sizes"), arg("u1"), arg("u2"),
        arg("near"), arg("upper"), arg("number"), arg("threads"));
  m.def("transpose", &transpose, py::kw_only(), arg("out"), arg("out_stride"), arg("x"), arg("x_stride"), arg("sizes"),
        arg("number"));
#ifdef NFTK_CUDA
  m.def("tangent_gram", &tangent_gram, arg("entries"), py::kw_only(), arg("out"), arg("out_strides"), arg("sizes"),
        arg("outputs"), arg("form"), arg("symmetric"), arg("accumulate"), arg("number"), arg("precision"),
        arg("tile") = "automatic", arg("device"), arg("stream"));
#endif
}
