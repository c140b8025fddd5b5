//! Ends the process without running what libraries want to run at its end.
//!
//! A GPU's driver frees what it has in such code, while the thread of a unit may still be inside it: a program that had
//! done its work then crashed, and one whose GPU hung would wait for it for ever. *Invariant:* nothing of ours runs at a
//! process's end; what was written is flushed first.

use std::io::Write;

/// Ends the process with `code`, once stdout and stderr are flushed.
pub fn leave(code: u8) -> ! {
    // Who reads them may be gone; there is nobody left to tell.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    #[cfg(unix)]
    // SAFETY: the call takes a number and does not return; it ends all threads at once, so that none can see memory that
    // another has freed.
    unsafe {
        libc::_exit(i32::from(code))
    }
    #[cfg(not(unix))]
    std::process::exit(i32::from(code))
}
