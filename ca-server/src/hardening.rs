//! What a process gives up. Every verb, at its start: core files, and being traced or read by
//! others of its user. A signer process, before it loads a device's library, besides: new
//! privileges, capabilities, swapping, other programs, and the network unless its device is on it.
//! What the kernel does not let it give up is returned as sentences.

use landlock::{AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus};
use rlimit::{INFINITY, Resource, setrlimit};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// What every verb gives up, because any may read a PIN or load a library that does: no core file
/// is written, and nobody but root can read its memory, its environment or its descriptors. Another
/// program that it executes has to give them up anew.
pub fn hide() -> Vec<String> {
    let mut missing = Missing::default();
    missing.step(
        "core files are not switched off",
        setrlimit(Resource::CORE, 0, 0).map_err(text),
    );
    missing.step(
        "its memory can be read by a tracer",
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(text),
    );
    missing.0
}

/// Gives up the rest of what can be given up. Call before any other thread starts.
pub fn enter(network: bool) -> Vec<String> {
    let mut missing = Missing::default();
    let mut step = |what: &str, done| missing.step(what, done);
    step("its memory may be swapped", lock_memory());
    step(
        "it may gain privileges",
        set_no_new_privs(true).map_err(text),
    );
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    step(
        "it keeps its capabilities",
        set_capabilities(None, none).map_err(text),
    );
    step("Landlock does not confine it", landlock(network));
    step("seccomp does not confine it", seccomp(network));
    missing.0
}

/// What could not be given up.
#[derive(Default)]
struct Missing(Vec<String>);

impl Missing {
    fn step(&mut self, what: &str, done: Result<(), String>) {
        if let Err(why) = done {
            self.0.push(format!("{what}: {why}"));
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Pages that are in use stay in memory. Without an unlimited allowance a later allocation would
/// fail instead, so then nothing is locked.
fn lock_memory() -> Result<(), String> {
    setrlimit(Resource::MEMLOCK, INFINITY, INFINITY)
        .map_err(|error| format!("RLIMIT_MEMLOCK is not unlimited: {error}"))?;
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(text)
}

/// No program is executed, and no TCP port bound or connected to.
fn landlock(network: bool) -> Result<(), String> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::Execute)
        .map_err(text)?;
    let rules = if network {
        rules
    } else {
        rules
            .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)
            .map_err(text)?
    };
    let status = rules
        .create()
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(text)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced => Err("this kernel has a part of it only".to_owned()),
        RulesetStatus::NotEnforced => Err("this kernel does not have it".to_owned()),
    }
}

/// No other program, no tracing, no mounts, no kernel modules; no sockets but Unix ones. What is
/// refused answers EPERM, so that a library that merely tries goes on.
fn seccomp(network: bool) -> Result<(), String> {
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    if !network {
        let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, AF_UNIX)
            .map_err(text)?;
        rules.insert(
            libc::SYS_socket,
            vec![SeccompRule::new(vec![other]).map_err(text)?],
        );
    }
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let architecture = std::env::consts::ARCH.try_into().map_err(text)?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).map_err(text)?;
    let program: BpfProgram = filter.try_into().map_err(text)?;
    seccompiler::apply_filter(&program).map_err(text)
}

const AF_UNIX: u64 = libc::AF_UNIX as u64;

const REFUSED: [i64; 20] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    // Sockets of every kind could be had through it.
    libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_reboot,
];
