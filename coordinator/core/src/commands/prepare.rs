//! `PrepareDone`: a worker has validated and counted the prompt.

use conclave_proto::v1::{AuditPrepared, PrepareDone, audit_event};

use super::{At, Ending, end};
use crate::{
    effect::{Applied, Effect, Reply},
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &PrepareDone) -> Applied {
    let Some(prepared) = command.prepared.as_ref().filter(|p| !p.retry) else {
        return Applied::only(Reply::Rejected {
            why: "nothing was prepared".into(),
        });
    };
    let Some(job) = state.jobs.get_mut(&prepared.job_id) else {
        return Applied::only(Reply::NotFound);
    };
    if !job.needs_prepare() {
        return Applied::only(Reply::Stale(crate::effect::Stale::Revision));
    }
    let event = AuditPrepared {
        model: prepared.model.clone(),
        model_digest: prepared.model_digest.clone(),
        numeric_class: prepared.numeric_class.clone(),
        prompt_tokens: prepared.prompt_tokens,
        error: prepared.error.clone(),
    };
    job.record(at.index, audit_event::Event::Prepared(event));
    job.prepared = Some(prepared.clone());
    if prepared.error.is_empty() {
        let changed: Effect = job.changed();
        state.reindex(&prepared.job_id);
        return Applied::ok(vec![changed]);
    }
    let id = prepared.job_id.clone();
    Applied::ok(end(state, at, &id, Ending::failed(prepared.error.clone())))
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{JobState, Prepared, command::Command as Body};

    use super::*;
    use crate::testkit::{World, question, width};

    fn prepared(world: &mut World, prepared: Prepared) -> Applied {
        world.apply(Body::PrepareDone(PrepareDone {
            prepared: Some(prepared),
        }))
    }

    #[test]
    fn a_bad_prompt_ends_the_job_with_the_workers_words() {
        let mut world = World::new();
        world.submit("j", &question(width(2)));
        let error = "the prompt has 9000 tokens, the model takes 8192".to_owned();
        let answer = Prepared {
            job_id: "j".into(),
            error: error.clone(),
            ..Prepared::default()
        };
        let applied = prepared(&mut world, answer);
        assert_eq!(applied.effects, [Effect::JobEnded { job_id: "j".into() }]);
        let job = world.job("j");
        assert_eq!(
            (job.state, job.message.as_str()),
            (JobState::Failed, error.as_str())
        );
        assert!(job.audit.is_sealed());
    }

    #[test]
    fn only_the_first_answer_counts() {
        let mut world = World::new();
        world.submit("j", &question(width(2)));
        world.prepare("j");
        let revision = world.job("j").revision;
        let late = Prepared {
            job_id: "j".into(),
            error: "late".into(),
            ..Prepared::default()
        };
        assert!(matches!(prepared(&mut world, late).reply, Reply::Stale(_)));
        let retry = Prepared {
            job_id: "j".into(),
            retry: true,
            ..Prepared::default()
        };
        assert!(matches!(
            prepared(&mut world, retry).reply,
            Reply::Rejected { .. }
        ));
        assert_eq!(world.job("j").revision, revision);
    }
}
