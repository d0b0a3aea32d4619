//! What a frame of the signer's protocol makes its reader allocate is bounded by the frame itself,
//! whatever its lengths and counts claim. A program of its own with one test, because it counts
//! what the whole process allocates.

use std::alloc::System;
use std::path::Path;

use signers::process::wire::{LARGEST, Malformed, Reply, Request, length};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// An entry of a list takes at most so many octets for each of its own in the frame: eight become
/// two empty strings, and lists grow by doubling.
const FOR_EACH_OCTET: usize = 32;
/// For a list of one entry, and what the test program itself may do meanwhile.
const BESIDES: usize = 1024;

fn allocated_by(read: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    read();
    region.change().bytes_allocated
}

fn assert_bounded(what: &str, body: &[u8]) {
    for (side, read) in [
        ("request", read_request as fn(&[u8])),
        ("reply", read_reply),
    ] {
        let allocated = allocated_by(|| read(body));
        assert!(
            allocated <= FOR_EACH_OCTET * body.len() + BESIDES,
            "{what} as {side}: {} octets made it allocate {allocated}",
            body.len()
        );
    }
}

fn read_request(body: &[u8]) {
    drop(Request::read(body));
}

fn read_reply(body: &[u8]) {
    drop(Reply::read(body));
}

#[test]
fn no_frame_makes_its_reader_allocate_more_than_it_carries() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut bodies = 0;
    for target in ["signer_request", "signer_reply"] {
        for file in std::fs::read_dir(corpus.join(target)).expect("committed") {
            let path = file.expect("readable").path();
            let body = std::fs::read(&path).expect("readable");
            let name = path.display().to_string();
            assert_bounded(&name, &body);
            // Every four octets in turn claim that four gigabytes follow, every two that 65535
            // entries do.
            for at in 0..body.len() {
                for claimed in [4, 2] {
                    let mut lies = body.clone();
                    lies[at..]
                        .iter_mut()
                        .take(claimed)
                        .for_each(|octet| *octet = 0xff);
                    assert_bounded(&format!("{name}, {claimed} at {at}"), &lies);
                }
            }
            bodies += 1;
        }
    }
    assert!(bodies >= 48, "the corpus is there");
    // As many of the smallest entries as a frame can hold.
    for (kind, header) in [
        ("ready", vec![1, 1]),
        ("health", vec![5]),
        ("begin", [vec![1, 1, 1], vec![0; 4]].concat()),
    ] {
        let body = [header, vec![0xff; 2], vec![0; LARGEST - 16]].concat();
        assert_bounded(kind, &body);
    }
    assert_eq!(
        length(u32::try_from(LARGEST + 1).expect("small").to_be_bytes()),
        Err(Malformed),
        "no buffer is made for more"
    );
}
