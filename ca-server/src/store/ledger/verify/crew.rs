//! The threads that judge rows. Each job's answer comes by a channel of its own, so that answers
//! can be taken in the order of the jobs.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use super::findings::Finding;
use super::judge::{self, Checks, Judged, Pair, Stretch};

enum Job {
    Page(Vec<Stretch>, oneshot::Sender<Judged>),
    Pairs(Vec<Pair>, oneshot::Sender<Vec<Finding>>),
}

/// Threads that end when they are dropped. Whoever hands out work bounds how much of it waits.
pub(super) struct Crew {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    pub(super) fn start(threads: NonZeroUsize, checks: &Checks) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let mut crew = Self {
            jobs: Some(jobs),
            threads: Vec::with_capacity(threads.get()),
        };
        for number in 0..threads.get() {
            let (waiting, checks) = (waiting.clone(), checks.clone());
            let work = move || while work(&waiting, &checks) {};
            crew.threads.push(
                thread::Builder::new()
                    .name(format!("verify-{number}"))
                    .spawn(work)?,
            );
        }
        Ok(crew)
    }

    pub(super) fn judge(&self, page: Vec<Stretch>) -> oneshot::Receiver<Judged> {
        let (answer, judged) = oneshot::channel();
        self.hand_out(Job::Page(page, answer));
        judged
    }

    pub(super) fn check(&self, pairs: Vec<Pair>) -> oneshot::Receiver<Vec<Finding>> {
        let (answer, checked) = oneshot::channel();
        self.hand_out(Job::Pairs(pairs, answer));
        checked
    }

    fn hand_out(&self, job: Job) {
        // With no thread left, the job's answer says so by never coming.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

/// Does one job; false when there will be none.
fn work(waiting: &Mutex<mpsc::Receiver<Job>>, checks: &Checks) -> bool {
    let job = waiting
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .recv();
    match job {
        Ok(Job::Page(page, answer)) => drop(answer.send(judge::page(page, checks))),
        Ok(Job::Pairs(pairs, answer)) => drop(answer.send(judge::pairs(pairs, checks.signatures))),
        Err(_) => return false,
    }
    true
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
