//! Keeps the session at a broker in line with what the streams want.
//!
//! A task of its own, [`Subscriptions::keep`], says to the broker what [`Filters`] plans, and writes down what the
//! session may have before it does. The link tells it of connections, and hands over the broker's answers and deliveries in the
//! order of the packets: what comes after an answer is judged by it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{
    ConnAck, Publish, RetainForwardRule, SubAck, SubscribeFilter, SubscribeProperties, SubscribeReasonCode,
    UnsubAck, UnsubAckReason,
};
use rumqttc::{AsyncClient, ClientError, SubscribeNotice, SubscribeNoticeError, UnsubscribeNoticeError};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::redelivery::fingerprint;
use crate::seal::blocking;

use super::copies::{Copies, Copy};
use super::filters::{Filters, Occasion};
use super::filters_file::FiltersFile;

/// What is refused is asked for again, less and less often: an operator may have given the right meanwhile.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// What could not be said because the queue of the client is full is said again.
const SAY_AGAIN: Duration = Duration::from_millis(100);

/// What the broker sends us, over one session.
pub(super) struct Subscriptions {
    client: AsyncClient,
    /// What the streams want.
    filters: watch::Receiver<Arc<Vec<String>>>,
    /// What is subscribed to instead, if it is not empty.
    only: Vec<String>,
    /// The group in which the load is shared.
    group: Option<String>,
    file: FiltersFile,
    known: Mutex<Known>,
    is_connected: AtomicBool,
    /// A connection was made.
    connected: Notify,
    /// The broker has answered.
    answered: Notify,
}

/// What is known of the session, and what the broker has yet to answer.
struct Known {
    session: Filters,
    /// Whether the broker takes identifiers of subscriptions.
    with_ids: bool,
    questions: Vec<Question>,
    copies: Copies,
    /// What the file holds.
    saved: Vec<u8>,
}

impl fmt::Debug for Subscriptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriptions").field("session", &self.known.lock().session).finish_non_exhaustive()
    }
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// What a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A message, unless it is a `dup` and the log knows better: an earlier process may have taken another copy of it, under one
    /// of so many packet identifiers before that of this one.
    Take(u16),
    /// A copy of a message that this process has taken.
    Copy,
}

enum Question {
    Subscribe(u32, Answer<SubAck, SubscribeNoticeError>),
    Leave(u32, Answer<UnsubAck, UnsubscribeNoticeError>),
}

impl Subscriptions {
    /// Takes up what an earlier process has left in `file`.
    ///
    /// Where there is none, what a process without such files has subscribed to is left: it shared the load in
    /// `own_group`, if this one does not, or the other way round.
    pub(super) fn new(
        client: AsyncClient,
        filters: watch::Receiver<Arc<Vec<String>>>,
        only: Vec<String>,
        group: Option<String>,
        own_group: &str,
        file: FiltersFile,
    ) -> Self {
        let wanted = plain(&only, &filters);
        let other_form = match &group {
            Some(_) => wanted,
            None => shared(wanted, own_group),
        };
        let unknown = || Filters::unknown(other_form, rand::random());
        let session = file.load().unwrap_or_else(unknown);
        let known = Known {
            session,
            with_ids: true,
            questions: Vec::new(),
            copies: Copies::default(),
            saved: Vec::new(),
        };
        let known = Mutex::new(known);
        let (connected, answered, is_connected) = (Notify::new(), Notify::new(), AtomicBool::new(false));
        Self { client, filters, only, group, file, known, is_connected, connected, answered }
    }

    /// A connection was made.
    pub(super) fn begin(&self, ack: &ConnAck) {
        let mut known = self.known.lock();
        known.session.connected(ack.session_present);
        let available = ack.properties.as_ref().and_then(|it| it.subscription_identifiers_available);
        known.with_ids = available != Some(0);
        drop(known);
        self.is_connected.store(true, Ordering::Release);
        self.connected.notify_one();
    }

    /// The connection has ended.
    pub(super) fn end(&self) {
        self.is_connected.store(false, Ordering::Release);
    }

    /// The broker has answered: takes in all that it has said up to now. Returns what it refuses, if that is new.
    pub(super) fn answered(&self) -> Option<String> {
        let mut known = self.known.lock();
        let refused = known.take_answers();
        drop(known);
        self.answered.notify_one();
        refused
    }

    /// What a delivery is: to be taken, or a copy of one that another filter has brought.
    pub(super) fn judge(&self, publish: &Publish) -> Verdict {
        let ids = publish.properties.as_ref().map_or(&[][..], |it| it.subscription_identifiers.as_slice());
        let ([by], Ok(topic)) = (ids, std::str::from_utf8(&publish.topic)) else { return Verdict::Take(0) };
        let mut known = self.known.lock();
        let others = known.session.others(topic, ids);
        if others.is_empty() {
            return Verdict::Take(0);
        }
        // Brokers number the copies of a message one after the other.
        let before = u16::try_from(others.len()).unwrap_or(u16::MAX);
        let content = fingerprint(topic, &publish.payload);
        let copy = Copy { by: *by, content, packet_id: publish.pkid, dup: publish.dup };
        match known.copies.take(copy, others) {
            true => Verdict::Take(before),
            false => Verdict::Copy,
        }
    }

    /// What the broker refuses, for an operator.
    pub(super) fn refused(&self) -> Option<String> {
        self.known.lock().session.first_refused().map(|(filter, why)| refusal(filter, why))
    }

