//! Law 9: what is long becomes a blob first; what is missing is fetched, and holds up no other.

use conclave_proto::v1::{
    Decide, StartRound, SubmitJobCommand, decide::Next, payload::Body as PayloadBody,
};
use prost::Message as _;

use super::*;
use crate::{
    Effect, payload,
    payload::Payloads,
    spec::{self, Defaults},
};

fn decide(context: usize) -> Decide {
    let context = payload::inline(vec![b'x'; context]);
    Decide {
        job_id: "j".into(),
        next: Some(Next::StartRound(StartRound {
            context: Some(context),
            ..StartRound::default()
        })),
        ..Decide::default()
    }
}

#[test]
fn a_long_context_is_stored_before_its_decision_is_proposed() {
    let limit = conclave_proto::INLINE_LIMIT;
    let mut desk = Desk::empty();
    desk.leader.propose_decision("j".into(), decide(limit));
    assert_eq!(bodies(&desk.acts()).len(), 1);
    desk.leader.propose_decision("j".into(), decide(limit + 1));
    let said = desk.acts();
    let [Act::StoreContext { bytes, .. }] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert_eq!(bytes.len(), limit + 1);
    let stored = Decide {
        next: Some(Next::StartRound(StartRound {
            context: Some(payload::blob([1; 32], bytes.len() as u64)),
            ..StartRound::default()
        })),
        ..decide(0)
    };
    desk.leader.context_stored("j".into(), Some(stored.clone()));
    assert_eq!(bodies(&desk.acts()), [&Body::Decide(stored)]);
}

#[test]
fn a_context_that_was_not_stored_is_decided_anew() {
    let mut desk = Desk::at_work();
    assert_eq!(bodies(&desk.acts()).len(), 1);
    desk.leader.context_stored("j".into(), None);
    desk.tick(TICK_MS);
    let said = desk.acts();
    let again = bodies(&said);
    assert!(again.iter().any(|body| matches!(body, Body::Decide(_))));
}

/// One blob, which may be here.
struct One(Option<Vec<u8>>);

impl Payloads for One {
    fn blob(&self, _hash: &[u8]) -> Option<Vec<u8>> {
        self.0.clone()
    }
}

#[test]
fn a_job_waits_for_its_missing_payload_and_goes_on_when_it_is_here() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    let spec = spec::effective(&choice(width(1)), &Defaults::new(9)).expect("a good spec");
    let bytes = spec.encode_to_vec();
    let payload = payload::blob([7; 32], bytes.len() as u64);
    assert!(matches!(payload.body, Some(PayloadBody::Blob(_))));
    let applied = desk.world.apply(Body::SubmitJob(SubmitJobCommand {
        job_id: "j".into(),
        tenant: "t".into(),
        idempotency_key: "key".into(),
        request_digest: vec![1],
        spec: Some(payload),
        unix_ms: 1_000,
        deadline_unix_ms: 0,
    }));
    let effects = applied.effects.into_iter();
    let effects = effects.filter(|e| !matches!(e, Effect::FetchBlob { .. }));
    desk.leader.effects(effects.collect());
    let fetch = Act::Fetch { hash: [7; 32] };
    assert!(desk.run().contains(&fetch), "the prompt cannot be sent");
    let here = One(Some(bytes));
    desk.leader.blob_arrived(&desk.world.state);
    let moment = Moment {
        payloads: &here,
        ..moment!(desk)
    };
    let said = desk.leader.acts(&moment);
    let prepares = |(_, m): &(u64, &ToWorker)| matches!(m, ToWorker::Prepare(_));
    assert!(sent(&said).iter().any(prepares));
    // An attempt that was placed needs it too.
    desk.world.prepare("j");
    let context = crate::contemplate::Context {
        payloads: &here,
        now_unix_ms: 0,
    };
    let decide = crate::contemplate::next(desk.world.job("j"), &context);
    let decide = decide.expect("it is here").expect("a round starts");
    desk.world.apply(Body::Decide(decide));
    desk.world.place();
    desk.leader.effects(desk.world.state.outstanding());
    let said = desk.run();
    assert!(said.contains(&fetch) && starts(&said).is_empty());
    desk.leader.blob_arrived(&desk.world.state);
    let moment = Moment {
        payloads: &here,
        ..moment!(desk)
    };
    assert_eq!(starts(&desk.leader.acts(&moment)), [(1, 1)]);
}
