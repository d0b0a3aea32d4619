//! What a daemon and a signer process say to each other: frames of a length (four bytes,
//! big-endian) and a body. A body is a byte that says what it is and its fields in order: numbers
//! big-endian, texts and bytes with their length (four bytes) in front. A body that is longer than
//! `LARGEST`, too short, too long for its fields or of an unknown kind is refused whole.

use std::time::Duration;

use crate::pkcs11::{LoginEvent, MayTry};
use crate::pool::job::Timing;
use crate::{HealthState, Purpose, SignError, SignFailure};

/// The first thing that either side says. Both must be of one version.
pub const VERSION: u8 = 2;

/// The largest body; a to-be-signed certificate has a few kilobytes.
pub const LARGEST: usize = 256 * 1024;

/// From the daemon to the signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first frame.
    Begin {
        /// `VERSION`.
        version: u8,
        /// What a spawned signer is to do; `None` to one that has its own config.
        setup: Option<Setup>,
    },
    /// A signature is wanted.
    Sign {
        /// Chosen by the daemon; the answer carries it.
        id: u64,
        /// Which of the signer's keys, counted from 0.
        key: u16,
        /// What the signature is for.
        purpose: Purpose,
        /// How long the caller will wait, to the millisecond.
        time_left: Duration,
        /// The to-be-signed bytes.
        message: Vec<u8>,
    },
    /// An operator's order: a refused PIN may be tried once more.
    LogIn {
        /// Counted from 1 on each connection.
        order: u64,
    },
    /// A signature of this key was wrong: its sessions are opened anew.
    Distrust {
        /// Which key.
        key: u16,
    },
    /// How are you?
    Ask,
}

/// What a spawned signer is to do. Holds no secret: PINs are read from the files that the URIs
/// name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Its keys, in order.
    pub keys: Vec<KeySetup>,
    /// The guard's rules, in the form that the guard reads.
    pub rules: Vec<u8>,
    /// Whether it may try a PIN where something speaks against it.
    pub may_try: MayTry,
}

/// One key of a setup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySetup {
    /// Its URI.
    pub uri: String,
    /// The public key that must be found there, SubjectPublicKeyInfo.
    pub expected: Vec<u8>,
    /// Sessions.
    pub sessions: u16,
    /// How long the device may take for one signature, to the millisecond.
    pub device_limit: Duration,
    /// How long the device may take to open a session, to the millisecond.
    pub open_limit: Duration,
}

/// From the signer to the daemon.
#[derive(Clone, Debug)]
pub enum Reply {
    /// It serves: one key at least is open, or may be opened by and by.
    Ready {
        /// `VERSION`.
        version: u8,
        /// Each key, in order.
        keys: Vec<BegunKey>,
    },
    /// It cannot begin, and ends.
    NotReady(SignError),
    /// A signature.
    Signed {
        /// The request's.
        id: u64,
        /// How long it took.
        timing: Timing,
        /// As X.509 wants it.
        signature: Vec<u8>,
    },
    /// No signature.
    NotSigned {
        /// The request's.
        id: u64,
        /// How long it took.
        timing: Timing,
        /// Why.
        failure: SignFailure,
    },
    /// How each key is.
    Health(Vec<KeyHealth>),
    /// From a spawned signer: what becomes of a C_Login.
    Login {
        /// The last order that had come when the try began; 0 before the first. A later one is
        /// still to be carried out.
        order: u64,
        /// What.
        event: LoginEvent,
    },
}

/// A key of a signer that begins to serve.
#[derive(Clone, Debug)]
pub struct BegunKey {
    /// Its URI.
    pub uri: String,
    /// Its SubjectPublicKeyInfo; of one that is not open, the one that it must have.
    pub public_key: Vec<u8>,
    /// Why it is not open.
    pub trouble: Option<SignError>,
}

/// How a key's pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHealth {
    /// Whether it can sign.
    pub state: HealthState,
    /// Sessions that it should have.
    pub threads: u16,
    /// Sessions that it has.
    pub open: u16,
    /// Device calls past their limit.
    pub stuck: u16,
    /// Jobs that wait.
    pub queued: u32,
    /// How often a session was opened again.
    pub reopened: u64,
    /// For people.
    pub detail: String,
}

/// A frame that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame that is not of the signer's protocol")]
pub struct Malformed;

const PURPOSES: [Purpose; 5] = [
    Purpose::Leaf,
    Purpose::Serving,
    Purpose::CaCertificate,
    Purpose::Crl,
    Purpose::Probe,
];
/// Those that a signer can be in; that it is being replaced only the daemon knows.
const STATES: [HealthState; 5] = [
    HealthState::Ready,
    HealthState::Stuck,
    HealthState::Lost,
    HealthState::Locked,
    HealthState::Stopped,
];

