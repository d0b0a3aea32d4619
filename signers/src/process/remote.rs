//! A key in a signer process, as the daemon's calls see it: jobs go to the supervisor's task,
//! health is what that task last heard.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::options::KeyOfProcess;
use super::order::{Order, RemoteJob};
use crate::pool::job::{Answer, Progress};
use crate::{Health, HealthState, Job, KeyUri, PublicKey, SignError, SignFailure};

/// How long `stop` waits for the process; it gives its threads two seconds.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// One key of one signer process. The process ends when the last of its keys is dropped.
#[derive(Debug)]
pub struct RemoteKey {
    key: KeyOfProcess,
    number: u16,
    orders: mpsc::UnboundedSender<Order>,
    health: Arc<Mutex<Vec<Health>>>,
}

impl RemoteKey {
    pub(super) fn new(
        key: KeyOfProcess,
        number: u16,
        orders: mpsc::UnboundedSender<Order>,
        health: Arc<Mutex<Vec<Health>>>,
    ) -> Self {
        Self {
            key,
            number,
            orders,
            health,
        }
    }

    pub(crate) fn submit(
        &self,
        job: Job,
        progress: Progress,
        answer: oneshot::Sender<Answer>,
        only: bool,
    ) -> Result<(), SignFailure> {
        let order = Order::Sign(RemoteJob {
            key: self.number,
            job,
            progress,
            answer,
            only,
            sent: 0,
        });
        let stopped = |_| SignFailure {
            error: SignError::Stopped,
            deadline_passed: false,
            reached_device: false,
        };
        self.orders.send(order).map_err(stopped)
    }

    pub(crate) fn public_key(&self) -> &PublicKey {
        &self.key.expected
    }

    pub(crate) fn uri(&self) -> &KeyUri {
        &self.key.uri
    }

    pub(crate) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(self.number)].clone()
    }

    /// Why it waits for an operator, if it does, as last heard.
    pub(crate) fn locked(&self) -> Option<SignError> {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let key = &health[usize::from(self.number)];
        // The detail is the error's whole sentence.
        let cause = || {
            key.detail
                .strip_prefix("the token is locked to us: ")
                .unwrap_or(&key.detail)
        };
        (key.state == HealthState::Locked).then(|| SignError::Locked(cause().to_owned()))
    }

    pub(crate) fn retry_login_ordered_at(&self, ordered_at: Instant) {
        let _ = self.orders.send(Order::LogIn(ordered_at));
    }

    pub(crate) fn signature_was_wrong(&self) {
        let _ = self.orders.send(Order::Distrust(self.number));
    }

    pub(crate) fn stop(&self) -> bool {
        let (done, ended) = std::sync::mpsc::channel();
        // Where the task has ended, so has the process.
        self.orders.send(Order::Stop(done)).is_err()
            || ended.recv_timeout(STOP_WAIT).unwrap_or(false)
    }
}
