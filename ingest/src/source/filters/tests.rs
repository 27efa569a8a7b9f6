use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::source::copies::{Copies, Copy};

fn filters(wanted: &[&str]) -> Vec<String> {
    wanted.iter().map(|filter| (*filter).to_owned()).collect()
}

fn asked(plan: &Plan) -> Vec<&str> {
    plan.subscribe.iter().map(|(_, filter)| filter.as_str()).collect()
}

fn leaving(plan: &Plan) -> Vec<&str> {
    plan.leave.iter().map(|(_, filter)| filter.as_str()).collect()
}

/// Plans, and has the broker do as it is told.
fn settle(session: &mut Filters, wanted: &[&str], occasion: Occasion) -> Plan {
    let plan = session.plan(&filters(wanted), occasion);
    plan.subscribe.iter().for_each(|(id, _)| session.accepted(*id));
    plan.leave.iter().for_each(|(id, _)| session.left(*id));
    plan
}

#[test]
fn a_filter_covers_what_it_matches_in_any_case() {
    for (filter, other, expect) in [
        ("a/b", "a/b", true),
        ("a/+", "a/b", true),
        ("a/#", "a", true),
        ("a/#", "a/+/c", true),
        ("#", "+/#", true),
        ("a/+", "a/#", false),
        ("a/+", "a/b/c", false),
        ("a/b", "a/+", false),
        ("a/b/c", "a/b", false),
        ("#", "$SYS/x", false),
        ("+/x", "$SYS/x", false),
    ] {
        assert_eq!(covers(filter, other), expect, "{filter} and {other}");
    }
}

#[test]
fn who_shares_a_subscription_needs_no_narrower_one_of_the_same_group() {
    for (filter, other, expect) in [
        ("$share/g/a/#", "$share/g/a/+", true),
        ("$share/g/a/#", "$share/h/a/+", false),
        ("$share/g/#", "$share/g/$SYS/x", false),
        ("$share/g/a/#", "a/+", false),
        ("a/#", "$share/g/a/+", false),
        ("a/#", "a/#", false),
    ] {
        assert_eq!(covers_more(filter, other), expect, "{filter} and {other}");
    }
}

#[test]
fn filters_overlap_where_a_topic_matches_both() {
    for (one, other, expect) in [
        ("a/+", "+/b", true),
        ("a/#", "a", true),
        ("+/+/c", "a/#", true),
        ("a/+", "b/+", false),
        ("a/+/c", "a/b", false),
        ("+/x", "$SYS/x", false),
        ("#", "$share/g/a", false),
    ] {
        assert_eq!((overlap(one, other), overlap(other, one)), (expect, expect), "{one} and {other}");
    }
}

#[test]
fn what_another_filter_covers_is_not_subscribed_to_unless_that_is_refused() {
    let mut session = Filters::default();
    let wanted = filters(&["devices/#", "devices/+/telemetry", "other"]);
    let plan = session.plan(&wanted, Occasion::Connected);
    assert_eq!(asked(&plan), ["devices/#", "other"]);
    assert_eq!(session.refused(plan.subscribe[0].0, "NotAuthorized").as_deref(), Some("devices/#"));
    session.accepted(plan.subscribe[1].0);
    assert_eq!(session.first_refused(), Some(("devices/#", "NotAuthorized")));
    assert_eq!(
        asked(&settle(&mut session, &["devices/#", "devices/+/telemetry", "other"], Occasion::Changed)),
        ["devices/+/telemetry"]
    );
    // It is tried again, and the other one goes only once it is there.
    let plan = session.plan(&wanted, Occasion::Retry);
    assert_eq!((asked(&plan), leaving(&plan)), (vec!["devices/#"], vec![]));
    session.accepted(plan.subscribe[0].0);
    assert_eq!(session.first_refused(), None);
    let plan = session.plan(&wanted, Occasion::Changed);
    assert_eq!((asked(&plan), leaving(&plan)), (vec![], vec!["devices/+/telemetry"]));
}