const MAY_TRY: [MayTry; 3] = [MayTry::Carefully, MayTry::Again, MayTry::Ordered];

/// The length that a frame's first four bytes announce.
pub fn length(header: [u8; 4]) -> Result<usize, Malformed> {
    usize::try_from(u32::from_be_bytes(header))
        .ok()
        .filter(|length| (1..=LARGEST).contains(length))
        .ok_or(Malformed)
}

impl Request {
    /// Adds the frame to `to`.
    pub fn write(&self, to: &mut Vec<u8>) {
        let mut frame = Frame::begin(to);
        match self {
            Self::Begin { version, setup } => {
                frame.byte(1).byte(*version).byte(u8::from(setup.is_some()));
                if let Some(setup) = setup {
                    let may_try = MAY_TRY
                        .iter()
                        .position(|one| *one == setup.may_try)
                        .expect("all are listed");
                    frame
                        .byte(may_try as u8)
                        .bytes(&setup.rules)
                        .short(setup.keys.len());
                    for key in &setup.keys {
                        frame
                            .bytes(key.uri.as_bytes())
                            .bytes(&key.expected)
                            .short(key.sessions.into());
                        frame.millis(key.device_limit).millis(key.open_limit);
                    }
                }
            }
            Self::Sign {
                id,
                key,
                purpose,
                time_left,
                message,
            } => {
                let purpose = PURPOSES
                    .iter()
                    .position(|one| one == purpose)
                    .expect("all are listed");
                frame
                    .byte(2)
                    .long(*id)
                    .short((*key).into())
                    .byte(purpose as u8)
                    .millis(*time_left)
                    .bytes(message);
            }
            Self::LogIn { order } => {
                frame.byte(3).long(*order);
            }
            Self::Distrust { key } => {
                frame.byte(4).short((*key).into());
            }
            Self::Ask => {
                frame.byte(5);
            }
        }
        frame.end();
    }

    /// Reads a body.
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut body = Body(body);
        let request = match body.byte()? {
            1 => {
                let version = body.byte()?;
                let setup = match body.byte()? {
                    0 => None,
                    1 => {
                        let may_try = *MAY_TRY.get(usize::from(body.byte()?)).ok_or(Malformed)?;
                        let rules = body.bytes()?.to_vec();
                        let keys = (0..body.short()?).map(|_| {
                            Ok(KeySetup {
                                uri: body.text()?,
                                expected: body.bytes()?.to_vec(),
                                sessions: body.short()?,
                                device_limit: body.millis()?,
                                open_limit: body.millis()?,
                            })
                        });
                        Some(Setup {
                            keys: keys.collect::<Result<_, _>>()?,
                            rules,
                            may_try,
                        })
                    }
                    _ => return Err(Malformed),
                };
                Self::Begin { version, setup }
            }
            2 => Self::Sign {
                id: body.long()?,
                key: body.short()?,
                purpose: *PURPOSES.get(usize::from(body.byte()?)).ok_or(Malformed)?,
                time_left: body.millis()?,
                message: body.bytes()?.to_vec(),
            },
            3 => Self::LogIn {
                order: body.long()?,
            },
            4 => Self::Distrust { key: body.short()? },
            5 => Self::Ask,
            _ => return Err(Malformed),
        };
        body.end(request)
    }
}

impl Reply {
    /// Adds the frame to `to`.
    pub fn write(&self, to: &mut Vec<u8>) {
        let mut frame = Frame::begin(to);
        match self {
            Self::Ready { version, keys } => {
                frame.byte(1).byte(*version).short(keys.len());
                for key in keys {
                    frame
                        .bytes(key.uri.as_bytes())
                        .bytes(&key.public_key)
                        .byte(u8::from(key.trouble.is_some()));
                    if let Some(trouble) = &key.trouble {
                        frame.error(trouble);
                    }
                }
            }
            Self::NotReady(error) => {
                frame.byte(2).error(error);
            }
            Self::Signed {
                id,
                timing,
                signature,
            } => {
                frame.byte(3).long(*id).timing(*timing).bytes(signature);
            }
            Self::NotSigned {
                id,
                timing,
                failure,
            } => {
                frame.byte(4).long(*id).timing(*timing);
                frame
                    .byte(u8::from(failure.deadline_passed))
                    .byte(u8::from(failure.reached_device))
                    .error(&failure.error);
            }
            Self::Health(keys) => {
                frame.byte(5).short(keys.len());
                for key in keys {
                    let state = STATES
                        .iter()
                        .position(|one| *one == key.state)
                        .expect("all are listed");
                    frame
                        .byte(state as u8)
                        .short(key.threads.into())
                        .short(key.open.into())
                        .short(key.stuck.into());
                    frame
                        .long(key.queued.into())
                        .long(key.reopened)
                        .bytes(key.detail.as_bytes());
                }
            }
            Self::Login { order, event } => {
                let (kind, text) = match event {
                    LoginEvent::Begun => (0, ""),
                    LoginEvent::Ended => (1, ""),
                    LoginEvent::Refused(text) => (2, text.as_str()),
                };
                frame.byte(6).long(*order).byte(kind).bytes(text.as_bytes());
            }
        }
        frame.end();
    }

