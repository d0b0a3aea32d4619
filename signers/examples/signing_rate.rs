//! How many signatures a second a key makes, in bare sessions and through the pool: `signing_rate
//! KEY_URI [THREADS] [TASKS] [SECONDS]`.
//!
//! Use a throw-away key: its signatures are recorded nowhere.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use signers::{Job, KeyUri, PoolOptions, Purpose, Signer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let uri = KeyUri::parse(arguments.first().ok_or("name a key URI")?, Path::new("/"))?;
    let (threads, tasks, seconds) = (number(1, 4)?, number(2, 64)?, number(3, 5)?);

    let end = Instant::now() + Duration::from_secs(seconds as u64);
    let bare: Vec<_> = (0..threads)
        .map(|_| {
            let mut device = signers::open_device(&uri)?;
            Ok(std::thread::spawn(move || {
                let mut count = 0;
                while Instant::now() < end && device.sign(&[0; 1000]).is_ok() {
                    count += 1;
                }
                count
            }))
        })
        .collect::<Result<_, signers::SignError>>()?;
    let count: u64 = bare
        .into_iter()
        .filter_map(|thread| thread.join().ok())
        .sum();
    println!(
        "{threads} bare sessions: {:.0} signatures/s",
        count as f64 / seconds as f64
    );

    let signer = Signer::start(
        uri,
        PoolOptions {
            threads,
            ..PoolOptions::default()
        },
    )?;
    let (count, end) = (
        Arc::new(AtomicU64::new(0)),
        Instant::now() + Duration::from_secs(seconds as u64),
    );
    let begun = Instant::now();
    let workers: Vec<_> = (0..tasks)
        .map(|_| {
            let (signer, count) = (signer.clone(), count.clone());
            tokio::spawn(async move {
                while Instant::now() < end {
                    let job = Job {
                        purpose: Purpose::Probe,
                        deadline: Instant::now() + Duration::from_secs(5),
                        message: vec![0; 1000],
                    };
                    signer.sign(job).await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, signers::SignFailure>(())
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    println!(
        "{threads} threads, {tasks} tasks: {:.0} signatures/s",
        count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
    );
    Ok(())
}
