// The C interface of the test library: csrc's launcher and kernels over the engine, one call each.
#include <cstdio>

#include "tangent_gram.cu"

namespace {
char message[512];
}

extern "C" {
const char* last_error() { return message; }

// What kernels may read and write from here on.
void forbid_all() { emu::engine.forbid_all(); }
void allow(const void* from, uint64_t bytes, int writable) { emu::engine.allow(from, bytes, writable); }
int launches() { return int(emu::engine.launches); }
int current_device() { return emu::device; }
// Of the last launch.
int last_device() { return emu::last_device; }
int last_blocks() { return int(emu::engine.grid.x); }
uint64_t last_stream() { return reinterpret_cast<uint64_t>(emu::last_stream); }

// strides: output, sample1, row1, sample2, row2; sizes: n1, n2, d, outputs, entries;
// options: form, symmetric, accumulate, number, precision, tile, device.
int run_tangent_gram(const nftk::TangentGramEntry* entries, void* out, const int64_t* strides, const int64_t* sizes,
                     const int* options, uint64_t stream, uint64_t seed) {
  emu::engine.seed = seed;
  emu::engine.launches = 0;
  emu::engine.shared_limit.clear();
  nftk::TangentGram call{};
  call.entries.assign(entries, entries + sizes[4]);
  call.out = out;
  call.out_output = strides[0], call.out_sample1 = strides[1], call.out_row1 = strides[2];
  call.out_sample2 = strides[3], call.out_row2 = strides[4];
  call.n1 = sizes[0], call.n2 = sizes[1], call.d = sizes[2], call.outputs = int32_t(sizes[3]);
  call.form = nftk::TangentGramForm(options[0]);
  call.symmetric = options[1], call.accumulate = options[2];
  call.number = nftk::TangentGramNumber(options[3]);
  call.precision = nftk::TangentGramPrecision(options[4]);
  call.tile = nftk::TangentGramTile(options[5]);
  call.device = options[6];
  call.stream = reinterpret_cast<void*>(stream);
  try {
    nftk::tangent_gram(call);
    return 0;
  } catch (const std::invalid_argument& e) {
    snprintf(message, sizeof message, "%s", e.what());
    return 1;
  } catch (const std::exception& e) {
    snprintf(message, sizeof message, "%s", e.what());
    return 2;
  }
}
}
