//! Rows that are committed together, and who waits for them. A batch is made from a chain that it
//! does not change: only `settle`, called when the rows are known to be durable, hands out the
//! advanced chain.

use super::chain::{Chain, OpenIntents};
use super::event::{Event, Hash, Row, Why};
use super::status::{behind, is_behind};
use super::work::{Answer, Item, NotFiled, OpenIntent, Reply};
use crate::refusal::{Reason, Refusal};
use crate::timestamp::Timestamp;
use crate::x509::Serial;

/// See the module.
pub(super) struct Batch {
    chain: Chain,
    rows: Vec<Row>,
    /// Who waits, each with the index of their row.
    waiting: Vec<(usize, Answer)>,
}

impl Batch {
    /// The rows of `items`, next in `chain`. Intents that may not be recorded now are answered at
    /// once.
    pub(super) fn new(items: Vec<Item>, chain: &Chain, open: &OpenIntents, now: Timestamp) -> Self {
        let mut batch = Self {
            chain: chain.clone(),
            rows: Vec::with_capacity(items.len() + 1),
            waiting: Vec::with_capacity(items.len()),
        };
        for Item {
            event,
            request,
            answer,
        } in items
        {
            let answer = match answer {
                Answer::Intent {
                    reply,
                    queue,
                    permit,
                } => match batch.objection(&event, now) {
                    _ if reply.is_closed() => continue,
                    Some(objection) => {
                        let _ = reply.send(Err(objection));
                        continue;
                    }
                    None => Answer::Intent {
                        reply,
                        queue,
                        permit,
                    },
                },
                // The process that took this one for dead has closed the intent; a second outcome
                // must not come about.
                Answer::Outcome { reply, .. }
                    if event
                        .closes()
                        .is_some_and(|intent| intent.chain != chain.id()) =>
                {
                    answer_to(
                        reply,
                        Err(Refusal::new(
                            Reason::LedgerDown,
                            "the intent was closed as unknown by another process",
                        )),
                    );
                    continue;
                }
                other => other,
            };
            batch
                .chain
                .append(event, request, now, open, &mut batch.rows);
            batch.waiting.push((batch.rows.len() - 1, answer));
        }
        batch
    }

    fn objection(&self, event: &Event, now: Timestamp) -> Option<NotFiled> {
        if is_behind(now, self.chain.time()) {
            return Some(NotFiled::Refused(behind(now, self.chain.time())));
        }
        let period = self.chain.period(now);
        let serial = event.projection().serial.and_then(Serial::from_bytes);
        (serial.map(|serial| serial.period()) != Some(period))
            .then_some(NotFiled::PeriodMoved(period))
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(super) fn last_hash(&self) -> Option<Hash> {
        self.rows.last().map(|row| row.hash)
    }

    /// The rows are durable: answers everybody. What is returned must be recorded next.
    pub(super) fn settle(self, open: &mut OpenIntents) -> (Chain, Vec<Item>) {
        let mut retained = Vec::new();
        for (at, answer) in self.waiting {
            let row = &self.rows[at];
            match answer {
                Answer::Intent {
                    reply,
                    queue,
                    permit,
                } => {
                    open.insert(row.header.place, row.hash);
                    let request = row.header.request;
                    // A caller that is gone drops its intent, which files it as unknown.
                    let _ =
                        reply.send(Ok(OpenIntent::new(row.reference(), request, queue, permit)));
                }
                Answer::Withheld { permit } => {
                    open.insert(row.header.place, row.hash);
                    let why = Why::from(&Refusal::new(
                        Reason::LedgerDown,
                        "the call was refused before its intent was known to be recorded",
                    ));
                    retained.push(Item {
                        event: Event::Failed {
                            intent: row.reference(),
                            why,
                        },
                        request: row.header.request,
                        answer: Answer::Outcome {
                            intent: row.header.place,
                            reply: None,
                            permit,
                        },
                    });
                }
                Answer::Outcome {
                    intent,
                    reply,
                    permit,
                } => {
                    open.remove(&intent);
                    drop(permit);
                    answer_to(reply, Ok(()));
                }
                Answer::Fact(reply) | Answer::Repeat(reply) => answer_to(reply, Ok(())),
                Answer::WhileClaimed | Answer::Nobody => {}
            }
        }
        (self.chain, retained)
    }

    /// The rows are not durable: intents, reloads and repeats are refused. What is returned must be
    /// recorded later.
    pub(super) fn fail(self, refusal: &Refusal) -> Vec<Item> {
        let mut rows: Vec<Option<Row>> = self.rows.into_iter().map(Some).collect();
        let items = self.waiting.into_iter().filter_map(|(at, answer)| {
            let row = rows[at].take()?;
            Some(Item {
                event: row.event,
                request: row.header.request,
                answer,
            })
        });
        refuse(items.collect(), refusal)
    }

    /// Nobody knows whether the rows are durable: intents are refused, and closed as failed should
    /// they turn out to be. Repeats are refused too; a row that says that a certificate could leave
    /// again does no harm.
    pub(super) fn withhold(&mut self, refusal: &Refusal) {
        for (_, answer) in &mut self.waiting {
            *answer = match std::mem::replace(answer, Answer::Nobody) {
                Answer::Intent { reply, permit, .. } => {
                    let _ = reply.send(Err(NotFiled::Refused(refusal.clone())));
                    Answer::Withheld { permit }
                }
                Answer::Repeat(reply) => {
                    answer_to(reply, Err(refusal.clone()));
                    Answer::Repeat(None)
                }
                other => other,
            };
        }
    }
}

/// Refuses what cannot be recorded now; returns what must be recorded later.
pub(super) fn refuse(items: Vec<Item>, refusal: &Refusal) -> Vec<Item> {
    let mut kept = Vec::new();
    for Item {
        event,
        request,
        answer,
    } in items
    {
        match answer {
            Answer::Intent { reply, .. } => {
                let _ = reply.send(Err(NotFiled::Refused(refusal.clone())));
            }
            Answer::Fact(reply) | Answer::Repeat(reply) => answer_to(reply, Err(refusal.clone())),
            Answer::Withheld { .. } | Answer::WhileClaimed => {}
            Answer::Outcome { .. } | Answer::Nobody => kept.push(Item {
                event,
                request,
                answer,
            }),
        }
    }
    kept
}

/// Refuses everything: nothing will ever be recorded again.
pub(super) fn refuse_for_ever(items: Vec<Item>, refusal: &Refusal) {
    for item in refuse(items, refusal) {
        if let Answer::Outcome { reply, .. } = item.answer {
            answer_to(reply, Err(refusal.clone()));
        }
    }
}

fn answer_to(reply: Option<Reply>, answer: Result<(), Refusal>) {
    if let Some(reply) = reply {
        let _ = reply.send(answer);
    }
}