    /// Reads a body.
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut body = Body(body);
        let reply = match body.byte()? {
            1 => {
                let version = body.byte()?;
                let keys = (0..body.short()?).map(|_| {
                    let (uri, public_key) = (body.text()?, body.bytes()?.to_vec());
                    Ok(BegunKey {
                        uri,
                        public_key,
                        trouble: if body.flag()? {
                            Some(body.error()?)
                        } else {
                            None
                        },
                    })
                });
                Self::Ready {
                    version,
                    keys: keys.collect::<Result<_, _>>()?,
                }
            }
            2 => Self::NotReady(body.error()?),
            3 => Self::Signed {
                id: body.long()?,
                timing: body.timing()?,
                signature: body.bytes()?.to_vec(),
            },
            4 => {
                let (id, timing) = (body.long()?, body.timing()?);
                let (deadline_passed, reached_device) = (body.flag()?, body.flag()?);
                Self::NotSigned {
                    id,
                    timing,
                    failure: SignFailure {
                        error: body.error()?,
                        deadline_passed,
                        reached_device,
                    },
                }
            }
            5 => {
                let keys = (0..body.short()?).map(|_| {
                    Ok(KeyHealth {
                        state: *STATES.get(usize::from(body.byte()?)).ok_or(Malformed)?,
                        threads: body.short()?,
                        open: body.short()?,
                        stuck: body.short()?,
                        queued: u32::try_from(body.long()?).map_err(|_| Malformed)?,
                        reopened: body.long()?,
                        detail: body.text()?,
                    })
                });
                Self::Health(keys.collect::<Result<_, _>>()?)
            }
            6 => {
                let (order, kind, text) = (body.long()?, body.byte()?, body.text()?);
                let event = match (kind, text.as_str()) {
                    (0, "") => LoginEvent::Begun,
                    (1, "") => LoginEvent::Ended,
                    (2, _) => LoginEvent::Refused(text),
                    _ => return Err(Malformed),
                };
                Self::Login { order, event }
            }
            _ => return Err(Malformed),
        };
        body.end(reply)
    }
}

/// A frame that is being written: the length is known at its end.
struct Frame<'a> {
    to: &'a mut Vec<u8>,
    begins: usize,
}

impl<'a> Frame<'a> {
    fn begin(to: &'a mut Vec<u8>) -> Self {
        let begins = to.len();
        to.extend([0; 4]);
        Self { to, begins }
    }

    fn byte(&mut self, byte: u8) -> &mut Self {
        self.to.push(byte);
        self
    }

    fn short(&mut self, number: usize) -> &mut Self {
        let number = u16::try_from(number).expect("a signer has no more than 65535 of anything");
        self.to.extend(number.to_be_bytes());
        self
    }

    fn long(&mut self, number: u64) -> &mut Self {
        self.to.extend(number.to_be_bytes());
        self
    }

    fn millis(&mut self, time: Duration) -> &mut Self {
        self.to.extend(
            u32::try_from(time.as_millis())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        self
    }

    fn timing(&mut self, timing: Timing) -> &mut Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.long(micros(timing.waited))
            .long(micros(timing.in_device))
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.to.extend(
            u32::try_from(bytes.len())
                .expect("a frame is far below four gigabytes")
                .to_be_bytes(),
        );
        self.to.extend_from_slice(bytes);
        self
    }

    fn error(&mut self, error: &SignError) -> &mut Self {
        let kind = match error {
            SignError::Busy(_) => 1,
            SignError::Lost(_) => 2,
            SignError::Locked(_) => 3,
            SignError::Rejected(_) => 4,
            SignError::Forbidden(_) => 5,
            SignError::Stopped => 6,
            SignError::WrongKey(_) => 7,
        };
        // Nothing is to be said of a stop.
        let cause = if let SignError::Stopped = error {
            ""
        } else {
            error.cause()
        };
        self.byte(kind).bytes(cause.as_bytes())
    }

