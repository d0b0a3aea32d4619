//! What the process that has loaded this module may do. A sandbox is told by what it refuses, so
//! each call that one should refuse is made, with arguments that do no harm should it be allowed.

use std::ffi::c_long;
use std::fs;
use std::io;
use std::path::Path;

/// Makes every attempt if the directory has a file `attempt`, and writes how each ended into
/// `attempts`: a name and an errno a line, 0 for success; then whether the process can be dumped,
/// and its limit on core files.
pub(crate) fn answer() {
    let Some(directory) = std::env::var_os("PKCS11_FAULT_DIR") else {
        return;
    };
    let directory = Path::new(&directory);
    if !directory.join("attempt").exists() {
        return;
    }
    let mut text: String = calls()
        .iter()
        .map(|(name, call)| format!("{name} {}\n", made(call)))
        .collect();
    let opened = |path: &Path| {
        fs::File::open(path).map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
    };
    text += &format!(
        "parents-memory {}\n",
        opened(Path::new(&format!(
            "/proc/{}/mem",
            std::os::unix::process::parent_id()
        )))
    );
    text += &format!("closed-file {}\n", opened(&directory.join("closed")));
    text += &format!("dumpable {}\ncore {}\n", dumpable(), core());
    let written = fs::write(directory.join("attempts.new"), text);
    if let Err(error) = written
        .and_then(|()| fs::rename(directory.join("attempts.new"), directory.join("attempts")))
    {
        eprintln!("pkcs11-fault: {error}");
    }
}

/// A system call and its arguments.
type Call = (c_long, [c_long; 6]);

const NOWHERE: &std::ffi::CStr = c"/nonexistent";

fn calls() -> Vec<(&'static str, Call)> {
    let nowhere = NOWHERE.as_ptr() as c_long;
    let socket = |family: i32| {
        (
            libc::SYS_socket,
            [
                c_long::from(family),
                c_long::from(libc::SOCK_RAW | libc::SOCK_CLOEXEC),
                0,
                0,
                0,
                0,
            ],
        )
    };
    let stream = |family: i32| {
        (
            libc::SYS_socket,
            [
                c_long::from(family),
                c_long::from(libc::SOCK_STREAM | libc::SOCK_CLOEXEC),
                0,
                0,
                0,
                0,
            ],
        )
    };
    let with = |number, arguments: [c_long; 2]| (number, [arguments[0], arguments[1], 0, 0, 0, 0]);
    vec![
        ("socket-unix", stream(libc::AF_UNIX)),
        ("socket-inet", stream(libc::AF_INET)),
        ("socket-inet6", stream(libc::AF_INET6)),
        ("socket-netlink", socket(libc::AF_NETLINK)),
        ("socket-packet", socket(libc::AF_PACKET)),
        ("execve", with(libc::SYS_execve, [nowhere, 0])),
        ("execveat", with(libc::SYS_execveat, [-1, nowhere])),
        (
            "ptrace",
            with(libc::SYS_ptrace, [c_long::from(libc::PTRACE_PEEKDATA), 0]),
        ),
        ("process_vm_readv", with(libc::SYS_process_vm_readv, [0, 0])),
        (
            "process_vm_writev",
            with(libc::SYS_process_vm_writev, [0, 0]),
        ),
        ("mount", with(libc::SYS_mount, [nowhere, nowhere])),
        ("umount2", with(libc::SYS_umount2, [nowhere, 0])),
        ("pivot_root", with(libc::SYS_pivot_root, [nowhere, nowhere])),
        ("chroot", with(libc::SYS_chroot, [nowhere, 0])),
        ("unshare", with(libc::SYS_unshare, [0, 0])),
        ("setns", with(libc::SYS_setns, [-1, 0])),
        ("init_module", with(libc::SYS_init_module, [0, 0])),
        ("finit_module", with(libc::SYS_finit_module, [-1, nowhere])),
        // More segments than there may be: none would unload what is loaded.
        ("kexec_load", with(libc::SYS_kexec_load, [0, 1_000_000])),
        ("io_uring_setup", with(libc::SYS_io_uring_setup, [0, 0])),
        (
            "open_by_handle_at",
            with(libc::SYS_open_by_handle_at, [-1, 0]),
        ),
        ("bpf", with(libc::SYS_bpf, [0, 0])),
        ("perf_event_open", with(libc::SYS_perf_event_open, [0, 0])),
        // Without its magic numbers it does nothing.
        ("reboot", with(libc::SYS_reboot, [0, 0])),
    ]
}

#[allow(
    unsafe_code,
    reason = "calls that no safe wrapper makes, to see them refused"
)]
fn made(&(number, [a, b, c, d, e, f]): &Call) -> i32 {
    // SAFETY: each call has null pointers, descriptors that are none, or a path where nothing is:
    // should the kernel allow it, it fails there, or makes a socket that nobody uses.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 {
        io::Error::last_os_error().raw_os_error().unwrap_or(-1)
    } else {
        0
    }
}

#[allow(unsafe_code, reason = "prctl has no safe wrapper here")]
fn dumpable() -> i32 {
    // SAFETY: PR_GET_DUMPABLE takes no argument and only answers.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }
}

#[allow(unsafe_code, reason = "getrlimit has no safe wrapper here")]
fn core() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: it writes the two numbers of a limit, which live until then.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) };
    if got == 0 { limit.rlim_max } else { u64::MAX }
}