#[test]
fn a_connection_asks_for_everything_again_and_leaves_what_was_left() {
    let mut session = Filters::default();
    settle(&mut session, &["a", "b"], Occasion::Connected);
    settle(&mut session, &["b", "c"], Occasion::Changed);
    let plan = session.plan(&filters(&["b", "c"]), Occasion::Connected);
    assert_eq!(
        (asked(&plan), leaving(&plan)),
        (vec!["b", "c"], vec!["a"]),
        "an older store may have `a` still"
    );
    session.connected(false);
    let plan = session.plan(&filters(&["b", "c"]), Occasion::Connected);
    assert_eq!(
        (asked(&plan), leaving(&plan)),
        (vec!["b", "c"], vec![]),
        "a new session has nothing to leave"
    );
}

#[test]
fn of_filters_that_overlap_in_part_each_knows_the_others() {
    let mut session = Filters::default();
    let plan = settle(&mut session, &["z/+", "+/t"], Occasion::Connected);
    let [(first, _), (second, _)] = plan.subscribe.as_slice() else { panic!("two, not {plan:?}") };
    let (first, second) = (*first as usize, *second as usize);
    assert_eq!(
        (session.others("z/t", &[first]), session.others("z/t", &[second])),
        (vec![second], vec![first])
    );
    assert!(session.others("y/t", &[second]).is_empty(), "nobody else brings it");
    assert!(session.others("z/t", &[]).is_empty() && session.others("z/t", &[first, second]).is_empty());
    assert!(session.others("z/t", &[12_345]).is_empty(), "a subscription that we do not know");
    // The first one goes and comes back, under another identifier.
    settle(&mut session, &["+/t"], Occasion::Changed);
    assert!(session.others("z/t", &[second]).is_empty());
    let plan = settle(&mut session, &["z/+", "+/t"], Occasion::Changed);
    let again = plan.subscribe[0].0 as usize;
    assert_ne!(again, first);
    assert!(session.others("z/t", &[first]).is_empty());
    assert_eq!(session.others("z/t", &[second]), [again]);
}

#[test]
fn a_filter_that_is_refused_or_not_confirmed_brings_no_copies() {
    let mut session = Filters::default();
    let plan = session.plan(&filters(&["z/+", "+/t"]), Occasion::Connected);
    let second = plan.subscribe[1].0;
    session.accepted(second);
    assert!(session.others("z/t", &[second as usize]).is_empty());
    session.refused(plan.subscribe[0].0, "NotAuthorized");
    assert!(session.others("z/t", &[second as usize]).is_empty());
}

/// What goes from the broker to us.
#[derive(Debug)]
enum Packet {
    SubAck(u32),
    UnsubAck(u32),
    Publish { number: usize, topic: String, id: u32 },
}

/// A broker that does what it is told in order, and sends a copy for each filter that matches, or a single one.
#[derive(Debug, Default)]
struct Broker {
    sends_one: bool,
    subscriptions: Vec<(u32, String)>,
    requests: VecDeque<(bool, u32, String)>,
    packets: VecDeque<Packet>,
    routed: Vec<usize>,
}

impl Broker {
    fn tell(&mut self, plan: Plan) {
        self.requests.extend(plan.subscribe.into_iter().map(|(id, filter)| (true, id, filter)));
        self.requests.extend(plan.leave.into_iter().map(|(id, filter)| (false, id, filter)));
    }

    fn work(&mut self) {
        let Some((is_subscribe, id, filter)) = self.requests.pop_front() else { return };
        let known = self.subscriptions.iter().position(|(_, known)| *known == filter);
        match (is_subscribe, known) {
            (true, Some(at)) => self.subscriptions[at].0 = id,
            (true, None) => self.subscriptions.push((id, filter)),
            (false, Some(at)) => _ = self.subscriptions.remove(at),
            (false, None) => {}
        }
        self.packets.push_back(if is_subscribe { Packet::SubAck(id) } else { Packet::UnsubAck(id) });
    }

    fn publish(&mut self, number: usize, topic: &str) {
        let matching = self.subscriptions.iter().filter(|(_, filter)| covers(filter, topic));
        let before = self.packets.len();
        let at_most = if self.sends_one { 1 } else { usize::MAX };
        // It need not begin with the oldest.
        let matching = matching.rev().take(at_most);
        self.packets.extend(matching.map(|(id, _)| Packet::Publish {
            number,
            topic: topic.to_owned(),
            id: *id,
        }));
        if self.packets.len() > before {
            self.routed.push(number);
        }
    }

