//! Work whose recursion the input decides: a template or a grammar that nests deep makes the compiler
//! recurse, and a value that nests deep makes printing and freeing it recurse. On a stack of this size the
//! bounds on a template's length and instructions come first, whatever the thread of the caller has.
//! Only the pages that are used take memory.

use crate::failure::{Failure, Result};

const STACK_BYTES: usize = 512 << 20;

/// Runs `work` on a thread of its own and waits for it; a panic goes on in the caller.
pub fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("weir-text".to_string())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|e| Failure::exhausted(format!("no thread for the text library: {e}")))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