    fn end(self) {
        let length = u32::try_from(self.to.len() - self.begins - 4)
            .expect("a frame is far below four gigabytes");
        self.to[self.begins..self.begins + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// What is left of a body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn short(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn long(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn millis(&mut self) -> Result<Duration, Malformed> {
        Ok(Duration::from_millis(
            u32::from_be_bytes(self.array()?).into(),
        ))
    }

    fn timing(&mut self) -> Result<Timing, Malformed> {
        Ok(Timing {
            waited: Duration::from_micros(self.long()?),
            in_device: Duration::from_micros(self.long()?),
        })
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = u32::from_be_bytes(self.array()?);
        self.take(usize::try_from(length).map_err(|_| Malformed)?)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        Ok(std::str::from_utf8(self.bytes()?)
            .map_err(|_| Malformed)?
            .to_owned())
    }

    fn error(&mut self) -> Result<SignError, Malformed> {
        let (kind, cause) = (self.byte()?, self.text()?);
        Ok(match kind {
            1 => SignError::Busy(cause),
            2 => SignError::Lost(cause),
            3 => SignError::Locked(cause),
            4 => SignError::Rejected(cause),
            5 => SignError::Forbidden(cause),
            6 if cause.is_empty() => SignError::Stopped,
            7 => SignError::WrongKey(cause),
            _ => return Err(Malformed),
        })
    }

    fn end<T>(self, value: T) -> Result<T, Malformed> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(Malformed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let key = KeySetup {
            uri: "pkcs11:token=a;object=b".into(),
            expected: vec![48; 91],
            sessions: 4,
            device_limit: Duration::from_secs(2),
            open_limit: Duration::from_secs(10),
        };
        vec![
            Request::Begin {
                version: VERSION,
                setup: None,
            },
            Request::Begin {
                version: VERSION,
                setup: Some(Setup {
                    keys: vec![key.clone(), key],
                    rules: b"{}".to_vec(),
                    may_try: MayTry::Ordered,
                }),
            },
            Request::Sign {
                id: 7,
                key: 1,
                purpose: Purpose::Leaf,
                time_left: Duration::from_millis(1500),
                message: vec![1; 600],
            },
            Request::LogIn { order: 3 },
            Request::Distrust { key: 3 },
            Request::Ask,
        ]
    }

    fn body(request: &Request) -> Vec<u8> {
        let mut frame = Vec::new();
        request.write(&mut frame);
        let header = frame[..4].try_into().expect("four bytes");
        assert_eq!(length(header), Ok(frame.len() - 4));
        frame.split_off(4)
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for request in requests() {
            assert_eq!(Request::read(&body(&request)), Ok(request));
        }
        let failure = SignFailure {
            error: SignError::Forbidden("no".into()),
            deadline_passed: false,
            reached_device: true,
        };
        let health = KeyHealth {
            state: HealthState::Lost,
            threads: 4,
            open: 1,
            stuck: 0,
            queued: 9,
            reopened: 3,
            detail: "lost".into(),
        };
        let timing = Timing {
            waited: Duration::from_micros(5),
            in_device: Duration::from_micros(70),
        };
        for reply in [
            Reply::Ready {
                version: VERSION,
                keys: vec![
                    BegunKey {
                        uri: "file:/a".into(),
                        public_key: vec![1, 2],
                        trouble: None,
                    },
                    BegunKey {
                        uri: "file:/b".into(),
                        public_key: vec![3],
                        trouble: Some(SignError::WrongKey("other".into())),
                    },
                ],
            },
            Reply::NotReady(SignError::Locked("PIN".into())),
            Reply::Signed {
                id: 9,
                timing,
                signature: vec![2; 71],
            },
            Reply::NotSigned {
                id: 9,
                timing,
                failure,
            },
            Reply::Health(vec![health.clone(), health]),
            Reply::Login {
                order: 0,
                event: LoginEvent::Begun,
            },
            Reply::Login {
                order: 1,
                event: LoginEvent::Ended,
            },
            Reply::Login {
                order: 2,
                event: LoginEvent::Refused("PIN".into()),
            },
        ] {
            let mut frame = Vec::new();
            reply.write(&mut frame);
            assert_eq!(
                format!("{:?}", Reply::read(&frame[4..])),
                format!("Ok({reply:?})")
            );
        }
    }

    #[test]
    fn a_body_that_is_cut_or_has_more_is_refused() {
        for request in requests() {
            let whole = body(&request);
            for end in 0..whole.len() {
                assert_eq!(
                    Request::read(&whole[..end]),
                    Err(Malformed),
                    "{request:?} cut at {end}"
                );
            }
            assert_eq!(
                Request::read(&[whole.as_slice(), &[0]].concat()),
                Err(Malformed)
            );
        }
        assert_eq!(length([0; 4]), Err(Malformed));
        assert_eq!(length([0xff; 4]), Err(Malformed));
    }
}
