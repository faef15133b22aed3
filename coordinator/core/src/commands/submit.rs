//! `SubmitJob`: a job is accepted, once per idempotency key (law 7).

use conclave_proto::v1::{
    AuditSubmitted, JobState, KeyRecord, Replay, SubmitJobCommand, audit_event,
};

use super::At;
use crate::{
    audit::Chain,
    effect::{Applied, Effect, Reply},
    job::Job,
    payload,
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &SubmitJobCommand) -> Applied {
    let now = state.advance_unix(command.unix_ms);
    if let Some(known) = state.key(&command.tenant, &command.idempotency_key) {
        let job_id = known.job_id.to_string();
        return Applied::only(if *known.request_digest == *command.request_digest {
            Reply::Submitted {
                job_id,
                existing: true,
            }
        } else {
            Reply::Conflict { job_id }
        });
    }
    let Some(spec) = command.spec.clone() else {
        return Applied::only(Reply::Rejected {
            why: "a submission without a spec".into(),
        });
    };
    if state.jobs.contains_key(&command.job_id) {
        return Applied::only(Reply::Rejected {
            why: "this job id is taken".into(),
        });
    }
    let mut effects = Vec::new();
    if let Some((hash, length)) = payload::blob_ref(&spec) {
        effects.push(Effect::FetchBlob { hash, length });
    }
    let record = KeyRecord {
        tenant: command.tenant.clone(),
        key: command.idempotency_key.clone(),
        request_digest: command.request_digest.clone(),
        job_id: command.job_id.clone(),
        unix_ms: now,
    };
    state.keys.insert(record);
    state
        .jobs
        .insert(command.job_id.clone(), new_job(at, now, command, spec));
    state.reindex(&command.job_id);
    effects.push(Effect::Prepare {
        job_id: command.job_id.clone(),
    });
    effects.push(Effect::JobChanged {
        job_id: command.job_id.clone(),
    });
    let reply = Reply::Submitted {
        job_id: command.job_id.clone(),
        existing: false,
    };
    Applied { reply, effects }
}

fn new_job(at: At, now: i64, command: &SubmitJobCommand, spec: conclave_proto::v1::Payload) -> Job {
    let submitted = AuditSubmitted {
        tenant: command.tenant.clone(),
        spec: None,
        unix_ms: now,
        request_digest: command.request_digest.clone(),
        spec_digest: payload::digest(&spec),
    };
    let mut job = Job {
        id: command.job_id.clone(),
        tenant: command.tenant.clone(),
        idempotency_key: command.idempotency_key.clone(),
        spec,
        state: JobState::Unspecified,
        round: 0,
        revision: 1,
        agents: Vec::new(),
        prepared: None,
        rounds: Vec::new(),
        answer: None,
        message: String::new(),
        submitted_unix_ms: now,
        ended_unix_ms: 0,
        deadline_unix_ms: command.deadline_unix_ms,
        events: Vec::new(),
        audit: Chain::default(),
        replay: Replay::Exact,
        numeric_class: String::new(),
    };
    job.record(at.index, audit_event::Event::Submitted(submitted));
    job.enter(now, JobState::Preparing);
    job
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{command::Command as Body, job_event};

    use super::*;
    use crate::testkit::{World, question, width};

    fn resubmit(world: &mut World, digest: u8) -> Applied {
        let command = match &world.log.last().expect("submitted").1.command {
            Some(Body::SubmitJob(c)) => c.clone(),
            other => panic!("{other:?}"),
        };
        let (job_id, request_digest) = ("other".into(), vec![digest]);
        world.apply(Body::SubmitJob(SubmitJobCommand {
            job_id,
            request_digest,
            ..command
        }))
    }

    #[test]
    fn a_submission_is_prepared_and_announced() {
        let mut world = World::new();
        let applied = world.submit("j", &question(width(2)));
        let job_id = String::from("j");
        assert_eq!(
            applied.reply,
            Reply::Submitted {
                job_id: job_id.clone(),
                existing: false
            }
        );
        assert_eq!(
            applied.effects,
            [
                Effect::Prepare {
                    job_id: job_id.clone()
                },
                Effect::JobChanged { job_id }
            ]
        );
        let event = job_event::Event::State(JobState::Preparing as i32);
        assert_eq!(world.job("j").events[0].event, Some(event));
        assert_eq!(world.state.jobs("t").count(), 1);
        assert_eq!(world.state.jobs("stranger").count(), 0);
    }

    #[test]
    fn the_same_key_and_digest_give_the_same_job() {
        let mut world = World::new();
        world.submit("j", &question(width(2)));
        let again = resubmit(&mut world, 1);
        assert_eq!(
            again.reply,
            Reply::Submitted {
                job_id: "j".into(),
                existing: true
            }
        );
        assert_eq!(
            (again.effects.len(), world.state.all_jobs().count()),
            (0, 1)
        );
    }

    #[test]
    fn the_same_key_with_another_digest_conflicts() {
        let mut world = World::new();
        world.submit("j", &question(width(2)));
        let other = resubmit(&mut world, 2);
        assert_eq!(other, Applied::only(Reply::Conflict { job_id: "j".into() }));
    }

    #[test]
    fn the_same_key_of_another_tenant_is_another_job() {
        let mut world = World::new();
        world.submit("j", &question(width(2)));
        let Some(Body::SubmitJob(mine)) = world.log.last().and_then(|l| l.1.command.clone()) else {
            panic!("submitted")
        };
        let theirs = world.apply(Body::SubmitJob(SubmitJobCommand {
            job_id: "k".into(),
            tenant: "u".into(),
            ..mine
        }));
        let (job_id, existing) = ("k".into(), false);
        assert_eq!(theirs.reply, Reply::Submitted { job_id, existing });
        let names = |tenant| world.state.key(tenant, "key-j").map(|k| &*k.job_id);
        assert_eq!((names("t"), names("u")), (Some("j"), Some("k")));
    }

    #[test]
    fn replicated_time_never_goes_back() {
        let mut world = World::new();
        world.now = 5_000;
        world.submit("a", &question(width(1)));
        world.now = 2_000;
        world.submit("b", &question(width(1)));
        assert_eq!(world.job("b").submitted_unix_ms, 5_000);
    }
}
