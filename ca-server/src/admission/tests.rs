//! The room with tasks in it: who is told, and what becomes of a right that nobody takes.

use tokio::task::JoinHandle;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn admission() -> Arc<Admission> {
    Arc::new(Admission::new(1024, Arc::new(Metrics::new())))
}

fn slow() -> Pace {
    Pace {
        sessions: 1,
        per_signature: Some(Duration::from_secs(1)),
    }
}

fn renewal(until: i64) -> Standing {
    Standing::Renewal {
        until: Timestamp::from_seconds(until),
    }
}

/// One that enters, or waits in a task of its own.
fn call(
    admission: &Arc<Admission>,
    standing: Standing,
    patience: Duration,
) -> JoinHandle<Result<Entered, Refusal>> {
    let admission = admission.clone();
    tokio::spawn(async move {
        admission
            .enter("a", slow, standing, Instant::now() + patience)
            .await
    })
}

/// Lets every task go as far as it gets.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// As many as the window holds.
async fn fill(admission: &Arc<Admission>) -> Vec<Entered> {
    let mut inside = Vec::new();
    for _ in 0..3 {
        inside.push(
            call(admission, renewal(10_000), PATIENCE)
                .await
                .unwrap()
                .expect("it enters at once"),
        );
    }
    inside
}

fn waiting(admission: &Admission) -> usize {
    admission.room("a").lock().line.waiting()
}

#[tokio::test]
async fn a_place_that_comes_back_is_given_to_the_next_in_turn() {
    let admission = admission();
    let mut inside = fill(&admission).await;
    let last = call(&admission, renewal(9), PATIENCE);
    settle().await;
    let first = call(&admission, renewal(5), PATIENCE);
    settle().await;
    assert_eq!(
        (waiting(&admission), first.is_finished(), last.is_finished()),
        (2, false, false)
    );
    drop(inside.pop());
    let first = first.await.unwrap().expect("called");
    settle().await;
    assert!(!last.is_finished());
    drop(first);
    last.await.unwrap().expect("called");
    assert!(
        admission
            .metrics
            .render()
            .contains("ca_server_admission_waiting_calls{issuer=\"a\"} 0")
    );
    assert!(
        admission
            .metrics
            .render()
            .contains("ca_server_admission_window_calls{issuer=\"a\"} 3")
    );
    assert!(
        admission
            .metrics
            .render()
            .contains("ca_server_step_seconds_count{step=\"wait\"} 2"),
        "only those that waited"
    );
}

#[tokio::test]
async fn whoever_hangs_up_leaves_the_line_and_a_right_that_nobody_takes_goes_on() {
    let admission = admission();
    let mut inside = fill(&admission).await;
    let (gone, next) = (
        call(&admission, Standing::First, PATIENCE),
        call(&admission, renewal(1), PATIENCE),
    );
    settle().await;
    gone.abort();
    assert!(gone.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(waiting(&admission), 1);
    // The next is told, and gone before it has heard.
    drop(inside.pop());
    next.abort();
    assert!(next.await.is_err_and(|error| error.is_cancelled()));
    let after = call(&admission, renewal(2), PATIENCE);
    settle().await;
    after.await.unwrap().expect("the place that nobody took");
}

#[tokio::test]
async fn a_task_that_panics_gives_its_place_back() {
    let admission = admission();
    let mut inside = fill(&admission).await;
    let next = call(&admission, Standing::First, PATIENCE);
    settle().await;
    let entered = inside.pop().unwrap();
    let panics = tokio::spawn(async move {
        entered.recorded();
        panic!("a fault in the signer's room");
    });
    assert!(panics.await.unwrap_err().is_panic());
    next.await.unwrap().expect("called");
}

#[tokio::test]
async fn whoever_has_no_chance_is_refused_at_once_and_whoever_is_pushed_out_as_well() {
    let admission = admission();
    let _inside = fill(&admission).await;
    let refused = call(&admission, Standing::First, Duration::from_secs(3))
        .await
        .unwrap()
        .expect_err("three are before it");
    assert_eq!(
        (refused.reason(), refused.code().as_str()),
        (Reason::DeviceBusy, "ResourceExhausted")
    );
    assert!(
        refused.detail().contains("makes 1 signatures a second"),
        "{refused}"
    );
    let renews = call(&admission, renewal(1), Duration::from_millis(4500));
    settle().await;
    assert!(!renews.is_finished());
    let first = call(&admission, Standing::First, Duration::from_secs(10));
    assert_eq!(
        renews.await.unwrap().expect_err("pushed out").reason(),
        Reason::DeviceBusy
    );
    settle().await;
    assert!(!first.is_finished());
}

#[tokio::test]
async fn the_daemons_own_certificate_waits_for_nobody_and_issuers_not_for_each_other() {
    let admission = admission();
    let _inside = fill(&admission).await;
    call(&admission, Standing::Daemon, Duration::ZERO)
        .await
        .unwrap()
        .expect("at once");
    admission
        .enter("b", slow, Standing::First, Instant::now() + PATIENCE)
        .await
        .expect("another line");
}

#[tokio::test]
async fn a_device_that_has_not_signed_yet_is_looked_at_by_every_call() {
    let admission = admission();
    let unknown = || Pace {
        sessions: 1,
        per_signature: None,
    };
    let deadline = Instant::now() + PATIENCE;
    let enter = async |pace: fn() -> Pace| {
        admission
            .enter("a", pace, Standing::First, deadline)
            .await
            .expect("called")
    };
    let _two = [enter(unknown).await, enter(unknown).await];
    let mut third = std::pin::pin!(enter(unknown));
    tokio::select! {
        biased;
        _ = &mut third => panic!("two a session, while nothing is known"),
        () = settle() => {}
    }
    let _fourth = enter(|| Pace {
        sessions: 1,
        per_signature: Some(Duration::from_micros(100)),
    })
    .await;
    third.await;
}
