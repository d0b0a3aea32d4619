//! How long the disk holds up whoever makes a write durable. What was written before (a build
//! leaves gigabytes) is written back while stories run, and a commit then takes seconds. A story
//! that limits a wait watches the disk beside it and allows for what it saw.

use std::io::{Seek, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Makes a write durable again and again, beside the databases of the stories, until it is dropped.
pub struct Disk {
    waits: Arc<Mutex<Waits>>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Waits {
    /// When each ended, and how long it took.
    ended: Vec<(Instant, Duration)>,
    begun: Option<Instant>,
}

impl Disk {
    pub fn watched() -> Self {
        let waits = Arc::new(Mutex::new(Waits::default()));
        let (end, ended) = channel();
        let mut file = tempfile::tempfile().expect("a temporary file");
        let seen = Arc::clone(&waits);
        let thread = std::thread::spawn(move || {
            while ended.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                let begun = Instant::now();
                seen.lock().expect("unpoisoned").begun = Some(begun);
                file.rewind()
                    .and_then(|()| file.write_all(b"durable"))
                    .and_then(|()| file.sync_all())
                    .expect("written");
                let mut seen = seen.lock().expect("unpoisoned");
                seen.begun = None;
                seen.ended.push((Instant::now(), begun.elapsed()));
            }
        });
        Self {
            waits,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// The longest wait for a durable write that was under way since then.
    pub fn longest_wait_since(&self, then: Instant) -> Duration {
        let waits = self.waits.lock().expect("unpoisoned");
        let ended = waits
            .ended
            .iter()
            .rev()
            .take_while(|(ended, _)| *ended >= then)
            .map(|(_, took)| *took);
        ended
            .chain(waits.begun.map(|begun| begun.elapsed()))
            .max()
            .unwrap_or_default()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
