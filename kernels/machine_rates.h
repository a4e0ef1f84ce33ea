// What the machine can do at best: the roofs beside which speeds are reported.
#pragma once

#include "core/dtype.h"
#include "core/stream.h"

namespace weir::kernels {

// Bytes per second that all threads of the pool together read from memory, in order, from a buffer
// several times the size of the last-level cache; the best of several passes. Takes about 0.3 s. 0
// when the buffer cannot be had.
double MeasureReadBandwidth(Stream stream);

// Floating-point operations per second (a multiply-add is two) of a loop over registers with the
// instruction that MatMul uses for `compute` (kF32 or kBF16), on all threads; the best of several.
double MeasureMatrixRate(DType compute, Stream stream);

}  // namespace weir::kernels