    /// Brings the session in line, now and whenever something changes, until told to stop.
    pub(super) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = self.work() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn work(&self) {
        let mut filters = self.filters.clone();
        let mut pause = FIRST_RETRY;
        loop {
            let is_refused = self.known.lock().session.first_refused().is_some();
            if !is_refused {
                pause = FIRST_RETRY;
            }
            let occasion = tokio::select! {
                () = self.connected.notified() => Occasion::Connected,
                () = self.answered.notified() => Occasion::Changed,
                Ok(()) = filters.changed() => Occasion::Changed,
                () = tokio::time::sleep(pause), if is_refused => {
                    pause = (pause * 2).min(LAST_RETRY);
                    Occasion::Retry
                }
            };
            // Without a connection there is nothing to do: the next one is told what is wanted then.
            if self.is_connected.load(Ordering::Acquire) && !self.renew(occasion).await {
                tokio::time::sleep(SAY_AGAIN).await;
                self.connected.notify_one();
            }
        }
    }

    /// Says to the broker what there is to say. `false` if that must be done again.
    async fn renew(&self, occasion: Occasion) -> bool {
        let plan = self.known.lock().session.plan(&self.wanted(), occasion);
        // What the session may have is written down before it can have it.
        self.save().await;
        let mut known = self.known.lock();
        for (id, filter) in plan.subscribe {
            match self.subscribe(&filter, known.with_ids.then_some(id)) {
                Ok(notice) => known.questions.push(Question::Subscribe(id, Box::pin(notice.wait_async()))),
                Err(e) => {
                    tracing::warn!("cannot subscribe to `{filter}` now: {e}");
                    return false;
                }
            }
        }
        for (id, filter) in plan.leave {
            match self.client.try_unsubscribe_tracked(filter.as_str()) {
                Ok(notice) => known.questions.push(Question::Leave(id, Box::pin(notice.wait_async()))),
                Err(e) => {
                    tracing::warn!("cannot unsubscribe from `{filter}` now: {e}");
                    return false;
                }
            }
        }
        true
    }

    fn subscribe(&self, filter: &str, id: Option<u32>) -> Result<SubscribeNotice, ClientError> {
        // Every connection subscribes again; what is retained was delivered the first time.
        let filter = SubscribeFilter {
            retain_forward_rule: RetainForwardRule::OnNewSubscribe,
            ..SubscribeFilter::new(filter, QoS::AtLeastOnce)
        };
        // Which connection gets a message of a shared subscription is the broker's choice, so none of them can know
        // that another copy comes.
        let id = id.filter(|_| self.group.is_none()).map(|id| id as usize);
        let properties = SubscribeProperties { id, user_properties: Vec::new() };
        self.client.try_subscribe_many_with_properties_tracked([filter], properties)
    }

    async fn save(&self) {
        let content = {
            let mut known = self.known.lock();
            let content = self.file.encode(&known.session);
            if known.saved == content {
                return;
            }
            known.saved.clone_from(&content);
            content
        };
        let file = self.file.clone();
        if let Err(e) = blocking("saving the filters of a session", move || file.save(&content)).await {
            tracing::warn!("the filters of the broker's session are not known to the next process: {e}");
            self.known.lock().saved.clear();
        }
    }

    fn wanted(&self) -> Vec<String> {
        let plain = plain(&self.only, &self.filters);
        match &self.group {
            Some(group) => shared(plain, group),
            None => plain,
        }
    }
}

impl Known {
    /// Takes in what has been answered. Returns what is refused, if something is.
    fn take_answers(&mut self) -> Option<String> {
        let mut refused = None;
        for question in std::mem::take(&mut self.questions) {
            match question {
                Question::Subscribe(id, mut answer) => match (&mut answer).now_or_never() {
                    Some(Ok(ack)) => refused = self.subscribed(id, &ack).or(refused),
                    // The session is a new one, and everything is asked again.
                    Some(Err(e)) => tracing::debug!("a subscription has no answer: {e}"),
                    None => self.questions.push(Question::Subscribe(id, answer)),
                },
                Question::Leave(id, mut answer) => match (&mut answer).now_or_never() {
                    Some(Ok(ack)) => self.unsubscribed(id, &ack),
                    Some(Err(e)) => tracing::debug!("the end of a subscription has no answer: {e}"),
                    None => self.questions.push(Question::Leave(id, answer)),
                },
            }
        }
        refused
    }

    fn subscribed(&mut self, id: u32, ack: &SubAck) -> Option<String> {
        match ack.return_codes.first()? {
            SubscribeReasonCode::Success(_) => {
                self.session.accepted(id);
                None
            }
            code => {
                // Some brokers do not say so before. What has no identifier may come twice, which is no loss.
                self.with_ids &= *code != SubscribeReasonCode::SubscriptionIdNotSupported;
                let why = format!("{code:?}");
                let refusal = refusal(&self.session.refused(id, &why)?, &why);
                tracing::error!("{refusal}");
                Some(refusal)
            }
        }
    }

    fn unsubscribed(&mut self, id: u32, ack: &UnsubAck) {
        match ack.reasons.first() {
            Some(UnsubAckReason::Success | UnsubAckReason::NoSubscriptionExisted) | None => {
                self.session.left(id)
            }
            Some(reason) => tracing::warn!("the broker does not end a subscription: {reason:?}"),
        }
    }
}

fn refusal(filter: &str, why: &str) -> String {
    format!(
        "the broker refuses the subscription to `{filter}`: {why}; it is tried again; give our user the right"
    )
}

/// The filters as the streams say them.
fn plain(only: &[String], filters: &watch::Receiver<Arc<Vec<String>>>) -> Vec<String> {
    match only {
        [] => filters.borrow().to_vec(),
        only => only.to_vec(),
    }
}

fn shared(filters: Vec<String>, group: &str) -> Vec<String> {
    filters.iter().map(|filter| format!("$share/{group}/{filter}")).collect()
}
