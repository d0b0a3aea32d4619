//! Calls that are made again: an agent that got no answer in time, or two requests for one thing at
//! once. Whoever asks the same within a minute gets the certificate that is recorded, and
//! concurrent calls share one intent. Everything is kept in memory, so much and no more; what is
//! forgotten costs one signature.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::sync::OwnedMutexGuard;

use crate::policy::Grant;
use crate::spiffe::SpiffeId;
use crate::store::ledger::{Issued, Remembered};
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;

/// How long a certificate is given out again.
const MINUTE: Duration = Duration::from_secs(60);

/// Nor longer than this part of its life, so that nobody gets one that must soon be renewed.
const PART_OF_LIFE: u32 = 10;

/// Calls that may wait for one answer.
const WAITING: usize = 64;

/// Questions that are kept, about a kilobyte each; the oldest makes room.
const KEPT: usize = 32_768;

/// Questions are forgotten after this; longer than a call and its certificate's minute together.
const FORGOTTEN: Duration = Duration::from_secs(150);

/// What makes two calls the same: who asks, with which CSR, and everything that decides what
/// becomes of it. A digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question([u8; 32]);

impl Question {
    /// `lifetime` as it was asked for. Of the grant counts the profile, of the issuers that may
    /// sign it their certificates, so that a reload that changes one of them makes it another
    /// question.
    pub fn new(
        caller: &SpiffeId,
        csr: &str,
        lifetime: i64,
        grant: &Grant,
        issuers: &[Arc<IssuerChain>],
    ) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        // Each part after its length, so that no two lists of parts are one text.
        let mut part = |octets: &[u8]| {
            context.update(&(octets.len() as u64).to_be_bytes());
            context.update(octets);
        };
        part(caller.to_string().as_bytes());
        part(csr.as_bytes());
        part(&lifetime.to_be_bytes());
        part(grant.profile());
        for issuer in issuers {
            part(issuer.id().as_bytes());
            issuer
                .chain()
                .iter()
                .for_each(|certificate| part(certificate));
        }
        Self(
            context
                .finish()
                .as_ref()
                .try_into()
                .expect("SHA-256 has 32 octets"),
        )
    }
}

/// What a call does after its question.
#[derive(Debug)]
pub enum Turn {
    /// It goes first: nothing is recorded, or not any more.
    First(Place),
    /// It gets this certificate.
    Again(Arc<Remembered>),
    /// So many ask the same already that it is refused: who waits holds a place among all calls.
    Crowded,
}

/// The right to answer a question, and the duty to let others have it: whoever waits goes on when
/// this is dropped, with the certificate that was left here or as the next to go first.
#[derive(Debug)]
pub struct Place(OwnedMutexGuard<Answer>);

impl Place {
    /// The certificate that is the answer from `now` on.
    pub fn leave(mut self, issued: &Issued, now: Timestamp) {
        *self.0 = issued
            .remembered()
            .map(|certificate| (now, Arc::new(certificate)));
    }
}

/// The certificate and when it was asked for; none before the first was issued.
type Answer = Option<(Timestamp, Arc<Remembered>)>;

/// The questions of the last minutes, for the life of the daemon.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    answers: HashMap<Question, Arc<tokio::sync::Mutex<Answer>>>,
    /// The keys of `answers`, each once, the oldest first.
    order: VecDeque<(Timestamp, Question)>,
}

impl Repeats {
    /// Waits for the call that asks the same and goes before, if there is one.
    pub async fn turn(&self, question: Question, now: Timestamp) -> Turn {
        let answer = self.answer(question, now);
        // Beside this one and the map's: those that wait, and the one that they wait for.
        if Arc::strong_count(&answer) > WAITING + 2 {
            return Turn::Crowded;
        }
        let answer = answer.lock_owned().await;
        match &*answer {
            Some((since, certificate)) if is_good(*since, certificate.ends(), now) => {
                Turn::Again(certificate.clone())
            }
            _ => Turn::First(Place(answer)),
        }
    }

