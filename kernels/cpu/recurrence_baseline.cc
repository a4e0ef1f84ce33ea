#include "kernels/cpu/recurrence_chunk_body.h"

namespace weir::kernels {

void RunRecurrenceBaseline(const RecurrenceJob& job) { RunJob(job); }

}  // namespace weir::kernels
