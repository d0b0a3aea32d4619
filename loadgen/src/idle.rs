//! Connections that are opened beside the load and do nothing: what a mesh's agents keep between
//! two renewals. They live on a thread of their own until the program ends, and answer the server's
//! pings.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::{LocalSet, spawn_local};

use crate::exit::Exit;
use crate::progress::bar;
use crate::report::Idle;
use crate::target::Target;
use crate::worker::runtime;

/// Connections that shake hands at the same time.
const AT_ONCE: usize = 32;

/// Held until the program ends.
pub struct IdleConnections {
    wanted: usize,
    open: Arc<AtomicUsize>,
}

impl IdleConnections {
    /// Opens so many; none if none are wanted.
    pub fn open(target: &Arc<Target>, wanted: usize) -> Result<Option<Self>, Exit> {
        if wanted == 0 {
            return Ok(None);
        }
        let bar = bar("opening idle connections", wanted as u64);
        let (open, (told, done)) = (Arc::new(AtomicUsize::new(0)), std::sync::mpsc::channel());
        let (target, runtime, counted) = (target.clone(), runtime()?, open.clone());
        std::thread::spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                let left = Rc::new(Cell::new(wanted));
                for _ in 0..AT_ONCE.min(wanted) {
                    let (target, counted, left, told) =
                        (target.clone(), counted.clone(), left.clone(), told.clone());
                    spawn_local(async move {
                        while left.get() > 0 {
                            left.update(|count| count - 1);
                            match target.open().await {
                                Ok((sender, connection)) => {
                                    counted.fetch_add(1, Ordering::Relaxed);
                                    let counted = counted.clone();
                                    spawn_local(async move {
                                        // A connection without a handle on it is closed; how this
                                        // one ended does not matter.
                                        let _ = connection.await;
                                        drop(sender);
                                        counted.fetch_sub(1, Ordering::Relaxed);
                                    });
                                    let _ = told.send(Ok(()));
                                }
                                Err(failure) => drop(told.send(Err(failure))),
                            }
                        }
                    });
                }
                std::future::pending::<()>().await;
            });
        });
        for _ in 0..wanted {
            match done.recv() {
                Ok(Ok(())) => bar.inc(1),
                Ok(Err(failure)) => {
                    return Err(Exit::missing(format!(
                        "idle connection {}: {failure}",
                        bar.position() + 1
                    )));
                }
                Err(_) => return Err(Exit::missing("the thread of the idle connections ended")),
            }
        }
        bar.finish_and_clear();
        Ok(Some(Self { wanted, open }))
    }

    /// How many there were and are.
    pub fn told(&self) -> Idle {
        Idle {
            connections: self.wanted,
            open_at_end: self.open.load(Ordering::Relaxed),
        }
    }
}