    fn answer(&self, question: Question, now: Timestamp) -> Arc<tokio::sync::Mutex<Answer>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = kept.answers.get(&question) {
            return answer.clone();
        }
        while kept
            .order
            .front()
            .is_some_and(|(since, _)| kept.order.len() >= KEPT || apart(*since, now) >= FORGOTTEN)
        {
            if let Some((_, oldest)) = kept.order.pop_front() {
                kept.answers.remove(&oldest);
            }
        }
        kept.order.push_back((now, question));
        kept.answers.entry(question).or_default().clone()
    }
}

/// Whether a certificate that was asked for at `since` and ends at `ends` is still given out.
fn is_good(since: Timestamp, ends: Timestamp, now: Timestamp) -> bool {
    apart(since, now) < MINUTE.min(ends.since(since) / PART_OF_LIFE)
}

/// A clock that was set back must not keep an answer for longer than one that runs.
fn apart(one: Timestamp, other: Timestamp) -> Duration {
    one.since(other).max(other.since(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(number: u32) -> Question {
        Question(crate::digest::sha256(&number.to_be_bytes()))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_795_348_800 + seconds)
    }

    async fn first(repeats: &Repeats, question: Question, now: Timestamp) -> Place {
        match repeats.turn(question, now).await {
            Turn::First(place) => place,
            Turn::Again(_) | Turn::Crowded => panic!("nothing was recorded, and nobody waits"),
        }
    }

    #[test]
    fn a_certificate_is_given_out_again_for_a_minute_and_a_tenth_of_its_life() {
        let day = at(86_400);
        assert!(is_good(at(0), day, at(0)) && is_good(at(0), day, at(59)));
        assert!(!is_good(at(0), day, at(60)));
        assert!(
            is_good(at(0), at(100), at(9)) && !is_good(at(0), at(100), at(10)),
            "a short one not into its second half"
        );
        assert!(
            is_good(at(2), day, at(0)),
            "calls that came at once need not be in order"
        );
        assert!(!is_good(at(0), day, at(-60)), "a clock that was set back");
    }

    #[tokio::test]
    async fn whoever_waits_goes_first_when_the_one_before_fails() {
        let repeats = Arc::new(Repeats::default());
        let place = first(&repeats, question(1), at(0)).await;
        let waiting = tokio::spawn({
            let repeats = repeats.clone();
            async move { drop(first(&repeats, question(1), at(1)).await) }
        });
        tokio::task::yield_now().await;
        drop(first(&repeats, question(2), at(1)).await);
        assert!(!waiting.is_finished(), "another question waits for nobody");
        drop(place);
        waiting.await.expect("it goes first");
    }

    #[tokio::test]
    async fn so_many_wait_for_one_answer_and_no_more() {
        let repeats = Arc::new(Repeats::default());
        let place = first(&repeats, question(1), at(0)).await;
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| {
                tokio::spawn({
                    let repeats = repeats.clone();
                    async move { drop(first(&repeats, question(1), at(0)).await) }
                })
            })
            .collect();
        // A runtime with one thread looks at the clock between so many tasks; each has its turn
        // after as many yields.
        for _ in 0..WAITING {
            tokio::task::yield_now().await;
        }
        assert!(matches!(
            repeats.turn(question(1), at(0)).await,
            Turn::Crowded
        ));
        drop(first(&repeats, question(2), at(0)).await);
        drop(place);
        for one in waiting {
            one.await.expect("each has its turn");
        }
        drop(first(&repeats, question(1), at(0)).await);
    }

    #[tokio::test]
    async fn so_many_questions_are_kept_and_no_more() {
        let repeats = Repeats::default();
        for number in 0..40_000 {
            drop(first(&repeats, question(number), at(0)).await);
        }
        let count = |repeats: &Repeats| {
            let kept = repeats.0.lock().unwrap();
            assert_eq!(kept.order.len(), kept.answers.len());
            kept.answers.len()
        };
        assert_eq!(count(&repeats), KEPT);
        assert!(
            !repeats.0.lock().unwrap().answers.contains_key(&question(0)),
            "the oldest makes room"
        );
        drop(first(&repeats, question(50_000), at(150)).await);
        assert_eq!(count(&repeats), 1, "what is over is forgotten");
    }
}
