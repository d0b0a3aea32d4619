//! The end of a process that has a library loaded.

/// Ends this process at once (`_exit`, POSIX.1-2024): the library's own clean-up does not run.
/// Beside a call that has not returned, or while other threads are inside the library, that
/// clean-up crashes or hangs.
#[expect(
    unsafe_code,
    reason = "std ends a process only with the clean-up of every library in it"
)]
pub fn end_process(status: u8) -> ! {
    // SAFETY: `_exit` asks nothing of its caller and does not return.
    unsafe { libc::_exit(status.into()) }
}
