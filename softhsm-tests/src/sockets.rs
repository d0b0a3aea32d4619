//! The sockets of a running daemon, as `/proc` tells them: its clients', and those to its database.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;

/// The inodes of every socket that a process has open; `None` while it ends.
fn open(pid: u32) -> Option<BTreeSet<u64>> {
    let mut descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .flatten()
        .peekable();
    descriptors.peek()?;
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    Some(
        targets
            .filter_map(|target| {
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .parse()
                    .ok()
            })
            .collect(),
    )
}

/// Of each TCP socket on this machine: its inode, its own port, its peer's port (0: it listens).
fn tcp(pid: u32) -> BTreeMap<u64, (u16, u16)> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let lines = text.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        Some((
            columns.get(9)?.parse().ok()?,
            (port(columns[1])?, port(columns[2])?),
        ))
    });
    lines.collect()
}

/// The daemon's end of the connection that a client has from `client`, once it is accepted.
pub fn of_client(pid: u32, server: SocketAddr, client: SocketAddr) -> Option<u64> {
    let (open, tcp) = (open(pid)?, tcp(pid));
    let accepted = tcp
        .into_iter()
        .find(|(inode, ports)| *ports == (server.port(), client.port()) && open.contains(inode));
    accepted.map(|(inode, _)| inode)
}

/// How many clients are connected there; `None` while the process ends.
pub fn clients(pid: u32, server: SocketAddr) -> Option<usize> {
    let (open, tcp) = (open(pid)?, tcp(pid));
    Some(
        open.iter()
            .filter_map(|inode| tcp.get(inode))
            .filter(|(own, peer)| *own == server.port() && *peer != 0)
            .count(),
    )
}

/// Every socket that is none of those listeners' nor a client's of theirs: with a database server,
/// the way to it.
pub fn others(pid: u32, servers: &[SocketAddr]) -> Vec<u64> {
    let tcp = tcp(pid);
    let ours = |inode: &u64| {
        tcp.get(inode)
            .is_some_and(|(own, _)| servers.iter().any(|server| server.port() == *own))
    };
    open(pid)
        .unwrap_or_default()
        .into_iter()
        .filter(|inode| !ours(inode))
        .collect()
}
