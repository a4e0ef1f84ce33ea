// What a step's inputs need on the device before the forward pass.
#pragma once

#include "core/stream.h"
#include "core/tensor.h"

namespace weir::kernels {

// ids[i] = max(previous[sources[i]], 0) where sources[i] >= 0: the token that a row of the step before
// sampled. ids, sources [n] i32; previous [rows] i32, sources below rows. Safe inside graph capture.
void FeedPrevious(TensorView ids, TensorView sources, TensorView previous, Stream stream);

// to[indices[i]] = values[i] over all elements of `to` (contiguous). All i32; indices [n] distinct, in
// range.
void ScatterInts(TensorView to, TensorView indices, TensorView values, Stream stream);

}  // namespace weir::kernels
