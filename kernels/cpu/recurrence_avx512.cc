#if defined(__x86_64__)
#include "kernels/cpu/recurrence_chunk_body.h"

namespace weir::kernels {

void RunRecurrenceAvx512(const RecurrenceJob& job) { RunJob(job); }

}  // namespace weir::kernels
#endif