    /// The connection is cut: what was said and answered is lost, messages are not.
    fn cut(&mut self) {
        self.requests.clear();
        self.packets.retain(|packet| matches!(packet, Packet::Publish { .. }));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish(&'static str),
    Work,
    Receive,
    Want(Vec<String>),
    /// From now on a message comes once, or once for each filter.
    SendOne(bool),
    Reconnect,
    Restart,
}

/// A session, its broker, and the numbers of the messages that were taken.
#[derive(Debug, Default)]
struct World {
    session: Filters,
    copies: Copies,
    broker: Broker,
    wanted: Vec<String>,
    published: usize,
    taken: Vec<usize>,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(topic) => {
                self.published += 1;
                self.broker.publish(self.published, topic);
            }
            Step::Work => self.broker.work(),
            Step::Receive => self.receive(),
            Step::Want(wanted) => {
                self.wanted = wanted;
                self.say(Occasion::Changed);
            }
            Step::SendOne(sends_one) => self.broker.sends_one = sends_one,
            Step::Reconnect => {
                self.broker.cut();
                self.session.connected(true);
                self.say(Occasion::Connected);
            }
            Step::Restart => {
                self.session = reread(&self.session);
                self.copies = Copies::default();
                self.step(Step::Reconnect);
            }
        }
    }

    fn say(&mut self, occasion: Occasion) {
        let plan = self.session.plan(&self.wanted, occasion);
        self.broker.tell(plan);
    }

    fn receive(&mut self) {
        match self.broker.packets.pop_front() {
            Some(Packet::SubAck(id)) => self.session.accepted(id),
            Some(Packet::UnsubAck(id)) => self.session.left(id),
            Some(Packet::Publish { number, topic, id }) => {
                let (by, content) = (id as usize, number as u64);
                let others = self.session.others(&topic, &[by]);
                if self.copies.take(Copy { by, content, packet_id: 0, dup: false }, others) {
                    self.taken.push(number);
                }
                return;
            }
            None => return,
        }
        self.say(Occasion::Changed);
    }

    fn settle(&mut self) {
        while !(self.broker.requests.is_empty() && self.broker.packets.is_empty()) {
            self.broker.work();
            self.receive();
        }
    }
}

/// What the next process knows.
fn reread(session: &Filters) -> Filters {
    let text = serde_json::to_string(session).expect("it is JSON");
    let mut session: Filters = serde_json::from_str(&text).expect("it reads");
    session.compare();
    session
}

fn wanted() -> impl Strategy<Value = Vec<String>> {
    let all = ["#", "a/#", "a/+", "+/t", "a/t", "b/+", "+/+"];
    prop::sample::subsequence(filters(&all), 1..5).prop_shuffle()
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::sample::select(vec!["a/t", "a/u", "b/t", "b/u", "a"]).prop_map(Step::Publish),
        4 => Just(Step::Work),
        6 => Just(Step::Receive),
        1 => wanted().prop_map(Step::Want),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
        1 => any::<bool>().prop_map(Step::SendOne),
    ]
}

proptest! {
    /// Whatever changes and whenever: of each message that the broker has routed to us a copy is taken.
    #[test]
    fn no_message_is_left_out(first in wanted(), steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World { wanted: first, ..World::default() };
        world.step(Step::Reconnect);
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
        for number in &world.broker.routed {
            prop_assert!(world.taken.contains(number), "{number} is lost");
        }
    }

    /// While the streams do not change, every message is taken once by a process, through lost connections.
    #[test]
    fn once_a_session_is_settled_each_message_is_taken_once(
        first in wanted(),
        second in wanted(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World { wanted: first, ..World::default() };
        world.step(Step::Reconnect);
        world.settle();
        world.step(Step::Want(second));
        world.settle();
        let steps = steps.into_iter().filter(|step| !matches!(step, Step::Want(_) | Step::Restart));
        steps.for_each(|step| world.step(step));
        world.settle();
        let mut taken = world.taken.clone();
        taken.sort_unstable();
        prop_assert_eq!(taken, world.broker.routed);
    }
}
