//! Work before and after the clock, spread over every processor.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::exit::Exit;

/// Calls `make` with 0 to `count - 1`, and answers in that order. The first error ends it.
pub fn in_parallel<T: Send>(
    count: usize,
    make: impl Fn(usize) -> Result<T, Exit> + Sync,
) -> Result<Vec<T>, Exit> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let parts: Result<Vec<Vec<(usize, T)>>, Exit> = std::thread::scope(|scope| {
        let work = || {
            let mut made = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return Ok(made);
                }
                match make(n) {
                    Ok(one) => made.push((n, one)),
                    Err(error) => {
                        next.store(count, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let mut all: Vec<(usize, T)> = parts?.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(n, _)| *n);
    Ok(all.into_iter().map(|(_, one)| one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_stand_in_order() {
        assert_eq!(
            in_parallel(1000, Ok).unwrap(),
            (0..1000).collect::<Vec<_>>()
        );
    }

    #[test]
    fn an_error_is_the_answer() {
        assert!(
            in_parallel(1000, |n| if n == 500 {
                Err(Exit::usage("no"))
            } else {
                Ok(n)
            })
            .is_err()
        );
    }
}
